// The registry's tensors in a torch_dist folder.
#include <algorithm>
#include <unordered_set>

#include "base/check.h"
#include "base/error.h"
#include "base/log.h"
#include "base/text.h"
#include "checkpoint/dist_folder.h"
#include "checkpoint/dist_names.h"
#include "checkpoint/torch_dist.h"
#include "checkpoint/values.h"

namespace furlong {
namespace {

// A run of numbers of a registry tensor and where it lies.
struct Stretch {
  const DcpTensor* tensor;
  DistRun at;
};

std::string shape_text(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ",")); }

std::string describe(const DcpTensor& t) {
  return fmt::format("{}: {}{}", printable(t.key, 200), printable(t.dtype), shape_text(t.shape));
}

class Resolver {
 public:
  Resolver(const TorchDistFolder& folder, const ModelConfig& config)
      : folder_(folder), config_(config), specs_(tensor_registry(config)) {}

  std::vector<std::vector<Stretch>> resolve() {
    refuse_native_delta_net();
    refuse_absent_mtp();
    std::vector<std::vector<Stretch>> runs;
    for (const auto& spec : specs_) runs.push_back(resolve_tensor(spec));
    check_expert_bias();
    find_unexpected();
    if (!(missing_.empty() && unexpected_.empty() && mismatched_.empty() && unreadable_.empty())) report();
    return runs;
  }

  const std::vector<TensorSpec>& specs() const { return specs_; }

 private:
  const DcpMetadata& index() const { return folder_.index(); }

  void refuse_native_delta_net() const {
    for (const auto& t : index().tensors) {
      if (is_state_key(t.key) || !t.key.ends_with("self_attention.in_proj.weight")) continue;
      fail(Exit::input,
           "{}: {} belongs to the gated DeltaNet of Megatron core, which joins and orders its projections otherwise; "
           "only miles' own layout (linear_attn.in_proj_qkv, in_proj_z, in_proj_b, in_proj_a) is read. Export such a "
           "checkpoint to the Hugging Face layout with the program that wrote it.",
           folder_.directory(), printable(t.key, 200));
    }
  }

  void refuse_absent_mtp() const {
    const bool found = std::any_of(index().tensors.begin(), index().tensors.end(),
                                   [](const auto& t) { return t.key.starts_with("mtp.") && !is_state_key(t.key); });
    if (found || config_.mtp_num_layers == 0) return;
    fail(Exit::input,
         "{}: it holds no MTP layer (mtp.*), but config.json has mtp_num_hidden_layers = 1; it was converted without "
         "--mtp-num-layers 1. Convert it anew; to convert it to the Hugging Face layout with the MTP head of "
         "--hf-checkpoint as it is there, give --mtp-num-layers 0.",
         folder_.directory());
  }

  std::vector<Stretch> resolve_tensor(const TensorSpec& spec) {
    const std::vector<DistPlaces> ways = dist_places(spec, config_);
    const auto there = [&](const DistPlace& place) { return index().find(place.key) != nullptr; };
    const auto way =
        std::find_if(ways.begin(), ways.end(), [&](const auto& w) { return std::any_of(w.begin(), w.end(), there); });
    if (way == ways.end()) {
      missing_.push_back(fmt::format("{} ({})", ways[0][0].key, spec.name));
      return {};
    }
    std::vector<Stretch> runs;
    for (const auto& place : *way) {
      used_.insert(place.key);
      const DcpTensor* t = index().find(place.key);
      if (t == nullptr) {
        missing_.push_back(fmt::format("{} ({})", place.key, spec.name));
      } else if (!fits(*t, place)) {
        mismatched_.push_back(fmt::format("{}, but config.json needs {}{}", describe(*t),
                                          place.padded ? "at least " : "", shape_text(place.shape)));
      } else if (!is_readable_dtype(t->dtype)) {
        unreadable_.push_back(describe(*t));
      } else {
        for (const auto& run : place.runs) runs.push_back({t, run});
      }
    }
    std::sort(runs.begin(), runs.end(), [](const auto& a, const auto& b) { return a.at.ours < b.at.ours; });
    return runs;
  }

  static bool fits(const DcpTensor& t, const DistPlace& place) {
    if (!place.padded || t.shape.size() != place.shape.size()) return t.shape == place.shape;
    return t.shape[0] >= place.shape[0] && std::equal(t.shape.begin() + 1, t.shape.end(), place.shape.begin() + 1);
  }

