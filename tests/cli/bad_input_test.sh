#!/bin/bash
# Bad files and data, seen from outside: bad_input_test.sh FURLONG DATA. One part for each row of the table in
# docs/reliability.md; all are refused before anything is sampled or trained, with an exit code and words to act on.
set -eu
furlong=$1
data=$2
tiny=$2/tiny
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
export LC_ALL=C

fail() {
  printf 'bad_input_test: %s\n' "$*" >&2
  exit 1
}
# refused CODE WORDS ARGS...
refused() {
  local code=$1 words=$2 got=0
  shift 2
  "$furlong" "$@" >out 2>err </dev/null || got=$?
  [ $got = "$code" ] || fail "exit code $got instead of $code: furlong $* ($(head -c 600 err))"
  grep -qF -e "$words" err || fail "'$words' is not in: $(head -c 600 err) (furlong $*)"
}
works() {
  "$furlong" "$@" >out 2>err </dev/null || fail "exit code $?: furlong $* ($(head -c 600 err))"
}
# within SECONDS ARGS...: it works, in time.
within() {
  local most=$1 start
  start=$(date +%s)
  shift
  works "$@"
  [ $(($(date +%s) - start)) -le "$most" ] || fail "$(($(date +%s) - start)) s, more than $most: furlong $*"
}
repeat() { head -c "$2" /dev/zero | tr '\0' "$1"; }

# --- B1: rows that are no JSON, or not of the wanted form
train=(train --hf-checkpoint "$tiny" --chat-template qwen3.5 --rm-type math --input-key prompt --label-key label --num-rollout 1
  --rollout-batch-size 1 --n-samples-per-prompt 2 --rollout-max-response-len 4 --run-dir run --save none --save-hf none)
good='{"prompt":[{"role":"user","content":"1+1"}],"label":"2"}'
# rows WORDS ROW: a good row, and one that is refused.
rows() {
  printf '%s\n%b\n' "$good" "$2" >rows.jsonl
  refused 3 "$1" "${train[@]}" --prompt-data rows.jsonl
  [ ! -s run/metrics.jsonl ] || fail 'a step was made'
}
rows 'rows.jsonl:2:' '{"prompt":'
rows 'rows.jsonl:2:' '{"prompt":"x","label":NaN}'
rows 'rows.jsonl:2:' '{"prompt":"x\0377","label":"1"}'
rows 'rows.jsonl:2:' '{"prompt":"\\ud800","label":"1"}'
rows 'occurs twice' '{"prompt":"x","prompt":"y","label":"1"}'
rows 'NUL byte' '{"prompt":"x\0000y","label":"1"}'
rows 'rows.jsonl:2' '{"text":"x","label":"1"}'
rows 'rows.jsonl:2' '{"prompt":7,"label":"1"}'
rows 'nested deeper' "{\"prompt\":$(repeat '[' 100000)"
printf '\357\273\277%s\r\n\r\n%s\r\n' "$good" "$good" >rows.jsonl
works "${train[@]}" --prompt-data rows.jsonl
rm -rf run
: >rows.jsonl
refused 3 'rows.jsonl' "${train[@]}" --prompt-data rows.jsonl
refused 3 'absent.jsonl' "${train[@]}" --prompt-data absent.jsonl

# Some bad rows may be skipped, by name and up to one in a hundred.
{
  printf '%s\n{"prompt":\n{"label":"2"}\n' "$good"
  for _ in $(seq 198); do printf '%s\n' "$good"; done
} >rows.jsonl
refused 3 'rows.jsonl:2:' "${train[@]}" --prompt-data rows.jsonl
refused 3 'rows.jsonl:2:' "${train[@]}" --prompt-data rows.jsonl --data-on-error error
works "${train[@]}" --prompt-data rows.jsonl --data-on-error skip
for words in '2 of 201 rows are bad' 'rows.jsonl:2:' 'rows.jsonl:3'; do
  grep -qF "$words" err || fail "'$words' is not in: $(head -c 600 err)"
done
rm -rf run
printf '{"prompt":[{"role":"user","content":"%s"}],"label":"2"}\n' "$(repeat '7' 6000)" >>rows.jsonl
refused 3 '3 of 202 rows are bad, more than the 1 %' "${train[@]}" --prompt-data rows.jsonl --data-on-error skip
grep -qF 'rows.jsonl:202' err || fail "the prompt that cannot fit is not named: $(head -c 600 err)"
[ ! -s run/metrics.jsonl ] || fail 'a step was made'

# --- B2: a prompt that cannot fit
printf '{"prompt":[{"role":"user","content":"%s"}],"label":"2"}\n' "$(repeat '7' 6000)" >long.jsonl
refused 3 'long.jsonl:1' "${train[@]}" --prompt-data long.jsonl

# --- B3: settings
cat >bad.toml <<END
num_rolout = 3
lr = "much"
rollout_batch_size = -1
END
refused 2 'bad.toml:1: num_rolout' train --config bad.toml
for words in 'did you mean --num-rollout' 'bad.toml:2: lr' 'bad.toml:3: rollout_batch_size'; do
  grep -qF "$words" err || fail "not all at once: $(cat err)"
done
refused 2 'temperature' "${train[@]}" --rollout-temperature -1

