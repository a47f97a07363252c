// bench: what this machine's CPU does with a shape, beside what it could do at most.
#include <algorithm>
#include <array>
#include <cstdio>

#include "base/error.h"
#include "base/rng.h"
#include "checkpoint/init.h"
#include "furlong/commands.h"
#include "furlong/presets.h"
#include "monitor/table.h"
#include "ops/ops.h"
#include "plan/ceilings.h"
#include "rollout/engine.h"
#include "trainer/train_step.h"

namespace furlong {
namespace {

constexpr int64_t train_sequences = 8, train_length = 512, slice_sequences = 2;
constexpr int64_t decode_prompt = 128, decode_tokens = 192, prefill_length = 1024;
constexpr int64_t decode_context = decode_prompt + decode_tokens / 2;  // on average
constexpr std::array<int64_t, 2> decode_batches{1, 32};
constexpr int warm_up = 1, fewest_runs = 5;

struct Bench {
  const ModelConfig& config;
  DType dtype;
  Weights& weights;
  ThreadPool& threads;
  BenchClock clock;
  CpuLimits limits;  // by what was measured last
  Table& table;

  CpuLimits measured() const {
    return {config, dtype, measure_ceilings(threads, clock), read_rate(threads, clock, weights.bytes())};
  }

  // One figure of work that takes least(limits) seconds at best: by the better of what the machine does before and
  // after it, because others on it take more or less within seconds.
  template <class F, class Least>
  void row_of(const std::string& name, int64_t tokens, F&& f, Least&& least) {
    const double before = least(limits);
    const auto seconds = times(f);
    limits = measured();
    row(name, static_cast<double>(tokens), seconds, std::min(before, least(limits)));
  }

  // Seconds of each run of f, rising.
  template <class F>
  std::vector<double> times(F&& f) const {
    std::vector<double> seconds;
    for (int run = -warm_up; run < fewest_runs; run++) {
      const double begin = bench_seconds(clock);
      f();
      if (run >= 0) seconds.push_back(bench_seconds(clock) - begin);
    }
    std::sort(seconds.begin(), seconds.end());
    return seconds;
  }

  // One figure: so many tokens in these seconds, which cannot be fewer than `least`.
  void row(const std::string& name, double tokens, const std::vector<double>& seconds, double least) const {
    const double median = seconds[seconds.size() / 2];
    const auto rate = [&](double s) { return fmt::format("{:.0f}", tokens / s); };
    table.add({name, rate(median), rate(seconds.back()), rate(seconds.front()), rate(least),
               fmt::format("{:.1f} %", 100 * least / median)});
  }

  int32_t token(uint32_t sequence, int64_t position) const {
    return static_cast<int32_t>(random_word({.seed = 3, .group = sequence}, static_cast<uint32_t>(position)) %
                                static_cast<uint32_t>(config.vocab_size));
  }

  void train() {
    // One packed micro-batch; of a large model fewer tokens, which keep its products large all the same.
    const int64_t sequences = config.hidden_size > 1024 ? slice_sequences : train_sequences;
    TrainOptions options;
    options.pack = {.dynamic = true, .max_tokens = sequences * train_length};
    options.objective = Objective::supervised;
    options.optim.lr = 0;
    options.optim.train_mtp = false;
    TrainStep step(config, weights, threads, options);
    std::vector<Trajectory> samples(static_cast<size_t>(sequences));
    std::vector<const Trajectory*> picked;
    for (size_t i = 0; i < samples.size(); i++) {
      for (int64_t p = 0; p < train_length; p++) samples[i].tokens.push_back(token(static_cast<uint32_t>(i), p));
      samples[i].response_length = train_length - 1;
      samples[i].loss_mask.assign(static_cast<size_t>(train_length - 1), 1);
      picked.push_back(&samples[i]);
    }
    const int64_t tokens = sequences * train_length;
    row_of(
        fmt::format("training step, {} x {} tokens", sequences, train_length), tokens,
        [&] { step.run(picked, std::vector<TokenTargets>(picked.size())); },
        [&](const CpuLimits& l) { return l.train_step(tokens, train_length); });
  }

  Request request(int64_t i, int64_t prompt, int64_t more) const {
    Request r{.samples = 1, .params = {.temperature = 1}, .max_new_tokens = more, .seed = 7, .group_index = i};
    for (int64_t p = 0; p < prompt; p++) r.prompt.push_back(token(static_cast<uint32_t>(i), p));
    return r;
  }

