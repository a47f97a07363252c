#include "checkpoint/resume.h"

#include "base/rng.h"
#include "checkpoint/init.h"
#include "scratch.h"
#include "smallest_config.h"

namespace furlong {
namespace {

class Resume : public ::testing::Test {
 protected:
  Resume()
      : config(smallest_config()),
        weights(config, DType::bf16),
        masters(config, DType::f32),
        moments(config, DType::f32, Device::cpu, true) {}

  std::vector<NamedWeights> sets() const {
    return {{"weights", &weights}, {"masters", &masters}, {"exp_avg", &moments}};
  }

  void fill(uint64_t seed) {
    init_weights(weights, config, seed, 1);
    init_weights(masters, config, seed + 100, 1);
    init_weights(moments, config, seed + 200, 1);
  }

  void save(int64_t iteration, int keep = 100) {
    fill(static_cast<uint64_t>(iteration));
    save_checkpoint(scratch / "c", iteration, sets(), "{\"step\":" + std::to_string(iteration) + "}", {.keep = keep});
  }

  // The iteration that is loaded, -1 for none; every value is compared with what was saved.
  int64_t load() {
    fill(999);
    const auto loaded = load_latest(scratch / "c", sets());
    if (!loaded) return -1;
    EXPECT_EQ(loaded->state, "{\"step\":" + std::to_string(loaded->iteration) + "}");
    Weights w(config, DType::bf16), m(config, DType::f32), e(config, DType::f32, Device::cpu, true);
    const auto seed = static_cast<uint64_t>(loaded->iteration);
    init_weights(w, config, seed, 1);
    init_weights(m, config, seed + 100, 1);
    init_weights(e, config, seed + 200, 1);
    EXPECT_TRUE(same_values(w, weights) && same_values(m, masters));
    for (size_t i = 0; i < e.tensors().size(); i++) {
      if (!e.tensors()[i].defined()) continue;
      EXPECT_EQ(std::memcmp(e.tensors()[i].data(), moments.tensors()[i].data(), e.tensors()[i].bytes()), 0);
    }
    return loaded->iteration;
  }

  std::string at(int64_t iteration, const std::string& file) const {
    return scratch / fmt::format("c/iter_{:07}/{}", iteration, file);
  }

