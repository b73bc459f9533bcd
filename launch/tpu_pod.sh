#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice at once.
#
#   bash launch/tpu_pod.sh VERB --name=NAME --zone=ZONE [--OPTION=VALUE ...] [-- --config.KEY=VALUE ...]
#
# Verbs, in the order in which they are needed:
#   create   requests the slice (--accelerator; --spot) and waits for it
#   setup    copies a revision of this clone to all hosts and installs its requirements there
#   run      mounts the shared storage and starts training in the background, or continues it
#   watch    does whatever of these is missing and checks again every minute until the run has
#            ended. If the slice was preempted, requests it again and continues the run from its
#            latest checkpoint. Ends with status 0 when the run is complete. Keep it running in tmux.
#   status   shows the state of the slice, and of the run on each host
#   logs     follows the log of one host
#   stop     lets the run save and end
#   delete   deletes the slice and everything on its disks
#
# Options:
#   --name, --zone, --project   of the slice; the project is gcloud's by default
#   --accelerator=v5litepod-64  type of the slice: v4-N, v5litepod-N, v5p-N or v6e-N
#   --spot                      a cheaper slice, which may be preempted at any time
#   --runtime=VERSION           TPU software version; by default the accelerator's
#   --revision=HEAD             revision of this clone to run; uncommitted changes are not copied
#   --job=pretrain              or finetune, segment
#   --config=FILE               such as configs/imagenet_ddae_vit_b16.py
#   --workdir=/mnt/shared/...   the run's folder, which all hosts see
#   --bucket=NAME               Cloud Storage bucket to mount at /mnt/shared (gcsfuse)
#   --nfs=HOST:/SHARE           or an NFS share, such as Filestore's
#   --restarts=3                how often watch restarts a failed run
#   --every=60                  seconds between two checks of watch
#   --worker=0                  the host whose log is shown
#   --yes                       delete without asking
#   --dry-run                   print the commands instead of running them
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
source "$(dirname "${BASH_SOURCE[0]}")/tpu_generations.sh"

option=(
  [name]='' [zone]='' [project]='' [accelerator]='' [spot]=false [runtime]='' [revision]=HEAD
  [job]=pretrain [config]='' [workdir]='' [bucket]='' [nfs]='' [restarts]=3 [every]=60 [worker]=0
  [yes]=false [dry-run]=false
)
worker_script=ddae_jax/code/launch/tpu_worker.sh
messages=$(mktemp -d)
trap 'rm -rf "$messages"' EXIT

# Sets `gcloud_tpus` to a gcloud command about this slice.
set_gcloud_tpus() {
  local kind=$1 verb=$2
  shift 2
  gcloud_tpus=(gcloud compute tpus "$kind" "$verb" "${option[name]}" --quiet "--zone=${option[zone]}"
    ${option[project]:+"--project=${option[project]}"} "$@")
}

gcloud_tpus() {
  set_gcloud_tpus "$@"
  do_or_show "${gcloud_tpus[@]}"
}

# Runs a shell command on all hosts.
on_hosts() {
  gcloud_tpus tpu-vm ssh --worker=all "--command=$1"
}

# Prints the generation of --accelerator.
generation() {
  local known
  for known in "${!accelerator_prefix[@]}"; do
    if [[ ${option[accelerator]} =~ ^"${accelerator_prefix[$known]}"-[1-9][0-9]*$ ]]; then
      echo "$known"
      return
    fi
  done
  fail "--accelerator=${option[accelerator]}; it is one of" \
    "$(printf '%s-N ' "${accelerator_prefix[@]}"), such as v5litepod-64"
}

check_creation() {
  require accelerator
  local of
  of=$(generation)
  option[runtime]=${option[runtime]:-${runtime_version[$of]}}
}

