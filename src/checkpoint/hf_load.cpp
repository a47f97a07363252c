#include <algorithm>
#include <optional>
#include <set>
#include <span>
#include <unordered_set>

#include "base/error.h"
#include "base/log.h"
#include "checkpoint/hf.h"
#include "checkpoint/hf_names.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/shards.h"
#include "checkpoint/values.h"
#include "parallel/agree.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

// A tensor, or a part of one, that a file has: numbers `window` of the whole tensor.
struct Part {
  const TensorEntry* entry;
  Range window;
};

// Numbers that lie together in this rank's tensor, from its number `first`, and where a file has them.
struct Job {
  const Part* part;
  std::span<const Run> runs;
};

// What is wrong with a checkpoint, one list per kind, to be told at once.
struct Problems {
  std::vector<std::string> missing, unexpected, mismatched, unreadable;
  bool any() const { return !(missing.empty() && unexpected.empty() && mismatched.empty() && unreadable.empty()); }
};

void append_list(std::string& text, const char* title, const std::vector<std::string>& lines) {
  constexpr size_t shown = 20;
  if (lines.empty()) return;
  text += fmt::format("\n  {} ({}):", title, lines.size());
  for (size_t i = 0; i < std::min(lines.size(), shown); i++) text += "\n    " + lines[i];
  if (lines.size() > shown) text += fmt::format("\n    ... and {} more", lines.size() - shown);
}

std::string shape_text(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ",")); }

class Loader {
 public:
  Loader(const SafetensorsDirectory& source, const ModelConfig& config, Weights& weights)
      : source_(source), has_mtp_(config.mtp_num_layers > 0), in_part_(weights.rank().ranks() > 1), weights_(weights) {
    refuse_quantised();
    refuse_absent_mtp();
    layout_ = detect_layout(weights.specs(), has());
  }

  // Matches every tensor of the registry with the files; throws with the list of all that do not match.
  void match() {
    for (const auto& spec : weights_.specs()) match_tensor(spec);
    find_unexpected();
    if (problems_.any()) report();
  }

  // Reads this rank's numbers, a tensor at a time. Returns the tensors with NaN or infinity among them.
  std::set<std::string> copy(ThreadPool* threads) {
    std::set<std::string> bad;
    for (size_t i = 0; i < parts_.size(); i++) {
      if (weights_.tensors()[i].defined()) copy_tensor(i, threads, bad);
    }
    return bad;
  }

  // Throws with the list of tensors that are not finite, those of all ranks.
  void report_nonfinite(const std::set<std::string>& bad) const {
    if (bad.empty()) return;
    std::string text =
        fmt::format("{}: NaN or infinity in the weights; the checkpoint is damaged or its training had diverged",
                    source_.directory());
    append_list(text, "tensors", {bad.begin(), bad.end()});
    throw Error(Exit::input, text);
  }

 private:
  HasTensor has() const {
    return [this](const std::string& name) { return source_.find(name) != nullptr; };
  }

  std::string with_file(const std::string& name) const { return fmt::format("{} in {}", name, source_.file_of(name)); }

  template <class F>
  void for_each_name(F&& f) const {
    for (const auto& file : source_.files()) {
      for (const auto& entry : file.entries()) f(entry);
    }
  }

  void refuse_quantised() const {
    for_each_name([&](const TensorEntry& entry) {
      if (entry.name.ends_with("weight_scale_inv") || entry.name.ends_with("weight_scale") ||
          entry.name.ends_with("qweight")) {
        fail(Exit::input,
             "{}: the checkpoint is quantised ({}); quantised weights are not read. Use the bfloat16 checkpoint of the "
             "model.",
             source_.directory(), with_file(entry.name));
      }
    });
  }

