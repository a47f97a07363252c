// The model at true shapes on a GPU, random weights drawn on the device:
//   bench_gpu train LAYERS TOKENS SEQUENCES [offload]   one training step (full recompute, MTP): gradients and AdamW,
//                                               with offload on the host
//   bench_gpu decode LAYERS BATCH CONTEXT DRAFTS [exact]   decode at a context length; DRAFTS 0: one token a step
//   bench_gpu speculation LAYERS CONTEXT        drafts by batch size, with and without use
//   bench_gpu streams LAYERS STREAMS PROMPT RESPONSE DRAFTS [LENGTH]   all from the first prompt row to the last token;
//                                               LENGTH: the accept length to force
//   bench_gpu prefill LAYERS TOKENS             one prompt
//   bench_gpu mismatch LAYERS SAMPLES TOKENS DRAFTS [exact]   log-probs: trainer against sampler
//   bench_gpu offload LAYERS [plain|overlap]    a step with the optimizer on the host, beside the machine's limits
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "gpu_model.h"
#include "rollout/engine.h"
#include "trainer/train_step.h"

namespace furlong::bench {
namespace {

void train(int64_t layers, int64_t tokens, int64_t sequences, bool offloads) {
  Model model(layers);
  TrainOptions options;
  options.pack = {.dynamic = true, .max_tokens = tokens};
  options.objective = Objective::supervised;
  options.recompute = Recompute::full;
  options.mtp = true;
  options.optim.train_mtp = true;
  options.optim.lr = 1e-6;
  options.optim.offload = offloads ? 1 : 0;
  TrainStep step(model.config, model.weights, model.threads, options);
  std::vector<Trajectory> samples(static_cast<size_t>(sequences));
  std::vector<const Trajectory*> picked;
  for (size_t i = 0; i < samples.size(); i++) {
    for (int64_t p = 0; p < tokens / sequences; p++) {
      samples[i].tokens.push_back(token(model.config, static_cast<uint32_t>(i), static_cast<uint32_t>(p)));
    }
    samples[i].response_length = static_cast<int32_t>(samples[i].tokens.size()) - 1;
    samples[i].loss_mask.assign(static_cast<size_t>(samples[i].response_length), 1);
    picked.push_back(&samples[i]);
  }
  std::vector<double> gradients, update;
  for (int i = 0; i < 8; i++) {
    const Metrics m = step.run(picked, std::vector<TokenTargets>(picked.size()));
    std::printf("  loss %.5f mtp %.5f grad norm %.5f: gradients %.1f ms, optimizer %.1f ms\n", figure(m, "train/loss"),
                figure(m, "train/mtp_loss"), figure(m, "train/grad_norm"), 1e3 * figure(m, "perf/gradients_time"),
                1e3 * figure(m, "perf/optimizer_time"));
    if (i >= 2) gradients.push_back(figure(m, "perf/gradients_time"));
    if (i >= 2) update.push_back(figure(m, "perf/optimizer_time"));
  }
  const auto median = [](std::vector<double> x) {
    std::nth_element(x.begin(), x.begin() + static_cast<int64_t>(x.size() / 2), x.end());
    return x[x.size() / 2];
  };
  std::printf("train, %ld layers, %ld sequences of %ld tokens: %.1f ms, %.0f tok/s; AdamW %.1f ms\n", layers, sequences,
              tokens / sequences, 1e3 * median(gradients), static_cast<double>(tokens) / median(gradients),
              1e3 * median(update));
}

void decode(int64_t layers, int64_t batch, int64_t context, int64_t drafts, bool exact) {
  Model model(layers);
  // The first sequences draw tokens while the last are still read in; only steps in which all decode are timed, and of
  // these not the first two, which make room for a recording and record.
  const int64_t tokens_each = (batch + 48) * (drafts > 0 ? 3 : 1), longest = context + tokens_each + 64;
  Engine engine(model.config, model.weights,
                {.max_running = batch,
                 .drafts = drafts,
                 .max_tokens = longest,
                 .prefill_budget = 8192,
                 .graph_batches = {batch},
                 .forced_accept_length = drafts > 0 ? 2.49 : 0,
                 .exact = exact},
                model.threads);
  std::vector<Request> requests;
  for (int64_t i = 0; i < batch; i++) {
    Request r{.samples = 1, .params = {.temperature = 1}, .max_new_tokens = tokens_each, .seed = 7, .group_index = i};
    for (int64_t p = 0; p < context; p++) {
      r.prompt.push_back(token(model.config, static_cast<uint32_t>(i), static_cast<uint32_t>(p)));
    }
    requests.push_back(std::move(r));
  }
  auto last = Clock::now();
  EngineStats before;
  std::vector<double> steps;
  int64_t tokens = 0, full = 0;
  engine.generate(requests, [&](size_t, int64_t) {
    const EngineStats now = engine.stats();
    if (now.prefill_rows == before.prefill_rows && now.decode_rows - before.decode_rows == batch * (1 + drafts) &&
        ++full > 2) {
      steps.push_back(seconds_since(last));
      tokens += now.emitted - before.emitted;
    }
    before = now;
    last = Clock::now();
  });
  double total = 0;
  for (const double step : steps) total += step;
  const auto n = static_cast<double>(steps.size());
  std::nth_element(steps.begin(), steps.begin() + static_cast<int64_t>(steps.size() / 2), steps.end());
  std::printf(
      "decode%s, %ld layers, batch %ld at %ld tokens, %ld drafts: %.0f steps, median %.3f ms, %.0f tok/s (%.2f tokens "
      "a "
      "step and sequence)\n",
      exact ? " exactly" : "", layers, batch, context, drafts, n, 1e3 * steps[steps.size() / 2],
      static_cast<double>(tokens) / total, static_cast<double>(tokens) / n / static_cast<double>(batch));
}

// Tokens a second of `batch` sequences while all of them decode. length: forced tokens a verification; 0: as they come.
double rate(Model& model, int64_t batch, int64_t context, int64_t drafts, double length) {
  const int64_t tokens_each = 480;
  Engine engine(model.config, model.weights,
                {.max_running = batch,
                 .drafts = drafts,
                 .max_tokens = context + tokens_each + 8,
                 .prefill_budget = 8192,
                 .graph_batches = {batch},
                 .forced_accept_length = length,
                 .measure_speculation = drafts > 0},
                model.threads);
  std::vector<Request> requests;
  for (int64_t i = 0; i < batch; i++) {
    Request r{.samples = 1, .params = {.temperature = 1}, .max_new_tokens = tokens_each, .seed = 7, .group_index = i};
    for (int64_t p = 0; p < context; p++) {
      r.prompt.push_back(token(model.config, static_cast<uint32_t>(i), static_cast<uint32_t>(p)));
    }
    requests.push_back(std::move(r));
  }
  auto last = Clock::now();
  EngineStats before;
  double seconds = 0, tokens = 0;
  int64_t steps = 0;
  engine.generate(requests, [&](size_t done, int64_t) {
    const EngineStats now = engine.stats();
    if (done == 0 && now.prefill_rows == before.prefill_rows && ++steps > 16) {
      seconds += seconds_since(last);
      tokens += static_cast<double>(now.emitted - before.emitted);
    }
    before = now;
    last = Clock::now();
  });
  return tokens / seconds;
}

// Whether drafts cost anything where they are of no use, and what they gain where they are: by batch size.
void speculation(int64_t layers, int64_t context) {
  Model model(layers);
  for (const int64_t batch : {1, 2, 4, 8, 16, 32, 64, 128, 256}) {
    const double none = rate(model, batch, context, 0, 0), free = rate(model, batch, context, 2, 0),
                 forced = rate(model, batch, context, 2, 2.49);
    std::printf(
        "speculation, %ld layers, batch %ld at %ld tokens: none %.0f tok/s; 2 drafts of a random head %.0f (%.3fx); "
        "2.49 accepted %.0f (%.3fx)\n",
        layers, batch, context, none, free, free / none, forced, forced / none);
    std::fflush(stdout);
  }
}

void prefill(int64_t layers, int64_t tokens) {
  Model model(layers);
  Engine engine(model.config, model.weights, {.max_running = 1, .max_tokens = tokens + 2, .prefill_budget = 8192},
                model.threads);
  for (int i = 0; i < 3; i++) {
    Request r{.samples = 1, .params = {.temperature = 1}, .max_new_tokens = 1, .seed = 7, .group_index = i};
    for (int64_t p = 0; p < tokens; p++) r.prompt.push_back(token(model.config, 1, static_cast<uint32_t>(p)));
    const auto begun = Clock::now();
    engine.generate({&r, 1});
    std::printf("prefill, %ld layers, %ld tokens: %.0f tok/s\n", layers, tokens,
                static_cast<double>(tokens) / seconds_since(begun));
  }
}

// Everything that so many requests cost.
void streams(int64_t layers, int64_t count, int64_t prompt, int64_t response, int64_t drafts, double length) {
  Model model(layers);
  EngineOptions options{.max_running = count,
                        .drafts = drafts,
                        .max_tokens = prompt + response + 8,
                        .prefill_budget = 8192,
                        .forced_accept_length = length};
  for (int64_t n = 8; n < count; n += 8) options.graph_batches.push_back(n);
  options.graph_batches.push_back(count);
  Engine engine(model.config, model.weights, options, model.threads);
  std::vector<Request> requests;
  for (int64_t i = 0; i < count; i++) {
    Request r{.samples = 1, .params = {.temperature = 1}, .max_new_tokens = response, .seed = 7, .group_index = i};
    for (int64_t p = 0; p < prompt; p++)
      r.prompt.push_back(token(model.config, static_cast<uint32_t>(i), static_cast<uint32_t>(p)));
    requests.push_back(std::move(r));
  }
  for (const int64_t tokens : {int64_t{8}, response}) {  // the first round makes room and records
    for (Request& r : requests) r.max_new_tokens = tokens;
    engine.reset_stats();
    const auto begun = Clock::now();
    const auto done = engine.generate(requests);
    const double seconds = seconds_since(begun);
    const EngineStats s = engine.stats();
    int64_t out = 0;
    for (const auto& c : done) out += std::ssize(c.tokens);
    std::printf("streams, %ld layers, %ld of %ld + %ld tokens, %ld drafts: %.2f s, %.0f output tok/s; %.2f accepted\n",
                layers, count, prompt, tokens, drafts, seconds, static_cast<double>(out) / seconds,
                s.verify_steps == 0 ? 1.0 : 1 + static_cast<double>(s.accepted) / static_cast<double>(s.verify_steps));
  }
}

// What the trainer's forward says of tokens that the engine drew, against what the engine recorded.
void mismatch(int64_t layers, int64_t samples, int64_t length, int64_t drafts, bool exact) {
  Model model(layers);
  Engine engine(model.config, model.weights,
                {.max_running = samples,
                 .drafts = drafts,
                 .max_tokens = length + 64,
                 .prefill_budget = 8192,
                 .graph_batches = {samples},
                 .exact = exact},
                model.threads);
  std::vector<Request> requests;
  for (int64_t i = 0; i < samples; i++) {
    Request r{.samples = 1, .params = {.temperature = 1}, .max_new_tokens = length, .seed = 7, .group_index = i};
    for (uint32_t p = 0; p < 32; p++) r.prompt.push_back(token(model.config, static_cast<uint32_t>(i), p));
    requests.push_back(std::move(r));
  }
  const auto done = engine.generate(requests);
  std::vector<Trajectory> drawn(done.size());
  std::vector<const Trajectory*> picked;
  for (size_t i = 0; i < done.size(); i++) {
    Trajectory& t = drawn[i];
    t.tokens = requests[i].prompt;
    t.tokens.insert(t.tokens.end(), done[i].tokens.begin(), done[i].tokens.end());
    t.response_length = static_cast<int32_t>(done[i].tokens.size());
    t.loss_mask.assign(done[i].tokens.size(), 1);
    picked.push_back(&t);
  }
  TrainOptions options;
  options.pack = {.dynamic = true, .max_tokens = 8192};
  options.optim.train_mtp = false;
  TrainStep step(model.config, model.weights, model.threads, options);
  const auto scores = step.score(model.weights, picked);
  double sum = 0, worst = 0, count = 0, differ = 0;
  for (size_t i = 0; i < done.size(); i++) {
    for (size_t j = 0; j < scores[i].size(); j++) {
      const double d = std::abs(static_cast<double>(scores[i][j]) - static_cast<double>(done[i].log_probs[j]));
      sum += d;
      worst = std::max(worst, d);
      differ += d != 0 ? 1 : 0;
      count++;
    }
  }
  std::printf(
      "mismatch%s, %ld layers, %ld x %ld tokens, %ld drafts: mean |trainer - sampler| %.5f, worst %.4f; %.0f of "
      "%.0f differ\n",
      exact ? " exactly" : "", layers, samples, length, drafts, sum / count, worst, differ, count);
}

}  // namespace
}  // namespace furlong::bench

