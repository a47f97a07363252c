// Whole-model figures: training and decoding in tokens per second beside the machine's limit, and the acceptance of
// drafts with the target's own noise (coupled) beside the likeliest draft (greedy), on a given checkpoint:
//   bench_model CHECKPOINT [prompts.jsonl]      (default: a random tiny model)
#include <cstdio>

#include "data/prompts.h"
#include "machine.h"
#include "ops/ops.h"
#include "rollout/engine.h"
#include "trainer/session.h"
#include "trainer/train_step.h"

namespace furlong::bench {
namespace {

// Multiply-adds per token of the trunk's matrices (active experts only) and the head.
double active_parameters(const ModelConfig& c) {
  double n = 0;
  for (const auto& spec : tensor_registry(c)) {
    if (spec.mtp || spec.shape.size() < 2 || spec.name.find("embed_tokens") != std::string::npos) continue;
    const double share =
        spec.split == Split::expert ? static_cast<double>(c.experts_per_token) / static_cast<double>(c.num_experts) : 1;
    n += share * static_cast<double>(spec.numel());
  }
  return n;
}

std::vector<Request> requests(const ModelConfig& c, int64_t count, double temperature) {
  std::vector<Request> out;
  for (int64_t i = 0; i < count; i++) {
    Request r{.samples = 1, .params = {.temperature = temperature}, .max_new_tokens = 64, .seed = 7, .group_index = i};
    for (uint32_t t = 0; t < 24; t++) {
      r.prompt.push_back(static_cast<int32_t>(random_word({.seed = 3, .group = static_cast<uint32_t>(i)}, t) %
                                              static_cast<uint32_t>(c.vocab_size)));
    }
    out.push_back(std::move(r));
  }
  return out;
}

void train_figure(const ModelConfig& c, Weights& weights, ThreadPool& threads, const Limits& limits) {
  TrainOptions options;
  options.pack = {.dynamic = true, .max_tokens = 4096};
  options.objective = Objective::supervised;
  options.optim.lr = 0;
  options.optim.train_mtp = false;
  TrainStep step(c, weights, threads, options);
  std::vector<Trajectory> samples(64);
  std::vector<const Trajectory*> picked;
  int64_t tokens = 0;
  for (size_t i = 0; i < samples.size(); i++) {
    auto& t = samples[i];
    for (uint32_t p = 0; p < 64; p++)
      t.tokens.push_back(static_cast<int32_t>((i * 64 + p) % static_cast<size_t>(c.vocab_size)));
    t.response_length = 63;
    t.loss_mask.assign(63, 1);
    tokens += 64;
    picked.push_back(&t);
  }
  const auto figure = time_it([&] { step.run(picked, std::vector<TokenTargets>(picked.size())); });
  const double rate = static_cast<double>(tokens) / figure.median;
  std::printf("train step (64 x 64 tokens)      %9.0f tok/s   %4.1f%% of the fp32 limit (6 x active parameters)\n",
              rate, 100 * rate * 6 * active_parameters(c) / limits.flops);
}

void decode_figure(const ModelConfig& c, const Weights& weights, ThreadPool& threads, const Limits& limits,
                   int64_t batch) {
  Engine engine(c, weights, {.max_running = batch, .max_tokens = 128}, threads);
  const auto work = requests(c, batch, 1);
  const auto figure = time_it([&] { engine.generate(work); });
  const double rate = static_cast<double>(batch * 64) / figure.median;
  std::printf("decode, %3ld running              %9.0f tok/s   %4.1f%% of the fp32 limit (2 x active parameters)\n",
              batch, rate, 100 * rate * 2 * active_parameters(c) / limits.flops);
}

void accept_figure(const ModelConfig& c, const Weights& weights, ThreadPool& threads,
                   const std::vector<Request>& work) {
  for (const bool greedy : {false, true}) {
    Engine engine(c, weights, {.max_running = 64, .drafts = 2, .max_tokens = 512, .greedy_drafts = greedy}, threads);
    engine.generate(work);
    const auto& s = engine.stats();
    std::printf("%s drafts at temperature 1: accept rate %.3f, accept length %.3f (%ld verifications)\n",
                greedy ? "greedy " : "coupled", static_cast<double>(s.accepted) / static_cast<double>(s.drafted),
                static_cast<double>(s.accepted + s.verify_steps) / static_cast<double>(s.verify_steps), s.verify_steps);
  }
}

}  // namespace
}  // namespace furlong::bench

int main(int argc, char** argv) {
  using namespace furlong;
  using namespace furlong::bench;
  if (argc < 2) {
    std::printf(
        "bench_model CHECKPOINT [prompts.jsonl]: give a checkpoint, as `furlong init --preset tiny --save DIR` makes "
        "one\n");
    return 0;
  }
  Settings settings;
  settings.hf_checkpoint = argv[1];
  settings.chat_template = "qwen3.5";
  Session session = open_session(settings);
  load_weights(session, settings);
  const Limits limits = measure_limits(*session.threads);
  std::printf("%d threads, %s; %.2f M active parameters; limits %.0f GFLOP/s, %.1f GB/s\n", session.threads->size(),
              ops::isa_name().c_str(), active_parameters(session.config) / 1e6, limits.flops / 1e9, limits.bytes / 1e9);
  train_figure(session.config, session.weights, *session.threads, limits);
  for (const int64_t batch : {1, 8, 64})
    decode_figure(session.config, session.weights, *session.threads, limits, batch);
  auto work = requests(session.config, 64, 1);
  if (argc > 2) {
    const auto prompts =
        prepare_prompts(session, {.path = argv[2], .input_key = "prompt", .label_key = "label"}, 0, 512);
    work.clear();
    for (const auto& tokens : prompts.tokens) {
      work.push_back({.prompt = tokens,
                      .samples = 4,
                      .params = {},
                      .max_new_tokens = 48,
                      .stop_ids = session.stop_ids,
                      .seed = 11,
                      .group_index = static_cast<int64_t>(work.size())});
    }
  }
  accept_figure(session.config, session.weights, *session.threads, work);
  return 0;
}
