# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it that start runs elsewhere: parses options, reports errors, and
# runs commands, which --dry-run only prints. A script first sets the array `option` to its options
# and their defaults; an option whose default is false takes no value.
set -euo pipefail
if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "error: bash 4.4 or newer is needed; this is $BASH_VERSION" >&2
  exit 2
fi

declare -A option
declare -a changes training
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Where the scripts mount the storage that all hosts share.
shared=/mnt/shared
# Exit status of a run that a signal stopped before its end (docs/scaling.md).
stopped_status=75
# Exit status of a run that failed exactly as it did the time before, and would again if restarted.
recurring_status=70

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# Prints the comment at the head of the script.
show_help() {
  sed -n '1d; /^#/!q; s/^# \{0,1\}//p' "$0"
}

# Fills `option` from the arguments, and `changes` with those after `--`.
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

# Fails unless --name can be the name of a machine.
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

# Prints the arguments as one line that a shell reads as exactly these arguments.
quoted() {
  local words
  printf -v words '%q ' "$@"
  printf '%s\n' "${words% }"
}

do_or_show() {
  if is_dry_run; then quoted "$@"; else "$@"; fi
}

# Sets `training` to the arguments of Python: the job's module and its flags.
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

# Fails unless the workdir lies in the storage that all hosts share.
require_shared_workdir() {
  [[ ${option[workdir]} == "$shared"/* ]] ||
    fail "--workdir=${option[workdir]} is not what all hosts see, which is mounted at $shared;" \
      "give a folder in it, such as $shared/runs/mine"
}
