#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster, as a JobSet with one pod per host.
#
#   bash launch/gke.sh --name=NAME --image=IMAGE --topology=v5e:8x8 --bucket=BUCKET \
#       --config=FILE --workdir=/mnt/shared/runs/NAME [--OPTION=VALUE ...] [-- --config.KEY=VALUE ...]
#
# The cluster needs a node pool of this topology, JobSet 0.6 or newer and, for --bucket, the Cloud
# Storage FUSE CSI driver. launch/Dockerfile builds the image.
#
# Options:
#   --name, --namespace=default    of the JobSet
#   --image=IMAGE               such as us-docker.pkg.dev/PROJECT/REPOSITORY/ddae_jax:REVISION
#   --topology=v5e:8x8          generation and sides of the slice, as for ddae_jax.compile_check
#   --chips-per-host=4          8 for machines that hold a whole slice of 8 chips
#   --spot                      cheaper nodes, which may be preempted at any time
#   --job=pretrain              or finetune, segment
#   --config=FILE               a config in the image, such as configs/imagenet_ddae_vit_b16.py
#   --workdir=/mnt/shared/...   the run's folder
#   --bucket=NAME               Cloud Storage bucket to mount at /mnt/shared, for workdir and data
#   --claim=NAME                or a PersistentVolumeClaim that many nodes can write, such as Filestore's
#   --service-account=default   Kubernetes service account that can read and write the bucket
#   --max-restarts=20           how often a failed run is restarted; after a preemption or a stop it
#                               always is
#   --dry-run                   print the manifest instead of applying it
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
source "$(dirname "${BASH_SOURCE[0]}")/tpu_generations.sh"

option=(
  [name]='' [namespace]=default [image]='' [topology]='' [chips-per-host]=$chips_per_host
  [spot]=false [job]=pretrain [config]='' [workdir]='' [bucket]='' [claim]=''
  [service-account]=default [max-restarts]=20 [dry-run]=false
)

