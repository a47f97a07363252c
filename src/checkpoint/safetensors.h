// safetensors files and folders of them: an 8-byte little-endian header length, a JSON header, then tensor bytes.
// Format: https://github.com/huggingface/safetensors. Reading is strict; nothing is allocated from unchecked numbers.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/file.h"

namespace furlong {

// One tensor of a file. `bytes` points into the file's mapping and may be unaligned; an extent of 0 is legal.
struct TensorEntry {
  std::string name;
  std::string dtype;  // as in the file: "BF16", "F32", ...
  std::vector<int64_t> shape;
  std::span<const uint8_t> bytes;
  int64_t numel() const;
  std::string describe() const;  // "BF16[8,64]"
};

// Bits of one element of a dtype of the format; 0 for a name it does not define.
int bits_of_file_dtype(std::string_view dtype);

struct SafetensorsContent {
  std::vector<TensorEntry> entries;  // by offset
  std::map<std::string, std::string> metadata;
};

// Parses the bytes of a whole file; `where` names it in errors. Refuses (Error, Exit::input, naming the tensor):
// a header that is short, too long or no JSON of this form, duplicate names, sizes that overflow or do not match, and
// tensors that leave holes, overlap, or do not end with the file.
SafetensorsContent parse_safetensors(std::span<const uint8_t> bytes, const std::string& where);

// How much of a file will be read: most, and the system may fetch ahead; or parts, and nothing is fetched but what is
// asked for (fetch_soon in base/file.h).
enum class Reading : uint8_t { most, parts };

class SafetensorsFile {
 public:
  explicit SafetensorsFile(const std::string& path, Reading reading = Reading::most);
  const std::string& path() const { return file_.path(); }
  size_t bytes() const { return file_.bytes().size(); }
  const std::vector<TensorEntry>& entries() const { return content_.entries; }
  const std::map<std::string, std::string>& metadata() const { return content_.metadata; }
  // Null when there is no such tensor.
  const TensorEntry* find(const std::string& name) const;

 private:
  MappedFile file_;
  SafetensorsContent content_;
  std::unordered_map<std::string, size_t> index_;
};

// A checkpoint folder: model.safetensors.index.json with the files it lists, or else one model.safetensors.
class SafetensorsDirectory {
 public:
  // Throws Error(Exit::input): nothing there, a listed file or tensor missing, a tensor in two files or unlisted, a
  // file name that is not plain. Links in the folder are followed.
  explicit SafetensorsDirectory(const std::string& directory, Reading reading = Reading::most);
  const std::string& directory() const { return directory_; }
  const std::vector<SafetensorsFile>& files() const { return files_; }
  // Null when there is no such tensor.
  const TensorEntry* find(const std::string& name) const;
  // The file of a tensor that exists, without its folder.
  std::string file_of(const std::string& name) const;
  size_t size() const { return index_.size(); }

 private:
  void read_sharded(const std::string& index_path);
  void add_file(const std::string& path);
  std::string directory_;
  Reading reading_;
  std::vector<SafetensorsFile> files_;
  std::unordered_map<std::string, std::pair<size_t, size_t>> index_;  // file, entry
};

// Throws Error(Exit::input) unless `name` is a plain file name: no separator, no "..", no NUL, not empty.
void check_plain_file_name(const std::string& name, const std::string& where);

using ByteSink = std::function<void(const void* data, size_t bytes)>;

// A tensor to be written: what the header needs, and a function that hands its bytes to the sink in order.
struct TensorSource {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::function<void(const ByteSink&)> emit;
  std::optional<uint64_t> raw_bytes = {};  // set for a dtype of unknown size that is carried through
  uint64_t bytes() const;
};

// Told about every byte of a file as it is written; `tensor` is empty for the header.
using WriteObserver = std::function<void(const std::string& tensor, const void* data, size_t bytes)>;

// Writes one file through FileWriter: complete under its name or not there. Tensors are ordered by descending dtype,
// then name, and every one is aligned. Throws Error(Exit::resources).
void write_safetensors(const std::string& path, std::vector<TensorSource> tensors,
                       const std::map<std::string, std::string>& metadata = {{"format", "pt"}},
                       const WriteObserver& observer = nullptr);

constexpr const char* single_file_name = "model.safetensors";
constexpr const char* index_file_name = "model.safetensors.index.json";

// The files of a folder in writing order.
struct ShardPlan {
  std::string file;
  std::vector<TensorSource> tensors;
};

// Cuts a list of tensors into files of at most shard_bytes (a larger tensor stands alone):
// model-00001-of-0000N.safetensors, or one model.safetensors.
std::vector<ShardPlan> plan_shards(std::vector<TensorSource> tensors, uint64_t shard_bytes);

// Writes the files, then the index, which a lone model.safetensors does without.
void write_shards(const std::string& directory, std::vector<ShardPlan> shards);
// Every count-th of the files, from the rank-th on, without the index.
void write_some_shards(const std::string& directory, std::vector<ShardPlan> shards, int rank, int count);
// The text of the index of these files; empty for a lone model.safetensors, which does without.
std::string index_of_shards(const std::vector<ShardPlan>& shards);

}  // namespace furlong
