// Reference tensors in tests/data/goldens or beside another checkpoint, as doubles.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"
#include "checkpoint/values.h"

namespace furlong::test {

inline std::string data_path(const std::string& name) { return std::string(FURLONG_TEST_DATA) + "/" + name; }

class Golden {
 public:
  explicit Golden(const std::string& file, const std::string& folder = "goldens")
      : file_(data_path(folder + "/" + file)) {}

  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  std::vector<float> floats(const std::string& name) const { return floats_of(entry(name)); }
  double number(const std::string& name) const { return static_cast<double>(floats(name).at(0)); }
  std::vector<int32_t> integers(const std::string& name) const {
    const TensorEntry& e = entry(name);
    if (e.dtype != "I64") throw std::runtime_error(name + " is " + e.dtype);
    std::vector<int64_t> wide(static_cast<size_t>(e.numel()));
    std::memcpy(wide.data(), e.bytes.data(), e.bytes.size());
    return {wide.begin(), wide.end()};
  }

 private:
  const TensorEntry& entry(const std::string& name) const {
    const TensorEntry* found = file_.find(name);
    if (found == nullptr) throw std::runtime_error("no golden tensor " + name);
    return *found;
  }
  SafetensorsFile file_;
};

// |a - b| / |b| in the Euclidean norm.
template <class A, class B>
double relative_error(const A& a, const B& b) {
  if (a.size() != b.size()) throw std::runtime_error("sizes differ");
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); i++) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return size > 0 ? std::sqrt(difference / size) : std::sqrt(difference);
}

}  // namespace furlong::test
