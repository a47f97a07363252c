// The offloaded optimizer: the bits of the one on the device, whatever its tensors are kept in.
#include <gtest/gtest.h>

#include <limits>

#include "checkpoint/init.h"
#include "cuda/small_model.h"
#include "ops/random.h"
#include "optim/adam.h"
#include "tensor/copy.h"

namespace furlong::test {
namespace {

std::string bytes_of(const Weights& w) {
  std::string out;
  for (const Tensor& t : w.tensors()) {
    if (!t.defined()) continue;
    const OnHost host(t);
    out.append(static_cast<const char*>(host.view().data()), host.view().bytes());
  }
  return out;
}

// Three steps with clipping, then one with an infinite gradient that must leave everything as it is, then one more.
std::string trained(DType weights_dtype, OptimOptions options, bool told) {
  const ModelConfig config = small_model();
  ThreadPool threads(2);
  Stream stream(threads, Device::cuda);
  Weights weights(config, weights_dtype, Device::cuda), grads(config, options.main_grads, Device::cuda);
  init_weights(weights, config, 5, 0.15, &threads);
  options.lr = 0.01;
  options.weight_decay = 0.1;
  Optimizer optimizer(config, weights, options, &stream);
  std::string out;
  for (uint64_t i = 0; i < 5; i++) {
    init_weights(grads, config, 100 + i, 0.3, &threads);
    if (i == 3) {
      const float inf = std::numeric_limits<float>::infinity();
      const bf16 half(inf);
      const Tensor& last = grads.tensors().back();
      write_numbers(last, 0, 1, last.dtype() == DType::bf16 ? static_cast<const void*>(&half) : &inf);
    }
    if (told) {
      for (int part = grads.specs().back().part; part >= 0; part--) optimizer.gradients_done(stream, grads, part);
    }
    const std::string before = i == 3 ? out.substr(out.size() / i * (i - 1)) : "";
    EXPECT_EQ(optimizer.step(stream, grads).skipped, i == 3);
    stream.synchronize();
    const std::string state = bytes_of(weights) + bytes_of(optimizer.masters()) + bytes_of(optimizer.exp_avg()) +
                              bytes_of(optimizer.exp_avg_sq());
    if (i == 3) {
      EXPECT_TRUE(state == before);
    }
    out += state;
  }
  return out;
}

TEST(CudaOffload, ChangesNoBits) {
  cuda::open();
  for (const DType weights : {DType::f32, DType::bf16}) {
    for (int mask = 0; mask < 16; mask += 5) {
      const auto kept = [&](int bit) { return (mask >> bit & 1) != 0 ? DType::bf16 : DType::f32; };
      OptimOptions options{.main_params = kept(0), .exp_avg = kept(1), .exp_avg_sq = kept(2), .main_grads = kept(3)};
      const std::string want = trained(weights, options, false);
      for (const double part : {0.4, 1.0}) {
        for (const bool overlap : {false, true}) {
          for (const int64_t block : {1000, 1 << 20}) {
            options.offload = part;
            options.overlap = overlap;
            options.offload_block = block;
            for (const bool told : {false, true}) {
              EXPECT_TRUE(trained(weights, options, told) == want)
                  << name_of(weights) << " mask " << mask << " part " << part << " overlap " << overlap << " block "
                  << block << " told " << told;
            }
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace furlong::test
