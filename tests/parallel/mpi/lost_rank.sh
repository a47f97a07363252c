#!/bin/sh
# Four ranks exchange for ever, and one is killed, stopped, made to think for ever, made to fail, or cut off from the
# network: the others end within a minute with exit code 6, and one line names the rank, its host and what it did.
# lost_rank.sh RANK_LOOP [ROUNDS [KIND ...]]; kinds: kill stop spin throw cut (cut is left out where network
# namespaces are not permitted).
# Prints per kind how long the slowest rank took to end.
set -eu
loop=$1
rounds=${2:-1}
[ $# -lt 2 ] || shift
shift
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
ns=furlong$$
remove_second_host() {
  for pid in $(ip netns pids "$ns" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
  ip link del "$ns" 2>/dev/null || true
  ip netns del "$ns" 2>/dev/null || true
}
cleanup() {
  for r in 0 1 2 3; do
    if [ -f "$dir/pid.$r" ]; then kill -9 "$(cat "$dir/pid.$r")" 2>/dev/null || true; fi
  done
  remove_second_host
  rm -rf "$dir"
}
trap cleanup EXIT

fail() {
  printf 'lost_rank: %s\n' "$*" >&2
  sed 's/^/  | /' "$dir/log" >&2
  exit 1
}

# Time for a rank's shell to write down its exit code on a busy machine, before mpirun kills it.
OMPI_MCA_odls_base_sigkill_timeout=8
export OMPI_MCA_odls_base_sigkill_timeout

now() { date +%s%N; }

# What each rank runs: the loop, whose exit code is kept. mpirun's own SIGTERM is for the loop, not for this shell.
cat >"$dir/rank" <<EOF
trap : TERM
code=0
"$loop" "$dir" "\$@" || code=\$?
echo \$code >"$dir/exit.\$OMPI_COMM_WORLD_RANK.new"
date +%s%N >"$dir/ended.\$OMPI_COMM_WORLD_RANK"
mv "$dir/exit.\$OMPI_COMM_WORLD_RANK.new" "$dir/exit.\$OMPI_COMM_WORLD_RANK"
exit \$code
EOF

# Starts four ranks, the last one in a network of its own for "cut", and waits until all are under way.
start() {
  rm -f "$dir"/pid.* "$dir"/exit.* "$dir"/ended.* "$dir/log" "$dir/code"
  if [ "$kind" = cut ]; then
    "$here/two_hosts.sh" "$ns" "$dir" sh "$dir/rank" >"$dir/log" 2>&1 &
  else
    (
      code=0
      "$here/run.sh" 4 sh "$dir/rank" "$@" || code=$?
      echo $code >"$dir/code"
    ) >"$dir/log" 2>&1 &
  fi
  job=$!
  tries=0
  expected=4
  [ $# = 0 ] || expected=1  # the one at fault does not wait for the others
  while [ "$(find "$dir" -name 'pid.?' | wc -l)" -lt $expected ]; do
    tries=$((tries + 1))
    [ $tries -lt 600 ] || fail "the ranks did not start"
    sleep 0.1
  done
}

# one KIND VICTIM: a round.
one() {
  kind=$1
  victim=$2
  expect=6
  case $kind in
    spin | throw) start "$kind" "$victim" ;;
    *) start ;;
  esac
  begun=$(now)
  case $kind in
    kill) kill -9 "$(cat "$dir/pid.$victim")" ;;
    stop) kill -STOP "$(cat "$dir/pid.$victim")" ;;
    cut) ip link set "$ns" down ;;
    *) ;;
  esac
  slowest=0
  for r in 0 1 2 3; do
    case $kind$r in "kill$victim" | "stop$victim") continue ;; esac
    tries=0
    while [ ! -f "$dir/exit.$r" ]; do
      tries=$((tries + 1))
      [ $tries -lt 600 ] || fail "$kind: rank $r has not ended a minute after rank $victim was lost"
      sleep 0.1
    done
    expect=6
    [ "$kind$r" != "throw$victim" ] || expect=5
    [ "$(cat "$dir/exit.$r")" = $expect ] || fail "$kind: rank $r ended with $(cat "$dir/exit.$r"), not $expect"
    took=$((($(cat "$dir/ended.$r") - begun) / 1000000))
    [ $took -le $slowest ] || slowest=$took
  done
  case $kind in
    kill) said="lost rank $victim (.*), in \`round [0-9]*\` for .*its connection closed" ;;
    stop | cut) said="lost rank $victim (.*), in \`round [0-9]*\` for .*no word from it" ;;
    spin) said="rank $victim (.*), in \`thinking\` for .*keeps the others waiting" ;;
    throw) said="\(rank $victim (.*), in \`round [0-9]*\`.*: \|^error: \)the loss is not finite" ;;
  esac
  tries=0
  until grep -q "$said" "$dir/log"; do  # mpirun passes on what ranks have printed in its own time
    tries=$((tries + 1))
    [ $tries -lt 200 ] || fail "$kind: nobody named rank $victim"
    sleep 0.1
  done
  [ "$(grep -c "lost rank $victim\|keeps the others waiting" "$dir/log")" -le 3 ] || fail "$kind: said too often"
  if [ "$kind" = cut ]; then
    kill -9 "$(cat "$dir/pid.mpirun")" 2>/dev/null || true  # it waits for the other host much longer
    remove_second_host
  fi
  wait $job 2>/dev/null || true
  [ "$kind" != throw ] || [ "$(cat "$dir/code")" = 5 ] || fail "throw: mpirun ended with $(cat "$dir/code"), not 5"
  times="$times $slowest"
}

for kind in "${@:-kill}"; do
  times=
  if [ "$kind" = cut ] && ! { ip netns add "$ns" && ip netns del "$ns"; } 2>/dev/null; then
    printf 'cut: not permitted here; it takes root and network namespaces\n'
    continue
  fi
  for round in $(seq "$rounds"); do
    if [ "$kind" = cut ]; then one cut 3; else one "$kind" $((round % 4)); fi
  done
  # shellcheck disable=SC2086
  printf '%s\n' $times | sort -n | awk -v kind="$kind" '{ t[NR] = $1 } END {
    printf "%s: %d rounds, the slowest rank ended after %.1f s (median), %.1f s (most)\n", kind, NR, t[int((NR + 1) / 2)] / 1000, t[NR] / 1000 }'
done
printf 'lost_rank: passed\n'
