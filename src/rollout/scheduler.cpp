#include "rollout/scheduler.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "ops/segments.h"

namespace furlong {

template <typename List, typename Item>
void Scheduler::insert_by_age(List& list, Item item) {
  const auto place =
      std::lower_bound(list.begin(), list.end(), age(*item), [](const auto& i, const Age& a) { return age(*i) < a; });
  list.insert(place, std::move(item));
}

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
  if (options_.share_prefixes) {
    job->chain = prefix_chain(job->request.prompt);
    cache_.expect(job->chain);
  }
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
  sample->unread = {};
  sample->again = true;
  preempted_[newest] = std::move(sample);
  return true;
}

void Scheduler::preempt_all() {
  while (preempt_newest({0, 0})) {
  }
  cache_.clear();
}

// Pages for the rows of the coming step, the oldest first.
void Scheduler::grow() {
  for (size_t i = 0; i < running_.size(); i++) {
    const Age mine = age(*running_[i]);
    const int64_t length = running_[i]->again ? running_[i]->rows() : running_[i]->memory.length;
    const int64_t rows = rows_to_step(running_[i]->job->request, length);
    const auto missing = [&] { return memory_.pages_for(rows) - std::ssize(running_[i]->memory.pages); };
    // A sequence may have to give up itself, as the newest.
    while (i < running_.size() && !make_room(missing(), 0)) {
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

// Whether a sequence of so many new pages may join those that run.
bool Scheduler::can_start(int64_t pages) const {
  if (std::ssize(running_) >= options_.max_running) return false;
  const int64_t ahead = running_.empty() ? 0 : headroom();
  return memory_.free_pages() >= pages + ahead || memory_.free_pages() + cache_.pages() >= pages + ahead;
}

// Kept prefixes give way to sequences, but not in vain.
bool Scheduler::make_room(int64_t pages, int64_t slots) {
  if (memory_.free_pages() >= pages && memory_.free_slots() >= slots) return true;
  if (memory_.free_pages() + cache_.pages() < pages || memory_.free_slots() + cache_.slots() < slots) return false;
  cache_.make_room(pages, slots);
  return true;
}

bool Scheduler::start_sample() {
  const auto parent = std::find_if(prefixes_.begin(), prefixes_.end(), [](const auto& p) { return p->complete(); });
  const std::shared_ptr<Prefix> prefix = *parent;
  const Request& request = prefix->job->request;
  const int64_t rows = rows_to_start(request, prefix->done), pages = memory_.pages_for_fork(prefix->done, rows);
  if (!can_start(pages) || !make_room(pages, 1)) return false;
  auto sample = begin_sample(prefix->job);
  sample->memory = memory_.fork(prefix->memory, rows);
  sample->fresh = prefix;
  sample->out.routes.prompt = prefix->routes;
  insert_by_age(running_, std::move(sample));
  // A parent gives way as soon as it can.
  if (prefix->job->started == request.samples) drop_prefix(prefix);
  return true;
}

// Memory for `rows` rows of a sequence of these tokens, with the rows that are kept of it. `pages` it would need at
// most have been found to be free. routes: gets those of these rows; rows without any are not taken then. Or null.
SequenceMemory Scheduler::begin(std::span<const int32_t> tokens, const std::vector<uint64_t>& chain, int64_t rows,
                                std::shared_ptr<OwnedTensor>& lead, RouteRows* routes) {
  lead = nullptr;
  const PrefixCache::Entry* kept = cache_.find(tokens, chain);
  if (kept != nullptr) {
    // What is kept may itself have to go.
    cache_.make_room(memory_.pages_for_fork(kept->rows(), rows), 1);
    kept = cache_.find(tokens, chain);
  }
  if (kept == nullptr || (routes != nullptr && kept->routes == nullptr) || memory_.free_slots() == 0 ||
      memory_.free_pages() < memory_.pages_for_fork(kept->rows(), rows)) {
    cache_.make_room(memory_.pages_for(rows), 1);
    return memory_.reserve(rows);
  }
  lead = kept->hidden;
  if (routes != nullptr) *routes = kept->routes->first(kept->rows());
  shared_rows_ += kept->rows();
  return memory_.fork(kept->memory, rows);
}

bool Scheduler::start_again() {
  const auto first = preempted_.begin();
  Sample& sample = *first->second;
  const int64_t rows = rows_to_start(sample.job->request, sample.rows());
  const int64_t pages = memory_.pages_for(rows);
  if (!can_start(pages) || memory_.free_slots() + cache_.slots() == 0) return false;
  std::vector<int32_t> tokens;
  for (int64_t p = 0; p <= sample.rows(); p++) tokens.push_back(sample.token(p));
  sample.memory = begin(tokens, options_.share_prefixes ? prefix_chain(tokens) : std::vector<uint64_t>(), rows,
                        sample.lead, nullptr);
  insert_by_age(running_, std::move(first->second));
  preempted_.erase(first);
  return true;
}

// Whether a prompt before it is about to run more rows that it shares than the `rows` that are kept.
bool Scheduler::waits_for_another(const Job& job, int64_t rows) const {
  return std::any_of(prefixes_.begin(), prefixes_.end(), [&](const auto& p) {
    if (p->complete()) return false;
    const auto& theirs = p->job->chain;
    const auto end = std::mismatch(theirs.begin(), theirs.end(), job.chain.begin(), job.chain.end()).first;
    const int64_t shared = (end - theirs.begin()) * delta_chunk;
    const int64_t stop = cache_.next_stop(theirs, std::max(p->done, rows));
    return stop > 0 && stop <= shared;
  });
}

bool Scheduler::start_prompt() {
  const std::shared_ptr<Job> job = waiting_.begin()->second;
  const auto later = [&](const Job& j) {
    return memory_.pages_for_fork(j.prompt(), rows_to_start(j.request, j.prompt())) * (j.request.samples - j.started);
  };
  const int64_t own = memory_.pages_for(job->prompt());
  if (memory_.free_slots() + cache_.slots() < 2) return false;
  if (!prefixes_.empty() || !running_.empty()) {
    // A prompt waits until all of its samples can start beside those of the prompts before it, unless it is alone.
    int64_t promised = headroom();
    for (const auto& p : prefixes_) promised += later(*p->job);
    if (memory_.free_pages() + cache_.pages() - promised < own + later(*job)) return false;
    if (std::ssize(running_) + std::ssize(prefixes_) >= options_.max_running) return false;
    const PrefixCache::Entry* kept = cache_.find(job->request.prompt, job->chain);
    if (waits_for_another(*job, kept == nullptr ? 0 : kept->rows())) return false;
  }
  auto prefix = std::make_shared<Prefix>();
  prefix->job = job;
  prefix->memory = begin(job->request.prompt, job->chain, job->prompt(), prefix->lead,
                         job->request.routes ? prefix->routes.get() : nullptr);
  prefix->done = prefix->memory.length;
  cache_.make_room(0, 1);  // for a sample
  insert_by_age(prefixes_, std::move(prefix));
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
