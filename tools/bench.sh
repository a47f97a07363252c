#!/bin/sh
# Runs every benchmark program of a build folder, one after the other: tools/bench.sh build/cpu [options of theirs]
set -eu
build=$1
shift
found=0
for program in "$build"/bench/bench_*; do
  if [ ! -f "$program" ] || [ ! -x "$program" ]; then continue; fi
  found=1
  printf '== %s\n' "$(basename "$program")"
  "$program" "$@"
done
[ $found = 1 ] || {
  printf 'tools/bench.sh: no benchmark programs in %s/bench\n' "$build" >&2
  exit 2
}
