#include "server/text_stream.h"

#include <algorithm>
#include <utility>

namespace furlong {
namespace {

constexpr size_t whole_character_margin = 6;

// Where a text that begins within a character has its first whole one: up to three bytes were read as U+FFFD each.
size_t end_of_broken_start(const std::string& text) {
  constexpr std::string_view replacement = "\xEF\xBF\xBD";
  size_t at = 0;
  for (int i = 0; i < 3 && text.compare(at, replacement.size(), replacement) == 0; i++) at += replacement.size();
  return at;
}

}  // namespace

std::string TextStream::push(int32_t id) {
  if (matched_ != nullptr || !tokenizer_.contains(id)) return "";
  return take(decoder_.push(id));
}

std::string TextStream::finish() {
  if (matched_ != nullptr) return "";
  std::string text = take(decoder_.finish());
  if (matched_ == nullptr) text += std::exchange(held_, "");
  return text;
}

std::string TextStream::take(const std::string& text) {
  held_ += text;
  size_t first = held_.npos;
  for (const std::string& stop : rules_.stops) {
    const size_t at = held_.find(stop);
    if (at < first) {
      first = at;
      matched_ = &stop;
    }
  }
  if (matched_ != nullptr) return held_.substr(0, first + (rules_.include_stop ? matched_->size() : 0));
  size_t keep = 0;
  for (const std::string& stop : rules_.stops) {
    for (size_t n = std::min(stop.size() - 1, held_.size()); n > keep; n--) {
      if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) keep = n;
    }
  }
  std::string certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, certain.size());
  return certain;
}

std::function<bool(std::span<const int32_t>)> stop_text_rule(const Tokenizer& tokenizer, const TextRules& rules) {
  if (rules.stops.empty()) return {};
  size_t longest = 0;
  for (const std::string& stop : rules.stops) longest = std::max(longest, stop.size());
  return [tokenizer, rules, longest](std::span<const int32_t> tokens) {
    const auto bytes_of = [&](int32_t id) {
      const bool shown = tokenizer.contains(id) && !(rules.skip_special && tokenizer.is_special(id));
      return shown ? tokenizer.token_bytes(id) : std::string_view();
    };
    // The newest token, and before it as many bytes as a stop that ends in it can have, with those of characters that
    // are not whole at either end.
    size_t begin = tokens.size() - 1, bytes = 0;
    if (bytes_of(tokens[begin]).empty()) return false;
    while (begin > 0 && bytes < longest + whole_character_margin) bytes += bytes_of(tokens[--begin]).size();
    // As TextStream decodes it, so that both find the same.
    IncrementalDecoder decoder(tokenizer, rules.skip_special);
    std::string text;
    for (const int32_t id : tokens.subspan(begin)) {
      if (tokenizer.contains(id)) text += decoder.push(id);
    }
    const size_t cut = begin == 0 ? 0 : end_of_broken_start(text);
    return std::any_of(rules.stops.begin(), rules.stops.end(),
                       [&](const std::string& stop) { return text.find(stop, cut) != text.npos; });
  };
}

}  // namespace furlong
