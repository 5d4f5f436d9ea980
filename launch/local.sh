#!/usr/bin/env bash
# Runs a train or study config on this machine, and starts it again when it was preempted or a process failed.
set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/local.sh [options] -- train CONFIG ... | study run CONFIG ...

One process on all devices of this machine; or, with --processes, a rehearsal of several hosts: N processes of M
virtual CPU devices each, over loopback.

  --processes N          processes, each with virtual CPU devices (default: one, on the devices there are)
  --devices M            virtual CPU devices of each process (default: 1; only with --processes)
  --port PORT            where the processes meet, one higher at each restart (default: 20100)
  --max-preemptions N    starts after exit code 75, at most (default: 100)
  --max-failures N       starts after a process was killed or aborted, at most (default: 5)
  --dry-run              print the commands, run nothing

example:
  launch/local.sh --processes 2 --devices 4 -- train configs/train_practice.py --output results/train
TEXT
}

count='' devices='' port=20100 dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 && shift && continue ;;
    --) shift && break ;;
    --processes) whole "$1" "${2-}" 1 && count=$2 ;;
    --devices) whole "$1" "${2-}" 1 && devices=$2 ;;
    --port) whole "$1" "${2-}" 1024 && port=$2 ;;
    --max-preemptions) whole "$1" "${2-}" 0 && max_preemptions=$2 ;;
    --max-failures) whole "$1" "${2-}" 0 && max_failures=$2 ;;
    *) fail "there is no option '$1'; see launch/$program --help (the command comes after --)" ;;
  esac
  shift 2
done
check_command "$@"
[ -n "$count" ] || [ -z "$devices" ] || fail "--devices is the number of each of several processes; give --processes too"

# command_of PROCESS: the words that start it, in the array `words`.
command_of() {
  local meet=127.0.0.1:$((port + num_restarts))
  words=("$root/launch/job.sh" "${job[@]}")
  if [ -n "$count" ]; then
    words=(env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="${devices:-1}" "${words[@]}"
      --coordinator "$meet" --num-processes "$count" --process-id "$1")
  fi
}

job=("$@") num_restarts=0
if [ -n "$dry_run" ]; then
  for ((process = 0; process < ${count:-1}; process++)); do
    command_of "$process"
    quoted "${words[@]}"
  done
  exit 0
fi

while :; do
  run_here "${count:-1}"
  code=$(decide 0 "${codes[@]}")
  [ -z "$stopped" ] || break
  again "$code" || break
  num_restarts=$((num_restarts + 1))
  echo "local.sh: exit $code: starting again (preemptions: $num_preemptions, failures: $num_failures)" >&2
done
exit "$code"
