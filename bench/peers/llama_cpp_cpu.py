"""Prefill and decode of one checkpoint on the CPU, furlong beside llama.cpp, by turns in one run, 2 threads, weights and cache in
fp32, or in bf16 as checkpoints are released (llama.cpp keeps its cache in fp16 then, its default):

    build/cpu/furlong init --preset small --save small
    python3 bench/peers/llama_cpp_cpu.py build/cpu/furlong small LLAMA_CPP [fp32|bf16]

LLAMA_CPP is the source of llama.cpp, whose own converter writes the same weights as GGUF, once, beside the checkpoint (without the MTP head
and the tokenizer, which are not used here): in the source distribution of llama-cpp-python it is vendor/llama.cpp. python3 has llama_cpp
(built on this machine, with -DGGML_NATIVE=ON), torch and transformers. As in transformers_cpu.py furlong's rates are differences between whole runs of
`furlong generate`; llama.cpp is timed inside its process, warm. Each figure is the median of five, ours in a row: by turns, the run of ours that follows one of llama.cpp's, in
its standing process, takes a fifth longer from begin to end, and the next one does not (docs/performance.md). Before any timing both draw the likeliest tokens of one prompt, which must be the same."""
import ctypes
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import llama_cpp as llama
import numpy

program, folder, source = sys.argv[1], sys.argv[2], sys.argv[3]
dtype = sys.argv[4] if len(sys.argv) > 4 else "fp32"
their_dtype = {"fp32": "f32", "bf16": "bf16"}[dtype]
threads, repeats, vocab, most = 2, 5, 256, 32


def convert():
    """The GGUF file, written once beside the checkpoint."""
    target = Path(folder) / f"{dtype}-no-mtp.gguf"
    if not target.exists():
        script = ("import runpy, sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/gguf-py']; import conversion.qwen as q\n"
                  "def no_words(self): self._set_vocab_none(); self.gguf_writer.add_vocab_size(self.hparams['vocab_size'])\n"
                  "for c in (q.Qwen3_5MoeTextModel, q.Qwen3_5TextModel): c.set_vocab = no_words\n"
                  "sys.argv = ['convert_hf_to_gguf.py', *sys.argv[2:]]\n"
                  "runpy.run_path(sys.path[0] + '/convert_hf_to_gguf.py', run_name='__main__')")
        subprocess.run([sys.executable, "-c", script, source, folder, "--outtype", their_dtype, "--no-mtp", "--outfile", str(target)], check=True,
                       capture_output=True)
    return target


def prompt(i, n):
    return [(7 * p * p + 13 * i + 5) % vocab for p in range(n)]


def ours(prompts, new, output="/dev/null"):
    """Seconds of a whole run."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
        for p in prompts:
            f.write(json.dumps({"tokens": p}) + "\n")
        f.flush()
        start = time.perf_counter()
        subprocess.run([program, "generate", "--hf-checkpoint", folder, "--dtype", dtype, "--threads", str(threads), "--temperature", "0", "--ignore-eos",
                        "--max-new-tokens", str(new), "--input", f.name, "--output", output], check=True, capture_output=True)
        return time.perf_counter() - start


quiet = llama.llama_log_callback(lambda *_: None)
llama.llama_log_set(quiet, ctypes.c_void_p(0))
llama.llama_backend_init()
load = llama.llama_model_default_params()
load.use_mmap = False
model = llama.llama_model_load_from_file(str(convert()).encode(), load)
assert model, "llama.cpp did not load the file"
size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
batch = llama.llama_batch_init(2048, 0, 1)


def context(tokens, sequences):
    c = llama.llama_context_default_params()
    c.n_ctx, c.n_batch, c.n_ubatch, c.n_seq_max = tokens * sequences, 2048, 512, sequences
    c.n_threads = c.n_threads_batch = threads
    c.type_k = c.type_v = llama.GGML_TYPE_F32 if dtype == "fp32" else llama.GGML_TYPE_F16
    made = llama.llama_init_from_model(model, c)
    assert made, "llama.cpp made no context"
    return made


def decode(ctx, rows):
    """One call over rows of (token, position, sequence, whether logits are wanted)."""
    batch.n_tokens = len(rows)
    for i, (token, position, sequence, wanted) in enumerate(rows):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wanted
        batch.seq_id[i][0] = sequence
    assert llama.llama_decode(ctx, batch) == 0


def likeliest(ctx, count):
    """Of the rows of the last call whose logits were wanted, in order."""
    logits = numpy.ctypeslib.as_array(llama.llama_get_logits(ctx), shape=(count, size))
    return [int(token) for token in logits.argmax(1)]


def read(ctx, prompts):
    decode(ctx, [(t, p, s, p + 1 == len(tokens)) for s, tokens in enumerate(prompts) for p, t in enumerate(tokens)])
    return likeliest(ctx, len(prompts))


def theirs_prefill(n):
    ctx = context(n, 1)
    start = time.perf_counter()
    read(ctx, [prompt(0, n)])
    seconds = time.perf_counter() - start
    llama.llama_free(ctx)
    return seconds


def theirs_decode(sequences, new):
    """Seconds and tokens."""
    ctx = context(8 + new + 8, sequences)
    tokens = [[t] for t in read(ctx, [prompt(i, 8) for i in range(sequences)])]
    start = time.perf_counter()
    for step in range(new):
        decode(ctx, [(t[-1], 8 + step, s, True) for s, t in enumerate(tokens)])
        for t, token in zip(tokens, likeliest(ctx, sequences)):
            t.append(token)
    seconds = time.perf_counter() - start
    llama.llama_free(ctx)
    return seconds, tokens


def rate(tokens, seconds):
    return tokens / statistics.median(seconds() for _ in range(repeats))


n, many = 1024, 8
with tempfile.NamedTemporaryFile(suffix=".jsonl") as f:
    ours([prompt(0, 8)], 16, f.name)
    mine = json.loads(Path(f.name).read_text().splitlines()[0])["tokens"][-16:]
found = theirs_decode(1, 15)[1][0]
agreed = next((i for i, (a, b) in enumerate(zip(mine, found)) if a != b), 16)
print(f"llama.cpp by llama-cpp-python {llama.__version__}, {threads} threads, {dtype}, {folder}; {agreed} of 16 tokens the same")
assert agreed >= 8 or dtype == "bf16", (mine, found)  # in bf16 roundings decide between likeliest tokens of a random model
theirs_prefill(n)
a = rate(n, lambda: (ours([prompt(i, n) for i in range(1 + many)], 1) - ours([prompt(0, n)], 1)) / many)
b = rate(n, lambda: theirs_prefill(n))
print(f"prefill of {n} tokens: furlong {a:.0f} tok/s, llama.cpp {b:.0f} tok/s: {a / b:.2f}x")
for sequences in (1, 8, most):
    prompts = [prompt(i, 8) for i in range(sequences)]
    new = max(192, 1024 // sequences)  # one sequence's 192 take as long as starting the program varies
    a = rate(sequences * new, lambda: ours(prompts, 64 + new) - ours(prompts, 64))
    b = rate(sequences * new, lambda: theirs_decode(sequences, new)[0])
    print(f"decode, batch {sequences}: furlong {a:.0f} tok/s, llama.cpp {b:.0f} tok/s: {a / b:.2f}x")