int main(int argc, char** argv) {
  using namespace furlong::bench;
  const auto number = [&](int i, int64_t otherwise) { return argc > i ? std::atoll(argv[i]) : otherwise; };
  const auto word = [&](int i, const char* wanted) { return argc > i && std::strcmp(argv[i], wanted) == 0; };
  try {
    if (argc > 1 && std::strcmp(argv[1], "train") == 0) {
      train(number(2, 4), number(3, 8192), number(4, 1), word(5, "offload"));
    } else if (argc > 1 && std::strcmp(argv[1], "decode") == 0) {
      decode(number(2, 40), number(3, 64), number(4, 4096), number(5, 0), word(6, "exact"));
    } else if (argc > 1 && std::strcmp(argv[1], "streams") == 0) {
      streams(number(2, 40), number(3, 200), number(4, 1000), number(5, 2000), number(6, 0),
              argc > 7 ? std::atof(argv[7]) : 0);
    } else if (argc > 1 && std::strcmp(argv[1], "speculation") == 0) {
      speculation(number(2, 40), number(3, 512));
    } else if (argc > 1 && std::strcmp(argv[1], "prefill") == 0) {
      prefill(number(2, 40), number(3, 32768));
    } else if (argc > 1 && std::strcmp(argv[1], "mismatch") == 0) {
      mismatch(number(2, 4), number(3, 64), number(4, 512), number(5, 2), word(6, "exact"));
    } else if (argc > 1 && std::strcmp(argv[1], "offload") == 0) {
      offload(number(2, 4), argc > 3 ? argv[3] : "both");
    } else {
      std::printf(
          "bench_gpu train LAYERS TOKENS SEQUENCES [offload] | decode LAYERS BATCH CONTEXT DRAFTS [exact] | "
          "speculation LAYERS CONTEXT | "
          "streams LAYERS STREAMS PROMPT RESPONSE DRAFTS [LENGTH] | prefill LAYERS TOKENS | "
          "mismatch LAYERS SAMPLES TOKENS DRAFTS [exact] | offload LAYERS [plain|overlap]\n");
    }
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_gpu: %s\n", e.what());
    return 4;
  }
  return 0;
}
