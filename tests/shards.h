// Weights of one rank from those of a whole model, and back.
#pragma once
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "model/weights.h"
#include "optim/owners.h"

namespace furlong::test {

// What this rank holds of `full`.
inline Weights shard_of(const ModelConfig& config, const Weights& full, const MeshRank& place) {
  Weights shard(config, full.dtype(), Placement{.rank = place});
  for (size_t i = 0; i < shard.specs().size(); i++) {
    const Tensor &to = shard.tensors()[i], &from = full.tensors()[i];
    if (!to.defined()) continue;
    const size_t size = size_of(to.dtype());
    for_each_run(shard.specs()[i], [&](int64_t first, int64_t full_first, int64_t count) {
      std::memcpy(static_cast<char*>(to.data()) + static_cast<size_t>(first) * size,
                  static_cast<const char*>(from.data()) + static_cast<size_t>(full_first) * size,
                  static_cast<size_t>(count) * size);
    });
  }
  return shard;
}

// Whole tensors put together from what ranks own. Ranks may add at the same time; every number must come once.
class Gathered {
 public:
  explicit Gathered(const ModelConfig& config) : config_(config) {
    for (const auto& spec : tensor_registry(config)) {
      values_[spec.name].resize(static_cast<size_t>(spec.full_numel()));
      counts_[spec.name].resize(values_[spec.name].size());
    }
  }
  // f32 or bf16 tensors as the rank holds them, or flat ones of what it owns.
  void add(const Weights& weights, const MeshRank& place) {
    const std::lock_guard lock(mutex_);
    const auto specs = tensor_registry(config_, place);
    for (size_t i = 0; i < specs.size(); i++) {
      const Tensor& t = weights.tensors()[i];
      const Range owned = owned_numbers(config_, specs[i], place);
      if (!t.defined() || owned.size() == 0) continue;
      const int64_t skipped = t.numel() == specs[i].numel() ? 0 : owned.begin;
      auto& values = values_.at(specs[i].name);
      for_each_run(specs[i], [&](int64_t first, int64_t full_first, int64_t count) {
        for (int64_t n = std::max(first, owned.begin); n < std::min(first + count, owned.end); n++) {
          const auto at = static_cast<size_t>(full_first + n - first);
          values[at] =
              t.dtype() == DType::bf16 ? static_cast<float>(t.as<bf16>()[n - skipped]) : t.as<float>()[n - skipped];
          counts_.at(specs[i].name)[at]++;
        }
      });
    }
  }
  const std::vector<float>& operator[](const std::string& name) const { return values_.at(name); }
  const std::map<std::string, std::vector<float>>& all() const { return values_; }
  void expect_complete() const {
    for (const auto& [name, counts] : counts_) {
      EXPECT_EQ(std::count(counts.begin(), counts.end(), 1), std::ssize(counts)) << name;
    }
  }

 private:
  ModelConfig config_;
  std::mutex mutex_;
  std::map<std::string, std::vector<float>> values_;
  std::map<std::string, std::vector<int>> counts_;
};

}  // namespace furlong::test
