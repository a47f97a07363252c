#!/bin/sh
# The built program from outside: commands_test.sh FURLONG DATA. Exit codes, messages, streams, and files that stay whole.
set -eu
furlong=$1
tiny=$2/tiny
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
LC_ALL=C
export LC_ALL

fail() {
  printf 'commands_test: %s\n' "$*" >&2
  exit 1
}

# refused CODE FRAGMENT ARGS...: exit code, a fragment of stderr, nothing on stdout. Standard input is `input`.
: >input
refused() {
  code=$1
  fragment=$2
  shift 2
  got=0
  "$furlong" "$@" <input >out 2>err || got=$?
  [ "$got" = "$code" ] || fail "exit code $got instead of $code: furlong $* ($(cat err))"
  grep -qF -e "$fragment" err || fail "'$fragment' is not in: $(cat err) (furlong $*)"
  [ ! -s out ] || fail "refused, yet on standard output: $(head -c 300 out) (furlong $*)"
}

# works ARGS...: exit code 0; standard output in `out`.
works() {
  "$furlong" "$@" <input >out 2>err || fail "exit code $?: furlong $* ($(cat err))"
}

has() {
  grep -qF -e "$1" out || fail "'$1' is not in: $(head -c 600 out)"
}

lines() {
  [ "$(wc -l <out)" = "$1" ] || fail "$(wc -l <out) lines instead of $1: $(head -c 600 out)"
}

# --- the program itself
works --version
has 'furlong '
has 'instruction set'
works --help
for command in train sft eval generate score serve tokenize grade init convert; do
  works --help
  has "  $command "
  works "$command" --help
  has "furlong $command"
done
refused 2 'which command?'
refused 2 'did you mean score?' scroe --input x
refused 2 'did you mean --hf-checkpoint?' score --hf-checkpont "$tiny" --input -
refused 2 '--max-new-tokens x: needs an integer' generate --hf-checkpoint "$tiny" --input - --max-new-tokens x
refused 2 '--input' score --hf-checkpoint "$tiny"
if [ "${3:-0}" = 1 ]; then
  CUDA_VISIBLE_DEVICES= refused 4 'no CUDA device was found' score --hf-checkpoint "$tiny" --input - --device cuda
else
  refused 4 'built without CUDA' score --hf-checkpoint "$tiny" --input - --device cuda
fi
refused 2 '--save names the checkpoint itself' convert --hf-checkpoint "$tiny" --save "$tiny"

# --- tokenize
printf '%s\n' '{"text":"How much is 2 + 2?"}' '{"text":"<|im_start|>a\u00e9\n"}' >input
works tokenize --tokenizer "$tiny" --input -
lines 2
has '{"ids":['
cp out ids
mv ids input
works tokenize --tokenizer "$tiny/tokenizer.json" --input - --decode
has '{"text":"How much is 2 + 2?"}'
lines 2
printf '%s\n' '{"messages":[{"role":"user","content":"Hi"}],"add_generation_prompt":true}' >input
works tokenize --tokenizer "$tiny" --chat --chat-template qwen3.5 --input -
has '{"text":"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"}'
cat >chat.jinja <<'END'
{%- for m in messages %}{{ m.role ~ ': ' ~ m.content ~ '\n' }}{% for c in m.tool_calls or [] %}{{ c|tojson }}{% endfor %}{% endfor %}
{%- if tools %}{{ tools|tojson }}{% endif %}{{ mood }}
END
printf '%s\n' '{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","tool_calls":[{"z":1,"a":2}]}],"tools":[{"y":1,"b":2}]}' >input
works tokenize --tokenizer "$tiny" --chat --chat-template chat.jinja --apply-chat-template-kwargs '{"mood":"!"}' --input -
has '{"text":"user: Hi\nassistant: \n{\"z\": 1, \"a\": 2}[{\"y\": 1, \"b\": 2}]!"}'
printf '%s\n' '{%- if messages[0].role != "system" %}' '{{- raise_exception("no system turn") }}{% endif %}' >strict.jinja
refused 3 'strict.jinja:2: the template refuses the conversation: no system turn' tokenize --tokenizer "$tiny" --chat \
  --chat-template strict.jinja --input -
printf '%s\n' '{"ids":[1,100000]}' >input
refused 3 'standard input:1: ids holds 100000' tokenize --tokenizer "$tiny" --input - --decode
refused 3 'nowhere' tokenize --tokenizer nowhere --input -

