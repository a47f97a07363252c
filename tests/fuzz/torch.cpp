// Fuzz target of the readers of PyTorch's formats: the first byte picks pickle, zip, tensor archive or index. Every
// input must end in a value or in an Error of the user's.
#include "base/error.h"
#include "checkpoint/dcp_metadata.h"
#include "checkpoint/pickle.h"
#include "checkpoint/torch_archive.h"
#include "checkpoint/zip.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace furlong;
  if (size == 0) return 0;
  const std::span<const uint8_t> bytes(data + 1, size - 1);
  try {
    switch (data[0] % 4) {
      case 0: pickle::parse(bytes, "fuzz"); break;
      case 1: read_zip(window_of(bytes), "fuzz"); break;
      case 2: read_archived_tensor(window_of(bytes), "fuzz"); break;
      case 3: parse_dcp_metadata(bytes, "fuzz"); break;
    }
  } catch (const Error&) {
  }
  return 0;
}
