// Where the registry's tensors stand in a Hugging Face checkpoint: prefixes, and experts fused or one by one.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "model/weights.h"

namespace furlong {

// A registry's whole tensor, or the part of one, that a checkpoint stores under one name. The part is contiguous:
// `numel` elements from `offset` of the whole tensor, from element `at` of the stored one on.
struct FilePiece {
  std::string name;
  std::vector<int64_t> shape;  // of the stored tensor
  int64_t offset = 0;
  int64_t numel = 0;
  int64_t at = 0;
};

// How a checkpoint stores a tensor: under its own name, one expert at a time, or among the rows of others.
enum class Stored : uint8_t { whole, per_expert, joined };

// The pieces of a tensor in the registry's own names, one after another. per_expert needs spec.per_expert; (E, 2F, H)
// gives per expert the gate rows and the up rows, (E, H, F) one piece per expert. joined needs spec.joined.
std::vector<FilePiece> pieces_of(const TensorSpec& spec, Stored stored);

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

// How the checkpoint stores this tensor: otherwise than whole where it does not have the whole one, but some piece.
Stored stored_as(const TensorSpec& spec, const HfLayout& layout, const HasTensor& has);

}  // namespace furlong
