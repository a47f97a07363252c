#include "checkpoint/stored.h"

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <set>

#include "base/error.h"
#include "checkpoint/values.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

constexpr int64_t block = 1 << 20;  // elements

struct Job {
  size_t tensor;
  int64_t first, count;
};

[[noreturn]] void refuse_nonfinite(const std::string& directory, const std::vector<std::string>& places) {
  std::string text = fmt::format(
      "{}: NaN or infinity in the weights; the checkpoint is damaged or its training had diverged", directory);
  append_list(text, "tensors", places);
  throw Error(Exit::input, text);
}

}  // namespace

void append_list(std::string& text, const char* title, const std::vector<std::string>& lines) {
  constexpr size_t shown = 20;
  if (lines.empty()) return;
  text += fmt::format("\n  {} ({}):", title, lines.size());
  for (size_t i = 0; i < std::min(lines.size(), shown); i++) text += "\n    " + lines[i];
  if (lines.size() > shown) text += fmt::format("\n    ... and {} more", lines.size() - shown);
}

std::string wider_dtype(const std::string& a, const std::string& b) {
  return a == b || b.empty() ? a : a.empty() ? b : "F32";
}

void fill_weights(const StoredTensors& stored, const LoadHfOptions& options, Weights& weights) {
  std::vector<Job> jobs;
  for (size_t i = 0; i < stored.specs.size(); i++) {
    const int64_t numel = stored.specs[i].numel();
    for (int64_t first = 0; first < numel; first += block) jobs.push_back({i, first, std::min(block, numel - first)});
  }
  std::mutex mutex;
  std::set<std::string> nonfinite;
  std::optional<std::pair<size_t, Error>> failed;  // of the first job that failed, whoever ran it
  const auto run = [&](const Job& job) {
    const Tensor& t = weights.tensors()[job.tensor];
    const std::string dtype = file_dtype_of(t.dtype());
    std::optional<int64_t> bad;
    if (t.device() == Device::cpu) {
      auto* to = static_cast<uint8_t*>(t.data()) + static_cast<size_t>(job.first) * size_of(t.dtype());
      bad = stored.read(job.tensor, job.first, job.count, dtype, to);
    } else {
      std::vector<uint8_t> staged(static_cast<size_t>(job.count) * size_of(t.dtype()));
      bad = stored.read(job.tensor, job.first, job.count, dtype, staged.data());
      write_numbers(t, job.first, job.count, staged.data());
    }
    if (!bad || options.allow_nonfinite) return;
    const std::lock_guard lock(mutex);
    nonfinite.insert(stored.place(job.tensor, *bad));
  };
  auto guarded = [&](int64_t i) {
    try {
      run(jobs[static_cast<size_t>(i)]);
    } catch (const Error& e) {
      const std::lock_guard lock(mutex);
      if (!failed || failed->first > static_cast<size_t>(i)) failed.emplace(static_cast<size_t>(i), e);
    }
  };
  if (options.threads != nullptr) {
    options.threads->parallel(static_cast<int64_t>(jobs.size()), guarded);
  } else {
    for (const Job& job : jobs) run(job);
  }
  if (failed) throw Error(failed->second);
  if (!nonfinite.empty()) refuse_nonfinite(stored.directory, {nonfinite.begin(), nonfinite.end()});
}

void read_finite(const StoredTensors& stored, size_t tensor, int64_t first, int64_t count, const std::string& dtype,
                 void* to) {
  if (const auto bad = stored.read(tensor, first, count, dtype, to)) {
    refuse_nonfinite(stored.directory, {stored.place(tensor, *bad)});
  }
}

std::string file_identity(const std::string& path) {
  std::error_code code;
  const auto size = std::filesystem::file_size(path, code);
  const auto time = std::filesystem::last_write_time(path, code).time_since_epoch().count();
  return fmt::format("{} {} {}\n", std::filesystem::weakly_canonical(path, code).string(), size, time);
}

void emit_stored(const StoredTensors& stored, size_t tensor, int64_t first, int64_t count, const std::string& dtype,
                 const ByteSink& sink) {
  const auto width = static_cast<size_t>(bits_of_file_dtype(dtype) / 8);
  std::vector<uint8_t> piece(static_cast<size_t>(std::min(block, count)) * width);
  for (int64_t done = 0; done < count; done += block) {
    const int64_t n = std::min(block, count - done);
    read_finite(stored, tensor, first + done, n, dtype, piece.data());
    sink(piece.data(), static_cast<size_t>(n) * width);
  }
}

}  // namespace furlong
