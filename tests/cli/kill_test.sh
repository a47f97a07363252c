#!/bin/bash
# What a run leaves after it was killed at random moments: kill_test.sh FURLONG DATA KILLS [SEED]. Each run is started again
# until it is done; then its exported checkpoint, its training checkpoint, its trajectories, and its metrics but for the
# times are held byte by byte against those of a run that nobody killed.
set -eu
furlong=$1
tiny=$2/tiny
kills=$3
RANDOM=${4:-1}
dir=$(mktemp -d)
trap 'kill -9 ${run:-} 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"

fail() {
  printf 'kill_test: %s\n' "$*" >&2
  exit 1
}

for a in 1 2 3; do
  for b in 1 2 3; do
    printf '{"prompt":[{"role":"user","content":"What is %d + %d?"}],"label":"%d"}\n' $a $b $((a + b))
  done
done >prompts.jsonl
# Drafts, groups that are gone on with in the next rollout, and the trajectories of every rollout.
cat >run.toml <<END
hf_checkpoint = "$tiny"
prompt_data = "prompts.jsonl"
input_key = "prompt"
label_key = "label"
chat_template = "qwen3.5"
rm_type = "deepscaler"
rollout_shuffle = true
num_rollout = 5
rollout_batch_size = 2
over_sampling_batch_size = 4
partial_rollout = true
n_samples_per_prompt = 2
rollout_max_response_len = 40
rollout_speculative_algorithm = "EAGLE"
enable_mtp_training = true
save_interval = 1
lr = 1e-3
threads = 1
END
# begin FOLDER: the run, in the background.
begin() {
  "$furlong" train --config run.toml --run-dir "$1" --save-debug-rollout-data "$1/rollout_{rollout_id}.jsonl" \
    >/dev/null 2>>err &
  run=$!
}
now() { date +%s%N; }

start=$(now)
begin sound
wait $run || fail "the run that nobody killed: $(cat err)"
whole=$((($(now) - start) / 1000000))
grep -q '"open": *true' sound/checkpoints/iter_0000003/state.json || fail 'no response was under way between rollouts'

# times FOLDER: its metrics without what the clock decides.
without_times() { sed 's/"perf\/[^,}]*[,}]//g' "$1/metrics.jsonl"; }
compare() {
  [ "$(ls -A "$1/hf")" = "$(ls -A sound/hf)" ] || fail "in $1/hf: $(ls -A "$1/hf")"
  for file in hf/* checkpoints/iter_0000004/* rollout_{0,1,2,3,4}.jsonl; do
    [ -e "sound/$file" ] || (cd sound && ls $file >/dev/null) || fail "no $file"
  done
  (cd sound && ls hf/* checkpoints/iter_0000004/* rollout_*.jsonl) | while read -r file; do
    cmp "sound/$file" "$1/$file" || fail "$file differs after kills"
  done
  without_times sound >wanted
  without_times "$1" >got
  cmp wanted got || fail "metrics differ after kills: $(diff wanted got)"
  left=$(find "$1" -name '*tmp*')
  [ -z "$left" ] || [ $code = 2 ] || fail "left behind: $left"
}

# When the last kill came after the last commit, nothing was there to tidy up after it.
done=0 runs=0
while [ $done -lt "$kills" ]; do
  runs=$((runs + 1))
  : >err
  for ((life = 1; ; life++)); do
    [ $life -lt 200 ] || fail "a run that does not end: $(tail -5 err)"
    begin killed
    if [ $done -lt "$kills" ]; then
      sleep "$(printf '0.%03d' $((RANDOM * whole / 32768 % 1000)))"
      if [ $whole -gt 1000 ] && [ $((RANDOM % 3)) = 0 ]; then sleep "$(printf '0.%03d' $((RANDOM % 1000)))"; fi
      kill -9 $run 2>/dev/null || true
    fi
    code=0
    wait $run 2>/dev/null || code=$?
    [ $code != 137 ] || { done=$((done + 1)); continue; }
    # It has ended before the signal came; or the last one came when all was committed.
    [ $code = 0 ] || { [ $code = 2 ] && grep -q 'has already done 5 of 5 rollouts' err; } || fail "exit code $code: $(cat err)"
    break
  done
  compare killed
  rm -rf killed
done
printf 'kill_test: %d kills in %d runs, no byte differs\n' $done $runs
