// A tensor as torch.save writes it: a zip archive with a small pickle, data.pkl, that describes the raw bytes of
// data/0.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/pickle.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/zip.h"

namespace furlong {

// PyTorch's name of a dtype ("bfloat16") <-> the one used here for files ("BF16"); nullopt for others.
std::optional<std::string> file_dtype_of_torch(std::string_view torch_name);
std::optional<std::string> torch_dtype_of_file(std::string_view file_dtype);

// The pickle of an archive, with the archive's entries. Throws Error(Exit::input).
struct TorchArchive {
  std::vector<ZipEntry> entries;
  std::string folder;  // the one that all entries lie in
  std::vector<uint8_t> pickle;
};
TorchArchive open_torch_archive(const ByteWindow& window, const std::string& where);

// Where a tensor's numbers lie in the window, contiguous and row-major.
struct ArchivedTensor {
  std::string dtype;  // file dtype
  std::vector<int64_t> shape;
  uint64_t offset = 0, bytes = 0;
  uint32_t crc = 0;  // of exactly these bytes; 0: unknown
};

// Describes the one tensor of an archive. Refuses (Error, Exit::input) anything else: other globals than those of a
// tensor, views that reach out of their storage or are not contiguous, sizes that contradict the archive.
ArchivedTensor read_archived_tensor(const ByteWindow& window, const std::string& where);

// Writes an archive of a contiguous tensor that torch.load(weights_only=True) takes. Returns its length.
uint64_t write_archived_tensor(std::string_view dtype, std::span<const int64_t> shape, std::span<const uint8_t> bytes,
                               const ByteSink& sink);

// Elements of a shape; nullopt when the product or that of its bytes (8 each at most) would overflow.
std::optional<int64_t> checked_numel(std::span<const int64_t> shape);

}  // namespace furlong
