#!/usr/bin/env bash
# Runs a train or study config on a TPU VM pod slice: request, wait, install, run on all hosts, delete.
set -u

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"

usage() {
  cat <<'TEXT'
usage: launch/tpu.sh --name NAME --type TYPE --zone ZONE --project PROJECT --runtime VERSION [options]
                     -- train CONFIG ... | study run CONFIG ...

Asks for a TPU slice as a queued resource, waits until it is there, copies this working tree (git's tracked files, with
your changes) to every host, installs it, and runs the command on all hosts. When the slice is taken away or a host
fails, deletes it, asks for another one and goes on from the last checkpoint. At the end, also at an error and at
Ctrl-C, the slice is deleted. A `kill -9` of this script, or a machine that dies under it, leaves a slice that costs
money: start it on a machine that stays up, inside tmux or the like.

The command needs --output with an absolute path of a file system that all hosts share and that outlives them: NFS, or
a bucket that --setup mounts. It is tested on the hosts before anything runs.

  --name NAME            name of the queued resource and of its node; must be free
  --type TYPE            accelerator type, such as v5litepod-16 or v5p-64
  --zone ZONE            zone, such as us-east5-a
  --project PROJECT      cloud project
  --runtime VERSION      TPU runtime (image) version, such as v2-alpha-tpuv5-lite
  --spot                 spot capacity: cheaper, may be taken away at any time
  --setup COMMAND        shell command for every host before the installation: mounts, Python
  --python PROGRAM       Python >= 3.11 of the hosts (default: python3.11)
  --keep                 do not delete the slice at the end; it costs money until you do
  --poll SECONDS         time between two looks at the queue (default: 30)
  --max-preemptions N    new slices after exit code 75 or a preemption, at most (default: 100)
  --max-failures N       new slices after a host failed, at most (default: 5)
  --dry-run              print the commands of a run without a preemption, send nothing

example:
  launch/tpu.sh --name first --type v5litepod-16 --zone us-west4-a --project my-project \
    --runtime v2-alpha-tpuv5-lite --spot --setup 'mkdir -p ~/bucket && gcsfuse my-bucket ~/bucket' \
    -- train configs/train_practice.py --output /home/me/bucket/results/train
TEXT
}

name='' type='' zone='' project='' runtime='' spot=() setup='' python=python3.11 keep='' poll=30 dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 && shift && continue ;;
    --keep) keep=1 && shift && continue ;;
    --spot) spot=(--spot) && shift && continue ;;
    --) shift && break ;;
    --name) given "$1" "${2-}" && name=$2 ;;
    --type) given "$1" "${2-}" && type=$2 ;;
    --zone) given "$1" "${2-}" && zone=$2 ;;
    --project) given "$1" "${2-}" && project=$2 ;;
    --runtime) given "$1" "${2-}" && runtime=$2 ;;
    --setup) given "$1" "${2-}" && setup=$2 ;;
    --python) given "$1" "${2-}" && python=$2 ;;
    --poll) whole "$1" "${2-}" 1 && poll=$2 ;;
    --max-preemptions) whole "$1" "${2-}" 0 && max_preemptions=$2 ;;
    --max-failures) whole "$1" "${2-}" 0 && max_failures=$2 ;;
    *) fail "there is no option '$1'; see launch/$program --help (the command comes after --)" ;;
  esac
  shift 2
done
for option in name type zone project runtime; do
  [ -n "${!option}" ] || fail "--$option is missing; see launch/$program --help"
done

# The paths of the command are those of the hosts, where it runs in the copy of this folder.
cd "$root" || exit 1
check_command "$@"
config=$2
[ "$1" = train ] || config=$3
git rev-parse --verify --quiet HEAD >/dev/null || fail "$root is no git repository with a commit; the hosts get what git tracks"
git ls-files --error-unmatch -- "$config" >/dev/null 2>&1 ||
  fail "git does not track '$config', so that it would not be copied; 'git add' it, and give its path from $root"

