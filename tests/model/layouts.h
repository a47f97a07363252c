// A model run over a mesh of thread ranks, and what all ranks together computed.
#pragma once
#include <map>
#include <mutex>

#include "parallel/threads.h"
#include "support.h"

namespace furlong::test {

struct Layout {
  int ranks = 1;
  ParallelSizes sizes;
  Dispatcher dispatcher = Dispatcher::alltoall;
  Recompute recompute = Recompute::none;
};

std::string name_of_layout(const Layout& l);
void PrintTo(const Layout& l, std::ostream* out);
int64_t data_ranks(const Layout& l);

// An architecture whose heads and experts can be split in many ways.
ModelConfig many_heads();

// The same with a dense network, three value heads a key head and, tied, the embedding as the head.
ModelConfig many_heads_dense(bool tied);

// What a rank of a mesh holds of the whole model's weights, which lie on the host.
Weights part_of(const ModelConfig& config, const Weights& whole, const MeshRank& place, Device device = Device::cpu);

// What all ranks together computed.
struct Outcome {
  double loss = 0, mtp_loss = 0;
  std::map<std::string, std::vector<double>> grads;  // of the whole tensors, summed over their holders
  std::mutex mutex;

  void add(const Pass& pass, const MeshRank& place);
};

// Sequences by data rank.
using Batches = std::vector<Sequences>;
// Each sequence to the next data rank.
Batches dealt(const Sequences& sequences, int64_t ranks);

void run_layout(const Layout& layout, const ModelConfig& config, const Weights& whole, const Batches& batches,
                PassOptions options, Outcome& outcome, Device device = Device::cpu);

// Losses, and gradients in their norm, agree to `tolerance`.
void expect_same(const Outcome& found, const Outcome& expected, double tolerance);

// Each rank scores its part of `sequences` by itself too: its log-probs are the same bits.
void expect_bits_of_one_rank(const Layout& layout, const ModelConfig& config, const Weights& whole,
                             const Sequences& sequences, Device device = Device::cpu);

}  // namespace furlong::test
