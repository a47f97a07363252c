#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

namespace furlong {
namespace {

// Sizes beyond these are taken for a damaged file; the largest published model of the family is far below each.
constexpr int64_t max_size = int64_t{1} << 24;
constexpr int64_t max_layers = 4096;
constexpr int64_t max_experts = 65536;  // expert ids fit 16 bits
constexpr int64_t max_parameters = int64_t{1} << 44;

// A kind of checkpoint: how config.json names it, and what a key left out means.
struct Family {
  const char *type, *text_type, *architecture;
  bool dense, grouped_projections;
  int64_t vocab_size, hidden_size, layers, kv_heads, experts, experts_per_token;
};
constexpr Family families[] = {
    {"qwen3_5_moe", "qwen3_5_moe_text", "Qwen3_5MoeForConditionalGeneration", false, false, 248320, 2048, 40, 2, 256,
     8},
    {"qwen3_5", "qwen3_5_text", "Qwen3_5ForConditionalGeneration", true, false, 248320, 4096, 32, 4, 0, 0},
    {"qwen3_next", "qwen3_next", "Qwen3NextForCausalLM", false, true, 151936, 2048, 48, 2, 512, 10},
};

constexpr const char* linear_layer = "linear_attention";
constexpr const char* full_layer = "full_attention";

// Reads keys of one JSON object; errors name the file and the key's path. A null counts as absent.
class Section {
 public:
  Section(const Json& object, std::string where, std::string path)
      : object_(object), where_(std::move(where)), path_(std::move(path)) {
    if (!object_.is_object()) fail(Exit::input, "{}: {} must be a JSON object", where_, path_.empty() ? "it" : path_);
  }

  const Json* find(const char* key) const {
    const auto it = object_.find(key);
    return it == object_.end() || it->is_null() ? nullptr : &*it;
  }

  [[noreturn]] void refuse(const std::string& key, const std::string& why) const {
    fail(Exit::input, "{}: {}{}{}: {}", where_, path_, path_.empty() ? "" : ".", key, why);
  }

  int64_t integer(const char* key, const Json& value, int64_t low, int64_t high) const {
    const bool fits = value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
    if (!fits) refuse(key, "an integer is expected, it is " + shown(value));
    const auto n = value.get<int64_t>();
    if (n < low || n > high) refuse(key, fmt::format("{} is not within {} ... {}", n, low, high));
    return n;
  }

  int64_t size(const char* key, int64_t absent, int64_t high = max_size, int64_t low = 1) const {
    const Json* value = find(key);
    return value == nullptr ? absent : integer(key, *value, low, high);
  }

  double real(const char* key, const Json& value) const {
    if (!value.is_number()) refuse(key, "a number is expected, it is " + shown(value));
    return value.get<double>();
  }

  bool flag(const char* key, bool absent) const {
    const Json* value = find(key);
    if (value == nullptr) return absent;
    if (!value->is_boolean()) refuse(key, "true or false is expected, it is " + shown(*value));
    return value->get<bool>();
  }

  std::string text(const char* key, const std::string& absent) const {
    const Json* value = find(key);
    if (value == nullptr) return absent;
    if (!value->is_string()) refuse(key, "a string is expected, it is " + shown(*value));
    return value->get<std::string>();
  }

  static std::string shown(const Json& value) {
    std::string text = value.dump();
    if (text.size() > 60) text = text.substr(0, 60) + "...";
    return text;
  }

  const std::string& where() const { return where_; }

