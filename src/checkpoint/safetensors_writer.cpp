#include <algorithm>
#include <array>

#include "base/check.h"
#include "base/json.h"
#include "checkpoint/safetensors.h"

namespace furlong {
namespace {

// The reference implementation's order of dtypes, by rising alignment; files are written in the reverse order.
int dtype_rank(const std::string& dtype) {
  static constexpr std::array<std::string_view, 20> order = {
      "BOOL", "F4",  "F6_E2M3", "F6_E3M2", "U8",  "I8",  "F8_E5M2", "F8_E4M3", "F8_E8M0", "I16",
      "U16",  "F16", "BF16",    "I32",     "U32", "F32", "C64",     "F64",     "I64",     "U64"};
  return static_cast<int>(std::find(order.begin(), order.end(), dtype) - order.begin()) %
         static_cast<int>(order.size());
}

std::string header_of(const std::vector<TensorSource>& tensors, const std::map<std::string, std::string>& metadata) {
  std::string header = "{";
  if (!metadata.empty()) header += "\"__metadata__\":" + Json(metadata).dump();
  uint64_t offset = 0;
  for (const auto& t : tensors) {
    if (header.size() > 1) header += ',';
    header += fmt::format("{}:{{\"dtype\":{},\"shape\":{},\"data_offsets\":[{},{}]}}", Json(t.name).dump(),
                          Json(t.dtype).dump(), Json(t.shape).dump(), offset, offset + t.bytes());
    offset += t.bytes();
  }
  header += '}';
  header.append((8 - header.size() % 8) % 8, ' ');
  return header;
}

}  // namespace

uint64_t TensorSource::bytes() const {
  if (raw_bytes) return *raw_bytes;
  uint64_t bits = static_cast<uint64_t>(bits_of_file_dtype(dtype));
  CHECK(bits > 0, "dtype {}", dtype);
  for (const int64_t d : shape) bits *= static_cast<uint64_t>(d);
  return bits / 8;
}

void write_safetensors(const std::string& path, std::vector<TensorSource> tensors,
                       const std::map<std::string, std::string>& metadata, const WriteObserver& observer) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    const int ra = dtype_rank(a.dtype), rb = dtype_rank(b.dtype);
    return ra != rb ? ra > rb : a.name < b.name;
  });
  for (size_t i = 1; i < tensors.size(); i++)
    CHECK(tensors[i].name != tensors[i - 1].name, "{} twice", tensors[i].name);
  const std::string header = header_of(tensors, metadata);
  FileWriter file(path);
  const auto put = [&](const std::string& tensor, const void* data, size_t bytes) {
    file.write(data, bytes);
    if (observer) observer(tensor, data, bytes);
  };
  const uint64_t length = header.size();
  put("", &length, 8);
  put("", header.data(), header.size());
  for (const auto& t : tensors) {
    const uint64_t begin = file.written();
    t.emit([&](const void* data, size_t bytes) { put(t.name, data, bytes); });
    CHECK(file.written() - begin == t.bytes(), "{}: {} bytes were emitted for {}", t.name, file.written() - begin,
          t.bytes());
  }
  file.commit();
}

std::vector<ShardPlan> plan_shards(std::vector<TensorSource> tensors, uint64_t shard_bytes) {
  std::vector<ShardPlan> shards;
  uint64_t used = 0;
  for (auto& t : tensors) {
    const uint64_t bytes = t.bytes();
    if (shards.empty() || (used > 0 && used + bytes > shard_bytes)) {
      shards.emplace_back();
      used = 0;
    }
    used += bytes;
    shards.back().tensors.push_back(std::move(t));
  }
  if (shards.size() == 1) shards[0].file = single_file_name;
  for (size_t i = 0; shards.size() > 1 && i < shards.size(); i++) {
    shards[i].file = fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, shards.size());
  }
  return shards;
}

void write_some_shards(const std::string& directory, std::vector<ShardPlan> shards, int rank, int count) {
  for (auto i = static_cast<size_t>(rank); i < shards.size(); i += static_cast<size_t>(count)) {
    write_safetensors(directory + "/" + shards[i].file, std::move(shards[i].tensors));
  }
}

void write_shards(const std::string& directory, std::vector<ShardPlan> shards) {
  const std::string index = index_of_shards(shards);
  write_some_shards(directory, std::move(shards), 0, 1);
  if (!index.empty()) write_file_atomic(directory + "/" + index_file_name, index);
}

std::string index_of_shards(const std::vector<ShardPlan>& shards) {
  if (shards.size() == 1 && shards[0].file == single_file_name) return "";
  uint64_t total = 0;
  Json map = Json::object();
  for (const auto& shard : shards) {
    for (const auto& t : shard.tensors) {
      total += t.bytes();
      map[t.name] = shard.file;
    }
  }
  const OrderedJson index = {{"metadata", {{"total_size", total}}}, {"weight_map", OrderedJson::parse(map.dump())}};
  return index.dump(2) + "\n";
}

}  // namespace furlong
