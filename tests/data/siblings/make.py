"""Makes the checkpoints of this folder and their reference outputs: python3 make.py [NAME ...]

Needs torch, transformers (its models of Qwen3.5, Qwen3.5-MoE and Qwen3-Next) and safetensors. The references are computed
in float32 on the CPU with eager attention. transformers has no MTP head: it is computed here from that program's own
layer, norm and rotary embedding. Files and tensors are named as in tests/data/goldens.
"""
import json
import os
import sys

import torch
from safetensors.torch import save_file
from transformers.models.qwen3_5 import modeling_qwen3_5 as dense
from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as moe
from transformers.models.qwen3_next import modeling_qwen3_next as nxt

HERE = os.path.dirname(os.path.abspath(__file__))
LENGTHS = (1, 2, 3, 5, 17, 64, 66)
PROMPTS = (3, 20, 70)
NEW_TOKENS = 48
LAYER_TYPES = ["linear_attention", "linear_attention", "full_attention"]

COMMON = dict(
    vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
    hidden_act="silu", rms_norm_eps=1e-6, max_position_embeddings=512, attention_bias=False, attention_dropout=0.0,
    linear_conv_kernel_dim=4, linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
    linear_num_value_heads=4, layer_types=LAYER_TYPES, use_cache=True, initializer_range=0.02, eos_token_id=63)
ROPE = dict(rope_type="default", rope_theta=10000000.0, partial_rotary_factor=0.5, mrope_section=[1, 1, 0],
            mrope_interleaved=True)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, shared_expert_intermediate_size=12)


class Sibling:
    """seed: such that no greedy token is near a tie."""

    def __init__(self, seed, module, prefix, family, model_type, text, architecture, **more):
        self.seed, self.module, self.prefix, self.model_type, self.text = seed, module, prefix, model_type, text
        self.architecture, self.family, self.more = architecture, family, more

    def tied(self):
        return self.text.get("tie_word_embeddings", False)

    def files_config(self):
        if self.module is nxt:  # flat, without layer_types, the rope's keys at its level
            text = {k: v for k, v in self.text.items() if k not in ("layer_types", "rope_parameters")}
            return dict(architectures=[self.architecture], model_type=self.model_type, torch_dtype="bfloat16",
                        full_attention_interval=3, rope_theta=10000000.0, partial_rotary_factor=0.5, rope_scaling=None,
                        num_nextn_predict_layers=1, **text)
        text = dict(model_type=self.model_type + "_text", dtype="bfloat16", attn_output_gate=True,
                    mamba_ssm_dtype="float32", mtp_num_hidden_layers=1, mtp_use_dedicated_embeddings=False, **self.text)
        return dict(architectures=[self.architecture], model_type=self.model_type, image_token_id=60, text_config=text,
                    tie_word_embeddings=self.tied(), **self.more)


SIBLINGS = {
    # 27B's shape: untied, three value heads a key head, more query heads a group than groups.
    "dense": Sibling(1, dense, "model.language_model.", "Qwen3_5", "qwen3_5", {
        **COMMON, "rope_parameters": ROPE, "intermediate_size": 40, "num_attention_heads": 6,
        "linear_num_value_heads": 6, "tie_word_embeddings": False}, "Qwen3_5ForConditionalGeneration"),
    # 0.8B's and 4B's: the head is the embedding; as many value heads as key heads.
    "tied": Sibling(4, dense, "model.language_model.", "Qwen3_5", "qwen3_5", {
        **COMMON, "rope_parameters": ROPE, "intermediate_size": 48, "linear_num_value_heads": 2,
        "tie_word_embeddings": True}, "Qwen3_5ForConditionalGeneration"),
    # Qwen3.6-35B-A3B's: A_log and the DeltaNet's norm in bfloat16, the MTP head's experts in one tensor.
    "moe36": Sibling(3, moe, "model.language_model.", "Qwen3_5Moe", "qwen3_5_moe", {
        **COMMON, **EXPERTS, "rope_parameters": ROPE, "tie_word_embeddings": False, "bos_token_id": 62,
        "norm_topk_prob": True}, "Qwen3_5MoeForConditionalGeneration"),
    # Qwen3-Next-80B-A3B's: flat names, projections grouped by key head, experts one by one.
    "next": Sibling(5, nxt, "model.", "Qwen3Next", "qwen3_next", {
        **COMMON, **EXPERTS, "linear_num_value_heads": 6, "tie_word_embeddings": False, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "rope_parameters": dict(
            rope_type="default", rope_theta=10000000.0, partial_rotary_factor=0.5)}, "Qwen3NextForCausalLM"),
}


