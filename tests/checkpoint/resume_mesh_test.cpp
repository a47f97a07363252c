// Training checkpoints of models that are spread over ranks.
#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "base/rng.h"
#include "checkpoint/init.h"
#include "checkpoint/manifest.h"
#include "checkpoint/resume.h"
#include "layouts.h"
#include "parallel/threads.h"
#include "scratch.h"
#include "smallest_config.h"

namespace furlong::resume_on_ranks {
namespace {

// What a run keeps: weights in bf16 with flat masters and moments, or weights in f32 that are their own masters.
struct Kept {
  Kept(const ModelConfig& config, const MeshRank& place, bool flat, DType dtype) {
    const Placement whole{.rank = place};
    Placement owned = whole;
    if (flat) owned.owned = owned_by(config, place);
    Placement mtp = owned;
    mtp.only_mtp = true;
    weights = Weights(config, dtype, whole);
    if (dtype == DType::bf16) masters = Weights(config, DType::f32, owned);
    exp_avg = Weights(config, dtype, owned);
    exp_avg_sq = Weights(config, DType::f32, mtp);
  }
  std::vector<NamedWeights> sets() const {
    std::vector<NamedWeights> all = {{"weights", &weights}, {"exp_avg", &exp_avg}, {"exp_avg_sq", &exp_avg_sq}};
    if (!masters.specs().empty()) all.push_back({"masters", &masters});
    return all;
  }
  void fill(const ModelConfig& config, uint64_t seed) {
    for (Weights* w : {&weights, &masters, &exp_avg, &exp_avg_sq}) init_weights(*w, config, seed++, 1);
  }
  Weights weights, masters, exp_avg, exp_avg_sq;
};

class ResumeOnRanks : public ::testing::Test {
 protected:
  std::string folder() const { return scratch / "c"; }
  std::string at(int64_t iteration, const std::string& file = "") const {
    return checkpoint_folder(folder(), iteration) + (file.empty() ? "" : "/" + file);
  }

  static std::string state_of(int64_t iteration) { return fmt::format("{{\"step\":{}}}", iteration); }

  void save(const Layout& layout, int64_t iteration, DType dtype = DType::bf16, int keep = 100) const {
    run_ranks(layout.ranks, [&](World& world) {
      const Mesh mesh(world, layout.sizes);
      Kept kept(config, mesh.place(), true, dtype);
      kept.fill(config, 10 * static_cast<uint64_t>(iteration));
      save_checkpoint(folder(), iteration, kept.sets(),
                      world.rank() == 0 ? state_of(iteration) : "of a rank whose state is not taken", {.keep = keep},
                      mesh);
    });
  }

  // What was saved, whole.
  const Kept& saved(int64_t iteration, DType dtype) const {
    auto& kept = saved_[{iteration, dtype}];
    if (kept == nullptr) {
      kept = std::make_unique<Kept>(config, MeshRank{}, false, dtype);
      kept->fill(config, 10 * static_cast<uint64_t>(iteration));
    }
    return *kept;
  }

  // The iteration that all ranks load, its numbers compared with those that were saved; -1 for none.
  int64_t load(const Layout& layout, DType dtype = DType::bf16) const {
    std::mutex mutex;
    std::set<int64_t> iterations;
    run_ranks(layout.ranks, [&](World& world) {
      const Mesh mesh(world, layout.sizes);
      const bool flat = layout.ranks > 1;
      Kept kept(config, mesh.place(), flat, dtype);
      const auto loaded = load_latest(folder(), kept.sets(), {}, mesh);
      const std::lock_guard lock(mutex);
      iterations.insert(loaded ? loaded->iteration : -1);
      if (!loaded) return;
      EXPECT_EQ(loaded->state, state_of(loaded->iteration));
      EXPECT_EQ(loaded->path, at(loaded->iteration));
      const auto sets = kept.sets(), whole = saved(loaded->iteration, dtype).sets();
      for (size_t i = 0; i < sets.size(); i++) {
        EXPECT_TRUE(is_part_of(*sets[i].weights, *whole[i].weights))
            << sets[i].name << " of rank " << world.rank() << " of " << text_of(layout);
      }
    });
    EXPECT_EQ(iterations.size(), 1u);
    return *iterations.begin();
  }

