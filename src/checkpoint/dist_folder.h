// A folder of Megatron's format torch_dist: latest_checkpointed_iteration.txt beside release/ or iter_NNNNNNN/, which
// holds metadata.json (the format's tag), .metadata (the index) and the .distcp files it names, in which archives of
// torch.save lie one after the other. Nothing in any of them is run.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/file.h"
#include "checkpoint/dcp_metadata.h"

namespace furlong {

constexpr const char* dist_tracker_name = "latest_checkpointed_iteration.txt";
constexpr const char* dist_tag_name = "metadata.json";
constexpr const char* dist_index_name = ".metadata";
constexpr const char* dist_common_name = "common.pt";

// What a checkpoint folder holds: by the files that are there, not by their content.
enum class CheckpointKind : uint8_t { none, hf, torch_dist, furlong };
CheckpointKind checkpoint_kind(const std::string& path);

// Places of numbers in a box of a larger tensor (sizes of one rank), for what is stored of a flat range.
class BoxRange {
 public:
  BoxRange(std::span<const int64_t> shape, std::span<const int64_t> offsets, std::span<const int64_t> sizes);
  // How many of the box's numbers come before element `flat` of the whole tensor, in row-major order.
  int64_t before(int64_t flat) const;
  // Where number `i` of the box stands in the whole tensor.
  int64_t in_whole(int64_t i) const;
  // Numbers of the box that follow each other in the whole tensor, from a multiple of this on.
  int64_t run() const { return run_; }
  int64_t numel() const { return numel_; }

 private:
  std::span<const int64_t> offsets_, sizes_;
  std::vector<int64_t> stride_, inner_;  // of one step of an axis: in the whole, in the box
  int64_t numel_ = 1, whole_ = 1, run_ = 1;
};

class TorchDistFolder {
 public:
  // `path`: the folder with the tracker, or the iteration's own. Reads and checks all but the numbers: tag, index, that
  // every file is a regular one and long enough. Throws Error(Exit::input).
  explicit TorchDistFolder(const std::string& path);
  TorchDistFolder(const TorchDistFolder&) = delete;
  TorchDistFolder& operator=(const TorchDistFolder&) = delete;
  const std::string& directory() const { return directory_; }  // the iteration's
  const DcpMetadata& index() const { return index_; }

  // The bytes of elements [first, first + count) of a tensor of the index, in its own dtype. An archive is held against
  // index and checksum when it is first needed. May be called from several threads. Throws Error(Exit::input).
  void read(const DcpTensor& tensor, int64_t first, int64_t count, uint8_t* to) const;

 private:
  struct Archive {
    std::once_flag checked;
    uint64_t payload = 0;  // where its numbers begin in the file
  };
  const Archive& open_archive(const DcpTensor& tensor, size_t chunk) const;
  void check_archive(const DcpTensor& tensor, const DcpChunk& chunk, Archive& archive) const;
  std::shared_ptr<const RangeFile> file(uint32_t number) const;

  std::string directory_;
  DcpMetadata index_;
  std::vector<size_t> first_archive_;  // of each tensor
  mutable std::vector<Archive> archives_;
  mutable std::mutex mutex_;  // of open_
  mutable std::unordered_map<uint32_t, std::shared_ptr<const RangeFile>> open_;
};

}  // namespace furlong
