#!/usr/bin/env bash
# Trains on GPUs of a SLURM cluster: NODES x GPUS processes, one a GPU.
#
#   bash launch/slurm.sh --nodes=2 --gpus=8 --time=24:00:00 --config=FILE --workdir=/FOLDER/OF/THE/RUN \
#       [--OPTION=VALUE ...] [-- --config.KEY=VALUE ...]
#
# Before the time limit the run saves and goes back into the queue, and continues when its turn comes;
# so does one that was preempted, or whose node failed. A cancelled one does not.
#
# Options:
#   --nodes=1, --gpus=1         nodes, and GPUs of each
#   --cpus=8                    of each process, for reading images
#   --time=LIMIT                as in 24:00:00
#   --partition, --account      and other options of sbatch by its environment, as in SBATCH_QOS=high
#   --name=ddae_jax             of the job; its log is NAME-JOB.log in this folder
#   --python=.venv/bin/python   with jax[cuda13] or jax[cuda12]; from this clone, or a whole path
#   --save-time=300             seconds before the limit at which the run saves
#   --job=pretrain              or finetune, segment
#   --config=FILE, --workdir=FOLDER    the folder is one that all nodes see
#   --dry-run                   prints the batch script instead of submitting it
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"

option=(
  [nodes]=1 [gpus]=1 [cpus]=8 [time]='' [partition]='' [account]='' [name]=ddae_jax
  [python]=.venv/bin/python [save-time]=300 [job]=pretrain [config]='' [workdir]='' [dry-run]=false
)

# JAX gives each process the GPU of its own number among those of the node: all must be visible.
# SIGTERM goes to the processes, not to this script, so that it learns how they ended. One that ends
# early must not take the others along: they are saving.
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
