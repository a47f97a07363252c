"""Goldens of the estimators and losses, from the reference's own functions.

    python make_goldens.py MILES_SOURCE     # a checkout of radixark/miles (made with 31f1ca9, PyTorch 2.15)

writes advantages.json and losses.json beside this script. The reference computes in float32; here float32 stands for
float64, so that what is compared are formulas and not roundings.
"""
import json
import os
import sys
from argparse import Namespace
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"
sys.path.insert(0, sys.argv[1])

import importlib.abc  # noqa: E402
import importlib.machinery  # noqa: E402
from unittest import mock  # noqa: E402

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402



class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands for packages of the reference's environment that these functions import and never call."""

    NAMES = ("ray", "megatron", "sglang", "transformer_engine", "mooncake", "aiohttp", "httpx", "wandb", "pydantic")

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in self.NAMES:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        module = mock.MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Absent())

torch.float32 = torch.float = torch.float64
torch.Tensor.float = torch.Tensor.double
torch.set_default_dtype(torch.float64)

from miles.backends.training_utils import loss as loss_module  # noqa: E402
from miles.backends.training_utils.loss_hub import losses, math_utils  # noqa: E402
from miles.backends.training_utils.parallel import ParallelState, set_parallel_state  # noqa: E402
from examples.experimental.DrGRPO import custom_reducer  # noqa: E402
from miles.ray.rollout.train_data_conversion import _post_process_rewards  # noqa: E402
from miles.utils.ft_utils.process_group_utils import GroupInfo  # noqa: E402

HERE = Path(__file__).parent
DIVISOR = custom_reducer.DIVISOR = 7.5
custom_reducer.mpu.get_context_parallel_world_size.return_value = 1
dist.init_process_group("gloo", init_method="tcp://127.0.0.1:29511", rank=0, world_size=1)
alone = GroupInfo(rank=0, size=1, group=dist.group.WORLD)
set_parallel_state(
    ParallelState(
        intra_dp=alone, intra_dp_cp=alone, cp=alone, tp=alone, pp=alone, ep=alone, etp=alone, indep_dp=alone
    )
)
torch.manual_seed(7)

# Two groups, one group of a single sample; holes in masks, one mask without any token, one response of one token.
LENGTHS = [5, 1, 9, 4, 7, 3]
GROUPS = [0, 0, 0, 1, 1, 2]
REWARDS = [1.0, 0.0, 0.25, 1.0, -0.5, 0.75]
MASKS = [
    [1, 1, 0, 1, 1],
    [1],
    [0, 0, 1, 1, 0, 1, 1, 1, 0],
    [1, 1, 1, 1],
    [0, 1, 1, 1, 1, 1, 1],
    [1, 0, 1],
]
EMPTY = 3  # this sample's mask has no token in the cases that say so


def noise(n, spread, shift=0.0):
    return torch.randn(n) * spread + shift


def numbers(tensors):
    return [[float(x) for x in t] for t in tensors]


def masks_of(empty):
    return [torch.tensor([0] * len(m) if empty and i == EMPTY else m) for i, m in enumerate(MASKS)]


def arguments(**over):
    args = Namespace(
        advantage_estimator="grpo", rewards_normalization=True, grpo_std_normalization=True,
        normalize_advantages=False, kl_coef=0.0, gamma=1.0, lambd=1.0, kl_loss_type="k1", use_opd=False,
        skip_actor_forward_only=False, use_rollout_logprobs=False, qkv_format="thd", reward_key=None,
        eps_clip=0.2, eps_clip_high=0.28, eps_clip_c=None, entropy_coef=0.0, observe_training_entropy=False,
        use_opsm=False, opsm_delta=1e-4, get_mismatch_metrics=False, use_tis=False, tis_clip=2.0, tis_clip_low=0.0,
        custom_tis_function_path=None, custom_pg_loss_reducer_function_path=None, use_kl_loss=False,
        kl_loss_coef=0.0, use_unbiased_kl=False, calculate_per_token_loss=False, value_clip=0.2, allgather_cp=False,
        tis_level="token", tis_mode="truncate", tis_lower_bound=None, tis_upper_bound=2.0, tis_batch_normalize=False,
        use_rs=False, rs_level="token", rs_lower_bound=None, rs_upper_bound=None, rs_veto_threshold=None,
    )
    vars(args).update(over)
    return args


