// Where the registry's tensors lie in Megatron's checkpoints of the format torch_dist. Keys and row orders: miles' spec
// of Qwen3.5 in radixark/Megatron-LM (SelfAttention with output gate, the swiglu factory, GroupedMLP).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/weights.h"

namespace furlong {

// Numbers that lie together both in a registry tensor and in a tensor of the checkpoint, each flat and row-major.
struct DistRun {
  int64_t ours = 0, theirs = 0, count = 0;
};

// A tensor of the checkpoint and what it holds of a registry tensor.
struct DistPlace {
  std::string key;
  std::vector<int64_t> shape;
  std::vector<DistRun> runs;      // by `ours`
  bool padded = false;            // axis 0 is the vocabulary: the checkpoint may have more rows
  std::vector<int64_t> box = {};  // the box that miles' writer cuts the tensor into; empty: rows
};

// The places that together hold one registry tensor.
using DistPlaces = std::vector<DistPlace>;

// Every way in which checkpoints hold the tensor, the way of miles' converter (which we write) first: then names of
// norms that are not fused with the next matrix, experts one by one or cut in gate and up (singleton_local_shards),
// the MTP layer under mtp_model_layer, and layers stacked in axis 0 of one key without their number.
std::vector<DistPlaces> dist_places(const TensorSpec& spec, const ModelConfig& config);

// Whether a key is of no weight: optimizer, random-number and extra state.
bool is_state_key(std::string_view key);

// Row blocks of linear_qkv with an output gate. Per group of r = query_heads / groups heads of width d:
// [r x q d | r x gate d | k d | v d]; q_proj has per head [q d | gate d]. Counts are rows.
enum class QkvPart : uint8_t { q, k, v };
std::vector<DistRun> qkv_runs(QkvPart part, int64_t query_heads, int64_t groups, int64_t head_dim);

}  // namespace furlong
