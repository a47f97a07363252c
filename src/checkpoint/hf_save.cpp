#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <optional>
#include <set>
#include <unordered_set>

#include "base/error.h"
#include "base/json.h"
#include "checkpoint/folder.h"
#include "checkpoint/gather.h"
#include "checkpoint/hf.h"
#include "checkpoint/hf_names.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/stored.h"
#include "checkpoint/values.h"
#include "parallel/agree.h"

namespace furlong {
namespace {

namespace fs = std::filesystem;

TensorSource carried(const TensorEntry& entry) {
  return {.name = entry.name,
          .dtype = entry.dtype,
          .shape = entry.shape,
          .emit =
              [bytes = entry.bytes](const ByteSink& sink) {
                constexpr size_t piece = 16 << 20;
                for (size_t i = 0; i < bytes.size(); i += piece) {
                  const auto part = bytes.subspan(i, std::min(piece, bytes.size() - i));
                  sink(part.data(), part.size());
                  forget_pages(part);
                }
              },
          .raw_bytes = entry.bytes.size()};
}

// The tensors of a model, wherever they are.
struct Numbers {
  std::vector<TensorSpec> specs;
  std::vector<std::string> dtypes;  // "": not there, to be taken from the source
  // Hands `count` numbers from element `first` on to the sink as a file dtype.
  std::function<void(size_t tensor, int64_t first, int64_t count, const std::string& dtype, const ByteSink&)> emit;
};

Numbers numbers_of(const std::vector<TensorSpec>& specs, WholeTensors& whole) {
  Numbers numbers{specs, {}, {}};
  for (size_t i = 0; i < specs.size(); i++) {
    numbers.dtypes.push_back(whole.defined(i) ? file_dtype_of(whole.dtype(i)) : "");
  }
  numbers.emit = [&whole](size_t i, int64_t first, int64_t count, const std::string& dtype, const ByteSink& sink) {
    whole.read(i, {first, first + count},
               [&](const void* data, int64_t n) { emit_values(whole.dtype(i), data, n, dtype, sink); });
  };
  return numbers;
}

// Without the MTP head where the stored checkpoint has none.
Numbers numbers_of(const StoredTensors& stored, const std::vector<TensorSpec>& specs) {
  Numbers numbers{specs, stored.dtypes, {}};
  CHECK(stored.specs.size() <= specs.size(), "{} tensors", stored.specs.size());
  for (size_t i = 0; i < stored.specs.size(); i++) CHECK(stored.specs[i].name == specs[i].name, "{}", specs[i].name);
  numbers.dtypes.resize(specs.size());
  numbers.emit = [&stored](size_t i, int64_t first, int64_t count, const std::string& dtype, const ByteSink& sink) {
    emit_stored(stored, i, first, count, dtype, sink);
  };
  return numbers;
}

// The list of tensors to write, each with the file it stood in, if any.
class SavePlan {
 public:
  SavePlan(const SaveHfOptions& options, const Numbers& numbers, const SafetensorsDirectory* source)
      : options_(options), numbers_(numbers), source_(source) {
    if (source_ != nullptr) layout_ = detect_layout(numbers.specs, has());
    for (size_t i = 0; i < numbers.specs.size(); i++) add(i);
    if (source_ == nullptr) return;
    for (const auto& file : source_->files()) {
      for (const auto& entry : file.entries()) {
        if (!replaced_.contains(entry.name)) tensors_.push_back(carried(entry));
      }
    }
  }

  uint64_t bytes() const {
    uint64_t total = 0;
    for (const auto& t : tensors_) total += t.bytes();
    return total;
  }

  // Files grouped as in the source when nothing about them changes, by size otherwise.
  std::vector<ShardPlan> shards() {
    const bool as_source =
        source_ != nullptr && options_.dtype == HfDtype::source && options_.experts == ExpertPacking::source &&
        std::all_of(tensors_.begin(), tensors_.end(), [&](const auto& t) { return source_->find(t.name) != nullptr; });
    if (!as_source) return plan_shards(std::move(tensors_), options_.shard_bytes);
    std::map<std::string, ShardPlan> by_file;
    for (auto& t : tensors_) {
      const std::string file = source_->file_of(t.name);
      by_file[file].tensors.push_back(std::move(t));
    }
    std::vector<ShardPlan> shards;
    for (auto& [file, plan] : by_file) shards.push_back({file, std::move(plan.tensors)});
    return shards;
  }

