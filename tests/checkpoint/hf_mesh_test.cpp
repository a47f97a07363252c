// Hugging Face checkpoints of models that are spread over ranks.
#include <sys/mman.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>

#include "checkpoint/hf.h"
#include "checkpoint/init.h"
#include "checkpoint/torch_dist.h"
#include "layouts.h"
#include "parallel/threads.h"
#include "scratch.h"

namespace furlong::hf_on_ranks {
namespace {

// The checkpoint of a model of random numbers, and the numbers.
struct Written {
  Written(DType dtype, ExpertPacking packing, const std::string& folder, uint64_t shard_bytes = 30'000)
      : config(splittable_config()), whole(config, dtype) {
    init_weights(whole, config, 11, 1);
    save_hf(
        {.source_dir = {}, .output_dir = folder, .config_text = "{}", .experts = packing, .shard_bytes = shard_bytes},
        whole);
  }
  ModelConfig config;
  Weights whole;
};

TEST(LoadHfOnRanks, EachGetsItsPartOfTheWhole) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const auto packing : {ExpertPacking::fused, ExpertPacking::per_expert}) {
      const Scratch scratch;
      const Written written(dtype, packing, scratch / "m");
      for (const auto& layout : layouts()) {
        run_ranks(layout.ranks, [&](World& world) {
          const Mesh mesh(world, layout.sizes);
          ThreadPool threads(2);
          const Weights part = load_hf(scratch / "m", written.config, dtype,
                                       {.threads = world.rank() % 2 == 0 ? &threads : nullptr, .mesh = mesh});
          EXPECT_TRUE(is_part_of(part, written.whole)) << "rank " << world.rank() << " of " << text_of(layout);
        });
      }
    }
  }
}

TEST(LoadTorchDistOnRanks, EachGetsItsPartOfTheWhole) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Scratch scratch;
    const Written written(dtype, ExpertPacking::fused, scratch / "m");
    write_torch_dist(stored_hf(scratch / "m", written.config), written.config,
                     {.output_dir = scratch / "t", .vocab_multiple = 8, .archive_bytes = 1000, .file_bytes = 20'000},
                     2);
    for (const auto& layout : layouts()) {
      run_ranks(layout.ranks, [&](World& world) {
        const Mesh mesh(world, layout.sizes);
        const Weights part = load_torch_dist(scratch / "t", written.config, dtype, {.mesh = mesh});
        EXPECT_TRUE(is_part_of(part, written.whole)) << "rank " << world.rank() << " of " << text_of(layout);
      });
    }
  }
}

// The message that each rank's load throws, all of them being one.
std::string message_on_all(const Layout& layout, const std::string& folder, const ModelConfig& config) {
  std::mutex mutex;
  std::set<std::string> messages;
  run_ranks(layout.ranks, [&](World& world) {
    const Mesh mesh(world, layout.sizes);
    const std::string message = error_of([&] { load_hf(folder, config, DType::f32, {.mesh = mesh}); });
    const std::lock_guard lock(mutex);
    messages.insert(message);
  });
  EXPECT_EQ(messages.size(), 1u) << *messages.begin() << "\n" << *messages.rbegin();
  return *messages.begin();
}

TEST(LoadHfOnRanks, WhatIsMissingForOneIsToldToAll) {
  const Scratch scratch;
  const Written written(DType::f32, ExpertPacking::per_expert, scratch / "m");
  ModelConfig other = written.config;
  other.num_experts = 8;  // more than there are
  for (const auto& layout : layouts()) {
    EXPECT_TRUE(contains(message_on_all(layout, scratch / "m", other), "experts.7.down_proj.weight"))
        << text_of(layout);
  }
}

// The ranks that hold an expert alone see that one of its numbers is not finite.
TEST(LoadHfOnRanks, WhatOneFindsNotFiniteIsToldToAll) {
  const Scratch scratch;
  Written written(DType::f32, ExpertPacking::per_expert, scratch / "m");
  const Tensor& down = written.whole.layers[1].moe.down;
  down.as<float>()[down.numel() - 1] = std::numeric_limits<float>::quiet_NaN();  // of expert 3
  save_hf({.source_dir = {}, .output_dir = scratch / "m", .config_text = "{}", .experts = ExpertPacking::per_expert},
          written.whole);
  for (const auto& layout : layouts()) {
    const std::string message = message_on_all(layout, scratch / "m", written.config);
    EXPECT_TRUE(contains(message, "NaN or infinity")) << message;
    EXPECT_TRUE(contains(message, "layers.1.mlp.experts.3.down_proj.weight in model")) << message;
    EXPECT_TRUE(contains(message, "tensors (1)")) << message;
  }
}

// Bytes of a file that are in memory; after `drop` as few as the file system lets go.
uint64_t bytes_in_memory(const std::string& path, bool drop = false) {
  const int fd = ::open(path.c_str(), O_RDONLY);
  if (drop) {
    fsync(fd);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  }
  const auto size = static_cast<size_t>(std::filesystem::file_size(path)), page = size_t(sysconf(_SC_PAGESIZE));
  std::vector<unsigned char> pages((size + page - 1) / page);
  void* mapped = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  mincore(mapped, size, pages.data());
  munmap(mapped, size);
  close(fd);
  return page * static_cast<uint64_t>(std::count_if(pages.begin(), pages.end(), [](auto p) { return (p & 1) != 0; }));
}

