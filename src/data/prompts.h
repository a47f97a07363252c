// Prompt sets: the rows of a jsonl file as prompts, and the cursor that walks them epoch by epoch.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "data/label.h"

namespace furlong {

struct ChatMessage {
  std::string role, content;
  std::string others = {};  // its further keys as a JSON object, such as tool_calls; a content in parts too. "": none
  bool operator==(const ChatMessage&) const = default;
};

// Either `messages` (a conversation to render with the chat template) or `text` is filled.
struct Prompt {
  int64_t row = 0;   // among the rows of the file, from 0
  int64_t line = 0;  // in the file, from 1
  std::vector<ChatMessage> messages;
  std::string text;
  LabelValue label;
  std::string metadata = "{}";  // a JSON object, holding the tools too if there are any
  std::string tools;            // a JSON list, or "" without tools
  bool is_chat() const { return !messages.empty(); }
};

struct PromptOptions {
  std::string path;  // path, path@[a:b] or - (jsonl.h)
  std::string input_key = "input";
  std::string label_key;  // "": prompts have no label
  std::string metadata_key = "metadata";
  std::string tool_key = "tools";
  bool apply_chat_template = false;  // a bare string becomes one user message
  bool skip_bad = false;             // bad rows are left out, up to 1 % of all
};

// Rows that are left out because something is wrong with them.
class BadRows {
 public:
  explicit BadRows(bool skip) : skip_(skip) {}
  // Takes the error of one row; throws it on where rows are not to be skipped, or where it is none of the input's.
  void add(const Error& error);
  int64_t count() const { return count_; }
  // When all rows have been looked at, of which `good` are left: warns of the bad ones, with the first ten errors, or
  // throws Error(Exit::input) with them if they are more than 1 % of all.
  void report(const std::string& path, int64_t good) const;

 private:
  bool skip_;
  int64_t count_ = 0;
  std::vector<std::string> first_;
};

class PromptSet {
 public:
  // Reads and checks every row. Throws Error(Exit::input) with file:line and the key: bad JSON, a missing key (and the
  // keys that exist), a wrong type, an empty prompt, no rows at all; with skip_bad such rows are left out, and the
  // caller reports bad() when it has looked at the rows too. The label and input keys must be in every row; metadata
  // (an object) and tools (a list, or a JSON string of one) may be absent or null.
  explicit PromptSet(const PromptOptions& options);

  int64_t size() const { return static_cast<int64_t>(prompts_.size()); }
  const Prompt& operator[](int64_t i) const { return prompts_[static_cast<size_t>(i)]; }
  std::span<const Prompt> prompts() const { return prompts_; }
  // The file and line of a prompt, for later errors about it.
  std::string where(int64_t i) const;
  BadRows& bad() { return bad_; }
  // Keeps the prompts whose entry is not 0, in order; returns how many went. kept has size() entries.
  int64_t keep(std::span<const uint8_t> kept);
  // Puts the members of this JSON object into every prompt's metadata, in place of those of the same name.
  void merge_metadata(const std::string& object);

 private:
  std::string name_;
  std::vector<Prompt> prompts_;
  BadRows bad_;
};

// The permutation of 0..n-1 that CPython 3 makes with random.seed(seed); random.shuffle(list(range(n))): MT19937
// seeded by init_by_array (Matsumoto and Nishimura 2002) from the 32-bit words of |seed|, then Fisher-Yates from the
// end with indices drawn by rejection. n < 2^32.
std::vector<int64_t> python_shuffle(int64_t n, int64_t seed);

// Where a cursor stands. Plain values, for checkpoints.
struct PromptCursorState {
  int64_t prompts = 0;      // size of the set; 0 = unknown
  int64_t epoch = 0;        // epochs begun before the current one
  int64_t offset = 0;       // prompts taken in this epoch
  int64_t group_index = 0;  // the next group's
  int64_t index = 0;        // the next sample's
  bool operator==(const PromptCursorState&) const = default;
};

// Walks a prompt set for ever. Epoch e goes through the original order, or with `shuffle` through
// python_shuffle(n, seed + e), epoch 0 included. The epoch turns when a prompt is asked for and none is left.
class PromptCursor {
 public:
  struct Draw {
    int64_t prompt;       // index into the set
    int64_t group_index;  // rises by 1 with every draw of the run
    int64_t first_index;  // samples of this group have the indices first_index .. first_index + n - 1
    int64_t epoch;
    bool operator==(const Draw&) const = default;
  };

  PromptCursor(int64_t n, bool shuffle, int64_t seed);  // n > 0
  // The next prompt, to be sampled n_samples times (rollout.n_samples_per_prompt).
  Draw next(int64_t n_samples);

  const PromptCursorState& state() const { return state_; }
  // Continues as the cursor whose state this was would have. Throws Error(Exit::input) when the state cannot belong to
  // this prompt set (another number of prompts).
  void restore(const PromptCursorState& state);

 private:
  void start_epoch();
  bool shuffle_;
  int64_t seed_;
  PromptCursorState state_;
  std::vector<int64_t> order_;  // empty without shuffling
};

}  // namespace furlong
