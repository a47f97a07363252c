// Where the registry's tensors stand in a Hugging Face checkpoint: prefixes, and experts fused or one by one.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "model/weights.h"

namespace furlong {

// A registry's whole tensor, or the part of one, that a checkpoint stores under one name. The part is contiguous:
// `numel` elements from `offset` of the whole tensor.
struct Piece {
  std::string name;
  std::vector<int64_t> shape;
  int64_t offset = 0;
  int64_t numel = 0;
};

// The pieces of a tensor in the registry's own names. per_expert needs spec.per_expert; (E, 2F, H) gives per expert the
// gate rows and the up rows, (E, H, F) one piece per expert.
std::vector<Piece> pieces_of(const TensorSpec& spec, bool per_expert);

// The prefix under which a checkpoint keeps the language model: "model.language_model.", "model." or
// "language_model.model.", and the name of its head.
struct HfLayout {
  std::string trunk = "model.language_model.";
  std::string head = "lm_head.weight";

  // A registry name as this checkpoint writes it.
  std::string translate(const std::string& name) const;
  // Whether an unknown tensor of this name would be a part of the model that we should have known.
  bool owns(const std::string& name, bool has_mtp) const;
};

using HasTensor = std::function<bool(const std::string&)>;

// The layout under which most tensors of the registry are found.
HfLayout detect_layout(const std::vector<TensorSpec>& specs, const HasTensor& has);

// Whether the checkpoint stores this tensor one expert at a time: some expert's piece is there and the fused one is
// not.
bool is_per_expert(const TensorSpec& spec, const HfLayout& layout, const HasTensor& has);

}  // namespace furlong
