#!/bin/sh
# The demo, given the program: tools/demo.sh build/cpu/furlong [--seed N] [--run-dir DIR] [--device cuda]
# A tiny Qwen3.5-MoE is made from nothing, warmed up on two-operand sums until it can do some of them, and then improved
# by GRPO with MTP training and EAGLE rollout. Held-out pairs of operands occur in neither training set.
set -eu
furlong=$1
shift
seed=1
out=runs/demo
device=cpu
while [ $# -gt 0 ]; do
  case $1 in
    --seed) seed=$2 ;;
    --run-dir) out=$2 ;;
    --device) device=$2 ;;
    *)
      printf 'demo: unknown option %s; --seed N, --run-dir DIR and --device cpu|cuda are known\n' "$1" >&2
      exit 2
      ;;
  esac
  shift 2
done

say() { printf '\n== %s\n' "$*"; }
started=$(date +%s)
rm -rf "$out"
mkdir -p "$out/data"
"$furlong" --version | head -n 1

held=300       # pairs kept from both training sets
practice=200   # of the training pairs, to see when the warm-up is enough
say "problems: a+b for two-digit a and b; $held pairs are held out"
awk -v seed="$seed" -v held=$held -v practice=$practice -v dir="$out/data" '
  function random() { state = (state * 1103515245 + 12345) % 2147483648; return state / 2147483648 }
  function backwards(x, text) { for (text = ""; x >= 10; x = int(x / 10)) text = text (x % 10) " "; return text x }
  function problem(i) { return "{\"role\":\"user\",\"content\":\"" a[i] "+" b[i] "\"}" }
  function row(i) { return "{\"prompt\":[" problem(i) "],\"label\":\"" a[i] + b[i] "\"}" }
  function worked(i, sum) {
    sum = a[i] + b[i]
    return "{\"messages\":[" problem(i) ",{\"role\":\"assistant\",\"content\":\"<think>\\n" backwards(sum) \
           "\\n</think>\\n\\n\\\\boxed{" sum "}\"}]}"
  }
  BEGIN {
    state = seed * 7919 + 17
    for (i = 0; i < 20; i++) random()
    n = 0
    for (x = 10; x <= 99; x++) for (y = 10; y <= 99; y++) { a[n] = x; b[n] = y; n++ }
    for (i = n - 1; i > 0; i--) {
      j = int(random() * (i + 1))
      t = a[i]; a[i] = a[j]; a[j] = t
      t = b[i]; b[i] = b[j]; b[j] = t
    }
    for (i = 0; i < n; i++) {
      if (i < held) print row(i) > (dir "/held_out.jsonl")
      else {
        print row(i) > (dir "/train.jsonl")
        print worked(i) > (dir "/sft.jsonl")
        if (i < held + practice) print row(i) > (dir "/practice.jsonl")
      }
    }
  }'
