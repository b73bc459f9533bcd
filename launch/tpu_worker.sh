#!/usr/bin/env bash
# Runs on each host of a slice for tpu_pod.sh; see there. Everything lies in ~/ddae_jax: code/, venv/
# and log, and for the run lock, pid and status.
#
#   bash tpu_worker.sh install | mount-bucket NAME | mount-nfs HOST:/SHARE | start ARGUMENT... | state | stop
#
# `start` passes its arguments to Python. `state` prints one line: bare, idle, running, or ended and
# the exit status.
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"

home=$HOME/ddae_jax
gcsfuse_version=2.8.0

# The Python of the hosts is older than the package supports.
install() {
  rm -f "$home/installed"
  python3 -m pip install --quiet --user uv
  if ! [ -x "$home/venv/bin/python" ]; then
    rm -rf "$home/venv"
    python3 -m uv venv --quiet --python=3.12 "$home/venv"
  fi
  # Both files are given so that jax and libtpu have versions that were tested together.
  python3 -m uv pip install --quiet "--python=$home/venv/bin/python" "jax[tpu]" \
    "--requirement=$root/requirements.txt" "--requirement=$root/launch/requirements-tpu.txt"
  touch "$home/installed"
}

apt_install() {
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 update
  sudo apt-get -qq -o DPkg::Lock::Timeout=600 install --yes "$@"
}

make_mount_point() {
  sudo mkdir -p "$shared"
  sudo chown "$(id -u):$(id -g)" "$shared"
}

mount_bucket() {
  ! mountpoint -q "$shared" || return 0
  if ! command -v gcsfuse >/dev/null; then
    local package=/tmp/gcsfuse.deb
    curl -fsSL -o "$package" "https://github.com/GoogleCloudPlatform/gcsfuse/releases/download/\
v$gcsfuse_version/gcsfuse_${gcsfuse_version}_amd64.deb"
    apt_install "$package"
  fi
  make_mount_point
  # Nothing is cached, so that each host sees at once what another wrote. Folders can be renamed,
  # which completes a checkpoint.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --rename-dir-limit=200000 "$1" "$shared"
}

mount_nfs() {
  ! mountpoint -q "$shared" || return 0
  command -v mount.nfs >/dev/null || apt_install nfs-common
  sudo mkdir -p "$shared"
  sudo mount -t nfs "$1" "$shared"
}

# The kernel releases the lock when its holder ends, however it ends, even by a reboot.
is_running() {
  [ -e "$home/lock" ] && ! flock --nonblock "$home/lock" true
}

start() {
  ! is_running || fail "a run is going on on this host; stop it first"
  rm -f "$home/status" "$home/pid"
  setsid nohup flock --nonblock --close "$home/lock" bash "${BASH_SOURCE[0]}" supervise "$@" \
    >>"$home/log" 2>&1 </dev/null &
}

# Runs training and records its exit status.
supervise() {
  local status=0
  cd "$root"
  DDAE_JAX_STOPPED_STATUS=$stopped_status "$home/venv/bin/python" "$@" &
  echo $! >"$home/pid"
  wait $! || status=$?
  echo "$status" >"$home/status"
}

state() {
  if is_running; then
    echo "ddae_jax: running"
  elif [ -e "$home/status" ]; then
    echo "ddae_jax: ended $(<"$home/status")"
  elif [ -e "$home/installed" ]; then
    echo "ddae_jax: idle"
  else
    echo "ddae_jax: bare"
  fi
}

stop() {
  if is_running; then
    kill -TERM "$(<"$home/pid")"
  else
    echo "no run is going on on this host"
  fi
}

verb=${1:---help}
(($# == 0)) || shift
case $verb in
  install | start | supervise | state | stop) "$verb" "$@" ;;
  mount-bucket) mount_bucket "$@" ;;
  mount-nfs) mount_nfs "$@" ;;
  --help | -h) show_help ;;
  *) fail "'$verb' is no verb; see --help" ;;
esac
