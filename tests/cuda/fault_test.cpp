// A kernel that fails in mid-step: the exit code, what is said, and what the run left behind. Such an error ends the
// process's use of the device, so that each fault has a process of its own.
#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/log.h"
#include "checkpoint/hf.h"
#include "checkpoint/init.h"
#include "checkpoint/resume.h"
#include "cuda/small_model.h"
#include "data/trajectory.h"
#include "ops/embed.h"
#include "tensor/copy.h"
#include "trainer/trainer.h"

// The linker sends every call of cudaMalloc in this program here (--wrap): what this process takes can be counted,
// while the device's free memory is also other processes'.
static int mallocs = 0;
extern "C" cudaError_t __real_cudaMalloc(void** memory, size_t bytes);
extern "C" cudaError_t __wrap_cudaMalloc(void** memory, size_t bytes) {
  mallocs++;
  return __real_cudaMalloc(memory, bytes);
}

namespace furlong::test {
namespace {

namespace fs = std::filesystem;

// As main ends.
template <class F>
[[noreturn]] void end_as_main_does(F&& body) {
  try {
    body();
  } catch (const Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    std::_Exit(static_cast<int>(e.code()));
  }
  std::_Exit(0);
}

// Reads a row of the table that lies 256 GiB behind it.
void read_far_away(Stream& stream, int64_t width) {
  static constexpr int32_t far = 1 << 30;
  const OwnedTensor table(DType::f32, {8, width}, Device::cuda), y(DType::f32, {1, width}, Device::cuda);
  const OwnedTensor ids(DType::i32, {1}, Device::cuda);
  write_numbers(ids, 0, 1, &far);
  embed(stream, y, ids, table);
}

class CudaFault : public ::testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(CudaFault, IsNamedWithItsCallAndTheLastOp) {
  EXPECT_EXIT(end_as_main_does([] {
                cuda::open();
                ThreadPool threads(1);
                Stream stream(threads, Device::cuda);
                read_far_away(stream, 64);
                stream.synchronize();
              }),
              ::testing::ExitedWithCode(static_cast<int>(Exit::lost)),
              "CUDA error in cudaStreamSynchronize: .*cudaErrorIllegalAddress.*last op launched before it was embed");
}

TEST_F(CudaFault, InMidStepLeavesTheLastCheckpoint) {
  const fs::path folder = fs::temp_directory_path() / "furlong-cuda-fault";
  fs::remove_all(folder);
  fs::create_directories(folder);
  const ModelConfig config = small_model();
  Weights weights(config, DType::f32);
  init_weights(weights, config, 5, 0.15);
  save_hf({.source_dir = {}, .output_dir = folder / "model", .config_text = config_json(config), .dtype = HfDtype::f32},
          weights);
  std::vector<Trajectory> samples(4);
  for (size_t i = 0; i < samples.size(); i++) {
    Trajectory& t = samples[i];
    for (size_t p = 0; p < 30 + 9 * i; p++) t.tokens.push_back(static_cast<int32_t>((p * p + 3 * i) % 97));
    t.response_length = static_cast<int32_t>(t.tokens.size()) - 4;
    t.loss_mask.assign(static_cast<size_t>(t.response_length), 1);
    t.reward = static_cast<double>(i % 2);
    t.group_index = 0;
    t.index = static_cast<int64_t>(i);
  }
  write_trajectories(folder / "samples.jsonl", samples);
  Settings s;
  s.hf_checkpoint = folder / "model";
  s.device = "cuda";
  s.dtype = "fp32";
  s.load_debug_rollout_data = folder / "samples.jsonl";
  s.num_rollout = 3;
  s.rollout_batch_size = 1;
  s.n_samples_per_prompt = 4;
  s.use_dynamic_batch_size = true;
  s.max_tokens_per_gpu = 128;
  s.save_interval = 1;
  s.run_dir = folder / "run";
  validate(s, Command::train);
  int steps = 0;
  const Faults faults{.before_update = [&](Stream& stream) {
    if (++steps == 2) read_far_away(stream, config.hidden_size);
  }};
  EXPECT_EXIT(end_as_main_does([&] { train(s, false, faults); }),
              ::testing::ExitedWithCode(static_cast<int>(Exit::lost)),
              "CUDA error in .*cudaErrorIllegalAddress.*last op launched before it was .*last checkpoint is untouched");
  EXPECT_EQ(verify_checkpoint(folder / "run/checkpoints/iter_0000000"), "");
  EXPECT_FALSE(fs::exists(folder / "run/checkpoints/iter_0000001"));
  train(s, false);  // goes on from there
  EXPECT_EQ(verify_checkpoint(folder / "run/checkpoints/iter_0000002"), "");
  fs::remove_all(folder);
}

// The plan refuses before anything is allocated.
TEST_F(CudaFault, TooLittleMemoryIsSaidBeforeLoading) {
  cuda::open();
  const int before = mallocs;
  { const Buffer one(1, Device::cuda); }
  ASSERT_EQ(mallocs, before + 1);
  const fs::path folder = fs::temp_directory_path() / "furlong-cuda-little";
  fs::create_directories(folder / "model");
  std::ofstream(folder / "model/config.json") << config_json(small_model());  // and no weights
  Settings s;
  s.hf_checkpoint = folder / "model";
  s.device = "cuda";
  s.dtype = "fp32";
  s.load_debug_rollout_data = folder / "samples.jsonl";
  s.num_rollout = s.rollout_batch_size = 1;
  s.n_samples_per_prompt = 4;
  s.gpu_memory_gib = 0.01;
  s.run_dir = folder / "run";
  validate(s, Command::train);
  try {
    train(s, false);
    FAIL() << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::resources);
    EXPECT_NE(std::string(e.what()).find("GPU memory: "), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("optimizer moments"), std::string::npos) << e.what();
  }
  EXPECT_EQ(mallocs, before + 1);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace furlong::test