 private:
  const Json& object_;
  std::string where_, path_;
};

const Family& family_of(const Section& root) {
  const std::string type = root.text("model_type", "");
  for (const Family& f : families) {
    if (type == f.type || type == f.text_type) return f;
  }
  root.refuse("model_type",
              fmt::format("\"{}\" is not read by this version; it reads \"qwen3_5_moe\" and \"qwen3_5\" (Qwen3.5 and "
                          "3.6, mixture of experts and dense) and \"qwen3_next\"",
                          type));
}

void check_quantisation(const Section& root) {
  if (root.find("quantization_config") != nullptr) {
    root.refuse("quantization_config", "quantised checkpoints are not read; use the bfloat16 checkpoint of the model");
  }
}

// The key stands at the root, in text_config or in both, where they agree.
bool read_tied(const Section& root, const Section& text) {
  const char* key = "tie_word_embeddings";
  const bool above = root.flag(key, false), inside = text.flag(key, false);
  if (root.find(key) != nullptr && text.find(key) != nullptr && above != inside)
    root.refuse(key, "the value here and the one in text_config disagree");
  return above || inside;
}

void check_unsupported(const Section& text) {
  if (text.flag("attention_bias", false))
    text.refuse("attention_bias", "true is not supported (no such checkpoint is known)");
  if (!text.flag("attn_output_gate", true))
    text.refuse("attn_output_gate", "false is not supported: attention is always gated");
  if (!text.flag("norm_topk_prob", true)) {
    text.refuse("norm_topk_prob",
                "false is not supported: router weights are always renormalised over the chosen experts");
  }
  if (text.flag("mtp_use_dedicated_embeddings", false)) {
    text.refuse("mtp_use_dedicated_embeddings", "true is not supported: the MTP head shares the model's embedding");
  }
  if (const Json* layers = text.find("mlp_only_layers");
      layers != nullptr && !(layers->is_array() && layers->empty())) {
    text.refuse("mlp_only_layers", "must be empty: the layers' feed-forward networks are all of one kind");
  }
  if (text.size("decoder_sparse_step", 1) != 1)
    text.refuse("decoder_sparse_step", "must be 1: the layers' feed-forward networks are all of one kind");
  for (const char* key : {"output_gate_type", "hidden_act"}) {
    const std::string value = text.text(key, "silu");
    if (value != "silu" && value != "swish")
      text.refuse(key, fmt::format("\"{}\" is not supported, only \"silu\"", value));
  }
}

// Rope keys stand at the text level or inside rope_parameters (older name: rope_scaling), where they win.
void read_rope(const Section& text, ModelConfig& c) {
  double theta = 0, factor = 0.25;
  const auto take = [&](const Section& s) {
    if (const Json* v = s.find("rope_theta")) theta = s.real("rope_theta", *v);
    if (const Json* v = s.find("partial_rotary_factor")) factor = s.real("partial_rotary_factor", *v);
  };
  take(text);
  const Json* nested = nullptr;
  std::string nested_name;
  for (const char* name : {"rope_scaling", "rope_parameters"}) {
    if (const Json* found = text.find(name)) {
      nested = found;
      nested_name = name;
    }
  }
  static const Json nothing = Json::object();
  const Section rope(nested != nullptr ? *nested : nothing, text.where(), nested_name);
  take(rope);
  for (const char* key : {"rope_type", "type"}) {
    const std::string type = rope.text(key, "default");
    if (type != "default") rope.refuse(key, fmt::format("\"{}\" is not supported, only \"default\"", type));
  }
  if (!(theta > 0) || !std::isfinite(theta))
    text.refuse("rope_theta", "a positive number is expected here or in rope_parameters");
  c.rope_theta = theta;
  // The product is rounded only to undo the rounding of the factor itself (44 / 64 has no exact decimal).
  const double dims = static_cast<double>(c.head_dim) * factor;
  const double rounded = std::abs(dims - std::round(dims)) < 1e-6 ? std::round(dims) : std::floor(dims);
  if (!(rounded >= 2) || rounded > static_cast<double>(c.head_dim) || std::fmod(rounded, 2) != 0) {
    text.refuse("partial_rotary_factor",
                fmt::format("{} of head_dim {} gives {} rotary dimensions; an even number from 2 to head_dim is needed",
                            factor, c.head_dim, rounded));
  }
  c.rotary_dim = static_cast<int64_t>(rounded);
  if (const Json* section = rope.find("mrope_section")) {
    if (!section->is_array()) rope.refuse("mrope_section", "a list of integers is expected");
    int64_t sum = 0;
    for (const auto& part : *section) sum += rope.integer("mrope_section", part, 0, max_size);
    if (sum != c.rotary_dim / 2) {
      rope.refuse("mrope_section",
                  fmt::format("its sum is {}, but half the rotary dimensions is {}", sum, c.rotary_dim / 2));
    }
  }
}

void read_layer_types(const Section& text, ModelConfig& c) {
  const int64_t interval = text.size("full_attention_interval", 4);
  c.full_attention.resize(static_cast<size_t>(c.num_layers));
  const Json* types = text.find("layer_types");
  if (types == nullptr) {
    for (int64_t i = 0; i < c.num_layers; i++) c.full_attention[static_cast<size_t>(i)] = (i + 1) % interval == 0;
    return;
  }
  if (!types->is_array() || types->size() != c.full_attention.size()) {
    text.refuse("layer_types", fmt::format("a list of num_hidden_layers = {} strings is expected", c.num_layers));
  }
  for (size_t i = 0; i < c.full_attention.size(); i++) {
    const Json& type = (*types)[i];
    if (type != linear_layer && type != full_layer) {
      text.refuse(fmt::format("layer_types[{}]", i), fmt::format("{} is not known, only \"{}\" and \"{}\"",
                                                                 Section::shown(type), linear_layer, full_layer));
    }
    c.full_attention[i] = type == full_layer;
  }
}

void read_eos(const Section& root, const Section& text, ModelConfig& c) {
  const bool in_text = text.find("eos_token_id") != nullptr;
  const Section& section = in_text ? text : root;
  const Json* value = section.find("eos_token_id");
  if (value == nullptr) return;
  const auto add = [&](const Json& id) {
    c.eos_token_ids.push_back(static_cast<int32_t>(section.integer("eos_token_id", id, 0, c.vocab_size - 1)));
  };
  if (!value->is_array()) return add(*value);
  for (const auto& id : *value) add(id);
}

void check_divisible(const Section& text, const char* key, int64_t n, const char* by_key, int64_t by) {
  if (n % by != 0) text.refuse(key, fmt::format("{} is not a multiple of {} = {}", n, by_key, by));
}

// Sums every tensor's elements with overflow checks, so that later size arithmetic is safe.
void check_parameters(const Section& text, const ModelConfig& c) {
  int64_t total = 0;
  bool overflow = false;
  const auto add = [&](std::initializer_list<int64_t> factors) {
    int64_t n = 1;
    for (const int64_t f : factors) overflow |= __builtin_mul_overflow(n, f, &n);
    overflow |= __builtin_add_overflow(total, n, &total);
  };
  const int64_t h = c.hidden_size, blocks = c.num_layers + c.mtp_num_layers;
  const int64_t delta = c.num_delta_layers(), full = c.num_attention_layers() + c.mtp_num_layers;
  add({c.tied_embeddings ? 1 : 2, c.vocab_size, h});
  add({2 + 2 * blocks, h});
  add({blocks, c.num_experts, 3, c.moe_intermediate_size, h});
  add({blocks, c.dense() ? 0 : c.num_experts + 1, h});
  add({blocks, 3, c.intermediate_size, h});
  add({blocks, 3, c.shared_intermediate_size, h});
  add({full, 3 * c.num_heads + 2 * c.num_kv_heads, c.head_dim, h});
  add({delta, c.linear_num_key_heads, 2 * c.linear_key_head_dim, h + c.conv_kernel});
  add({delta, c.linear_num_value_heads, c.linear_value_head_dim, 3 * h + c.conv_kernel});
  add({delta, c.linear_num_value_heads, 2 * h + 2});
  add({c.mtp_num_layers, 2, h, h});
  if (overflow || total > max_parameters) {
    fail(Exit::input, "{}: these sizes give more than {} parameters; the file seems to be damaged", text.where(),
         max_parameters);
  }
}

void read_feed_forward(const Section& text, const Family& family, ModelConfig& c) {
  if (family.dense) {
    if (text.size("num_experts", 0, max_experts, 0) != 0)
      text.refuse("num_experts", fmt::format("must be absent or 0: \"{}\" is a dense model", family.type));
    c.intermediate_size = text.size("intermediate_size", 12288);
    return;
  }
  c.num_experts = text.size("num_experts", family.experts, max_experts);
  c.experts_per_token = text.size("num_experts_per_tok", family.experts_per_token, max_experts);
  c.moe_intermediate_size = text.size("moe_intermediate_size", 512);
  c.shared_intermediate_size = text.size("shared_expert_intermediate_size", 512);
  if (c.experts_per_token > c.num_experts) {
    text.refuse("num_experts_per_tok",
                fmt::format("{} is more than num_experts = {}", c.experts_per_token, c.num_experts));
  }
}

void read_sizes(const Section& text, const Family& family, ModelConfig& c) {
  c.grouped_projections = family.grouped_projections;
  c.vocab_size = text.size("vocab_size", family.vocab_size);
  c.hidden_size = text.size("hidden_size", family.hidden_size);
  c.num_layers = text.size("num_hidden_layers", family.layers, max_layers);
  c.num_heads = text.size("num_attention_heads", 16);
  c.num_kv_heads = text.size("num_key_value_heads", family.kv_heads);
  c.head_dim = text.size("head_dim", 256);
  c.linear_num_key_heads = text.size("linear_num_key_heads", 16);
  c.linear_num_value_heads = text.size("linear_num_value_heads", 32);
  c.linear_key_head_dim = text.size("linear_key_head_dim", 128);
  c.linear_value_head_dim = text.size("linear_value_head_dim", 128);
  c.conv_kernel = text.size("linear_conv_kernel_dim", 4, 64);
  read_feed_forward(text, family, c);
  // Qwen3-Next's own files do not say that they hold a head; other programs' name for it is the second.
  c.mtp_num_layers = text.size("mtp_num_hidden_layers", text.size("num_nextn_predict_layers", 0, 1, 0), 1, 0);
  c.max_position_embeddings = text.size("max_position_embeddings", 32768, int64_t{1} << 31);
  if (const Json* eps = text.find("rms_norm_eps")) c.rms_norm_eps = text.real("rms_norm_eps", *eps);
  if (!(c.rms_norm_eps > 0) || !std::isfinite(c.rms_norm_eps))
    text.refuse("rms_norm_eps", "a positive number is expected");
  check_divisible(text, "num_attention_heads", c.num_heads, "num_key_value_heads", c.num_kv_heads);
  check_divisible(text, "linear_num_value_heads", c.linear_num_value_heads, "linear_num_key_heads",
                  c.linear_num_key_heads);
}

std::string read_dtype(const Section& root, const Section& text) {
  for (const Section* section : {&text, &root}) {
    for (const char* key : {"dtype", "torch_dtype"}) {
      const std::string value = section->text(key, "");
      if (value.empty()) continue;
      if (value != "bfloat16" && value != "float32" && value != "float16") {
        section->refuse(key, fmt::format("\"{}\" is not known; bfloat16, float32 or float16 is expected", value));
      }
      return value;
    }
  }
  return "bfloat16";
}

}  // namespace

int64_t ModelConfig::num_attention_layers() const {
  return std::count(full_attention.begin(), full_attention.end(), true);
}

ModelConfig parse_model_config(const std::string& text, const std::string& where) {
  const Json json = parse_json(text, where);
  const Section root(json, where, "");
  const Family& family = family_of(root);
  check_quantisation(root);
  const Json* nested = root.find("text_config");
  const Section section(nested != nullptr ? *nested : json, where, nested != nullptr ? "text_config" : "");
  if (nested != nullptr) {
    if (const std::string type = section.text("model_type", family.text_type); type != family.text_type) {
      section.refuse("model_type", fmt::format("\"{}\" is not that of a \"{}\" model, which has \"{}\"", type,
                                               family.type, family.text_type));
    }
  }
  check_unsupported(section);
  ModelConfig c;
  c.tied_embeddings = read_tied(root, section);
  read_sizes(section, family, c);
  read_rope(section, c);
  read_layer_types(section, c);
  check_parameters(section, c);
  read_eos(root, section, c);
  c.checkpoint_dtype = read_dtype(root, section);
  return c;
}

ModelConfig read_model_config(const std::string& directory) {
  const std::string path = directory + "/config.json";
  return parse_model_config(read_file(path), path);
}

std::string config_json(const ModelConfig& c) {
  OrderedJson eos = nullptr;
  if (c.eos_token_ids.size() == 1) eos = c.eos_token_ids[0];
  if (c.eos_token_ids.size() > 1) eos = c.eos_token_ids;
  std::vector<std::string> types;
  for (const bool full : c.full_attention) types.emplace_back(full ? full_layer : linear_layer);
  const int64_t half = c.rotary_dim / 2;
  const OrderedJson rope = {
      {"rope_type", "default"},
      {"rope_theta", c.rope_theta},
      {"partial_rotary_factor", static_cast<double>(c.rotary_dim) / static_cast<double>(c.head_dim)},
      {"mrope_section", {(half + 2) / 3, (half + 1) / 3, half / 3}},
      {"mrope_interleaved", true}};
  const Family& family = families[c.dense() ? 1 : 0];
  const OrderedJson feed_forward = c.dense()
                                       ? OrderedJson{{"intermediate_size", c.intermediate_size}}
                                       : OrderedJson{{"num_experts", c.num_experts},
                                                     {"num_experts_per_tok", c.experts_per_token},
                                                     {"moe_intermediate_size", c.moe_intermediate_size},
                                                     {"shared_expert_intermediate_size", c.shared_intermediate_size},
                                                     {"mlp_only_layers", OrderedJson::array()},
                                                     {"router_aux_loss_coef", 0.001},
                                                     {"output_router_logits", false}};
  OrderedJson text = {{"model_type", family.text_type},
                      {"dtype", c.checkpoint_dtype},
                      {"vocab_size", c.vocab_size},
                      {"hidden_size", c.hidden_size},
                      {"num_hidden_layers", c.num_layers},
                      {"layer_types", types},
                      {"num_attention_heads", c.num_heads},
                      {"num_key_value_heads", c.num_kv_heads},
                      {"head_dim", c.head_dim},
                      {"attn_output_gate", true},
                      {"attention_bias", false},
                      {"attention_dropout", 0.0},
                      {"hidden_act", "silu"},
                      {"rms_norm_eps", c.rms_norm_eps},
                      {"linear_num_key_heads", c.linear_num_key_heads},
                      {"linear_num_value_heads", c.linear_num_value_heads},
                      {"linear_key_head_dim", c.linear_key_head_dim},
                      {"linear_value_head_dim", c.linear_value_head_dim},
                      {"linear_conv_kernel_dim", c.conv_kernel},
                      {"mamba_ssm_dtype", "float32"},
                      {"mtp_num_hidden_layers", c.mtp_num_layers},
                      {"mtp_use_dedicated_embeddings", false},
                      {"max_position_embeddings", c.max_position_embeddings},
                      {"rope_parameters", rope},
                      {"initializer_range", 0.02},
                      {"use_cache", true},
                      {"tie_word_embeddings", c.tied_embeddings},
                      {"eos_token_id", eos}};
  text.update(feed_forward);
  const OrderedJson root = {{"architectures", {family.architecture}},
                            {"model_type", family.type},
                            {"dtype", c.checkpoint_dtype},
                            {"tie_word_embeddings", c.tied_embeddings},
                            {"text_config", text}};
  return root.dump(2) + "\n";
}

}  // namespace furlong
