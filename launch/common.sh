# What the launch scripts share; sourced by them. `--dry_run` first on the line prints instead of doing.
# shellcheck shell=bash
set -euo pipefail
SCRIPT=$(realpath "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

DRY_RUN=
if [[ ${1:-} == --dry_run ]]; then
  DRY_RUN=1
  shift
fi

# Prints the comment at the head of the script and leaves.
usage() {
  sed -n '2,${/^#SBATCH/q;/^[^#]/q;s/^# \{0,1\}//p}' "$SCRIPT" >&2
  exit 2
}

# Runs a command, or prints it so that it could be pasted.
run() {
  if [[ $DRY_RUN ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Fails unless variables are set: require NAME "what it is" ...
require() {
  while (($#)); do
    if [[ -z ${!1:-} ]]; then
      echo "$0: $1 is not set: $2" >&2
      exit 2
    fi
    shift 2
  done
}