 private:
  HasTensor has() const {
    return [this](const std::string& name) { return source_->find(name) != nullptr; };
  }

  void add(size_t i) {
    const TensorSpec& spec = numbers_.specs[i];
    const bool there = !numbers_.dtypes[i].empty();
    const Stored was = source_ != nullptr ? stored_as(spec, layout_, has()) : Stored::whole;
    const TensorEntry* first = nullptr;  // the source's tensor, or its first expert
    if (source_ != nullptr) {
      const auto old = pieces_of(spec, was);
      first = source_->find(layout_.translate(old[0].name));
      if (!there) return require_all(old);
      for (const auto& piece : old) replaced_.insert(layout_.translate(piece.name));
    }
    CHECK(there, "{} is undefined and there is no source to take it from", spec.name);
    const std::string dtype = dtype_of(i, first);
    for (const auto& piece : pieces_of(spec, written_as(spec, was))) {
      const std::string name = layout_.translate(piece.name);
      check_shape(name, piece);
      if (was == Stored::joined) {
        add_joined(i, piece, name, dtype);
        continue;
      }
      tensors_.push_back(
          {.name = name, .dtype = spec.always_f32 ? dtype : dtype_of_piece(name, dtype), .shape = piece.shape});
      tensors_.back().emit = [this, i, offset = piece.offset, n = piece.numel, to = tensors_.back().dtype](
                                 const ByteSink& sink) { numbers_.emit(i, offset, n, to, sink); };
    }
  }

  Stored written_as(const TensorSpec& spec, Stored was) const {
    if (spec.per_expert.empty() || options_.experts == ExpertPacking::source) return was;
    return options_.experts == ExpertPacking::per_expert ? Stored::per_expert : Stored::whole;
  }

  // A piece of a tensor that others have pieces of as well.
  void add_joined(size_t i, const FilePiece& piece, const std::string& name, const std::string& dtype) {
    auto& pieces = joined_[name];
    if (pieces == nullptr) {
      pieces = std::make_shared<std::map<int64_t, std::pair<size_t, FilePiece>>>();
      tensors_.push_back({.name = name, .dtype = dtype, .shape = piece.shape});
      tensors_.back().emit = [this, pieces, dtype](const ByteSink& sink) {
        int64_t done = 0;
        for (const auto& [at, part] : *pieces) {
          CHECK(at == done, "{}: numbers from {} on come from nowhere", part.second.name, done);
          numbers_.emit(part.first, part.second.offset, part.second.numel, dtype, sink);
          done += part.second.numel;
        }
      };
    }
    pieces->emplace(piece.at, std::pair(i, piece));
  }

  std::string dtype_of(size_t i, const TensorEntry* first) const {
    const bool readable = first != nullptr && is_readable_dtype(first->dtype);
    if (numbers_.specs[i].always_f32) {
      const bool as_there = options_.dtype == HfDtype::source && readable && holds_exactly(i, first->dtype);
      return as_there ? first->dtype : "F32";
    }
    if (options_.dtype == HfDtype::f32) return "F32";
    if (options_.dtype == HfDtype::bf16) return "BF16";
    return readable ? first->dtype : numbers_.dtypes[i];
  }

  // Whether a tensor's numbers survive in this file dtype: those of a small one, which are read for it.
  bool holds_exactly(size_t i, const std::string& dtype) const {
    if (dtype == "F32") return true;
    const int64_t n = numbers_.specs[i].full_numel();
    std::vector<uint8_t> exact;
    numbers_.emit(i, 0, n, "F32", [&](const void* data, size_t bytes) {
      const auto* from = static_cast<const uint8_t*>(data);
      exact.insert(exact.end(), from, from + bytes);
    });
    std::vector<uint8_t> rounded(exact.size()), back(exact.size());
    transfer_values("F32", exact.data(), n, dtype, rounded.data());
    transfer_values(dtype, rounded.data(), n, "F32", back.data());
    return back == exact;
  }

  // In `source` mode experts stored one by one may differ in dtype.
  std::string dtype_of_piece(const std::string& name, const std::string& dtype) const {
    if (options_.dtype != HfDtype::source || source_ == nullptr) return dtype;
    const TensorEntry* entry = source_->find(name);
    return entry != nullptr && is_readable_dtype(entry->dtype) ? entry->dtype : dtype;
  }

