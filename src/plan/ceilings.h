// What this machine's CPU does at most, measured: arithmetic that never leaves the registers, and reading a block over
// and over.
#pragma once
#include <cstddef>

#include "base/threads.h"
#include "plan/time.h"

namespace furlong {

// Seconds that a figure is made of: of a clock on the wall, or of the processor, over all threads of the process. The
// second serves a machine that others use at the same time, with one thread.
enum class BenchClock { wall, processor };
double bench_seconds(BenchClock clock);

// All threads together, operations per second (a multiply-add counts two). The best of several runs.
struct Ceilings {
  double fp32 = 0;    // multiply-adds of the widest vectors this machine has
  double bf16 = 0;    // dot products of bf16 pairs into fp32; 0 where it has none
  double memory = 0;  // bytes/s, reading a block far larger than the caches
};
Ceilings measure_ceilings(ThreadPool& threads, BenchClock clock);

// Bytes/s of reading a block of so many bytes repeatedly, each thread its own part: of the cache that holds it, or of
// memory. It lies as weights and caches do, on large pages.
double read_rate(ThreadPool& threads, BenchClock clock, size_t bytes);

// The least seconds that a model's work takes on the CPU: the larger of
//   operations over the ceiling of the model's dtype (bf16 numbers may be widened: the better one), and bytes that must
//   be read over the rate of reading them.
// Operations are those of model_cost: per token 2 x the active parameters (router, k experts and the shared one, head),
// 4 x keys x head columns of attention, and for the delta rule 6 Dk Dv + 5 x 64 (Dk + Dv) + 2 x 64² a value head in
// chunks of 64, or 7 Dk Dv one token at a time in decoding, which is fp32 in either dtype. Normalisation, gates,
// softmax, convolution, sampling and routing count nothing.
class CpuLimits {
 public:
  // weights_rate: of reading a block as large as the model, which a cache may hold.
  CpuLimits(const ModelConfig& config, DType dtype, const Ceilings& ceilings, double weights_rate);

  // Bytes that a step of `batch` sequences with `context` cached tokens each moves: all touched weights once (experts
  // by even routing), and of every sequence its keys and values, window and state, read once. A state must also be kept
  // up to date: it is written once per chunk of 64 rows, and until then the chunk's earlier rows, half of them on
  // average, are read with it (keys and corrections of fp32, decays of fp64).
  double decode_bytes(int64_t batch, int64_t context) const;
  // Bytes that such steps go over again and again: all weights beside those of the sequences.
  double decode_block(int64_t batch, int64_t context) const;
  // Such a step, its bytes at `rate`: that of reading a block as large as decode_block.
  double decode_step(int64_t batch, int64_t context, double rate) const;
  // One prompt; logits of its last token.
  double prefill(int64_t tokens) const;
  // Forward and backward without recomputation, three times a forward's operations (attention's core 3.5 times) with
  // all logits, and AdamW over fp32 gradients, masters and moments, 30 bytes a parameter, at the rate of memory.
  double train_step(int64_t tokens, int64_t length) const;

  double parameters() const;
  double active_parameters() const;
  double weights_rate() const { return weights_rate_; }

 private:
  double operations(double tokens, double length) const;  // of a forward without the head
  double sequence_bytes(int64_t context) const;           // that a decoding sequence moves besides weights

  ModelConfig config_;
  DType dtype_;
  Ceilings ceilings_;
  ModelCost cost_;
  double weights_rate_, peak_;
};

}  // namespace furlong
