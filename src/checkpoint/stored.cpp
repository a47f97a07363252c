#include "checkpoint/stored.h"

#include <algorithm>
#include <filesystem>
#include <mutex>
#include <set>
#include <span>

#include "base/error.h"
#include "checkpoint/shards.h"
#include "checkpoint/values.h"
#include "parallel/agree.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

constexpr int64_t block = 1 << 20;  // elements

// Numbers that lie together in a rank's tensor, and where the whole tensor has them.
using Job = std::span<const Run>;

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

namespace {

class Filler {
 public:
  Filler(const StoredTensors& stored, Weights& weights, ThreadPool* threads)
      : stored_(stored), weights_(weights), threads_(threads) {}

  // A tensor at a time. Returns the places of NaN and infinity. Throws what a read throws.
  std::set<std::string> run() {
    for (size_t i = 0; i < stored_.specs.size(); i++) {
      if (weights_.tensors()[i].defined()) fill(i);
    }
    return std::move(nonfinite_);
  }

 private:
  void fill(size_t tensor) {
    std::vector<Run> runs;
    for (const Run& run : runs_of(shard_of(weights_.specs()[tensor]))) {
      for (int64_t at = 0; at < run.count; at += block) {
        runs.push_back({run.first + at, run.full_first + at, std::min(block, run.count - at)});
      }
    }
    std::vector<Job> jobs;
    for (size_t begin = 0, end = 0; begin < runs.size(); begin = end) {
      for (int64_t count = 0; end < runs.size() && count < block; end++) count += runs[end].count;
      jobs.push_back(std::span(runs).subspan(begin, end - begin));
    }
    std::optional<std::pair<int64_t, Error>> failed;  // of the first job that failed, whoever ran it
    auto guarded = [&](int64_t i) {
      try {
        read(tensor, jobs[static_cast<size_t>(i)]);
      } catch (const Error& e) {
        const std::lock_guard lock(mutex_);
        if (!failed || failed->first > i) failed.emplace(i, e);
      }
    };
    if (threads_ != nullptr) {
      threads_->parallel(std::ssize(jobs), guarded);
    } else {
      for (int64_t i = 0; i < std::ssize(jobs); i++) guarded(i);
    }
    if (failed) throw Error(failed->second);
  }

  // Runs with short gaps between them are fetched as one.
  void fetch(size_t tensor, Job job) const {
    constexpr int64_t gap = 1 << 15;
    int64_t first = job.front().full_first, end = first;
    for (const Run& run : job) {
      if (run.full_first - end > gap) {
        stored_.soon(tensor, first, end - first);
        first = run.full_first;
      }
      end = run.full_first + run.count;
    }
    stored_.soon(tensor, first, end - first);
  }

  void read(size_t tensor, Job job) {
    if (stored_.soon) fetch(tensor, job);
    const Tensor& t = weights_.tensors()[tensor];
    const std::string dtype = file_dtype_of(t.dtype());
    const size_t width = size_of(t.dtype());
    const int64_t first = job.front().first, count = job.back().first + job.back().count - first;
    std::vector<uint8_t> staged(t.device() == Device::cpu ? 0 : static_cast<size_t>(count) * width);
    auto* to = staged.empty() ? static_cast<uint8_t*>(t.data()) + static_cast<size_t>(first) * width : staged.data();
    for (const Run& run : job) {
      const auto bad =
          stored_.read(tensor, run.full_first, run.count, dtype, to + static_cast<size_t>(run.first - first) * width);
      if (!bad) continue;
      const std::lock_guard lock(mutex_);
      nonfinite_.insert(stored_.place(tensor, *bad));
    }
    if (!staged.empty()) write_numbers(t, first, count, staged.data());
  }

  const StoredTensors& stored_;
  Weights& weights_;
  ThreadPool* threads_;
  std::mutex mutex_;
  std::set<std::string> nonfinite_;
};

}  // namespace

Weights load_stored(const std::function<StoredTensors()>& open, const ModelConfig& config, DType dtype,
                    const LoadHfOptions& options) {
  CHECK(dtype == DType::f32 || dtype == DType::bf16, "weights of {}", name_of(dtype));
  Group& ranks = options.mesh.world();
  Weights weights;
  StoredTensors stored;
  std::set<std::string> bad;
  all_or_none(ranks, [&] {
    stored = open();
    weights = Weights(config, dtype, Placement{.device = options.device, .rank = options.mesh.place()});
    bad = Filler(stored, weights, options.threads).run();
  });
  if (options.allow_nonfinite) return weights;
  for (const std::string& of_rank : ranks.gather_bytes(fmt::format("{}", fmt::join(bad, "\n")))) {
    for (size_t begin = 0, end = 0; begin < of_rank.size(); begin = end + 1) {
      end = std::min(of_rank.find('\n', begin), of_rank.size());
      bad.insert(of_rank.substr(begin, end - begin));
    }
  }
  if (!bad.empty()) refuse_nonfinite(stored.directory, {bad.begin(), bad.end()});
  return weights;
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