  ModelConfig config;
  Weights weights, masters, moments;
  Scratch scratch;
  const std::vector<std::string> files = {"exp_avg.safetensors", "manifest.json", "masters.safetensors", "state.json",
                                          "weights.safetensors"};
};

TEST_F(Resume, RoundTrip) {
  EXPECT_EQ(load(), -1);
  save(3);
  save(12);
  EXPECT_EQ(load(), 12);
  EXPECT_EQ(names_in(scratch / "c"),
            (std::vector<std::string>{"iter_0000003", "iter_0000012", "latest_checkpointed_iteration.txt"}));
  EXPECT_EQ(names_in(scratch / "c/iter_0000012"), files);
  EXPECT_EQ(read_file(scratch / "c/latest_checkpointed_iteration.txt"), "12\n");
}

TEST_F(Resume, ASetMayBeLeftOut) {
  save(1);
  fill(2);
  const auto loaded = load_latest(scratch / "c", {{"masters", &masters}});
  ASSERT_TRUE(loaded.has_value());
  Weights expected(config, DType::f32);
  init_weights(expected, config, 101, 1);
  EXPECT_TRUE(same_values(masters, expected));
}

TEST_F(Resume, TheTrackerDecidesNothing) {
  save(1);
  save(2);
  for (const char* text : {"", "7", "junk", "1"}) {
    write_raw(scratch / "c/latest_checkpointed_iteration.txt", text);
    EXPECT_EQ(load(), 2);
  }
  std::filesystem::remove(scratch / "c/latest_checkpointed_iteration.txt");
  EXPECT_EQ(load(), 2);
}

TEST_F(Resume, DamagedFilesAreSkippedByName) {
  save(1);
  save(2);
  for (const auto& file : files) {
    const std::string path = at(2, file), good = read_file(path);
    for (const std::string& bad : {std::string(), good.substr(0, good.size() / 2), good + "x"}) {
      write_raw(path, bad);
      EXPECT_EQ(load(), 1) << file;
      EXPECT_TRUE(contains(verify_checkpoint(scratch / "c/iter_0000002"), file))
          << verify_checkpoint(scratch / "c/iter_0000002");
    }
    std::filesystem::remove(path);
    EXPECT_EQ(load(), 1) << file;
    write_raw(path, good);
    EXPECT_EQ(load(), 2);
  }
}

TEST_F(Resume, NoneIntactIsAnErrorThatNamesEach) {
  save(1);
  save(2);
  write_raw(at(2, "state.json"), "{}");
  std::filesystem::remove(at(1, "weights.safetensors"));
  const std::string message = error_of([&] { load(); });
  EXPECT_TRUE(contains(message, "iter_0000002/state.json: it has 2 bytes")) << message;
  EXPECT_TRUE(contains(message, "iter_0000001/weights.safetensors")) << message;
}

TEST_F(Resume, AMovedFolderIsNotAnotherIteration) {
  save(1);
  std::filesystem::rename(scratch / "c/iter_0000001", scratch / "c/iter_0000009");
  EXPECT_TRUE(contains(error_of([&] { load(); }), "belongs to iteration 1"));
}

// Any flipped bit is detected, or harmless: then the very same values are loaded.
TEST_F(Resume, FlippedBitsAreDetected) {
  save(1);
  const std::string folder = scratch / "c/iter_0000001";
  int detected = 0, total = 0;
  for (uint32_t i = 0; i < 3000; i++) {
    const RngKey key{.seed = 5, .group = i, .purpose = Purpose::data};
    const std::string path = at(1, files[random_word(key, 0) % files.size()]), good = read_file(path);
    std::string bad = good;
    const size_t p = random_word(key, 1) % bad.size();
    bad[p] = static_cast<char>(bad[p] ^ (1 << random_word(key, 2) % 8));
    {
      const int fd = ::open(path.c_str(), O_WRONLY);
      ASSERT_EQ(pwrite(fd, bad.data() + p, 1, static_cast<off_t>(p)), 1);
      total++;
      if (!verify_checkpoint(folder).empty()) {
        detected++;
      } else {
        EXPECT_TRUE(path.ends_with("manifest.json")) << path << " byte " << p;
        EXPECT_EQ(load(), 1) << path << " byte " << p;
      }
      ASSERT_EQ(pwrite(fd, good.data() + p, 1, static_cast<off_t>(p)), 1);
      close(fd);
    }
  }
  EXPECT_GT(detected, total * 95 / 100);
  EXPECT_EQ(verify_checkpoint(folder), "");
}

TEST_F(Resume, NamesTheTensorThatDiffers) {
  save(1);
  const std::string path = at(1, "masters.safetensors");
  std::string bad = read_file(path);
  bad.back() = static_cast<char>(bad.back() ^ 1);
  write_raw(path, bad);
  const SafetensorsFile file(path);
  EXPECT_TRUE(
      contains(verify_checkpoint(scratch / "c/iter_0000001"), "tensor " + file.entries().back().name + " differs"));
  EXPECT_EQ(verify_checkpoint(scratch / "c/iter_0000001", /*checksums=*/false), "");
  bad[20] = '\0';  // no JSON any more
  write_raw(path, bad);
  EXPECT_TRUE(contains(verify_checkpoint(scratch / "c/iter_0000001"), "its header differs"));
}

TEST_F(Resume, KeepsTheNewest) {
  for (int i = 1; i <= 5; i++) save(i, 3);
  EXPECT_EQ(names_in(scratch / "c"), (std::vector<std::string>{"iter_0000003", "iter_0000004", "iter_0000005",
                                                               "latest_checkpointed_iteration.txt"}));
  save(6, 1);  // never fewer than two
  EXPECT_EQ(names_in(scratch / "c"),
            (std::vector<std::string>{"iter_0000005", "iter_0000006", "latest_checkpointed_iteration.txt"}));
}

// A run that went back to iteration 4 because 5 was damaged writes 5 again.
TEST_F(Resume, ADamagedCheckpointIsReplaced) {
  save(4);
  save(5);
  write_raw(at(5, "state.json"), "");
  EXPECT_EQ(load(), 4);
  save(5);
  EXPECT_EQ(load(), 5);
  EXPECT_EQ(names_in(scratch / "c"),
            (std::vector<std::string>{"iter_0000004", "iter_0000005", "latest_checkpointed_iteration.txt"}));
}

TEST_F(Resume, LeftoversAreIgnoredAndRemoved) {
  save(1);
  std::filesystem::copy(scratch / "c/iter_0000001", scratch / "c/iter_0000002.tmp-17-0",
                        std::filesystem::copy_options::recursive);
  for (const char* name : {"iter_3", "iter_00000004x", "iter_-000005", "iterations", "iter_"})
    std::filesystem::create_directory(scratch / "c/" + name);
  EXPECT_EQ(load(), 1);
  save(6);
  EXPECT_EQ(load(), 6);
  EXPECT_FALSE(std::filesystem::exists(scratch / "c/iter_0000002.tmp-17-0"));
  EXPECT_TRUE(std::filesystem::exists(scratch / "c/iterations"));
}

TEST_F(Resume, RefusesAnotherModel) {
  save(1);
  const auto why = [&](const std::vector<NamedWeights>& wanted) {
    return error_of([&] { load_latest(scratch / "c", wanted); });
  };
  EXPECT_TRUE(contains(why({{"exp_avg_sq", &masters}}), "holds no exp_avg_sq"));
  EXPECT_TRUE(contains(why({{"masters", &weights}}), "this run needs bf16"));
  EXPECT_TRUE(contains(why({{"exp_avg", &masters}}), "is not in it"));
  ModelConfig other = config;
  other.vocab_size = 6;
  const Weights wider(other, DType::f32);
  EXPECT_TRUE(contains(why({{"masters", &wider}}), "embed_tokens.weight is F32[5,4], but this run needs f32[6,4]"));
}

TEST_F(Resume, AFullDiskLeavesEarlierOnes) {
  save(1);
  fill(2);
  for (const uint64_t limit : {0u, 1u, 15u, 2000u, 7000u}) {
    EXPECT_EQ(run_with_file_limit(limit, [&] { save_checkpoint(scratch / "c", 2, sets(), "{\"step\":2}"); }), 4)
        << limit;
    EXPECT_EQ(names_in(scratch / "c"), (std::vector<std::string>{"iter_0000001", "latest_checkpointed_iteration.txt"}));
  }
  EXPECT_EQ(load(), 1);
  EXPECT_TRUE(
      contains(error_of([&] { save_checkpoint("/proc/nowhere", 2, sets(), "{}"); }, Exit::resources), "/proc/nowhere"));
}

}  // namespace
}  // namespace furlong
