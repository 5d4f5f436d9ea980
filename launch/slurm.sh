#!/usr/bin/env bash
# Submits a train or study config to SLURM as one job of one process on each node, which requeues itself.
set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/slurm.sh [options] -- train CONFIG ... | study run CONFIG ...

One process on each node, with all GPUs that the job has there. The job requeues itself when it was preempted, came
near its time limit, or lost a node; it stops at a bad config or a bug. This folder and the output must be on a file
system that all nodes share, and the environment (.venv) must be made beforehand.

  --nodes N              nodes (default: 1)
  --gpus-per-node N      GPUs of each node (default: none are asked for)
  --cpus-per-node N      CPU cores of each node (default: what SLURM gives one task, which may be a single core)
  --time LIMIT           SLURM's time limit, such as 12:00:00; the job saves and requeues before it
  --grace SECONDS        SIGTERM this long before the time limit (default: 180)
  --partition NAME       partition
  --account NAME         account
  --sbatch OPTION        one more line for sbatch, such as --sbatch --exclusive or --sbatch --mem=0; repeatable
  --name NAME            name of the job and of its log, NAME-<job id>.log (default: dynamics)
  --max-preemptions N    requeues after exit code 75, at most (default: 100)
  --max-failures N       requeues after a process was killed or aborted, at most (default: 5)
  --dry-run              print the batch script, submit nothing

example:
  launch/slurm.sh --nodes 4 --gpus-per-node 8 --cpus-per-node 64 --time 12:00:00 --partition gpu \
    -- train configs/train_practice.py --output /shared/results/train
TEXT
}

name=dynamics nodes=1 gpus='' cpus='' limit='' grace=180 partition='' account='' extra=()
dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 && shift && continue ;;
    --) shift && break ;;
    --nodes) whole "$1" "${2-}" 1 && nodes=$2 ;;
    --gpus-per-node) whole "$1" "${2-}" 1 && gpus=$2 ;;
    --cpus-per-node) whole "$1" "${2-}" 1 && cpus=$2 ;;
    --time) given "$1" "${2-}" && limit=$2 ;;
    --grace) whole "$1" "${2-}" 1 && grace=$2 ;;
    --partition) given "$1" "${2-}" && partition=$2 ;;
    --account) given "$1" "${2-}" && account=$2 ;;
    --sbatch)
      [ -n "${2-}" ] || fail "--sbatch needs a value; see launch/$program --help"
      extra+=("$2")
      ;;
    --name) given "$1" "${2-}" && name=$2 ;;
    --max-preemptions) whole "$1" "${2-}" 0 && max_preemptions=$2 ;;
    --max-failures) whole "$1" "${2-}" 0 && max_failures=$2 ;;
    *) fail "there is no option '$1'; see launch/$program --help (the command comes after --)" ;;
  esac
  shift 2
done
check_command "$@"
case $name in
  *[!A-Za-z0-9._-]*) fail "--name is '$name'; use letters, digits, dots, dashes and underscores" ;;
esac

header() {
  echo "#SBATCH --job-name=$name"
  echo "#SBATCH --nodes=$nodes"
  echo "#SBATCH --ntasks-per-node=1"
  [ -z "$gpus" ] || echo "#SBATCH --gpus-per-node=$gpus"
  [ -z "$cpus" ] || echo "#SBATCH --cpus-per-task=$cpus"
  [ -z "$limit" ] || echo "#SBATCH --time=$limit"
  [ -z "$partition" ] || echo "#SBATCH --partition=$partition"
  [ -z "$account" ] || echo "#SBATCH --account=$account"
  echo "#SBATCH --signal=TERM@$grace"
  echo "#SBATCH --requeue"
  echo "#SBATCH --open-mode=append"
  echo "#SBATCH --output=$name-%j.log"
  [ ${#extra[@]} -eq 0 ] || printf '#SBATCH %s\n' "${extra[@]}"
}

batch() {
  echo '#!/usr/bin/env bash'
  header
  cat <<SCRIPT
set -u
. $(quoted "$root/launch/common.sh")
program=slurm.sh name=$name max_preemptions=$max_preemptions max_failures=$max_failures
job=($(quoted "$root/launch/job.sh" "$@"))
SCRIPT
  [ -z "$cpus" ] || echo "export SRUN_CPUS_PER_TASK=$cpus # srun does not take it from the batch job"
  cat <<'SCRIPT'

# What happened before, one exit code a line: a restart knows only how many there were.
history=$name-$SLURM_JOB_ID.restarts
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] && [ -f "$history" ]; then
  num_preemptions=$(grep -c '^75$' "$history")
  num_failures=$(grep -vc '^75$' "$history")
fi

# The first node in the words of SLURM, which need no name service; below the ports that the system hands out;
# another one at each restart, because the old one may be in use for a while.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol --oneliner show node "$first" | sed 's/.*NodeAddr=\([^ ]*\).*/\1/')
port=$((20000 + SLURM_JOB_ID % 100 * 120 + ${SLURM_RESTART_COUNT:-0} % 120))
echo "slurm.sh: job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), $SLURM_JOB_NODELIST, meeting at $address:$port" >&2

# One that ends first must not end the others: they may be saving.
told=$(mktemp)
# shellcheck disable=SC2016 # the process id is known in the task, not here
srun --label --kill-on-bad-exit=0 --mpi=none --cpu-bind=none \
  bash -c 'exec "$@" --process-id "$SLURM_PROCID"' task \
  "${job[@]}" --coordinator "$address:$port" --num-processes "$SLURM_NTASKS" 2>&1 | keep_codes "$told"
code=${PIPESTATUS[0]}
# shellcheck disable=SC2046 # one word a code
code=$(decide "$code" $(cat "$told"))
rm -f "$told"

echo "slurm.sh: exit $code: $(meaning "$code")" >&2
if again "$code"; then
  echo "$code" >>"$history"
  # Not when it was cancelled: a requeue would bring it back.
  if [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
    echo "slurm.sh: requeued (preemptions: $num_preemptions, failures: $num_failures)" >&2
    scontrol requeue "$SLURM_JOB_ID" || echo "slurm.sh: SLURM did not requeue the job; submit it again to go on" >&2
  fi
fi
exit "$code"
SCRIPT
}

if [ -n "$dry_run" ]; then
  batch "$@"
  exit 0
fi
command -v sbatch >/dev/null || fail "there is no sbatch here; run this where SLURM is, or see the script with --dry-run"
batch "$@" | sbatch
