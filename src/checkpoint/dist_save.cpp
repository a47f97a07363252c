// Tensors as stored elsewhere to a torch_dist folder, by one worker or several.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <thread>
#include <unordered_map>

#include "base/check.h"
#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "checkpoint/digest.h"
#include "checkpoint/dist_common.h"
#include "checkpoint/dist_folder.h"
#include "checkpoint/dist_names.h"
#include "checkpoint/folder.h"
#include "checkpoint/torch_archive.h"
#include "checkpoint/torch_dist.h"

namespace furlong {
namespace {

namespace fs = std::filesystem;

constexpr const char* release_name = "release";
constexpr const char* staging_prefix = "release.tmp-";
constexpr const char* tag_text =
    "{\"sharded_backend\": \"torch_dist\", \"sharded_backend_version\": 1, \"common_backend\": \"torch\", "
    "\"common_backend_version\": 1}";

// A run of numbers of the tensor that is written, and the registry tensor that it comes from.
struct Origin {
  size_t tensor;
  DistRun run;
};

struct OutTensor {
  std::string key, dtype;
  std::vector<int64_t> shape, box;
  std::vector<Origin> origins;  // by place in the tensor; what they leave is padding
};

// One box of a tensor, contiguous in it: `count` numbers from element `first` on.
struct OutArchive {
  size_t tensor;
  std::vector<int64_t> offsets, sizes;
  int64_t first = 0, count = 0;
};

struct Plan {
  std::vector<OutTensor> tensors;
  std::vector<OutArchive> archives;
  std::vector<int> part;  // of each archive
  int64_t padded_vocab_size = 0;
  std::string layout, content;  // digests: of what is written; of that and the files it is made from
  uint64_t bytes_of(const OutArchive& a) const {
    return static_cast<uint64_t>(a.count) * static_cast<uint64_t>(bits_of_file_dtype(tensors[a.tensor].dtype) / 8);
  }
};

std::string dtype_of(const TensorSpec& spec, const std::string& stored, HfDtype wanted) {
  if (spec.always_f32 || wanted == HfDtype::f32) return "F32";
  return wanted == HfDtype::bf16 ? "BF16" : stored;
}

void plan_tensors(const StoredTensors& source, const ModelConfig& config, const ToTorchDistOptions& options,
                  Plan& plan) {
  const auto multiple = options.vocab_multiple;
  plan.padded_vocab_size = (config.vocab_size + multiple - 1) / multiple * multiple;
  std::unordered_map<std::string, size_t> numbers;
  for (size_t i = 0; i < source.specs.size(); i++) {
    const DistPlaces places = dist_places(source.specs[i], config).front();
    const std::string dtype = dtype_of(source.specs[i], source.dtypes[i], options.dtype);
    CHECK(places.size() == 1, "{}", source.specs[i].name);
    const DistPlace& place = places[0];
    const auto [it, fresh] = numbers.try_emplace(place.key, plan.tensors.size());
    if (fresh) plan.tensors.push_back({place.key, "", place.shape, place.box, {}});
    OutTensor& tensor = plan.tensors[it->second];
    if (place.padded) tensor.shape[0] = plan.padded_vocab_size;
    tensor.dtype = wider_dtype(tensor.dtype, dtype);
    for (const DistRun& run : place.runs) tensor.origins.push_back({i, run});
  }
  for (OutTensor& tensor : plan.tensors) {
    std::sort(tensor.origins.begin(), tensor.origins.end(),
              [](const auto& a, const auto& b) { return a.run.theirs < b.run.theirs; });
  }
}

void cut(Plan& plan, uint64_t archive_bytes) {
  for (size_t t = 0; t < plan.tensors.size(); t++) {
    const OutTensor& tensor = plan.tensors[t];
    std::vector<int64_t> box = tensor.box;
    const int64_t row = *checked_numel(std::span(tensor.shape).subspan(1));
    if (box.empty()) {
      const auto bytes = static_cast<uint64_t>(row) * static_cast<uint64_t>(bits_of_file_dtype(tensor.dtype) / 8);
      box = tensor.shape;
      box[0] = std::min(box[0], static_cast<int64_t>(std::max<uint64_t>(1, archive_bytes / bytes)));
    }
    const int64_t inner = box.size() > 1 ? box[1] : 1, width = box.size() > 1 ? row / tensor.shape[1] : 1;
    for (int64_t i = 0; i < tensor.shape[0]; i += box[0]) {
      for (int64_t j = 0; j < (box.size() > 1 ? tensor.shape[1] : 1); j += inner) {
        OutArchive a{t, std::vector<int64_t>(box.size(), 0), box, i * row + j * width, 0};
        a.offsets[0] = i;
        a.sizes[0] = std::min(box[0], tensor.shape[0] - i);
        if (box.size() > 1) a.offsets[1] = j;
        a.count = *checked_numel(a.sizes);
        plan.archives.push_back(std::move(a));
      }
    }
  }
}

Plan make_plan(const StoredTensors& source, const ModelConfig& config, const ToTorchDistOptions& options, int parts) {
  Plan plan;
  plan_tensors(source, config, options, plan);
  cut(plan, options.archive_bytes);
  uint64_t total = 0, before = 0;
  for (const auto& a : plan.archives) total += plan.bytes_of(a);
  // A part is a stretch of the list, so that its source is read front to back.
  for (const auto& a : plan.archives) {
    plan.part.push_back(
        static_cast<int>(static_cast<unsigned __int128>(before) * static_cast<unsigned>(parts) / total));
    before += plan.bytes_of(a);
  }
  std::string text = fmt::format("1 {} {} {}\n", parts, options.archive_bytes, options.file_bytes);
  for (const auto& t : plan.tensors) text += fmt::format("{} {} {}\n", t.key, t.dtype, fmt::join(t.shape, ","));
  plan.layout = Digest::of(text.data(), text.size());
  text += source.identity;
  plan.content = Digest::of(text.data(), text.size());
  return plan;
}

// A worker's folder, and what it leaves there for the one that joins the parts.
class Part {
 public:
  Part(const StoredTensors& source, const ToTorchDistOptions& options, const Plan& plan, ConvertPart part,
       const std::string& staging)
      : source_(source), options_(options), plan_(plan), part_(part), staging_(staging) {}

