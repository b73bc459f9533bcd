#!/usr/bin/env bash
# Formatter, linter, and the whole test suite, or the tests that the arguments name.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# The TPU compiler stays out of .venv, where jax would look for a TPU with it. Without a network, or
# where there is none for this machine, the tests that need it are skipped.
compiler=.cache/tpu_compiler
wanted=$(cat launch/requirements-tpu.txt | cksum)
if [ "$(cat "$compiler/installed" 2>/dev/null)" != "$wanted" ]; then
  echo "installing launch/requirements-tpu.txt for the tests" >&2
  rm -rf "$compiler"
  if .venv/bin/python -m pip install --quiet --target="$compiler" --no-deps \
    --requirement=launch/requirements-tpu.txt
  then
    printf '%s\n' "$wanted" > "$compiler/installed"
  fi
fi
.venv/bin/ruff format --check .
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadgroup --basetemp=.cache/pytest "$@"
