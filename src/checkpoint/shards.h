// Which numbers of a model's whole tensors a rank holds, or a file: the same arithmetic for saving, loading, exporting
// and drawing a model that is spread over ranks.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/weights.h"

namespace furlong {

// Numbers `own` of the block that `held` cuts out of a tensor of full_shape (in row-major order; by dimension the
// indices that are there, empty: all). They lie one after another.
struct Shard {
  std::vector<int64_t> full_shape;
  std::array<std::vector<Range>, 3> held;
  Range own;

  int64_t full_numel() const;
  bool is_whole() const;  // all numbers of the tensor
};

// Numbers that lie one after another in a shard (from its number `first`) and in the whole tensor.
struct Run {
  int64_t first, full_first, count;
};

// Calls f for each run of those numbers of a shard that are numbers `window` of the whole tensor, both rising. Takes no
// time for what lies outside of the window.
void for_each_run_in(const Shard& shard, Range window, const std::function<void(const Run&)>& f);
std::vector<Run> runs_of(const Shard& shard);
// The numbers of the shard that lie in the window: one after another, for both orders agree.
Range numbers_in(const Shard& shard, Range window);

// What a tensor of a Weights holds.
Shard shard_of(const TensorSpec& spec);
// What a rank gives of it, so that over all ranks each number is given once: all of a flat tensor, whose numbers are
// owned already; of any other a block, this rank being one of those that hold the same. Nothing of one that is `copied`
// or lies elsewhere.
Shard share_of(const TensorSpec& spec, const MeshRank& place);

// By tensor of the registry what a rank gives; empty (own.size() == 0) for those that are undefined.
std::vector<Shard> shares_of(const Weights& weights);

// A shard as a line of JSON, {"held":[[[0,4]],[]],"of":[8,6],"own":[0,24]}, and back. Throws Error(Exit::input) naming
// `where` unless these are numbers of a tensor.
std::string text_of(const Shard& shard);
Shard shard_from_text(const std::string& text, const std::string& where);

}  // namespace furlong
