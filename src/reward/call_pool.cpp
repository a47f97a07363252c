#include "reward/call_pool.h"

#include <algorithm>

#include "base/check.h"
#include "base/error.h"
#include "base/json.h"
#include "base/rng.h"
#include "base/subprocess.h"
#include "base/text.h"

namespace furlong {
namespace {

std::chrono::nanoseconds duration(double seconds) {
  return std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
}

std::string joined_bodies(const std::vector<std::string_view>& bodies) {
  std::string out = "{\"samples\":[";
  for (size_t i = 0; i < bodies.size(); i++) {
    if (i > 0) out += ',';
    out += bodies[i];
  }
  return out + "]}";
}

}  // namespace

// The answer to each of the questions of a call, or why there is none.
std::string CallPool::read_answer(const std::string& text, size_t count, std::vector<Called>& out) const {
  try {
    const Json json = parse_json(text, "the answer");
    if (options_.batch == 1) {
      out.push_back({text, {}});
      return "";
    }
    const Json& list = json.is_object() && json.contains("rewards") ? json["rewards"] : json;
    if (!list.is_array() || list.size() != count) {
      return fmt::format("the answer to {} samples is not a list of {}: {}", count, count, printable(text));
    }
    for (const Json& item : list) out.push_back({item.dump(), {}});
    return "";
  } catch (const Error& e) {
    return e.what();
  }
}

CallPool::CallPool(const CallOptions& options) : options_(options) {
  CHECK(options.url.empty() != options.command.empty(), "a pool asks one of URL and command");
  if (!options_.command.empty()) options_.tries = options_.batch = 1;
  for (int64_t i = 0; i < options_.workers; i++) {
    auto worker = std::make_unique<Worker>();
    const std::string errors =
        options_.log_directory.empty() ? "" : fmt::format("{}/{}-{}.err", options_.log_directory, options_.name, i);
    worker->channel = options_.url.empty() ? command_channel(options_.command, errors, options_.most_bytes)
                                           : http_channel(options_.url, options_.most_bytes);
    workers_.push_back(std::move(worker));
  }
  for (auto& worker : workers_) worker->thread = std::thread([this, w = worker.get()] { work(*w); });
  timekeeper_ = std::thread([this] { keep_time(); });
}

CallPool::~CallPool() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  changed_.notify_all();
  for (auto& worker : workers_) worker->thread.join();
  timekeeper_.join();
}

uint64_t CallPool::submit(std::string body) {
  const std::lock_guard lock(mutex_);
  queue_.push_back({next_, std::move(body)});
  stats_.calls++;
  changed_.notify_all();
  return next_++;
}

bool CallPool::ready(uint64_t ticket) const {
  const std::lock_guard lock(mutex_);
  return answered_.contains(ticket);
}

Called CallPool::wait(uint64_t ticket) {
  std::unique_lock lock(mutex_);
  CHECK(ticket < next_, "ticket {} of {}", ticket, next_);
  changed_.wait(lock, [&] { return answered_.contains(ticket); });
  auto node = answered_.extract(ticket);
  return std::move(node.mapped());
}

void CallPool::forget(uint64_t ticket) {
  const std::lock_guard lock(mutex_);
  if (answered_.erase(ticket) > 0) return;
  if (std::erase_if(queue_, [&](const Question& q) { return q.ticket == ticket; }) == 0) forgotten_.insert(ticket);
}

void CallPool::wait_any(const std::vector<uint64_t>& tickets, double seconds) const {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, duration(seconds), [&] {
    return std::any_of(tickets.begin(), tickets.end(), [&](uint64_t t) { return answered_.contains(t); });
  });
}

CallStats CallPool::stats() const {
  const std::lock_guard lock(mutex_);
  return stats_;
}

void CallPool::work(Worker& worker) {
  block_sigpipe();
  for (;;) {
    std::vector<Question> questions;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return ending_ || !queue_.empty(); });
      if (ending_) return;
      const auto count = std::min(queue_.size(), static_cast<size_t>(options_.batch));
      std::move(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(count), std::back_inserter(questions));
      queue_.erase(queue_.begin(), queue_.begin() + static_cast<std::ptrdiff_t>(count));
    }
    auto found = answers(worker, questions);
    const std::lock_guard lock(mutex_);
    for (size_t i = 0; i < questions.size(); i++) {
      stats_.unanswered += !found[i].error.empty();
      if (forgotten_.erase(questions[i].ticket) == 0) answered_[questions[i].ticket] = std::move(found[i]);
    }
    changed_.notify_all();
  }
}

