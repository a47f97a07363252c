// The index of a PyTorch distributed checkpoint (DCP): the pickle `.metadata`, which says for every tensor into which
// boxes it is cut and where each box's archive lies. Classes: torch/distributed/checkpoint/{metadata,filesystem}.py.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace furlong {

struct DcpChunk {
  std::vector<int64_t> offsets, sizes;  // the box
  uint32_t file = 0;                    // of DcpMetadata::files
  uint64_t offset = 0, length = 0;      // its archive in the file
};

struct DcpTensor {
  std::string key;
  std::string dtype;  // file dtype ("BF16"), or PyTorch's name where it has none here
  std::vector<int64_t> shape;
  std::vector<DcpChunk> chunks;  // by offsets; disjoint, covering the shape
};

struct DcpMetadata {
  std::vector<DcpTensor> tensors;        // by key
  std::vector<std::string> bytes_items;  // keys of entries that are no tensors
  std::vector<std::string> files;        // plain names
  const DcpTensor* find(std::string_view key) const;
};

// Parses and checks the whole index: known shapes of data only, boxes disjoint and covering, each with one archive,
// file names plain, archives disjoint. What other versions attach beside is left alone. Throws Error(Exit::input).
DcpMetadata parse_dcp_metadata(std::span<const uint8_t> bytes, const std::string& where);

// The pickle of an index; bytes items are left out. save_id: any text that tells saves apart.
std::string emit_dcp_metadata(const DcpMetadata& metadata, const std::string& save_id);

}  // namespace furlong