output=''
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --output) i=$((i + 1)) && output=${!i-} ;;
    --output=*) output=${!i#*=} ;;
  esac
done
case $output in
  /*) ;;
  *) fail "--output is '$output'; give an absolute path that all hosts share (a mounted bucket or NFS), after train or study run" ;;
esac

where=(--project "$project" --zone "$zone" --quiet)
archive=${XDG_CACHE_HOME:-$HOME/.cache}/dynamics/launch/$name.tar.gz

# send WORDS...: runs them, or prints them in a dry run.
send() {
  if [ -n "$dry_run" ]; then
    quoted "$@"
  else
    "$@"
  fi
}
resource() {
  local verb=$1
  shift
  send gcloud compute tpus queued-resources "$verb" "$@" "${where[@]}"
}
on_hosts() { # WORKERS COMMAND: one shell command on some or all hosts
  send gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"
}

create() {
  resource create "$name" --node-id "$name" --accelerator-type "$type" --runtime-version "$runtime" \
    ${spot[@]+"${spot[@]}"}
}
state() {
  resource describe "$name" --format='value(state.state)'
}
delete() {
  resource delete "$name" --force
}

# The tracked files as they lie here: HEAD, or with changes a commit of them that is on no branch.
pack() {
  local tree=HEAD left
  if ! git diff --quiet HEAD; then
    # shellcheck disable=SC2016 # a dry run makes no commit
    tree='$(git stash create)'
    # git wants an author, who is not needed for an archive
    [ -n "$dry_run" ] || tree=$(git -c user.name=launch -c user.email=launch@localhost stash create) || return
  fi
  if [ -n "$dry_run" ]; then
    echo "$(quoted git archive --format=tar.gz --output="$archive") $tree"
    return
  fi
  left=$(git ls-files --others --exclude-standard | wc -l)
  [ "$left" -eq 0 ] || echo "$program: $((left)) files that git does not track are not copied" >&2
  mkdir -p "$(dirname "$archive")" && git archive --format=tar.gz --output="$archive" "$tree"
}

install_hosts() {
  local steps="${setup:+{ $setup; \} && }rm -rf dynamics && mkdir dynamics && tar -xzf dynamics.tar.gz -C dynamics"
  # Versions come from constraints.txt, those of jax and of the TPU's library too.
  steps+=" && cd dynamics && $python -m venv .venv"
  steps+=" && .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable . 'jax[tpu]'"
  send gcloud compute tpus tpu-vm scp "$archive" "$name":dynamics.tar.gz "${where[@]}" --worker=all &&
    on_hosts all "$steps"
}

# Every host sees what one of them wrote, and not on the disk that is deleted with the host.
check_output() {
  local folder
  folder=$(quoted "$output")
  on_hosts 0 "mkdir -p $folder && echo $name >$folder/.launched" &&
    on_hosts all "grep -qx $name $folder/.launched && test \$(stat -c %d $folder) != \$(stat -c %d /)"
}

# The hosts share the cache too: the base model is in it, and the compiled programs outlive the slice.
run_hosts() {
  on_hosts all "cd dynamics && DYNAMICS_CACHE=$(quoted "$output/.cache") launch/job.sh $(quoted "$@")"
}

if [ -n "$dry_run" ]; then
  resource list --format='value(name.basename())'
  pack
  create
  state
  install_hosts
  check_output
  run_hosts "$@"
  [ -n "$keep" ] || delete
  exit 0
fi

ours='' child=''
# shellcheck disable=SC2317 # called by a trap
remind() {
  echo "$program: $1: gcloud compute tpus queued-resources delete $name --force --project $project --zone $zone" >&2
}
# shellcheck disable=SC2317
clean() {
  local code=$? attempt
  trap '' INT TERM HUP # an impatient second Ctrl-C must not leave the slice behind
  [ -z "$child" ] || kill -s TERM -- "-$child" 2>/dev/null
  rm -f "$archive" "${told:-}"
  [ -n "$ours" ] || exit "$code"
  if [ -n "$keep" ]; then
    remind "the slice is kept and costs money; delete it with"
    exit "$code"
  fi
  for attempt in 1 2 3; do
    if delete; then
      echo "$program: $name is deleted" >&2
      exit "$code"
    fi
    [ "$attempt" -eq 3 ] || sleep "$poll"
  done
  remind "COULD NOT DELETE THE SLICE, it costs money; delete it with"
  [ "$code" -ne 0 ] || code=1
  exit "$code"
}

# In a process group of its own, in the background: a signal reaches this script at once, and not gcloud, which would
# otherwise go on for as long as the job does. `code` is then its exit code.
set -m
attend() {
  "$@" </dev/null &
  child=$!
  # A signal ends this script while it waits; one that comes just before bash's wait is seen when that is over, so it
  # waits a little at a time.
  while kill -0 "$child" 2>/dev/null; do
    sleep 0.2 >/dev/null 2>&1 &
    wait "$!"
  done
  wait "$child"
  code=$?
  child=''
}

# Waits for the slice; code 75 when it is taken away before it is there.
wait_until_active() {
  local now last=''
  while :; do
    now=$(state) || now=unknown # a look that fails is no state: look again
    [ "$now" = "$last" ] || echo "$program: $name is $now" >&2
    last=$now
    case $now in
      ACTIVE) code=0 && return ;;
      SUSPENDING | SUSPENDED) code=75 && return ;;
      FAILED)
        resource describe "$name" >&2
        code=1 && return
        ;;
    esac
    attend sleep "$poll"
  done
}

# The command on all hosts; `code` is what decides between them.
# shellcheck disable=SC2317 # called by `attend`
run() {
  run_hosts "$@" 2>&1 | keep_codes "$told"
  return "${PIPESTATUS[0]}"
}

# One slice from request to the end of the command, its exit code in `code`.
attempt() {
  ours=1
  attend create
  [ "$code" -eq 0 ] || { echo "$program: the slice could not be requested; see above" >&2 && code=1 && return; }
  wait_until_active
  [ "$code" -eq 0 ] || return
  attend install_hosts
  if [ "$code" -eq 0 ]; then
    attend check_output
    if [ "$code" -ne 0 ] && [ "$(state)" = ACTIVE ]; then
      echo "$program: --output $output is not shared by all hosts, or lies on a disk that is deleted with them; mount it with --setup" >&2
      code=78 && return
    fi
  fi
  if [ "$code" -eq 0 ]; then
    attend run "$@"
    # shellcheck disable=SC2046 # one word a code
    code=$(decide "$code" $(cat "$told"))
  else
    code=143 # no fault of the command: a new slice may do
  fi
  # ssh ends with 255 when it loses a host; whether that was a preemption, the queue knows.
  [ "$code" -ne 255 ] || code=143
  if [ "$(meaning "$code")" = infrastructure ] && [ "$(state)" != ACTIVE ]; then
    code=75
  fi
}

command -v gcloud >/dev/null || fail "there is no gcloud here; install the Google Cloud CLI, or see the commands with --dry-run"
names=$(resource list --format='value(name.basename())') || fail "gcloud could not list the queued resources of $project in $zone; see above"
! grep -qx -- "$name" <<<"$names" ||
  fail "a queued resource '$name' exists in $zone; choose another --name, or delete it: it may be somebody's"
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
told=$(mktemp)
pack || fail "git could not pack the working tree; see above"
while :; do
  attempt "$@"
  echo "$program: exit $code" >&2
  again "$code" || break
  attend delete
  [ "$code" -eq 0 ] || { echo "$program: the lost slice could not be deleted" >&2 && code=1 && break; }
  ours=''
done
exit "$code"
