#!/usr/bin/env bash
# Pretrains DDAE on scanned digits, a few minutes on two CPU cores, and says where the report is.
# Arguments are handed on, such as: --workdir=runs/longer --config.epochs=60
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec .venv/bin/python -m ddae_jax.pretrain --config=configs/digits.py --workdir=runs/digits "$@"
