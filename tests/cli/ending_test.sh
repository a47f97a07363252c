#!/bin/bash
# Runs that are asked to end, and a run directory that another run has: ending_test.sh FURLONG DATA.
set -eu
furlong=$1
tiny=$2/tiny
dir=$(mktemp -d)
trap 'kill -9 ${run:-} 2>/dev/null || true; rm -rf "$dir"' EXIT
cd "$dir"

fail() {
  printf 'ending_test: %s\n' "$*" >&2
  exit 1
}

echo '{"prompt":[{"role":"user","content":"What is 1 + 2?"}],"label":"3"}' >prompts.jsonl
echo '{"prompt":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."}]}' >chats.jsonl
cat >run.toml <<END
hf_checkpoint = "$tiny"
input_key = "prompt"
label_key = "label"
chat_template = "qwen3.5"
rm_type = "deepscaler"
num_rollout = 6
rollout_batch_size = 1
n_samples_per_prompt = 2
rollout_max_response_len = 60
lr = 1e-3
threads = 1
END
begin() {
  command=$1 folder=$2
  shift 2
  "$furlong" "$command" --config run.toml --run-dir "$folder" "$@" >/dev/null 2>"$folder.err" &
  run=$!
}
train() { begin train "$1" --prompt-data prompts.jsonl --ignore-eos; }
# until_row FOLDER N: the run has written so many rows.
until_row() {
  for ((i = 0; i < 600; i++)); do
    [ "$(cat "$1/metrics.jsonl" 2>/dev/null | wc -l)" -lt "$2" ] || return 0
    sleep 0.05
  done
  fail "no row $2: $(cat "$1.err")"
}
# ends CODE FOLDER WORDS
ends() {
  code=0 start=$(date +%s)
  wait $run || code=$?
  [ $code = "$1" ] || fail "exit code $code instead of $1: $(cat "$2.err")"
  [ $(($(date +%s) - start)) -le 10 ] || fail "it took $(($(date +%s) - start)) s to end"
  grep -qF "$3" "$2.err" || fail "'$3' is not in: $(cat "$2.err")"
}
without_times() { sed 's/"perf\/[^,}]*[,}]//g' "$1/metrics.jsonl"; }

train sound
wait $run || fail "$(cat sound.err)"
for signal in TERM INT; do
  folder=by_$signal
  train $folder
  until_row $folder 2
  # A second one in the same folder is refused, naming the first.
  code=0
  "$furlong" train --config run.toml --run-dir $folder --prompt-data prompts.jsonl >/dev/null 2>second || code=$?
  [ $code = 2 ] || fail "exit code $code of a second run: $(cat second)"
  grep -qF "another process is using the run directory $folder (process $run on $(hostname))" second || fail "$(cat second)"
  kill -$signal $run
  [ $signal = TERM ] && number=143 || number=130
  ends $number $folder "SIG$signal: the run has ended"
  grep -qF 'of 6 rollouts are in' $folder.err || fail "$(cat $folder.err)"
  rows=$(wc -l <$folder/metrics.jsonl)
  [ "$rows" -lt 6 ] || fail 'it had ended before the signal'
  [ -s $folder/checkpoints/iter_000000$((rows - 1))/manifest.json ] || fail "rollout $rows is not committed"
  train $folder
  wait $run || fail "$(cat $folder.err)"
  grep -qF "at rollout $rows " $folder.err || fail "it did not go on at rollout $rows: $(cat $folder.err)"
  cmp sound/hf/model-00001-of-00002.safetensors $folder/hf/model-00001-of-00002.safetensors || fail 'other weights'
  without_times sound >wanted
  without_times $folder >got
  cmp wanted got || fail "other metrics: $(diff wanted got)"
done

# Before the first rollout is complete there is nothing to commit.
begin train early --prompt-data prompts.jsonl --ignore-eos --rollout-max-response-len 3000
for ((i = 0; i < 600; i++)); do
  if grep -q 'fresh start' early.err; then break; fi
  sleep 0.05
done
sleep 0.3
kill -TERM $run
ends 143 early 'no rollout was complete'

cat >run.toml <<END
hf_checkpoint = "$tiny"
input_key = "prompt"
chat_template = "qwen3.5"
lr = 1e-3
threads = 1
END

# The second signal ends at once.
begin sft twice --prompt-data chats.jsonl --num-rollout 100000 --rollout-batch-size 400
until_row twice 1
kill -TERM $run
sleep 0.01
kill -TERM $run 2>/dev/null || true
code=0
wait $run || code=$?
[ $code = 143 ] || fail "exit code $code after two signals: $(cat twice.err)"

# Supervised runs end and go on alike.
begin sft chats --prompt-data chats.jsonl --rollout-batch-size 1 --num-rollout 100000
until_row chats 2
kill -TERM $run
ends 143 chats 'of 100000 steps are in'
steps=$(wc -l <chats/metrics.jsonl)
begin sft chats --prompt-data chats.jsonl --rollout-batch-size 1 --num-rollout $((steps + 2))
wait $run || fail "$(cat chats.err)"
[ "$(wc -l <chats/metrics.jsonl)" = $((steps + 2)) ] || fail 'rows are lost or double'
printf 'ending_test: passed\n'
