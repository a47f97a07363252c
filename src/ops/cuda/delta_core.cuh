// What a decode step of a delta-net layer does around the rule, for heads of 128 in bf16: the convolution before it and
// the norm behind it, each by the arithmetic of its own kernel (conv.cu, norm.cu).
#pragma once
#include "ops/cuda/conv.cuh"
#include "ops/cuda/delta_gates.cuh"
#include "ops/cuda/delta_tile.cuh"
#include "ops/cuda/packs.cuh"

namespace furlong::cuda::delta {

constexpr int core_threads = 256;
// The convolution of own rows: a thread takes 8 channels of q, k or v of every third row.
constexpr int channels = 8, pieces = head_dim / channels, conv_rows = 3;
constexpr int convolving = 3 * pieces * conv_rows;  // threads
constexpr int norm_lanes = head_dim / furlong::cuda::pack;

// What a thread has at hand before the row itself is there.
struct Early {
  uint4 taps[fast_taps * channels * sizeof(half_t) / 16];
  uint4 past[fast_taps - 1];
};

// The operands of a layer's core beside those of the rule.
struct Layer {
  Conv<half_t> conv;
  const half_t *a, *b;
  int64_t a_stride, b_stride;
  const float* A_log;
  const half_t* dt_bias;
  const half_t* z;
  int64_t z_stride;
  Weights norm;
  float eps;
};

__device__ inline void copy_16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

// A block of core_threads has one value head of one segment.
struct CoreRows {
  const Call& c;
  const Layer& layer;
  const half_t* x;  // before the convolution
  int64_t x_stride;
  Extent extent;
  int slot, head, key_head;

  // The channels that this thread convolves: which of q, k and v, the first number of the head and of the row.
  struct Share {
    int part, piece, channel, row;
  };
  __device__ Share share() const {
    const int i = threadIdx.x % (3 * pieces), part = i / pieces, piece = i % pieces * channels;
    const int at = part == 2 ? 2 * c.kh + head : part * c.kh + key_head;
    return {part, piece, at * head_dim + piece, static_cast<int>(threadIdx.x) / (3 * pieces)};
  }
  __device__ bool convolves() const { return threadIdx.x < convolving; }
  __device__ half_t* window_at(int position) const {
    const Conv<half_t>& conv = layer.conv;
    return conv.window + (static_cast<int64_t>(slot) * conv.entries + position % conv.entries) * conv.channels;
  }
  // Input i of the three before row t, as Conv::before says; without a load.
  __device__ const half_t* past_at(int t, int i) const {
    const int from = t - (fast_taps - 1 - i);
    if (from >= extent.start) return x + from * x_stride;
    const int position = extent.position + from - extent.start;
    return position < 0 ? nullptr : window_at(position);
  }

  // The taps of this thread's channels and what the window holds of the inputs before its first own row; no other
  // kernel of a recorded step writes the window.
  __device__ void fetch_early(const Chunk& ck, Early& early) const {
    const Share own = share();
    const int t = ck.base + ck.lo + own.row;
    if (!convolves() || ck.lo + own.row >= ck.hi) return;
    const half_t* taps = layer.conv.w + static_cast<int64_t>(own.channel) * fast_taps;
#pragma unroll
    for (int i = 0; i < fast_taps; i++) copy_16(&early.taps[i], taps + i * channels);
#pragma unroll
    for (int i = 0; i < fast_taps - 1; i++) {
      if (t - (fast_taps - 1 - i) >= extent.start) continue;
      const half_t* from = past_at(t, i);
      if (from != nullptr) {
        copy_16(&early.past[i], from + own.channel);
      } else {
        early.past[i] = uint4{};
      }
    }
  }