// One answer or error for each, after as many tries as it takes and there are.
std::vector<Called> CallPool::answers(Worker& worker, const std::vector<Question>& questions) {
  std::string body = questions.front().body;
  if (options_.batch > 1) {
    std::vector<std::string_view> bodies;
    for (const auto& q : questions) bodies.push_back(q.body);
    body = joined_bodies(bodies);
  }
  std::string error;
  for (int64_t attempt = 0; attempt < options_.tries; attempt++) {
    if (attempt > 0) {
      const RngKey key{.seed = options_.seed,
                       .group = static_cast<uint32_t>(questions.front().ticket),
                       .sample = static_cast<uint32_t>(attempt),
                       .position = 0,
                       .purpose = Purpose::backoff};
      const double jitter = 0.5 + open_uniform(random_word(key, 0));
      if (!rest(options_.backoff * static_cast<double>(int64_t{1} << std::min<int64_t>(attempt - 1, 20)) * jitter))
        break;
    }
    const Reply reply = ask(worker, body, questions.front().ticket);
    if (!reply.error.empty()) {
      error = reply.error;
      if (!reply.again) break;
      continue;
    }
    std::vector<Called> found;
    error = read_answer(reply.text, questions.size(), found);
    if (error.empty()) return found;
    const std::lock_guard lock(mutex_);
    stats_.failed_tries++;
  }
  if (error.empty()) error = "the run ends";
  return std::vector<Called>(questions.size(), Called{{}, error});
}

Reply CallPool::ask(Worker& worker, const std::string& body, uint64_t ticket) {
  if (!may_ask()) {
    return {.text = {},
            .error = fmt::format("not asked: {} calls in a row had failed", options_.breaker_after),
            .again = true,
            .unreachable = true};
  }
  const auto deadline = Clock::now() + duration(options_.timeout);
  {
    const std::lock_guard lock(worker.mutex);
    worker.deadline = deadline;
    worker.asking = true;
  }
  Reply reply = worker.channel->ask(body, ticket, deadline);
  {
    const std::lock_guard lock(worker.mutex);
    worker.asking = false;
  }
  note(!reply.unreachable);
  const std::lock_guard lock(mutex_);
  stats_.tries++;
  stats_.failed_tries += !reply.error.empty();
  return reply;
}

// Ends asks that have run past their deadline.
void CallPool::keep_time() {
  const auto tick = duration(std::clamp(options_.timeout / 20, 0.002, 0.05));
  for (;;) {
    bool ending = false;
    {
      std::unique_lock lock(mutex_);
      ending = changed_.wait_for(lock, tick, [&] { return ending_; });
    }
    bool busy = false;
    for (auto& worker : workers_) {
      const std::lock_guard lock(worker->mutex);
      if (!worker->asking) continue;
      busy = true;
      if (ending || Clock::now() >= worker->deadline) worker->channel->interrupt();
    }
    if (!ending) continue;
    if (!busy) return;
    std::this_thread::sleep_for(tick);
  }
}

bool CallPool::may_ask() {
  const std::lock_guard lock(mutex_);
  if (ending_) return false;
  if (!open_) return true;
  if (probing_ || Clock::now() < closed_until_) return false;
  probing_ = true;
  return true;
}

void CallPool::note(bool reached) {
  const std::lock_guard lock(mutex_);
  probing_ = false;
  if (reached) {
    failures_in_a_row_ = 0;
    open_ = false;
    return;
  }
  failures_in_a_row_++;
  if (failures_in_a_row_ < options_.breaker_after) return;
  stats_.breaker_opened += !open_;
  open_ = true;
  closed_until_ = Clock::now() + duration(options_.breaker_rest);
}

bool CallPool::rest(double seconds) {
  std::unique_lock lock(mutex_);
  return !changed_.wait_for(lock, duration(seconds), [&] { return ending_; });
}

}  // namespace furlong
