// Checkpoints of the model's siblings: dense networks, tied embeddings, Qwen3.6's dtypes and packing.
#include <gtest/gtest.h>

#include "checkpoint/dcp_metadata.h"
#include "checkpoint/hf.h"
#include "checkpoint/init.h"
#include "checkpoint/torch_dist.h"
#include "checkpoint/values.h"
#include "layouts.h"
#include "parallel/threads.h"
#include "scratch.h"

namespace furlong::siblings {
namespace {

std::string folder_of(const std::string& name) { return std::string(FURLONG_TEST_DATA) + "/siblings/" + name; }

// Whether the weights and small files of two checkpoints are the same bytes.
void expect_same_files(const std::string& made, const std::string& source) {
  for (const char* name : {"model.safetensors", "config.json", "generation_config.json"})
    EXPECT_TRUE(read_file(made + "/" + name) == read_file(source + "/" + name)) << name << " of " << source;
}

class Siblings : public ::testing::TestWithParam<const char*> {
 protected:
  std::string source = folder_of(GetParam());
  ModelConfig config = read_model_config(source);
  Scratch scratch;
};

TEST_P(Siblings, LoadAndSaveIsTheIdentity) {
  save_hf({.source_dir = source, .output_dir = scratch / "out"}, load_hf(source, config, DType::f32));
  expect_same_files(scratch / "out", source);
}

TEST_P(Siblings, ToTorchDistAndBackIsTheIdentity) {
  write_torch_dist(stored_hf(source, config), config, {.output_dir = scratch / "dist"}, 2);
  save_hf({.source_dir = source, .output_dir = scratch / "out"}, stored_torch_dist(scratch / "dist", config), config);
  expect_same_files(scratch / "out", source);
}

INSTANTIATE_TEST_SUITE_P(Of, Siblings, ::testing::Values("dense", "tied", "moe36", "next"),
                         [](const auto& info) { return std::string(info.param); });

// A_log in 16 bits stays so while that holds its numbers; one that was trained is F32.
TEST(Siblings, ATrainedALogIsF32) {
  const Scratch scratch;
  const std::string source = folder_of("moe36");
  const ModelConfig config = read_model_config(source);
  Weights w = load_hf(source, config, DType::f32);
  w.layers[1].delta.A_log.as<float>()[0] += 1e-6f;
  save_hf({.source_dir = source, .output_dir = scratch / "out"}, w);
  const SafetensorsDirectory out(scratch / "out");
  const std::string layers = "model.language_model.layers.";
  EXPECT_EQ(out.find(layers + "0.linear_attn.A_log")->dtype, "BF16");
  EXPECT_EQ(out.find(layers + "1.linear_attn.A_log")->dtype, "F32");
  EXPECT_EQ(out.find(layers + "1.linear_attn.norm.weight")->dtype, "BF16");
  EXPECT_TRUE(same_values(w, load_hf(scratch / "out", config, DType::f32)));
}

TEST(Siblings, ATiedCheckpointHasNoHead) {
  const Scratch scratch;
  const std::string source = folder_of("tied");
  const ModelConfig config = read_model_config(source);
  const Weights w = load_hf(source, config, DType::f32);
  save_hf({.output_dir = scratch / "new", .config_text = config_json(config)}, w);
  EXPECT_EQ(SafetensorsDirectory(scratch / "new").find("lm_head.weight"), nullptr);
  EXPECT_TRUE(same_values(w, load_hf(scratch / "new", read_model_config(scratch / "new"), DType::f32)));
  ModelConfig untied = config;
  untied.tied_embeddings = false;
  EXPECT_TRUE(contains(error_of([&] { load_hf(source, untied, DType::f32); }), "lm_head.weight"));
  // One that says it is tied and has a head all the same is not taken for either.
  save_hf({.output_dir = scratch / "untied", .config_text = config_json(untied)}, Weights(untied, DType::f32));
  EXPECT_TRUE(contains(error_of([&] { load_hf(scratch / "untied", config, DType::f32); }), "unexpected (1)"));
}

// The keys are those that miles' conversion to and from Megatron asks for (checkpoint-spec 5).
TEST(Siblings, DenseNamesInTorchDist) {
  for (const bool tied : {false, true}) {
    const Scratch scratch;
    const std::string source = folder_of(tied ? "tied" : "dense");
    const ModelConfig config = read_model_config(source);
    write_torch_dist(stored_hf(source, config), config, {.output_dir = scratch / "dist"}, 1);
    const std::string index = read_file(scratch / "dist/release/.metadata");
    const auto m = parse_dcp_metadata(bytes_of(index), "index");
    const int64_t h = config.hidden_size, f = config.intermediate_size;
    const auto shape = [&](const std::string& key) {
      const DcpTensor* t = m.find(key);
      return t == nullptr ? std::vector<int64_t>() : t->shape;
    };
    for (const std::string layer : {"decoder.layers.0.", "decoder.layers.2.", "mtp.layers.0.transformer_layer."}) {
      EXPECT_EQ(shape(layer + "mlp.linear_fc1.weight"), (std::vector<int64_t>{2 * f, h})) << layer;
      EXPECT_EQ(shape(layer + "mlp.linear_fc1.layer_norm_weight"), std::vector<int64_t>{h}) << layer;
      EXPECT_EQ(shape(layer + "mlp.linear_fc2.weight"), (std::vector<int64_t>{h, f})) << layer;
      EXPECT_EQ(m.find(layer + "pre_mlp_layernorm.weight"), nullptr);
    }
    EXPECT_EQ(m.find("output_layer.weight") == nullptr, tied);
    EXPECT_EQ(std::count_if(m.tensors.begin(), m.tensors.end(),
                            [](const auto& t) { return t.key.find("expert") != std::string::npos; }),
              0);
  }
}

// Qwen3-Next's projections: rows of a key head together in the files, one kind after the other in memory.
TEST(Siblings, GroupedProjections) {
  const Scratch scratch;
  const std::string source = folder_of("next");
  const ModelConfig config = read_model_config(source);
  const Weights w = load_hf(source, config, DType::f32);
  const SafetensorsDirectory files(source);
  const int64_t h = config.hidden_size, dk = config.linear_key_head_dim, dv = config.linear_value_head_dim;
  const int64_t n = config.linear_num_value_heads / config.linear_num_key_heads, rows = 2 * (dk + n * dv);
  const std::string layer = "model.layers.1.linear_attn.";
  const auto qkvz = floats_of(*files.find(layer + "in_proj_qkvz.weight")),
             ba = floats_of(*files.find(layer + "in_proj_ba.weight"));
  const auto expect_row = [&](const Tensor& t, int64_t row, const std::vector<float>& from, int64_t at) {
    EXPECT_TRUE(std::equal(from.begin() + at * h, from.begin() + (at + 1) * h, t.at(row).as<float>())) << row;
  };
  const DeltaNetWeights& delta = w.layers[1].delta;
  for (int64_t g = 0; g < config.linear_num_key_heads; g++) {
    expect_row(delta.qkv, g * dk + 3, qkvz, g * rows + 3);
    expect_row(delta.qkv, config.key_dim() + g * dk + 2, qkvz, g * rows + dk + 2);
    expect_row(delta.qkv, 2 * config.key_dim() + (g * n + 2) * dv + 1, qkvz, g * rows + 2 * dk + 2 * dv + 1);
    expect_row(delta.z, (g * n + 1) * dv + 4, qkvz, g * rows + 2 * dk + n * dv + dv + 4);
    expect_row(delta.b, g * n + 2, ba, g * 2 * n + 2);
    expect_row(delta.a, g * n + 1, ba, g * 2 * n + n + 1);
  }
  // Into torch_dist as they are; what has them apart is read too.
  write_torch_dist(stored_hf(source, config), config, {.output_dir = scratch / "dist"}, 1);
  EXPECT_TRUE(
      contains(read_file(scratch / "dist/release/.metadata"), "self_attention.linear_attn.in_proj_qkvz.weight"));
  EXPECT_TRUE(same_values(w, load_torch_dist(scratch / "dist", config, DType::f32)));
  ModelConfig apart = config;
  apart.grouped_projections = false;
  write_torch_dist(stored_hf(source, apart), apart, {.output_dir = scratch / "apart"}, 1);
  EXPECT_FALSE(contains(read_file(scratch / "apart/release/.metadata"), "in_proj_qkvz"));
  EXPECT_TRUE(same_values(w, load_torch_dist(scratch / "apart", config, DType::f32)));
}

ModelConfig splittable_dense(bool tied) {
  ModelConfig c = splittable_config();
  c.linear_num_value_heads = 3 * c.linear_num_key_heads;
  c.num_experts = c.experts_per_token = c.moe_intermediate_size = c.shared_intermediate_size = 0;
  c.intermediate_size = 8;
  c.tied_embeddings = tied;
  return c;
}

// Each rank gets its part of a dense model from either kind of checkpoint, and the files that all write are those of
// one.
TEST(SiblingsOnRanks, LoadAndSave) {
  for (const bool tied : {false, true}) {
    const Scratch scratch;
    const ModelConfig config = splittable_dense(tied);
    Weights whole(config, DType::f32);
    init_weights(whole, config, 11, 1);
    save_hf({.output_dir = scratch / "m", .config_text = config_json(config)}, whole);
    write_torch_dist(stored_hf(scratch / "m", config), config, {.output_dir = scratch / "t", .vocab_multiple = 8}, 2);
    const std::string expected = read_file(scratch / "m/model.safetensors");
    for (const auto& layout : layouts()) {
      if (layout.sizes.expert * layout.sizes.expert_tensor > 1) continue;
      const std::string out = scratch / fmt::format("{}", &layout - layouts().data());
      run_ranks(layout.ranks, [&](World& world) {
        const Mesh mesh(world, layout.sizes);
        const Weights part = load_hf(scratch / "m", config, DType::f32, {.mesh = mesh});
        EXPECT_TRUE(is_part_of(part, whole)) << "rank " << world.rank() << " of " << text_of(layout);
        EXPECT_TRUE(is_part_of(load_torch_dist(scratch / "t", config, DType::f32, {.mesh = mesh}), whole))
            << "rank " << world.rank() << " of " << text_of(layout);
        save_hf({.output_dir = out, .config_text = config_json(config)}, part, mesh);
      });
      EXPECT_TRUE(read_file(out + "/model.safetensors") == expected) << text_of(layout);
    }
  }
}

}  // namespace
}  // namespace furlong::siblings
