// What the commands of bench_gpu share: the model at true shapes with random weights, drawn on the device.
#pragma once
#include <chrono>
#include <cstdio>

#include "checkpoint/init.h"
#include "furlong/presets.h"
#include "tensor/cuda.h"
#include "trainer/rollout.h"

namespace furlong::bench {

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Model {
  explicit Model(int64_t layers) : config(make_preset("35b-a3b", layers).config), threads(0) {
    cuda::open();
    weights = Weights(config, DType::bf16, Device::cuda);
    Stream stream(threads, Device::cuda);
    init_weights(weights, config, 1, 0.02, &threads, &stream);
    stream.synchronize();
    std::printf("%s: %ld layers, %.2f GB of weights\n", cuda::device_info().name.c_str(), layers,
                static_cast<double>(weights.bytes()) / 1e9);
  }
  ModelConfig config;
  ThreadPool threads;
  Weights weights;
};

inline int32_t token(const ModelConfig& c, uint32_t sequence, uint32_t i) {
  return static_cast<int32_t>(random_word({.seed = 3, .group = sequence}, i) % static_cast<uint32_t>(c.vocab_size));
}

inline double figure(const Metrics& metrics, const char* name) {
  for (const auto& [key, value] : metrics) {
    if (key == name) return value;
  }
  return 0;
}

// RL-like steps with masters, moments and update on the host; plain: without overlap, overlap: with, otherwise both.
void offload(int64_t layers, const char* which);

}  // namespace furlong::bench