  std::string index_path(int rank) const { return fmt::format("{}/part-{}-of-{}.json", staging_, rank, part_.count); }
  static std::string file_name(int rank, size_t k) { return fmt::format("__{}_{}.distcp", rank, k); }

  void write(const std::atomic<bool>& stop) {
    if (complete(part_.rank)) {
      log::info("{}: part {} of {} was complete already", staging_, part_.rank + 1, part_.count);
      return;
    }
    uint64_t bytes = 0;
    for (size_t i = 0; i < plan_.archives.size(); i++) bytes += mine(i) ? plan_.bytes_of(plan_.archives[i]) : 0;
    check_free_space(staging_, bytes, "the checkpoint");
    Json archives = Json::array(), files = Json::array();
    std::unique_ptr<FileWriter> file;
    const auto close_file = [&] {
      if (file == nullptr) return;
      files.push_back(file->written());
      file->commit();
      file.reset();
    };
    for (size_t i = 0; i < plan_.archives.size() && !stop; i++) {
      if (!mine(i)) continue;
      if (file != nullptr && file->written() + plan_.bytes_of(plan_.archives[i]) > options_.file_bytes) close_file();
      if (file == nullptr) file = std::make_unique<FileWriter>(staging_ + "/" + file_name(part_.rank, files.size()));
      const uint64_t at = file->written();
      write_archive(plan_.archives[i], *file);
      archives.push_back({i, files.size(), at, file->written() - at});
    }
    close_file();
    if (!stop)
      write_file_atomic(index_path(part_.rank), Json({{"archives", archives}, {"files", files}}).dump() + "\n");
  }