  void refuse_absent_mtp() const {
    bool found = !has_mtp_;
    for_each_name([&](const TensorEntry& entry) { found |= entry.name.starts_with("mtp."); });
    if (!found) {
      fail(Exit::input,
           "{0}: config.json says mtp_num_hidden_layers = 1, but the files hold no mtp.* tensor. Fetch the files that "
           "hold "
           "them, or set mtp_num_hidden_layers to 0 in {0}/config.json to go without the MTP head.",
           source_.directory());
    }
  }

  void match_tensor(const TensorSpec& spec) {
    auto& parts = parts_.emplace_back();
    const bool per_expert = is_per_expert(spec, layout_, has());
    for (const auto& piece : pieces_of(spec, per_expert)) {
      const std::string name = layout_.translate(piece.name);
      used_.insert(name);
      const TensorEntry* entry = source_.find(name);
      if (entry == nullptr) {
        problems_.missing.push_back(name +
                                    (spec.per_expert.empty() || per_expert ? "" : " (or its experts one by one)"));
      } else if (entry->shape != piece.shape) {
        problems_.mismatched.push_back(fmt::format("{}: {}, but config.json needs {}", with_file(name),
                                                   entry->describe(), shape_text(piece.shape)));
      } else if (!is_readable_dtype(entry->dtype)) {
        problems_.unreadable.push_back(fmt::format("{}: {}", with_file(name), entry->describe()));
      } else {
        parts.push_back({entry, {piece.offset, piece.offset + piece.numel}});
      }
    }
  }

  void copy_tensor(size_t i, ThreadPool* threads, std::set<std::string>& bad) {
    const Tensor& tensor = weights_.tensors()[i];
    const Shard shard = shard_of(weights_.specs()[i]);
    std::vector<Run> runs;
    std::vector<std::pair<const Part*, size_t>> ends;  // runs per part
    for (const Part& part : parts_[i]) {
      for_each_run_in(shard, part.window, [&](const Run& run) { cut(run, runs); });
      ends.emplace_back(&part, runs.size());
    }
    std::vector<Job> jobs;
    size_t begin = 0;
    for (const auto& [part, end] : ends) {
      while (begin < end) {
        size_t stop = begin;
        for (int64_t count = 0; stop < end && count < block; stop++) count += runs[stop].count;
        jobs.push_back({part, std::span(runs).subspan(begin, stop - begin)});
        begin = stop;
      }
    }
    std::vector<uint8_t> finite(jobs.size(), 1);
    auto run = [&](int64_t j) { finite[static_cast<size_t>(j)] = read(jobs[static_cast<size_t>(j)], tensor); };
    if (threads != nullptr) {
      threads->parallel(std::ssize(jobs), run);
    } else {
      for (int64_t j = 0; j < std::ssize(jobs); j++) run(j);
    }
    for (size_t j = 0; j < jobs.size(); j++) {
      if (!finite[j]) bad.insert(with_file(jobs[j].part->entry->name));
    }
  }

  static void cut(const Run& run, std::vector<Run>& runs) {
    for (int64_t at = 0; at < run.count; at += block) {
      runs.push_back({run.first + at, run.full_first + at, std::min(block, run.count - at)});
    }
  }

  // A file's bytes of a run.
  static std::span<const uint8_t> bytes_of(const Job& job, const Run& run) {
    const size_t width = job.part->entry->dtype == "F32" ? 4 : 2;
    return job.part->entry->bytes.subspan(static_cast<size_t>(run.full_first - job.part->window.begin) * width,
                                          static_cast<size_t>(run.count) * width);
  }

  // Has the file's bytes of a job fetched, those of short gaps with them.
  static void fetch(const Job& job) {
    constexpr std::ptrdiff_t gap = 1 << 16;
    std::span<const uint8_t> wanted = bytes_of(job, job.runs.front());
    for (const Run& run : job.runs) {
      const std::span<const uint8_t> bytes = bytes_of(job, run);
      if (bytes.data() - (wanted.data() + wanted.size()) > gap) {
        fetch_soon(wanted);
        wanted = bytes;
      }
      wanted = {wanted.data(), bytes.data() + bytes.size()};
    }
    fetch_soon(wanted);
  }

