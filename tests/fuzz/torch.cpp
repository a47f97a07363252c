// Fuzz target of the readers of PyTorch's formats: the first byte picks pickle, zip, tensor archive, index, or a whole
// torch_dist folder. Every input must end in a value or in an Error of the user's.
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "base/error.h"
#include "checkpoint/dcp_metadata.h"
#include "checkpoint/dist_folder.h"
#include "checkpoint/pickle.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/torch_archive.h"
#include "checkpoint/zip.h"

namespace {

using namespace furlong;

void put(const std::string& path, std::span<const uint8_t> bytes) {
  std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
}

// A folder in memory, with the tag that every good one has.
const std::string& folder() {
  static const std::string& path = *[] {  // never destroyed: the exit handler reads it
    char name[] = "/dev/shm/furlong-fuzz-XXXXXX";
    if (mkdtemp(name) == nullptr) std::abort();
    std::ofstream(std::string(name) + "/" + dist_tag_name) << R"({"sharded_backend": "torch_dist"})";
    std::atexit([] { std::system(("rm -rf " + folder()).c_str()); });
    return new std::string(name);
  }();
  return path;
}

// Two bytes of length and the index, then the one file of archives.
void read_folder(std::span<const uint8_t> bytes) {
  if (bytes.size() < 2) return;
  const auto length = std::min<size_t>(bytes[0] | bytes[1] << 8, bytes.size() - 2);
  put(folder() + "/" + dist_index_name, bytes.subspan(2, length));
  put(folder() + "/__0_0.distcp", bytes.subspan(2 + length));
  const TorchDistFolder dist(folder());
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

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::span<const uint8_t> bytes(data + 1, size - 1);
  try {
    switch (data[0] % 5) {
      case 0: pickle::parse(bytes, "fuzz"); break;
      case 1: read_zip(window_of(bytes), "fuzz"); break;
      case 2: read_archived_tensor(window_of(bytes), "fuzz"); break;
      case 3: parse_dcp_metadata(bytes, "fuzz"); break;
      case 4: read_folder(bytes); break;
    }
  } catch (const Error&) {
  }
  return 0;
}