  void check_shape(const std::string& name, const FilePiece& piece) const {
    const TensorEntry* entry = source_ != nullptr ? source_->find(name) : nullptr;
    if (entry == nullptr || entry->shape == piece.shape) return;
    fail(Exit::input, "{}: {} is {} there, but [{}] in the weights; give the checkpoint that the weights came from",
         source_->directory(), name, entry->describe(), fmt::join(piece.shape, ","));
  }

  void require_all(const std::vector<FilePiece>& pieces) const {
    for (const auto& piece : pieces) {
      const std::string name = layout_.translate(piece.name);
      if (source_->find(name) == nullptr) {
        fail(Exit::input, "{}: {} is missing; give the checkpoint that the weights came from", source_->directory(),
             name);
      }
    }
  }

  const SaveHfOptions& options_;
  const Numbers& numbers_;
  const SafetensorsDirectory* source_;
  HfLayout layout_;
  std::unordered_set<std::string> replaced_;
  // By name of the stored tensor its pieces in order, each with its place in the registry.
  std::map<std::string, std::shared_ptr<std::map<int64_t, std::pair<size_t, FilePiece>>>> joined_;
  std::vector<TensorSource> tensors_;
};

// Small files that make a checkpoint folder whole; weights, indexes, code and other people's files stay behind.
bool is_carried_file(const std::string& name) {
  if (name.starts_with('.') || name.starts_with("golden_") || name.ends_with(".index.json")) return false;
  static const std::set<std::string> extensions = {".json", ".txt", ".jinja", ".model", ".tiktoken"};
  return extensions.contains(fs::path(name).extension().string()) || name == "LICENSE" || name == "NOTICE";
}

std::vector<std::string> carried_files(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(directory, code)) {
    const std::string name = entry.path().filename().string();
    if (is_carried_file(name) && entry.is_regular_file(code)) names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

// config.json with its dtype entries, where there are any, set to what is written.
std::string config_with_dtype(const std::string& text, const std::string& where, HfDtype dtype) {
  if (dtype == HfDtype::source) return text;
  OrderedJson config = parse_ordered_json(text, where);
  const std::string value = dtype == HfDtype::bf16 ? "bfloat16" : "float32";
  const auto set = [&](OrderedJson& section) {
    if (!section.is_object()) return;
    for (const char* key : {"dtype", "torch_dtype"}) {
      if (section.contains(key) && section[key].is_string()) section[key] = value;
    }
  };
  set(config);
  if (config.contains("text_config")) set(config["text_config"]);
  return config.dump(2) + "\n";
}

void write_small_files(const SaveHfOptions& options, const std::string& to) {
  if (options.source_dir.empty()) {
    write_file_atomic(to + "/config.json", options.config_text);
    return;
  }
  for (const auto& name : carried_files(options.source_dir)) {
    const std::string from = options.source_dir + "/" + name;
    std::string content = read_file(from);
    if (name == "config.json") content = config_with_dtype(content, from, options.dtype);
    write_file_atomic(to + "/" + name, content);
  }
}

void rename_or_fail(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0)
    fail(Exit::resources, "cannot rename {} to {}: {}", from, to, std::strerror(errno));
}

void remove_if_there(const std::string& path) {
  if (unlink(path.c_str()) != 0 && errno != ENOENT)
    fail(Exit::resources, "cannot remove {}: {}", path, std::strerror(errno));
}

// The weight files of the checkpoint that lies in a folder, as far as its index can be read.
std::set<std::string> weight_files(const std::string& directory) {
  std::set<std::string> names = {single_file_name};
  try {
    const Json index = read_json_file(directory + "/" + index_file_name);
    for (const auto& [tensor, file] : index.at("weight_map").items()) {
      check_plain_file_name(file.get<std::string>(), directory);
      names.insert(file.get<std::string>());
    }
  } catch (const std::exception&) {
    // No index, or a damaged one: only the single file is known to be a checkpoint's.
  }
  return names;
}

// Moves the files of `staging` into an existing folder. Between the first and the last step the folder has no index, so
// that old and new files can never be read together.
void replace_files(const std::string& staging, const std::string& output) {
  std::set<std::string> stale = weight_files(output);
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(staging)) names.push_back(entry.path().filename().string());
  const bool sharded = std::find(names.begin(), names.end(), index_file_name) != names.end();
  const std::string last = sharded ? index_file_name : single_file_name;
  std::sort(names.begin(), names.end(),
            [&](const auto& a, const auto& b) { return std::pair(a == last, a) < std::pair(b == last, b); });
  remove_if_there(output + "/" + index_file_name);
  if (sharded) remove_if_there(output + "/" + single_file_name);
  sync_directory(output);
  for (const auto& name : names) {
    if (name == last) sync_directory(output);
    rename_or_fail(staging + "/" + name, output + "/" + name);
    stale.erase(name);
  }
  sync_directory(output);
  for (const auto& name : stale) remove_if_there(output + "/" + name);
}

bool holds_checkpoint(const std::string& directory) {
  for (const char* name : {"config.json", single_file_name, index_file_name}) {
    std::error_code code;
    if (fs::exists(directory + "/" + name, code)) return true;
  }
  return false;
}

// Where a checkpoint is written before it is complete.
class Destination {
 public:
  // Throws where nothing may be written to.
  Destination(const SaveHfOptions& options, uint64_t bytes) : output_(without_trailing_slash(options.output_dir)) {
    std::error_code code;
    const bool exists = fs::exists(output_, code);
    if (exists) output_ = fs::canonical(output_, code).string();
    if (exists && !fs::is_directory(output_, code))
      fail(Exit::input, "{} is not a folder; choose another place to save to", output_);
    replaces_ = exists && !fs::is_empty(output_, code);
    if (replaces_ && !options.source_dir.empty() && fs::equivalent(output_, options.source_dir, code)) {
      fail(Exit::input, "{} is the checkpoint that the weights came from; choose another folder to save to", output_);
    }
    if (replaces_ && !holds_checkpoint(output_)) {
      fail(Exit::input, "{} holds files that are no checkpoint; choose an empty or a new folder to save to", output_);
    }
    check_free_space(output_, bytes, "the checkpoint");
    folder_.emplace(replaces_ ? output_ + "/new" : output_);
    write_small_files(options, folder_->path());
  }
  const std::string& path() const { return folder_->path(); }
  void commit(const std::string& index) {
    if (!index.empty()) write_file_atomic(path() + "/" + index_file_name, index);
    if (replaces_) {
      replace_files(path(), output_);
    } else {
      folder_->commit();
    }
  }

