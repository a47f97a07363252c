#include "rollout/scheduler.h"

#include <algorithm>

#include "base/error.h"

namespace furlong {

Scheduler::Scheduler(std::span<const Request> requests, RolloutMemory& memory, int64_t max_running, int64_t drafts)
    : requests_(requests), memory_(memory), max_running_(max_running), drafts_(drafts) {
  const int64_t available = memory.options().pages - 1;
  for (size_t i = 0; i < requests.size(); i++) {
    const auto prompt = static_cast<int64_t>(requests[i].prompt.size());
    CHECK(prompt > 0, "request {} has an empty prompt", i);
    const int64_t needed = memory.pages_for(prompt) + memory.pages_for_fork(prompt, rows_of(requests[i]));
    if (needed > available) {
      fail(Exit::resources,
           "request {} needs {} pages of {} tokens ({} prompt + {} new + {} draft tokens), the rollout has {}. Shorten "
           "it or "
           "raise --rollout-mem-fraction-static.",
           i, needed, memory.options().page, prompt, requests[i].max_new_tokens, drafts, available);
    }
  }
}

void Scheduler::admit() {
  // Samples first, so that a prefix gives way as soon as it can.
  for (auto& prefix : prefixes_) {
    const Request& request = requests_[prefix->request];
    const auto prompt = static_cast<int64_t>(request.prompt.size());
    const int64_t needed = memory_.pages_for_fork(prompt, rows_of(request));
    while (prefix->done == prompt && prefix->started < request.samples && memory_.free_slots() > 0 &&
           static_cast<int64_t>(running_.size()) < max_running_ && memory_.free_pages() >= needed) {
      auto sample = std::make_unique<Sample>();
      sample->request = prefix->request;
      sample->memory = memory_.fork(prefix->memory, rows_of(request));
      sample->fresh = prefix;
      sample->key = {.seed = request.seed,
                     .group = static_cast<uint32_t>(request.group_index),
                     .sample = static_cast<uint32_t>(prefix->started),
                     .position = 0,
                     .purpose = Purpose::sample};
      sample->temperature = request.params.temperature;
      sample->out.request = prefix->request;
      sample->out.sample = prefix->started++;
      const int64_t kept = std::min(prefix->promised, needed);
      prefix->promised -= kept;
      promised_ -= kept;
      running_.push_back(std::move(sample));
    }
  }
  std::erase_if(prefixes_, [&](const auto& prefix) {
    if (prefix->started < requests_[prefix->request].samples) return false;
    promised_ -= prefix->promised;
    memory_.release(prefix->memory);
    return true;
  });
  while (next_ < requests_.size() && memory_.free_slots() > 1) {
    const Request& request = requests_[next_];
    const auto prompt = static_cast<int64_t>(request.prompt.size());
    const int64_t own = memory_.pages_for(prompt);
    const int64_t later = memory_.pages_for_fork(prompt, rows_of(request)) * request.samples;
    const bool idle = prefixes_.empty() && running_.empty();
    // A prompt waits until all of its samples fit beside those already promised, unless it is alone.
    if (!idle && memory_.free_pages() - promised_ < own + later) break;
    if (!idle && static_cast<int64_t>(running_.size() + prefixes_.size()) >= max_running_) break;
    auto prefix = std::make_shared<Prefix>();
    prefix->request = next_++;
    prefix->memory = memory_.reserve(prompt);
    prefix->promised = std::min(later, memory_.free_pages() - promised_);
    promised_ += prefix->promised;
    prefixes_.push_back(std::move(prefix));
  }
}

void Scheduler::retire() {
  for (Sample* sample : ended) memory_.release(sample->memory);
  std::erase_if(running_, [&](const auto& s) { return std::find(ended.begin(), ended.end(), s.get()) != ended.end(); });
  ended.clear();
}

}  // namespace furlong
