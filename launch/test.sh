#!/usr/bin/env bash
# Formatter, linter, contracts of imports, and the tests: bash launch/test.sh [--all] [PYTEST ARGUMENT...]
# Without --all, tests that are marked slow are left out: about five minutes on two idle cores, and no
# download beyond the requirements. With it, compilers of TPU and GPU programs are installed, once.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# install_compiler NAME SIZE REQUIREMENT...: into .cache/NAME_compiler, once. It stays out of .venv,
# where jax would look for a device with it. Where it cannot be had, the test that needs it is skipped.
install_compiler() {
  local name=$1 size=$2 folder=.cache/$1_compiler half="$PWD/.cache/$1_compiler.$$" wanted
  shift 2
  wanted=$(cksum <<< "$* $(.venv/bin/python -V)")
  if [ "$(uname -sm)" != "Linux x86_64" ] || [ "$(cat "$folder/installed" 2>/dev/null)" = "$wanted" ]
  then
    return
  fi
  rm -rf "$folder"  # another version's would fail
  echo "installing the compiler of $name programs for the tests ($size, once)" >&2
  if .venv/bin/python -m pip install --quiet --target="$half" --no-deps --only-binary=:all: \
    --retries=1 --timeout=15 "$@"
  then
    printf '%s\n' "$wanted" > "$half/installed"
    rm -rf "$folder"
    mv "$half" "$folder"
  else
    rm -rf "$half"
    echo "not installed: tests/aot/test_$name.py is skipped" >&2
  fi
}

tier=(-m "not slow")
if [ "${1:-}" = --all ]; then
  shift
  tier=()
  mapfile -t requirements < <(grep -v '^#' launch/requirements-tpu.txt)
  install_compiler tpu "650 MB" "${requirements[@]}"
  jax=$(.venv/bin/python -c 'import jax; print(jax.__version__)')
  install_compiler gpu "500 MB" "jax-cuda12-plugin==$jax" "jax-cuda12-pjrt==$jax"
fi
.venv/bin/ruff format --check .
.venv/bin/ruff check .
.venv/bin/lint-imports --no-logo --cache-dir=.cache/import_linter
exec .venv/bin/python -m pytest -n "${TEST_PROCESSES:-2}" --dist loadgroup --basetemp=.cache/pytest \
  "${tier[@]}" "$@"
