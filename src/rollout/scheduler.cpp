#include "rollout/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace furlong {

void Scheduler::check(const Request& request, uint64_t name) const {
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  CHECK(prompt > 0, "request {} has an empty prompt", name);
  CHECK(request.samples > 0 && request.max_new_tokens > 0, "request {} wants {} samples of {} tokens", name,
        request.samples, request.max_new_tokens);
  const int64_t available = memory_.options().pages - 1;
  const int64_t needed = memory_.pages_for(prompt) + memory_.pages_for_fork(prompt, rows_of(request));
  if (needed <= available) return;
  fail(Exit::resources,
       "request {} needs {} pages of {} tokens ({} prompt + {} new + {} draft tokens), the rollout has {}. Shorten it "
       "or "
       "raise --rollout-mem-fraction-static.",
       name, needed, memory_.options().page, prompt, request.max_new_tokens, options_.drafts, available);
}

uint64_t Scheduler::submit(Request request, Sink sink) {
  check(request, next_id_);
  auto job = std::make_shared<Job>();
  job->id = next_id_++;
  job->request = std::move(request);
  job->sink = std::move(sink);
  jobs_[job->id] = waiting_[job->id] = job;
  return job->id;
}

void Scheduler::cancel(uint64_t request) {
  const auto found = jobs_.find(request);
  if (found != jobs_.end()) found->second->cancelled = any_cancelled_ = true;
}

void Scheduler::forget(std::span<const uint64_t> requests) {
  for (const uint64_t id : requests) cancel(id);
  end_cancelled();
  std::erase_if(aborted_, [&](const auto& sample) {
    return std::find(requests.begin(), requests.end(), sample->out.request) != requests.end();
  });
}

std::unique_ptr<Sample> Scheduler::begin_sample(const std::shared_ptr<Job>& job) const {
  const Request& request = job->request;
  auto sample = std::make_unique<Sample>();
  sample->job = job;
  sample->key = {.seed = request.seed,
                 .group = static_cast<uint32_t>(request.group_index),
                 .sample = static_cast<uint32_t>(request.first_sample + job->started),
                 .position = 0,
                 .purpose = Purpose::sample};
  sample->out.request = job->id;
  sample->out.sample = job->started++;
  return sample;
}

void Scheduler::drop_prefix(const std::shared_ptr<Prefix>& prefix) {
  memory_.release(prefix->memory);
  std::erase(prefixes_, prefix);
}

void Scheduler::end_cancelled() {
  if (!std::exchange(any_cancelled_, false)) return;
  const auto abort = [&](std::unique_ptr<Sample> sample) {
    memory_.release(sample->memory);
    sample->out.reason = FinishReason::abort;
    aborted_.push_back(std::move(sample));
  };
  for (auto it = jobs_.begin(); it != jobs_.end();) {
    const std::shared_ptr<Job> job = it->second;
    if (!job->cancelled) {
      ++it;
      continue;
    }
    for (auto& sample : running_) {
      if (sample->job == job) abort(std::move(sample));
    }
    std::erase(running_, nullptr);
    const auto first = preempted_.lower_bound({job->id, 0}), last = preempted_.lower_bound({job->id + 1, 0});
    for (auto waits = first; waits != last; ++waits) abort(std::move(waits->second));
    preempted_.erase(first, last);
    const auto prefix = std::find_if(prefixes_.begin(), prefixes_.end(), [&](const auto& p) { return p->job == job; });
    if (prefix != prefixes_.end()) drop_prefix(*prefix);
    while (job->started < job->request.samples) abort(begin_sample(job));
    waiting_.erase(job->id);
    it = jobs_.erase(it);
  }
}

// Gives up the newest sequence unless it is older than `than`, which says whether there was one.
bool Scheduler::preempt_newest(Age than) {
  const bool is_prefix = !prefixes_.empty() && (running_.empty() || age(*running_.back()) < age(*prefixes_.back()));
  if (!is_prefix && running_.empty()) return false;
  const Age newest = is_prefix ? age(*prefixes_.back()) : age(*running_.back());
  if (newest < than) return false;
  preemptions_++;
  if (is_prefix) {
    const std::shared_ptr<Prefix> prefix = prefixes_.back();
    drop_prefix(prefix);
    waiting_[prefix->job->id] = prefix->job;
    return true;
  }
  std::unique_ptr<Sample> sample = std::move(running_.back());
  running_.pop_back();
  CHECK(sample->fresh == nullptr, "a sample preempted before its first token");
  memory_.release(sample->memory);
  sample->drafts.clear();
  sample->again = true;
  preempted_[newest] = std::move(sample);
  return true;
}

// Pages for the rows of the coming step, the oldest first.
void Scheduler::grow() {
  for (size_t i = 0; i < running_.size(); i++) {
    const Age mine = age(*running_[i]);
    const int64_t length = running_[i]->again ? running_[i]->rows() : running_[i]->memory.length;
    const int64_t rows = std::min(rows_of(running_[i]->job->request), length + 1 + options_.drafts);
    const auto missing = [&] { return memory_.pages_for(rows) - std::ssize(running_[i]->memory.pages); };
    // A sequence may have to give up itself, as the newest.
    while (i < running_.size() && missing() > memory_.free_pages()) {
      CHECK(preempt_newest(mine), "the pages of a lone sequence are gone");
    }
    if (i < running_.size() && missing() > 0) memory_.extend(running_[i]->memory, rows);
  }
}

