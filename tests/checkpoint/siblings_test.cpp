// Checkpoints of the model's siblings: dense networks, tied embeddings, Qwen3.6's dtypes and packing.
#include <gtest/gtest.h>

#include "checkpoint/dcp_metadata.h"
#include "checkpoint/hf.h"
#include "checkpoint/init.h"
#include "checkpoint/torch_dist.h"
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

INSTANTIATE_TEST_SUITE_P(Of, Siblings, ::testing::Values("dense", "tied", "moe36"),
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