  // Own rows of q, k and v as conv_silu gives them, into their images. Of inputs, one a thread,
  // each gets its first own row.
  __device__ void convolve(const Chunk& ck, Early& early, half_t* q, half_t* k, half_t* v, uint4* inputs) const {
    const Share own = share();
    const int first = ck.lo + own.row;
    if (convolves() && first < ck.hi) {
      half_t* image = own.part == 0 ? q : own.part == 1 ? k : v;
#pragma unroll 1
      for (int r = first; r < ck.hi; r += conv_rows) {
        const int t = ck.base + r;
        const uint4 now = *reinterpret_cast<const uint4*>(x + t * x_stride + own.channel);
#pragma unroll
        for (int i = 0; i < fast_taps - 1; i++) {
          if (r == first && t - (fast_taps - 1 - i) < extent.start) continue;
          const half_t* from = past_at(t, i);
          early.past[i] = from != nullptr ? *reinterpret_cast<const uint4*>(from + own.channel) : uint4{};
        }
        if (r == first) {
          asm volatile("cp.async.wait_group 1;" ::: "memory");  // the rows of the ring may still be on their way
          inputs[threadIdx.x] = now;
        }
        convolve_row(image + place<head_dim>(r, own.piece), early, now);
      }
    }
  }
  __device__ static void convolve_row(half_t* to, const Early& early, const uint4& input) {
    constexpr int V = 4;
    const auto* taps = reinterpret_cast<const half_t*>(early.taps);
    const uint2 halves[2] = {{input.x, input.y}, {input.z, input.w}};
#pragma unroll
    for (int at = 0; at < channels; at += V) {
      float w[fast_taps][V], past[fast_taps - 1][V], now[V], out[V];
      load_taps<half_t, V>(w, taps + at * fast_taps);
#pragma unroll
      for (int i = 0; i < fast_taps - 1; i++) load(past[i], reinterpret_cast<const half_t*>(&early.past[i]) + at);
      widen(now, reinterpret_cast<const Pack<half_t, V>&>(halves[at / V]));
#pragma unroll
      for (int v = 0; v < V; v++) out[v] = silu(tap_sum(w, past, now, v));
      store(to + at, out);
    }
  }

  // The window gets the segment's last inputs; those of q and k from the first value head of their key head.
  __device__ void keep_inputs(bool one_chunk, const uint4* inputs) const {
    const Share own = share();
    if (!convolves() || (own.part != 2 && head != key_head * c.group)) return;
    const int first = extent.start, end = extent.end, position = extent.position;
    for (int t = first + own.row; t < end; t += conv_rows) {
      if (t < end - layer.conv.entries) continue;
      const bool at_hand = one_chunk && t == first + own.row;
      *reinterpret_cast<uint4*>(window_at(position + t - first) + own.channel) =
          at_hand ? inputs[threadIdx.x] : *reinterpret_cast<const uint4*>(x + t * x_stride + own.channel);
    }
  }

  // gated_rms_norm of own rows of o, which lie one after another in `rows`: a team of 16 lanes takes one.
  // The last threads, which convolve nothing, take the first row.
  __device__ static int norm_team() { return (core_threads - 1 - static_cast<int>(threadIdx.x)) / norm_lanes; }
  struct Gate {
    float weights[furlong::cuda::pack];
    Octet<half_t> z;
  };
  __device__ Octet<half_t> gate_at(const Chunk& ck, int r) const {
    const int column = threadIdx.x % norm_lanes * furlong::cuda::pack;
    if (r >= ck.hi) return {};
    const half_t* from = layer.z + static_cast<int64_t>(ck.base + r) * layer.z_stride + head * head_dim + column;
    return load_pack<true>(from, furlong::cuda::pack, true);
  }
  __device__ Gate gate_of(const Chunk& ck) const {
    Gate gate;
    layer.norm.load<true>(gate.weights, threadIdx.x % norm_lanes * furlong::cuda::pack, head_dim);
    gate.z = gate_at(ck, ck.lo + norm_team());
    return gate;
  }
  __device__ void norm_outputs(const Chunk& ck, Gate& gate, const half_t* rows, half_t* o, int64_t o_stride) const {
    __syncthreads();
    const int column = threadIdx.x % norm_lanes * furlong::cuda::pack;
    constexpr int at_once = core_threads / norm_lanes;
#pragma unroll 1
    for (int r0 = ck.lo; r0 < ck.hi; r0 += at_once) {
      const int r = r0 + norm_team();
      if (r0 > ck.lo) gate.z = gate_at(ck, r);
      float v[furlong::cuda::pack] = {}, sum[1] = {};
      if (r < ck.hi) {
        widen_pack(*reinterpret_cast<const Octet<half_t>*>(rows + (r - ck.lo) * head_dim + column), v);
      }
      add_squares(sum[0], v);
      team_sum<norm_lanes>(sum, nullptr);
      const float inverse = inverse_rms(sum[0], head_dim, layer.eps);
      scale_pack(v, inverse, gate.weights);
      gate_pack(v, gate.z);
      half_t* to = o + static_cast<int64_t>(ck.base + r) * o_stride + head * head_dim + column;
      if (r < ck.hi) store_floats<true>(to, v, furlong::cuda::pack, true);
    }
  }
};

}  // namespace furlong::cuda::delta