  // Whether all that was read is finite.
  bool read(const Job& job, const Tensor& tensor) const {
    if (in_part_) fetch(job);
    const size_t to_width = size_of(tensor.dtype());
    const int64_t first = job.runs.front().first, count = job.runs.back().first + job.runs.back().count - first;
    const bool direct = tensor.device() == Device::cpu;
    std::vector<uint8_t> staged(direct ? 0 : static_cast<size_t>(count) * to_width);
    auto* to = direct ? static_cast<uint8_t*>(tensor.data()) + static_cast<size_t>(first) * to_width : staged.data();
    bool finite = true;
    for (const Run& run : job.runs) {
      finite = read_values(job.part->entry->dtype, bytes_of(job, run).data(), run.count, tensor.dtype(),
                           to + static_cast<size_t>(run.first - first) * to_width) &&
               finite;
    }
    if (!direct) write_numbers(tensor, first, count, staged.data());
    return finite;
  }

  void find_unexpected() {
    size_t other = 0;
    std::string example;
    for_each_name([&](const TensorEntry& entry) {
      if (used_.contains(entry.name)) return;
      if (layout_.owns(entry.name, has_mtp_)) {
        problems_.unexpected.push_back(with_file(entry.name));
      } else if (other++ == 0) {
        example = entry.name;
      }
    });
    if (other > 0 && !problems_.any()) {
      log::debug("{}: {} tensors of other parts are not read ({}{})", source_.directory(), other, example,
                 other > 1 ? ", ..." : "");
    }
  }

  [[noreturn]] void report() const {
    std::string text = fmt::format("{}: the checkpoint's tensors do not match its config.json", source_.directory());
    append_list(text, "missing", problems_.missing);
    append_list(text, "unexpected", problems_.unexpected);
    append_list(text, "of another shape", problems_.mismatched);
    append_list(text, "of a dtype other than F32, BF16 and F16", problems_.unreadable);
    text += "\n  Check that config.json and all files come from one checkpoint and that the download is complete.";
    throw Error(Exit::input, text);
  }

  static constexpr int64_t block = 1 << 20;  // numbers of a job

  const SafetensorsDirectory& source_;
  bool has_mtp_;
  bool in_part_;  // other ranks read much of the files, perhaps from the same slow store
  Weights& weights_;
  HfLayout layout_;
  std::unordered_set<std::string> used_;
  std::vector<std::vector<Part>> parts_;  // by tensor of the registry
  Problems problems_;
};

}  // namespace

Weights load_hf(const std::string& directory, const ModelConfig& config, DType dtype, const LoadHfOptions& options) {
  CHECK(dtype == DType::f32 || dtype == DType::bf16, "weights of {}", name_of(dtype));
  Group& ranks = options.mesh.world();
  Weights weights;
  std::optional<SafetensorsDirectory> source;
  std::optional<Loader> loader;
  std::set<std::string> bad;
  all_or_none(ranks, [&] {
    source.emplace(directory, ranks.size() > 1 ? Reading::parts : Reading::most);
    weights = Weights(config, dtype, Placement{.device = options.device, .rank = options.mesh.place()});
    loader.emplace(*source, config, weights);
    loader->match();
    bad = loader->copy(options.threads);
  });
  if (options.allow_nonfinite) return weights;
  for (const std::string& of_rank : ranks.gather_bytes(fmt::format("{}", fmt::join(bad, "\n")))) {
    for (size_t begin = 0, end; begin < of_rank.size(); begin = end + 1) {
      end = std::min(of_rank.find('\n', begin), of_rank.size());
      bad.insert(of_rank.substr(begin, end - begin));
    }
  }
  loader->report_nonfinite(bad);
  return weights;
}

}  // namespace furlong
