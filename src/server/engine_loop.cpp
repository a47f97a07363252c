#include "server/engine_loop.h"

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "base/error.h"
#include "server/api_error.h"

namespace furlong {
namespace {

constexpr double gauge_seconds = 0.25;

std::exception_ptr stopping_error() { return std::make_exception_ptr(ApiError(503, "", "", "the server is stopping")); }

}  // namespace

void Inbox::put(Drawn drawn) {
  {
    const std::lock_guard lock(mutex_);
    drawn_.push_back(std::move(drawn));
  }
  wake_();
}

void Inbox::fail(std::exception_ptr why) {
  {
    const std::lock_guard lock(mutex_);
    if (!failure_) failure_ = std::move(why);
  }
  wake_();
}

std::vector<Drawn> Inbox::take() {
  const std::lock_guard lock(mutex_);
  if (drawn_.empty() && failure_) std::rethrow_exception(failure_);
  return std::exchange(drawn_, {});
}

EngineLoop::EngineLoop(EngineCalls calls, const Options& options, std::function<void(std::exception_ptr)> failed)
    : calls_(std::move(calls)), options_(options), failed_(std::move(failed)) {
  state_.engine = calls_.gauges();
  last_progress_ = std::chrono::steady_clock::now();
  thread_ = std::thread([this] { run(); });
}

EngineLoop::~EngineLoop() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

std::unique_ptr<EngineLoop::Ticket> EngineLoop::submit(std::vector<Request> requests, std::shared_ptr<Inbox> inbox) {
  std::vector<uint64_t> numbers;
  {
    const std::lock_guard lock(mutex_);
    if (closed_) std::rethrow_exception(stopping_error());
    if (static_cast<int64_t>(waiting_.size() + requests.size()) > options_.max_waiting && !waiting_.empty()) {
      throw ApiError(429, "rate_limit_exceeded", "",
                     fmt::format("{} requests wait already; send this one again later", waiting_.size()));
    }
    if (waiting_.empty() && running_.empty()) last_progress_ = std::chrono::steady_clock::now();
    for (size_t part = 0; part < requests.size(); part++) {
      numbers.push_back(next_number_++);
      waiting_.push_back({numbers.back(), part, std::move(requests[part]), inbox});
    }
  }
  changed_.notify_all();
  return std::make_unique<Ticket>(*this, std::move(numbers));
}

void EngineLoop::cancel(const std::vector<uint64_t>& numbers) {
  {
    const std::lock_guard lock(mutex_);
    to_cancel_.insert(to_cancel_.end(), numbers.begin(), numbers.end());
  }
  changed_.notify_all();
}

void EngineLoop::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
}

LoopState EngineLoop::state() const {
  const std::lock_guard lock(mutex_);
  LoopState state = state_;
  state.waiting = static_cast<int64_t>(waiting_.size());
  state.busy = state.waiting > 0 || state.running > 0;
  state.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - last_progress_).count();
  return state;
}

void EngineLoop::run() {
  try {
    std::vector<uint64_t> cancelled;
    std::vector<Job> started;
    while (wait_for_work(cancelled, started)) {
      for (const uint64_t number : cancelled) {
        const auto found = running_.find(number);
        if (found == running_.end() || found->second.inbox == nullptr) continue;
        found->second.inbox.reset();
        calls_.cancel(found->second.engine_number);
      }
      for (Job& job : started) start(std::move(job));
      step();
    }
    end_with(stopping_error());
  } catch (...) {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    end_with(std::make_exception_ptr(ApiError(500, "", "", "the engine has failed; the server's log says why")));
    failed_(std::current_exception());
  }
}

// False: the loop is to end.
bool EngineLoop::wait_for_work(std::vector<uint64_t>& cancelled, std::vector<Job>& started) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return ending_ || !to_cancel_.empty() || !waiting_.empty() || !running_.empty(); });
  if (ending_) return false;
  cancelled = std::exchange(to_cancel_, {});
  std::sort(cancelled.begin(), cancelled.end());
  const auto is_cancelled = [&](uint64_t number) {
    return std::binary_search(cancelled.begin(), cancelled.end(), number);
  };
  state_.cancelled +=
      static_cast<int64_t>(std::erase_if(waiting_, [&](const Job& job) { return is_cancelled(job.number); }));
  state_.cancelled += std::count_if(running_.begin(), running_.end(), [&](const auto& running) {
    return running.second.inbox != nullptr && is_cancelled(running.first);
  });
  started.clear();
  int64_t samples = samples_;
  while (!waiting_.empty() && (samples == 0 || samples + waiting_.front().request.samples <= options_.max_running)) {
    samples += waiting_.front().request.samples;
    started.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
  }
  state_.running = samples;
  return true;
}

void EngineLoop::start(Job job) {
  const uint64_t number = job.number;
  Running entry{.left = job.request.samples, .part = job.part, .inbox = job.inbox};
  const auto prompt = static_cast<int64_t>(job.request.prompt.size());
  try {
    entry.engine_number =
        calls_.submit(std::move(job.request), [this, number](const Emitted& emitted) { deliver(number, emitted); });
  } catch (const Error& error) {
    job.inbox->fail(std::make_exception_ptr(ApiError(400, "context_length_exceeded", "", error.what())));
    return;
  }
  samples_ += entry.left;
  const std::lock_guard lock(mutex_);
  state_.prompt_tokens += prompt;
  running_.emplace(number, std::move(entry));
}

void EngineLoop::deliver(uint64_t number, const Emitted& emitted) {
  const auto found = running_.find(number);
  CHECK(found != running_.end(), "tokens of request {}, which has ended", number);
  Running& running = found->second;
  if (running.inbox != nullptr) {
    Drawn drawn{.part = running.part, .sample = emitted.sample};
    drawn.tokens.assign(emitted.tokens.begin(), emitted.tokens.end());
    drawn.log_probs.assign(emitted.log_probs.begin(), emitted.log_probs.end());
    drawn.alternatives.assign(emitted.alternatives.begin(), emitted.alternatives.end());
    if (emitted.finished != nullptr) {
      drawn.finished = emitted.finished->reason;
      drawn.drafted = emitted.finished->drafted;
      drawn.accepted = emitted.finished->accepted;
    }
    running.inbox->put(std::move(drawn));
  }
  const std::lock_guard lock(mutex_);
  state_.tokens += static_cast<int64_t>(emitted.tokens.size());
  if (emitted.finished == nullptr) return;
  samples_--;
  if (--running.left == 0) running_.erase(found);
}

void EngineLoop::step() {
  const bool worked = calls_.step();
  CHECK(worked || running_.empty(), "the engine is idle with {} requests", running_.size());
  const auto now = std::chrono::steady_clock::now();
  std::optional<EngineCalls::Gauges> gauges;
  // Counting takes its time.
  if (running_.empty() || std::chrono::duration<double>(now - last_gauges_).count() > gauge_seconds) {
    gauges = calls_.gauges();
    last_gauges_ = now;
  }
  const std::lock_guard lock(mutex_);
  state_.steps += worked;
  state_.running = samples_;
  if (gauges) state_.engine = *gauges;
  last_progress_ = now;
}

void EngineLoop::end_with(const std::exception_ptr& why) {
  std::deque<Job> waiting;
  {
    const std::lock_guard lock(mutex_);
    waiting = std::exchange(waiting_, {});
  }
  for (const Job& job : waiting) job.inbox->fail(why);
  for (const auto& [number, running] : running_) {
    if (running.inbox != nullptr) running.inbox->fail(why);
  }
}

}  // namespace furlong
