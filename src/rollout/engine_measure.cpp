// What a step costs with drafts and without.
#include <chrono>
#include <cstdlib>
#include <utility>

#include "base/log.h"
#include "base/rng.h"
#include "rollout/round.h"

namespace furlong {
namespace {

// The costs of rank 0, at any number of ranks.
StepCosts of_first_rank(const Mesh& mesh, const StepCosts& mine) {
  std::string text;
  for (size_t i = 0; i < mine.sequences.size(); i++) text += fmt::format("{} {}\n", mine.plain[i], mine.drafted[i]);
  const std::string first = mesh.world().gather_bytes(text).front();
  StepCosts costs = mine;
  const char* at = first.c_str();
  for (size_t i = 0; i < mine.sequences.size(); i++) {
    char* end = nullptr;
    costs.plain[i] = std::strtod(at, &end);
    costs.drafted[i] = std::strtod(end, &end);
    at = end;
  }
  return costs;
}

}  // namespace

// Seconds of a step in which so many sequences decode a few tokens from their start: tokens of the whole vocabulary,
// that go to as many experts as those of a rollout.
double Engine::seconds_of_step(int64_t sequences, bool drafted) {
  const auto job = std::make_shared<Job>();
  job->request = {.prompt = {0}, .params = {.temperature = 1}, .max_new_tokens = INT32_MAX};
  std::vector<std::unique_ptr<Sample>> samples;
  for (int64_t i = 0; i < sequences; i++) {
    samples.push_back(std::make_unique<Sample>());
    samples.back()->job = job;
    samples.back()->memory = memory_->reserve(2 + 2 * options_.drafts);
  }
  uint32_t drawn = 0;
  const auto any = [&] {
    const auto below = static_cast<uint32_t>(std::min<int64_t>(config_.vocab_size, UINT32_MAX));
    return static_cast<int32_t>(random_word({.seed = 1}, drawn++) % below);
  };
  double best = 0;
  // On a device the first steps make room for a recording, and record.
  const int warm = weights_.device() == Device::cpu ? 1 : 3;
  for (int run = 0; run < warm + 2; run++) {
    const Arena::Scope scope(arena_);
    Round round;
    round.drafting = drafted;
    for (const auto& s : samples) {
      s->memory.length = 0;
      s->out.tokens = {any()};
      s->out.log_probs = {0};
      s->drafts.resize(drafted ? static_cast<size_t>(options_.drafts) : 0);
      for (auto& token : s->drafts) token = any();
      add_decoding(round, *s);
    }
    stream_.synchronize();
    const auto start = std::chrono::steady_clock::now();
    const Tensor hidden = forward(round);
    draw(round, hidden);
    extend_drafts(round, hidden);
    stream_.synchronize();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (run == warm || (run > warm && seconds.count() < best)) best = seconds.count();
  }
  for (const auto& s : samples) memory_->release(s->memory);
  unread_rows_ = 0;
  return best;
}

void Engine::measure_speculation() {
  if (!options_.measure_speculation || options_.drafts == 0 || std::exchange(measured_, true)) return;
  scheduler_->cache().clear();
  const EngineStats before = stats_;
  const int64_t pages = memory_->pages_for(2 + 2 * options_.drafts);
  const int64_t most = std::min({options_.max_running, memory_->free_slots(), memory_->free_pages() / pages});
  StepCosts costs;
  for (int64_t n = 1; n < most; n *= 4) costs.sequences.push_back(n);
  costs.sequences.push_back(most);
  said_left_out_ = true;
  for (const int64_t n : costs.sequences) {
    costs.plain.push_back(seconds_of_step(n, false));
    costs.drafted.push_back(seconds_of_step(n, true));
  }
  said_left_out_ = false;
  if (in_lockstep()) costs = of_first_rank(mesh_, costs);
  policy_ = DraftPolicy(options_.drafts, std::move(costs));
  stats_ = before;
  if (mesh_.world().rank() == 0) log::info("{}", policy_.text());
}

}  // namespace furlong
