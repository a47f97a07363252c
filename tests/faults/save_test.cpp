// Checkpoints on a disk that fails, and checkpoints that were damaged.
#include <sys/wait.h>

#include <array>
#include <random>
#include <vector>

#include "../checkpoint/smallest_config.h"
#include "../trainer/fixture.h"
#include "checkpoint/init.h"
#include "checkpoint/resume.h"
#include "disk.h"

namespace furlong {
namespace {

std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

class FailingDisk : public ::testing::Test {
 protected:
  FailingDisk() { log::set_level(log::Level::error); }
  ~FailingDisk() override { mend_disk(); }

  void fill(uint64_t seed) {
    init_weights(weights, config, seed, 1);
    init_weights(moments, config, seed + 100, 1);
  }
  std::vector<NamedWeights> sets() const { return {{"weights", &weights}, {"exp_avg", &moments}}; }

  void save(int64_t iteration) {
    fill(static_cast<uint64_t>(iteration));
    save_checkpoint(place, iteration, sets(), "{\"step\":" + std::to_string(iteration) + "}");
  }

  // The iteration that is loaded; all its numbers are held against those that were saved.
  int64_t load() {
    fill(999);
    const auto loaded = load_latest(place, sets());
    if (!loaded) return -1;
    EXPECT_EQ(loaded->state, "{\"step\":" + std::to_string(loaded->iteration) + "}");
    Weights w(config, DType::bf16), m(config, DType::f32);
    init_weights(w, config, static_cast<uint64_t>(loaded->iteration), 1);
    init_weights(m, config, static_cast<uint64_t>(loaded->iteration) + 100, 1);
    const auto same = [](const Weights& a, const Weights& b) {
      for (size_t i = 0; i < a.tensors().size(); i++) {
        const Tensor &x = a.tensors()[i], &y = b.tensors()[i];
        if (x.bytes() != y.bytes() || std::memcmp(x.data(), y.data(), x.bytes()) != 0) return false;
      }
      return true;
    };
    EXPECT_TRUE(same(w, weights) && same(m, moments)) << "iteration " << loaded->iteration;
    return loaded->iteration;
  }

  void put_back(const std::string& from) {
    fs::remove_all(place);
    fs::copy(from, place, fs::copy_options::recursive);
  }

  const ModelConfig config = smallest_config();
  Weights weights{config, DType::bf16}, moments{config, DType::f32};
  Folder folder;
  const std::string place = folder / "c";
};

// Two checkpoints are there and a third is saved, so that the oldest goes.
TEST_F(FailingDisk, EveryCallOfASaveFailsInTurn) {
  save(1);
  save(2);
  const std::string good = folder / "good";
  fs::copy(place, good, fs::copy_options::recursive);
  fail_disk(place, -1, DiskFault::full);
  save(3);
  const int calls = mend_disk();
  EXPECT_EQ(load(), 3);
  ASSERT_GT(calls, 25);
  int newer = 0;
  for (const DiskFault fault : {DiskFault::full, DiskFault::io, DiskFault::ends, DiskFault::torn}) {
    const bool ends = fault == DiskFault::ends || fault == DiskFault::torn;
    for (int call = 0; call < calls; call++) {
      SCOPED_TRACE(fmt::format("fault {} of call {} of {}", static_cast<int>(fault), call, calls));
      put_back(good);
      bool told = false;
      if (ends) {
        const pid_t child = fork();
        if (child == 0) {
          fail_disk(place, call, fault);
          save(3);
          _exit(0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        told = WIFEXITED(status) && WEXITSTATUS(status) == 9;
        EXPECT_TRUE(told) << status;
      } else {
        fail_disk(place, call, fault);
        try {
          save(3);
        } catch (const Error& error) {
          told = true;
          EXPECT_EQ(error.code(), Exit::resources) << error.what();
        }
        mend_disk();
      }
      const int64_t found = load();
      EXPECT_TRUE(found == 3 || (found == 2 && told)) << found;
      newer += found == 3;
      // The next save works, and nothing of the failed one is left.
      save(4);
      EXPECT_EQ(load(), 4);
      const std::string before = found == 3 ? "iter_0000003" : "iter_0000002";
      EXPECT_EQ(names_in(place),
                (std::vector<std::string>{before, "iter_0000004", "latest_checkpointed_iteration.txt"}));
    }
  }
  // Both happened, or the calls that were made to fail are not those of the save.
  EXPECT_GT(newer, 0);
  EXPECT_LT(newer, 4 * calls);
}

// Damage to the newest of two checkpoints: it is found, and the older one used, or it changes nothing.
TEST_F(FailingDisk, AThousandMutationsOfACheckpoint) {
  save(1);
  save(2);
  const std::string good = folder / "good", one = place + "/iter_0000001/", two = place + "/iter_0000002/";
  fs::copy(place, good, fs::copy_options::recursive);
  const std::vector<std::string> names = names_in(two);
  ASSERT_EQ(names.size(), 4u);
  std::mt19937 random(7);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  std::map<int, int> found_by_kind;
  int found = 0;
  for (int i = 0; i < 1000; i++) {
    put_back(good);
    const std::string file = two + names[below(names.size())];
    std::string bytes = read_file(file);
    const int kind = i % 10;
    const size_t at = below(bytes.size());
    switch (kind) {
      case 0: bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8))); break;
      case 1: bytes.resize(at); break;
      case 2: bytes.clear(); break;
      case 3: bytes += std::string(1 + below(100), '\0'); break;
      case 4:
        bytes.replace(at, std::min<size_t>(bytes.size() - at, 16), std::min<size_t>(bytes.size() - at, 16), '\0');
        break;
      case 5: bytes.erase(at, 1 + below(8)); break;
      case 6: bytes = read_file(one + fs::path(file).filename().string()); break;  // of another step
      case 7: bytes = read_file(two + names[below(names.size())]); break;          // of another name
      case 8: fs::remove(file); break;
      case 9: write_file_atomic(place + "/latest_checkpointed_iteration.txt", bytes.substr(0, at)); break;
    }
    if (kind < 8) {
      std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes;
    }
    const int64_t loaded = load();  // which compares all numbers
    EXPECT_TRUE(loaded == 1 || loaded == 2) << "mutation " << i << " of " << file;
    found += loaded == 1;
    found_by_kind[kind] += loaded == 1;
  }
  // What is not found is the tracker, which decides nothing, a file replaced by itself, or bytes that were the same.
  EXPECT_EQ(found_by_kind[9], 0);
  for (const int kind : {1, 2, 3, 6, 8}) EXPECT_EQ(found_by_kind[kind], 100) << kind;
  for (const int kind : {0, 5}) EXPECT_GE(found_by_kind[kind], 95) << kind;  // a blank of the manifest
  EXPECT_GT(found, 750);
}

}  // namespace
}  // namespace furlong
