#include "tokenizer/tokenizer.h"

#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "tokenizer/tokenizer_data.h"
#include "tokenizer/unicode.h"

namespace furlong {
namespace {

// One call of encode(): the text on its way from added tokens to pieces to ids.
class Encoder {
 public:
  Encoder(const TokenizerData& data, const EncodeLimits& limits) : data_(data), limits_(limits) {}

  // Added tokens as they stand, then, in what lies between, normalisation and the added tokens of normalised text.
  std::vector<int32_t> run(std::string_view text) {
    search(data_.raw_tokens, text, [&](std::string_view stretch) {
      const std::string normalized = data_.normalizes ? nfc(stretch) : std::string(stretch);
      search(data_.normalized_tokens, normalized, [&](std::string_view plain) { encode_plain(plain); });
    });
    return std::move(ids_);
  }

 private:
  template <class F>
  void search(const TokenSearch& tokens, std::string_view text, F&& between) {
    size_t done = 0;
    while (done < text.size() && !full()) {
      const TokenSearch::Match match = tokens.find(text, done);
      if (match.begin > done) between(text.substr(done, match.begin - done));
      if (full()) return;
      if (match.id >= 0) ids_.push_back(match.id);
      done = match.end;
    }
  }

  // Splits by the patterns from the given one on. False: full.
  bool encode_plain(std::string_view text, size_t pattern = 0) {
    if (pattern == data_.patterns.size()) return encode_whole(text);
    return data_.patterns[pattern].split(
        text, [this, pattern](std::string_view piece) { return encode_plain(piece, pattern + 1); });
  }

  bool encode_whole(std::string_view piece) {
    if (piece.size() > limits_.piece_bytes) {
      fail(Exit::input, "the text has a stretch of {} bytes without a break between words; at most {} are taken",
           piece.size(), limits_.piece_bytes);
    }
    if (data_.ignore_merges) {
      const auto whole = data_.vocab.find(byte_spelling(piece));
      if (whole != data_.vocab.end()) {
        ids_.push_back(whole->second);
        return !full();
      }
    }
    encode_piece(data_.merges, data_.byte_ids, piece, scratch_, ids_);
    return !full();
  }

  bool full() const { return ids_.size() > limits_.ids; }

  const TokenizerData& data_;
  const EncodeLimits& limits_;
  BpeScratch scratch_;
  std::vector<int32_t> ids_;
};

}  // namespace

Tokenizer Tokenizer::load(const std::string& path) {
  std::error_code ignored;
  const bool folder = std::filesystem::is_directory(path, ignored);
  const std::string file = folder ? path + "/tokenizer.json" : path;
  return parse(read_file(file), file);
}

Tokenizer Tokenizer::parse(std::string_view json, const std::string& where) {
  return Tokenizer(parse_tokenizer(json, where));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeLimits& limits) const {
  // NFC makes UTF-8 at most three times longer, and positions within a piece are 32-bit.
  if (text.size() >= (size_t{1} << 31) / 3) {
    fail(Exit::input, "a text of {} bytes is too long for the tokenizer; split it below {} bytes", text.size(),
         (size_t{1} << 31) / 3);
  }
  if (is_valid_utf8(text)) return Encoder(*data_, limits).run(text);
  return Encoder(*data_, limits).run(repair_utf8(text));
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    const std::string_view token = token_bytes(id);
    if (!skip_special || !is_special(id)) bytes += token;
  }
  return is_valid_utf8(bytes) ? bytes : repair_utf8(bytes);
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(data_->kinds.size()); }

bool Tokenizer::contains(int32_t id) const {
  return id >= 0 && id < vocab_size() && data_->kinds[static_cast<size_t>(id)] != TokenKind::absent;
}

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
  for (const TokenIds* tokens : {&data_->added, &data_->vocab}) {
    const auto found = tokens->find(token);
    if (found != tokens->end()) return found->second;
  }
  return std::nullopt;
}

bool Tokenizer::is_special(int32_t id) const {
  return contains(id) && data_->kinds[static_cast<size_t>(id)] == TokenKind::special;
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  if (!contains(id)) {
    fail(Exit::input, "token id {} is not in the tokenizer's vocabulary (its largest id is {})", id, vocab_size() - 1);
  }
  const auto i = static_cast<size_t>(id);
  return std::string_view(data_->bytes).substr(data_->begin[i], data_->begin[i + 1] - data_->begin[i]);
}

std::string Tokenizer::token_text(int32_t id) const { return repair_utf8(token_bytes(id)); }

std::string IncrementalDecoder::push(int32_t id) {
  const std::string_view token = tokenizer_.token_bytes(id);
  if (skip_special_ && tokenizer_.is_special(id)) return "";
  pending_ += token;
  std::string out;
  const size_t used = append_utf8(out, pending_);
  pending_.erase(0, used);
  return out;
}

std::string IncrementalDecoder::finish() {
  const std::string out = repair_utf8(pending_);
  pending_.clear();
  return out;
}

}  // namespace furlong
