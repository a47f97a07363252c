#include "model/config.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/rng.h"
#include "model/weights.h"

namespace furlong {
namespace {

const std::string tiny = FURLONG_TEST_DATA "/tiny";

Json tiny_json() { return read_json_file(tiny + "/config.json"); }

ModelConfig parse(const Json& json) { return parse_model_config(json.dump(), "config.json"); }

std::string refusal(const Json& json) {
  try {
    parse(json);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::input);
    return e.what();
  }
  return "";
}

TEST(Config, ReadsANestedConfig) {
  const ModelConfig c = read_model_config(tiny);
  EXPECT_EQ(c.vocab_size, 512);
  EXPECT_EQ(c.hidden_size, 64);
  EXPECT_EQ(c.num_layers, 8);
  EXPECT_EQ(c.full_attention, (std::vector<bool>{false, false, false, true, false, false, false, true}));
  EXPECT_EQ(c.num_attention_layers(), 2);
  EXPECT_EQ(c.num_delta_layers(), 6);
  EXPECT_EQ(c.num_heads, 4);
  EXPECT_EQ(c.num_kv_heads, 2);
  EXPECT_EQ(c.head_dim, 32);
  EXPECT_EQ(c.rotary_dim, 8);
  EXPECT_EQ(c.rope_theta, 1e7);
  EXPECT_EQ(c.key_dim(), 32);
  EXPECT_EQ(c.value_dim(), 64);
  EXPECT_EQ(c.conv_dim(), 128);
  EXPECT_EQ(c.conv_kernel, 4);
  EXPECT_EQ(c.num_experts, 8);
  EXPECT_EQ(c.experts_per_token, 2);
  EXPECT_EQ(c.moe_intermediate_size, 32);
  EXPECT_EQ(c.shared_intermediate_size, 32);
  EXPECT_EQ(c.mtp_num_layers, 1);
  EXPECT_EQ(c.rms_norm_eps, 1e-6);
  EXPECT_EQ(c.max_position_embeddings, 4096);
  EXPECT_TRUE(c.eos_token_ids.empty());
  EXPECT_EQ(c.checkpoint_dtype, "bfloat16");
}

// The published 35B-A3B sizes are also what a key left out means; parameter counts are those of its model card.
TEST(Config, AbsentKeysMeanThePublishedModel) {
  const ModelConfig c =
      parse({{"model_type", "qwen3_5_moe"}, {"text_config", {{"rope_theta", 1e7}, {"mtp_num_hidden_layers", 1}}}});
  EXPECT_EQ(c.num_layers, 40);
  EXPECT_EQ(c.num_attention_layers(), 10);
  EXPECT_TRUE(c.full_attention[3] && c.full_attention[39]);
  EXPECT_EQ(c.rotary_dim, 64);
  int64_t trunk = 0, mtp = 0;
  for (const auto& spec : tensor_registry(c)) (spec.mtp ? mtp : trunk) += spec.numel();
  EXPECT_EQ(trunk, 34'660'610'688);
  EXPECT_EQ(mtp, 844'640'768);
}

TEST(Config, ReadsDenseAndTiedModels) {
  const ModelConfig dense = read_model_config(FURLONG_TEST_DATA "/siblings/dense");
  EXPECT_TRUE(dense.dense());
  EXPECT_EQ(dense.intermediate_size, 40);
  EXPECT_EQ(dense.linear_num_value_heads, 3 * dense.linear_num_key_heads);
  EXPECT_FALSE(dense.tied_embeddings);
  const ModelConfig tied = read_model_config(FURLONG_TEST_DATA "/siblings/tied");
  EXPECT_TRUE(tied.dense() && tied.tied_embeddings);
  Json j = read_json_file(FURLONG_TEST_DATA "/siblings/tied/config.json");
  j.erase("tie_word_embeddings");
  EXPECT_TRUE(parse(j).tied_embeddings);
  j["text_config"].erase("tie_word_embeddings");
  EXPECT_FALSE(parse(j).tied_embeddings);
  j["text_config"]["num_experts"] = 8;
  EXPECT_NE(refusal(j).find("num_experts: must be absent"), std::string::npos) << refusal(j);
  for (const ModelConfig& c : {dense, tied}) {
    const ModelConfig back = parse_model_config(config_json(c), "config.json");
    EXPECT_EQ(config_json(back), config_json(c));
    EXPECT_EQ(back.intermediate_size, c.intermediate_size);
    EXPECT_EQ(back.tied_embeddings, c.tied_embeddings);
    EXPECT_TRUE(back.dense());
  }
}

TEST(Config, ReadsAFlatNextConfig) {
  const std::string path = FURLONG_TEST_DATA "/siblings/next";
  const ModelConfig c = read_model_config(path);
  EXPECT_TRUE(c.grouped_projections);
  EXPECT_FALSE(c.dense());
  EXPECT_EQ(c.full_attention, (std::vector<bool>{false, false, true}));
  EXPECT_EQ(c.rotary_dim, 4);
  EXPECT_EQ(c.mtp_num_layers, 1);
  Json j = read_json_file(path + "/config.json");
  j.erase("num_nextn_predict_layers");
  EXPECT_EQ(parse(j).mtp_num_layers, 0);
  const ModelConfig absent = parse({{"model_type", "qwen3_next"}, {"rope_theta", 1e7}});
  EXPECT_EQ(absent.num_layers, 48);
  EXPECT_EQ(absent.num_experts, 512);
  EXPECT_EQ(absent.experts_per_token, 10);
  EXPECT_EQ(absent.vocab_size, 151936);
}

// What is one gradient is one tensor, here and in the registry.
TEST(Config, ATiedHeadIsTheEmbedding) {
  const ModelConfig tied = read_model_config(FURLONG_TEST_DATA "/siblings/tied");
  const Weights w(tied, DType::f32);
  EXPECT_EQ(w.lm_head.data(), w.embed.data());
  for (const auto& spec : w.specs()) EXPECT_NE(spec.name, "lm_head.weight");
}

TEST(Config, ReadsAFlatTextConfig) {
  Json flat = tiny_json()["text_config"];
  EXPECT_EQ(config_json(parse(flat)), config_json(read_model_config(tiny)));
}

TEST(Config, RopeKeysAtEitherLevelNestedWins) {
  Json j = tiny_json();
  Json& text = j["text_config"];
  text["rope_theta"] = 5.0;
  text["partial_rotary_factor"] = 1.0;
  EXPECT_EQ(parse(j).rope_theta, 1e7);
  EXPECT_EQ(parse(j).rotary_dim, 8);
  text["rope_scaling"] = {{"rope_theta", 7.0}};
  EXPECT_EQ(parse(j).rope_theta, 1e7);
  text.erase("rope_parameters");
  EXPECT_EQ(parse(j).rope_theta, 7.0);
  EXPECT_EQ(parse(j).rotary_dim, 32);
  text["rope_scaling"] = nullptr;
  EXPECT_EQ(parse(j).rope_theta, 5.0);
}

TEST(Config, EosIsANumberAListOrNull) {
  Json j = tiny_json();
  j["text_config"]["eos_token_id"] = 7;
  EXPECT_EQ(parse(j).eos_token_ids, std::vector<int32_t>{7});
  j["text_config"]["eos_token_id"] = {7, 9};
  EXPECT_EQ(parse(j).eos_token_ids, (std::vector<int32_t>{7, 9}));
  j["text_config"]["eos_token_id"] = nullptr;
  j["eos_token_id"] = 3;
  EXPECT_EQ(parse(j).eos_token_ids, std::vector<int32_t>{3});
}

TEST(Config, FullAttentionIntervalBuildsTheLayers) {
  Json j = tiny_json();
  j["text_config"].erase("layer_types");
  j["text_config"]["full_attention_interval"] = 2;
  EXPECT_EQ(parse(j).full_attention, (std::vector<bool>{false, true, false, true, false, true, false, true}));
}

TEST(Config, WrittenConfigReadsBackIdentically) {
  ModelConfig c = read_model_config(tiny);
  for (int variant = 0; variant < 5; variant++) {
    if (variant == 1) c.eos_token_ids = {5};
    if (variant == 2) c.eos_token_ids = {5, 6};
    if (variant == 3) c.full_attention = {true, false, true, true, false, false, false, false}, c.mtp_num_layers = 0;
    if (variant == 4) c.head_dim = 44, c.rotary_dim = 14, c.checkpoint_dtype = "float32", c.rms_norm_eps = 1e-5;
    const ModelConfig back = parse_model_config(config_json(c), "config.json");
    EXPECT_EQ(config_json(back), config_json(c));
    EXPECT_EQ(back.full_attention, c.full_attention);
    EXPECT_EQ(back.eos_token_ids, c.eos_token_ids);
    EXPECT_EQ(back.rotary_dim, c.rotary_dim);
    EXPECT_EQ(back.head_dim, c.head_dim);
    EXPECT_EQ(back.mtp_num_layers, c.mtp_num_layers);
    EXPECT_EQ(back.checkpoint_dtype, c.checkpoint_dtype);
    EXPECT_EQ(back.rms_norm_eps, c.rms_norm_eps);
    EXPECT_EQ(back.max_position_embeddings, c.max_position_embeddings);
  }
}

TEST(Config, RefusesWhatItCannotRead) {
  struct Case {
    const char* pointer;
    Json value;
    const char* message;  // a part of it, the key among others
  };
  const std::vector<Case> cases = {
      {"/model_type", "llama", "model_type: \"llama\" is not read"},
      {"/model_type", "qwen3_5", "text_config.model_type"},
      {"/text_config/model_type", "llama", "text_config.model_type"},
      {"/quantization_config", {{"quant_method", "fp8"}}, "quantization_config"},
      {"/tie_word_embeddings", true, "tie_word_embeddings"},
      {"/text_config/tie_word_embeddings", true, "tie_word_embeddings"},
      {"/text_config/attention_bias", true, "attention_bias"},
      {"/text_config/attn_output_gate", false, "attn_output_gate"},
      {"/text_config/mlp_only_layers", {1}, "mlp_only_layers"},
      {"/text_config/decoder_sparse_step", 2, "decoder_sparse_step"},
      {"/text_config/norm_topk_prob", false, "norm_topk_prob"},
      {"/text_config/mtp_use_dedicated_embeddings", true, "mtp_use_dedicated_embeddings"},
      {"/text_config/mtp_num_hidden_layers", 2, "mtp_num_hidden_layers"},
      {"/text_config/output_gate_type", "sigmoid", "output_gate_type"},
      {"/text_config/hidden_act", "gelu", "hidden_act"},
      {"/text_config/rope_parameters/rope_type", "yarn", "rope_type: \"yarn\""},
      {"/text_config/rope_parameters/rope_theta", 0, "rope_theta"},
      {"/text_config/rope_parameters/rope_theta", "1e7", "rope_theta"},
      {"/text_config/rope_parameters/partial_rotary_factor", 1.5, "partial_rotary_factor"},
      {"/text_config/rope_parameters/partial_rotary_factor", -0.5, "partial_rotary_factor"},
      {"/text_config/rope_parameters/mrope_section", {2, 2, 1}, "mrope_section"},
      {"/text_config/rope_parameters/mrope_section", {2, 1.5, 1}, "mrope_section"},
      {"/text_config/layer_types/2", "sliding_attention", "layer_types[2]"},
      {"/text_config/layer_types", {"full_attention"}, "layer_types"},
      {"/text_config/vocab_size", 0, "vocab_size"},
      {"/text_config/vocab_size", "512", "vocab_size"},
      {"/text_config/vocab_size", 512.0, "vocab_size"},
      {"/text_config/vocab_size", true, "vocab_size"},
      {"/text_config/hidden_size", -64, "hidden_size"},
      {"/text_config/hidden_size", 18446744073709551615ull, "hidden_size"},
      {"/text_config/num_hidden_layers", 1000000000, "num_hidden_layers"},
      {"/text_config/num_experts", 1000000, "num_experts"},
      {"/text_config/num_experts_per_tok", 9, "num_experts_per_tok"},
      {"/text_config/num_attention_heads", 5, "num_attention_heads"},
      {"/text_config/linear_num_value_heads", 3, "linear_num_value_heads"},
      {"/text_config/rms_norm_eps", 0, "rms_norm_eps"},
      {"/text_config/eos_token_id", 512, "eos_token_id"},
      {"/text_config/eos_token_id", {1, "x"}, "eos_token_id"},
      {"/text_config/dtype", "int4", "dtype"},
      {"/text_config", {1, 2}, "text_config"},
  };
  for (const auto& c : cases) {
    Json j = tiny_json();
    j[Json::json_pointer(c.pointer)] = c.value;
    const std::string message = refusal(j);
    EXPECT_NE(message.find(c.message), std::string::npos) << c.pointer << " = " << c.value << ": " << message;
    EXPECT_EQ(message.rfind("config.json: ", 0), 0u) << message;
  }
  EXPECT_NE(refusal(Json::array()), "");
  EXPECT_THROW(parse_model_config("{\"model_type\": ", "config.json"), Error);
}

// Sizes each within its bound can still give a model that no machine holds.
TEST(Config, RefusesAnAbsurdTotal) {
  Json j = tiny_json();
  Json& text = j["text_config"];
  text["hidden_size"] = 1 << 24;
  text["moe_intermediate_size"] = 1 << 24;
  text["num_experts"] = 65536;
  EXPECT_NE(refusal(j).find("parameters"), std::string::npos);
  text = tiny_json()["text_config"];
  text["num_attention_heads"] = 1 << 24;
  text["head_dim"] = 1 << 24;
  text["rope_parameters"].erase("mrope_section");
  EXPECT_NE(refusal(j).find("parameters"), std::string::npos);
}

// Edited at random, a config is read or refused with an Error, and what is read has a registry of bounded size.
TEST(Config, RandomMutationsNeverCrash) {
  const std::string good = read_file(tiny + "/config.json"), marks = "{}[]\",:0123456789-.e \n";
  int read = 0;
  for (uint32_t i = 0; i < 5000; i++) {
    const RngKey key{.seed = 2, .group = i, .purpose = Purpose::data};
    std::string text = good;
    for (uint32_t e = 0; e < 1 + random_word(key, 0) % 3; e++) {
      const size_t p = random_word(key, 3 * e + 1) % text.size();
      const uint32_t what = random_word(key, 3 * e + 2), kind = random_word(key, 3 * e + 3) % 3;
      if (kind == 0) text[p] = marks[what % marks.size()];
      if (kind == 1) text.insert(p, 1, marks[what % marks.size()]);
      if (kind == 2) text.erase(p, 1 + what % 4);
    }
    try {
      EXPECT_LT(tensor_registry(parse_model_config(text, "config.json")).size(), 100000u);
      read++;
    } catch (const Error& e) {
      ASSERT_EQ(e.code(), Exit::input);
    }
  }
  EXPECT_GT(read, 50);
  EXPECT_LT(read, 4500);
}

TEST(Config, TheSwishGateIsSilu) {
  Json j = tiny_json();
  j["text_config"]["output_gate_type"] = "swish";
  EXPECT_EQ(refusal(j), "");
}

}  // namespace
}  // namespace furlong
