// What is said of devices that cannot be used, and of their errors. No device is needed to say it.
#include <gtest/gtest.h>

#include "tensor/cuda.h"
#include "tensor/cuda_devices.h"

namespace furlong {
namespace {

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << part << " is not in: " << text;
}

TEST(CudaWords, NoDriverOrNoDevice) {
  const std::string none = cuda::why_not(0, 0, "CUDA driver version is insufficient");
  expect_contains(none, "CUDA driver version is insufficient");
  expect_contains(none, "nvidia-smi");
  expect_contains(none, "--device cpu");
  expect_contains(cuda::why_not(0, 0, ""), "none is visible");
  EXPECT_EQ(cuda::why_not(1, 0, ""), "");
  expect_contains(cuda::why_not(2, 2, ""), "device 2 was asked for, 2 found; start one rank a GPU");
  expect_contains(cuda::why_not(2, -1, ""), "-1");
}

TEST(CudaWords, ARankUsesTheDeviceOfItsNumberOrTheOneItSees) {
  for (int rank = 0; rank < 8; rank++) {
    EXPECT_EQ(cuda::device_of(rank, 8), rank);
    EXPECT_EQ(cuda::device_of(rank, 1), 0);
  }
  expect_contains(cuda::why_not(4, cuda::device_of(5, 4), ""), "device 5 was asked for, 4 found");
}

TEST(CudaWords, OnlyHopper) {
  const auto device = [](int major, int minor) {
    return cuda::why_not({.name = "Some GPU", .major = major, .minor = minor});
  };
  EXPECT_EQ(device(9, 0), "");
  for (const auto& [major, minor] : {std::pair(7, 5), {8, 0}, {8, 9}, {10, 0}, {12, 0}}) {
    const std::string text = device(major, minor);
    expect_contains(text, "Some GPU");
    expect_contains(text, std::to_string(major) + "." + std::to_string(minor));
    expect_contains(text, "9.x");
    expect_contains(text, "--device cpu");
  }
}

TEST(CudaWords, AnErrorNamesCallAndOp) {
  const std::string text =
      cuda::describe_error("cudaStreamSynchronize", "embed", "an illegal memory access", "cudaErrorIllegalAddress");
  for (const char* part : {"cudaStreamSynchronize", "embed", "an illegal memory access", "cudaErrorIllegalAddress",
                           "CUDA_LAUNCH_BLOCKING=1", "last checkpoint"}) {
    expect_contains(text, part);
  }
  const std::string plain = cuda::describe_error("cudaMalloc", nullptr, "broken", "cudaErrorUnknown");
  EXPECT_EQ(plain.find("last op"), std::string::npos);
}

}  // namespace
}  // namespace furlong