  // The message that the load throws on every rank.
  std::string message(const Layout& layout, DType dtype = DType::bf16) const {
    std::mutex mutex;
    std::set<std::string> messages;
    run_ranks(layout.ranks, [&](World& world) {
      const Mesh mesh(world, layout.sizes);
      const Kept kept(config, mesh.place(), true, dtype);
      const std::string text = error_of([&] { load_latest(folder(), kept.sets(), {}, mesh); });
      const std::lock_guard lock(mutex);
      messages.insert(text);
    });
    EXPECT_EQ(messages.size(), 1u);
    return *messages.begin();
  }

  ModelConfig config = splittable_config();
  Scratch scratch;
  mutable std::map<std::pair<int64_t, DType>, std::unique_ptr<Kept>> saved_;
  const Layout eight{8, {.tensor = 2, .pipeline = 2, .expert = 2}}, pair{2, {}};
};

TEST_F(ResumeOnRanks, SavedOnAnyLayoutLoadedOnAny) {
  DType dtype = DType::f32;
  for (const auto& from : layouts()) {
    dtype = dtype == DType::f32 ? DType::bf16 : DType::f32;
    save(from, 1, dtype);
    EXPECT_EQ(verify_checkpoint(at(1)), "");
    for (const auto& to : layouts()) EXPECT_EQ(load(to, dtype), 1) << text_of(from) << " -> " << text_of(to);
    std::filesystem::remove_all(folder());
  }
}

TEST_F(ResumeOnRanks, TheSameLayoutSavesTheSameFiles) {
  for (const auto& layout : layouts()) {
    save(layout, 1);
    run_ranks(layout.ranks, [&](World& world) {
      const Mesh mesh(world, layout.sizes);
      Kept kept(config, mesh.place(), true, DType::bf16);
      const auto loaded = load_latest(folder(), kept.sets(), {}, mesh);
      save_checkpoint(folder(), 2, kept.sets(), loaded->state, {}, mesh);
    });
    EXPECT_EQ(names_in(at(1)), names_in(at(2)));
    for (const auto& name : names_in(at(1))) {
      if (name == "manifest.json") continue;
      EXPECT_TRUE(read_file(at(1, name)) == read_file(at(2, name))) << name << " of " << text_of(layout);
    }
    std::filesystem::remove_all(folder());
  }
}

TEST_F(ResumeOnRanks, EachRankWritesOnceWhatItGives) {
  save(eight, 1);
  std::map<std::string, int64_t> numbers;
  int files = 0;
  uint64_t smallest = ~uint64_t{0}, largest = 0;
  for (const auto& name : names_in(at(1))) {
    if (!name.starts_with("weights.")) continue;
    files++;
    const SafetensorsFile file(at(1, name));
    smallest = std::min(smallest, uint64_t{file.bytes()});
    largest = std::max(largest, uint64_t{file.bytes()});
    for (const auto& entry : file.entries()) numbers[entry.name] += entry.numel();
  }
  EXPECT_EQ(files, 8);
  EXPECT_LT(largest, 2 * smallest);
  for (const auto& spec : tensor_registry(config)) EXPECT_EQ(numbers[spec.name], spec.full_numel()) << spec.name;
  EXPECT_EQ(names_in(folder()), (std::vector<std::string>{"iter_0000001", "latest_checkpointed_iteration.txt"}));
}

TEST_F(ResumeOnRanks, DamagedFilesAreSkippedByAll) {
  save(eight, 1);
  save(pair, 2);
  for (const auto& to : {pair, eight, Layout{1, {}}}) {
    for (const auto& file : names_in(at(2))) {
      const std::string good = read_file(at(2, file));
      std::string flipped = good;
      flipped[good.size() / 2] = static_cast<char>(flipped[good.size() / 2] ^ 8);
      for (const std::string& bad : {std::string(), good.substr(0, good.size() / 2), flipped}) {
        write_raw(at(2, file), bad);
        EXPECT_EQ(load(to), 1) << file << " on " << text_of(to);
      }
      std::filesystem::remove(at(2, file));
      EXPECT_EQ(load(to), 1) << file << " on " << text_of(to);
      write_raw(at(2, file), good);
    }
    EXPECT_EQ(load(to), 2);
  }
}

// Any flipped bit is found by some rank, or harmless to all.
TEST_F(ResumeOnRanks, FlippedBitsAreDetected) {
  save(pair, 1);
  save(eight, 2);
  const auto files = names_in(at(2));
  int detected = 0;
  for (uint32_t i = 0; i < 60; i++) {
    const RngKey key{.seed = 6, .group = i, .purpose = Purpose::data};
    const std::string path = at(2, files[random_word(key, 0) % files.size()]), good = read_file(path);
    std::string bad = good;
    const size_t p = random_word(key, 1) % bad.size();
    bad[p] = static_cast<char>(bad[p] ^ (1 << random_word(key, 2) % 8));
    write_raw(path, bad);
    const int64_t loaded = load(i % 2 == 0 ? eight : Layout{4, {.tensor = 4}});
    if (loaded == 1) detected++;
    EXPECT_TRUE(loaded == 1 || path.ends_with("manifest.json")) << path << " byte " << p;
    write_raw(path, good);
  }
  EXPECT_GT(detected, 55);
  EXPECT_EQ(load(eight), 2);
}

// The files pass, but a tensor that rank 1 reads of rank 0's file is not what the manifest says.
TEST_F(ResumeOnRanks, AReaderChecksWhatItReadsOfOthersFiles) {
  save(eight, 1);
  save(pair, 2);
  auto files = read_manifest(at(2));
  for (auto& file : files) {
    if (file.name.starts_with("weights.00001")) file.tensors.at("lm_head.weight") = std::string(32, '0');
  }
  write_manifest(at(2), 2, files);
  EXPECT_EQ(verify_checkpoint(at(2)), "");  // the manifest and the file as such are sound
  EXPECT_EQ(load(pair), 1);
}

TEST_F(ResumeOnRanks, NoneIntactIsOneErrorOnAll) {
  save(eight, 1);
  save(pair, 2);
  std::filesystem::remove(at(1, "masters.00005-of-00008.safetensors"));
  write_raw(at(2, "state.json"), "{}");
  const std::string text = message(eight);
  EXPECT_TRUE(contains(text, "iter_0000002/state.json: it has 2 bytes")) << text;
  EXPECT_TRUE(contains(text, "iter_0000001/masters.00005-of-00008.safetensors")) << text;
}

TEST_F(ResumeOnRanks, WhatDoesNotFitIsOneErrorOnAll) {
  save(eight, 1);
  EXPECT_TRUE(contains(message(pair, DType::f32), "is BF16[13,6], but this run needs f32[13,6]")) << message(pair);
  config.vocab_size = 14;
  EXPECT_TRUE(contains(message(pair), "embed_tokens.weight is BF16[13,6], but this run needs bf16[14,6]"));
  config = splittable_config();
  // A manifest without one of the files; with one of them twice.
  const auto files = read_manifest(at(1));
  const std::string third = "masters.00003-of-00008.safetensors";
  auto fewer = files, more = files;
  std::erase_if(fewer, [&](const FileRecord& file) { return file.name == third; });
  write_manifest(at(1), 1, fewer);
  EXPECT_TRUE(contains(message(pair), "numbers of tensor")) << message(pair);
  for (const auto& file : files) {
    if (file.name != third) continue;
    more.push_back(file);
    more.back().name = "masters.again.safetensors";
  }
  std::filesystem::copy_file(at(1, third), at(1, "masters.again.safetensors"));
  write_manifest(at(1), 1, more);
  EXPECT_TRUE(contains(message(pair), "numbers of tensor")) << message(pair);
  write_manifest(at(1), 1, files);
  EXPECT_EQ(load(pair), 1);
}

TEST_F(ResumeOnRanks, KeepsTheNewest) {
  for (int i = 1; i <= 4; i++) save(i % 2 == 0 ? pair : eight, i, DType::bf16, 3);
  std::filesystem::create_directory(at(9) + ".tmp-1-0");
  save(eight, 5, DType::bf16, 2);
  EXPECT_EQ(names_in(folder()),
            (std::vector<std::string>{"iter_0000004", "iter_0000005", "latest_checkpointed_iteration.txt"}));
  EXPECT_EQ(load(pair), 5);
}

// Whatever rank cannot write: all have the error, and nothing stays behind.
TEST_F(ResumeOnRanks, AFullDiskLeavesEarlierOnes) {
  save(pair, 1);
  for (const uint64_t limit : {0u, 3000u, 12000u}) {
    EXPECT_EQ(run_with_file_limit(limit, [&] { save(eight, 2); }), 4) << limit;
    EXPECT_EQ(names_in(folder()), (std::vector<std::string>{"iter_0000001", "latest_checkpointed_iteration.txt"}));
  }
  EXPECT_EQ(load(eight), 1);
}

// As on a host that has another disk under the same path.
TEST_F(ResumeOnRanks, AFolderThatARankDoesNotSeeIsNamed) {
  save(pair, 1);
  std::atomic<int> told = 0;
  run_ranks(2, [&](World& world) {
    const Mesh mesh(world, {});
    const Kept kept(config, mesh.place(), true, DType::bf16);
    const std::string own = world.rank() == 0 ? folder() : scratch / "elsewhere";
    for (const bool saving : {true, false}) {
      const std::string text = error_of(
          [&] {
            if (saving) save_checkpoint(own, 2, kept.sets(), "{}", {}, mesh);
            if (!saving) load_latest(own, kept.sets(), {}, mesh);
          },
          Exit::resources);
      if (contains(text, "rank 1 does not see it") && contains(text, "elsewhere/iter_000000")) told++;
    }
  });
  EXPECT_EQ(told, 4);
  EXPECT_EQ(names_in(folder()), (std::vector<std::string>{"iter_0000001", "latest_checkpointed_iteration.txt"}));
}

TEST_F(ResumeOnRanks, ALostRankEndsTheSave) {
  save(pair, 1);
  EXPECT_THROW(run_ranks(8,
                         [&](World& world) {
                           const Mesh mesh(world, eight.sizes);
                           const Kept kept(config, mesh.place(), true, DType::bf16);
                           auto sets = kept.sets();
                           if (world.rank() == 5) fail(Exit::lost, "rank 5 is gone");
                           save_checkpoint(folder(), 2, sets, "{}", {}, mesh);
                         }),
               Error);
  EXPECT_EQ(names_in(folder()), (std::vector<std::string>{"iter_0000001", "latest_checkpointed_iteration.txt"}));
}

// tests/data/checkpoint_v1 was written by the version before this one, by one rank: seeds 7, 107 and 207.
TEST(ResumeVersion1, IsReadOnAnyLayout) {
  const ModelConfig c = smallest_config();
  Weights whole(c, DType::bf16), whole_masters(c, DType::f32), whole_moments(c, DType::f32, Device::cpu, true);
  init_weights(whole, c, 7, 1);
  init_weights(whole_masters, c, 107, 1);
  init_weights(whole_moments, c, 207, 1);
  for (const auto& layout : {Layout{1, {}}, Layout{3, {}}, Layout{2, {.pipeline = 2}}, Layout{2, {.expert = 2}},
                             Layout{2, {.expert_tensor = 2}}}) {
    run_ranks(layout.ranks, [&](World& world) {
      const Mesh mesh(world, layout.sizes);
      const Placement flat{.rank = mesh.place(), .owned = owned_by(c, mesh.place())};
      Placement mtp = flat;
      mtp.only_mtp = true;
      const Weights weights(c, DType::bf16, Placement{.rank = mesh.place()}), masters(c, DType::f32, flat),
          moments(c, DType::f32, mtp);
      const auto loaded = load_latest(FURLONG_TEST_DATA "/checkpoint_v1",
                                      {{"weights", &weights}, {"masters", &masters}, {"exp_avg", &moments}}, {}, mesh);
      ASSERT_TRUE(loaded.has_value());
      EXPECT_EQ(loaded->iteration, 7);
      EXPECT_EQ(loaded->state, "{\"step\":7}");
      EXPECT_TRUE(is_part_of(weights, whole)) << text_of(layout);
      EXPECT_TRUE(is_part_of(masters, whole_masters)) << text_of(layout);
      EXPECT_TRUE(is_part_of(moments, whole_moments)) << text_of(layout);
    });
  }
}

}  // namespace
}  // namespace furlong::resume_on_ranks
