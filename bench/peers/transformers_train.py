"""transformers on the work of `bench_gpu train`: forward, loss and backward of k layers and the head at true shapes,
8,192 packed tokens, bf16, full recompute, random weights; grouped_mm experts and PyTorch's SDPA. Prints one line.

    python3 bench/peers/transformers_train.py [layers] [tokens]

The delta rule runs in PyTorch unless flash-linear-attention is installed; the line says which. There is no MTP head."""
import sys
import time

import torch
import transformers
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as modeling
from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig

layers = int(sys.argv[1]) if len(sys.argv) > 1 else 4
tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 8192
torch.manual_seed(0)
config = Qwen3_5MoeTextConfig(
    vocab_size=248320, hidden_size=2048, num_hidden_layers=layers, num_attention_heads=16, num_key_value_heads=2,
    head_dim=256, linear_num_key_heads=16, linear_num_value_heads=32, linear_key_head_dim=128,
    linear_value_head_dim=128, linear_conv_kernel_dim=4, num_experts=256, num_experts_per_tok=8,
    moe_intermediate_size=512, shared_expert_intermediate_size=512,
    layer_types=["full_attention" if i % 4 == 3 else "linear_attention" for i in range(layers)])
config._attn_implementation = "sdpa"
config._experts_implementation = "grouped_mm"
torch.set_default_dtype(torch.bfloat16)
with torch.device("cuda"):
    model = modeling.Qwen3_5MoeForCausalLM(config)
torch.set_default_dtype(torch.float32)
model.train()
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
ids = torch.randint(0, config.vocab_size, (1, tokens), device="cuda")


def step():
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0]
    loss = 0
    for begin in range(0, tokens - 1, 2048):  # logits of 2,048 rows at a time, as a careful user would

        def part(h, y):
            return torch.nn.functional.cross_entropy(model.lm_head(h).float(), y, reduction="sum")

        end = min(begin + 2048, tokens - 1)
        loss = loss + torch.utils.checkpoint.checkpoint(part, hidden[begin:end], ids[0, begin + 1:end + 1],
                                                        use_reentrant=False)
    (loss / (tokens - 1)).backward()


times = []
for i in range(6):
    model.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    times.append(time.perf_counter() - start)
times = sorted(times[2:])
try:
    import fla.ops.gated_delta_rule
    import triton
    fla = f"flash-linear-attention {fla.__version__}, Triton {triton.__version__}"
except Exception:  # what transformers, too, takes for not installed
    fla = "PyTorch"
print(f"transformers {transformers.__version__}, torch {torch.__version__}, {torch.cuda.get_device_name()}: {layers} layers + head, "
      f"{tokens} tokens, delta rule in {fla}: {1e3 * times[len(times) // 2]:.1f} ms, "
      f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")