  // Steps in which all sequences decode and nothing else happens. Returns how fast what they go over can be read, which
  // others on the machine change within minutes: it is measured before and after them.
  std::string decode(int64_t batch) const {
    const double block = limits.decode_block(batch, decode_context);
    const auto read = [&] { return read_rate(threads, clock, static_cast<size_t>(block)); };
    const double before_steps = read();
    Engine engine(config, weights, {.max_running = batch, .max_tokens = decode_prompt + decode_tokens}, threads);
    std::vector<Request> requests;
    for (int64_t i = 0; i < batch; i++) requests.push_back(request(i, decode_prompt, decode_tokens));
    std::vector<double> seconds;
    for (int run = 0; run < 2; run++) {
      double last = bench_seconds(clock);
      EngineStats before = engine.stats();
      engine.generate(requests, [&](size_t, int64_t) {
        const EngineStats now = engine.stats();
        const double at = bench_seconds(clock);
        if (run > 0 && now.prefill_rows == before.prefill_rows && now.decode_rows - before.decode_rows == batch) {
          seconds.push_back(at - last);
        }
        before = now;
        last = at;
      });
    }
    std::sort(seconds.begin(), seconds.end());
    const double after_steps = read();
    row(fmt::format("decoding, {} at a time", batch), static_cast<double>(batch), seconds,
        limits.decode_step(batch, decode_context, (before_steps + after_steps) / 2));
    return fmt::format("decoding {}: reading {:.0f} MB at {:.1f} GB/s before it, {:.1f} after it\n", batch, block / 1e6,
                       before_steps / 1e9, after_steps / 1e9);
  }

  void prefill() {
    Engine engine(config, weights, {.max_running = 1, .max_tokens = prefill_length + 1}, threads);
    const Request r = request(0, prefill_length, 1);
    row_of(
        fmt::format("prefill of {} tokens", prefill_length), prefill_length,
        [&] {
          engine.generate({&r, 1});
        },
        [](const CpuLimits& l) { return l.prefill(prefill_length); });
  }
};

}  // namespace

int run_bench(const Settings& settings) {
  ModelConfig config = make_preset(settings.preset, settings.num_layers).config;
  config.mtp_num_layers = 0;
  const DType dtype = settings.dtype == "bf16" ? DType::bf16 : DType::f32;
  const BenchClock clock = settings.bench_clock == "wall" ? BenchClock::wall : BenchClock::processor;
  ThreadPool threads(static_cast<int>(settings.threads));
  const Ceilings ceilings = measure_ceilings(threads, clock);
  Weights weights(config, dtype);
  init_weights(weights, config, 1, 0.02, &threads);
  const CpuLimits limits(config, dtype, ceilings, read_rate(threads, clock, weights.bytes()));
  std::printf(
      "%d threads, %s; fp32 multiply-adds %.0f GFLOP/s, bf16 dot products %s; reading memory %.1f GB/s, "
      "weights %.1f GB/s\n%s, %s: %.1f M parameters, %.1f M at work per token\n\n",
      threads.size(), ops::isa_name().c_str(), ceilings.fp32 / 1e9,
      ceilings.bf16 > 0 ? fmt::format("{:.0f} GFLOP/s", ceilings.bf16 / 1e9).c_str() : "none", ceilings.memory / 1e9,
      limits.weights_rate() / 1e9, settings.preset.c_str(), dtype == DType::bf16 ? "bf16" : "fp32",
      limits.parameters() / 1e6, limits.active_parameters() / 1e6);
  std::fflush(stdout);
  Table table({{"tokens/s"},
               {"median", Table::Align::right},
               {"worst", Table::Align::right},
               {"best", Table::Align::right},
               {"limit", Table::Align::right},
               {"of limit", Table::Align::right}});
  Bench bench{config, dtype, weights, threads, clock, limits, table};
  const auto wanted = [&](const char* name) {
    return std::find(settings.bench_figures.begin(), settings.bench_figures.end(), name) !=
           settings.bench_figures.end();
  };
  std::string rates;
  if (wanted("decode")) {
    for (const int64_t batch : decode_batches) rates += bench.decode(batch);
  }
  if (wanted("prefill")) bench.prefill();
  if (wanted("train")) bench.train();
  const std::string text = table.str() + (rates.empty() ? "" : "\n" + rates);
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (!written) fail(Exit::resources, "cannot write to standard output");
  return 0;
}

}  // namespace furlong