# --- B4, B5, B6: weights
printf '{"tokens":[1,2,3]}\n' >one.jsonl
broken() {
  rm -rf broken
  cp -r "$tiny" broken
  chmod -R u+w broken
}
scored() { refused 3 "$1" score --hf-checkpoint broken --input one.jsonl; }
shard=broken/model-00001-of-00002.safetensors
# header LENGTH TEXT: a file of this header; the length in the eight bytes as printf takes them.
header() { printf '%b%s' "$1" "$2" >$shard; }
broken
header '\0377\0377\0377\0377\0377\0377\0377\0377' '{}'
scored "$(basename $shard)"
header '\0002\0\0\0\0\0\0\0' '[]'
scored "$(basename $shard)"
text='{"t":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,8]}}'
header "$(printf '\\0%o\\0\\0\\0\\0\\0\\0\\0' ${#text})" "$text"
scored 'tensor t'
broken
sed -i 's/model-00001-of-00002/..\/x/' broken/model.safetensors.index.json
scored '../x'
broken
rm $shard
scored "$(basename $shard)"
broken
rm -rf broken/*.index.json
scored 'model.safetensors'
broken
sed -i 's/model\.language_model\.norm\.weight/model.language_model.nurm.weight/' broken/*.safetensors broken/*.index.json
scored 'model.language_model.norm.weight'

# Weights that know no language.
printf '{"prompt":[{"role":"user","content":"%s"}],"label":"2"}\n' "$(repeat '7' 200)" >plain.jsonl
refused 3 'nats a token' "${train[@]}" --prompt-data plain.jsonl --max-text-loss 3
[ ! -s run/metrics.jsonl ] || fail 'a step was made'
works "${train[@]}" --prompt-data plain.jsonl
grep -qF 'the run goes on' err || fail "no warning: $(head -c 600 err)"
rm -rf run
works "${train[@]}" --prompt-data plain.jsonl --max-text-loss 0
if grep -F 'nats a token' err; then fail 'the text was asked for'; fi
rm -rf run

# --- B7: another model
broken
sed -i 's/"num_hidden_layers": *[0-9]*/"num_hidden_layers": 1000000000/' broken/config.json
scored 'num_hidden_layers'
broken
sed -i 's/"model_type": *"[a-z0-9_]*"/"model_type": "mamba"/g' broken/config.json
scored 'model_type'
broken
printf '{' >broken/config.json
scored 'config.json'

# --- B8: tokenizers
printf '{"text":"Hi"}\n' >text.jsonl
tokenizer() {
  broken
  sed -i "$2" broken/tokenizer.json
  refused 3 "$1" tokenize --tokenizer broken --input text.jsonl
}
tokenizer 'normalizer' 's/"NFC"/"NFKD"/'
tokenizer 'model' 's/"BPE"/"WordPiece"/'
tokenizer 'tokenizer.json' '1s/{/[/'
broken
head -c 300 "$tiny/tokenizer.json" >broken/tokenizer.json
refused 3 'tokenizer.json' tokenize --tokenizer broken --input text.jsonl

# --- B9: pickles
cp -r "$data/torch_dist" dist
chmod -R u+w dist
printf 'cposix\nsystem\n(S"touch ran"\ntR.' >dist/release/.metadata
refused 3 '.metadata' convert --from torch_dist --load dist --hf-checkpoint "$tiny" --save gone
[ ! -e ran ] || fail 'a pickle was run'

# --- B10: a megabyte takes at most a second of one processor
encoded() {
  local megabytes=$1 used
  used=$(TIMEFORMAT=%U && { time works tokenize --tokenizer "$data/tokenizer/qwen3_reduced.json" --input bomb.jsonl; } 2>&1) ||
    fail "$used"
  awk -v used="$used" -v most="$megabytes" 'BEGIN { exit !(used > 0 && used <= most) }' || fail "$used s for $megabytes MB"
}
for character in a ' ' "'" 7; do
  printf '{"text":"%s"}\n' "$(repeat "$character" 2000000)" >bomb.jsonl
  encoded 2
done
awk 'BEGIN { printf "{\"text\":\"e"; for (i = 0; i < 500000; i++) printf "\xcc\x81"; print "\"}" }' >bomb.jsonl
encoded 1

# --- B11: templates
printf '{"messages":[{"role":"user","content":"Hi"}]}\n' >chat.jsonl
template() {
  printf '%s' "$2" >t.jinja
  refused 3 "$1" tokenize --tokenizer "$tiny" --chat --chat-template t.jinja --input chat.jsonl
}
template 't.jinja:1' '{% for i in range(1000000000) %}{{ i }}{% endfor %}'
template 't.jinja:1' '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}'
template 't.jinja:1' '{{ messages[0].__class__.__mro__ }}'
template 't.jinja:1' '{% if %}'
template 't.jinja' '{{ "x" * 1000000000 }}'

# --- B12: special tokens in a text are the ids that transformers gives
printf '{"text":"<|im_end|>"}\n' >text.jsonl
works tokenize --tokenizer "$tiny" --input text.jsonl
grep -qF '{"ids":[498]}' out || fail "ids: $(cat out)"

# --- B13: answers that attack the grader
{
  printf '{"response":"</think>\\\\boxed{%s","label":"4"}\n' "$(repeat '{' 100000)"
  printf '{"response":"</think>\\\\boxed{9**9**9**9}","label":"4"}\n'
  printf '{"response":"</think>\\\\boxed{%s}","label":"4"}\n' "$(repeat '9' 1000000)"
  printf '{"response":"</think>\\\\boxed{\\\\input{/etc/passwd}}","label":"4"}\n'
  printf '{"response":"</think>\\\\boxed{__import__(1)}","label":"4"}\n'
  printf '{"response":"</think>\\\\boxed{4}","label":"4"}\n'
} >attack.jsonl
for rule in deepscaler math dapo; do
  within 10 grade --rm-type $rule --input attack.jsonl
  [ "$(wc -l <out)" = 6 ] || fail "$(wc -l <out) verdicts of $rule"
done
printf 'bad_input_test: passed\n'
