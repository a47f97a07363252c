// Reading tokenizer.json.
#include <algorithm>
#include <initializer_list>

#include "base/check.h"
#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "tokenizer/tokenizer_data.h"
#include "tokenizer/unicode.h"

namespace furlong {
namespace {

constexpr int64_t max_id = (1 << 22) - 1;  // bounds the tables by id, whatever a damaged file says

// The split that a ByteLevel pre-tokeniser does itself when its use_regex is set: GPT-2's pattern, a fact of the
// format.
constexpr std::string_view byte_level_pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// The character that spells each byte.
std::array<char32_t, 256> byte_alphabet() {
  std::array<char32_t, 256> alphabet{};
  char32_t next = 0x100;
  for (unsigned b = 0; b < 256; b++) {
    const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD);
    alphabet[b] = printable ? b : next++;
  }
  return alphabet;
}

// A value of the file with the key that leads to it, for errors.
class Node {
 public:
  Node(const Json& value, std::string key, const std::string& where)
      : value_(value), key_(std::move(key)), where_(where) {}

  const Json& value() const { return value_; }
  const std::string& key() const { return key_; }
  const std::string& where() const { return where_; }

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> format, Args&&... args) const {
    fail(Exit::input, "{}: key \"{}\": {}", where_, key_, fmt::format(format, std::forward<Args>(args)...));
  }
  void expect_object(std::initializer_list<std::string_view> known) const {
    if (!value_.is_object()) refuse("expected an object");
    for (const auto& [name, unused] : value_.items()) {
      if (std::find(known.begin(), known.end(), name) == known.end()) {
        refuse("it has the unknown key \"{}\"; this kind of tokenizer is not supported", printable(name));
      }
    }
  }
  bool absent(const char* name) const { return !value_.contains(name) || value_.at(name).is_null(); }
  Node at(const char* name) const {
    if (!value_.is_object() || !value_.contains(name)) refuse("the key \"{}\" is missing", name);
    return Node(value_.at(name), key_.empty() ? name : fmt::format("{}.{}", key_, name), where_);
  }
  Node at(size_t i) const { return Node(value_.at(i), fmt::format("{}[{}]", key_, i), where_); }
  size_t expect_array() const {
    if (!value_.is_array()) refuse("expected an array");
    return value_.size();
  }
  const std::string& text() const {
    if (!value_.is_string()) refuse("expected a string");
    return value_.get_ref<const std::string&>();
  }
  bool flag() const {
    if (!value_.is_boolean()) refuse("expected true or false");
    return value_.get<bool>();
  }
  int32_t id() const {
    if (!value_.is_number_integer() || value_ < 0 || value_ > max_id) {
      refuse("expected a token id from 0 to {}, found {}", max_id, value_.dump().substr(0, 40));
    }
    return value_.get<int32_t>();
  }

 private:
  const Json& value_;
  std::string key_;
  const std::string& where_;
};

// Collects the tokens of both lists by id.
class TokenTable {
 public:
  // bytes: of the file, which names only so many tokens; gaps between their ids cost memory, too.
  explicit TokenTable(size_t bytes) : most_(std::min<size_t>(max_id, 4096 + 16 * bytes)) {}

  void put(const Node& node, std::string_view spelling, int32_t id, TokenKind kind) {
    const auto i = static_cast<size_t>(id);
    if (i > most_) node.refuse("the id {} is too large for a file of its size", id);
    if (i >= spellings_.size()) {
      spellings_.resize(i + 1);
      kinds_.resize(i + 1, TokenKind::absent);
    }
    if (kinds_[i] != TokenKind::absent && spellings_[i] != spelling) {
      node.refuse("the id {} belongs to both \"{}\" and \"{}\"", id, printable(spellings_[i]), printable(spelling));
    }
    spellings_[i] = spelling;
    kinds_[i] = std::max(kinds_[i], kind);
  }

