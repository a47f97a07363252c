// Who trains what: the numbers of a tensor are split among the ranks that hold them. Gradients are summed where they
// are owned, in the order of ranks; new weights go from their owners to all holders.
#pragma once
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "model/weights.h"
#include "parallel/mesh.h"

namespace furlong {

// Numbers [first, first + count) of the contiguous tensor, as one row.
Tensor flat(const Tensor& tensor, int64_t first, int64_t count);

// The numbers of a tensor that the holder at `index` of `holders` owns: blocks that begin at multiples of 64, so that
// each is aligned as a tensor is.
Range owned_block(int64_t numel, int64_t index, int64_t holders);
// Of the tensor as `place` holds it (spec of tensor_registry); none of a copied one.
Range owned_numbers(const ModelConfig&, const TensorSpec& spec, const MeshRank& place);

class Owners {
 public:
  // weights, and gradients later on, have the layout of mesh.place(). Everything here is called by all ranks of a stage
  // alike. block: numbers on their way to one owner at a time. stream: where weights on a device are worked on.
  Owners(const ModelConfig&, const Weights& weights, DType main_grads, bool train_mtp, int64_t block, const Mesh& mesh,
         const Stream* stream);

  // For Placement::owned; empty where one rank owns all that it holds in the tensor's own shape.
  std::function<Range(const TensorSpec&)> rule() const;
  bool trains(size_t tensor) const { return trained_[tensor]; }
  Range owned(size_t tensor) const { return owned_[tensor]; }
  // The owned numbers of a tensor of the weights' layout: flat on a mesh, the tensor itself where a rank is alone.
  Tensor view(const Weights& whole, size_t tensor) const;
  std::vector<Tensor> views(const Weights& whole) const;

  // Begins to sum a part's gradients where they are owned, in place, in fp32: the owned numbers become the sums over
  // all holders, in the order of ranks; the rest is as it was. On a device in a queue of its own, after what the stream
  // was given; returns the stream that they are computed in.
  Stream& reduce(Stream&, const Weights& grads, int part);
  // The sums of the parts that were not begun; what the stream is given afterwards finds all. All ranks of the mesh
  // call: a tied embedding's gradient on the last stage, the head's, is added to that on the first before it is summed.
  void reduce_rest(Stream&, const Weights& grads);
  // The next gradients are others.
  void forget() {
    reduced_.clear();
    joined_ = false;
  }
  // Whether a part's sums begin with reduce_rest() only.
  bool waits(int part) const { return tied_stages_ && part == embed_part && !joined_; }
  // Owned weights to all that hold them, copied embeddings included.
  void spread(Stream&, const Weights& weights);

  // Σ x² of the owned numbers of all trained tensors and of all ranks, in the order of ranks.
  double sum_of_squares(Stream&, const Weights& grads);

  // The whole model's tensor from what all ranks own of it, as bytes on rank 0 of the world; all ranks call. `like` has
  // the weights' layout.
  std::string whole(const Weights& like, size_t tensor) const;

  const Mesh& mesh() const { return mesh_; }
  uint64_t bytes() const { return staging_.bytes() + joining_.bytes(); }  // on the weights' device

 private:
  void reduce_tensor(Stream&, size_t tensor, const Tensor& grad);
  void join_stages(Stream&, const Weights& grads);

  const Mesh& mesh_;
  ModelConfig config_;
  std::vector<TensorSpec> specs_;
  std::vector<bool> trained_;
  std::vector<std::vector<int>> holders_;  // by tensor: ranks of the stage
  std::vector<int64_t> index_;             // by tensor: this rank among them
  std::vector<Range> owned_;
  int parts_ = 0;
  Buffer staging_;
  int64_t piece_ = 0;      // numbers that one rank sends at a time
  size_t slot_bytes_ = 0;  // of the staging, for one rank
  std::set<int> reduced_;  // parts whose sums are on their way or there
  // The embedding is the head, and they lie on different stages.
  bool tied_stages_ = false, joined_ = false;
  Buffer joining_;
  int64_t joining_piece_ = 0;  // numbers
  std::unique_ptr<Stream> beside_;
  std::shared_ptr<cuda::Event> ready_;
};

}  // namespace furlong