def advantage_cases():
    old = [noise(n, 0.5, -2) for n in LENGTHS]
    ref = [noise(n, 0.5, -2) for n in LENGTHS]
    values = [noise(n, 0.6) for n in LENGTHS]
    cases = []
    for empty, over in [
        (True, {}),
        (True, {"grpo_std_normalization": False}),
        (True, {"rewards_normalization": False}),
        (True, {"normalize_advantages": True}),
        (True, {"advantage_estimator": "gspo"}),
        (False, {"advantage_estimator": "reinforce_plus_plus", "normalize_advantages": True}),
        (False, {"advantage_estimator": "reinforce_plus_plus", "normalize_advantages": True, "gamma": 0.9,
                 "kl_coef": 0.3, "kl_loss_type": "k2"}),
        (False, {"advantage_estimator": "reinforce_plus_plus", "gamma": 0.95, "kl_coef": 0.1,
                 "kl_loss_type": "low_var_kl"}),
        (True, {"advantage_estimator": "reinforce_plus_plus_baseline", "normalize_advantages": True}),
        (True, {"advantage_estimator": "reinforce_plus_plus_baseline", "normalize_advantages": True, "kl_coef": 0.2,
                "kl_loss_type": "k3"}),
        (True, {"advantage_estimator": "reinforce_plus_plus_baseline", "kl_coef": 0.2, "kl_loss_type": "k1"}),
        (True, {"advantage_estimator": "ppo"}),
        (True, {"advantage_estimator": "ppo", "gamma": 0.97, "lambd": 0.9}),
        (True, {"advantage_estimator": "ppo", "gamma": 0.9, "lambd": 0.0, "normalize_advantages": True}),
    ]:
        args = arguments(**over)
        samples = [
            Namespace(index=i, rollout_id=None, group_index=g, reward=r, get_reward_value=lambda a, r=r: r)
            for i, (g, r) in enumerate(zip(GROUPS, REWARDS))
        ]
        _, rewards = _post_process_rewards(args, samples, None)
        data = {
            "log_probs": [t.clone() for t in old],
            "ref_log_probs": [t.clone() for t in ref],
            "rewards": rewards,
            "response_lengths": LENGTHS,
            "total_lengths": [n + 3 for n in LENGTHS],
            "loss_masks": masks_of(empty),
        }
        if args.advantage_estimator == "ppo":
            data["values"] = [t.clone() for t in values]
        loss_module.compute_advantages_and_returns(args, data)
        cases.append({
            "options": {k: getattr(args, k) for k in (
                "advantage_estimator", "rewards_normalization", "grpo_std_normalization", "normalize_advantages",
                "kl_coef", "gamma", "lambd", "kl_loss_type")},
            "empty": empty,
            "advantages": numbers(data["advantages"]),
            "returns": numbers(data["returns"]),
        })
    return {"groups": GROUPS, "rewards": REWARDS, "masks": MASKS, "empty_sample": EMPTY, "log_probs": numbers(old),
            "ref_log_probs": numbers(ref), "values": numbers(values), "cases": cases}


