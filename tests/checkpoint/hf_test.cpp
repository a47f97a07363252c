#include "checkpoint/hf.h"

#include <cmath>
#include <set>

#include "base/json.h"
#include "base/rng.h"
#include "checkpoint/hf_names.h"
#include "checkpoint/init.h"
#include "checkpoint/values.h"
#include "scratch.h"

namespace furlong {
namespace {

ModelConfig tiny_config() { return read_model_config(tiny); }

// A copy of the tiny checkpoint whose tensors pass through `edit`: it may rename, change or drop (return false) each.
using Edit = std::function<bool(TensorSource&)>;

void copy_tiny(const std::string& to, const Edit& edit, const std::vector<TensorSource>& more = {}) {
  auto source = std::make_shared<SafetensorsDirectory>(tiny);
  std::vector<TensorSource> tensors = more;
  for (const auto& file : source->files()) {
    for (const auto& e : file.entries()) {
      TensorSource t{.name = e.name, .dtype = e.dtype, .shape = e.shape, .emit = [e, source](const ByteSink& sink) {
                       sink(e.bytes.data(), e.bytes.size());
                     }};
      if (edit(t)) tensors.push_back(t);
    }
  }
  write_shards(to, plan_shards(tensors, 300'000));
  write_raw(to + "/config.json", read_file(tiny + "/config.json"));
}

std::string load_error(const std::string& directory, const ModelConfig& config = tiny_config()) {
  return error_of([&] { load_hf(directory, config, DType::f32); });
}

TEST(LoadHf, ReadsEveryTensorExactly) {
  const Weights f = load_hf(tiny, tiny_config(), DType::f32);
  const Weights b = load_hf(tiny, tiny_config(), DType::bf16);
  const SafetensorsDirectory source(tiny);
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& x, const Tensor& y) {
        EXPECT_EQ(y.dtype(), spec.always_f32 ? DType::f32 : DType::bf16) << spec.name;
        const TensorEntry* entry = source.find(spec.name);
        if (entry == nullptr) return;  // the MTP experts, one by one: below
        const auto values = floats_of(*entry);
        ASSERT_EQ(std::memcmp(values.data(), x.data(), x.bytes()), 0) << spec.name;
        for (int64_t i = 0; i < y.numel() && !spec.always_f32; i++) {
          ASSERT_EQ(y.as<bf16>()[i].bits, bf16(values[static_cast<size_t>(i)]).bits) << spec.name;
        }
      },
      f, b);
  const auto& moe = f.mtp[0].layer.moe;
  for (int64_t e = 0; e < 8; e++) {
    const std::string prefix = fmt::format("mtp.layers.0.mlp.experts.{}.", e);
    const auto check = [&](const char* name, const Tensor& t) {
      const auto values = floats_of(*source.find(prefix + name));
      EXPECT_EQ(std::memcmp(values.data(), t.data(), t.bytes()), 0) << prefix << name;
    };
    check("gate_proj.weight", moe.gate_up.at(e).rows(0, 32));
    check("up_proj.weight", moe.gate_up.at(e).rows(32, 64));
    check("down_proj.weight", moe.down.at(e));
  }
  ThreadPool threads(2);
  EXPECT_TRUE(same_values(f, load_hf(tiny, tiny_config(), DType::f32, {.threads = &threads})));
}

TEST(LoadHf, AcceptsOtherPrefixes) {
  const Weights expected = load_hf(tiny, tiny_config(), DType::f32);
  for (const auto& [trunk, head] :
       std::vector<std::pair<std::string, std::string>>{{"model.", "lm_head.weight"},
                                                        {"model.", "model.lm_head.weight"},
                                                        {"language_model.model.", "language_model.lm_head.weight"}}) {
    const Scratch scratch;
    copy_tiny(scratch.path(), [&](TensorSource& t) {
      if (t.name == "lm_head.weight") t.name = head;
      if (t.name.starts_with("model.language_model.")) t.name = trunk + t.name.substr(21);
      return true;
    });
    EXPECT_TRUE(same_values(expected, load_hf(scratch.path(), tiny_config(), DType::f32))) << trunk;
  }
}

TEST(LoadHf, ReadsHalfAndFloatSources) {
  const Weights expected = load_hf(tiny, tiny_config(), DType::f32);
  for (const char* dtype : {"F32", "F16"}) {
    const Scratch scratch;
    SafetensorsDirectory source(tiny);
    copy_tiny(scratch.path(), [&](TensorSource& t) {
      const TensorEntry* e = source.find(t.name);
      if (t.name.starts_with("model.visual.") || e->dtype != "BF16") return true;
      t.dtype = dtype;
      t.emit = [e, dtype](const ByteSink& sink) {
        const auto values = floats_of(*e);
        emit_values(DType::f32, values.data(), e->numel(), dtype, sink);
      };
      return true;
    });
    const Weights loaded = load_hf(scratch.path(), tiny_config(), DType::f32);
    if (std::string(dtype) == "F32") {
      EXPECT_TRUE(same_values(expected, loaded));
    } else {
      // bf16 numbers of ordinary size are exact in half; below 2^-14 half has steps of 2^-24.
      for_each_tensor(
          [&](const TensorSpec& spec, const Tensor& a, const Tensor& b) {
            for (int64_t i = 0; i < a.numel(); i++)
              ASSERT_NEAR(a.as<float>()[i], b.as<float>()[i], 0x1p-25) << spec.name;
          },
          expected, loaded);
    }
  }
}

TEST(LoadHf, ReportsEverythingAtOnce) {
  const Scratch scratch;
  copy_tiny(scratch.path(),
            [](TensorSource& t) {
              if (t.name == "lm_head.weight") return false;
              if (t.name == "mtp.layers.0.mlp.experts.3.up_proj.weight") return false;
              if (t.name == "model.language_model.layers.2.mlp.experts.down_proj") return false;
              if (t.name == "model.language_model.norm.weight") t.shape = {8, 8};
              if (t.name == "model.language_model.layers.1.input_layernorm.weight") t.dtype = "I16";
              return true;
            },
            {floats("model.language_model.layers.8.input_layernorm.weight", {2}, {1, 2}), floats("mtp.extra", {1}, {1}),
             floats("other.part", {1}, {1})});
  const std::string message = load_error(scratch.path());
  for (const char* part :
       {"missing (3)", "lm_head.weight", "mtp.layers.0.mlp.experts.3.up_proj.weight",
        "layers.2.mlp.experts.down_proj (or its experts", "unexpected (2)", "layers.8.input_layernorm.weight in model-",
        "mtp.extra", "of another shape (1)", "BF16[8,8]", "needs [64]", "of a dtype other",
        "layers.1.input_layernorm.weight in model-", "I16[64]", "download"}) {
    EXPECT_TRUE(contains(message, part)) << part << "\n" << message;
  }
  EXPECT_FALSE(contains(message, "other.part"));
}

TEST(LoadHf, RefusesQuantisedCheckpoints) {
  const Scratch scratch;
  copy_tiny(scratch.path(), [](TensorSource&) { return true; },
            {floats("model.language_model.layers.0.mlp.gate.weight_scale_inv", {1}, {1})});
  EXPECT_TRUE(contains(load_error(scratch.path()), "quantised"));
}

TEST(LoadHf, MtpAbsentOrUnwanted) {
  const Scratch scratch;
  copy_tiny(scratch.path(), [](TensorSource& t) { return !t.name.starts_with("mtp."); });
  EXPECT_TRUE(contains(load_error(scratch.path()), "set mtp_num_hidden_layers to 0"));
  ModelConfig without = tiny_config();
  without.mtp_num_layers = 0;
  EXPECT_TRUE(load_hf(scratch.path(), without, DType::f32).mtp.empty());
  EXPECT_TRUE(load_hf(tiny, without, DType::f32).mtp.empty());
}

TEST(LoadHf, RefusesNonFinite) {
  for (const float bad : {std::nanf(""), INFINITY}) {
    const Scratch scratch;
    copy_tiny(scratch.path(), [&](TensorSource& t) {
      if (t.name != "model.language_model.layers.4.linear_attn.norm.weight") return true;
      t.emit = [bad](const ByteSink& sink) {
        std::vector<float> x(16, 1.0f);
        x[9] = bad;
        sink(x.data(), 64);
      };
      return true;
    });
    EXPECT_TRUE(contains(load_error(scratch.path()), "layers.4.linear_attn.norm.weight in model-"));
    const Weights w = load_hf(scratch.path(), tiny_config(), DType::f32, {.allow_nonfinite = true});
    EXPECT_FALSE(std::isfinite(w.layers[4].delta.norm.as<float>()[9]));
  }
}

TEST(SaveHf, LoadAndSaveIsTheIdentity) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Scratch scratch;
    save_hf({.source_dir = tiny, .output_dir = scratch / "out/"}, load_hf(tiny, tiny_config(), dtype));
    EXPECT_EQ(names_in(scratch / "out"), names_in(tiny));
    for (const auto& name : names_in(tiny)) {
      if (name.ends_with(".index.json") || (dtype == DType::bf16 && name.ends_with(".safetensors"))) continue;
      EXPECT_TRUE(read_file(scratch / ("out/" + name)) == read_file(tiny + "/" + name)) << name;
    }
    // The index of the source is formatted by other hands; its content is the same.
    EXPECT_EQ(read_json_file(scratch / "out/model.safetensors.index.json"),
              read_json_file(tiny + "/model.safetensors.index.json"));
    EXPECT_EQ(names_in(scratch.path()), std::vector<std::string>{"out"});
    // The F32 norms of this checkpoint hold numbers that bf16 cannot, everything else comes back bit by bit.
    auto expected = contents(tiny), saved = contents(scratch / "out");
    if (dtype == DType::bf16) {
      std::erase_if(expected, [](const auto& e) { return e.first.ends_with("linear_attn.norm.weight"); });
      std::erase_if(saved, [](const auto& e) { return e.first.ends_with("linear_attn.norm.weight"); });
    }
    EXPECT_TRUE(saved == expected);
  }
}