# Sets `accelerator`, `shape`, `chips` (per host) and `hosts` from --topology.
set_slice() {
  local given=--topology=${option[topology]} generation=${option[topology]%%:*} side of_all=1
  [ -n "${gke_accelerator[$generation]+known}" ] ||
    fail "$given; known generations: $(printf '%s\n' "${!sides[@]}" | sort | paste -s -d ' ')"
  accelerator=${gke_accelerator[$generation]}
  shape=${option[topology]#*:}
  [[ x$shape =~ ^(x[1-9][0-9]*){${sides[$generation]}}$ ]] ||
    fail "$given; a slice of $generation has ${sides[$generation]} sides, as in" \
      "$([ "${sides[$generation]}" = 2 ] && echo "$generation:8x8" || echo "$generation:4x4x4")"
  for side in ${shape//x/ }; do
    of_all=$((of_all * side))
  done
  chips=${option[chips-per-host]}
  ((of_all >= chips)) || chips=$of_all
  ((of_all % chips == 0)) ||
    fail "$given has $of_all chips, which hosts of $chips (--chips-per-host) cannot share"
  hosts=$((of_all / chips))
}

# Prints the argument, which has one line, as a YAML string.
yaml() {
  printf "'%s'" "${1//"'"/"''"}"
}

manifest() {
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $(yaml "${option[name]}")
  namespace: $(yaml "${option[namespace]}")
  annotations:
    # All pods of a slice in one node pool.
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  # The headless service by which the pods find each other.
  network:
    enableDNSHostnames: true
    publishNotReadyAddresses: true
    subdomain: $(yaml "${option[name]}")
  failurePolicy:
    maxRestarts: ${option[max-restarts]}
    rules:
    # Needs JobSet 0.11. If restarted, such a run would fail in the same way.
    - name: recurring
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
      onJobFailureMessagePatterns: [".*exit code $recurring_status matching.*"]
    - name: stopped
      action: RestartJobSetAndIgnoreMaxRestarts
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: hosts
    replicas: 1
    template:
      spec:
        completionMode: Indexed
        completions: $hosts
        parallelism: $hosts
        # Where one pod fails, all start again from the latest checkpoint.
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onPodConditions:
            - {type: DisruptionTarget, status: "True"}
          - action: FailJob
            onExitCodes: {containerName: train, operator: In, values: [$stopped_status, $recurring_status]}
        template:
          metadata:
            annotations: $(annotations)
          spec:
            restartPolicy: Never
            # Between SIGTERM and SIGKILL: time to save.
            terminationGracePeriodSeconds: 300
            serviceAccountName: $(yaml "${option[service-account]}")
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $shape
$(spot_selector)
            containers:
            - name: train
              image: $(yaml "${option[image]}")
              command: [python]
              args:
$(for argument in "${training[@]}"; do echo "              - $(yaml "$argument")"; done)
              env:
              - {name: DDAE_JAX_STOPPED_STATUS, value: "$stopped_status"}
              resources:
                requests: {google.com/tpu: $chips}
                limits: {google.com/tpu: $chips}
              volumeMounts:
              - {name: shared, mountPath: $shared}
              - {name: memory, mountPath: /dev/shm}
            volumes:
            # Workers pass images on in shared memory, of which a container has only 64 MB by default.
            - {name: memory, emptyDir: {medium: Memory}}
$(shared_volume)
YAML
}

spot_selector() {
  [ "${option[spot]}" = false ] || echo '              cloud.google.com/gke-spot: "true"'
}

# The sidecar that mounts the bucket buffers what is being written, so its resources are unlimited.
annotations() {
  if [ -n "${option[bucket]}" ]; then
    echo '{gke-gcsfuse/volumes: "true", gke-gcsfuse/cpu-limit: "0", gke-gcsfuse/memory-limit: "0",' \
      'gke-gcsfuse/ephemeral-storage-limit: "0"}'
  else
    echo '{}'
  fi
}

# Nothing is cached, so that each host sees at once what another wrote. Folders can be renamed, which
# completes a checkpoint.
shared_volume() {
  if [ -n "${option[bucket]}" ]; then
    cat <<YAML
            - name: shared
              csi:
                driver: gcsfuse.csi.storage.gke.io
                volumeAttributes:
                  bucketName: $(yaml "${option[bucket]}")
                  mountOptions: "implicit-dirs,metadata-cache:ttl-secs:0,\
metadata-cache:negative-ttl-secs:0,file-system:rename-dir-limit:200000"
YAML
  else
    echo "            - {name: shared, persistentVolumeClaim: {claimName: $(yaml "${option[claim]}")}}"
  fi
}

(($#)) || set -- --help
parse_options "$@"
require_name
require image topology
require_number chips-per-host max-restarts
set_slice
set_training
require_shared_workdir
[[ -n ${option[bucket]} || -n ${option[claim]} ]] ||
  fail "--bucket=NAME or --claim=NAME is missing: what is to be mounted at $shared"
[[ -z ${option[bucket]} || -z ${option[claim]} ]] || fail "give --bucket or --claim, not both"
[[ ${option[bucket]} != *[:/]* ]] ||
  fail "--bucket=${option[bucket]}; it is a name, without gs:// and folders"
((hosts == 1)) || training+=(--distributed)
training+=("${changes[@]}")
require_tool kubectl "kubernetes.io/docs/tasks/tools says how"
[[ "${option[*]} ${changes[*]}" != *$'\n'* ]] || fail "there is a line break in an option"
rendered=$(manifest)
if is_dry_run; then
  printf '%s\n' "$rendered"
else
  kubectl apply -f - <<<"$rendered"
  of="--namespace=${option[namespace]}"
  echo "state:  $(quoted kubectl get jobset "${option[name]}" "$of")"
  echo "log:    $(quoted kubectl logs "$of" -f -c train -l \
    "jobset.sigs.k8s.io/jobset-name=${option[name]},batch.kubernetes.io/job-completion-index=0")"
  echo "end it: $(quoted kubectl delete jobset "${option[name]}" "$of")"
fi
