#!/bin/bash
# The recipe's layout on the GPUs of this host, phase by phase:
#   bench/multi_gpu/run.sh [BUILD]      BUILD: the build folder (build/cuda, configured with FURLONG_BENCH)
# LAYERS (12), RESPONSE (8192 tokens, forced) and PARTS ("parity exchange step drafts lost") choose the work. It needs no
# checkpoint: weights are random, at the shapes of Qwen3.5-35B-A3B. A table of figures comes last.
set -u
cd "$(dirname "$0")/../.."
build=${1:-build/cuda}
layers=${LAYERS:-12} response=${RESPONSE:-8192} parts=${PARTS:-parity exchange step drafts lost}
gpus=$(nvidia-smi -L | wc -l)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# A program that uses NVLink multicast can put the GPUs of a shared host out of service.
export NCCL_NVLS_ENABLE=0
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
table=$work/table
recipe=$work/recipe.toml # without its checkpoints and evaluation
sed -e '/^load = /d' -e '/^\[evaluation\]/,/^$/d' recipes/qwen3.5-35b-a3b-mtp.toml >"$recipe"
sed '/speculative/d' "$recipe" >"$work/plain.toml"
echo "$gpus GPUs: $(nvidia-smi --query-gpu=name --format=csv,noheader | sort -u)" >"$table"

wants() { [[ " $parts " == *" $1 "* ]]; }
ranks() { mpirun --oversubscribe --bind-to none -n "$gpus" "$@"; }
# figure FILE KEY: the last value of a metric
figure() { grep -o "\"$2\":[-0-9.e+]*" "$1" | tail -n 1 | cut -d: -f2; }

if wants parity; then
  for program in test_nccl test_gpus; do
    if ranks "$build/tests/$program" >"$work/$program.log" 2>&1; then verdict=passed; else verdict=FAILED; fi
    echo "$program on $gpus GPUs: $verdict" >>"$table"
    grep -h 'gradients: fp32' "$work/$program.log" | sed 's/^/  /' >>"$table"
    [ $verdict = passed ] || { grep -v '^\[ *OK\|^\[ RUN' "$work/$program.log" | head -n 60; }
  done
fi

if wants exchange; then
  ranks "$build/bench/bench_exchange" >>"$table" 2>&1 || echo "bench_exchange: FAILED" >>"$table"
fi

model=$work/model
"$build/furlong" init --preset 35b-a3b --num-layers "$layers" --config-only --save "$model"
awk 'BEGIN { for (i = 0; i < 64; i++) printf "{\"prompt\":[{\"role\":\"user\",\"content\":\"%d + %d = ? Put the answer in a box.\"}],\"label\":\"%d\"}\n", i, 2 * i, 3 * i }' >"$work/prompts.jsonl"

# step NAME RECIPE FLAGS...: one step of the recipe's 32 x 8
step() {
  local name=$1 recipe=$2 run=$work/run
  shift 2
  rm -rf "$run"
  if ! timeout "${LIMIT:-420}" "$build/furlong" train --config "$recipe" --nproc "$gpus" --hf-checkpoint "$model" \
    --random-init --prompt-data "$work/prompts.jsonl" --chat-template qwen3.5 --num-rollout 1 --run-dir "$run" --save none --save-hf none \
    --expert-model-parallel-size "$gpus" --rollout-max-response-len "$response" --ignore-eos "$@" \
    >"$work/step.log" 2>&1; then
    echo "step, $name: FAILED" >>"$table"
    tail -n 30 "$work/step.log"
    return
  fi
  grep -A60 '^memory ' "$work/step.log" | head -n 45
  local m=$run/metrics.jsonl
  local tokens=$((256 * response))
  awk -v name="$name" -v tokens=$tokens -v gpus="$gpus" -v layers="$layers" -v response="$response" \
    -v rollout="$(figure "$m" perf/rollout_time)" -v train="$(figure "$m" perf/actor_train_time)" \
    -v gradients="$(figure "$m" perf/gradients_time)" -v update="$(figure "$m" perf/optimizer_time)" \
    -v all="$(figure "$m" perf/step_time)" -v accept="$(figure "$m" rollout/spec_accept_length)" \
    -v exchange="$(figure "$m" perf/exchange_time)" \
    -v used="$(figure "$m" perf/device_memory_gib)" -v plan="$(figure "$m" perf/device_memory_plan_gib)" 'BEGIN {
      printf "step of 32 x 8 x %d tokens, %d layers, EP%d, %s\n", response, layers, gpus, name
      printf "  rollout %.1f s (%.0f tokens/GPU/s), gradients %.1f s, optimizer %.2f s, weight sync 0 s, all %.1f s\n", rollout,
             tokens / rollout / gpus, gradients, update, all
      printf "  %.0f tokens/GPU/s over the whole step; accept length %s; exchanges of the gradients %.2f s (%.1f %% of them)\n",
             tokens / all / gpus, accept == "" ? "-" : accept, exchange, 100 * exchange / gradients
      printf "  device memory %.2f GiB, planned %.2f\n", used, plan
    }' >>"$table"
}
if wants step; then step "one token a forward" "$work/plain.toml"; fi
if wants drafts; then step "2 drafts, 2.49 accepted" "$recipe" --rollout-forced-accept-length 2.49; fi

# A rank is killed in the middle of a run; the others end and name it, and the same command goes on.
if wants lost; then
  "$build/furlong" init --preset small --save "$work/small" >/dev/null 2>&1
  train() {
    "$build/furlong" train --nproc "$gpus" --device cuda --dtype bf16 --hf-checkpoint "$work/small" --prompt-data "$work/prompts.jsonl" --input-key prompt \
      --label-key label --apply-chat-template --chat-template qwen3.5 --rm-type deepscaler --rollout-batch-size 8 --n-samples-per-prompt 8 --global-batch-size 64 \
      --rollout-max-response-len 256 --expert-model-parallel-size "$gpus" --moe-token-dispatcher-type flex --enable-mtp-training \
      --mtp-num-layers 1 --rollout-speculative-algorithm EAGLE --save-interval 2 --num-rollout "$1" --run-dir "$work/lost"
  }
  train 200 >"$work/lost.log" 2>&1 &
  launcher=$!
  for _ in $(seq 120); do
    [ -s "$work/lost/checkpoints/latest_checkpointed_iteration.txt" ] && break
    sleep 0.5
  done
  sleep 1
  victim=$(pgrep -f "furlong train .*$work/lost" | while read -r p; do
    grep -qzx "OMPI_COMM_WORLD_RANK=$((gpus - 1))" "/proc/$p/environ" 2>/dev/null && echo "$p"
  done | head -n 1)
  at=$(date +%s.%N)
  kill -9 "$victim"
  wait $launcher
  code=$?
  echo "rank $((gpus - 1)) killed in mid-run: the others ended after $(awk -v a="$at" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }') s, exit $code" >>"$table"
  grep -h "rank $((gpus - 1))" "$work/lost.log" | tail -n 2 | sed 's/^/  /' >>"$table"
  done_before=$(cat "$work/lost/checkpoints/latest_checkpointed_iteration.txt")
  if train $((done_before + 4)) >"$work/again.log" 2>&1; then
    grep -h resuming "$work/again.log" | sed 's/^/  /' >>"$table"
  else
    echo "  the restart FAILED" >>"$table"
    tail -n 20 "$work/again.log"
  fi
fi

echo
cat "$table"
