#include "furlong/presets.h"

#include <algorithm>
#include <iterator>

#include "base/error.h"
#include "base/json.h"
#include "tokenizer/tokenizer.h"

namespace furlong {
namespace {

constexpr int64_t full_attention_interval = 4;
const char* const special_tokens[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"};
constexpr int32_t byte_tokens = 256;
// Qwen3.5's split: contractions, letters with marks, single digits, other symbols, line ends, spaces.
const char* const split_pattern =
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|"
    "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

// The byte-level alphabet: printable Latin-1 as itself, every other byte, in order, as U+0100 onwards.
std::string spelling(int byte) {
  const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || (byte >= 174 && byte <= 255);
  int code = byte;
  if (!printable) {
    code = 256;
    for (int b = 0; b < byte; b++) code += !((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255));
  }
  if (code < 0x80) return std::string(1, static_cast<char>(code));
  return {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3f))};
}

// One token per byte and the special tokens, no merges.
std::string byte_tokenizer() {
  OrderedJson vocab = OrderedJson::object(), added = OrderedJson::array();
  for (int b = 0; b < byte_tokens; b++) vocab[spelling(b)] = b;
  int32_t id = byte_tokens;
  for (const char* token : special_tokens) {
    added.push_back({{"id", id++},
                     {"content", token},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", token[1] == '|'}});
  }
  const OrderedJson byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  const OrderedJson split = {
      {"type", "Split"}, {"pattern", {{"Regex", split_pattern}}}, {"behavior", "Isolated"}, {"invert", false}};
  const OrderedJson json = {
      {"version", "1.0"},
      {"truncation", nullptr},
      {"padding", nullptr},
      {"added_tokens", added},
      {"normalizer", {{"type", "NFC"}}},
      {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", OrderedJson::array({split, byte_level})}}},
      {"post_processor", byte_level},
      {"decoder", byte_level},
      {"model",
       {{"type", "BPE"},
        {"dropout", nullptr},
        {"unk_token", nullptr},
        {"continuing_subword_prefix", nullptr},
        {"end_of_word_suffix", nullptr},
        {"fuse_unk", false},
        {"byte_fallback", false},
        {"ignore_merges", false},
        {"vocab", vocab},
        {"merges", OrderedJson::array()}}}};
  return json.dump(1) + "\n";
}

// vocab_size: of the model; what is beyond the 256 bytes and 5 special tokens is never typed.
void add_byte_tokenizer(Preset& preset, int64_t vocab_size = 264) {
  constexpr int32_t end_of_text = byte_tokens, im_end = byte_tokens + 2;
  preset.config.vocab_size = vocab_size;
  preset.config.eos_token_ids = {im_end};
  preset.files = {{"tokenizer.json", byte_tokenizer()},
                  {"tokenizer_config.json", OrderedJson{{"eos_token", "<|im_end|>"},
                                                        {"pad_token", "<|endoftext|>"},
                                                        {"tokenizer_class", "Qwen2TokenizerFast"},
                                                        {"add_bos_token", false}}
                                                    .dump(1) +
                                                "\n"},
                  {"generation_config.json",
                   OrderedJson{{"eos_token_id", {im_end, end_of_text}}, {"pad_token_id", end_of_text}}.dump(1) + "\n"}};
}

void set_layers(ModelConfig& c, int64_t layers) {
  c.num_layers = layers;
  c.full_attention.clear();
  for (int64_t i = 0; i < layers; i++) {
    const bool last_of_few = layers < full_attention_interval && i + 1 == layers;
    c.full_attention.push_back((i + 1) % full_attention_interval == 0 || last_of_few);
  }
}

// What the released models have in common.
void set_released(ModelConfig& c) {
  c.head_dim = 256;
  c.rotary_dim = 64;
  c.linear_num_key_heads = 16;
  c.linear_num_value_heads = 32;
  c.linear_key_head_dim = c.linear_value_head_dim = 128;
  c.max_position_embeddings = 262144;
}

void set_tiny(ModelConfig& c) {
  c.hidden_size = 128;
  c.num_heads = 4;
  c.num_kv_heads = 2;
  c.head_dim = 32;
  c.rotary_dim = 8;
  c.linear_num_key_heads = 2;
  c.linear_num_value_heads = 4;
  c.linear_key_head_dim = c.linear_value_head_dim = 32;
  c.max_position_embeddings = 4096;
}

// A dense model as released.
struct Dense {
  const char* name;
  int64_t layers, hidden, heads, kv_heads, key_heads, value_heads, width;
  bool tied;
};
constexpr Dense dense_models[] = {{"0.8b", 24, 1024, 8, 2, 16, 16, 3584, true},
                                  {"4b", 32, 2560, 16, 4, 16, 32, 9216, true},
                                  {"9b", 32, 4096, 16, 4, 16, 32, 12288, false},
                                  {"27b", 64, 5120, 24, 4, 16, 48, 17408, false}};

ModelConfig common() {
  ModelConfig c;
  c.rope_theta = 1e7;
  c.conv_kernel = 4;
  c.mtp_num_layers = 1;
  c.rms_norm_eps = 1e-6;
  return c;
}

}  // namespace

Preset make_preset(const std::string& name, std::optional<int64_t> num_layers) {
  Preset preset{common(), {}};
  ModelConfig& c = preset.config;
  const auto* dense = std::find_if(std::begin(dense_models), std::end(dense_models),
                                   [&](const Dense& model) { return name == model.name; });
  if (name == "tiny") {
    set_tiny(c);
    c.num_experts = 8;
    c.experts_per_token = 2;
    c.moe_intermediate_size = c.shared_intermediate_size = 64;
    set_layers(c, num_layers.value_or(4));
    add_byte_tokenizer(preset);
  } else if (name == "tiny-dense" || name == "tiny-tied") {
    set_tiny(c);
    c.intermediate_size = 256;
    c.tied_embeddings = name == "tiny-tied";
    if (!c.tied_embeddings) c.linear_num_value_heads = 6;  // three a key head, as in 27B
    set_layers(c, num_layers.value_or(4));
    add_byte_tokenizer(preset);
  } else if (name == "small") {
    c.hidden_size = 512;
    c.num_heads = 8;
    c.num_kv_heads = 2;
    c.head_dim = 64;
    c.rotary_dim = 16;
    c.linear_num_key_heads = 4;
    c.linear_num_value_heads = 8;
    c.linear_key_head_dim = c.linear_value_head_dim = 64;
    c.num_experts = 32;
    c.experts_per_token = 4;
    c.moe_intermediate_size = c.shared_intermediate_size = 128;
    c.max_position_embeddings = 32768;
    set_layers(c, num_layers.value_or(8));
    add_byte_tokenizer(preset);
  } else if (name == "mini") {
    set_released(c);
    c.hidden_size = 256;
    c.num_heads = 4;
    c.num_kv_heads = 1;
    c.head_dim = 128;
    c.rotary_dim = 32;
    c.linear_num_key_heads = 2;
    c.linear_num_value_heads = 4;
    c.num_experts = 16;
    c.experts_per_token = 4;
    c.moe_intermediate_size = c.shared_intermediate_size = 64;
    c.max_position_embeddings = 32768;
    set_layers(c, num_layers.value_or(4));
    add_byte_tokenizer(preset, 4096);
  } else if (name == "35b-a3b" || name == "slice") {
    const bool slice = name == "slice";
    set_released(c);
    c.hidden_size = 2048;
    c.num_heads = 16;
    c.num_kv_heads = 2;
    c.num_experts = slice ? 16 : 256;
    c.experts_per_token = 8;
    c.moe_intermediate_size = c.shared_intermediate_size = 512;
    set_layers(c, num_layers.value_or(slice ? 4 : 40));
    add_byte_tokenizer(preset, slice ? 32768 : 248320);
  } else if (name == "80b-a3b") {
    set_released(c);
    c.hidden_size = 2048;
    c.num_heads = 16;
    c.num_kv_heads = 2;
    c.num_experts = 512;
    c.experts_per_token = 10;
    c.moe_intermediate_size = c.shared_intermediate_size = 512;
    set_layers(c, num_layers.value_or(48));
    add_byte_tokenizer(preset, 151936);
  } else if (dense != std::end(dense_models)) {
    set_released(c);
    c.hidden_size = dense->hidden;
    c.num_heads = dense->heads;
    c.num_kv_heads = dense->kv_heads;
    c.linear_num_key_heads = dense->key_heads;
    c.linear_num_value_heads = dense->value_heads;
    c.intermediate_size = dense->width;
    c.tied_embeddings = dense->tied;
    set_layers(c, num_layers.value_or(dense->layers));
    add_byte_tokenizer(preset, 248320);
  } else {
    fail(Exit::usage, "--preset {}: one of {} wanted", name, fmt::join(preset_names, ", "));
  }
  return preset;
}

}  // namespace furlong
