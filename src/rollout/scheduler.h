// Continuous batching: which prompts are prefilled, which samples run, which wait. Requests start in the order of their
// numbers. A sequence takes memory as it grows; when there is none left the newest one gives its own back and is run
// again later from its tokens.
#pragma once
#include <deque>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "rollout/memory.h"
#include "rollout/prefix_cache.h"
#include "rollout/request.h"

namespace furlong {

// A submitted request.
struct Job {
  uint64_t id = 0;
  Request request;
  Sink sink;
  std::vector<uint64_t> chain;  // of the prompt; see prefix_chain
  bool cancelled = false;
  int64_t started = 0;  // samples that have been forked
  int64_t ended = 0;
  int64_t prompt() const { return static_cast<int64_t>(request.prompt.size()); }
};

// A prompt being prefilled, and then the parent its samples fork from.
struct Prefix {
  std::shared_ptr<Job> job;
  SequenceMemory memory;
  int64_t done = 0;                                                   // prompt rows run
  std::shared_ptr<OwnedTensor> hidden;                                // (1,H) of the last prompt row, once done
  std::shared_ptr<RouteRows> routes = std::make_shared<RouteRows>();  // of the rows run, if recorded
  std::shared_ptr<OwnedTensor>
      lead;  // (1,H) of the row before the first one run, where others have run the ones before
  bool complete() const { return done == job->prompt(); }
};

// Rows from `position` on that the MTP head has not read: where the engine has put their hidden states.
struct UnreadRows {
  int64_t position = 0;
  std::vector<int32_t> at;
};

struct Sample {
  std::shared_ptr<Job> job;
  SequenceMemory memory;
  RngKey key;                         // position is set per draw
  std::vector<int32_t> drafts;        // proposals for the positions after the root
  std::shared_ptr<Prefix> fresh;      // set until the first token is drawn
  bool again = false;                 // was preempted, and its rows up to the root are not all run again
  std::shared_ptr<OwnedTensor> lead;  // as Prefix::lead, while they are
  UnreadRows unread;
  int64_t kept = 0;  // rows of its newest state that is kept for others
  size_t told = 0;   // tokens that the request's sink has had
  bool ended = false;
  Completion out;
  // The drawn token that has not been run yet; it stands at position memory.length.
  int32_t root() const { return out.tokens.back(); }
  // Rows before the root.
  int64_t rows() const { return job->prompt() + static_cast<int64_t>(out.tokens.size()) - 1; }
  // The token at a position of prompt and response.
  int32_t token(int64_t position) const {
    const auto p = static_cast<size_t>(position), prompt = job->request.prompt.size();
    return p < prompt ? job->request.prompt[p] : out.tokens[p - prompt];
  }
};

struct SchedulerOptions {
  int64_t max_running = 512;
  int64_t drafts = 0;
  // Rows beyond its present ones that a sequence finds room for before it starts, and that running ones keep then;
  // reserve_all: as many as it may need, so that none is ever preempted.
  int64_t margin = 128;
  bool share_prefixes = true;  // prompts that begin alike run their common rows once
  bool keep_prefixes = false;  // also keep where prompts end, for requests to come
  static constexpr int64_t reserve_all = int64_t{1} << 40;
};

class Scheduler {
 public:
  Scheduler(RolloutMemory& memory, const SchedulerOptions& options)
      : memory_(memory), options_(options), cache_(memory, options.keep_prefixes) {}

  // Throws Error(Exit::resources) when a request can never fit, naming the sizes. name: of the request, for the
  // message.
  void check(const Request&, uint64_t name) const;
  // Takes a request that fits; returns its number. Numbers rise from 1.
  uint64_t submit(Request, Sink);
  // Takes the memory of all sequences and of what is kept; they run again from their tokens.
  void preempt_all();
  // From the next schedule() on none of its samples runs. An unknown or ended request is left alone.
  void cancel(uint64_t request);
  // Ends these at once and tells no one.
  void forget(std::span<const uint64_t> requests);

  // Before each step: ends what was cancelled, gives running samples memory for the step, preempting the newest where
  // there is too little, and starts what there is room for.
  void schedule();
  bool idle() const { return jobs_.empty(); }
  std::deque<std::shared_ptr<Prefix>>& prefixes() { return prefixes_; }
  std::vector<std::unique_ptr<Sample>>& running() { return running_; }
  // After a step: gives back the memory of samples that have ended, and returns them with those that were cancelled.
  std::vector<std::unique_ptr<Sample>> retire();

  PrefixCache& cache() { return cache_; }
  // Rows that sequences did not run because others had, since the last call.
  int64_t shared_rows() { return std::exchange(shared_rows_, 0); }
  // How many sequences have given back their memory since the last call.
  int64_t preempted() { return std::exchange(preemptions_, 0); }

 private:
  // Requests in order, and a request's samples in order before what is left of its prompt.
  using Age = std::pair<uint64_t, int64_t>;
  static Age age(const Sample& s) { return {s.job->id, s.out.sample}; }
  static Age age(const Prefix& p) { return {p.job->id, p.job->started}; }
  int64_t rows_of(const Request& r) const {
    return static_cast<int64_t>(r.prompt.size()) + r.max_new_tokens + options_.drafts;
  }
  // Rows that the coming step of a sequence of so many may write: the root's, the drafts', and those of the drafts for
  // the step after it.
  int64_t rows_to_step(const Request& r, int64_t rows) const {
    return std::min(rows_of(r), rows + 1 + 2 * options_.drafts);
  }
  // Rows that it has pages for when it starts.
  int64_t rows_to_start(const Request& r, int64_t rows) const {
    return std::min(rows_of(r), rows_to_step(r, rows) + options_.margin);
  }
  void end_cancelled();
  void grow();
  bool preempt_newest(Age than);
  int64_t headroom() const;
  bool can_start(int64_t pages) const;
  bool make_room(int64_t pages, int64_t slots);
  bool waits_for_another(const Job& job, int64_t rows) const;
  template <typename List, typename Item>
  static void insert_by_age(List& list, Item item);
  SequenceMemory begin(std::span<const int32_t> tokens, const std::vector<uint64_t>& chain, int64_t rows,
                       std::shared_ptr<OwnedTensor>& lead, RouteRows* routes);
  bool start_prompt();
  bool start_sample();
  bool start_again();
  std::unique_ptr<Sample> begin_sample(const std::shared_ptr<Job>& job) const;
  void drop_prefix(const std::shared_ptr<Prefix>& prefix);

  RolloutMemory& memory_;
  SchedulerOptions options_;
  uint64_t next_id_ = 1;
  PrefixCache cache_;
  int64_t preemptions_ = 0, shared_rows_ = 0;
  bool any_cancelled_ = false;
  std::map<uint64_t, std::shared_ptr<Job>> jobs_;     // that have not ended
  std::map<uint64_t, std::shared_ptr<Job>> waiting_;  // with samples to start and no prefix
  std::map<Age, std::unique_ptr<Sample>> preempted_;
  std::deque<std::shared_ptr<Prefix>> prefixes_;  // in order
  std::vector<std::unique_ptr<Sample>> running_;
  std::vector<std::unique_ptr<Sample>> aborted_;
};

}  // namespace furlong