# --- grade
printf '%s\n' '{"response":"so</think>\\boxed{4}","label":"4"}' '{"response":"so</think>\\boxed{5}","label":"4"}' \
  '{"response":"so</think>\\boxed{4}"}' >rows.jsonl
works grade --rm-type deepscaler --input rows.jsonl
lines 3
has '{"reward":1.0}'
has '{"reward":0.0}'
has '{"reward":null,"error":"'
printf '%s\n' '{"response":"Answer: 4","label":"4"}' >input
works grade --rm-type dapo --input - --output graded.jsonl
lines 0
grep -qF '"acc":true' graded.jsonl || fail "graded.jsonl: $(cat graded.jsonl)"
# A command scores; one that ends leaves its rows unscored.
works grade --custom-rm-command 'sed -u "s/.*\"id\":\([0-9]*\),.*/{\"id\":\1,\"reward\":0.5}/"' --input rows.jsonl --output graded.jsonl
[ "$(sort -u graded.jsonl)" = '{"reward":0.5}' ] || fail "graded.jsonl: $(cat graded.jsonl)"
works grade --custom-rm-command 'exit 3' --input rows.jsonl --output graded.jsonl
grep -q '"reward":null.*exit status 3' graded.jsonl || fail "graded.jsonl: $(cat graded.jsonl)"
cat >if.jsonl <<'EOF'
{"response": "Only 1 number.", "metadata": {"instruction_id_list": ["count:numbers"], "kwargs": [{"N": 1}]}}
{"response": "One here. Two there.", "metadata": {"instruction_id_list": ["length_constraints:number_sentences"], "kwargs": {"num_sentences": 2, "relation": "at least"}}}
EOF
refused 3 "if.jsonl:2: metadata: ifbench: instruction length_constraints:number_sentences: it needs NLTK's punkt_tab" grade --rm-type ifbench --input if.jsonl
works grade --rm-type ifbench --nltk-data "$tiny/../reward/nltk_data" --input if.jsonl --output graded.jsonl
[ "$(cat graded.jsonl)" = "$(printf '{"reward":1.0}\n{"reward":1.0}')" ] || fail "graded.jsonl: $(cat graded.jsonl)"
refused 2 'needs --rm-url' grade --rm-type remote_rm --input rows.jsonl
refused 2 'The rules are deepscaler' grade --rm-type deepscalar --input rows.jsonl

# --- score and generate
printf '%s\n' '{"tokens":[1,2,3]}' '{"text":"How much is 2 + 2?"}' '{"tokens":[7]}' >input
works score --hf-checkpoint "$tiny" --input -
lines 3
has '"mtp_log_probs":['
has '{"log_probs":[],'
cp out all
# A row alone, from a file, gives the same line.
printf '%s\n' '{"text":"How much is 2 + 2?"}' >one.jsonl
works score --hf-checkpoint "$tiny" --input one.jsonl --threads 2
lines 1
sed -n 2p all | cmp - out || fail 'a row scored alone differs from the row in a batch'
works generate --hf-checkpoint "$tiny" --input - --max-new-tokens 9 --seed 3
lines 3
has '"finish_reason":"'
sed 's/,"accept_length".*//' out >plain
works generate --hf-checkpoint "$tiny" --input - --max-new-tokens 9 --seed 3 --rollout-speculative-algorithm EAGLE
sed 's/,"accept_length".*//' out >drafted
cmp plain drafted || fail 'drafts changed a generation'
# A stop text ends a response with the token that completes it.
works generate --hf-checkpoint "$tiny" --input one.jsonl --max-new-tokens 5 --temperature 0
has '"text":"arur xX sp","finish_reason":"length"'
works generate --hf-checkpoint "$tiny" --input one.jsonl --max-new-tokens 5 --temperature 0 --rollout-stop 'r x'
has '"text":"arur x","finish_reason":"stop"'
: >input
works generate --hf-checkpoint "$tiny" --input -
lines 0

