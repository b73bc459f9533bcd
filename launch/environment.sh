# Sourced by the scripts beside it: goes to the repository's root and makes .venv there, once.
# Everything, pip's cache and Python's byte code included, stays inside the clone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export XDG_CACHE_HOME="$PWD/.cache" MPLCONFIGDIR="$PWD/.cache/matplotlib"
mkdir -p "$MPLCONFIGDIR"
export PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
      "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: Python 3.11 or newer is needed, and none was found; set PYTHON=/path/to/python" >&2
  return 1
}

# The stamp holds what was installed: a changed requirements.txt, or an install that was cut off,
# is made good the next time.
wanted=$(cksum < requirements.txt)
if [ ! -f .venv/installed ] || [ "$(cat .venv/installed)" != "$wanted" ]; then
  python=$(find_python)
  echo "making .venv with $python (once, some minutes)" >&2
  [ -x .venv/bin/python ] || "$python" -m venv .venv ||
    { echo "error: no environment could be made; on Debian: apt-get install python3-venv" >&2; exit 1; }
  .venv/bin/python -m pip install --quiet -r requirements.txt
  printf '%s\n' "$wanted" > .venv/installed
fi