  // Whether a part is there, with all of its files.
  bool complete(int rank) const {
    std::error_code code;
    if (!fs::exists(index_path(rank), code)) return false;
    const Json index = read_json_file(index_path(rank));
    for (size_t k = 0; k < index.at("files").size(); k++) {
      const auto size = fs::file_size(staging_ + "/" + file_name(rank, k), code);
      if (code || size != index.at("files")[k].get<uint64_t>()) return false;
    }
    return true;
  }

  DcpMetadata join() const {
    DcpMetadata index;
    for (const auto& t : plan_.tensors) index.tensors.push_back({t.key, t.dtype, t.shape, {}});
    for (int rank = 0; rank < part_.count; rank++) {
      const Json part = read_json_file(index_path(rank));
      const auto first_file = static_cast<uint32_t>(index.files.size());
      for (size_t k = 0; k < part.at("files").size(); k++) index.files.push_back(file_name(rank, k));
      for (const Json& a : part.at("archives")) {
        const OutArchive& archive = plan_.archives.at(a.at(0).get<size_t>());
        index.tensors[archive.tensor].chunks.push_back({archive.offsets, archive.sizes,
                                                        first_file + a.at(1).get<uint32_t>(), a.at(2).get<uint64_t>(),
                                                        a.at(3).get<uint64_t>()});
      }
    }
    std::sort(index.tensors.begin(), index.tensors.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
    return index;
  }

 private:
  bool mine(size_t archive) const { return plan_.part[archive] == part_.rank; }

  void write_archive(const OutArchive& a, FileWriter& file) {
    const OutTensor& tensor = plan_.tensors[a.tensor];
    const auto width = bits_of_file_dtype(tensor.dtype) / 8;
    bytes_.assign(static_cast<size_t>(a.count * width), 0);
    for (const Origin& o : tensor.origins) {
      const int64_t begin = std::max(o.run.theirs, a.first);
      const int64_t end = std::min(o.run.theirs + o.run.count, a.first + a.count);
      if (begin >= end) continue;
      read_finite(source_, o.tensor, o.run.ours + begin - o.run.theirs, end - begin, tensor.dtype,
                  bytes_.data() + (begin - a.first) * width);
    }
    write_archived_tensor(tensor.dtype, a.sizes, bytes_, [&](const void* data, size_t n) { file.write(data, n); });
  }

  const StoredTensors& source_;
  const ToTorchDistOptions& options_;
  const Plan& plan_;
  ConvertPart part_;
  const std::string& staging_;
  std::vector<uint8_t> bytes_;
};

// One of several workers at a time; given back when the holder ends, however it ends.
class FolderLock {
 public:
  explicit FolderLock(const std::string& path) : fd_(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    if (fd_ < 0) fail(Exit::resources, "cannot open the folder {}: {}", path, std::strerror(errno));
    while (flock(fd_, LOCK_EX) != 0) {
      if (errno != EINTR) fail(Exit::resources, "cannot lock the folder {}: {}", path, std::strerror(errno));
    }
  }
  ~FolderLock() { close(fd_); }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_;
};

std::vector<std::string> staging_folders(const std::string& directory) {
  std::vector<std::string> found;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(directory, code)) {
    if (entry.path().filename().string().starts_with(staging_prefix)) found.push_back(entry.path().string());
  }
  return found;
}

// Only an empty folder, or one with a converted checkpoint or the beginnings of one, is written to.
void check_output(const std::string& output, const std::string& source) {
  std::error_code code;
  if (!fs::exists(output, code)) return;
  if (!fs::is_directory(output, code)) fail(Exit::input, "{} is not a folder; choose another place to save to", output);
  if (fs::equivalent(output, source, code)) {
    fail(Exit::input, "{} is the checkpoint to be converted; choose another folder to save to", output);
  }
  const std::string tracker = output + "/" + dist_tracker_name;
  if (fs::exists(tracker, code) && !read_file(tracker).starts_with(release_name)) {
    fail(Exit::input, "{} holds training checkpoints; choose another folder to save to", output);
  }
  if (fs::is_empty(output, code) || fs::exists(output + "/" + release_name, code) || !staging_folders(output).empty())
    return;
  fail(Exit::input, "{} holds files that are no torch_dist checkpoint; choose an empty or a new folder to save to",
       output);
}

// PyTorch names saves by a UUID; this one tells layouts apart and is the same for the same command.
std::string save_id(const std::string& digest) {
  return fmt::format("{}-{}-{}-{}-{}", digest.substr(0, 8), digest.substr(8, 4), digest.substr(12, 4),
                     digest.substr(16, 4), digest.substr(20, 12));
}

std::string staging_of(const std::string& output, const Plan& plan) {
  return output + "/" + staging_prefix + plan.content.substr(0, 16);
}

bool write_part(const StoredTensors& source, const ModelConfig& config, const ToTorchDistOptions& options,
                ConvertPart who, const Plan& plan, const std::atomic<bool>& stop) {
  const std::string output = without_trailing_slash(options.output_dir), staging = staging_of(output, plan);
  make_directories(staging);
  Part part(source, options, plan, who, staging);
  part.write(stop);
  if (stop) return false;
  const FolderLock lock(output);
  std::error_code code;
  if (!fs::exists(staging, code)) return false;  // another worker has joined the parts
  for (int rank = 0; rank < who.count; rank++) {
    if (!part.complete(rank)) return false;  // that worker will
  }
  const DcpMetadata index = part.join();
  for (int rank = 0; rank < who.count; rank++) fs::remove(part.index_path(rank));
  const OutTensor& largest =
      *std::max_element(plan.tensors.begin(), plan.tensors.end(),
                        [](const auto& a, const auto& b) { return checked_numel(a.shape) < checked_numel(b.shape); });
  write_file_atomic(staging + "/" + dist_common_name,
                    dist_common(config, plan.padded_vocab_size, torch_dtype_of_file(largest.dtype).value()));
  write_file_atomic(staging + "/" + dist_index_name, emit_dcp_metadata(index, save_id(plan.layout)));
  write_file_atomic(staging + "/" + dist_tag_name, tag_text);
  replace_folder(staging, output + "/" + release_name);
  for (const auto& stale : staging_folders(output)) fs::remove_all(stale, code);
  write_file_atomic(output + "/" + dist_tracker_name, release_name);
  return true;
}

}  // namespace

bool write_torch_dist_part(const StoredTensors& source, const ModelConfig& config, const ToTorchDistOptions& options,
                           ConvertPart part) {
  CHECK(part.count > 0 && part.rank >= 0 && part.rank < part.count, "part {} of {}", part.rank, part.count);
  check_output(without_trailing_slash(options.output_dir), source.directory);
  const Plan plan = make_plan(source, config, options, part.count);
  return write_part(source, config, options, part, plan, false);
}

void write_torch_dist(const StoredTensors& source, const ModelConfig& config, const ToTorchDistOptions& options,
                      int workers) {
  const std::string output = without_trailing_slash(options.output_dir);
  check_output(output, source.directory);
  std::error_code code;
  const bool fresh = !fs::exists(output, code);
  const Plan plan = make_plan(source, config, options, workers);
  std::vector<std::optional<Error>> errors(static_cast<size_t>(workers));
  std::atomic<bool> stop = false;
  const auto work = [&](int rank) {
    try {
      write_part(source, config, options, {rank, workers}, plan, stop);
    } catch (const Error& e) {
      errors[static_cast<size_t>(rank)] = e;
      stop = true;
    }
  };
  std::vector<std::thread> threads;
  for (int rank = 1; rank < workers; rank++) threads.emplace_back(work, rank);
  work(0);
  for (auto& thread : threads) thread.join();
  const auto failed = std::find_if(errors.begin(), errors.end(), [](const auto& e) { return e.has_value(); });
  if (failed == errors.end()) return;
  fs::remove_all(staging_of(output, plan), code);
  if (fresh) fs::remove(output, code);  // only if it is empty
  throw Error(**failed);
}

}  // namespace furlong