// Rank 0 of a model whose files are larger than what a system fetches ahead; the others answer and read nothing.
TEST(LoadHfOnRanks, ARankReadsItsShareOfTheFiles) {
  ModelConfig c = splittable_config();
  c.vocab_size = 4096;
  c.hidden_size = 256;
  c.num_experts = 8;
  c.moe_intermediate_size = c.shared_intermediate_size = 128;
  const Scratch scratch;
  const std::string file = scratch / "m/model.safetensors";
  {
    const Weights whole(c, DType::bf16);
    save_hf({.source_dir = {}, .output_dir = scratch / "m", .config_text = "{}"}, whole);
  }
  for (const auto& sizes : {ParallelSizes{.expert = 8}, ParallelSizes{.pipeline = 4, .expert = 2}}) {
    const uint64_t before = bytes_in_memory(file, true);
    uint64_t held = 0;
    run_ranks(8, [&](World& world) {
      const Mesh mesh(world, sizes);
      if (world.rank() == 0) {
        held = load_hf(scratch / "m", c, DType::bf16, {.mesh = mesh}).bytes();
      } else {
        for (int i = 0; i < 2; i++) mesh.world().gather_bytes("");
      }
    });
    const auto page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const auto header = static_cast<uint64_t>(1 << 17);  // and what comes with its last page
    EXPECT_LE(bytes_in_memory(file), before + held + header + 2 * page * tensor_registry(c).size());
    EXPECT_LT(2 * held, std::filesystem::file_size(file));
  }
}

std::map<std::string, std::string> files_of(const std::string& folder) {
  std::map<std::string, std::string> files;
  for (const auto& name : names_in(folder)) files[name] = read_file(folder + "/" + name);
  return files;
}

TEST(SaveHfOnRanks, TheFilesAreThoseOfOneRank) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const Scratch scratch;
    const Written fused(dtype, ExpertPacking::fused, scratch / "fused"),
        single(dtype, ExpertPacking::per_expert, scratch / "single");
    for (const auto& layout : layouts()) {
      for (const bool flat : {false, true}) {
        if (flat && dtype == DType::bf16) continue;  // flat are masters in fp32
        const std::string out = scratch / "out", from = scratch / "from";
        run_ranks(layout.ranks, [&](World& world) {
          const Mesh mesh(world, layout.sizes);
          Placement placement{.rank = mesh.place()};
          if (flat) placement.owned = owned_by(fused.config, mesh.place());
          Weights part(fused.config, dtype, placement);
          init_weights(part, fused.config, 11, 1);
          save_hf({.source_dir = {},
                   .output_dir = out,
                   .config_text = "{}",
                   .experts = ExpertPacking::per_expert,
                   .shard_bytes = 30'000},
                  part, mesh);
          // Its own source: names, packing and files from there.
          save_hf({.source_dir = scratch / "fused", .output_dir = from, .config_text = {}}, part, mesh);
        });
        EXPECT_TRUE(files_of(out) == files_of(scratch / "single")) << text_of(layout) << (flat ? " flat" : "");
        EXPECT_TRUE(files_of(from) == files_of(scratch / "fused")) << text_of(layout) << (flat ? " flat" : "");
        std::filesystem::remove_all(out);
        std::filesystem::remove_all(from);
      }
    }
  }
}

// Without the MTP head in the weights its tensors come from the source.
TEST(SaveHfOnRanks, WhatNoRankHasComesFromTheSource) {
  const Scratch scratch;
  const Written written(DType::bf16, ExpertPacking::fused, scratch / "m");
  for (const auto& layout : layouts()) {
    const std::string out = scratch / "out";
    run_ranks(layout.ranks, [&](World& world) {
      const Mesh mesh(world, layout.sizes);
      Weights part(written.config, DType::bf16, Placement{.rank = mesh.place(), .only_mtp = false});
      init_weights(part, written.config, 12, 1);
      save_hf({.source_dir = scratch / "m", .output_dir = out, .config_text = {}}, part, mesh);
    });
    Weights expected(written.config, DType::bf16, Device::cpu, false);
    init_weights(expected, written.config, 12, 1);
    save_hf({.source_dir = scratch / "m", .output_dir = scratch / "expected", .config_text = {}}, expected);
    EXPECT_TRUE(files_of(out) == files_of(scratch / "expected")) << text_of(layout);
    std::filesystem::remove_all(out);
    std::filesystem::remove_all(scratch / "expected");
  }
}

TEST(SaveHfOnRanks, AnErrorOfTheWriterEndsAll) {
  const Scratch scratch;
  const Written written(DType::f32, ExpertPacking::fused, scratch / "m");
  ModelConfig wider = written.config;
  wider.vocab_size = 14;
  const Layout layout{8, {.tensor = 2, .pipeline = 2, .expert = 2}};
  std::atomic<int> told = 0;
  run_ranks(layout.ranks, [&](World& world) {
    const Mesh mesh(world, layout.sizes);
    const Weights part(wider, DType::f32, Placement{.rank = mesh.place()});
    const std::string message = error_of(
        [&] { save_hf({.source_dir = scratch / "m", .output_dir = scratch / "out", .config_text = {}}, part, mesh); });
    if (contains(message, "embed_tokens.weight is F32[13,6] there, but [14,6] in the weights")) told++;
    // The ranks go on together.
    EXPECT_EQ(mesh.world().gather_bytes("x").size(), 8u);
  });
  EXPECT_EQ(told, 8);
  EXPECT_EQ(names_in(scratch.path()), std::vector<std::string>{"m"});
}

}  // namespace
}  // namespace furlong::hf_on_ranks
