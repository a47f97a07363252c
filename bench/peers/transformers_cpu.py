"""Training, decoding and prefill of one shape on the CPU, furlong beside transformers on the same cores and the same work:

    build/cpu/furlong init --preset mini --save mini
    python3 bench/peers/transformers_cpu.py build/cpu/furlong mini [--dtype bf16] [--threads 1] [--clock processor]

furlong's figures are the medians of `furlong bench`, run before and after transformers; transformers is timed in this process, warm, the
median of five. Training is forward, loss and backward of 8 sequences of 512 tokens (transformers: 8 rows without padding) and AdamW.
The clock `processor` counts the seconds of the processor, for a machine that others use; with one thread."""
import argparse
import re
import statistics
import subprocess
import time

import torch
import transformers

parser = argparse.ArgumentParser()
parser.add_argument("program")
parser.add_argument("folder")
parser.add_argument("--preset", default="mini")
parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16"])
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--clock", default="wall", choices=["wall", "processor"])
parser.add_argument("--repeats", type=int, default=5)
arguments = parser.parse_args()
clock = time.perf_counter if arguments.clock == "wall" else time.process_time
torch.set_num_threads(arguments.threads)
sequences, length, prompt_length, prefill_length, steps = 8, 512, 128, 1024, 48
if arguments.preset == "slice":
    sequences = 2


def ours():
    """The name of each figure of `furlong bench`, and its median in tokens/s."""
    out = subprocess.run([arguments.program, "bench", "--preset", arguments.preset, "--dtype", arguments.dtype, "--threads", str(arguments.threads),
                          "--bench-clock", arguments.clock], check=True, capture_output=True, text=True).stdout
    print(out, flush=True)
    rows = (re.match(r"(decoding, \d+|prefill|training).*?\s{2,}(\d+)\s", line) for line in out.splitlines())
    return {row[1]: float(row[2]) for row in rows if row}


def timed(f):
    f()
    seconds = []
    for _ in range(arguments.repeats):
        start = clock()
        f()
        seconds.append(clock() - start)
    return statistics.median(seconds)


before = ours()
model = transformers.AutoModelForCausalLM.from_pretrained(arguments.folder, dtype=torch.float32 if arguments.dtype == "fp32" else torch.bfloat16)
print(f"transformers {transformers.__version__}, torch {torch.__version__}, {arguments.threads} threads, {arguments.dtype}, {type(model).__name__}")
vocabulary = model.get_input_embeddings().num_embeddings


def tokens(rows, n):
    return torch.randint(0, vocabulary, (rows, n), generator=torch.Generator().manual_seed(7))


def prefill():
    with torch.no_grad():
        model(input_ids=tokens(1, prefill_length), use_cache=True, logits_to_keep=1)


def decode(batch):
    """Seconds of one step, prompts not counted."""
    with torch.no_grad():
        out = model(input_ids=tokens(batch, prompt_length), use_cache=True, logits_to_keep=1)
        seconds = []
        for _ in range(steps):
            start = clock()
            probabilities = torch.softmax(out.logits[:, -1].float(), -1)
            out = model(input_ids=torch.multinomial(probabilities, 1), past_key_values=out.past_key_values, use_cache=True)
            seconds.append(clock() - start)
        return statistics.median(seconds)


model.eval()
theirs = {f"decoding, {batch}": batch / statistics.median(decode(batch) for _ in range(3)) for batch in (1, 32)}
theirs["prefill"] = prefill_length / timed(prefill)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
batch = tokens(sequences, length)


def train():
    optimizer.zero_grad()
    model(input_ids=batch, labels=batch).loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


theirs["training"] = sequences * length / timed(train)
after = ours()
for name, rate in theirs.items():
    print(f"{name}: furlong {before[name]:.0f} and {after[name]:.0f} tok/s, transformers {rate:.0f} tok/s: {min(before[name], after[name]) / rate:.2f}x")
