// The way of an offloaded optimizer step: gradients down to the host, the update there, new weights up again. Blocks
// of tensors follow each other, so that both copies and the update run at once, each in a queue of its own.
#pragma once
#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "optim/owners.h"

namespace furlong {

class Offload {
 public:
  struct Piece {
    size_t tensor;  // place in the registry
    int64_t first, count;
  };
  // Updates the numbers of a piece in host memory: gradients in, new weights out. Returns when it is done.
  using Update = std::function<void(Stream& host, const Piece&, Tensor weight, Tensor grad)>;

  // weights: on a device, those that this rank updates (Owners::views), in `dtype`. masters: of the tensors of
  // place.on_host, in page-locked memory; in the weights' own dtypes they are copies of the weights and travel
  // themselves, else weights are rounded from them on their way. main_grads, overlap and block (numbers) as in
  // OptimOptions. Gradients come as views like the weights'.
  Offload(const ModelConfig&, std::vector<Tensor> weights, DType dtype, const Weights& masters, Placement place,
          DType main_grads, bool overlap, bool train_mtp, int64_t block);

  // With overlap: the gradients of a part go down as soon as the stream has computed them.
  void send(Stream&, const std::vector<Tensor>& grads, int part);
  // Waits for what is on its way.
  void settle();
  // Updates every trained piece; without overlap the gradients go down now. What the stream is given afterwards finds
  // the new weights.
  void step(Stream&, const std::vector<Tensor>& grads, const Update& update);
  // masters = weights, and weights = masters rounded.
  void fetch_masters(Stream&);
  void push_weights(Stream&);

  uint64_t host_bytes() const { return ring_.bytes() + grads_.host_bytes(); }

 private:
  struct Block {
    std::vector<Piece> pieces;  // neighbours in the registry and in memory
    int part;
    bool trained;
  };
  void cut(const std::vector<bool>& on_host, bool together, bool train_mtp, int64_t numbers);
  const Block& trained(size_t i) const { return blocks_[trained_[i]]; }
  void copy_block(cuda::Queue&, const std::vector<Tensor>& device, char* host, const Block&, bool up) const;
  char* grad_slot(size_t i) const;
  char* weight_slot(size_t i) const;
  // The tensor of a piece within a copy of its block's memory in `like`.
  static Tensor within(const std::vector<Tensor>& like, const Block&, const Piece&, char* copy);

  std::vector<Tensor> weights_;
  const Weights& masters_;
  bool overlap_, masters_travel_;
  DType main_grads_;
  Stream host_;
  std::vector<Block> blocks_;    // in the order in which gradients are complete
  std::vector<size_t> trained_;  // those that a step updates
  Weights grads_;                // with overlap: all gradients on the host
  std::set<int> sent_;           // parts whose gradients are on their way or there
  Buffer ring_;
  size_t grad_slot_bytes_ = 0, weight_slot_bytes_ = 0;
  std::shared_ptr<cuda::Queue> down_, up_;
  std::shared_ptr<cuda::Event> ready_;
  std::vector<std::shared_ptr<cuda::Event>> grads_here_;  // by slot, with overlap by part
  std::vector<std::shared_ptr<cuda::Event>> weights_there_;
};

}  // namespace furlong
