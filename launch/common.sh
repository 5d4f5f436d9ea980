# shellcheck shell=bash
# What the launchers share: errors, what an exit code means, and whether to start again. Sourced, never run.

program=${0##*/}
error_code=2
max_preemptions=100 max_failures=5

# fail WORDS...: a mistake that the user can mend, told in one line.
fail() {
  echo "$program: $*" >&2
  exit "$error_code"
}

# given OPTION VALUE: the option has a value, and it is not the next option.
given() {
  case $2 in
    '' | --*) fail "$1 needs a value; see launch/$program --help" ;;
  esac
}

# whole OPTION VALUE LEAST: the value is a whole number, at least LEAST.
whole() {
  case $2 in
    '' | *[!0-9]*) fail "$1 is '$2'; give a whole number" ;;
  esac
  [ "$2" -ge "$3" ] || fail "$1 is $2; give at least $3"
}

# check_command WORDS...: the words are a dynamics command that can be started on many hosts.
check_command() {
  local config word
  case "${1:-} ${2:-}" in
    train\ *) config=${2:-} ;;
    study\ run) config=${3:-} ;;
    *) fail "the command is '$*'; give -- train CONFIG ... or -- study run CONFIG ..." ;;
  esac
  [ -f "$config" ] || fail "there is no config file '$config'; give one, such as configs/practice.py, after train or study run"
  for word in "$@"; do
    case ${word%%=*} in
      --coordinator | --num-processes | --process-id) fail "the command has ${word%%=*}; leave it out, the launcher gives it" ;;
    esac
  done
}

# run_here COUNT: runs the commands that `command_of 0`, `command_of 1`, ... put into the array `words`, all at once, to
# their end. SIGTERM, SIGINT and SIGHUP of this shell become one SIGTERM of each, and `stopped` is set. Their exit codes
# are then in the array `codes`.
#
# Each command is in the foreground of a shell that outlives signals and tells here through a pipe how it ended: bash's
# own `wait`, when a signal ends it early, may lose that (5.2 then says -1). The commands ignore SIGINT: a terminal's
# Ctrl-C, which goes to all, arrives once.
words=() processes=() codes=() stopped=''
stop() {
  local running=(${processes[@]+"${processes[@]}"})
  stopped=1 processes=() # each gets one signal: dynamics takes a second one as "at once, without saving"
  # SLURM signals every process of a step by itself.
  [ -n "${SLURM_STEP_ID:-}" ] || [ ${#running[@]} -eq 0 ] || kill -s TERM "${running[@]}" 2>/dev/null
}
run_here() {
  local word number ended
  [ "${BASH_VERSINFO[0]}" -ge 4 ] || fail "this bash is $BASH_VERSION; install version 4 or later"
  processes=() codes=()
  trap stop TERM INT HUP
  exec 4>&1
  exec 3< <(
    trap : TERM HUP
    trap '' INT
    for ((number = 0; number < $1; number++)); do
      command_of "$number"
      (
        trap : TERM HUP
        # shellcheck disable=SC2016 # of the inner shell
        sh -c 'echo "began $$"; exec "$@" >&4 4>&-' sh "${words[@]}" </dev/null
        echo "ended $?"
      ) &
    done
    until wait; do :; done # without it the commands would lose their parent, and SLURM its hold on them
  )
  while :; do
    # A signal that comes just before `read` begins is looked at after it: within a second, so.
    read -r -t 1 word number <&3
    ended=$?
    [ "$ended" -le 128 ] || continue
    [ "$ended" -eq 0 ] || break
    case $word in
      began)
        processes+=("$number")
        [ -z "$stopped" ] || stop # the signal was earlier
        ;;
      ended) codes+=("$number") ;;
    esac
  done
  exec 3<&- 4>&-
  [ ${#codes[@]} -eq "$1" ] || codes+=(137) # such a shell was killed
}

# quoted WORDS...: the words as one line that a shell reads back as the same words.
quoted() {
  local word line='' mark="'" escaped="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*) line+=" '${word//$mark/$escaped}'" ;;
      *) line+=" $word" ;;
    esac
  done
  echo "${line# }"
}

# meaning CODE: done, preempted, config, infrastructure or bug. The table is in docs/guide/launching.md.
meaning() {
  case $1 in
    0) echo "done" ;;
    75) echo preempted ;;
    78) echo config ;;
    134 | 137 | 139 | 143) echo infrastructure ;;
    *) echo bug ;;
  esac
}

# keep_codes FILE: passes a job's output on and writes to FILE, one a line, the exit codes that job.sh tells in it.
keep_codes() {
  local line
  : >"$1"
  while IFS= read -r line || [ -n "$line" ]; do
    printf '%s\n' "$line"
    if [[ $line =~ job\.sh:\ exit\ ([0-9]+) ]]; then
      echo "${BASH_REMATCH[1]}" >>"$1"
    fi
  done
}

# decide OTHERWISE CODES...: the one code of a job whose hosts ended with these codes; OTHERWISE, where all are 0.
# A bad config is never retried, so it comes first. A host that broke down makes the others fail in any way, so it
# comes before a bug; a bug that is hidden by it shows again, because failures are few.
decide() {
  local wanted code otherwise=$1
  shift
  for wanted in config infrastructure bug preempted; do
    for code in "$@"; do
      if [ "$(meaning "$code")" = "$wanted" ]; then
        echo "$code"
        return
      fi
    done
  done
  echo "$otherwise"
}

# again CODE: whether to start once more. Preemptions are part of the business; failures of machines should be few,
# and a program that runs out of memory at the same step each time looks like one.
num_preemptions=0 num_failures=0
again() {
  case $(meaning "$1") in
    preempted)
      num_preemptions=$((num_preemptions + 1))
      if [ "$num_preemptions" -gt "$max_preemptions" ]; then
        echo "$program: preempted $num_preemptions times, --max-preemptions is $max_preemptions: not started again" >&2
        return 1
      fi
      ;;
    infrastructure)
      num_failures=$((num_failures + 1))
      if [ "$num_failures" -gt "$max_failures" ]; then
        echo "$program: hosts failed $num_failures times, --max-failures is $max_failures: not started again" >&2
        return 1
      fi
      ;;
    *) return 1 ;;
  esac
}