# --- bad rows
printf '%s\n' '{"tokens":[1,2,3]}' '{"tokens":[1,2,' >bad.jsonl
refused 3 'bad.jsonl:2' score --hf-checkpoint "$tiny" --input bad.jsonl
printf '%s\n' '{"tokens":[1,2,3]}' '[1]' >bad.jsonl
refused 3 'bad.jsonl:2' generate --hf-checkpoint "$tiny" --input bad.jsonl
printf '%s\n' '{"tokens":[1,512]}' >bad.jsonl
refused 3 'bad.jsonl:1: tokens holds 512' score --hf-checkpoint "$tiny" --input bad.jsonl
printf '%s\n' '{"response":7}' >bad.jsonl
refused 3 'bad.jsonl:1' grade --rm-type math --input bad.jsonl
refused 3 'absent.jsonl' score --hf-checkpoint "$tiny" --input absent.jsonl
awk 'BEGIN { printf "{\"tokens\":[1"; for (i = 0; i < 4200; i++) printf ",1"; print "]}" }' >long.jsonl
refused 3 '4096' score --hf-checkpoint "$tiny" --input long.jsonl
refused 3 'long.jsonl:1: the prompt has 4201 tokens' generate --hf-checkpoint "$tiny" --input long.jsonl

# --- bad checkpoints
broken() {
  rm -rf broken
  mkdir broken
  cp "$tiny"/* broken/
  chmod u+w broken/*
}
score_broken() { refused 3 "$1" score --hf-checkpoint broken --input one.jsonl; }
refused 3 'nowhere/config.json' score --hf-checkpoint nowhere --input one.jsonl
broken
head -c 500000 "$tiny/model-00001-of-00002.safetensors" >broken/model-00001-of-00002.safetensors
score_broken 'model-00001-of-00002.safetensors'
head -c 5 "$tiny/model-00001-of-00002.safetensors" >broken/model-00001-of-00002.safetensors
score_broken 'model-00001-of-00002.safetensors'
printf '\377\377\377\377\377\377\377\177{}' >broken/model-00001-of-00002.safetensors
score_broken 'model-00001-of-00002.safetensors'
broken
rm broken/model-00002-of-00002.safetensors
score_broken 'model-00002-of-00002.safetensors'
# A tensor under another name of the same length: missing, and one too many.
broken
for file in broken/*.safetensors broken/*.index.json; do
  sed 's/model\.language_model\.norm\.weight/model.language_model.nurm.weight/' "$file" >file.new
  mv file.new "$file"
done
score_broken 'model.language_model.norm.weight'
grep -qF 'model.language_model.nurm.weight' err || fail "the unexpected tensor is not named: $(cat err)"
broken
sed 's/"moe_intermediate_size": 32/"moe_intermediate_size": 16/' "$tiny/config.json" >broken/config.json
score_broken 'mlp.experts.gate_up_proj'
broken
sed 's/"hidden_size": 64,/"hidden_size": "64",/' "$tiny/config.json" >broken/config.json
score_broken 'hidden_size'
broken
head -c 100 "$tiny/tokenizer.json" >broken/tokenizer.json
score_broken 'tokenizer.json'

# --- init, score, convert and back
works init --preset tiny --num-layers 2 --save made --seed 7
works init --preset tiny --num-layers 2 --save again --seed 7
cmp made/model.safetensors again/model.safetensors || fail 'the same seed made another model'
works convert --hf-checkpoint made --save apart --expert-packing per-expert
grep -qaF 'experts.0.gate_proj.weight' apart/model.safetensors || fail 'experts are not apart'
if grep -qaF 'experts.gate_up_proj' apart/model.safetensors; then fail 'fused experts are left'; fi
works convert --hf-checkpoint apart --save back --expert-packing fused
cmp made/model.safetensors back/model.safetensors || fail 'converting there and back changed the file'
for model in made apart back; do
  works score --hf-checkpoint $model --input one.jsonl --output $model.jsonl
  cmp made.jsonl $model.jsonl || fail "$model scores otherwise"
done
works convert --hf-checkpoint "$tiny" --save copy
for file in model-00001-of-00002.safetensors model-00002-of-00002.safetensors tokenizer.json config.json; do
  cmp "$tiny/$file" "copy/$file" || fail "a copy changed $file"
done
works convert --hf-checkpoint made --save half --save-hf-dtype bf16
[ "$(wc -c <half/model.safetensors)" -lt "$(wc -c <made/model.safetensors)" ] || fail 'bf16 is no smaller'

# A shape without weights is enough to train from random ones; nothing need be kept.
works init --preset tiny --num-layers 2 --config-only --save shape --tokenizer made
[ ! -e shape/model.safetensors ] || fail 'there are weights'
cmp made/tokenizer.json shape/tokenizer.json || fail 'another tokenizer'
refused 2 'tokens, but' init --preset tiny --config-only --save other --tokenizer "$2/tokenizer/qwen3_reduced.json"
echo '{"prompt":"1+1","label":"2"}' >prompt.jsonl
works train --hf-checkpoint shape --random-init --prompt-data prompt.jsonl --input-key prompt --label-key label \
  --rm-type math --num-rollout 1 --rollout-batch-size 1 --n-samples-per-prompt 2 --rollout-max-response-len 9 \
  --ignore-eos --run-dir kept --save none --save-hf none
[ ! -e kept/checkpoints ] && [ ! -e kept/hf ] || fail 'something was kept'
grep -qF '"rollout/response_len/min":9' kept/metrics.jsonl || fail 'a response ended early'
refused 2 'rollout-forced-accept-length' train --hf-checkpoint shape --rollout-forced-accept-length 2

# --- torch_dist and back
dist=$2/torch_dist
works convert --from hf --to torch_dist --hf-checkpoint "$tiny" --save dist --mtp-num-layers 1 --convert-workers 2
[ "$(cat dist/latest_checkpointed_iteration.txt)" = release ] || fail 'no tracker'
[ -s dist/release/.metadata ] && [ -s dist/release/common.pt ] && [ -s dist/release/__1_0.distcp ] || fail 'files lack'
works convert --from torch_dist --to hf --load dist --hf-checkpoint "$tiny" --save undone
for file in model-00001-of-00002.safetensors model-00002-of-00002.safetensors tokenizer.json config.json; do
  cmp "$tiny/$file" "undone/$file" || fail "torch_dist and back changed $file"
done
refused 2 'each process is one worker' convert --to torch_dist --hf-checkpoint "$tiny" --save by_ranks --nproc 2 --convert-workers 3
works convert --to torch_dist --hf-checkpoint "$tiny" --save by_ranks --nproc 3
[ -s by_ranks/release/__2_0.distcp ] || fail 'the third process wrote nothing'
works convert --from torch_dist --load by_ranks --hf-checkpoint "$tiny" --save undone_by_ranks --nproc 2
for file in model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json; do
  cmp "undone/$file" "undone_by_ranks/$file" || fail "processes that convert together changed $file"
done
works convert --from torch_dist --load "$dist/release" --hf-checkpoint "$tiny" --save golden
cp one.jsonl input
works score --hf-checkpoint golden --input - --output golden.jsonl
works score --hf-checkpoint "$tiny" --load "$dist" --input - --output loaded.jsonl
cmp golden.jsonl loaded.jsonl || fail 'weights of --load score otherwise'
works inspect --load dist
has 'mtp.layers.0.transformer_layer.mlp.experts.experts.linear_fc1.weight'
has '145 tensors in 2 files'
works inspect --hf-checkpoint "$dist"
has '145 tensors in 4 files'
works convert --to torch_dist --hf-checkpoint "$tiny" --save bare --mtp-num-layers 0
refused 3 '--mtp-num-layers 0' convert --from torch_dist --load bare --hf-checkpoint "$tiny" --save gone
works convert --from torch_dist --load bare --hf-checkpoint "$tiny" --save whole --mtp-num-layers 0
cmp "$tiny/model-00002-of-00002.safetensors" whole/model-00002-of-00002.safetensors || fail 'MTP of the source'
refused 2 '--load' convert --from torch_dist --hf-checkpoint "$tiny" --save gone
refused 2 'one of the two must be hf' convert --from torch_dist --to torch_dist --load dist --hf-checkpoint "$tiny" \
  --save gone
refused 2 '--load dist is read with' convert --load dist --hf-checkpoint "$tiny" --save gone
refused 2 '--convert-workers takes' convert --hf-checkpoint "$tiny" --save gone --convert-workers 2
refused 2 '--expert-packing fused' convert --to torch_dist --hf-checkpoint "$tiny" --save gone --expert-packing fused
refused 2 '--mtp-num-layers takes' convert --hf-checkpoint "$tiny" --save gone --mtp-num-layers 0
refused 2 '--mtp-num-layers 2' convert --to torch_dist --hf-checkpoint "$tiny" --save gone --mtp-num-layers 2
refused 2 'names the checkpoint itself' convert --from torch_dist --load dist --hf-checkpoint "$tiny" --save dist
refused 3 'no checkpoint in that folder' score --hf-checkpoint "$tiny" --load nowhere --input -
refused 3 'neither latest_checkpointed_iteration.txt' convert --from torch_dist --load nowhere \
  --hf-checkpoint "$tiny" --save gone
printf 'cposix\nsystem\n(S"touch ran"\ntR.' >dist/release/.metadata
refused 3 'dist/release/.metadata' convert --from torch_dist --load dist --hf-checkpoint "$tiny" --save gone
refused 3 'dist/release/.metadata' inspect --load dist
[ ! -e ran ] || fail 'a pickle was run'
[ ! -e gone ] || fail 'a refused conversion left something'
mkdir other
echo notes >other/notes.txt
refused 3 'other' init --preset tiny --num-layers 2 --save other
refused 2 '--preset huge' init --preset huge --save huge

# --- a disk that is full, as a limit on the size of files
got=0
(
  trap '' XFSZ
  ulimit -f 64
  "$furlong" init --preset tiny --num-layers 2 --save full 2>err
) || got=$?
[ "$got" = 4 ] || fail "a full disk gave exit code $got: $(cat err)"
[ ! -e full/model.safetensors ] || fail 'a cut-off checkpoint was left'
for left in full*; do
  [ ! -d "$left" ] || [ -z "$(ls -A "$left")" ] || fail "left behind: $(ls -A "$left")"
done
if [ -e /dev/full ]; then
  got=0
  "$furlong" grade --rm-type math --input rows.jsonl >/dev/full 2>err || got=$?
  [ "$got" = 4 ] || fail "standard output that is full gave exit code $got: $(cat err)"
fi

# --- one rollout of training, its resume, an evaluation
printf '%s\n' '{"prompt":[{"role":"user","content":"What is 1 + 2?"}],"label":"3"}' \
  '{"prompt":[{"role":"user","content":"What is 2 + 2?"}],"label":"4"}' >prompts.jsonl
cat >run.toml <<EOF
hf_checkpoint = "$tiny"
prompt_data = "prompts.jsonl"
input_key = "prompt"
label_key = "label"
chat_template = "qwen3.5"
rm_type = "deepscaler"
num_rollout = 1
rollout_batch_size = 2
n_samples_per_prompt = 2
rollout_max_response_len = 6
rollout_speculative_algorithm = "EAGLE"
enable_mtp_training = true
run_dir = "run"
EOF
works train --config run.toml
for file in config.toml metrics.jsonl plan.txt log.txt hf/config.json hf/model.safetensors.index.json \
  checkpoints/latest_checkpointed_iteration.txt; do
  [ -s "run/$file" ] || fail "the run has no $file"
done
[ -s run/tensorboard/events.out.tfevents.0000000000.furlong ] || fail 'the run has no TensorBoard events'
works inspect --run-dir run --rollout -1
has 'run/rollout/0.jsonl: 4 of 4 samples'
has 'all    4 samples'
works inspect --run-dir run --rollout 0 --sample 2 --text
has '1 of 4 samples'
has 'response:'
refused 3 'rollouts 0 are' inspect --run-dir run --rollout 7
refused 3 'nowhere/rollout has no trajectories' inspect --run-dir nowhere --rollout 0
refused 2 'need --rollout' inspect --hf-checkpoint "$tiny" --mixed
works train --config run.toml --run-dir unmade --dry-run
has 'least time of a step'
has 'estimate: '
[ ! -e unmade ] || fail 'a dry run has left something behind'
grep -qF '"train/mtp_loss"' run/metrics.jsonl || fail "metrics: $(cat run/metrics.jsonl)"
refused 2 '--num-rollout' train --config run.toml
works train --config run.toml --num-rollout 2
[ "$(wc -l <run/metrics.jsonl)" = 2 ] || fail "metrics: $(cat run/metrics.jsonl)"
# What a run wrote down is a recipe for it.
sed 's/^run_dir = .*/run_dir = "rerun"/; s/^save = .*//' run/config.toml >rerun.toml
works train --config rerun.toml
cmp run/hf/model-00001-of-00002.safetensors rerun/hf/model-00001-of-00002.safetensors || fail 'the rerun differs'
works score --hf-checkpoint run/hf --input one.jsonl
lines 1
works eval --hf-checkpoint run/hf --eval-prompt-data sums prompts.jsonl --input-key prompt --label-key label \
  --chat-template qwen3.5 --rm-type deepscaler --eval-max-response-len 6 --n-samples-per-eval-prompt 2 --log-passrate
has 'eval/sums '
has 'eval/sums-pass@2 '
refused 3 'no/such/run' train --config run.toml --run-dir elsewhere --load no/such/run
printf '%s\n' 'num_rolout = 3' >typo.toml
refused 2 'typo.toml:1: num_rolout' train --config typo.toml
# Memory is planned before anything is loaded: a checkpoint without weights is refused for its size first.
mkdir weightless
cp "$tiny"/*.json weightless
rm -f weightless/*.safetensors*
cp one.jsonl input
refused 4 'nothing was loaded' generate --hf-checkpoint weightless --input - --host-memory-gib 0.05
refused 4 'host memory' score --hf-checkpoint weightless --input - --host-memory-gib 0.05
refused 4 'rollout slots' eval --hf-checkpoint weightless --eval-prompt-data sums prompts.jsonl --input-key prompt \
  --label-key label --chat-template qwen3.5 --rm-type deepscaler --eval-max-response-len 6 --host-memory-gib 0.05
refused 3 'weightless' generate --hf-checkpoint weightless --input -
# --- serve
if "$furlong" serve --hf-checkpoint weightless --api-key short 2>err || grep -q 'built without its server' err; then
  refused 2 'FURLONG_SERVER' serve --hf-checkpoint "$tiny"
else
  refused 2 '--host 0.0.0.0: beyond this machine' serve --hf-checkpoint weightless --host 0.0.0.0 --port 0
  refused 2 'a key of 5 bytes' serve --hf-checkpoint weightless --port 0 --api-key short
  refused 2 'leave one out' serve --hf-checkpoint weightless --api-key 0123456789abcdef --api-key-file x
  refused 3 'no-such-file' serve --hf-checkpoint weightless --port 0 --api-key-file no-such-file
  refused 3 'weightless' serve --hf-checkpoint weightless --port 0
  echo '{% for i in range(1000000000) %}{{ i }}{% endfor %}' >endless.jinja
  refused 3 'would refuse a plain question: endless.jinja:1' serve --hf-checkpoint weightless --port 0 --chat-template endless.jinja
  refused 2 'runs in one process' serve --hf-checkpoint "$tiny" --nproc 2
  printf 'a key of many bytes\n' >key
  "$furlong" serve --hf-checkpoint "$tiny" --port 0 --threads 1 --api-key-file key >out 2>err &
  server=$!
  tries=0
  until grep -q '^listening on http://127\.0\.0\.1:[0-9]*$' out; do
    tries=$((tries + 1))
    [ $tries -lt 200 ] || fail "the server does not listen: $(cat err)"
    sleep 0.1
  done
  port=$(sed 's/.*://' out)
  refused 4 'Address already in use' serve --hf-checkpoint weightless --port "$port"
  kill -TERM $server
  got=0
  wait $server || got=$?
  [ "$got" = 143 ] || fail "exit code $got of a server after SIGTERM: $(cat err)"
  grep -q 'SIGTERM: no further requests' err || fail "not said: $(cat err)"
fi
works inspect --hf-checkpoint "$tiny"
has 'lm_head.weight'
recipe=$2/../../recipes/qwen3.5-35b-a3b-mtp.toml
works inspect --plan --config "$recipe" --gpus 8
has 'optimizer moments'
has 'rollout: decode'
has 'it fits'
got=0
"$furlong" inspect --plan --config "$recipe" --gpus 8 --gpu-memory-gib 50 >out 2>err || got=$?
[ "$got" = 4 ] || fail "exit code $got of a plan that does not fit"
has 'what would fit:'
has '8 GPUs with --tensor-model-parallel-size 2'
has 'GPU memory: '
refused 2 '256 experts cannot be split by expert parallel size 6' inspect --plan --config "$recipe" --gpus 6 \
  --expert-model-parallel-size 6
refused 2 '--preset' inspect --plan
printf 'commands_test: passed\n'
