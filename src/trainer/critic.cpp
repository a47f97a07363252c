#include "trainer/critic.h"

#include "base/check.h"
#include "base/error.h"
#include "base/rng.h"
#include "checkpoint/dist_folder.h"
#include "checkpoint/values.h"
#include "tensor/copy.h"
#include "trainer/options.h"

namespace furlong {
namespace {

constexpr double head_deviation = 0.02;
constexpr uint32_t head_stream = 0x76616c75;  // beside the registry's numbers, which other weights are drawn by

void draw_head(Weights& w, uint64_t seed, Stream& stream) {
  if (!w.lm_head.defined()) return;
  const int64_t n = w.lm_head.numel();
  std::vector<float> wide;
  const RngKey key{.seed = seed, .group = head_stream, .purpose = Purpose::init};
  for (int64_t i = 0; i < n; i++) {
    wide.push_back(static_cast<float>(head_deviation * static_cast<double>(normal(key, static_cast<uint32_t>(i)))));
  }
  std::vector<uint8_t> bytes(w.lm_head.bytes());
  read_values("F32", reinterpret_cast<const uint8_t*>(wide.data()), n, w.dtype(), bytes.data());
  copy(stream, w.lm_head, Tensor(bytes.data(), w.dtype(), {1, n}));
  stream.synchronize();
}

// The policy's weights but for its head; a critic's tensors are the first of the policy's, in the same order.
Weights copied_trunk(const Session& session, const ModelConfig& config, Stream& stream) {
  const Weights& from = session.weights;
  Weights w(config, from.dtype(), Placement{.device = session.device, .rank = session.mesh->place()});
  for (size_t i = 0; i < w.specs().size(); i++) {
    if (w.specs()[i].part == head_part(config) || !w.tensors()[i].defined()) continue;
    CHECK(w.specs()[i].name == from.specs()[i].name, "{} and {}", w.specs()[i].name, from.specs()[i].name);
    copy(stream, w.tensors()[i], from.tensors()[i]);
  }
  return w;
}

Weights critic_weights(const Session& session, const Settings& s, const ModelConfig& config) {
  Stream stream(*session.threads, session.device);
  if (s.critic_load.empty()) {
    Weights w = copied_trunk(session, config, stream);
    draw_head(w, static_cast<uint64_t>(s.seed), stream);
    return w;
  }
  if (checkpoint_kind(s.critic_load) == CheckpointKind::furlong) {
    Weights w(config, session.weights.dtype(), Placement{.device = session.device, .rank = session.mesh->place()});
    if (load_latest(s.critic_load, {{"critic", &w}}, {}, *session.mesh)) return w;
    fail(Exit::input, "--critic-load {}: there is no training checkpoint in that folder", s.critic_load);
  }
  Weights w = read_weights(session, config, s.critic_load, session.weights.dtype(), "--critic-load");
  draw_head(w, static_cast<uint64_t>(s.seed), stream);
  return w;
}

TrainOptions critic_options(TrainOptions o, const Settings& s, int64_t iterations) {
  o.objective = Objective::value;
  o.loss = {};
  o.replay_routes = o.mtp = o.entropy = false;
  o.value_clip = s.value_clip;
  o.dump_grads.clear();
  o.before_update = {};
  o.optim.train_mtp = false;
  o.optim.lr = s.critic_lr.value_or(s.lr);
  o.optim.schedule.warmup_steps = static_cast<double>(s.critic_lr_warmup_iters);
  set_schedule(o.optim.schedule, s, iterations);
  return o;
}

}  // namespace

ModelConfig critic_config(const ModelConfig& policy) {
  ModelConfig c = policy;
  c.mtp_num_layers = 0;
  c.value_head = true;
  return c;
}

Critic::Critic(const Session& session, const Settings& s, const TrainOptions& options, int64_t iterations, Share memory)
    : config_(critic_config(session.config)),
      weights_(critic_weights(session, s, config_)),
      step_(std::make_unique<TrainStep>(config_, weights_, *session.threads, critic_options(options, s, iterations),
                                        std::move(memory), *session.mesh)) {}

std::vector<std::vector<float>> Critic::values(const std::vector<const Trajectory*>& trajectories) {
  return step_->score(weights_, trajectories);
}

Metrics Critic::run(const std::vector<const Trajectory*>& trajectories, const std::vector<TokenTargets>& targets) {
  Metrics out;
  for (const auto& [name, value] : step_->run(trajectories, targets)) {
    const size_t at = name.find('/') + 1;
    out.emplace_back(name.substr(0, at) + (name.starts_with("perf/") ? "critic_" : "critic-") + name.substr(at), value);
  }
  return out;
}

std::vector<NamedWeights> Critic::sets() {
  Optimizer& optimizer = step_->optimizer();
  std::vector<NamedWeights> sets = {{"critic", &weights_}};
  if (optimizer.has_masters()) sets.push_back({"critic_masters", &optimizer.masters()});
  sets.push_back({"critic_exp_avg", &optimizer.exp_avg()});
  sets.push_back({"critic_exp_avg_sq", &optimizer.exp_avg_sq()});
  return sets;
}

void Critic::loaded(int64_t optimizer_steps, int64_t skipped, int64_t skipped_in_a_row) {
  step_->weights_loaded();
  step_->optimizer().set_steps(optimizer_steps);
  step_->set_skipped(skipped, skipped_in_a_row);
}

}  // namespace furlong
