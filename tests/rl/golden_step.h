// The reference's GRPO step.
#pragma once
#include "golden.h"
#include "trainer/train_step.h"

namespace furlong::test {

struct Step {
  std::vector<Trajectory> trajectories;
  std::vector<TokenTargets> targets;
  std::vector<const Trajectory*> pointers() const {
    std::vector<const Trajectory*> out;
    for (const auto& t : trajectories) out.push_back(&t);
    return out;
  }
};

inline Step golden_step(const Golden& golden) {
  Step step;
  for (int64_t i = 0; golden.has(fmt::format("sample{}.tokens", i)); i++) {
    const auto name = [&](const char* what) { return fmt::format("sample{}.{}", i, what); };
    Trajectory t;
    t.tokens = golden.integers(name("tokens"));
    t.response_length = static_cast<int32_t>(t.tokens.size()) - golden.integers(name("prompt_len")).at(0);
    for (const float m : golden.floats(name("loss_mask"))) t.loss_mask.push_back(m != 0);
    step.targets.push_back({.advantages = std::vector<double>(t.loss_mask.size(), golden.number(name("advantage"))),
                            .old_log_probs = golden.floats(name("old_log_probs")),
                            .ref_log_probs = golden.floats(name("ref_log_probs"))});
    step.trajectories.push_back(std::move(t));
  }
  return step;
}

// The settings in the reference's metadata.
inline TrainOptions golden_options() {
  return {.loss = {.eps_clip = 0.2, .eps_clip_high = 0.28, .kl_loss_coef = 0.05, .kl_type = KlType::low_var_kl},
          .pack = {.micro_batch_size = 3},
          .optim = {.lr = 1e-3,
                    .beta1 = 0.9,
                    .beta2 = 0.98,
                    .eps = 1e-8,
                    .weight_decay = 0.1,
                    .clip_grad = 1.0,
                    .train_mtp = false},
          .entropy = true};
}

}  // namespace furlong::test
