// Hand-made torch_dist folders for tests: any keys, any numbers, cut any way.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/dcp_metadata.h"
#include "checkpoint/dist_folder.h"
#include "checkpoint/torch_archive.h"
#include "scratch.h"

namespace furlong {

inline const std::string golden_dist = FURLONG_TEST_DATA "/torch_dist";

struct MadeTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
  size_t width() const { return static_cast<size_t>(bits_of_file_dtype(dtype) / 8); }
  int64_t numel() const { return *checked_numel(shape); }
  bool operator==(const MadeTensor&) const = default;
};
using MadeTensors = std::map<std::string, MadeTensor>;

inline MadeTensors read_dist(const std::string& path) {
  const TorchDistFolder folder(path);
  MadeTensors all;
  for (const auto& t : folder.index().tensors) {
    MadeTensor made{t.dtype, t.shape, ""};
    made.bytes.resize(static_cast<size_t>(made.numel()) * made.width());
    folder.read(t, 0, made.numel(), reinterpret_cast<uint8_t*>(made.bytes.data()));
    all[t.key] = std::move(made);
  }
  return all;
}

// A tensor of rows [first, first + count) of axis 0.
inline MadeTensor rows(const MadeTensor& t, int64_t first, int64_t count) {
  const size_t row = t.bytes.size() / static_cast<size_t>(t.shape[0]);
  MadeTensor part{t.dtype, t.shape, t.bytes.substr(static_cast<size_t>(first) * row, static_cast<size_t>(count) * row)};
  part.shape[0] = count;
  return part;
}

// Into how many pieces each axis is cut; axes that are not named stay whole.
using Cuts = std::function<std::vector<int64_t>(const std::string& key, const std::vector<int64_t>& shape)>;

inline std::string box_of(const MadeTensor& t, const std::vector<int64_t>& offsets, const std::vector<int64_t>& sizes) {
  std::string out;
  std::vector<int64_t> at(sizes.size(), 0);
  for (int64_t n = *checked_numel(sizes); n > 0; n--) {
    int64_t flat = 0;
    for (size_t d = 0; d < at.size(); d++) flat = flat * t.shape[d] + offsets[d] + at[d];
    out += t.bytes.substr(static_cast<size_t>(flat) * t.width(), t.width());
    for (size_t d = at.size(); d-- > 0 && ++at[d] == sizes[d];) at[d] = 0;
  }
  return out;
}

// Writes DIR/{release, tracker}; the archives go to two files in turn. `edit` may spoil the index before it is written.
inline void write_dist(const std::string& directory, const MadeTensors& tensors, const Cuts& cuts = nullptr,
                       const std::function<void(DcpMetadata&)>& edit = nullptr) {
  const std::string release = directory + "/release";
  make_directories(release);
  DcpMetadata index;
  index.files = {"__0_0.distcp", "__1_0.distcp"};
  std::vector<std::string> files(2);
  size_t turn = 0;
  for (const auto& [key, t] : tensors) {
    DcpTensor out{key, t.dtype, t.shape, {}};
    std::vector<int64_t> pieces = cuts ? cuts(key, t.shape) : std::vector<int64_t>{};
    pieces.resize(t.shape.size(), 1);
    for (int64_t n = 0; n < *checked_numel(pieces); n++) {
      DcpChunk chunk;
      int64_t rest = n;
      for (size_t d = pieces.size(); d-- > 0;) {
        const int64_t i = rest % pieces[d];
        rest /= pieces[d];
        const int64_t begin = t.shape[d] * i / pieces[d], end = t.shape[d] * (i + 1) / pieces[d];
        chunk.offsets.insert(chunk.offsets.begin(), begin);
        chunk.sizes.insert(chunk.sizes.begin(), end - begin);
      }
      chunk.file = static_cast<uint32_t>(turn++ % 2);
      std::string& file = files[chunk.file];
      chunk.offset = file.size();
      const std::string bytes = box_of(t, chunk.offsets, chunk.sizes);
      chunk.length = write_archived_tensor(t.dtype, chunk.sizes, bytes_of(bytes), [&](const void* p, size_t k) {
        file.append(static_cast<const char*>(p), k);
      });
      out.chunks.push_back(std::move(chunk));
    }
    index.tensors.push_back(std::move(out));
  }
  if (edit) edit(index);
  for (size_t i = 0; i < 2; i++) write_raw(release + "/" + index.files[i], files[i]);
  write_raw(release + "/.metadata", emit_dcp_metadata(index, "made"));
  write_raw(release + "/metadata.json", R"({"sharded_backend": "torch_dist", "sharded_backend_version": 1})");
  write_raw(directory + "/latest_checkpointed_iteration.txt", "release");
}

}  // namespace furlong
