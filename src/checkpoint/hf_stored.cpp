// A Hugging Face folder's tensors, matched with the registry.
#include <algorithm>
#include <span>
#include <unordered_set>

#include "base/error.h"
#include "base/log.h"
#include "checkpoint/hf_names.h"
#include "checkpoint/stored.h"
#include "checkpoint/values.h"

namespace furlong {
namespace {

// What is wrong with a checkpoint, one list per kind, to be told at once.
struct Problems {
  std::vector<std::string> missing, unexpected, mismatched, unreadable;
  bool any() const { return !(missing.empty() && unexpected.empty() && mismatched.empty() && unreadable.empty()); }
};

// A part of a registry tensor and the file's tensor that holds it, from its element `at` on.
struct Part {
  int64_t offset = 0, numel = 0, at = 0;
  const TensorEntry* entry = nullptr;
  // `count` numbers from `first` of the registry tensor on, which are in this part.
  std::span<const uint8_t> bytes(int64_t first, int64_t count) const {
    const auto size = static_cast<size_t>(bits_of_file_dtype(entry->dtype) / 8);
    return entry->bytes.subspan(static_cast<size_t>(at + first - offset) * size, static_cast<size_t>(count) * size);
  }
};

std::string shape_text(const std::vector<int64_t>& shape) { return fmt::format("[{}]", fmt::join(shape, ",")); }

class Matcher {
 public:
  Matcher(const SafetensorsDirectory& source, const ModelConfig& config)
      : source_(source), has_mtp_(config.mtp_num_layers > 0), specs_(tensor_registry(config)) {
    refuse_quantised();
    refuse_absent_mtp();
    layout_ = detect_layout(specs_, has());
  }

  // Matches every tensor of the registry with the files; throws with the list of all that do not match.
  std::vector<std::vector<Part>> match() {
    std::vector<std::vector<Part>> parts;
    for (const auto& spec : specs_) parts.push_back(match_tensor(spec));
    find_unexpected();
    if (problems_.any()) report();
    return parts;
  }

  const std::vector<TensorSpec>& specs() const { return specs_; }

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

  std::vector<Part> match_tensor(const TensorSpec& spec) {
    std::vector<Part> parts;
    const Stored stored = stored_as(spec, layout_, has());
    for (const auto& piece : pieces_of(spec, stored)) {
      const std::string name = layout_.translate(piece.name);
      used_.insert(name);
      const TensorEntry* entry = source_.find(name);
      if (entry == nullptr) {
        const bool fused = !spec.per_expert.empty() && stored == Stored::whole;
        problems_.missing.push_back(name + (fused ? " (or its experts one by one)" : ""));
      } else if (entry->shape != piece.shape) {
        problems_.mismatched.push_back(fmt::format("{}: {}, but config.json needs {}", with_file(name),
                                                   entry->describe(), shape_text(piece.shape)));
      } else if (!is_readable_dtype(entry->dtype)) {
        problems_.unreadable.push_back(fmt::format("{}: {}", with_file(name), entry->describe()));
      } else {
        parts.push_back({piece.offset, piece.numel, piece.at, entry});
      }
    }
    return parts;
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
  std::vector<TensorSpec> specs_;
  HfLayout layout_;
  std::unordered_set<std::string> used_;
  Problems problems_;
};

constexpr size_t worth_forgetting = 1 << 16;  // bytes; what is smaller has neighbours that are about to be read

// The part that an element is in; parts lie one after the other.
std::vector<Part>::const_iterator part_at(const std::vector<Part>& parts, int64_t element) {
  return std::upper_bound(parts.begin(), parts.end(), element, [](int64_t e, const Part& p) { return e < p.offset; }) -
         1;
}

}  // namespace

StoredTensors stored_hf(const std::string& directory, const ModelConfig& config, Reading reading) {
  const auto source = std::make_shared<SafetensorsDirectory>(directory, reading);
  Matcher matcher(*source, config);
  const auto parts = std::make_shared<std::vector<std::vector<Part>>>(matcher.match());
  StoredTensors stored{
      .directory = directory, .specs = matcher.specs(), .dtypes = {}, .read = {}, .identity = {}, .place = {}};
  for (const auto& list : *parts) {
    std::string dtype;
    for (const Part& part : list) dtype = wider_dtype(dtype, part.entry->dtype);
    stored.dtypes.push_back(dtype);
  }
  for (const auto& file : source->files()) stored.identity += file_identity(file.path());
  stored.read = [source, parts](size_t tensor, int64_t first, int64_t count, const std::string& dtype,
                                void* to) -> std::optional<int64_t> {
    const auto& list = (*parts)[tensor];
    const auto width = static_cast<int64_t>(bits_of_file_dtype(dtype) / 8);
    std::optional<int64_t> bad;
    for (auto part = part_at(list, first); count > 0; ++part) {
      const int64_t n = std::min(count, part->offset + part->numel - first);
      const auto bytes = part->bytes(first, n);
      if (!transfer_values(part->entry->dtype, bytes.data(), n, dtype, to) && !bad) bad = part->offset;
      if (bytes.size() >= worth_forgetting) forget_pages(bytes);
      to = static_cast<uint8_t*>(to) + n * width;
      first += n;
      count -= n;
    }
    return bad;
  };
  if (reading == Reading::parts) {
    stored.soon = [parts](size_t tensor, int64_t first, int64_t count) {
      for (const Part& part : (*parts)[tensor]) {
        const int64_t begin = std::max(first, part.offset), end = std::min(first + count, part.offset + part.numel);
        if (begin < end) fetch_soon(part.bytes(begin, end - begin));
      }
    };
  }
  stored.place = [source, parts](size_t tensor, int64_t element) {
    const std::string& name = part_at((*parts)[tensor], element)->entry->name;
    return fmt::format("{} in {}", name, source->file_of(name));
  };
  return stored;
}

}  // namespace furlong
