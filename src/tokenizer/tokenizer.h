// Text to token ids and back: byte-level BPE as the Qwen family's tokenizer.json describes it, with the ids and texts
// that the Hugging Face tokenizers library gives for the same file (add_special_tokens=False).
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace furlong {

struct TokenizerData;

// How far encode() goes, so that its memory is bounded where a text comes from strangers.
struct EncodeLimits {
  size_t ids = SIZE_MAX;  // after so many and at least one more it ends, with those that it has
  size_t piece_bytes =
      SIZE_MAX;  // of a stretch that the split pattern leaves whole; joining takes some 40 bytes a byte
};

// Immutable once loaded; every method may be called from several threads. Copies share their data.
//
// Read from the file: the BPE vocabulary and merges, the NFC normaliser, the split pattern, the added tokens. Whatever
// a file asks for beyond that (another model, normaliser, pre-tokeniser, decoder or post-processor, dropout, byte
// fallback, affixes, added tokens with single_word, lstrip or rstrip) is refused and never approximated. Truncation and
// padding are settings of one call, not of the text, and are ignored.
class Tokenizer {
 public:
  // `path` is a tokenizer.json or a folder holding one. Throws Error(Exit::input) naming the file and the key.
  static Tokenizer load(const std::string& path);
  // The same from the text of a tokenizer.json; `where` names it in errors.
  static Tokenizer parse(std::string_view json, const std::string& where);

  // The ids of `text`. Added tokens written out in the text become their ids. Bytes that are not UTF-8 are read as
  // U+FFFD, one for each maximal subpart of an ill-formed sequence. Throws Error(Exit::input) for a text of 2 GiB or
  // more, one on which the split pattern exceeds its step limit, or one with a longer piece than the limits have.
  std::vector<int32_t> encode(std::string_view text, const EncodeLimits& limits = {}) const;

  // The text of `ids`: their bytes, joined, with U+FFFD for each maximal subpart of an ill-formed UTF-8 sequence.
  // skip_special leaves out the tokens of is_special(). Throws Error(Exit::input) for an id that is not contains().
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

  // The largest id + 1. Ids may have gaps.
  int32_t vocab_size() const;
  // Whether the vocabulary has a token of this id.
  bool contains(int32_t id) const;
  // The id of a token in the file's spelling ("<|im_end|>", "Ġthe"); nothing if there is none.
  std::optional<int32_t> token_id(std::string_view token) const;
  // Whether it is an added token marked special ("<|im_end|>" is, Qwen3's "<think>" is not).
  bool is_special(int32_t id) const;
  // The bytes the token stands for, which need not be whole UTF-8 characters. Throws as decode().
  std::string_view token_bytes(int32_t id) const;
  // decode() of this one token.
  std::string token_text(int32_t id) const;

 private:
  explicit Tokenizer(std::shared_ptr<const TokenizerData> data) : data_(std::move(data)) {}
  std::shared_ptr<const TokenizerData> data_;
};

// Decodes a growing sequence: what push() returned, joined with finish(), is decode() of all the ids, and each part is
// whole UTF-8 characters.
class IncrementalDecoder {
 public:
  explicit IncrementalDecoder(Tokenizer tokenizer, bool skip_special = false)
      : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {}

  // The text that became certain with this id; empty while a character is incomplete. Throws as decode().
  std::string push(int32_t id);
  // The rest: U+FFFD if a character was left incomplete, else nothing. The decoder is then as new.
  std::string finish();

 private:
  Tokenizer tokenizer_;
  bool skip_special_;
  std::string pending_;  // at most 3 bytes: the beginning of a character
};

}  // namespace furlong
