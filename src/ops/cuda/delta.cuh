// The gated delta rule's operands as its kernels see them, and the chunks of a batch.
#pragma once
#include "ops/cuda/kernel.cuh"
#include "ops/delta_rule.h"

namespace furlong::cuda::delta {

constexpr int chunk_rows = static_cast<int>(delta_chunk);
constexpr float l2_eps = 1e-6f;

// Everything but the model's own dtype; pointers are null where a tensor is undefined.
struct Call {
  int rows, segments;
  int kh, vh, dk, dv, group;  // group: value heads per key head
  const int32_t *starts, *positions;
  const int32_t *slots, *speculative;
  float *state, *ring_k, *ring_u, *ring_beta;
  half_t *ring_keys, *ring_right;  // the rings of k and u where they are bf16
  double* ring_g;
  int ring;
  const float *g, *beta;
  float *q, *k, *q_r, *k_r, *u;
  double* gamma;
  float* states;
  const float* state0;
  float* state1;

  __device__ int64_t state_size() const { return static_cast<int64_t>(dk) * dv; }
  __device__ const float* ring_k_at(int slot, int position, int key_head) const {
    return ring_k + ((static_cast<int64_t>(slot) * ring + position % ring) * kh + key_head) * dk;
  }
  __device__ const float* ring_u_at(int slot, int position, int head) const {
    return ring_u + ((static_cast<int64_t>(slot) * ring + position % ring) * vh + head) * dv;
  }
  __device__ int64_t entry(int slot, int position) const { return static_cast<int64_t>(slot) * ring + position % ring; }
  __device__ half_t* keys_of(int64_t entry, int key_head) const { return ring_keys + (entry * kh + key_head) * dk; }
  __device__ half_t* right_of(int64_t entry, int head) const { return ring_right + (entry * vh + head) * dv; }
  __device__ double& g_of(int64_t entry, int head) const { return ring_g[entry * vh + head]; }
  __device__ float& beta_of(int64_t entry, int head) const { return ring_beta[entry * vh + head]; }
  __device__ half_t* ring_keys_at(int slot, int position, int key_head) const {
    return keys_of(entry(slot, position), key_head);
  }
  __device__ half_t* ring_right_at(int slot, int position, int head) const {
    return right_of(entry(slot, position), head);
  }
  __device__ double& ring_g_at(int slot, int position, int head) const { return g_of(entry(slot, position), head); }
  __device__ float& ring_beta_at(int slot, int position, int head) const {
    return beta_of(entry(slot, position), head);
  }
};

template <class T>
T* data_or_null(const Tensor& t) {
  return t.defined() ? t.as<T>() : nullptr;
}

// Whether a slot's rings are those of the tensor-core kernels.
inline bool rings_of_tensor_cores(const DeltaSlots& slots) { return slots.ring_u.dtype() == DType::bf16; }

// The memory of some layers, for a commit of all of them in one launch.
struct CommitLayers {
  static constexpr int most = 64;
  struct Layer {
    float *state, *ring_k, *ring_u, *ring_beta;
    half_t *ring_keys, *ring_right;
    double* ring_g;
  };
  Layer layer[most];