def loss_cases():
    # Multiples of 2^-20 are the same numbers in float32.
    grid = lambda t: torch.round(t * 2**20) / 2**20  # noqa: E731
    new = [noise(n, 0.5, -2) for n in LENGTHS]
    old = [grid(t + noise(len(t), 0.3)) for t in new]
    ref = [grid(t + noise(len(t), 0.6)) for t in new]
    sampled = [grid(t + noise(len(t), 0.4)) for t in old]
    ref[2][3] += 4
    ref[4][2] -= 4
    entropy = [noise(n, 0.3, 2) for n in LENGTHS]
    advantages = [torch.full((n,), a) for n, a in zip(LENGTHS, [1.25, -0.75, 0.5, 0.25, -1.5, 0.0])]
    uneven = [noise(n, 1.0) for n in LENGTHS]
    cases = []
    kl = {"use_kl_loss": True, "kl_loss_coef": 0.3}
    icepop = {"use_tis": True, "custom_tis_function_path":
              "miles.backends.training_utils.loss_hub.corrections.icepop_function"}
    helper = {"custom_tis_function_path":
              "examples.infra_features.train_infer_mismatch_helper.mis.compute_mis_weights_with_cp"}
    mis = {"use_tis": True, **helper}
    dr_grpo = {"custom_pg_loss_reducer_function_path":
               "examples.experimental.DrGRPO.custom_reducer.get_pg_loss_reducer"}
    for over in [
        {},
        {"eps_clip_c": 1.1},
        {"calculate_per_token_loss": True, "entropy_coef": 0.02},
        {"entropy_coef": 0.02, "eps_clip_high": 0.2},
        *[{**kl, "kl_loss_type": t, "use_unbiased_kl": u} for t in ("k1", "k2", "k3", "low_var_kl")
          for u in (False, True)],
        {"use_tis": True},
        {"use_tis": True, "tis_clip": 1.2, "tis_clip_low": 0.8, "calculate_per_token_loss": True},
        {**icepop, "tis_clip": 1.2, "tis_clip_low": 0.8},
        {"use_opsm": True, "opsm_delta": 0.0},
        {"use_opsm": True, "opsm_delta": 1e-4, "use_tis": True, **kl},
        {"advantage_estimator": "gspo", "eps_clip": 3e-2, "eps_clip_high": 4e-2},
        {"advantage_estimator": "gspo", **kl, "kl_loss_type": "low_var_kl", "use_unbiased_kl": True},
        {"advantage_estimator": "gspo", "use_opsm": True, "opsm_delta": 0.0, "calculate_per_token_loss": True},
        {"advantage_estimator": "gspo", "use_tis": True, "tis_clip": 1.2},
        {"uneven": True, "use_tis": True, "use_opsm": True, "opsm_delta": 0.0},
        {"uneven": True, "advantage_estimator": "gspo", "normalize_advantages": True, **icepop, "tis_clip": 1.3},
        {"on_policy": True},
        {"on_policy": True, "use_tis": True, "tis_clip": 1.2, "tis_clip_low": 0.8},
        {"on_policy": True, "advantage_estimator": "gspo", "uneven": True, "use_tis": True},
        {"on_policy": True, "advantage_estimator": "gspo", "uneven": True, "use_opsm": True},
        {**helper, "get_mismatch_metrics": True},
        {**helper, "get_mismatch_metrics": True, "calculate_per_token_loss": True},
        {**mis, "tis_upper_bound": 1.2},
        {**mis, "tis_mode": "clip", "tis_lower_bound": 0.9, "tis_upper_bound": 1.2, "tis_batch_normalize": True},
        {**mis, "tis_mode": "mask", "tis_upper_bound": 1.3, "entropy_coef": 0.02, **kl},
        {**mis, "tis_level": "sequence", "tis_upper_bound": 1.5, "tis_batch_normalize": True, "use_rs": True,
         "rs_level": "geometric", "rs_lower_bound": 0.8, "rs_upper_bound": 1.25},
        {**mis, "tis_level": "geometric", "tis_mode": "clip", "tis_lower_bound": 0.9, "tis_upper_bound": 1.1,
         "use_rs": True, "rs_level": "sequence", "rs_lower_bound": 0.25, "rs_upper_bound": 4.0},
        {**mis, "tis_upper_bound": 1.4, "tis_batch_normalize": True, "use_rs": True, "rs_veto_threshold": 0.8,
         "calculate_per_token_loss": True, **kl, "kl_loss_type": "k3", "entropy_coef": 0.02},
        {**mis, "advantage_estimator": "gspo", "uneven": True, "use_rs": True, "rs_lower_bound": 0.7,
         "rs_upper_bound": 1.4, "use_opsm": True, "opsm_delta": 0.0},
        {**dr_grpo, "grpo_std_normalization": False, "entropy_coef": 0.02, **kl},
        {**dr_grpo, **mis, "uneven": True, "use_rs": True, "rs_veto_threshold": 0.75},
        {**dr_grpo, "advantage_estimator": "gspo", "uneven": True, "use_tis": True, "tis_clip": 1.2},
    ]:
        over = dict(over)
        is_uneven, on_policy = over.pop("uneven", False), over.pop("on_policy", False)
        args = arguments(**over, skip_actor_forward_only=on_policy)
        leaves = [t.clone().requires_grad_() for t in new]
        entropies = [t.clone().requires_grad_() for t in entropy]
        losses.get_log_probs_and_entropy = lambda *a, **k: {"log_probs": leaves, "entropy": entropies}
        masks = masks_of(True)
        batch = {
            "advantages": uneven if is_uneven else advantages, "rollout_log_probs": sampled, "ref_log_probs": ref,
            "log_probs": None if on_policy else old, "response_lengths": LENGTHS,
            "total_lengths": [n + 3 for n in LENGTHS], "loss_masks": masks, "unconcat_tokens": None,
            "rollout_mask_sums": [m.sum() for m in masks],
        }
        if on_policy:
            del batch["log_probs"]
        mean = losses.get_sum_of_sample_mean(
            batch["total_lengths"], LENGTHS, masks, args.calculate_per_token_loss, "thd", None)
        loss, report = losses.policy_loss_function(args, batch, torch.zeros(1), mean)
        parts = sum(max(int(m.sum()), 1) for m in masks) if args.calculate_per_token_loss else len(masks)
        (loss / parts).backward()
        zeros = lambda ts: [t.grad if t.grad is not None else torch.zeros_like(t) for t in ts]  # noqa: E731
        cases.append({
            "options": {k: getattr(args, k) for k in (
                "advantage_estimator", "eps_clip", "eps_clip_high", "eps_clip_c", "entropy_coef", "use_opsm",
                "opsm_delta", "use_tis", "tis_clip", "tis_clip_low", "use_kl_loss", "kl_loss_coef", "kl_loss_type",
                "use_unbiased_kl", "calculate_per_token_loss", "get_mismatch_metrics", "tis_level", "tis_mode",
                "tis_lower_bound", "tis_upper_bound", "tis_batch_normalize", "use_rs", "rs_level", "rs_lower_bound",
                "rs_upper_bound", "rs_veto_threshold")}
            | {"function": (args.custom_tis_function_path or "").split(".")[-1], "uneven": is_uneven,
               "on_policy": on_policy, "divisor": DIVISOR if args.custom_pg_loss_reducer_function_path else 0},
            "metrics": {k: float(v) / parts for k, v in report.items()},
            "d_log_prob": numbers(zeros(leaves)),
            "d_entropy": numbers(zeros(entropies)),
        })
    values = []
    for clip, per_token in [(0.2, False), (0.05, True)]:
        args = arguments(value_clip=clip, calculate_per_token_loss=per_token)
        leaves = [t.clone().requires_grad_() for t in new]
        losses.get_values = lambda *a, **k: {"values": leaves}
        masks = masks_of(True)
        batch = {"values": old, "returns": ref, "response_lengths": LENGTHS, "loss_masks": masks,
                 "total_lengths": [n + 3 for n in LENGTHS], "unconcat_tokens": None}
        mean = losses.get_sum_of_sample_mean(batch["total_lengths"], LENGTHS, masks, per_token, "thd", None)
        loss, report = losses.value_loss_function(args, batch, torch.zeros(1), mean)
        parts = sum(max(int(m.sum()), 1) for m in masks) if per_token else len(masks)
        (loss / parts).backward()
        values.append({"value_clip": clip, "calculate_per_token_loss": per_token,
                       "metrics": {k: float(v) / parts for k, v in report.items()},
                       "d_value": numbers([t.grad for t in leaves])})
    return {"masks": [m.tolist() for m in masks_of(True)], "log_probs": numbers(new), "old_log_probs": numbers(old),
            "ref_log_probs": numbers(ref), "rollout_log_probs": numbers(sampled), "entropy": numbers(entropy),
            "advantages": numbers(advantages), "uneven_advantages": numbers(uneven), "cases": cases,
            "value_cases": values}


(HERE / "advantages.json").write_text(json.dumps(advantage_cases(), separators=(",", ":")) + "\n")
(HERE / "losses.json").write_text(json.dumps(loss_cases(), separators=(",", ":")) + "\n")
