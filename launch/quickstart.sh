#!/usr/bin/env bash
# Pretrains DDAE on scanned handwritten digits, in a few minutes on two CPU cores. Then shows what
# pretraining is worth where labels are rare: fine-tunes on 5 labels a class, and trains the same
# network on them from scratch.
# Arguments go to the pretraining, for example: --workdir=runs/longer --config.epochs=60
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

workdir=runs/digits
previous=
for argument in "$@"; do
  case $previous:$argument in
    *:--workdir=* | *:-workdir=*) workdir=${argument#*=} ;;
    --workdir:* | -workdir:*) workdir=$argument ;;
    *:--help | *:-help | *:-h) exec .venv/bin/python -m ddae_jax.pretrain --help ;;
  esac
  previous=$argument
done

stopped=75 # exit status of a run that a signal stopped before its end
status=0
DDAE_JAX_STOPPED_STATUS=$stopped .venv/bin/python -m ddae_jax.pretrain \
  --config=configs/digits.py --workdir=runs/digits "$@" || status=$?
if [ "$status" = "$stopped" ]; then exit 0; fi # the same command continues it
if [ "$status" != 0 ]; then exit "$status"; fi

# finetune NAME OPTION...: fine-tunes on 5 labels a class, in the workdir WORKDIR_NAME.
finetune() {
  local name=$1 status=0
  shift
  DDAE_JAX_STOPPED_STATUS=$stopped .venv/bin/python -m ddae_jax.finetune \
    --config=configs/digits_finetune.py --config.init_from="$workdir" \
    --workdir="${workdir}_$name" "$@" || status=$?
  if [ "$status" = "$stopped" ]; then exit 0; fi
  if [ "$status" != 0 ]; then exit "$status"; fi
}
echo "fine-tuning on 5 labels a class, from what was pretrained and from scratch" >&2
finetune finetuned
finetune from_scratch --config.from_scratch --config.optimizer.layer_decay=1

.venv/bin/python - "$workdir" <<'EOF'
import json, sys
top1 = {
    name: json.load(open(f"{sys.argv[1]}_{name}/scores.json"))["top1"]
    for name in ("finetuned", "from_scratch")
}
print(
    f"5 labels a class: {top1['finetuned']:.1%} of test images right after pretraining, "
    f"{top1['from_scratch']:.1%} from scratch; report: {sys.argv[1]}/report.html"
)
EOF
