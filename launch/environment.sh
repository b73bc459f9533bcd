# shellcheck shell=bash
# Sourced by the scripts beside it: changes to the repository's root and makes .venv there, once.
# Everything stays inside the clone, pip's cache and Python's byte code included.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export XDG_CACHE_HOME="$PWD/.cache" MPLCONFIGDIR="$PWD/.cache/matplotlib"
mkdir -p "$MPLCONFIGDIR"
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# Prints the path of a Python that the package supports; newer versions are not tested.
find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
    then
      command -v "$candidate"
      return
    fi
  done
  echo "error: Python 3.11, 3.12 or 3.13 is needed, and none was found; set PYTHON=/path/to/python" >&2
  return 1
}

# .venv/installed records what was installed. If the requirements changed, or an install was
# interrupted, the next start installs again.
requirements=(requirements.txt tests/requirements.txt)
wanted=$(cat "${requirements[@]}" | cksum)
if ! .venv/bin/python -c '' 2>/dev/null || [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]
then
  # An environment without pip was made only in part, as on Debian without python3-venv.
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "making .venv with $python (once, some minutes)" >&2
    "$python" -m venv --clear .venv ||
      { echo "error: no environment could be made; on Debian: apt-get install python3-venv" >&2; exit 1; }
  fi
  echo "installing ${requirements[*]}" >&2
  .venv/bin/python -m pip install --quiet "${requirements[@]/#/--requirement=}"
  printf '%s\n' "$wanted" > .venv/installed
fi
