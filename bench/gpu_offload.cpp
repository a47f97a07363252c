// bench_gpu offload: the copies and the host's memory as fast as they are here, what an offloaded update moves through
// them, and how near it comes.
#include <algorithm>
#include <cstring>

#include "base/host_memory.h"
#include "gpu_model.h"
#include "ops/adamw.h"
#include "rollout/engine.h"
#include "trainer/train_step.h"

namespace furlong::bench {
namespace {

constexpr double giga = 1e9;
// Of one number in an update: gradient (fp32) down, weight (bf16) up; in host memory gradient, master and both moments
// read, master, moments and weight written.
constexpr double down_bytes = 4, up_bytes = 2, host_bytes = 4 * 4 + 3 * 4 + 2;

template <class F>
double best_of(int runs, F&& f) {
  f();
  double best = 1e30;
  for (int i = 0; i < runs; i++) {
    const auto begun = Clock::now();
    f();
    best = std::min(best, seconds_since(begun));
  }
  return best;
}

struct Rates {
  double down = 0, up = 0, both = 0;  // bytes/s of page-locked copies; of both at once, their sum
  double host = 0;                    // bytes/s of host memory in the update's mix of reads and writes
  double adamw = 0;                   // numbers/s of the update alone, nothing copied
};

void measure_copies(ThreadPool& threads, Rates& rates) {
  const size_t bytes = size_t{1} << 30;
  const Buffer host_down = Buffer::page_locked(bytes, threads), host_up = Buffer::page_locked(bytes, threads);
  const Buffer device_down(bytes, Device::cuda), device_up(bytes, Device::cuda);
  const auto one = cuda::make_queue(), two = cuda::make_queue();
  const auto down = [&] { cuda::copy_async(*one, host_down.data(), device_down.data(), bytes, false); };
  const auto up = [&] { cuda::copy_async(*two, device_up.data(), host_up.data(), bytes, true); };
  const auto wait = [&] {
    cuda::synchronize(*one);
    cuda::synchronize(*two);
  };
  const auto size = static_cast<double>(bytes);
  rates.down = size / best_of(5, [&] { down(), wait(); });
  rates.up = size / best_of(5, [&] { up(), wait(); });
  rates.both = 2 * size / best_of(5, [&] { down(), up(), wait(); });
}

void measure_host(ThreadPool& threads, Rates& rates) {
  const int64_t n = int64_t{1} << 27, piece = int64_t{1} << 18;
  const OwnedTensor w(DType::f32, {n}), m(DType::f32, {n}), v(DType::f32, {n}), g(DType::f32, {n});
  const OwnedTensor half(DType::bf16, {n});
  typedef float Row __attribute__((vector_size(64)));
  const auto at = [](const OwnedTensor& t, int64_t first) {
    return reinterpret_cast<Row*>(static_cast<float*>(t.view().data()) + first);
  };
  const double mix = best_of(5, [&] {
    threads.parallel(n / piece, [&](int64_t i) {
      Row *wp = at(w, i * piece), *mp = at(m, i * piece), *vp = at(v, i * piece), *gp = at(g, i * piece);
      char* hp = static_cast<char*>(half.view().data()) + i * piece * 2;
      for (size_t j = 0; j < static_cast<size_t>(piece) * 4 / sizeof(Row); j++) {
        mp[j] += gp[j];
        vp[j] -= gp[j];
        const Row x = wp[j] + mp[j] * vp[j];
        wp[j] = x;
        std::memcpy(hp + j * sizeof(Row) / 2, &x, sizeof(Row) / 2);  // some bytes, as many as of bf16
      }
    });
  });
  rates.host = host_bytes * static_cast<double>(n) / mix;
  Stream stream(threads);
  rates.adamw = static_cast<double>(n) / best_of(5, [&] { adamw(stream, half, w, m, v, g, {.lr = 1e-6, .step = 2}); });
}

constexpr int64_t samples = 64, prompt = 64, response = 64;  // 8,192 tokens

std::vector<Trajectory> rollout(Engine& engine, const ModelConfig& config, int round) {
  std::vector<Request> requests;
  for (int64_t i = 0; i < samples; i++) {
    Request r{.samples = 1,
              .params = {.temperature = 1},
              .max_new_tokens = response,
              .seed = static_cast<uint64_t>(round),
              .group_index = i};
    for (uint32_t p = 0; p < prompt; p++) r.prompt.push_back(token(config, static_cast<uint32_t>(i), p));
    requests.push_back(std::move(r));
  }
  const auto done = engine.generate(requests);
  std::vector<Trajectory> drawn(done.size());
  for (size_t i = 0; i < done.size(); i++) {
    Trajectory& t = drawn[i];
    t.tokens = requests[i].prompt;
    t.tokens.insert(t.tokens.end(), done[i].tokens.begin(), done[i].tokens.end());
    t.response_length = static_cast<int32_t>(done[i].tokens.size());
    t.loss_mask.assign(done[i].tokens.size(), 1);
    t.rollout_log_probs = done[i].log_probs;
  }
  return drawn;
}

// Rollout, gradients, offloaded update; prints the best of three steps after one that does not count.
void steps(Model& model, Engine& engine, const Rates& rates, bool overlap) {
  TrainOptions options;
  options.pack = {.dynamic = true, .max_tokens = samples * (prompt + response)};
  options.recompute = Recompute::full;
  options.mtp = true;
  options.optim = {.lr = 1e-6, .train_mtp = true, .offload = 1, .overlap = overlap};
  auto begun = Clock::now();
  TrainStep step(model.config, model.weights, model.threads, options);
  std::printf("%s overlap: %.1f GB of page-locked memory taken in %.1f s\n", overlap ? "with" : "without",
              static_cast<double>(step.optimizer().host_bytes()) / giga, seconds_since(begun));
  double draw = 1e30, gradients = 1e30, update = 1e30;
  for (int i = 0; i < 4; i++) {
    begun = Clock::now();
    const auto drawn = rollout(engine, model.config, i);
    const double drawing = seconds_since(begun);
    std::vector<const Trajectory*> picked;
    std::vector<TokenTargets> targets;
    for (const auto& t : drawn) {
      const double advantage = picked.size() % 2 == 0 ? 1 : -1;
      targets.push_back({.advantages = std::vector<double>(static_cast<size_t>(t.response_length), advantage)});
      picked.push_back(&t);
    }
    const Metrics metrics = step.run(picked, targets);
    const double learning = figure(metrics, "perf/gradients_time"), updating = figure(metrics, "perf/optimizer_time");
    std::printf("  step %d: rollout %.1f ms, gradients %.1f ms, optimizer %.1f ms, grad norm %.5f\n", i, 1e3 * drawing,
                1e3 * learning, 1e3 * updating, figure(metrics, "train/grad_norm"));
    std::fflush(stdout);
    if (i == 0) continue;
    draw = std::min(draw, drawing);
    gradients = std::min(gradients, learning);
    update = std::min(update, updating);
  }
  double numbers = 0;
  for (const auto& spec : model.weights.specs()) numbers += static_cast<double>(spec.numel());
  // With overlap the gradients have gone down before the update begins, as far as the backward pass is long enough.
  const double down = overlap ? 0 : down_bytes * numbers, up = up_bytes * numbers;
  const double link = std::max({down / rates.down, up / rates.up, (down + up) / rates.both});
  const double host = host_bytes * numbers / rates.host, limit = std::max(link, host);
  std::printf(
      "  update of %.2f G numbers: %.1f GB over the bus (%.0f ms), %.1f GB through host memory (%.0f ms): limit %.0f "
      "ms "
      "(%s); measured %.0f ms: %.0f %% of the limit\n",
      numbers / giga, (down + up) / giga, 1e3 * link, host_bytes * numbers / giga, 1e3 * host, 1e3 * limit,
      link > host ? "the bus" : "host memory", 1e3 * update, 100 * limit / update);
  std::printf("  step %s overlap: rollout %.0f ms, gradients %.0f ms, optimizer %.0f ms, %.0f ms in all\n",
              overlap ? "with" : "without", 1e3 * draw, 1e3 * gradients, 1e3 * update,
              1e3 * (draw + gradients + update));
  std::fflush(stdout);
}

}  // namespace

void offload(int64_t layers, const char* which) {
  Model model(layers);
  double numbers = 0;
  for (const auto& spec : model.weights.specs()) numbers += static_cast<double>(spec.numel());
  std::printf(
      "%.2f G numbers: masters and moments %.1f GB, with overlap gradients %.1f GB more; the host has %.1f GB, "
      "%d threads. Fewer LAYERS need less.\n",
      numbers / giga, 12 * numbers / giga, 4 * numbers / giga, static_cast<double>(available_host_memory()) / giga,
      model.threads.size());
  std::fflush(stdout);
  Rates rates;
  measure_copies(model.threads, rates);
  std::printf("page-locked copies: down %.1f GB/s, up %.1f GB/s, both at once %.1f GB/s\n", rates.down / giga,
              rates.up / giga, rates.both / giga);
  measure_host(model.threads, rates);
  std::printf(
      "host memory, 4 arrays read and 4 written: %.1f GB/s; AdamW alone %.2f G numbers/s (%.1f GB/s, %.0f %%)\n",
      rates.host / giga, rates.adamw / giga, rates.adamw * host_bytes / giga,
      100 * rates.adamw * host_bytes / rates.host);
  std::fflush(stdout);
  Engine engine(model.config, model.weights,
                {.max_running = samples,
                 .drafts = 2,
                 .max_tokens = prompt + response + 64,
                 .prefill_budget = 8192,
                 .graph_batches = {samples}},
                model.threads);
  for (const bool overlap : {false, true}) {
    if (std::strcmp(which, overlap ? "plain" : "overlap") != 0) steps(model, engine, rates, overlap);
  }
}

}  // namespace furlong::bench
