// torch_dist folders to weights: every way in which checkpoints hold the model, and what is refused.
#include <array>

#include "checkpoint/hf.h"
#include "checkpoint/torch_dist.h"
#include "checkpoint/values.h"
#include "dist_maker.h"

namespace furlong::dist_loading {
namespace {

ModelConfig tiny_config(int64_t mtp = 1) {
  ModelConfig config = read_model_config(tiny);
  config.mtp_num_layers = mtp;
  return config;
}

const MadeTensors& golden() {
  static const MadeTensors tensors = read_dist(golden_dist);
  return tensors;
}

const Weights& golden_weights() {
  static const Weights weights = load_torch_dist(golden_dist, tiny_config(), DType::bf16);
  return weights;
}

Weights load(const MadeTensors& tensors, const Cuts& cuts = nullptr) {
  const Scratch scratch;
  write_dist(scratch.path(), tensors, cuts);
  return load_torch_dist(scratch.path(), tiny_config(), DType::bf16);
}

std::string refusal(const MadeTensors& tensors, int64_t mtp = 1) {
  const Scratch scratch;
  write_dist(scratch.path(), tensors);
  return error_of([&] { load_torch_dist(scratch.path(), tiny_config(mtp), DType::bf16); });
}

// The golden with every tensor passed through `edit`, which puts what it likes into the new set.
using Edit = std::function<void(MadeTensors& out, const std::string& key, const MadeTensor& t)>;
MadeTensors edited(const Edit& edit) {
  MadeTensors out;
  for (const auto& [key, t] : golden()) edit(out, key, t);
  return out;
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

TEST(LoadTorchDist, TheGoldenHasTheSourcesNumbers) {
  const Weights source = load_hf(tiny, tiny_config(), DType::bf16);
  EXPECT_TRUE(same_values(golden_weights(), source));  // bf16 norms, too: both were rounded once
  ThreadPool threads(3);
  EXPECT_TRUE(same_values(load_torch_dist(golden_dist, tiny_config(), DType::bf16, {.threads = &threads}), source));
  const Weights f32 = load_torch_dist(golden_dist, tiny_config(), DType::f32);
  EXPECT_EQ(f32.layers[0].delta.A_log.as<float>()[1], source.layers[0].delta.A_log.as<float>()[1]);
}

TEST(LoadTorchDist, AnyCutting) {
  // Tensor-parallel rows and columns, experts one by one, halves of experts in rows and columns, odd cuts.
  const std::vector<Cuts> ways = {
      [](const auto&, const auto&) { return std::vector<int64_t>{}; },
      [](const auto&, const auto& shape) { return std::vector<int64_t>{std::min<int64_t>(4, shape[0])}; },
      [](const auto&, const auto& shape) {
        std::vector<int64_t> cuts(shape.size(), 1);
        cuts.back() = std::min<int64_t>(4, shape.back());
        return cuts;
      },
      [](const auto&, const auto& shape) {
        return shape.size() == 3 && shape[0] == 8 ? std::vector<int64_t>{8, 4, 2} : std::vector<int64_t>{};
      },
      [](const auto&, const auto& shape) {
        std::vector<int64_t> cuts;
        for (const int64_t d : shape) cuts.push_back(std::min<int64_t>(3, d));
        return cuts;
      },
  };
  for (size_t i = 0; i < ways.size(); i++) EXPECT_TRUE(same_values(load(golden(), ways[i]), golden_weights())) << i;
}

TEST(LoadTorchDist, NamesOfOtherVersions) {
  const auto same = [](const Edit& edit) { return same_values(load(edited(edit)), golden_weights()); };
  // Norms that are not fused with the matrix behind them.
  EXPECT_TRUE(same([](auto& out, const auto& key, const auto& t) {
    std::string name = replaced(key, "self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight");
    name = replaced(name, "self_attention.input_layernorm.weight", "input_layernorm.weight");
    out[name] = t;
  }));
  // The MTP layer as upstream calls it.
  EXPECT_TRUE(same([](auto& out, const auto& key, const auto& t) {
    out[replaced(key, "transformer_layer", "mtp_model_layer")] = t;
  }));
  // State that is no weight, and a bias of zeros.
  EXPECT_TRUE(same([](auto& out, const auto& key, const auto& t) {
    out[key] = t;
    out["optimizer.state.exp_avg." + key] = t;
    out["chained_0.optimizer.distributed.dp_group_idx_0.x"] = t;
    out["rng_state/shard_0_1"] = {"U8", {3}, "abc"};
    if (key.ends_with("mlp.router.weight")) {
      out[replaced(key, "weight", "expert_bias")] = {"F32", {8}, std::string(32, '\0')};
    }
  }));
  // Other parts of a larger model.
  EXPECT_TRUE(same([](auto& out, const auto& key, const auto& t) {
    out[key] = t;
    out["vision_model.decoder.layers.0.x"] = {"BF16", {1}, "ab"};
  }));
}

TEST(LoadTorchDist, ExpertsOneByOneOrInHalves) {
  const auto is_fc = [](const std::string& key, const char* which) {
    return key.find("mlp.experts.experts.linear_" + std::string(which)) != std::string::npos;
  };
  const auto one = [](const MadeTensor& t, int64_t e) {
    MadeTensor part = rows(t, e, 1);
    part.shape.erase(part.shape.begin());
    return part;
  };
  const Edit singletons = [&](MadeTensors& out, const std::string& key, const MadeTensor& t) {
    if (!is_fc(key, "fc1") && !is_fc(key, "fc2")) {
      out[key] = t;
      return;
    }
    for (int64_t e = 0; e < 8; e++) {
      out[replaced(key, "experts.experts.", fmt::format("experts.experts.{}.", e))] = one(t, e);
    }
  };
  const MadeTensors apart = edited(singletons);
  EXPECT_TRUE(same_values(load(apart), golden_weights()));
  MadeTensors halved;
  for (const auto& [key, t] : apart) {
    const bool cut = key.find("linear_fc1.weight") != std::string::npos;
    if (!cut) {
      halved[key] = t;
      continue;
    }
    halved[key + "_w"] = rows(t, 0, t.shape[0] / 2);
    halved[key + "_v"] = rows(t, t.shape[0] / 2, t.shape[0] / 2);
  }
  EXPECT_GT(halved.count("decoder.layers.0.mlp.shared_experts.linear_fc1.weight_v"), 0u);
  EXPECT_TRUE(same_values(load(halved), golden_weights()));
  // Gate and up of all experts in a tensor each.
  MadeTensors stacked;
  for (const auto& [key, t] : golden()) {
    if (!is_fc(key, "fc1")) {
      stacked[key] = t;
      continue;
    }
    MadeTensor gate{t.dtype, {8, 32, 64}, ""}, up = gate;
    for (int64_t e = 0; e < 8; e++) {
      gate.bytes += rows(one(t, e), 0, 32).bytes;
      up.bytes += rows(one(t, e), 32, 32).bytes;
    }
    stacked[key + "_w"] = gate;
    stacked[key + "_v"] = up;
  }
  EXPECT_TRUE(same_values(load(stacked), golden_weights()));
  // One expert that is missing is told by its key.
  MadeTensors lost = apart;
  lost.erase("decoder.layers.6.mlp.experts.experts.5.linear_fc2.weight");
  const std::string error = refusal(lost);
  EXPECT_TRUE(contains(error, "missing (1)") && contains(error, "experts.5.linear_fc2.weight")) << error;
}

TEST(LoadTorchDist, LayersStackedInOneKey) {
  // What all layers have, the MTP layer's own keys included.
  MadeTensors stacked;
  for (const auto& [key, t] : golden()) {
    const std::string mtp = "mtp.layers.0.";
    if (key.starts_with(mtp)) {
      MadeTensor more = t;
      more.shape.insert(more.shape.begin(), 1);
      stacked["mtp.layers." + key.substr(mtp.size())] = more;
      continue;
    }
    const bool in_all = key.find(".mlp.") != std::string::npos || key.ends_with("pre_mlp_layernorm.weight");
    if (!key.starts_with("decoder.layers.") || !in_all) {
      stacked[key] = t;
      continue;
    }
    // Keys are in order of their layer, of which there are fewer than ten.
    MadeTensor& all = stacked["decoder.layers." + key.substr(std::string("decoder.layers.0.").size())];
    if (all.shape.empty()) {
      all = {t.dtype, t.shape, ""};
      all.shape.insert(all.shape.begin(), 8);
    }
    all.bytes += t.bytes;
  }
  EXPECT_EQ(stacked.at("decoder.layers.mlp.experts.experts.linear_fc1.weight").shape,
            (std::vector<int64_t>{8, 8, 64, 64}));
  EXPECT_TRUE(same_values(load(stacked), golden_weights()));
  const Cuts by_layer_and_expert = [](const auto&, const auto& shape) {
    return shape.size() == 4 ? std::vector<int64_t>{shape[0], 8, 2, 1} : std::vector<int64_t>{};
  };
  EXPECT_TRUE(same_values(load(stacked, by_layer_and_expert), golden_weights()));
  MadeTensor& short_one = stacked.at("decoder.layers.pre_mlp_layernorm.weight");
  short_one = rows(short_one, 0, 7);
  const std::string error = refusal(stacked);
  EXPECT_TRUE(contains(error, "BF16[7,64], but config.json needs [8,64]")) << error;
}

TEST(LoadTorchDist, TheVocabularyMayBePaddedButNotShort) {
  const std::string key = "output_layer.weight";
  MadeTensors tensors = golden();
  tensors[key].shape[0] = 640;
  tensors[key].bytes += std::string(128 * 64 * 2, '\x7f');  // NaN: padding is never looked at
  EXPECT_TRUE(same_values(load(tensors), golden_weights()));
  tensors[key] = rows(tensors[key], 0, 511);
  const std::string error = refusal(tensors);
  EXPECT_TRUE(contains(error, "output_layer.weight: BF16[511,64], but config.json needs at least [512,64]")) << error;
  tensors = golden();
  tensors["decoder.final_layernorm.weight"].shape = {65};
  tensors["decoder.final_layernorm.weight"].bytes += "ab";
  EXPECT_TRUE(contains(refusal(tensors), "[65], but config.json needs [64]"));
}

TEST(LoadTorchDist, ToldAtOnceWhatDoesNotFit) {
  MadeTensors tensors = golden();
  tensors.erase("decoder.layers.3.self_attention.linear_qkv.weight");
  tensors.erase("decoder.layers.1.mlp.router.weight");
  tensors["decoder.layers.8.mlp.router.weight"] = golden().at("decoder.layers.1.mlp.router.weight");
  tensors["mtp.layers.0.hnorm.weight"] = {"I64", {64}, std::string(512, '\0')};
  const std::string error = refusal(tensors);
  EXPECT_TRUE(contains(error, "missing (4)")) << error;  // q, k and v want one key
  EXPECT_TRUE(contains(error,
                       "decoder.layers.3.self_attention.linear_qkv.weight (model.language_model.layers.3."
                       "self_attn.q_proj.weight)"))
      << error;
  EXPECT_TRUE(contains(error, "unexpected (1)") && contains(error, "decoder.layers.8.mlp.router.weight")) << error;
  EXPECT_TRUE(contains(error, "of a dtype other than F32, BF16 and F16 (1)")) << error;
  // The same tensor under two names: which one counts?
  tensors = golden();
  tensors["decoder.layers.3.input_layernorm.weight"] = golden().at("decoder.final_layernorm.weight");
  EXPECT_TRUE(contains(refusal(tensors), "unexpected (1)"));
}

TEST(LoadTorchDist, RefusesWhatWouldBeLost) {
  MadeTensors tensors = golden();
  std::string bias(32, '\0');
  bias[7] = '\x3f';
  tensors["decoder.layers.2.mlp.router.expert_bias"] = {"F32", {8}, bias};
  EXPECT_TRUE(contains(refusal(tensors), "expert_bias is not zero"));
  tensors["decoder.layers.2.mlp.router.expert_bias"] = {"F32", {8, 1000}, std::string(32000, '\0')};
  EXPECT_TRUE(contains(refusal(tensors), "fewer experts"));

  tensors = golden();
  tensors["decoder.layers.0.self_attention.in_proj.weight"] = golden().at("mtp.layers.0.eh_proj.weight");
  EXPECT_TRUE(contains(refusal(tensors), "gated DeltaNet of Megatron core"));

  tensors = edited([](auto& out, const auto& key, const auto& t) {
    if (!key.starts_with("mtp.")) out[key] = t;
  });
  EXPECT_TRUE(contains(refusal(tensors), "no MTP layer"));
  EXPECT_EQ(refusal(tensors, 0), "");
  EXPECT_EQ(refusal(golden(), 0), "");  // a head that is not asked for

  tensors = golden();
  tensors["decoder.layers.3.self_attention.linear_qkv.weight"].bytes.replace(640, 2, "\xc0\x7f");
  const std::string error = refusal(tensors);
  EXPECT_TRUE(contains(error, "NaN or infinity") && contains(error, "layers.3.self_attention.linear_qkv")) << error;
}

TEST(BoxRange, AgreesWithCounting) {
  uint64_t state = 7;
  const auto draw = [&](int64_t n) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(n));
  };
  for (int round = 0; round < 300; round++) {
    std::vector<int64_t> shape, offsets, sizes;
    for (int64_t d = draw(4); d > 0; d--) {
      shape.push_back(1 + draw(4));
      sizes.push_back(1 + draw(shape.back()));
      offsets.push_back(draw(shape.back() - sizes.back() + 1));
    }
    const BoxRange box(shape, offsets, sizes);
    const int64_t numel = *checked_numel(shape);
    int64_t count = 0, since = 0;
    for (int64_t flat = 0; flat < numel; flat++) {
      bool inside = true;
      int64_t rest = flat;
      for (size_t d = shape.size(); d-- > 0; rest /= shape[d]) {
        const int64_t at = rest % shape[d];
        inside = inside && at >= offsets[d] && at < offsets[d] + sizes[d];
      }
      ASSERT_EQ(box.before(flat), count);
      if (!inside) {
        ASSERT_EQ(since % box.run(), 0);
        continue;
      }
      ASSERT_EQ(box.in_whole(count), flat);
      count++;
      since++;
    }
    ASSERT_EQ(box.before(numel), count);
    ASSERT_EQ(box.numel(), count);
  }
}

}  // namespace
}  // namespace furlong::dist_loading
