// Continuous batching: which prompts are prefilled, which samples run. Requests start in order; each keeps what it may
// need at most, so that a running sequence never waits for memory.
#pragma once
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "rollout/memory.h"
#include "rollout/request.h"

namespace furlong {

// A prompt being prefilled, and then the parent its samples fork from.
struct Prefix {
  size_t request = 0;
  SequenceMemory memory;
  int64_t done = 0;      // prompt rows run
  int64_t started = 0;   // samples forked
  OwnedTensor hidden;    // (1,H) of the last prompt row, once done
  int64_t promised = 0;  // pages kept for samples not yet forked
};

struct Sample {
  size_t request = 0;
  SequenceMemory memory;
  RngKey key;  // position is set per draw
  double temperature = 1;
  std::vector<int32_t> drafts;    // proposals for the positions after the root
  std::shared_ptr<Prefix> fresh;  // set until the first token is drawn
  Completion out;
  // The drawn token that has not been run yet; it stands at position memory.length.
  int32_t root() const { return out.tokens.back(); }
};

class Scheduler {
 public:
  // Throws Error(Exit::resources) when a request can never fit, naming the sizes.
  Scheduler(std::span<const Request> requests, RolloutMemory& memory, int64_t max_running, int64_t drafts);

  // Starts prefixes and forks samples while there is room.
  void admit();
  bool finished() const { return next_ == requests_.size() && prefixes_.empty() && running_.empty(); }
  std::deque<std::shared_ptr<Prefix>>& prefixes() { return prefixes_; }
  std::vector<std::unique_ptr<Sample>>& running() { return running_; }
  const Request& request(size_t i) const { return requests_[i]; }
  // Gives back a finished sample's memory and removes it.
  void retire();

 private:
  int64_t rows_of(const Request& r) const { return static_cast<int64_t>(r.prompt.size()) + r.max_new_tokens + drafts_; }

  std::span<const Request> requests_;
  RolloutMemory& memory_;
  int64_t max_running_, drafts_;
  size_t next_ = 0;
  int64_t promised_ = 0;
  std::deque<std::shared_ptr<Prefix>> prefixes_;
  std::vector<std::unique_ptr<Sample>> running_;

 public:
  // Set by the engine on a sample that has ended.
  std::vector<Sample*> ended;
};

}  // namespace furlong