// Pages that running samples may ask for soon.
int64_t Scheduler::headroom() const {
  int64_t pages = 0;
  for (const auto& s : running_) {
    const int64_t length = s->again ? s->rows() : s->memory.length;
    const int64_t wanted = memory_.pages_for(rows_to_start(s->job->request, length));
    pages += std::max<int64_t>(0, wanted - std::ssize(s->memory.pages));
  }
  return pages;
}

bool Scheduler::fits(int64_t pages) const {
  if (memory_.free_slots() == 0 || std::ssize(running_) >= options_.max_running) return false;
  return memory_.free_pages() >= (running_.empty() ? pages : pages + headroom());
}

bool Scheduler::start_sample() {
  const auto parent = std::find_if(prefixes_.begin(), prefixes_.end(), [](const auto& p) { return p->complete(); });
  const std::shared_ptr<Prefix> prefix = *parent;
  const Request& request = prefix->job->request;
  const int64_t rows = rows_to_start(request, prefix->done);
  if (!fits(memory_.pages_for_fork(prefix->done, rows))) return false;
  auto sample = begin_sample(prefix->job);
  sample->memory = memory_.fork(prefix->memory, rows);
  sample->fresh = prefix;
  const auto place = std::lower_bound(running_.begin(), running_.end(), age(*sample),
                                      [](const auto& s, const Age& a) { return age(*s) < a; });
  running_.insert(place, std::move(sample));
  // A parent gives way as soon as it can.
  if (prefix->job->started == request.samples) drop_prefix(prefix);
  return true;
}

bool Scheduler::start_again() {
  const auto first = preempted_.begin();
  const int64_t rows = rows_to_start(first->second->job->request, first->second->rows());
  if (!fits(memory_.pages_for(rows))) return false;
  first->second->memory = memory_.reserve(rows);
  const auto place = std::lower_bound(running_.begin(), running_.end(), first->first,
                                      [](const auto& s, const Age& a) { return age(*s) < a; });
  running_.insert(place, std::move(first->second));
  preempted_.erase(first);
  return true;
}

bool Scheduler::start_prompt() {
  const std::shared_ptr<Job> job = waiting_.begin()->second;
  const auto later = [&](const Job& j) {
    return memory_.pages_for_fork(j.prompt(), rows_to_start(j.request, j.prompt())) * (j.request.samples - j.started);
  };
  const int64_t own = memory_.pages_for(job->prompt());
  if (memory_.free_slots() < 2) return false;
  if (!prefixes_.empty() || !running_.empty()) {
    // A prompt waits until all of its samples can start beside those of the prompts before it, unless it is alone.
    int64_t promised = headroom();
    for (const auto& p : prefixes_) promised += later(*p->job);
    if (memory_.free_pages() - promised < own + later(*job)) return false;
    if (std::ssize(running_) + std::ssize(prefixes_) >= options_.max_running) return false;
  }
  auto prefix = std::make_shared<Prefix>();
  prefix->job = job;
  prefix->memory = memory_.reserve(job->prompt());
  const auto place = std::lower_bound(prefixes_.begin(), prefixes_.end(), age(*prefix),
                                      [](const auto& p, const Age& a) { return age(*p) < a; });
  prefixes_.insert(place, std::move(prefix));
  waiting_.erase(waiting_.begin());
  return true;
}

void Scheduler::schedule() {
  end_cancelled();
  grow();
  for (;;) {
    // The oldest thing that could start; nothing newer goes before it.
    constexpr Age never{UINT64_MAX, 0};
    const auto parent = std::find_if(prefixes_.begin(), prefixes_.end(), [](const auto& p) { return p->complete(); });
    const Age fork = parent == prefixes_.end() ? never : age(**parent);
    const Age again = preempted_.empty() ? never : preempted_.begin()->first;
    const Age prompt = waiting_.empty() ? never : Age{waiting_.begin()->first, waiting_.begin()->second->started};
    const Age oldest = std::min({fork, again, prompt});
    if (oldest == never) return;
    if (oldest == fork ? start_sample() : oldest == again ? start_again() : start_prompt()) continue;
    // Prompts that wait for their samples' memory must not wait for each other.
    const bool moves = !running_.empty() ||
                       std::any_of(prefixes_.begin(), prefixes_.end(), [](const auto& p) { return !p->complete(); });
    if (moves) return;
    CHECK(preempt_newest({oldest.first, oldest.second + 1}), "request {} fits and cannot start", oldest.first);
  }
}

std::vector<std::unique_ptr<Sample>> Scheduler::retire() {
  std::vector<std::unique_ptr<Sample>> ended = std::move(aborted_);
  aborted_.clear();
  for (auto& sample : running_) {
    if (!sample->ended) continue;
    memory_.release(sample->memory);
    Job& job = *sample->job;
    if (++job.ended == job.request.samples) jobs_.erase(job.id);
    ended.push_back(std::move(sample));
  }
  std::erase(running_, nullptr);
  return ended;
}

}  // namespace furlong
