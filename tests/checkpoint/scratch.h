// What the tests of this room share: a scratch folder, files made by hand, the tiny checkpoint.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "checkpoint/safetensors.h"
#include "model/weights.h"

namespace furlong {

inline const std::string tiny = FURLONG_TEST_DATA "/tiny";

// A folder removed with its content at the end.
class Scratch {
 public:
  Scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "furlong-test-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~Scratch() { std::filesystem::remove_all(path_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline void write_raw(const std::string& path, const std::string& content) { write_file_atomic(path, content); }

// Header text and data as the bytes of a safetensors file.
inline std::string blob(const std::string& header, const std::string& data = "") {
  const uint64_t n = header.size();
  std::string out(reinterpret_cast<const char*>(&n), 8);
  return out + header + data;
}

inline std::span<const uint8_t> bytes_of(const std::string& s) {
  return {reinterpret_cast<const uint8_t*>(s.data()), s.size()};
}

// The message of the Error that f throws, "" if none; its exit code must be `code`.
inline std::string error_of(const std::function<void()>& f, Exit code = Exit::input) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(code)) << e.what();
    return e.what();
  }
  return "";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

// Every tensor's dtype, shape and bytes, by name.
inline std::map<std::string, std::string> contents(const std::string& directory) {
  const SafetensorsDirectory source(directory);
  std::map<std::string, std::string> all;
  for (const auto& file : source.files()) {
    for (const auto& e : file.entries()) {
      all[e.name] = e.describe() + std::string(reinterpret_cast<const char*>(e.bytes.data()), e.bytes.size());
    }
  }
  return all;
}

inline std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  for (const auto& e : std::filesystem::directory_iterator(directory)) names.push_back(e.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

inline TensorSource floats(const std::string& name, std::vector<int64_t> shape, std::vector<float> values) {
  return {.name = name, .dtype = "F32", .shape = std::move(shape), .emit = [values](const ByteSink& sink) {
            sink(values.data(), values.size() * 4);
          }};
}

// Runs f in a child that cannot write files of more than `limit` bytes (a full disk, as far as write() can tell);
// returns its exit code, that of an Error being Error::code().
inline int run_with_file_limit(uint64_t limit, const std::function<void()>& f) {
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit bound{limit, limit};
    setrlimit(RLIMIT_FSIZE, &bound);
    int code = 0;
    try {
      f();
    } catch (const Error& e) {
      code = static_cast<int>(e.code());
    } catch (...) {
      code = 99;
    }
    _exit(code);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

inline bool same_values(const Weights& a, const Weights& b) {
  bool same = a.tensors().size() == b.tensors().size();
  for (size_t i = 0; same && i < a.tensors().size(); i++) {
    const Tensor &x = a.tensors()[i], &y = b.tensors()[i];
    same = x.dtype() == y.dtype() && x.same_shape(y) && std::memcmp(x.data(), y.data(), x.bytes()) == 0;
  }
  return same;
}

}  // namespace furlong