TEST(SaveHf, PackingBothWays) {
  const Scratch scratch;
  const Weights w = load_hf(tiny, tiny_config(), DType::f32);
  save_hf(
      {.source_dir = tiny, .output_dir = scratch / "one", .experts = ExpertPacking::per_expert, .shard_bytes = 200'000},
      w);
  const auto apart = contents(scratch / "one");
  EXPECT_TRUE(apart.contains("model.language_model.layers.7.mlp.experts.7.up_proj.weight"));
  EXPECT_FALSE(apart.contains("model.language_model.layers.7.mlp.experts.gate_up_proj"));
  EXPECT_EQ(apart.size(), contents(tiny).size() + 8 * 24 - 16);
  EXPECT_GT(SafetensorsDirectory(scratch / "one").files().size(), 5u);
  const Weights back = load_hf(scratch / "one", tiny_config(), DType::f32);
  EXPECT_TRUE(same_values(w, back));
  save_hf({.source_dir = scratch / "one", .output_dir = scratch / "two", .experts = ExpertPacking::fused}, back);
  const auto fused = contents(scratch / "two");
  EXPECT_TRUE(fused.contains("mtp.layers.0.mlp.experts.gate_up_proj"));
  EXPECT_EQ(fused.size(), contents(tiny).size() - 24 + 2);
  EXPECT_TRUE(same_values(w, load_hf(scratch / "two", tiny_config(), DType::f32)));
  for (const auto& [name, value] : contents(tiny)) {
    if (name.starts_with("mtp.layers.0.mlp.experts.")) continue;
    EXPECT_TRUE(fused.at(name) == value) << name;
  }
}

TEST(SaveHf, DtypeModes) {
  const Scratch scratch;
  const ModelConfig config = tiny_config();
  Weights w(config, DType::f32);
  init_weights(w, config, 3, 0.1);
  save_hf({.source_dir = tiny, .output_dir = scratch / "f32", .dtype = HfDtype::f32}, w);
  save_hf({.source_dir = tiny, .output_dir = scratch / "bf16", .dtype = HfDtype::bf16}, w);
  save_hf({.source_dir = tiny, .output_dir = scratch / "source"}, w);
  EXPECT_TRUE(same_values(w, load_hf(scratch / "f32", config, DType::f32)));
  const SafetensorsDirectory source(tiny), f(scratch / "f32"), b(scratch / "bf16"), s(scratch / "source");
  for (const auto& file : source.files()) {
    for (const auto& e : file.entries()) {
      if (e.name.starts_with("model.visual.")) {
        for (const auto* d : {&f, &b, &s}) EXPECT_EQ(d->find(e.name)->describe(), e.describe());
        continue;
      }
      EXPECT_EQ(f.find(e.name)->dtype, "F32");
      EXPECT_EQ(b.find(e.name)->dtype, e.name.ends_with("A_log") ? "F32" : "BF16") << e.name;
      EXPECT_EQ(s.find(e.name)->dtype, e.dtype) << e.name;
    }
  }
  const auto bits = b.find("lm_head.weight")->bytes;
  for (int64_t i = 0; i < w.lm_head.numel(); i++) {
    uint16_t written = 0;
    std::memcpy(&written, bits.data() + 2 * i, 2);
    ASSERT_EQ(written, bf16(w.lm_head.as<float>()[i]).bits);
  }
  EXPECT_EQ(read_model_config(scratch / "f32").checkpoint_dtype, "float32");
  EXPECT_EQ(read_model_config(scratch / "source").checkpoint_dtype, "bfloat16");
}

// Half stays half. A_log stored as bf16 (as one release does) stays so: siblings_test.cpp tells when it does not.
TEST(SaveHf, KeepsTheSourcesDtypes) {
  const Scratch scratch;
  std::filesystem::create_directory(scratch / "in");
  const SafetensorsDirectory source(tiny);
  copy_tiny(scratch / "in", [&](TensorSource& t) {
    const bool a_log = t.name.ends_with("A_log"), head = t.name == "lm_head.weight";
    if (!a_log && !head) return true;
    t.dtype = a_log ? "BF16" : "F16";
    t.emit = [e = source.find(t.name), dtype = t.dtype](const ByteSink& sink) {
      const auto values = floats_of(*e);
      emit_values(DType::f32, values.data(), e->numel(), dtype, sink);
    };
    return true;
  });
  save_hf({.source_dir = scratch / "in", .output_dir = scratch / "out"},
          load_hf(scratch / "in", tiny_config(), DType::f32));
  auto in = contents(scratch / "in"), out = contents(scratch / "out");
  for (const auto& [name, value] : in) EXPECT_TRUE(out[name] == value) << name;
  EXPECT_TRUE(out["model.language_model.layers.0.linear_attn.A_log"].starts_with("BF16["));
  EXPECT_TRUE(out["lm_head.weight"].starts_with("F16["));
}

TEST(SaveHf, CarriesWhatIsNotOurs) {
  const Scratch scratch;
  std::filesystem::create_directory(scratch / "in");
  const TensorSource strange{.name = "extra.unknown",
                             .dtype = "NEW7",
                             .shape = {3},
                             .emit = [](const ByteSink& sink) { sink("abcde", 5); },
                             .raw_bytes = 5};
  copy_tiny(scratch / "in", [](TensorSource&) { return true; }, {strange, floats("extra.known", {1}, {NAN})});
  for (const char* name :
       {"chat_template.jinja", "merges.txt", "golden_x.json", "weights.bin", "run.py", ".hidden.json"})
    write_raw(scratch / "in/" + name, name);
  std::filesystem::create_directory(scratch / "in/sub.json");
  write_raw(scratch / "vocab.json", "linked");
  std::filesystem::create_symlink(scratch / "vocab.json", scratch / "in/vocab.json");
  ModelConfig config = tiny_config();
  config.mtp_num_layers = 0;  // so that mtp.* is not ours either
  save_hf({.source_dir = scratch / "in", .output_dir = scratch / "out"}, load_hf(scratch / "in", config, DType::f32));
  EXPECT_TRUE(contents(scratch / "in") == contents(scratch / "out"));
  const auto names = names_in(scratch / "out");
  for (const char* name : {"chat_template.jinja", "merges.txt", "vocab.json", "config.json"})
    EXPECT_TRUE(std::count(names.begin(), names.end(), name)) << name;
  for (const char* name : {"golden_x.json", "weights.bin", "run.py", ".hidden.json", "sub.json"})
    EXPECT_FALSE(std::count(names.begin(), names.end(), name)) << name;
  EXPECT_TRUE(std::filesystem::is_regular_file(std::filesystem::symlink_status(scratch / "out/vocab.json")));
}

TEST(SaveHf, UndefinedTensorsComeFromTheSource) {
  const Scratch scratch;
  const ModelConfig config = tiny_config();
  Weights trunk(config, DType::f32, Device::cpu, false);
  init_weights(trunk, config, 5, 0.1);
  save_hf({.source_dir = tiny, .output_dir = scratch / "out"}, trunk);
  auto in = contents(tiny), out = contents(scratch / "out");
  for (const auto& [name, value] : in) {
    if (!name.starts_with("mtp.")) continue;
    EXPECT_TRUE(out.at(name) == value) << name;
  }
  EXPECT_FALSE(out["lm_head.weight"] == in["lm_head.weight"]);
}

TEST(SaveHf, WithoutASource) {
  const Scratch scratch;
  const ModelConfig config = tiny_config();
  Weights w(config, DType::bf16);
  init_weights(w, config, 5, 0.02);
  save_hf({.output_dir = scratch / "new", .config_text = config_json(config)}, w);
  EXPECT_EQ(names_in(scratch / "new"), (std::vector<std::string>{"config.json", "model.safetensors"}));
  EXPECT_TRUE(same_values(w, load_hf(scratch / "new", read_model_config(scratch / "new"), DType::bf16)));
  EXPECT_TRUE(contents(scratch / "new").contains("mtp.layers.0.mlp.experts.gate_up_proj"));
}

TEST(SaveHf, ReplacesAnEarlierCheckpoint) {
  const Scratch scratch;
  const ModelConfig config = tiny_config();
  const Weights w = load_hf(tiny, config, DType::f32);
  const std::string out = scratch / "out";
  const auto save = [&](const SaveHfOptions& options) {
    save_hf(options, w);
    EXPECT_TRUE(same_values(w, load_hf(out, config, DType::f32)));
  };
  std::filesystem::create_directory(out);
  save({.source_dir = tiny, .output_dir = out, .dtype = HfDtype::f32, .shard_bytes = 100'000});
  EXPECT_GT(names_in(out).size(), 10u);
  write_raw(out + "/README.md", "mine");
  write_raw(out + "/mine.safetensors", "mine");
  save({.source_dir = tiny, .output_dir = out});
  auto names = names_in(tiny);
  names.insert(names.end(), {"README.md", "mine.safetensors"});
  std::sort(names.begin(), names.end());
  EXPECT_EQ(names_in(out), names);
  EXPECT_TRUE(contents(tiny) == contents(out));
  save({.source_dir = tiny, .output_dir = out, .dtype = HfDtype::f32});
  EXPECT_FALSE(std::filesystem::exists(out + "/model.safetensors.index.json"));
  EXPECT_FALSE(std::filesystem::exists(out + "/model-00001-of-00002.safetensors"));
  save({.source_dir = tiny, .output_dir = out});
  EXPECT_FALSE(std::filesystem::exists(out + "/model.safetensors"));
  EXPECT_EQ(names_in(out), names);
}

TEST(SaveHf, RefusesOtherFolders) {
  const Scratch scratch;
  const Weights w = load_hf(tiny, tiny_config(), DType::f32);
  write_raw(scratch / "thesis.txt", "mine");
  EXPECT_TRUE(
      contains(error_of([&] { save_hf({.source_dir = tiny, .output_dir = scratch.path()}, w); }), "no checkpoint"));
  EXPECT_TRUE(contains(error_of([&] { save_hf({.source_dir = tiny, .output_dir = scratch / "thesis.txt"}, w); }),
                       "not a folder"));
  save_hf({.source_dir = tiny, .output_dir = scratch / "a"}, w);
  std::filesystem::create_directory_symlink(scratch / "a", scratch / "link");
  EXPECT_TRUE(contains(error_of([&] { save_hf({.source_dir = scratch / "a", .output_dir = scratch / "link"}, w); }),
                       "came from"));
  ModelConfig other = tiny_config();
  other.vocab_size = 500;
  const Weights small(other, DType::f32);
  EXPECT_TRUE(
      contains(error_of([&] { save_hf({.source_dir = tiny, .output_dir = scratch / "b"}, small); }), "embed_tokens"));
  EXPECT_FALSE(std::filesystem::exists(scratch / "b"));
}

TEST(SaveHf, AFullDiskLeavesNothing) {
  const Scratch scratch;
  const Weights w = load_hf(tiny, tiny_config(), DType::f32);
  for (const uint64_t limit : {1u, 5000u, 30000u, 700000u, 1041911u}) {
    EXPECT_EQ(run_with_file_limit(limit, [&] { save_hf({.source_dir = tiny, .output_dir = scratch / "out"}, w); }), 4)
        << limit;
    EXPECT_TRUE(names_in(scratch.path()).empty());
  }
  EXPECT_EQ(run_with_file_limit(1041912, [&] { save_hf({.source_dir = tiny, .output_dir = scratch / "out"}, w); }), 0);
  const auto before = contents(scratch / "out");
  const auto names = names_in(scratch / "out");
  for (const uint64_t limit : {1u, 5000u, 700000u}) {
    EXPECT_EQ(
        run_with_file_limit(
            limit, [&] { save_hf({.source_dir = tiny, .output_dir = scratch / "out", .dtype = HfDtype::f32}, w); }),
        4);
    EXPECT_EQ(names_in(scratch / "out"), names);
    EXPECT_TRUE(contents(scratch / "out") == before);
  }
}

TEST(HfNames, PiecesCoverTheTensor) {
  for (const auto& spec : tensor_registry(tiny_config())) {
    for (const bool apart : {false, true}) {
      if (apart && spec.per_expert.empty()) continue;
      int64_t at = 0;
      std::set<std::string> names;
      for (const auto& piece : pieces_of(spec, apart ? Stored::per_expert : Stored::whole)) {
        EXPECT_EQ(piece.offset, at);
        at += piece.numel;
        names.insert(piece.name);
      }
      EXPECT_EQ(at, spec.numel());
      EXPECT_EQ(names.size(), apart ? (spec.name.ends_with("gate_up_proj") ? 16u : 8u) : 1u);
    }
  }
}

}  // namespace
}  // namespace furlong
