#include "checkpoint/dist_folder.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>

#include "base/check.h"
#include "base/error.h"
#include "base/json.h"
#include "base/text.h"
#include "checkpoint/folder.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_archive.h"
#include "checkpoint/zip.h"

namespace furlong {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t max_index = uint64_t{256} << 20, max_tag = 1 << 16, max_tracker = 1 << 10;
constexpr size_t max_open_files = 128;
constexpr uint64_t piece = 1 << 20;  // bytes

bool is_there(const std::string& path) {
  std::error_code code;
  return fs::exists(path, code);
}

// A small file, which no honest writer makes larger than `limit`.
std::string read_small(const std::string& path, uint64_t limit) {
  const RangeFile file(path);
  if (file.size() > limit) fail(Exit::input, "{}: {} bytes are more than such a file can have", path, file.size());
  std::string text(file.size(), '\0');
  file.read(0, {reinterpret_cast<uint8_t*>(text.data()), text.size()});
  return text;
}

// The folder that a tracker names; empty when it names none.
std::string tracked(const std::string& path) {
  std::string text = read_small(path + "/" + dist_tracker_name, max_tracker);
  const auto blank = [](unsigned char c) { return std::isspace(c) != 0; };
  text.erase(text.begin(), std::find_if_not(text.begin(), text.end(), blank));
  text.erase(std::find_if_not(text.rbegin(), text.rend(), blank).base(), text.end());
  if (text == "release") return path + "/release";
  const auto iteration = parse_integer(text);
  const bool digits =
      !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
  if (!digits || !iteration) return "";
  return fmt::format("{}/iter_{:07}", path, *iteration);
}

std::string iteration_folder(const std::string& path) {
  if (is_there(path + "/" + dist_index_name) || is_there(path + "/" + dist_tag_name)) return path;
  if (!is_there(path + "/" + dist_tracker_name)) {
    fail(Exit::input,
         "{0}: neither {1} nor {2} is there; give the folder of a torch_dist checkpoint that holds {1}, or its "
         "release or iter_NNNNNNN",
         path, dist_tracker_name, dist_tag_name);
  }
  std::string folder = tracked(path);
  if (folder.empty()) {
    fail(Exit::input, "{}/{}: it must hold \"release\" or the number of an iteration, but holds \"{}\"", path,
         dist_tracker_name, printable(read_small(path + "/" + dist_tracker_name, max_tracker)));
  }
  if (!is_there(folder)) {
    fail(Exit::input, "{}/{} names {}, which is not there; the copy is not complete", path, dist_tracker_name, folder);
  }
  return folder;
}

void check_tag(const std::string& directory) {
  const std::string path = directory + "/" + dist_tag_name;
  for (const char* name : {dist_tag_name, dist_index_name}) {
    if (is_there(directory + "/" + name)) continue;
    fail(Exit::input, "{}: {} is missing: the checkpoint was not saved or copied to its end", directory, name);
  }
  const Json tag = parse_json(read_small(path, max_tag), path);
  const auto backend = tag.is_object() ? tag.find("sharded_backend") : tag.end();
  if (!tag.is_object() || backend == tag.end() || !backend->is_string()) {
    fail(Exit::input, "{}: it has no sharded_backend; Megatron did not write it", path);
  }
  if (*backend != "torch_dist") {
    fail(Exit::input, "{}: its sharded_backend is \"{}\"; only \"torch_dist\" is read", path,
         printable(backend->get<std::string>()));
  }
  const Json version = tag.value("sharded_backend_version", Json(1));
  if (version != 1) fail(Exit::input, "{}: its sharded_backend_version is {}; only 1 is read", path, version.dump());
}

std::string where_of(const RangeFile& file, const DcpTensor& tensor, const DcpChunk& chunk) {
  return fmt::format("{} at byte {} ({})", file.path(), chunk.offset, printable(tensor.key, 200));
}

}  // namespace

CheckpointKind checkpoint_kind(const std::string& path) {
  if (is_there(path + "/" + single_file_name) || is_there(path + "/" + index_file_name)) return CheckpointKind::hf;
  if (is_there(path + "/" + dist_tag_name) || is_there(path + "/" + dist_index_name)) return CheckpointKind::torch_dist;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(path, code)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("iter_") && is_there(entry.path().string() + "/manifest.json")) return CheckpointKind::furlong;
  }
  return is_there(path + "/" + dist_tracker_name) ? CheckpointKind::torch_dist : CheckpointKind::none;
}

BoxRange::BoxRange(std::span<const int64_t> shape, std::span<const int64_t> offsets, std::span<const int64_t> sizes)
    : offsets_(offsets), sizes_(sizes), stride_(shape.size()), inner_(shape.size()) {
  bool whole = true;  // all axes further in are complete
  for (size_t d = shape.size(); d-- > 0;) {
    stride_[d] = whole_;
    inner_[d] = numel_;
    whole_ *= shape[d];
    numel_ *= sizes[d];
    if (whole) run_ = numel_;
    whole = whole && sizes[d] == shape[d];
  }
}

int64_t BoxRange::before(int64_t flat) const {
  if (flat >= whole_) return numel_;
  int64_t count = 0;
  for (size_t d = 0; d < sizes_.size(); d++) {
    const int64_t at = flat / stride_[d] - offsets_[d];
    flat %= stride_[d];
    if (at < 0) return count;
    if (at >= sizes_[d]) return count + sizes_[d] * inner_[d];
    count += at * inner_[d];
  }
  return count;
}

int64_t BoxRange::in_whole(int64_t i) const {
  int64_t flat = 0;
  for (size_t d = 0; d < sizes_.size(); d++) {
    flat += (offsets_[d] + i / inner_[d]) * stride_[d];
    i %= inner_[d];
  }
  return flat;
}

