# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it that start runs elsewhere: options, errors, and commands that
# --dry-run only prints. A script sets the array `option` to its options and their defaults first;
# one whose default is false takes no value.
set -euo pipefail
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash 4.4 or newer is needed; this is $BASH_VERSION" >&2
  exit 2
fi

declare -A option
declare -a changes training
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Where scripts mount what all hosts share.
shared=/mnt/shared
# What a run ends with when a signal stopped it before its end (docs/scaling.md).
stopped_status=75
# Of one that went wrong as it did the time before: started again, it would once more.
recurring_status=70

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# The comment at the head of the script.
show_help() {
  sed -n '1d; /^#/!q; s/^# \{0,1\}//p' "$0"
}

# Fills `option`, and `changes` with what comes after `--`.
parse_options() {
  local argument name
  changes=()
  while (($#)); do
    argument=$1
    shift
    name=${argument%%=*}
    name=${name#--}
    case $argument in
      --help | -h)
        show_help
        exit 0
        ;;
      --)
        changes=("$@")
        return
        ;;
      --config.* | --noconfig.*) fail "$argument: changes of the config come last, after --" ;;
      --?*)
        [ -n "${option[$name]+known}" ] ||
          fail "--$name is no option here; the options: $(known_options)"
        if [[ $argument == *=* ]]; then
          [ "${option[$name]}" != false ] || fail "--$name takes no value; given: $argument"
          option[$name]=${argument#*=}
        else
          [[ ${option[$name]} == true || ${option[$name]} == false ]] ||
            fail "--$name has no value; write --$name=VALUE"
          option[$name]=true
        fi
        ;;
      *) fail "'$argument' is no option; options look like --name=VALUE, see --help" ;;
    esac
  done
}

known_options() {
  printf '%s\n' "${!option[@]}" | sort | sed 's/^/--/' | paste -s -d ' '
}

is_dry_run() {
  [ "${option[dry-run]}" = true ]
}

# Fails unless each of the options has a value.
require() {
  local name
  for name in "$@"; do
    [ -n "${option[$name]}" ] || fail "--$name=VALUE is missing; see --help"
  done
}

# Fails unless each of the options is a whole number of at least 1.
require_number() {
  local name
  for name in "$@"; do
    [[ ${option[$name]} =~ ^[1-9][0-9]*$ ]] ||
      fail "--$name=${option[$name]}; it is a whole number of at least 1"
  done
}

# Names of jobs become names of machines.
require_name() {
  require name
  [[ ${option[name]} =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    fail "--name=${option[name]}; it has small letters, digits and dashes, at most 40, and begins" \
      "with a letter"
}

require_tool() {
  is_dry_run || command -v "$1" >/dev/null ||
    fail "$1 is not installed; $2. --dry-run shows what would be done without it"
}

# The arguments as one line that a shell reads as just these.
quoted() {
  local words
  printf -v words '%q ' "$@"
  printf '%s\n' "${words% }"
}

do_or_show() {
  if is_dry_run; then quoted "$@"; else "$@"; fi
}

# Sets `training` to what Python runs: the job and its flags.
set_training() {
  local file
  require config workdir
  case ${option[job]} in
    pretrain | finetune | segment) ;;
    *) fail "--job=${option[job]}; it is pretrain, finetune or segment" ;;
  esac
  file=${option[config]%%:*}
  (cd "$root" && [ -f "$file" ]) || fail "--config=$file: there is no such file in $root; see configs/"
  [[ ${option[workdir]} != *://* ]] ||
    fail "--workdir=${option[workdir]} is an address, not a folder: let the bucket be mounted" \
      "(--bucket=NAME, where there is that option), and give a folder in $shared"
  [[ ${option[workdir]} == /* ]] ||
    fail "--workdir=${option[workdir]}; give the whole path, which all hosts see, from / on"
  training=(-m "ddae_jax.${option[job]}" "--config=${option[config]}"
    "--workdir=${option[workdir]}")
}

# Fails if the workdir lies outside of what a script mounts.
require_shared_workdir() {
  [[ ${option[workdir]} == "$shared"/* ]] ||
    fail "--workdir=${option[workdir]} is not what all hosts see, which is mounted at $shared;" \
      "give a folder in it, such as $shared/runs/mine"
}