  // The model here has none; one of zeros changes nothing.
  void check_expert_bias() {
    for (const auto& t : index().tensors) {
      if (is_state_key(t.key) || !t.key.ends_with("mlp.router.expert_bias")) continue;
      used_.insert(t.key);
      if (!is_readable_dtype(t.dtype)) {
        unreadable_.push_back(describe(t));
        continue;
      }
      int64_t numel = 1;
      for (const int64_t d : t.shape) numel *= d;
      if (numel > int64_t{config_.num_experts} * std::max<int64_t>(config_.num_layers, 1)) {
        mismatched_.push_back(describe(t) + ", but config.json has fewer experts");
        continue;
      }
      const auto width = static_cast<size_t>(bits_of_file_dtype(t.dtype) / 8);
      std::vector<uint8_t> bytes(static_cast<size_t>(numel) * width);
      folder_.read(t, 0, numel, bytes.data());
      std::vector<float> values(static_cast<size_t>(numel));
      transfer_values(t.dtype, bytes.data(), numel, "F32", values.data());
      if (std::all_of(values.begin(), values.end(), [](float x) { return x == 0; })) continue;
      fail(Exit::input, "{}: {} is not zero; Qwen3.5 routes without such a bias, and it would be lost",
           folder_.directory(), printable(t.key, 200));
    }
  }

  void find_unexpected() {
    size_t others = 0;
    std::string example;
    for (const auto& t : index().tensors) {
      if (used_.contains(t.key) || is_state_key(t.key)) continue;
      if (t.key.starts_with("mtp.") && config_.mtp_num_layers == 0) continue;
      const bool ours = t.key.starts_with("decoder.") || t.key.starts_with("embedding.") ||
                        t.key.starts_with("output_layer.") || t.key.starts_with("mtp.");
      if (ours) {
        unexpected_.push_back(describe(t));
      } else if (others++ == 0) {
        example = printable(t.key, 200);
      }
    }
    if (others > 0) {
      log::warn("{}: {} tensors of other parts are not read ({}{})", folder_.directory(), others, example,
                others > 1 ? ", ..." : "");
    }
  }

  [[noreturn]] void report() const {
    std::string text = fmt::format("{}: the checkpoint's tensors do not match config.json", folder_.directory());
    append_list(text, "missing", missing_);
    append_list(text, "unexpected", unexpected_);
    append_list(text, "of another shape", mismatched_);
    append_list(text, "of a dtype other than F32, BF16 and F16", unreadable_);
    text += "\n  Check that --hf-checkpoint is the model that the checkpoint was made from.";
    throw Error(Exit::input, text);
  }

  const TorchDistFolder& folder_;
  const ModelConfig& config_;
  std::vector<TensorSpec> specs_;
  std::unordered_set<std::string> used_;
  std::vector<std::string> missing_, unexpected_, mismatched_, unreadable_;
};

}  // namespace

StoredTensors stored_torch_dist(const std::string& path, const ModelConfig& config) {
  const auto folder = std::make_shared<TorchDistFolder>(path);
  Resolver resolver(*folder, config);
  const auto runs = std::make_shared<std::vector<std::vector<Stretch>>>(resolver.resolve());
  StoredTensors stored{.directory = folder->directory(),
                       .specs = resolver.specs(),
                       .dtypes = {},
                       .read = {},
                       .soon = {},
                       .identity = {},
                       .place = {}};
  for (const auto& list : *runs) {
    std::string dtype;
    for (const Stretch& run : list) dtype = wider_dtype(dtype, run.tensor->dtype);
    stored.dtypes.push_back(dtype);
  }
  for (const auto& name : folder->index().files) stored.identity += file_identity(folder->directory() + "/" + name);
  const auto run_at = [runs](size_t tensor, int64_t element) {
    const auto& list = (*runs)[tensor];
    return std::upper_bound(list.begin(), list.end(), element,
                            [](int64_t e, const Stretch& run) { return e < run.at.ours; }) -
           1;
  };
  stored.read = [folder, runs, run_at](size_t tensor, int64_t first, int64_t count, const std::string& dtype,
                                       void* to) -> std::optional<int64_t> {
    const auto width = static_cast<int64_t>(bits_of_file_dtype(dtype) / 8);
    std::optional<int64_t> bad;
    std::vector<uint8_t> bytes;
    for (auto run = run_at(tensor, first); count > 0; ++run) {
      CHECK(run != (*runs)[tensor].end() && first >= run->at.ours, "element {}", first);
      const int64_t skipped = first - run->at.ours, n = std::min(count, run->at.count - skipped);
      const std::string& own = run->tensor->dtype;
      bytes.resize(static_cast<size_t>(n * bits_of_file_dtype(own) / 8));
      folder->read(*run->tensor, run->at.theirs + skipped, n, bytes.data());
      if (!transfer_values(own, bytes.data(), n, dtype, to) && !bad) bad = run->at.ours;
      to = static_cast<uint8_t*>(to) + n * width;
      first += n;
      count -= n;
    }
    return bad;
  };
  stored.place = [folder, run_at](size_t tensor, int64_t element) {
    return fmt::format("{} in {}", printable(run_at(tensor, element)->tensor->key, 200), folder->directory());
  };
  return stored;
}

Weights load_torch_dist(const std::string& path, const ModelConfig& config, DType dtype, const LoadHfOptions& options) {
  return load_stored([&] { return stored_torch_dist(path, with_language_head(config)); }, config, dtype, options);
}

}  // namespace furlong
