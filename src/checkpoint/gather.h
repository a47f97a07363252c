// A model's whole tensors on rank 0, where they are written, while its numbers lie on all ranks.
#pragma once
#include <functional>
#include <vector>

#include "checkpoint/shards.h"

namespace furlong {

class WholeTensors {
 public:
  // All ranks of the mesh call, each with its weights, and tell one another what they have of which tensor.
  WholeTensors(const Mesh& mesh, const Weights& weights);

  // Whether some rank has numbers of this tensor (by place in the registry), and what dtype they are of.
  bool defined(size_t tensor) const;
  DType dtype(size_t tensor) const;

  // Rank 0 runs `body`, which may call read(); the others answer its calls until it has ended. When it throws, it
  // throws on rank 0 alone.
  void serve(const std::function<void()>& body);
  // Hands numbers `window` of a whole tensor to the sink in order, in pieces of at most 2^24, as they are in the
  // weights.
  void read(size_t tensor, Range window, const std::function<void(const void* data, int64_t count)>& sink);

 private:
  struct Call {
    int64_t tensor, begin, end;  // tensor -1: no more calls
  };
  void send(const Call& call);
  Call receive();
  // Moves the numbers of a call to rank 0; `received` by rank, used on rank 0.
  void move(const Call& call, std::vector<std::vector<uint8_t>>& received);
  // What this rank gives of a window.
  Tensor slice(size_t tensor, Range window) const;

  Group& ranks_;
  const Weights& weights_;
  ThreadPool threads_;
  Stream stream_;                           // of the host
  std::vector<std::vector<Shard>> shares_;  // by rank, by tensor
};

}  // namespace furlong