def ungrouped(key, x):
    """A tensor of Qwen3-Next by the names of Qwen3.5's checkpoints."""
    c = SIBLINGS["next"].text
    kh, dk, dv = c["linear_num_key_heads"], c["linear_key_head_dim"], c["linear_value_head_dim"]
    n = c["linear_num_value_heads"] // kh
    if key.endswith("in_proj_qkvz.weight"):
        q, k, v, z = x.reshape(kh, -1, x.shape[1]).split([dk, dk, n * dv, n * dv], 1)
        parts = {"qkv": torch.cat([t.reshape(-1, x.shape[1]) for t in (q, k, v)]), "z": z.reshape(-1, x.shape[1])}
        return {key.replace("qkvz", part): t for part, t in parts.items()}
    if key.endswith("in_proj_ba.weight"):
        b, a = x.reshape(kh, 2 * n, x.shape[1]).split([n, n], 1)
        return {key.replace("_ba", "_b"): b.reshape(-1, x.shape[1]), key.replace("_ba", "_a"): a.reshape(-1, x.shape[1])}
    return {key: x}


def one_by_one(key, x):
    """A tensor of experts as one for each."""
    if not (key.endswith("experts.gate_up_proj") or key.endswith("experts.down_proj")):
        return {key: x}
    prefix, out = key[:key.rindex(".") + 1], {}
    for e in range(x.shape[0]):
        if key.endswith("down_proj"):
            out[f"{prefix}{e}.down_proj.weight"] = x[e]
        else:
            gate, up = x[e].chunk(2)
            out[f"{prefix}{e}.gate_proj.weight"], out[f"{prefix}{e}.up_proj.weight"] = gate, up
    return out


