// Random schedules of the engine, each held against sequences drawn alone, one row at a time and without drafts, and
// against the trainer's forward over them: the same tokens, the same bits of log-probs, nothing left in the memory.
#pragma once
#include <map>
#include <memory>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "model/model.h"
#include "rl/loss_head.h"
#include "rollout/fixture.h"

namespace furlong {

// log-probs of the rows behind each prompt under the trainer's forward, all sequences in one batch.
struct Scored {
  std::vector<int32_t> tokens;  // prompt and response
  size_t prompt = 0;
};
inline std::vector<std::vector<float>> trainer_log_probs(const TestModel& m, const std::vector<Scored>& sequences,
                                                         double temperature, ThreadPool& threads) {
  BatchBuilder builder;
  std::vector<HeadRow> rows;
  for (const auto& s : sequences) {
    const auto first = static_cast<int32_t>(builder.rows());
    builder.add(s.tokens.data(), std::ssize(s.tokens));
    for (size_t t = s.prompt; t < s.tokens.size(); t++)
      rows.push_back({first + static_cast<int32_t>(t) - 1, s.tokens[t]});
  }
  const Batch batch = builder.batch();
  std::vector<double> found(rows.size());
  const auto body = [&](Exec exec) {
    const Tensor hidden = model_forward(exec, m.config, m.weights, batch, nullptr);
    score_rows(exec, m.weights, hidden, rows, {.temperature = temperature}, found, {});
  };
  Arena measure = Arena::measuring();
  Stream dry = Stream::dry(threads), stream(threads);
  body({dry, measure});
  Arena arena(measure.high_mark());
  body({stream, arena});
  std::vector<std::vector<float>> out;
  size_t at = 0;
  for (const auto& s : sequences) {
    const size_t n = s.tokens.size() - s.prompt;
    out.emplace_back(found.begin() + static_cast<int64_t>(at), found.begin() + static_cast<int64_t>(at + n));
    at += n;
  }
  return out;
}

struct ScheduleCounts {
  int64_t schedules = 0, samples = 0, tokens = 0, aborted = 0, refused = 0, preemptions = 0, shared_rows = 0;
  int64_t drafted = 0, accepted = 0, packed_tokens = 0, sleeps = 0;
};

class Schedules {
 public:
  // What a schedule may deviate in is thrown as std::runtime_error, naming the seed.
  void play(uint64_t seed, ScheduleCounts& counts);

 private:
  static constexpr int64_t longest = 90;  // tokens of a response
  // A prompt of the pool, how it is sampled, and which draws.
  struct Template {
    std::vector<int32_t> prompt;
    SampleParams params;
    uint64_t seed = 0;
    int64_t group = 0;
  };
  struct Model {
    TestModel m;
    std::vector<Template> pool;
    std::map<std::pair<size_t, int64_t>, Completion> alone;  // by template and sample
  };
  struct Asked {
    size_t from = 0;
    Request request;
    bool cancelled = false;
    std::map<int64_t, Completion> told, ended;
  };
  Model& model(size_t kind);
  const Completion& alone(Model&, size_t from, int64_t sample);
  static StepCosts costs_for(Numbers&);
  EngineOptions options_for(Numbers&, const std::vector<Asked>&);
  Request request_for(Numbers&, const Model&, size_t from);
  void run(Numbers&, Engine&, std::vector<Asked>&, ScheduleCounts&);
  void compare(Model&, const Asked&, ScheduleCounts&);
  void pack(Model&, const std::vector<Asked>&, ScheduleCounts&);
  void require(bool holds, const std::string& what) const {
    if (!holds) throw std::runtime_error(fmt::format("schedule {}: {}", seed_, what));
  }

