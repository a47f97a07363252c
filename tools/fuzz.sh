#!/bin/bash
# The fuzzer on each target: fuzz.sh FUZZ [TARGET...]. By default FUZZ_SECONDS (20) of each; with FUZZ_RUNS that many inputs
# (of safetensors five times as many), in FUZZ_PIECES processes (1). FUZZ_JOBS (2) run at a time. Inputs have FUZZ_LENGTH bytes at
# most (4,096, or 512). It begins with those of FUZZ_DATA/fuzz (tests/data) and keeps what it finds in FUZZ_CORPUS (nowhere), each
# process in a folder of its own: to read what the others find takes longer than all the rest. One line a
# target: inputs, seconds of the processes together, the largest memory, exit code. An input that does harm is left as
# TARGET-crash-..., -timeout-... or -oom-... in the working folder, and the end of its log is shown.
set -euo pipefail
fuzz=$(realpath "$1")
shift
data=$(realpath "${FUZZ_DATA:-$(dirname "$0")/../tests/data}")
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(ls "$data/fuzz")
pieces=${FUZZ_PIECES:-1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for name in FUZZ_SECONDS FUZZ_RUNS FUZZ_PIECES FUZZ_JOBS FUZZ_LENGTH; do
  if [ -n "${!name:-}" ] && ! [[ ${!name} =~ ^[1-9][0-9]*$ ]]; then
    echo "fuzz.sh: $name=${!name}: a whole number from 1 on is wanted" >&2
    exit 2
  fi
done
export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=32:malloc_context_size=8

# stat TARGET NAME: of each of its processes.
stat() { sed -n "s/^stat::$2: *//p" "$work/$1".*.log; }

one() {
  local target=$1 piece=$2 corpus=${FUZZ_CORPUS:-$work}/$1/$2 length rc=0 runs start=$SECONDS most=4096
  case $target in chat | cli | grader) most=512 ;; esac  # whose time grows with the square of the length
  most=${FUZZ_LENGTH:-$most}
  if [ -n "${FUZZ_RUNS:-}" ]; then
    runs=$FUZZ_RUNS
    [ "$target" != safetensors ] || runs=$((5 * runs))
    length=(-runs=$(((runs + pieces - 1) / pieces)) -entropic=0 -reload=0)  # a quarter faster
  else
    length=(-max_total_time=${FUZZ_SECONDS:-20})
  fi
  mkdir -p "$corpus"
  nice "$fuzz" --target="$target" --data="$data" "$corpus" "$data/fuzz/$target" "${length[@]}" -seed=$((piece + 1)) -max_len=$most \
    -timeout=10 -rss_limit_mb=768 -report_slow_units=5 -print_final_stats=1 -artifact_prefix="./$target-" \
    >"$work/$target.$piece.log" 2>&1 || rc=$?
  if [ $rc != 0 ]; then grep -v '^#' "$work/$target.$piece.log" | tail -n 40 >&2 || true; fi
  echo "$rc $((SECONDS - start))" >"$work/$target.$piece.end"
  # The last one tells of all.
  if [ "$(ls "$work/$target".*.end | wc -l)" = "$pieces" ] && mkdir "$work/$target.told" 2>/dev/null; then
    awk -v target="$target" -v inputs="$(stat "$target" number_of_executed_units | awk '{ n += $1 } END { print n + 0 }')" \
      -v memory="$(stat "$target" peak_rss_mb | sort -n | tail -n 1)" '
      { if ($1 > code) code = $1; seconds += $2 }
      END { printf "fuzz: %-12s %9d inputs %6d s %5d MiB  exit %d\n", target, inputs, seconds, memory, code }' "$work/$target".*.end
  fi
}

for target in "${targets[@]}"; do
  for ((piece = 0; piece < pieces; piece++)); do
    while [ "$(jobs -pr | wc -l)" -ge "${FUZZ_JOBS:-2}" ]; do wait -n || true; done
    one "$target" "$piece" &
  done
done
wait
awk '$1 != 0 { bad = 1 } END { exit bad }' "$work"/*.end
