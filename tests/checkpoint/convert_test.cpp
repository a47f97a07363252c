// Hugging Face <-> torch_dist: against the folder that PyTorch wrote, there and back, in parts.
#include <set>
#include <thread>

#include "base/json.h"
#include "checkpoint/dist_names.h"
#include "checkpoint/torch_dist.h"
#include "checkpoint/values.h"
#include "dist_maker.h"

namespace furlong::converting {
namespace {

ModelConfig tiny_config(int64_t mtp = 1) {
  ModelConfig config = read_model_config(tiny);
  config.mtp_num_layers = mtp;
  return config;
}

void to_dist(const std::string& hf, const std::string& dist, int workers = 1, ToTorchDistOptions options = {},
             int64_t mtp = 1) {
  options.output_dir = dist;
  write_torch_dist(stored_hf(hf, tiny_config(mtp)), tiny_config(mtp), options, workers);
}

void to_hf(const std::string& dist, const std::string& hf, SaveHfOptions options = {}, int64_t mtp = 1) {
  options.source_dir = tiny;
  options.output_dir = hf;
  save_hf(options, stored_torch_dist(dist, tiny_config(mtp)), tiny_config());
}

bool is_delta_norm(const std::string& name) { return name.ends_with("linear_attn.norm.weight"); }

// The numbers of a BF16 tensor's bytes as those of F32.
std::string widened(const std::string& bytes) {
  std::string out(2 * bytes.size(), '\0');
  transfer_values("BF16", bytes_of(bytes).data(), static_cast<int64_t>(bytes.size() / 2), "F32", out.data());
  return out;
}

std::string rounded(const std::string& bytes) {
  std::string out(bytes.size() / 2, '\0');
  transfer_values("F32", bytes_of(bytes).data(), static_cast<int64_t>(bytes.size() / 4), "BF16", out.data());
  return out;
}

TEST(ConvertToHf, TheGoldenGivesItsSource) {
  const Scratch scratch;
  to_hf(golden_dist, scratch / "hf");
  const auto source = contents(tiny);
  auto made = contents(scratch / "hf");
  ASSERT_EQ(made.size(), source.size());
  size_t norms = 0;
  for (const auto& [name, content] : source) {
    if (!is_delta_norm(name)) {
      EXPECT_EQ(made[name], content) << name;
      continue;
    }
    // miles keeps these in bf16; the dtype is the source's, the numbers are what bf16 kept of them.
    norms++;
    const std::string shape = "F32[16]";
    EXPECT_EQ(made[name], shape + widened(rounded(content.substr(shape.size())))) << name;
  }
  EXPECT_EQ(norms, 6u);
  EXPECT_EQ(names_in(scratch / "hf"), names_in(tiny));
  EXPECT_EQ(read_file(scratch / "hf/config.json"), read_file(tiny + "/config.json"));
}

TEST(ConvertToTorchDist, GivesTheNumbersOfTheGolden) {
  const Scratch scratch;
  to_dist(tiny, scratch / "dist");
  const MadeTensors golden = read_dist(golden_dist), made = read_dist(scratch / "dist");
  ASSERT_EQ(made.size(), golden.size());
  for (const auto& [key, expected] : golden) {
    MadeTensor found = made.at(key);
    if (is_delta_norm(key)) found = {"BF16", found.shape, rounded(found.bytes)};
    EXPECT_EQ(found.dtype, expected.dtype) << key;
    EXPECT_EQ(found.shape, expected.shape) << key;
    EXPECT_TRUE(found.bytes == expected.bytes) << key;
  }
  EXPECT_EQ(read_file(scratch / "dist/latest_checkpointed_iteration.txt"), "release");
  EXPECT_EQ(names_in(scratch / "dist/release"),
            (std::vector<std::string>{".metadata", "__0_0.distcp", "common.pt", "metadata.json"}));
  EXPECT_EQ(read_file(scratch / "dist/release/metadata.json"), read_file(golden_dist + "/release/metadata.json"));
}

// The arguments that Megatron and miles ask for, by PyTorch's own writer and by ours.
TEST(ConvertToTorchDist, CommonHoldsWhatLoadersAskFor) {
  const Scratch scratch;
  to_dist(tiny, scratch / "dist");
  const auto read = [](const std::string& path) {
    const std::string file = read_file(path);
    const TorchArchive archive = open_torch_archive(window_of(bytes_of(file)), path);
    const pickle::Graph g = pickle::parse(archive.pickle, path);
    const pickle::Ref args = *g.find(g.root(), "args");
    EXPECT_TRUE(g.is_global(g.callable(args), "argparse", "Namespace"));
    std::map<std::string, int64_t> numbers;
    const auto fields = g.items(g.state(args));
    for (size_t i = 0; i < fields.size(); i += 2) {
      if (g.kind(fields[i + 1]) == pickle::Kind::integer) {
        numbers[std::string(g.text(fields[i]))] = g.integer(fields[i + 1]);
      }
    }
    EXPECT_EQ(g.real(*g.find(g.root(), "checkpoint_version")), 3.0);
    numbers["iteration"] = g.integer(*g.find(g.root(), "iteration"));
    const pickle::Ref shards = *g.find(*g.find(g.root(), "content_metadata"), "singleton_local_shards");
    EXPECT_EQ(g.integer(shards), 0);
    EXPECT_TRUE(g.is_global(*g.find(g.state(args), "params_dtype"), "torch", "bfloat16"));
    return numbers;
  };
  const auto golden = read(golden_dist + "/release/common.pt"), made = read(scratch / "dist/release/common.pt");
  for (const auto& [name, value] : golden) {
    if (name == "world_size" || name == "data_parallel_size") continue;
    ASSERT_TRUE(made.contains(name)) << name;
    EXPECT_EQ(made.at(name), value) << name;
  }
}

TEST(Convert, ThereAndBackIsTheIdentity) {
  for (const int workers : {1, 2, 7}) {
    const Scratch scratch;
    ToTorchDistOptions options;
    options.archive_bytes = 3000;  // a few rows
    options.file_bytes = 150'000;
    to_dist(tiny, scratch / "dist", workers, options);
    EXPECT_GT(names_in(scratch / "dist/release").size(), 10u);
    to_hf(scratch / "dist", scratch / "hf");
    EXPECT_EQ(names_in(scratch / "hf"), names_in(tiny));
    for (const auto& name : names_in(tiny)) {
      const std::string made = read_file(scratch / ("hf/" + name)), source = read_file(tiny + "/" + name);
      if (name == index_file_name) {
        EXPECT_EQ(parse_json(made, name), parse_json(source, name));  // ours is sorted
      } else {
        EXPECT_TRUE(made == source) << name;
      }
    }
  }
}

TEST(Convert, TheSameCommandGivesTheSameBytes) {
  const Scratch scratch;
  to_dist(tiny, scratch / "a", 3);
  to_dist(tiny, scratch / "b", 3);
  EXPECT_EQ(names_in(scratch / "a/release"), names_in(scratch / "b/release"));
  for (const auto& name : names_in(scratch / "a/release")) {
    EXPECT_TRUE(read_file(scratch / ("a/release/" + name)) == read_file(scratch / ("b/release/" + name))) << name;
  }
}

TEST(Convert, DtypesAndPackingAsAsked) {
  const Scratch scratch;
  ToTorchDistOptions f32;
  f32.dtype = HfDtype::f32;
  to_dist(tiny, scratch / "f32", 1, f32);
  for (const auto& [key, t] : read_dist(scratch / "f32")) EXPECT_EQ(t.dtype, "F32") << key;
  ToTorchDistOptions bf16;
  bf16.dtype = HfDtype::bf16;
  to_dist(tiny, scratch / "bf16", 1, bf16);
  for (const auto& [key, t] : read_dist(scratch / "bf16")) {
    EXPECT_EQ(t.dtype, key.ends_with("A_log") ? "F32" : "BF16") << key;
  }
  // From fp32 numbers back to the dtypes of the source: nothing was lost on the way.
  to_hf(scratch / "f32", scratch / "hf");
  EXPECT_TRUE(contents(scratch / "hf") == contents(tiny));
  to_hf(scratch / "f32", scratch / "apart", {.dtype = HfDtype::f32, .experts = ExpertPacking::per_expert});
  const SafetensorsDirectory apart(scratch / "apart");
  EXPECT_NE(apart.find("model.language_model.layers.0.mlp.experts.7.down_proj.weight"), nullptr);
  EXPECT_EQ(apart.find("lm_head.weight")->dtype, "F32");
}

TEST(Convert, MtpCanBeLeftOut) {
  const Scratch scratch;
  to_dist(tiny, scratch / "dist", 1, {}, 0);
  for (const auto& [key, t] : read_dist(scratch / "dist")) EXPECT_FALSE(key.starts_with("mtp.")) << key;
  const std::string error = error_of([&] { to_hf(scratch / "dist", scratch / "hf"); });
  EXPECT_TRUE(contains(error, "it holds no MTP layer")) << error;
  to_hf(scratch / "dist", scratch / "hf", {}, 0);
  EXPECT_TRUE(contents(scratch / "hf") == contents(tiny));
}

TEST(Convert, PadsTheVocabularyWithZeros) {
  const Scratch scratch;
  ToTorchDistOptions options;
  options.vocab_multiple = 384;
  to_dist(tiny, scratch / "dist", 2, options);
  const MadeTensors made = read_dist(scratch / "dist");
  for (const char* key : {"embedding.word_embeddings.weight", "output_layer.weight"}) {
    const MadeTensor& t = made.at(key);
    EXPECT_EQ(t.shape, (std::vector<int64_t>{768, 64}));
    EXPECT_EQ(t.bytes.substr(512 * 64 * 2), std::string(256 * 64 * 2, '\0')) << key;
  }
  to_hf(scratch / "dist", scratch / "hf");
  EXPECT_TRUE(contents(scratch / "hf") == contents(tiny));
}

// checkpoint-spec 6.1, written out: group g, head j of it, row x.
TEST(DistNames, QkvRowsFollowMegatron) {
  for (const int64_t groups : {2, 4}) {
    for (const int64_t r : {4, 6, 8}) {
      const int64_t d = 16, heads = groups * r;
      std::vector<std::string> mcore(static_cast<size_t>((2 * r + 2) * d * groups));
      const auto place = [&](QkvPart part, const std::string& name) {
        for (const DistRun& run : qkv_runs(part, heads, groups, d)) {
          for (int64_t i = 0; i < run.count; i++) {
            std::string& slot = mcore.at(static_cast<size_t>(run.theirs + i));
            EXPECT_EQ(slot, "");
            slot = fmt::format("{}{}", name, run.ours + i);
          }
        }
      };
      place(QkvPart::q, "q");
      place(QkvPart::k, "k");
      place(QkvPart::v, "v");
      const int64_t stride = (2 * r + 2) * d;
      for (int64_t g = 0; g < groups; g++) {
        for (int64_t x = 0; x < d; x++) {
          const auto at = [&](int64_t row) { return mcore[static_cast<size_t>(stride * g + row)]; };
          for (int64_t j = 0; j < r; j++) {
            const int64_t head = r * g + j;
            EXPECT_EQ(at(d * j + x), fmt::format("q{}", 2 * d * head + x));
            EXPECT_EQ(at(r * d + d * j + x), fmt::format("q{}", 2 * d * head + d + x));
          }
          EXPECT_EQ(at(2 * r * d + x), fmt::format("k{}", d * g + x));
          EXPECT_EQ(at((2 * r + 1) * d + x), fmt::format("v{}", d * g + x));
        }
      }
    }
  }
}

TEST(DistNames, TheReleasedModelHas649Keys) {
  ModelConfig c = tiny_config();
  c.num_layers = 40;
  c.full_attention.assign(40, false);
  for (size_t i = 3; i < 40; i += 4) c.full_attention[i] = true;
  std::set<std::string> keys;
  for (const auto& spec : tensor_registry(c)) keys.insert(dist_places(spec, c).front().front().key);
  EXPECT_EQ(keys.size(), 649u);
}

TEST(ConvertParts, WhoeverIsLastJoins) {
  const Scratch scratch;
  to_dist(tiny, scratch / "expected", 3);
  const StoredTensors source = stored_hf(tiny, tiny_config());
  ToTorchDistOptions options;
  options.output_dir = scratch / "dist";
  const auto part = [&](int rank) { return write_torch_dist_part(source, tiny_config(), options, {rank, 3}); };
  EXPECT_FALSE(part(2));
  EXPECT_FALSE(part(0));
  EXPECT_FALSE(std::filesystem::exists(scratch / "dist/release"));
  EXPECT_FALSE(std::filesystem::exists(scratch / "dist/latest_checkpointed_iteration.txt"));
  EXPECT_TRUE(part(1));
  EXPECT_EQ(names_in(scratch / "dist"), names_in(scratch / "expected"));
  for (const auto& name : names_in(scratch / "expected/release")) {
    EXPECT_TRUE(read_file(scratch / ("dist/release/" + name)) == read_file(scratch / ("expected/release/" + name)))
        << name;
  }
}

TEST(ConvertParts, APartThatWasCompleteIsKeptAndADamagedOneIsNot) {
  const Scratch scratch;
  const StoredTensors source = stored_hf(tiny, tiny_config());
  ToTorchDistOptions options;
  options.output_dir = scratch / "dist";
  const auto part = [&](int rank) { return write_torch_dist_part(source, tiny_config(), options, {rank, 2}); };
  EXPECT_FALSE(part(0));
  const auto folders = names_in(scratch / "dist");
  ASSERT_EQ(folders.size(), 1u);
  const std::string file = scratch / ("dist/" + folders[0] + "/__0_0.distcp");
  const auto written = std::filesystem::last_write_time(file);
  EXPECT_FALSE(part(0));
  EXPECT_EQ(std::filesystem::last_write_time(file), written);
  std::filesystem::resize_file(file, 1000);
  EXPECT_FALSE(part(1));  // not joined with a part that is short
  EXPECT_TRUE(part(0));
  to_hf(scratch / "dist", scratch / "hf");
  EXPECT_TRUE(contents(scratch / "hf") == contents(tiny));
}

TEST(ConvertParts, ThreadsThatShareAFolder) {
  const Scratch scratch;
  const StoredTensors source = stored_hf(tiny, tiny_config());
  ToTorchDistOptions options;
  options.output_dir = scratch / "dist";
  std::vector<int> joined(5);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 5; rank++) {
    threads.emplace_back([&, rank] {
      joined[static_cast<size_t>(rank)] =
          static_cast<int>(write_torch_dist_part(source, tiny_config(), options, {rank, 5}));
    });
  }
  for (auto& t : threads) t.join();
  EXPECT_EQ(std::count(joined.begin(), joined.end(), 1), 1);
  to_hf(scratch / "dist", scratch / "hf");
  EXPECT_TRUE(contents(scratch / "hf") == contents(tiny));
}

// A process of its own; 0 where it ends well.
pid_t begin_process(const std::function<void()>& f) {
  const pid_t child = fork();
  if (child != 0) return child;
  try {
    f();
  } catch (...) {
    _exit(1);
  }
  _exit(0);
}

TEST(ConvertParts, ProcessesThatShareAFolder) {
  const Scratch scratch;
  to_dist(tiny, scratch / "expected", 4);
  ToTorchDistOptions options;
  options.output_dir = scratch / "dist";
  std::vector<pid_t> children;
  for (int rank = 0; rank < 4; rank++) {
    children.push_back(begin_process([&] {
      write_torch_dist_part(stored_hf(tiny, tiny_config()), tiny_config(), options, {rank, 4});
    }));
  }
  for (const pid_t child : children) {
    int status = 1;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  ASSERT_EQ(names_in(scratch / "dist"), names_in(scratch / "expected"));
  for (const auto& name : names_in(scratch / "expected/release")) {
    EXPECT_TRUE(read_file(scratch / ("dist/release/" + name)) == read_file(scratch / ("expected/release/" + name)))
        << name;
  }
}

TEST(ConvertParts, AKilledConversionIsTakenUpAgain) {
  const Scratch scratch;
  to_dist(tiny, scratch / "expected", 2);
  for (int kills = 0; kills < 12; kills++) {
    const pid_t child = begin_process([&] { to_dist(tiny, scratch / "dist", 2); });
    usleep(static_cast<useconds_t>(5000 * kills));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    // Whatever it left: a tracker stands for a whole checkpoint.
    if (std::filesystem::exists(scratch / "dist/latest_checkpointed_iteration.txt")) {
      EXPECT_EQ(read_dist(scratch / "dist").size(), 145u);
    }
  }
  to_dist(tiny, scratch / "dist", 2);
  ASSERT_EQ(names_in(scratch / "dist"), names_in(scratch / "expected"));
  EXPECT_EQ(names_in(scratch / "dist/release"), names_in(scratch / "expected/release"));
  for (const auto& name : names_in(scratch / "expected/release")) {
    EXPECT_TRUE(read_file(scratch / ("dist/release/" + name)) == read_file(scratch / ("expected/release/" + name)))
        << name;
  }
}

TEST(ConvertToTorchDist, ReplacesAReleaseAndNothingElse) {
  const Scratch scratch;
  to_dist(tiny, scratch / "dist", 3);
  write_raw(scratch / "dist/release/left.over", "x");
  to_dist(tiny, scratch / "dist");
  EXPECT_EQ(names_in(scratch / "dist"), (std::vector<std::string>{"latest_checkpointed_iteration.txt", "release"}));
  EXPECT_EQ(names_in(scratch / "dist/release").size(), 4u);
  EXPECT_EQ(read_dist(scratch / "dist").size(), 145u);

  write_raw(scratch / "dist/latest_checkpointed_iteration.txt", "20\n");
  EXPECT_TRUE(contains(error_of([&] { to_dist(tiny, scratch / "dist"); }), "training checkpoints"));
  make_directories(scratch / "other");
  write_raw(scratch / "other/notes", "x");
  EXPECT_TRUE(contains(error_of([&] { to_dist(tiny, scratch / "other"); }), "no torch_dist checkpoint"));
  write_raw(scratch / "file", "x");
  EXPECT_TRUE(contains(error_of([&] { to_dist(tiny, scratch / "file"); }), "not a folder"));
  std::filesystem::copy(tiny, scratch / "hf");
  EXPECT_TRUE(contains(error_of([&] { to_dist(scratch / "hf", scratch / "hf"); }), "to be converted"));
}

TEST(ConvertToTorchDist, AFullDiskLeavesNothing) {
  const Scratch scratch;
  for (const int workers : {1, 3}) {
    EXPECT_EQ(run_with_file_limit(400'000, [&] { to_dist(tiny, scratch / "dist", workers); }),
              static_cast<int>(Exit::resources));
    EXPECT_FALSE(std::filesystem::exists(scratch / "dist"));
  }
  EXPECT_EQ(run_with_file_limit(400'000, [&] { to_hf(golden_dist, scratch / "hf"); }),
            static_cast<int>(Exit::resources));
  EXPECT_EQ(names_in(scratch.path()), std::vector<std::string>{});
}

TEST(ConvertToTorchDist, RefusesNanAndInfinity) {
  const Scratch scratch;
  make_directories(scratch / "hf");
  for (const auto& name : names_in(tiny)) {
    write_raw(scratch / ("hf/" + name), read_file(tiny + "/" + name));
  }
  const std::string tensor = "model.language_model.layers.2.mlp.shared_expert.up_proj.weight";
  const SafetensorsDirectory source(tiny);
  const std::string file = source.file_of(tensor);
  std::string bytes = read_file(tiny + "/" + file);
  for (const auto& f : source.files()) {
    if (!f.path().ends_with(file)) continue;
    size_t end = 0;
    for (const auto& e : f.entries()) end += e.bytes.size();
    size_t at = bytes.size() - end;
    for (const auto& e : f.entries()) {
      if (e.name == tensor) bytes.replace(at + 10, 2, "\x80\x7f");
      at += e.bytes.size();
    }
  }
  write_raw(scratch / ("hf/" + file), bytes);
  const std::string error = error_of([&] { to_dist(scratch / "hf", scratch / "dist"); });
  EXPECT_TRUE(contains(error, "NaN or infinity") && contains(error, tensor)) << error;
  EXPECT_FALSE(std::filesystem::exists(scratch / "dist"));
}

}  // namespace
}  // namespace furlong::converting