  std::map<size_t, std::unique_ptr<Model>> models_;
  ThreadPool one_{1}, two_{2};
  uint64_t seed_ = 0;
};

inline Schedules::Model& Schedules::model(size_t kind) {
  auto& found = models_[kind];
  if (found) return *found;
  found = std::make_unique<Model>();
  // Drafts that are guesses, that are always right, in bf16, and the checkpoint of 8 layers.
  switch (kind) {
    case 0: found->m = toy_model(); break;
    case 1: found->m = foreseen_model(); break;
    case 2: found->m = toy_model(8, DType::bf16); break;
    default: {
      found->m.config = read_model_config(tiny_folder);
      found->m.weights = load_hf(tiny_folder, found->m.config, kind == 3 ? DType::f32 : DType::bf16);
    }
  }
  Numbers numbers(100 + kind);
  const int64_t vocab = found->m.config.vocab_size;
  std::vector<std::vector<int32_t>> trunks;
  for (const int64_t length : {0, 40, 64, 129}) trunks.push_back(random_tokens(numbers, length, vocab));
  constexpr SampleParams params[] = {{.temperature = 0}, {.temperature = 1}, {.temperature = 0.7, .top_k = 5}};
  for (int64_t i = 0; i < (kind < 3 ? 120 : 24); i++) {
    Template t{.prompt = trunks[static_cast<size_t>(numbers.between(0, 3))],
               .params = params[numbers.between(0, 2)],
               .seed = static_cast<uint64_t>(numbers.between(0, 3)),
               .group = i};
    const auto tail = random_tokens(numbers, numbers.between(1, i % 4 == 0 ? 90 : 20), vocab);
    t.prompt.insert(t.prompt.end(), tail.begin(), tail.end());
    found->pool.push_back(std::move(t));
  }
  return *found;
}

// Drawn alone and without drafts, and scored by the trainer's forward.
inline const Completion& Schedules::alone(Model& model, size_t from, int64_t sample) {
  const auto found = model.alone.find({from, sample});
  if (found != model.alone.end()) return found->second;
  const Template& t = model.pool[from];
  Engine engine(model.m.config, model.m.weights,
                {.max_running = 1, .max_tokens = std::ssize(t.prompt) + longest, .share_prefixes = false}, one_);
  const Request r{.prompt = t.prompt,
                  .samples = 3,
                  .params = t.params,
                  .max_new_tokens = longest,
                  .seed = t.seed,
                  .group_index = t.group};
  for (auto& c : engine.generate({&r, 1})) {
    std::vector<int32_t> tokens = t.prompt;
    tokens.insert(tokens.end(), c.tokens.begin(), c.tokens.end());
    const double temperature = t.params.temperature == 0 ? 1 : t.params.temperature;
    const auto scored = trainer_log_probs(model.m, {{std::move(tokens), t.prompt.size()}}, temperature, one_);
    require(scored[0] == c.log_probs, "the trainer's log-probs of a lone sequence");
    const int64_t number = c.sample;
    model.alone[{from, number}] = std::move(c);
  }
  return model.alone.at({from, sample});
}

inline Request Schedules::request_for(Numbers& numbers, const Model& model, size_t from) {
  const Template& t = model.pool[from];
  Request r{.prompt = t.prompt,
            .samples = numbers.between(1, 3),
            .params = t.params,
            .max_new_tokens = numbers.between(0, 3) == 0 ? numbers.between(1, longest) : numbers.between(1, 24),
            .seed = t.seed,
            .group_index = t.group};
  const int64_t vocab = model.m.config.vocab_size;
  if (numbers.between(0, 2) == 0) {
    r.stop_ids = random_tokens(numbers, numbers.between(1, vocab > 100 ? 20 : 1), vocab);
  }
  if (numbers.between(0, 5) == 0) {
    const auto sum = static_cast<int32_t>(numbers.between(3, 9));
    r.stop_when = [sum](std::span<const int32_t> tokens) {
      return tokens.size() >= 2 && (tokens.back() + tokens[tokens.size() - 2]) % 16 == sum;
    };
  }
  return r;
}

// Drafts that always pay, or only for a few sequences at once.
inline StepCosts Schedules::costs_for(Numbers& numbers) {
  if (numbers.between(0, 2) > 0) return {};
  const int64_t few = numbers.between(1, 4);
  return {.sequences = {few, few + 1}, .plain = {1, 1}, .drafted = {1, 100}};
}

inline EngineOptions Schedules::options_for(Numbers& numbers, const std::vector<Asked>& asked) {
  constexpr int64_t pages[] = {8, 8, 16, 64, 32}, margins[] = {0, 0, 0, 16, SchedulerOptions::reserve_all};
  EngineOptions o{.max_running = numbers.between(1, 8),
                  .drafts = numbers.between(0, numbers.between(0, 9) == 0 ? 16 : 3),
                  .page = pages[numbers.between(0, 4)],
                  .max_tokens = 400,
                  .prefill_budget = 64 * numbers.between(1, 4),
                  .margin = margins[numbers.between(0, 4)],
                  .share_prefixes = numbers.between(0, 3) > 0,
                  .keep_prefixes = numbers.between(0, 1) == 0,
                  .step_costs = costs_for(numbers),
                  .greedy_drafts = numbers.between(0, 3) == 0};
  int64_t rows = 0;
  for (const auto& a : asked) rows = std::max(rows, std::ssize(a.request.prompt) + a.request.max_new_tokens);
  // From too little for one to plenty for all.
  o.max_pages = 2 + (rows + o.drafts) / o.page + numbers.between(-1, numbers.between(0, 2) > 0 ? 4 : 60);
  o.max_slots = numbers.between(3, 12);
  return o;
}

inline void Schedules::run(Numbers& numbers, Engine& engine, std::vector<Asked>& asked, ScheduleCounts& counts) {
  const auto& memory = engine.memory();
  const int64_t drafts = memory.options().draft_rows - 1;
  std::map<uint64_t, size_t> ids;
  size_t next = 0;
  int64_t rounds = 0;
  const int64_t pace = numbers.between(0, 12);
  while (next < asked.size() || !engine.idle()) {
    require(++rounds < 20000, "requests wait without end");
    while (next < asked.size() && (engine.idle() || numbers.between(0, pace) == 0)) {
      const Request& r = asked[next].request;
      const int64_t prompt = std::ssize(r.prompt);
      const bool fits = memory.pages_for(prompt) + memory.pages_for_fork(prompt, prompt + r.max_new_tokens + drafts) <=
                        memory.options().pages - 1;
      bool taken = true;
      try {
        const size_t i = next;
        ids[engine.submit(r, [this, &asked, i](const Emitted& e) {
          Completion& told = asked[i].told[e.sample];
          told.tokens.insert(told.tokens.end(), e.tokens.begin(), e.tokens.end());
          told.log_probs.insert(told.log_probs.end(), e.log_probs.begin(), e.log_probs.end());
          if (e.finished != nullptr) {
            require(asked[i].ended.emplace(e.sample, *e.finished).second, "a sample that ended twice");
          }
        })] = next;
      } catch (const Error& e) {
        require(e.code() == Exit::resources, e.what());
        taken = false;
        counts.refused++;
        asked[next].request.samples = 0;
      }
      require(taken == fits,
              fmt::format("a request was {} and {}", fits ? "small enough" : "too large", taken ? "taken" : "refused"));
      next++;
    }
    if (!ids.empty() && numbers.between(0, 150) == 0) {
      auto it = ids.begin();
      std::advance(it, numbers.between(0, std::ssize(ids) - 1));
      engine.cancel(it->first);
      asked[it->second].cancelled = true;
    }
    engine.step();
    if (numbers.between(0, 400) == 0) {
      engine.sleep();
      require(memory.free_pages() == memory.options().pages - 1, "a page held in sleep");
      counts.sleeps++;
    }
  }
}

inline void Schedules::compare(Model& model, const Asked& asked, ScheduleCounts& counts) {
  const Request& r = asked.request;
  require(std::ssize(asked.ended) == r.samples, "samples without an end");
  for (const auto& [sample, c] : asked.ended) {
    const Completion& whole = alone(model, asked.from, sample);
    size_t n = 0;
    FinishReason reason = FinishReason::length;
    for (bool ends = false; !ends;) {
      const int32_t token = whole.tokens[n++];
      const bool stops = std::find(r.stop_ids.begin(), r.stop_ids.end(), token) != r.stop_ids.end() ||
                         (r.stop_when && r.stop_when({whole.tokens.data(), n}));
      if (stops) reason = FinishReason::stop;
      ends = stops || static_cast<int64_t>(n) == r.max_new_tokens;
    }
    if (c.reason == FinishReason::abort) {
      require(asked.cancelled && c.tokens.size() < n, "an abort that nobody asked for");
      n = c.tokens.size();
      counts.aborted++;
    } else {
      require(c.reason == reason && c.tokens.size() == n, "where a sample ends");
    }
    require(std::equal(c.tokens.begin(), c.tokens.end(), whole.tokens.begin()), "tokens");
    require(std::equal(c.log_probs.begin(), c.log_probs.end(), whole.log_probs.begin()), "log-probs");
    const Completion& told = asked.told.at(sample);
    require(told.tokens == c.tokens && told.log_probs == c.log_probs, "what was told of a sample");
    counts.samples++;
    counts.tokens += static_cast<int64_t>(n);
    counts.drafted += c.drafted;
    counts.accepted += c.accepted;
  }
}

// The trainer's forward over all responses of a temperature, packed together.
inline void Schedules::pack(Model& model, const std::vector<Asked>& asked, ScheduleCounts& counts) {
  std::map<double, std::vector<Scored>> sequences;
  std::map<double, std::vector<std::vector<float>>> expected;
  for (const auto& a : asked) {
    for (const auto& [sample, c] : a.ended) {
      const double t = a.request.params.temperature == 0 ? 1 : a.request.params.temperature;
      std::vector<int32_t> tokens = a.request.prompt;
      tokens.insert(tokens.end(), c.tokens.begin(), c.tokens.end());
      sequences[t].push_back({std::move(tokens), a.request.prompt.size()});
      expected[t].push_back(c.log_probs);
      counts.packed_tokens += std::ssize(c.tokens);
    }
  }
  for (const auto& [t, list] : sequences) {
    require(trainer_log_probs(model.m, list, t, seed_ % 2 == 0 ? one_ : two_) == expected[t],
            "the trainer's log-probs of the packed responses");
  }
}

inline void Schedules::play(uint64_t seed, ScheduleCounts& counts) {
  seed_ = seed;
  Numbers numbers(seed);
  const int64_t dice = numbers.between(0, 99);
  Model& m = model(dice < 45 ? 0 : dice < 70 ? 1 : dice < 95 ? 2 : dice < 98 ? 3 : 4);
  std::vector<Asked> asked(static_cast<size_t>(numbers.between(1, 7)));
  for (auto& a : asked) {
    a.from = static_cast<size_t>(numbers.between(0, std::ssize(m.pool) - 1));
    a.request = request_for(numbers, m, a.from);
  }
  const EngineOptions options = options_for(numbers, asked);
  Engine engine(m.m.config, m.m.weights, options, numbers.between(0, 3) == 0 ? two_ : one_);
  run(numbers, engine, asked, counts);
  for (const auto& a : asked) compare(m, a, counts);
  if (seed % 16 == 0) pack(m, asked, counts);
  engine.set_weights_version(1);
  const auto& memory = engine.memory();
  require(memory.free_pages() == memory.options().pages - 1 && memory.free_slots() == memory.options().slots - 1,
          "pages or slots that nobody holds are not free");
  counts.schedules++;
  counts.preemptions += engine.stats().preemptions;
  counts.shared_rows += engine.stats().shared_rows;
}

inline std::string text_of(const ScheduleCounts& c) {
  return fmt::format(
      "{} schedules: {} samples, {} tokens equal to the bit ({} of them also in packs), {} of {} drafts accepted, {} "
      "preemptions, {} sleeps, {} rows shared, {} aborted, {} requests refused",
      c.schedules, c.samples, c.tokens, c.packed_tokens, c.accepted, c.drafted, c.preemptions, c.sleeps, c.shared_rows,
      c.aborted, c.refused);
}

}  // namespace furlong
