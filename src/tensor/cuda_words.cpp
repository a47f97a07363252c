// What is said of devices and their errors; the same in a build without CUDA, so that it is tested everywhere.
#include <fmt/format.h>

#include "tensor/cuda.h"
#include "tensor/cuda_devices.h"

namespace furlong::cuda {
namespace {

constexpr int built_major = 9;  // sm_90a

}  // namespace

int device_of(int local_rank, int count) { return count == 1 ? 0 : local_rank; }

std::string why_not(int count, int index, const std::string& error) {
  if (count <= 0) {
    return fmt::format("--device cuda: no CUDA device was found ({}). Check nvidia-smi, or use --device cpu.",
                       error.empty() ? "none is visible" : error);
  }
  if (index < 0 || index >= count) {
    return fmt::format("--device cuda: device {} was asked for, {} found; start one rank a GPU", index, count);
  }
  return "";
}

std::string why_not(const DeviceInfo& device) {
  if (device.major == built_major) return "";
  return fmt::format(
      "--device cuda: {} has compute capability {}.{}; this program holds code for {}.x (H100, H200) only. Use such a "
      "device, or --device cpu.",
      device.name, device.major, device.minor, built_major);
}

std::string describe_error(const char* call, const char* last_op, const std::string& words, const std::string& name) {
  std::string text = fmt::format("CUDA error in {}: {} ({}).", call, words, name);
  if (last_op != nullptr) {
    text += fmt::format(
        " The last op launched before it was {}; with CUDA_LAUNCH_BLOCKING=1 in the environment the op at fault is "
        "named itself.",
        last_op);
  }
  return text + " The last checkpoint is untouched; start again to resume from it.";
}

}  // namespace furlong::cuda
