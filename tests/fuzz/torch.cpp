#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/dcp_metadata.h"
#include "checkpoint/dist_folder.h"
#include "checkpoint/pickle.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_archive.h"
#include "checkpoint/zip.h"
#include "targets.h"

namespace furlong::fuzz {
namespace {

Bytes bytes_of(std::string_view text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

// A folder in memory, with the tag that every good one has.
const std::string& folder() {
  static const std::string path = [] {
    std::filesystem::create_directory(scratch_folder() + "/dist");
    put_file(std::string("dist/") + dist_tag_name, bytes_of(R"({"sharded_backend": "torch_dist"})"));
    return scratch_folder() + "/dist";
  }();
  return path;
}

// Two bytes of length and the index, then the one file of archives.
void read_folder(std::span<const uint8_t> bytes) {
  if (bytes.size() < 2) return;
  const auto length = std::min<size_t>(bytes[0] | bytes[1] << 8, bytes.size() - 2);
  const std::string path = folder();
  put_file(std::string("dist/") + dist_index_name, bytes.subspan(2, length));
  put_file("dist/__0_0.distcp", bytes.subspan(2 + length));
  const TorchDistFolder dist(path);
  constexpr int64_t most = 1 << 16;
  for (const auto& t : dist.index().tensors) {
    const int64_t numel = *checked_numel(t.shape), width = bits_of_file_dtype(t.dtype) / 8;
    if (width == 0) continue;
    for (const int64_t first : {int64_t{0}, numel / 3}) {
      std::vector<uint8_t> numbers(static_cast<size_t>(std::min(most, numel - first) * width));
      try {
        dist.read(t, first, std::min(most, numel - first), numbers.data());
      } catch (const Error&) {
        // The next tensor may be sound.
      }
    }
  }
}

}  // namespace

// The first byte picks pickle, zip, tensor archive, index, or a whole torch_dist folder.
void read_torch(Bytes input) {
  if (input.empty()) return;
  const Bytes bytes = input.subspan(1);
  try {
    switch (input[0] % 5) {
      case 0: pickle::parse(bytes, "fuzz"); break;
      case 1: read_zip(window_of(bytes), "fuzz"); break;
      case 2: read_archived_tensor(window_of(bytes), "fuzz"); break;
      case 3: parse_dcp_metadata(bytes, "fuzz"); break;
      case 4: read_folder(bytes); break;
    }
  } catch (const Error&) {
  }
}

}  // namespace furlong::fuzz