check_run() {
  set_training
  training+=(--distributed "${changes[@]}")
  [[ -z ${option[bucket]} || -z ${option[nfs]} ]] || fail "give --bucket or --nfs, not both"
  [[ ${option[bucket]} != *[:/]* ]] ||
    fail "--bucket=${option[bucket]}; it is a name, without gs:// and folders"
  [[ -z ${option[nfs]} || ${option[nfs]} == ?*:/* ]] ||
    fail "--nfs=${option[nfs]}; it looks like 10.0.0.2:/share"
  [[ -z ${option[bucket]}${option[nfs]} ]] || require_shared_workdir
}

ask_for_slice() {
  local spot=()
  [ "${option[spot]}" = false ] || spot=(--spot)
  gcloud_tpus queued-resources create "--node-id=${option[name]}" \
    "--accelerator-type=${option[accelerator]}" "--runtime-version=${option[runtime]}" "${spot[@]}"
}

create() {
  ask_for_slice
  if is_dry_run; then
    echo "# until it is ACTIVE:"
    gcloud_tpus queued-resources describe "--format=value(state.state)"
    return
  fi
  local state
  until state=$(slice_state) && [ "$state" = READY ]; do
    case $state in FAILED | SUSPENDED) slice_failed ;; esac
    echo "${option[name]}: $state"
    sleep "${option[every]}"
  done
}

slice_failed() {
  set_gcloud_tpus queued-resources describe
  echo "error: the request for ${option[name]} failed; why: $(quoted "${gcloud_tpus[@]}")" >&2
  exit 1
}

# Commands are joined by &&, because `set -e` has no effect where watch tries this function.
setup() {
  local archive=$messages/ddae_jax.tar.gz
  ! is_dry_run || archive=/tmp/ddae_jax.tar.gz
  [ -z "$(git -C "$root" status --porcelain)" ] ||
    echo "warning: what is not committed is not copied; revision: ${option[revision]}" >&2
  do_or_show git -C "$root" archive --format=tar.gz --prefix=code/ "--output=$archive" \
    "${option[revision]}" &&
    copy_to_hosts "$archive" &&
    on_hosts "mkdir -p ddae_jax && rm -rf ddae_jax/code && tar -xzf ddae_jax.tar.gz -C ddae_jax && \
bash $worker_script install"
}

copy_to_hosts() {
  do_or_show gcloud compute tpus tpu-vm scp "$1" "${option[name]}:" --quiet \
    "--zone=${option[zone]}" ${option[project]:+"--project=${option[project]}"} --worker=all
}

run() {
  mount_shared && on_hosts "$(quoted bash "$worker_script" start "${training[@]}")"
}

mount_shared() {
  if [ -n "${option[bucket]}" ]; then
    on_hosts "$(quoted bash "$worker_script" mount-bucket "${option[bucket]}")"
  elif [ -n "${option[nfs]}" ]; then
    on_hosts "$(quoted bash "$worker_script" mount-nfs "${option[nfs]}")"
  fi
}

# Prints the state that gcloud reports for the slice: READY, WAITING_FOR_RESOURCES, PREEMPTED, ...;
# NONE if it was never requested, UNKNOWN if gcloud failed.
slice_state() {
  local state
  set_gcloud_tpus queued-resources describe "--format=value(state.state)"
  state=$(asked NONE) || { echo "$state" && return; }
  if [ "$state" = ACTIVE ]; then
    set_gcloud_tpus tpu-vm describe "--format=value(state)"
    state=$(asked TERMINATED) || true
  fi
  echo "$state"
}

# Runs the command in `gcloud_tpus`. If nothing of that name exists, prints the argument and fails.
asked() {
  "${gcloud_tpus[@]}" 2>"$messages/errors" && return
  if grep -q NOT_FOUND "$messages/errors"; then
    echo "$1"
  else
    cat "$messages/errors" >&2
    echo UNKNOWN
  fi
  return 1
}

# Prints the state of the run on all hosts together: unknown, running, bare, idle, stopped, refused,
# recurring, failed or complete.
run_state() {
  if ! on_hosts "bash $worker_script state 2>/dev/null || echo ddae_jax: bare" \
    >"$messages/hosts" 2>"$messages/errors"; then
    cat "$messages/errors" >&2
    echo unknown
  elif ! on_some_host '.*'; then echo unknown
  elif on_some_host running; then echo running
  elif on_some_host bare; then echo bare
  elif on_some_host idle; then echo idle
  elif on_some_host "ended $stopped_status"; then echo stopped
  elif on_some_host 'ended 2'; then echo refused
  elif on_some_host "ended $recurring_status"; then echo recurring
  elif on_some_host 'ended [1-9].*'; then echo failed
  else echo complete
  fi
}

on_some_host() {
  grep -q "ddae_jax: $1\$" "$messages/hosts"
}

watch() {
  if is_dry_run; then
    echo "# where there is no slice, or it was taken away (first: delete):"
    create
    echo "# where the code is not there:"
    setup
    echo "# where no run is going on:"
    run
    return
  fi
  local state failures=0 last=''
  while true; do
    state=$(slice_state)
    [ "$state" != READY ] || state="READY, run: $(run_state)"
    [ "$state" = "$last" ] || echo "$(date '+%F %T') ${option[name]}: $state"
    last=$state
    case $state in
      NONE) try ask_for_slice ;;
      PREEMPTED | TERMINATED | STOPPED | SUSPENDED) try give_back ;;
      FAILED) slice_failed ;;
      *bare) try setup_and_run ;;
      *idle | *stopped) try run ;;
      *failed)
        failures=$((failures + 1))
        ((failures <= option[restarts])) || run_failed "it failed $failures times"
        try run
        ;;
      *refused) run_failed "its input is not right" ;;
      *recurring) run_failed "it went wrong as it did the time before, and would again" ;;
      *complete)
        echo "the run is complete; bash launch/tpu_pod.sh delete gives the slice back"
        return
        ;;
    esac
    sleep "${option[every]}"
  done
}

setup_and_run() {
  setup && run
}

# What fails now, for example because the slice is preempted, is tried again at the next check.
try() {
  "$@" || echo "warning: $1 did not succeed; trying again" >&2
}

run_failed() {
  echo "error: the run does not go on: $1; the last lines of its log:" >&2
  on_hosts "tail -n 20 ddae_jax/log" >&2 || true
  exit 1
}

give_back() {
  gcloud_tpus queued-resources delete --force
}

delete() {
  local answer
  if ! is_dry_run && [ "${option[yes]}" = false ]; then
    read -r -p "delete ${option[name]} in ${option[zone]}, and all on its disks? [y/N] " answer ||
      answer=
    [[ $answer == [yY]* ]] || fail "nothing was deleted; --yes does it without asking"
  fi
  give_back
}

status() {
  if is_dry_run; then
    gcloud_tpus queued-resources describe "--format=value(state.state)"
    gcloud_tpus tpu-vm describe "--format=value(state)"
  else
    echo "${option[name]}: $(slice_state)"
  fi
  on_hosts "bash $worker_script state"
}

verb=${1:---help}
(($# == 0)) || shift
case $verb in
  create | setup | run | watch | status | logs | stop | delete) ;;
  --help | -h) parse_options --help ;;
  *) fail "'$verb' is no verb; it is create, setup, run, watch, status, logs, stop or delete" ;;
esac
parse_options "$@"
require_name
require zone
require_number every
[[ $verb == run || $verb == watch || ${#changes[@]} -eq 0 ]] ||
  fail "what comes after -- is for run and watch; given: ${changes[*]}"
case $verb in create | watch) check_creation ;; esac
case $verb in run | watch) check_run ;; esac
require_tool gcloud "cloud.google.com/sdk/docs/install says how"
case $verb in
  logs) gcloud_tpus tpu-vm ssh "--worker=${option[worker]}" "--command=tail -n 100 -F ddae_jax/log" ;;
  stop) on_hosts "bash $worker_script stop" ;;
  *) "$verb" ;;
esac