  void store(TokenizerData& data) {
    data.begin.push_back(0);
    for (size_t i = 0; i < spellings_.size(); i++) {
      if (kinds_[i] != TokenKind::absent) data.bytes += bytes_of_spelling(spellings_[i]);
      CHECK(data.bytes.size() < ~uint32_t{0}, "more than 4 GiB of tokens");
      data.begin.push_back(static_cast<uint32_t>(data.bytes.size()));
    }
    data.kinds = std::move(kinds_);
  }

 private:
  size_t most_;
  std::vector<std::string> spellings_;
  std::vector<TokenKind> kinds_;
};

void read_vocab(const Node& vocab, TokenTable& table, TokenizerData& data) {
  if (!vocab.value().is_object()) vocab.refuse("expected an object of token to id");
  data.vocab.reserve(vocab.value().size());
  for (auto entry = vocab.value().begin(); entry != vocab.value().end(); ++entry) {
    const std::string& token = entry.key();
    const int32_t id =
        Node(entry.value(), fmt::format("{}[\"{}\"]", vocab.key(), printable(token)), vocab.where()).id();
    table.put(vocab, token, id, TokenKind::plain);
    data.vocab.emplace(token, id);
  }
  const auto alphabet = byte_alphabet();
  for (unsigned b = 0; b < 256; b++) {
    const char byte = static_cast<char>(b);
    const auto found = data.vocab.find(byte_spelling({&byte, 1}));
    if (found == data.vocab.end()) {
      vocab.refuse(
          "it has no token for the byte 0x{:02X} (spelled U+{:04X}); only byte-level vocabularies are supported", b,
          static_cast<uint32_t>(alphabet[b]));
    }
    data.byte_ids[b] = found->second;
  }
}

void read_merges(const Node& merges, TokenizerData& data) {
  const size_t count = merges.expect_array();
  data.merges = MergeTable(count);
  int32_t rank = 0;
  for (size_t i = 0; i < count; i++) {
    const Node line = merges.at(i);
    std::string left, right;
    if (line.value().is_string()) {
      const std::string& text = line.text();
      if (text.starts_with("#version")) continue;
      const size_t space = text.find(' ');
      if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
        line.refuse("expected two tokens with one space between them, found \"{}\"", printable(text));
      }
      left = text.substr(0, space);
      right = text.substr(space + 1);
    } else {
      if (line.expect_array() != 2) line.refuse("expected two tokens");
      left = line.at(size_t{0}).text();
      right = line.at(size_t{1}).text();
    }
    const auto id_of = [&](const std::string& token) {
      const auto found = data.vocab.find(token);
      if (found == data.vocab.end()) line.refuse("the token \"{}\" is not in the vocabulary", printable(token));
      return found->second;
    };
    data.merges.insert(id_of(left), id_of(right), {rank++, id_of(left + right)});
  }
}

void read_model(const Node& model, TokenTable& table, TokenizerData& data) {
  model.expect_object({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                       "byte_fallback", "ignore_merges", "vocab", "merges"});
  const Node type = model.at("type");
  if (type.text() != "BPE") type.refuse("the model \"{}\" is not supported, only BPE is", printable(type.text()));
  if (!model.absent("dropout")) model.at("dropout").refuse("dropout is not supported");
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (!model.absent(affix) && !model.at(affix).text().empty()) model.at(affix).refuse("it must be empty");
  }
  if (!model.absent("byte_fallback") && model.at("byte_fallback").flag()) {
    model.at("byte_fallback").refuse("byte fallback is not supported");
  }
  data.ignore_merges = !model.absent("ignore_merges") && model.at("ignore_merges").flag();
  // unk_token and fuse_unk have no effect: read_vocab makes sure that every byte has a token.
  read_vocab(model.at("vocab"), table, data);
  read_merges(model.at("merges"), data);
}