TorchDistFolder::TorchDistFolder(const std::string& path) : directory_(iteration_folder(without_trailing_slash(path))) {
  check_tag(directory_);
  const std::string where = directory_ + "/" + dist_index_name;
  const std::string bytes = read_small(where, max_index);
  index_ = parse_dcp_metadata({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, where);
  std::vector<uint64_t> sizes;
  for (const auto& name : index_.files) {
    if (!is_there(directory_ + "/" + name)) {
      fail(Exit::input, "{}: it names the file {}, which is not there; fetch the missing file", where, printable(name));
    }
    sizes.push_back(RangeFile(directory_ + "/" + name).size());
  }
  size_t archives = 0;
  for (const auto& tensor : index_.tensors) {
    first_archive_.push_back(archives);
    archives += tensor.chunks.size();
    for (const auto& chunk : tensor.chunks) {
      const uint64_t size = sizes[chunk.file];
      if (chunk.length <= size && chunk.offset <= size - chunk.length) continue;
      fail(Exit::input, "{}/{}: it has {} bytes, but {} is said to lie at {} + {}; the file is truncated", directory_,
           printable(index_.files[chunk.file]), size, printable(tensor.key, 200), chunk.offset, chunk.length);
    }
  }
  archives_ = std::vector<Archive>(archives);
}

std::shared_ptr<const RangeFile> TorchDistFolder::file(uint32_t number) const {
  const std::lock_guard lock(mutex_);
  auto& slot = open_[number];
  if (slot == nullptr) {
    // Checkpoints of many ranks have more files than a process may hold open.
    if (open_.size() > max_open_files) {
      open_.clear();
      return open_[number] = std::make_shared<const RangeFile>(directory_ + "/" + index_.files[number]);
    }
    slot = std::make_shared<const RangeFile>(directory_ + "/" + index_.files[number]);
  }
  return slot;
}

void TorchDistFolder::check_archive(const DcpTensor& tensor, const DcpChunk& chunk, Archive& archive) const {
  const auto source = file(chunk.file);
  const std::string where = where_of(*source, tensor, chunk);
  const ByteWindow window{chunk.length, [&](uint64_t offset, std::span<uint8_t> to) {
                            CHECK(offset <= chunk.length && to.size() <= chunk.length - offset, "{} + {}", offset,
                                  to.size());
                            source->read(chunk.offset + offset, to);
                          }};
  const ArchivedTensor found = read_archived_tensor(window, where);
  if (found.dtype != tensor.dtype || found.shape != chunk.sizes) {
    fail(Exit::input, "{}: the archive holds {}[{}], but the index says {}[{}]; the files do not belong together",
         where, found.dtype, fmt::join(found.shape, ","), printable(tensor.dtype), fmt::join(chunk.sizes, ","));
  }
  archive.payload = chunk.offset + found.offset;
  if (found.crc == 0) return;  // PyTorch can be told to leave it out
  std::vector<uint8_t> bytes(std::min(piece, found.bytes));
  uint32_t crc = 0;
  for (uint64_t done = 0; done < found.bytes; done += bytes.size()) {
    const auto part = std::span(bytes).first(std::min<uint64_t>(bytes.size(), found.bytes - done));
    source->read(archive.payload + done, part);
    crc = crc32_of(part, crc);
  }
  if (crc != found.crc) {
    fail(Exit::input,
         "{}: its numbers do not match their checksum; the file is damaged. Copy it again from its source.", where);
  }
}

const TorchDistFolder::Archive& TorchDistFolder::open_archive(const DcpTensor& tensor, size_t chunk) const {
  const auto number = static_cast<size_t>(&tensor - index_.tensors.data());
  CHECK(number < index_.tensors.size(), "a tensor of another index");
  Archive& archive = archives_[first_archive_[number] + chunk];
  std::call_once(archive.checked, [&] { check_archive(tensor, tensor.chunks[chunk], archive); });
  return archive;
}

void TorchDistFolder::read(const DcpTensor& tensor, int64_t first, int64_t count, uint8_t* to) const {
  const auto width = static_cast<int64_t>(bits_of_file_dtype(tensor.dtype) / 8);
  CHECK(width > 0, "{} of dtype {}", tensor.key, tensor.dtype);
  if (count == 0) return;  // of a tensor with an axis of 0 the others may have any product
  std::vector<uint8_t> staged;
  for (size_t c = 0; c < tensor.chunks.size(); c++) {
    const DcpChunk& chunk = tensor.chunks[c];
    if (!tensor.shape.empty()) {
      const int64_t row = *checked_numel(std::span(tensor.shape).subspan(1));
      if (chunk.offsets[0] * row >= first + count || (chunk.offsets[0] + chunk.sizes[0]) * row <= first) continue;
    }
    const BoxRange box(tensor.shape, chunk.offsets, chunk.sizes);
    // Row-major order is the same in the box, so that what lies in the range lies together there.
    const int64_t begin = box.before(first), end = box.before(first + count);
    if (begin == end) continue;
    const uint64_t at = open_archive(tensor, c).payload + static_cast<uint64_t>(begin * width);
    const auto bytes = static_cast<size_t>((end - begin) * width);
    const auto source = file(chunk.file);
    if (begin / box.run() == (end - 1) / box.run()) {
      source->read(at, {to + (box.in_whole(begin) - first) * width, bytes});
      continue;
    }
    staged.resize(bytes);
    source->read(at, staged);
    for (int64_t i = begin; i < end;) {
      const int64_t n = std::min(end - i, box.run() - i % box.run());
      std::memcpy(to + (box.in_whole(i) - first) * width, staged.data() + (i - begin) * width,
                  static_cast<size_t>(n * width));
      i += n;
    }
  }
}

}  // namespace furlong