 private:
  std::string output_;
  bool replaces_ = false;
  std::optional<TemporaryFolder> folder_;
};

// The ranks share the files among them; the first makes the folder and gives it its name.
void write_checkpoint(const SaveHfOptions& options, const Numbers& numbers, Group& ranks) {
  std::optional<SafetensorsDirectory> source;
  std::optional<SavePlan> plan;
  std::optional<Destination> destination;
  all_or_none(ranks, [&] {
    if (!options.source_dir.empty()) source.emplace(options.source_dir);
    plan.emplace(options, numbers, source ? &*source : nullptr);
    if (ranks.rank() == 0) destination.emplace(options, plan->bytes());
  });
  const std::string path = from_first(ranks, destination ? destination->path() : "");
  std::vector<ShardPlan> shards = plan->shards();
  const std::string index = index_of_shards(shards);
  all_or_none(ranks, [&] { write_some_shards(path, std::move(shards), ranks.rank(), ranks.size()); });
  all_or_none(ranks, [&] {
    if (destination) destination->commit(index);
  });
}

}  // namespace

void save_hf(const SaveHfOptions& options, const Weights& weights, const Mesh& mesh) {
  WholeTensors whole(mesh, weights);
  all_or_none(mesh.world(), [&] {
    whole.serve([&] { write_checkpoint(options, numbers_of(weights.specs(), whole), *solo_group()); });
  });
}

void save_hf(const SaveHfOptions& options, const StoredTensors& stored, const ModelConfig& config, Group& ranks) {
  write_checkpoint(options, numbers_of(stored, tensor_registry(config)), ranks);
}

void save_hf(const SaveHfOptions& options, const StoredTensors& stored, const ModelConfig& config) {
  save_hf(options, stored, config, *solo_group());
}

}  // namespace furlong
