#include "checkpoint/stored.h"

#include <algorithm>
#include <filesystem>
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

// Numbers that lie together in a tensor here.
struct Job {
  std::span<const Run> runs;
  int64_t first() const { return runs.front().first; }
  int64_t count() const { return runs.back().first + runs.back().count - first(); }
};

[[noreturn]] void refuse_nonfinite(const std::string& directory, const std::vector<std::string>& places) {
  std::string text = fmt::format(
      "{}: NaN or infinity in the weights; the checkpoint is damaged or its training had diverged", directory);
  append_list(text, "tensors", places);
  throw Error(Exit::input, text);
}

// A tensor's runs, none longer than a block, and jobs of about a block.
std::vector<Run> short_runs(const TensorSpec& spec) {
  std::vector<Run> runs;
  for (const Run& run : runs_of(shard_of(spec))) {
    for (int64_t at = 0; at < run.count; at += block) {
      runs.push_back({run.first + at, run.full_first + at, std::min(block, run.count - at)});
    }
  }
  return runs;
}

std::vector<Job> jobs_of(const std::vector<Run>& runs) {
  std::vector<Job> jobs;
  for (size_t begin = 0; begin < runs.size();) {
    size_t end = begin;
    for (int64_t count = 0; end < runs.size() && count < block; end++) count += runs[end].count;
    jobs.push_back({std::span(runs).subspan(begin, end - begin)});
    begin = end;
  }
  return jobs;
}

// Tells of what a job will read, short gaps included.
void announce(const StoredTensors& stored, size_t tensor, const Job& job) {
  constexpr int64_t gap = 1 << 15;
  Range wanted = {job.runs.front().full_first, job.runs.front().full_first};
  for (const Run& run : job.runs) {
    if (run.full_first - wanted.end > gap) {
      stored.soon(tensor, wanted.begin, wanted.size());
      wanted.begin = run.full_first;
    }
    wanted.end = run.full_first + run.count;
  }
  stored.soon(tensor, wanted.begin, wanted.size());
}

// Reads a job's numbers. Returns where a NaN or infinity was met: the first element of the part that it is in.
std::optional<int64_t> read_job(const StoredTensors& stored, size_t tensor, const Tensor& t, const Job& job) {
  if (stored.soon) announce(stored, tensor, job);
  const std::string dtype = file_dtype_of(t.dtype());
  const size_t width = size_of(t.dtype());
  const bool direct = t.device() == Device::cpu;
  std::vector<uint8_t> staged(direct ? 0 : static_cast<size_t>(job.count()) * width);
  auto* to = direct ? static_cast<uint8_t*>(t.data()) + static_cast<size_t>(job.first()) * width : staged.data();
  std::optional<int64_t> bad;
  for (const Run& run : job.runs) {
    const auto met = stored.read(tensor, run.full_first, run.count, dtype,
                                 to + static_cast<size_t>(run.first - job.first()) * width);
    if (!bad) bad = met;
  }
  if (!direct) write_numbers(t, job.first(), job.count(), staged.data());
  return bad;
}

// Fills a tensor; adds the places of NaN and infinity.
void fill_tensor(const StoredTensors& stored, size_t tensor, const Tensor& t, const TensorSpec& spec,
                 ThreadPool* threads, std::set<std::string>& nonfinite) {
  const std::vector<Run> runs = short_runs(spec);
  const std::vector<Job> jobs = jobs_of(runs);
  std::vector<std::optional<int64_t>> bad(jobs.size());
  std::vector<std::optional<Error>> failed(jobs.size());
  auto guarded = [&](int64_t i) {
    const auto j = static_cast<size_t>(i);
    try {
      bad[j] = read_job(stored, tensor, t, jobs[j]);
    } catch (const Error& e) {
      failed[j] = e;
    }
  };
  if (threads != nullptr) {
    threads->parallel(std::ssize(jobs), guarded);
  } else {
    for (int64_t i = 0; i < std::ssize(jobs); i++) guarded(i);
  }
  for (const auto& error : failed) {
    if (error) throw Error(*error);
  }
  for (const auto& element : bad) {
    if (element) nonfinite.insert(stored.place(tensor, *element));
  }
}

// The lines that all ranks have.
std::set<std::string> united(Group& ranks, const std::set<std::string>& own) {
  std::set<std::string> all;
  for (const std::string& text : ranks.gather_bytes(fmt::format("{}", fmt::join(own, "\n")))) {
    for (size_t begin = 0, end; begin < text.size(); begin = end + 1) {
      end = std::min(text.find('\n', begin), text.size());
      all.insert(text.substr(begin, end - begin));
    }
  }
  return all;
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

Weights load_stored(const std::function<StoredTensors()>& open, const ModelConfig& config, DType dtype,
                    const LoadHfOptions& options) {
  CHECK(dtype == DType::f32 || dtype == DType::bf16, "weights of {}", name_of(dtype));
  Group& ranks = options.mesh.world();
  Weights weights;
  std::string directory;
  std::set<std::string> nonfinite;
  all_or_none(ranks, [&] {
    const StoredTensors stored = open();
    directory = stored.directory;
    weights = Weights(config, dtype, Placement{.device = options.device, .rank = options.mesh.place()});
    size_t at = 0;
    for (size_t i = 0; i < weights.specs().size(); i++) {
      const TensorSpec& spec = weights.specs()[i];
      if (config.value_head && spec.part == head_part(config)) {
        at += config.tied_embeddings ? 0 : 1;  // past the head of the vocabulary, where there is one
        continue;
      }
      CHECK(at < stored.specs.size() && stored.specs[at].name == spec.name, "{}", spec.name);
      if (weights.tensors()[i].defined())
        fill_tensor(stored, at, weights.tensors()[i], spec, options.threads, nonfinite);
      at++;
    }
  });
  if (options.allow_nonfinite) return weights;
  const auto all = united(ranks, nonfinite);
  if (!all.empty()) refuse_nonfinite(directory, {all.begin(), all.end()});
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
