#!/usr/bin/env bash
# Runs one dynamics command on this host, passes signals on, and ends with an exit code of the contract.
set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"
error_code=78 # inside a job, starting again mends no mistake

usage() {
  cat <<'TEXT'
usage: launch/job.sh [--dry-run] train CONFIG ... | study run CONFIG ...

Runs `dynamics` with these words on this host; the other scripts of launch/ start it on each host of a job.
The program is $DYNAMICS, or .venv/bin/dynamics beside launch/, or the first on the PATH.
SIGTERM, SIGINT and SIGHUP reach it as one SIGTERM: it saves and ends with 75.

exit codes: 0 done; 75 preempted and saved; 78 bad config or command; another one below 127 a bug;
134, 137, 139 and 143 the host or a peer failed.

example:
  launch/job.sh train configs/train_practice.py --output results/train
TEXT
}

dry_run=
case ${1:-} in
  --help | -h) usage && exit 0 ;;
  --dry-run) dry_run=1 && shift ;;
esac
[ "${1:-}" != -- ] || shift
case "${1:-} ${2:-}" in
  train\ ?* | study\ run) ;;
  *) fail "the command is '$*'; give train CONFIG ... or study run CONFIG ..." ;;
esac

dynamics=${DYNAMICS:-$root/.venv/bin/dynamics}
[ -x "$dynamics" ] || dynamics=$(command -v "${DYNAMICS:-dynamics}") ||
  fail "no program '${DYNAMICS:-dynamics}' here; run 'make setup' in $root, or set DYNAMICS to its path"

if [ -n "$dry_run" ]; then
  quoted "$dynamics" "$@"
  exit 0
fi

command_of() { words=("${job[@]}"); }
job=("$dynamics" "$@")
run_here 1
code=${codes[0]}
case $code in
  2) code=78 ;; # a user's mistake, in the words of `dynamics`
esac
case $(meaning "$code") in
  done) what="done" ;;
  preempted) what="stopped with everything saved; the same command goes on from there" ;;
  config) what="the config or the command is wrong; mend what the message above says, starting again does not help" ;;
  infrastructure) what="this host or a peer failed; the same command goes on from the last checkpoint" ;;
  bug)
    what="a bug, or a mistake that dynamics did not foresee; read the error above"
    [ "$code" -le 128 ] || what="ended by signal $((code - 128)), which is neither a preemption nor a failure known here"
    ;;
esac
echo "job.sh: exit $code on $(uname -n): $what" >&2
exit "$code"