def random_weights(shapes, seed, half_log, tied):
    """Weights by which every part of the model matters, as they are stored."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator)
        keep = False
        if name.endswith("A_log"):
            x, keep = 1.5 * x - 2, not half_log
        elif name.endswith("dt_bias"):
            x = x - 1
        elif name.endswith("linear_attn.norm.weight"):
            x, keep = 1 + 0.2 * x, not half_log
        elif len(shape) == 1:
            x = 0.2 * x
        elif tied or not name.endswith("embed_tokens.weight"):
            x = x / shape[-1] ** 0.5
        out[name] = x if keep else x.bfloat16()
    return out


class Mtp(torch.nn.Module):
    def __init__(self, s, config):
        super().__init__()
        h, norm = config.hidden_size, getattr(s.module, s.family + "RMSNorm")
        self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = norm(h, config.rms_norm_eps), norm(h, config.rms_norm_eps)
        self.fc = torch.nn.Linear(2 * h, h, bias=False)
        self.layers = torch.nn.ModuleList([getattr(s.module, s.family + "DecoderLayer")(config, len(LAYER_TYPES) - 1)])
        self.norm = norm(h, config.rms_norm_eps)

    def forward(self, trunk, hidden, following):
        """hidden (T,H) after the final norm; following (T): the token after each."""
        embedded = self.pre_fc_norm_embedding(trunk.embed_tokens(following))
        x = self.fc(torch.cat([embedded, self.pre_fc_norm_hidden(hidden)], -1))[None]
        rows = torch.arange(x.shape[1])
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)[None, None]
        x = self.layers[0](x, position_embeddings=trunk.rotary_emb(x, rows[None]), attention_mask=mask,
                           position_ids=rows[None])
        return self.norm(x[0] if isinstance(x, tuple) else x)[0]


def make(name):
    s = SIBLINGS[name]
    folder = os.path.join(HERE, name)
    os.makedirs(folder, exist_ok=True)
    config = getattr(s.module, s.family + ("Config" if s.module is nxt else "TextConfig"))(**s.text)
    config._attn_implementation = "eager"
    model = getattr(s.module, s.family + "ForCausalLM")(config).float().eval()
    mtp = Mtp(s, config).float().eval()
    shapes = {}
    for key, p in model.named_parameters():
        if not (s.tied() and key == "lm_head.weight"):
            shapes[s.prefix + key[6:] if key.startswith("model.") else key] = p.shape
    for key, p in mtp.named_parameters():
        shapes["mtp." + key] = p.shape
    stored = random_weights(shapes, s.seed, name == "moe36", s.tied())
    full = {k: v.float() for k, v in stored.items()}
    trunk = {"model." + k[len(s.prefix):] if k.startswith(s.prefix) else k: v for k, v in full.items()
             if not k.startswith("mtp.")}
    if s.tied():
        trunk["lm_head.weight"] = trunk["model.embed_tokens.weight"]
    model.load_state_dict(trunk, strict=True)
    if s.tied():
        model.lm_head.weight = model.model.embed_tokens.weight
    mtp.load_state_dict({k[4:]: v for k, v in full.items() if k.startswith("mtp.")}, strict=True)

    generator = torch.Generator().manual_seed(s.seed + 1000)
    draw = lambda n: torch.randint(0, 60, (n,), generator=generator)
    sequences = [draw(n) for n in LENGTHS]
    out = {}
    head = lambda h: torch.nn.functional.linear(h, model.lm_head.weight)

    def run(tokens):
        hidden = model.model(input_ids=tokens[None], use_cache=False).last_hidden_state[0]
        following = torch.cat([tokens[1:], torch.zeros(1, dtype=torch.long)])
        return hidden, following

    with torch.no_grad():
        for i, tokens in enumerate(sequences):
            hidden, following = run(tokens)
            out[f"seq{i}.input_ids"], out[f"seq{i}.logits"] = tokens, head(hidden)
            out[f"seq{i}.mtp_logits"] = head(mtp(model.model, hidden, following))
    save_file({k: v.contiguous() for k, v in out.items()}, folder + "/golden_forward.safetensors")

    cross = torch.nn.functional.cross_entropy
    used = [t for t in sequences if len(t) > 2]
    total, total_mtp = 0, 0
    for tokens in used:
        hidden, following = run(tokens)
        total = total + cross(head(hidden[:-1]), tokens[1:], reduction="sum")
        predicted = mtp(model.model, hidden.detach(), following)[:-2]
        constant_head = model.lm_head.weight.detach()
        total_mtp = total_mtp + cross(torch.nn.functional.linear(predicted, constant_head), tokens[2:], reduction="sum")
    loss, mtp_loss = total / sum(len(t) - 1 for t in used), total_mtp / sum(len(t) - 2 for t in used)
    parameters = dict(model.named_parameters())
    of_trunk = torch.autograd.grad(loss, list(parameters.values()))
    of_mtp = torch.autograd.grad(mtp_loss, list(mtp.parameters()))
    grads = {"sft.loss": loss.detach().reshape(1), "mtp.loss": mtp_loss.detach().reshape(1)}
    for key, g in zip(parameters, of_trunk):
        for part, x in ungrouped(key, g).items():
            grads["sft.grad." + ("model.language_model." + part[6:] if part.startswith("model.") else part)] = x
    for key, g in zip(dict(mtp.named_parameters()), of_mtp):
        grads["mtp.grad.mtp." + key] = g
    save_file({k: v.contiguous() for k, v in grads.items()}, folder + "/golden_grads.safetensors")

    generated, margin = {}, float("inf")
    with torch.no_grad():
        for i, n in enumerate(PROMPTS):
            tokens = draw(n)
            generated[f"prompt{i}"] = tokens
            for _ in range(NEW_TOKENS):
                best = head(run(tokens)[0][-1]).topk(2)
                margin = min(margin, (best.values[0] - best.values[1]).item())
                tokens = torch.cat([tokens, best.indices[:1]])
            generated[f"greedy{i}"] = tokens[n:].clone()
    save_file(generated, folder + "/golden_generate.safetensors")

    if s.module is nxt:
        stored = {part: t for key, x in stored.items() for part, t in one_by_one(key, x).items()}
    else:
        generator = torch.Generator().manual_seed(s.seed + 2000)
        stored["model.visual.pos_embed.weight"] = torch.randn(6, 4, generator=generator).bfloat16()
        stored["model.visual.merger.norm.bias"] = torch.randn(5, generator=generator).bfloat16()
    save_file({k: v.contiguous() for k, v in stored.items()}, folder + "/model.safetensors", metadata={"format": "pt"})
    with open(folder + "/config.json", "w") as f:
        json.dump(s.files_config(), f, indent=1)
        f.write("\n")
    with open(folder + "/generation_config.json", "w") as f:
        json.dump({"eos_token_id": [63, 61]}, f)
        f.write("\n")
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"{name}: {size} bytes, loss {loss:.4f}, MTP loss {mtp_loss:.4f}, smallest greedy margin {margin:.1e}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for which in sys.argv[1:] or SIBLINGS:
        make(which)