void read_normalizer(const Node& node, TokenizerData& data) {
  if (node.value().is_null()) return;
  const Node type = node.at("type");
  if (type.text() == "NFC") {
    node.expect_object({"type"});
    data.normalizes = true;
  } else if (type.text() == "Sequence") {
    node.expect_object({"type", "normalizers"});
    const Node list = node.at("normalizers");
    for (size_t i = 0, n = list.expect_array(); i < n; i++) read_normalizer(list.at(i), data);
  } else {
    type.refuse("the normalizer \"{}\" is not supported, only NFC is", printable(type.text()));
  }
}

void read_split(const Node& node, TokenizerData& data) {
  node.expect_object({"type", "pattern", "behavior", "invert"});
  const Node pattern = node.at("pattern"), behavior = node.at("behavior"), invert = node.at("invert");
  pattern.expect_object({"Regex"});
  if (behavior.text() != "Isolated") {
    behavior.refuse("the behavior \"{}\" is not supported, only Isolated is", printable(behavior.text()));
  }
  if (invert.flag()) invert.refuse("an inverted split is not supported");
  const Node regex = pattern.at("Regex");
  data.patterns.emplace_back(regex.text(), fmt::format("{}: key \"{}\"", node.where(), regex.key()));
}

void read_byte_level(const Node& node, TokenizerData& data) {
  node.expect_object({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  const Node prefix = node.at("add_prefix_space");
  if (prefix.flag()) prefix.refuse("a prefix space is not supported");
  const bool splits = !node.value().contains("use_regex") || node.at("use_regex").flag();
  if (splits) data.patterns.emplace_back(byte_level_pattern, fmt::format("{}: key \"{}\"", node.where(), node.key()));
}

// Splits, then ByteLevel once and last: a pattern after it would see the byte alphabet in place of the text.
void read_pre_tokenizer(const Node& node, TokenizerData& data) {
  const Node type = node.at("type");
  if (type.text() == "ByteLevel") return read_byte_level(node, data);
  if (type.text() != "Sequence") {
    type.refuse("the pre-tokenizer \"{}\" is not supported, only ByteLevel or a Sequence of Split and ByteLevel is",
                printable(type.text()));
  }
  node.expect_object({"type", "pretokenizers"});
  const Node list = node.at("pretokenizers");
  const size_t n = list.expect_array();
  if (n == 0) list.refuse("the sequence is empty; a ByteLevel pre-tokenizer must end it");
  for (size_t i = 0; i < n; i++) {
    const Node item = list.at(i), item_type = item.at("type");
    if (item_type.text() != (i + 1 < n ? "Split" : "ByteLevel")) {
      item_type.refuse("the pre-tokenizer \"{}\" is not supported here, only Splits and then one ByteLevel are",
                       printable(item_type.text()));
    }
    i + 1 < n ? read_split(item, data) : read_byte_level(item, data);
  }
}

void check_decoder(const Node& node) {
  const Node type = node.at("type");
  if (type.text() != "ByteLevel")
    type.refuse("the decoder \"{}\" is not supported, only ByteLevel is", printable(type.text()));
  node.expect_object({"type", "add_prefix_space", "trim_offsets", "use_regex"});  // none of them matters to decoding
}

// ByteLevel only moves offsets; a template counts only if it adds tokens of its own.
void check_post_processor(const Node& node) {
  if (node.value().is_null()) return;
  const Node type = node.at("type");
  if (type.text() == "ByteLevel") return;
  if (type.text() != "TemplateProcessing") {
    type.refuse("the post-processor \"{}\" is not supported, only ByteLevel or none is", printable(type.text()));
  }
  const Node single = node.at("single");
  const size_t n = single.expect_array();
  if (n != 1 || !single.value()[0].is_object() || !single.value()[0].contains("Sequence")) {
    single.refuse("a template that adds tokens is not supported");
  }
}

void read_added_tokens(const Node& list, TokenTable& table, TokenizerData& data) {
  for (size_t i = 0, n = list.expect_array(); i < n; i++) {
    const Node token = list.at(i);
    token.expect_object({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    for (const char* name : {"single_word", "lstrip", "rstrip"}) {
      if (token.at(name).flag()) token.at(name).refuse("added tokens with this flag are not supported");
    }
    const std::string& content = token.at("content").text();
    const int32_t id = token.at("id").id();
    const bool normalized = token.at("normalized").flag();
    if (content.empty()) token.at("content").refuse("an added token cannot be empty");
    const auto in_vocab = data.vocab.find(content);
    if (in_vocab != data.vocab.end() && in_vocab->second != id) {
      token.at("id").refuse("\"{}\" has the id {} here and {} in the vocabulary", printable(content), id,
                            in_vocab->second);
    }
    if (!data.added.emplace(content, id).second) token.refuse("the token \"{}\" occurs twice", printable(content));
    // A token that is looked for in normalised text also decodes to its normalised self.
    const std::string seen = normalized && data.normalizes ? nfc(content) : content;
    table.put(token, seen, id, token.at("special").flag() ? TokenKind::special : TokenKind::added);
    (normalized ? data.normalized_tokens : data.raw_tokens).add(seen, id);
  }
}

}  // namespace

std::string byte_spelling(std::string_view bytes) {
  static const std::array<char32_t, 256> alphabet = byte_alphabet();
  std::string out;
  for (const char byte : bytes) {
    const char32_t c = alphabet[static_cast<unsigned char>(byte)];  // below U+0800
    if (c < 0x80) {
      out += static_cast<char>(c);
    } else {
      out += static_cast<char>(0xC0 | c >> 6);
      out += static_cast<char>(0x80 | (c & 0x3F));
    }
  }
  return out;
}

std::string bytes_of_spelling(std::string_view spelling) {
  static const auto byte_of = [] {
    std::array<int, 0x200> inverse;
    inverse.fill(-1);
    const auto alphabet = byte_alphabet();
    for (unsigned b = 0; b < 256; b++) inverse[alphabet[b]] = static_cast<int>(b);
    return inverse;
  }();
  std::string out;
  for (size_t i = 0; i < spelling.size(); i++) {
    size_t c = static_cast<unsigned char>(spelling[i]);
    if (c >= 0xE0) return std::string(spelling);
    if (c >= 0xC0 && i + 1 < spelling.size()) c = (c & 0x1F) << 6 | (static_cast<unsigned char>(spelling[++i]) & 0x3F);
    if (c >= byte_of.size() || byte_of[c] < 0) return std::string(spelling);
    out += static_cast<char>(byte_of[c]);
  }
  return out;
}

void TokenSearch::add(std::string content, int32_t id) {
  auto& bucket = by_first_byte_[static_cast<unsigned char>(content.front())];
  const auto place = std::find_if(bucket.begin(), bucket.end(),
                                  [&](const Entry& entry) { return entry.content.size() < content.size(); });
  bucket.insert(place, {std::move(content), id});
}

TokenSearch::Match TokenSearch::find(std::string_view text, size_t from) const {
  for (size_t i = from; i < text.size(); i++) {
    for (const Entry& entry : by_first_byte_[static_cast<unsigned char>(text[i])]) {
      if (text.compare(i, entry.content.size(), entry.content) == 0) return {i, i + entry.content.size(), entry.id};
    }
  }
  return {text.size(), text.size(), -1};
}

std::shared_ptr<const TokenizerData> parse_tokenizer(std::string_view json, const std::string& where) {
  const Json document = parse_json(json, where);
  const Node root(document, "", where);
  root.expect_object({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                      "post_processor", "decoder", "model"});
  auto data = std::make_shared<TokenizerData>();
  TokenTable table(json.size());
  read_model(root.at("model"), table, *data);
  read_normalizer(root.at("normalizer"), *data);
  read_pre_tokenizer(root.at("pre_tokenizer"), *data);
  check_decoder(root.at("decoder"));
  check_post_processor(root.at("post_processor"));
  read_added_tokens(root.at("added_tokens"), table, *data);
  table.store(*data);
  return data;
}

}  // namespace furlong