  __device__ void select(Call& c) const {
    const Layer& l = layer[blockIdx.z];
    c.state = l.state, c.ring_k = l.ring_k, c.ring_u = l.ring_u, c.ring_beta = l.ring_beta;
    c.ring_keys = l.ring_keys, c.ring_right = l.ring_right, c.ring_g = l.ring_g;
  }
};

inline void set_slots(Call& c, const DeltaSlots& slots) {
  c.slots = data_or_null<int32_t>(slots.slots), c.state = slots.state.as<float>();
  c.ring_g = slots.ring_g.as<double>(), c.ring = static_cast<int>(slots.ring_k.dim(1));
  if (rings_of_tensor_cores(slots)) {
    c.ring_keys = data_of<half_t>(slots.ring_k), c.ring_right = data_of<half_t>(slots.ring_u);
    c.ring_beta = slots.ring_beta.as<float>();
  } else {
    c.ring_k = slots.ring_k.as<float>(), c.ring_u = slots.ring_u.as<float>();
  }
}

inline Call call_of(const Tensor& g, const Tensor& beta, const Tensor& state0, const Tensor& state1,
                    const Segments& segments, const DeltaSlots& slots, const DeltaSaved& saved, const DeltaShape& d) {
  Call c{};
  c.rows = static_cast<int>(g.rows());
  c.segments = static_cast<int>(segments.count());
  c.kh = static_cast<int>(d.key_heads), c.vh = static_cast<int>(d.value_heads);
  c.dk = static_cast<int>(d.key_dim), c.dv = static_cast<int>(d.value_dim), c.group = c.vh / c.kh;
  c.starts = segments.starts.as<int32_t>(), c.positions = segments.positions.as<int32_t>();
  if (slots.defined()) {
    set_slots(c, slots);
    c.speculative = slots.speculative.as<int32_t>();
  }
  c.g = g.as<float>(), c.beta = beta.as<float>();
  c.q = saved.q.as<float>(), c.k = saved.k.as<float>(), c.q_r = saved.q_r.as<float>(), c.k_r = saved.k_r.as<float>();
  c.u = saved.u.as<float>(), c.gamma = saved.gamma.as<double>();
  c.states = data_or_null<float>(saved.states);
  c.state0 = data_or_null<float>(state0), c.state1 = data_or_null<float>(state1);
  return c;
}

// One chunk of a segment. Its row r, of 64, is row base + r of the batch for lo <= r < hi; rows before lo, where the
// segment begins within the chunk, lie in the slot's ring.
struct Chunk {
  int segment, base, begin;  // begin: the position of row 0
  int16_t lo, hi;
};

// Where a batch's chunks are listed, in device memory: chunks[total()] in segment order, first[s] the first of a
// segment, first[segments] their number.
struct Plan {
  Chunk* chunks;
  int* first;
};

// At most this many chunks: each segment adds at most two that are not full.
inline int64_t most_chunks(int64_t rows, int64_t segments) { return std::min(rows, rows / delta_chunk + 2 * segments); }

// A segment's rows in the batch, [start, end), and the position of the first.
struct Extent {
  int start, end, position;
};
__device__ inline Extent extent_of(const Call& c, int segment) {
  const int start = c.starts[segment], end = c.starts[segment + 1];
  return {start, end, start == end ? 0 : c.positions[start]};
}
__device__ inline Chunk chunk_of(const Extent& e, int segment, int index) {
  const int rows = e.end - e.start, p = e.position;
  const int begin = (p / chunk_rows + index) * chunk_rows, base = e.start + begin - p;
  return {segment, base, begin, static_cast<int16_t>(max(0, p - begin)),
          static_cast<int16_t>(min(chunk_rows, p + rows - begin))};
}
__device__ inline Chunk chunk_of(const Call& c, int segment, int index) {
  return chunk_of(extent_of(c, segment), segment, index);
}

__device__ inline int chunks_in(const Extent& e) {
  if (e.start == e.end) return 0;
  return (e.position + e.end - e.start - 1) / chunk_rows - e.position / chunk_rows + 1;
}
__device__ inline int chunks_in(const Call& c, int segment) { return chunks_in(extent_of(c, segment)); }

// Launches what fills the plan.
void make_plan(Queue&, const Call&, const Plan&);

constexpr bool tensor_cores = true;
// The heads of the generic kernels and those of the released models.
inline bool fits_tensor_cores(const Tensor& x, const DeltaShape& d) {
  return tensor_cores && x.dtype() == DType::bf16 && d.key_dim == 128 && d.value_dim == 128 &&
         x.row_stride() % 8 == 0 && reinterpret_cast<uintptr_t>(x.data()) % 16 == 0;
}

void forward_128(Queue&, const Call&, const Tensor& o, const Tensor& x);
// Whether a batch is one of decode_128: few rows of segments with memory. A cluster of its blocks has the value heads
// of a key head: at most 8.
inline bool decodes_128(const Call& c) {
  return c.slots != nullptr && c.states == nullptr && c.rows <= 4 * c.segments && c.group <= 8;
}
void decode_128(Queue&, const Call&, const Tensor& o, const Tensor& x);
// The whole core of a layer, y being what comes out of the norm.
bool core_fits(const Tensor& y, const DeltaCore&, const DeltaSlots&);
void decode_core_128(Queue&, const Call&, const Tensor& y, const DeltaCore&, const Segments&, const DeltaSlots&);
void commit_128(Queue&, const Call&, const CommitLayers&, int layers, const int32_t* before, const int32_t* after);
void backward_128(Queue&, const Call&, const Tensor& dx, const Tensor& dg, const Tensor& dbeta, const Tensor& dstate0,
                  const Tensor& do_, const Tensor& dstate1, const Tensor& x);

}  // namespace furlong::cuda::delta
