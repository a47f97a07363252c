"""Prefill and decode of one checkpoint on the CPU, furlong beside transformers, by turns in one run, fp32, 2 threads:

    build/cpu/furlong init --preset small --save small
    python3 bench/peers/transformers_cpu.py build/cpu/furlong small

furlong's rates are differences between whole runs of `furlong generate`, so that starting and loading do not count; transformers is
timed inside its process, warm. Each figure is the median of five."""
import json
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import transformers

program, folder = sys.argv[1], sys.argv[2]
threads, repeats = 2, 5
torch.set_num_threads(threads)
model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
vocab = 256


def prompt(i, n):
    return [(7 * p * p + 13 * i + 5) % vocab for p in range(n)]


def ours(prompts, new):
    """Seconds of a whole run."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as f:
        for p in prompts:
            f.write(json.dumps({"tokens": p}) + "\n")
        f.flush()
        start = time.perf_counter()
        subprocess.run([program, "generate", "--hf-checkpoint", folder, "--dtype", "fp32", "--threads", str(threads), "--temperature", "0", "--ignore-eos",
                        "--max-new-tokens", str(new), "--input", f.name, "--output", "/dev/null"], check=True, capture_output=True)
        return time.perf_counter() - start


def theirs_prefill(n):
    ids = torch.tensor([prompt(0, n)])
    with torch.no_grad():
        start = time.perf_counter()
        model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return time.perf_counter() - start


def theirs_decode(batch, new):
    ids = torch.tensor([prompt(i, 8) for i in range(batch)])
    with torch.no_grad():
        out = model(input_ids=ids, use_cache=True)
        start = time.perf_counter()
        for _ in range(new):
            out = model(input_ids=out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
        return time.perf_counter() - start


def median(f):
    return statistics.median(f() for _ in range(repeats))


n, many = 1024, 8
theirs_prefill(n), theirs_decode(1, 4)
print(f"transformers {transformers.__version__}, torch {torch.__version__}, {threads} threads, {folder}")
a = n / median(lambda: (ours([prompt(i, n) for i in range(1 + many)], 1) - ours([prompt(0, n)], 1)) / many)
b = n / median(lambda: theirs_prefill(n))
print(f"prefill of {n} tokens: furlong {a:.0f} tok/s, transformers {b:.0f} tok/s: {a / b:.2f}x")
for batch in (1, 8, 32):
    prompts = [prompt(i, 8) for i in range(batch)]
    a = batch * 192 / median(lambda: ours(prompts, 256) - ours(prompts, 64))
    b = batch * 48 / median(lambda: theirs_decode(batch, 48))
    print(f"decode, batch {batch}: furlong {a:.0f} tok/s, transformers {b:.0f} tok/s: {a / b:.2f}x")
