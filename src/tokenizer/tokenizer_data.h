// What a Tokenizer has read from its file. For this room only.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/bpe.h"
#include "tokenizer/split.h"

namespace furlong {

// Finds fixed strings in text, leftmost first and the longest of those that begin at the same byte.
class TokenSearch {
 public:
  struct Match {
    size_t begin, end;
    int32_t id;  // -1: none found, begin and end are the text's size
  };
  void add(std::string content, int32_t id);
  Match find(std::string_view text, size_t from) const;

 private:
  struct Entry {
    std::string content;
    int32_t id;
  };
  std::array<std::vector<Entry>, 256> by_first_byte_;  // longest first
};

struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
using TokenIds = std::unordered_map<std::string, int32_t, StringHash, std::equal_to<>>;

enum class TokenKind : uint8_t { absent, plain, added, special };

struct TokenizerData {
  // The vocabulary, in the file's spelling.
  TokenIds vocab;
  TokenIds added;
  // By id. The bytes of token i are bytes[begin[i], begin[i + 1]).
  std::vector<TokenKind> kinds;
  std::vector<uint32_t> begin;
  std::string bytes;

  std::array<int32_t, 256> byte_ids{};
  MergeTable merges;
  bool ignore_merges = false;  // a piece that is itself in the vocabulary is one token, whatever the merges say

  bool normalizes = false;             // NFC
  std::vector<SplitPattern> patterns;  // each splits the pieces of the one before
  TokenSearch raw_tokens;              // added tokens looked for in the text as given
  TokenSearch normalized_tokens;       // added tokens looked for after NFC
};

// The byte-level alphabet: each byte is spelled as one printable character (printable Latin-1 as itself, the others,
// in order, as U+0100 onwards).
std::string byte_spelling(std::string_view bytes);
// The bytes a spelling stands for. A spelling with any character outside the alphabet stands for its own UTF-8.
std::string bytes_of_spelling(std::string_view spelling);

std::shared_ptr<const TokenizerData> parse_tokenizer(std::string_view json, const std::string& where);

}  // namespace furlong