wc -l "$out"/data/*.jsonl | sed '$d'

say "a tiny Qwen3.5-MoE with random weights"
"$furlong" init --preset tiny --seed "$seed" --save "$out/start"

common="--device $device --dtype fp32 --chat-template qwen3.5 --input-key prompt --label-key label --rm-type deepscaler --rollout-max-response-len 32"
# Prints the share of a set that the model answers, likeliest tokens taken: accuracy CHECKPOINT FILE
accuracy() {
  # shellcheck disable=SC2086
  "$furlong" eval $common --hf-checkpoint "$1" --eval-prompt-data set "$2" --eval-temperature 0 --run-dir "$out/eval" |
    sed -n 's|^eval/set ||p'
}
at_least() { awk -v x="$1" -v y="$2" 'BEGIN { exit !(x >= y) }'; }

say "warm-up: supervised, until it answers a third of the practice problems"
steps=140
: >"$out/sft.log"
while :; do
  steps=$((steps + 5))
  if [ $steps -gt 600 ]; then
    printf 'demo: the warm-up did not get there in 600 steps; see %s/sft.log\n' "$out" >&2
    exit 5
  fi
  "$furlong" sft --device "$device" --hf-checkpoint "$out/start" --chat-template qwen3.5 --prompt-data "$out/data/sft.jsonl" --input-key messages \
    --rollout-shuffle --rollout-seed "$seed" --num-rollout $steps --rollout-batch-size 64 --global-batch-size 64 \
    --use-dynamic-batch-size --max-tokens-per-gpu 4096 --lr 3e-3 --lr-warmup-iters 20 --adam-beta2 0.98 \
    --run-dir "$out/sft" 2>>"$out/sft.log"
  solved=$(accuracy "$out/sft/hf" "$out/data/practice.jsonl")
  printf 'after %s steps: %s\n' $steps "$solved"
  if at_least "$solved" 0.33; then break; fi
done
before=$(accuracy "$out/sft/hf" "$out/data/held_out.jsonl")
printf 'held-out accuracy before RL: %s\n' "$before"

say "GRPO + MTP training + EAGLE rollout"
# shellcheck disable=SC2086
"$furlong" train $common --hf-checkpoint "$out/sft/hf" --prompt-data "$out/data/train.jsonl" --apply-chat-template \
  --rollout-shuffle --rollout-seed "$seed" --num-rollout 340 --rollout-batch-size 16 --n-samples-per-prompt 8 \
  --global-batch-size 128 --use-dynamic-batch-size --max-tokens-per-gpu 4096 --balance-data \
  --advantage-estimator grpo --eps-clip 0.2 --eps-clip-high 0.28 --use-kl-loss --kl-loss-coef 0.00 --max-text-loss 0 \
  --lr 3e-4 --lr-warmup-iters 30 --lr-decay-style linear --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98 \
  --enable-mtp-training --mtp-num-layers 1 --mtp-loss-scaling-factor 0.2 \
  --rollout-speculative-algorithm EAGLE --rollout-speculative-num-steps 2 --rollout-speculative-eagle-topk 1 \
  --rollout-speculative-num-draft-tokens 3 --run-dir "$out/train" --save-hf "$out/hf"
after=$(accuracy "$out/hf" "$out/data/held_out.jsonl")

seconds=$(($(date +%s) - started))
# The first and last five rollouts' means, and the largest difference of log-probs over the run.
awk -v before="$before" -v after="$after" -v seconds=$seconds -v seed="$seed" '
  function value(key, at, rest) {
    at = index($0, "\"" key "\":")
    if (at == 0) return 0
    rest = substr($0, at + length(key) + 3)
    return rest + 0
  }
  { n++; reward[n] = value("rollout/raw_reward"); accept[n] = value("rollout/spec_accept_length")
    d = value("train/train_rollout_logprob_abs_diff"); if (d > diff) diff = d }
  END {
    for (i = 1; i <= 5; i++) { r0 += reward[i] / 5; r1 += reward[n - 5 + i] / 5 }
    printf "{\"accuracy_before\": %s, \"accuracy_after\": %s, \"reward_before\": %.4f, \"reward_after\": %.4f, ", before, after, r0, r1
    printf "\"accept_length_before\": %.4f, \"accept_length_after\": %.4f, ", accept[1], accept[n]
    printf "\"logprob_abs_diff\": %g, \"seconds\": %d, \"seed\": %d}\n", diff, seconds, seed
  }' "$out/train/metrics.jsonl" >"$out/summary.json"

say "summary"
awk '{ gsub(/[{}"]/, ""); gsub(/, /, "\n"); print }' "$out/summary.json" | awk -F': ' '
  { v[$1] = $2 }
  END {
    printf "held-out accuracy   %.3f -> %.3f   (greedy, %d pairs)\n", v["accuracy_before"], v["accuracy_after"], '$held'
    printf "reward              %.3f -> %.3f   (sampled, first and last 5 rollouts)\n", v["reward_before"], v["reward_after"]
    printf "accept length       %.2f -> %.2f     (tokens per verification, at most 3)\n", v["accept_length_before"], v["accept_length_after"]
    printf "log-probs           train and rollout differ by at most %s (mean per token of a step)\n", v["logprob_abs_diff"]
    printf "time                %d s\n", v["seconds"]
  }'
printf 'checkpoint          %s   (Hugging Face layout)\nsummary             %s/summary.json\n' "$out/hf" "$out"
