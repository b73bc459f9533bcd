#!/usr/bin/env bash
# Formatter, linter, and the whole test suite, or the tests that the arguments name.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# The TPU compiler, 650 MB, once. It stays out of .venv, where jax would look for a TPU with it. Where
# it cannot be had, the test that needs it is skipped.
install_tpu_compiler() {
  local folder=.cache/tpu_compiler wanted half="$PWD/.cache/tpu_compiler.$$"
  wanted=$(cat launch/requirements-tpu.txt - <<< "$(.venv/bin/python -V)" | cksum)
  if [ "$(uname -sm)" != "Linux x86_64" ] || [ "$(cat "$folder/installed" 2>/dev/null)" = "$wanted" ]
  then
    return
  fi
  echo "installing launch/requirements-tpu.txt for the tests (650 MB, once)" >&2
  if .venv/bin/python -m pip install --quiet --target="$half" --no-deps --only-binary=:all: \
    --retries=1 --timeout=15 --requirement=launch/requirements-tpu.txt
  then
    printf '%s\n' "$wanted" > "$half/installed"
    rm -rf "$folder"
    mv "$half" "$folder"
  else
    rm -rf "$half"
    echo "no TPU compiler: tests/forecast/test_tpu.py is skipped" >&2
  fi
}

install_tpu_compiler
.venv/bin/ruff format --check .
.venv/bin/ruff check .
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadgroup --basetemp=.cache/pytest "$@"
