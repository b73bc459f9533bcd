#!/usr/bin/env bash
# Trains on GPUs of a SLURM cluster: NODES x GPUS processes, one per GPU.
#
#   bash launch/slurm.sh --nodes=2 --gpus=8 --time=24:00:00 --config=FILE --workdir=/FOLDER/OF/THE/RUN \
#       [--OPTION=VALUE ...] [-- --config.KEY=VALUE ...]
#
# Before the time limit, the run saves, returns to the queue and continues when its turn comes. So
# does a run that was preempted or whose node failed. A cancelled run does not.
#
# Options:
#   --nodes=1, --gpus=1         number of nodes, and of GPUs on each
#   --cpus=8                    CPUs per process, for reading images
#   --time=LIMIT                such as 24:00:00
#   --partition, --account      for sbatch; its environment sets other options, such as SBATCH_QOS=high
#   --name=ddae_jax             name of the job; its log is NAME-JOB.log in this folder
#   --python=.venv/bin/python   Python with jax[cuda13] or jax[cuda12]; relative to this clone, or absolute
#   --save-time=300             how many seconds before the limit the run saves
#   --job=pretrain              or finetune, segment
#   --config=FILE, --workdir=FOLDER    a config, and the run's folder, which all nodes see
#   --dry-run                   print the batch script instead of submitting it
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"

option=(
  [nodes]=1 [gpus]=1 [cpus]=8 [time]='' [partition]='' [account]='' [name]=ddae_jax
  [python]=.venv/bin/python [save-time]=300 [job]=pretrain [config]='' [workdir]='' [dry-run]=false
)

# JAX selects for each process the GPU with its number on the node, so all GPUs must be visible.
# SIGTERM goes to the processes and not to the batch script, so that the script learns how they
# ended. A process that ends early must not end the others, which may be saving.
batch_script() {
  cat <<SCRIPT
#!/usr/bin/env bash
#SBATCH --job-name=${option[name]}
#SBATCH --nodes=${option[nodes]}
#SBATCH --ntasks-per-node=${option[gpus]}
#SBATCH --gpus-per-node=${option[gpus]}
#SBATCH --cpus-per-task=${option[cpus]}
#SBATCH --time=${option[time]}
${option[partition]:+#SBATCH --partition=${option[partition]}
}${option[account]:+#SBATCH --account=${option[account]}
}#SBATCH --signal=TERM@${option[save-time]}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

cd $(quoted "$root") || exit
export DDAE_JAX_STOPPED_STATUS=$stopped_status
$(quoted srun --gpu-bind=none "--cpus-per-task=${option[cpus]}" --kill-on-bad-exit=0 \
    "${option[python]}" "${training[@]}")
status=\$?
state=\$(squeue --noheader --format=%T --jobs="\$SLURM_JOB_ID")
if [ "\$status" = $stopped_status ] && [ "\$state" = RUNNING ]; then
  echo "stopped before its end; back into the queue"
  exec scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$status"
SCRIPT
}

(($#)) || set -- --help
parse_options "$@"
require time
require_number nodes gpus cpus save-time
for key in name time partition account; do
  [[ ${option[$key]} =~ ^[A-Za-z0-9_.:,-]*$ ]] ||
    fail "--$key='${option[$key]}'; it has letters, digits and . _ : , - only"
done
set_training
((option[nodes] * option[gpus] == 1)) || training+=(--distributed)
training+=("${changes[@]}")
require_tool sbatch "run this on a login node of the cluster"
if is_dry_run; then
  batch_script
else
  [ -x "$(cd "$root" && command -v "${option[python]}")" ] ||
    fail "--python=${option[python]}: there is no such program in $root"
  batch_script | sbatch
fi
