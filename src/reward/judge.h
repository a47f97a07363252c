// Where the rewards of a run come from: rules of the program, a service over HTTP, a command. Services and commands are
// asked while the program goes on; whatever becomes of them, a sample that nobody could judge is unscored, never 0.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/label.h"
#include "reward/call_pool.h"
#include "reward/scorer.h"

namespace furlong {

// One finished sample.
struct RewardQuery {
  std::string prompt = "\"\"";  // JSON: a text, or a list of messages
  std::string response;
  LabelValue label;
  std::string metadata = "{}";         // a JSON object; its rm_type stands before JudgeOptions'
  std::vector<int32_t> tokens = {};    // prompt and response; none: unknown
  std::optional<int64_t> number = {};  // of the sample, over the whole run
  std::string reward_key = {};  // which member of a rule's or service's answer is the reward; "": the answer itself
};

struct JudgeOptions {
  std::string rm_type;         // a rule's name or "remote_rm"; "" where metadata or the command decides
  std::string nltk_data;       // a folder for the rule ifbench, or ""
  bool may_lack_rule = false;  // a sample that nothing says how to judge is unscored, not an error
  CallOptions service;         // url or command; neither: rules alone
};

class Judge {
 public:
  // Throws Error(Exit::usage): no such rule, remote_rm without a URL, a URL that is none.
  explicit Judge(const JudgeOptions& options);

  // Throws Error(Exit::input) naming `where` when metadata asks for a rule that there is not, or
  // holds what its rule cannot judge by.
  void check(const std::string& metadata, const std::string& where);
  // Whether a service or command has a say.
  bool asks_others() const { return pool_ != nullptr; }

  // Hands over samples, each judged by itself, or all in one question (`together`, not with a batch). Returns a ticket.
  uint64_t submit(const std::vector<RewardQuery>& samples, bool together = false);
  // The scores of a ticket's samples, in their order; waits for them. A ticket is good once.
  std::vector<Score> wait(uint64_t ticket);
  // Nobody will wait for this one.
  void forget(uint64_t ticket);
  CallStats stats() const { return pool_ ? pool_->stats() : CallStats{}; }

 private:
  struct Pending {
    bool together = false;
    std::vector<Score> scores;             // those known
    std::vector<std::string> reward_keys;  // of all
    std::vector<size_t> asked;             // the samples that others judge, and the calls they are in
    std::vector<uint64_t> calls;
  };
  const Scorer& rule(const std::string& name);
  std::string rm_type_of(const RewardQuery&) const;

  JudgeOptions options_;
  std::map<std::string, std::unique_ptr<Scorer>> rules_;
  std::unique_ptr<CallPool> pool_;
  std::map<uint64_t, Pending> pending_;
  uint64_t next_ = 0;
};

// The grader's form of a label.
Label label_of(const LabelValue& value);
// The number that a rule's score stands for: "score" or "acc" of one that gives several. Throws Error(Exit::usage) for
// another key.
std::optional<double> reward_of(const Score& score, const std::string& reward_key);

// The scores in a service's or command's answer to `count` samples: a number (or an object with reward_key, else
// "reward"), for several a list of such, or {"rewards":[...]}. What is no finite number is unscored and says why.
std::vector<Score> read_rewards(const std::string& answer, size_t count, const std::string& reward_key, bool is_list);
// The question about a sample: prompt, response, label; and metadata.
std::string reward_question(const RewardQuery& query, bool with_metadata);

}  // namespace furlong
