#include <algorithm>
#include <atomic>
#include <set>
#include <unordered_set>

#include "base/error.h"
#include "base/log.h"
#include "checkpoint/hf.h"
#include "checkpoint/hf_names.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/values.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

// One contiguous copy from a file to a tensor.
struct Job {
  const TensorEntry* entry;
  int64_t first, count;  // elements of the entry
  Tensor tensor;
  int64_t at;  // element of the tensor
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
      : source_(source), has_mtp_(config.mtp_num_layers > 0), weights_(weights) {
    refuse_quantised();
    refuse_absent_mtp();
    layout_ = detect_layout(weights.specs(), has());
  }

  // Matches every tensor of the registry with the files; throws with the list of all that do not match.
  void match() {
    for (size_t i = 0; i < weights_.specs().size(); i++) match_tensor(weights_.specs()[i], weights_.tensors()[i]);
    find_unexpected();
    if (problems_.any()) report();
  }

  void copy(const LoadHfOptions& options) {
    std::vector<uint8_t> finite(jobs_.size(), 1);
    auto run = [&](int64_t i) {
      const Job& job = jobs_[static_cast<size_t>(i)];
      const size_t width = job.entry->dtype == "F32" ? 4 : 2;
      const uint8_t* from = job.entry->bytes.data() + static_cast<size_t>(job.first) * width;
      if (job.tensor.device() == Device::cpu) {
        auto* to = static_cast<uint8_t*>(job.tensor.data()) + static_cast<size_t>(job.at) * size_of(job.tensor.dtype());
        finite[static_cast<size_t>(i)] = read_values(job.entry->dtype, from, job.count, job.tensor.dtype(), to);
      } else {
        std::vector<uint8_t> staged(static_cast<size_t>(job.count) * size_of(job.tensor.dtype()));
        finite[static_cast<size_t>(i)] =
            read_values(job.entry->dtype, from, job.count, job.tensor.dtype(), staged.data());
        write_numbers(job.tensor, job.at, job.count, staged.data());
      }
    };
    if (options.threads != nullptr) {
      options.threads->parallel(static_cast<int64_t>(jobs_.size()), run);
    } else {
      for (size_t i = 0; i < jobs_.size(); i++) run(static_cast<int64_t>(i));
    }
    if (options.allow_nonfinite) return;
    std::set<std::string> bad;
    for (size_t i = 0; i < jobs_.size(); i++) {
      if (!finite[i]) bad.insert(with_file(jobs_[i].entry->name));
    }
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

  void match_tensor(const TensorSpec& spec, const Tensor& tensor) {
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
        add_jobs(*entry, piece, tensor);
      }
    }
  }

  void add_jobs(const TensorEntry& entry, const Piece& piece, const Tensor& tensor) {
    constexpr int64_t block = 1 << 20;
    for (int64_t i = 0; i < piece.numel; i += block) {
      jobs_.push_back({&entry, i, std::min(block, piece.numel - i), tensor, piece.offset + i});
    }
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

  const SafetensorsDirectory& source_;
  bool has_mtp_;
  Weights& weights_;
  HfLayout layout_;
  std::unordered_set<std::string> used_;
  std::vector<Job> jobs_;
  Problems problems_;
};

}  // namespace

Weights load_hf(const std::string& directory, const ModelConfig& config, DType dtype, const LoadHfOptions& options) {
  CHECK(dtype == DType::f32 || dtype == DType::bf16, "weights of {}", name_of(dtype));
  const SafetensorsDirectory source(directory);
  Weights weights(config, dtype, options.device);
  Loader loader(source, config, weights);
  loader.match();
  loader.copy(options);
  return weights;
}

}  // namespace furlong
