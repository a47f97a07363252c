// Tokens to the text that a client is shown: whole characters, and nothing of a stop text.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace furlong {

struct TextRules {
  std::vector<std::string> stops;  // none is empty
  bool skip_special = true;        // special tokens have no text
  bool include_stop = false;       // the stop text belongs to the text
};

// The text of one sample as its tokens come. Tokens that the tokenizer does not know have no text.
class TextStream {
 public:
  TextStream(const Tokenizer& tokenizer, const TextRules& rules)
      : tokenizer_(tokenizer), rules_(rules), decoder_(tokenizer, rules.skip_special) {}

  // The text that has become certain: it ends before an incomplete character, and before what may become a stop text.
  std::string push(int32_t id);
  // The rest of it, when no further token comes.
  std::string finish();
  // The stop text that ended it; null: none. All after it is dropped.
  const std::string* matched() const { return matched_; }

 private:
  std::string take(const std::string& text);
  const Tokenizer& tokenizer_;
  const TextRules& rules_;
  IncrementalDecoder decoder_;
  std::string held_;
  const std::string* matched_ = nullptr;
};

// For Request::stop_when: whether the newest token completes one of these texts. Empty where there are none.
std::function<bool(std::span<const int32_t>)> stop_text_rule(const Tokenizer& tokenizer, const TextRules& rules);

}  // namespace furlong
