// The delta rule of a few rows per segment with memory, for heads of 128 in bf16: bound by reading the states.
#include "ops/cuda/delta_tile.cuh"

namespace furlong::cuda::delta {
namespace {

constexpr int threads = 256, warps = threads / warp;
constexpr int own_rows = head_dim / warps;  // rows of the state that a warp holds; a lane has four columns of each

// One chunk: its rows so far, from the ring or from this segment, at their places in the chunk.
template <int R>
struct Shared {
  static constexpr int stride = head_dim + 16;  // of keys: four threads to a row read every bank once
  alignas(16) float k[chunk_rows][stride], u[chunk_rows][head_dim];
  float q[R][head_dim], sums[warps][2 * R][head_dim];
  float products[2 * R][chunk_rows];  // ⟨k_i,k_j⟩ and ⟨q_i,k_j⟩ times e^{γ_i-γ_j}
  double gamma[chunk_rows];
  float beta[R];
  uint64_t full;
};

__device__ inline float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ inline float dot4(float4 a, float4 b) { return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, a.x * b.x))); }
__device__ inline void add4(float4& sum, float a, float4 b) {
  sum.x = fmaf(a, b.x, sum.x), sum.y = fmaf(a, b.y, sum.y), sum.z = fmaf(a, b.z, sum.z), sum.w = fmaf(a, b.w, sum.w);
}

// A block takes one value head of one segment, R rows of a chunk at a time; the state lies in registers.
template <int R>
struct Decode {
  const Call& c;
  const half_t* x;
  int64_t x_stride;
  half_t* o;
  int64_t o_stride;
  Shared<R>& sh;
  int segment, head, slot, start, first;  // first: the position of the batch row `start`

  __device__ int key_head() const { return head / c.group; }
  __device__ int64_t row_of(int position) const { return start + position - first; }

  // Starts the way of the ring's rows of the chunk into shared memory.
  __device__ void fetch_ring() {
    const int rows = first % chunk_rows, begin = first - rows;
    if (threadIdx.x < warp) {
      if (threadIdx.x == 0) {
        barrier_start(&sh.full);
        barriers_started();
        barrier_expect(&sh.full, static_cast<uint32_t>(rows * 2 * head_dim * sizeof(float)));
      }
      __syncwarp();
      for (int r = threadIdx.x; r < rows; r += warp) {
        bulk_load(sh.k[r], c.ring_k_at(slot, begin + r, key_head()), head_dim * sizeof(float), &sh.full);
        bulk_load(sh.u[r], c.ring_u_at(slot, begin + r, head), head_dim * sizeof(float), &sh.full);
      }
    } else if (threadIdx.x >= threads - chunk_rows) {
      const int r = threadIdx.x - (threads - chunk_rows);
      if (r < rows) sh.gamma[r] = c.ring_g_at(slot, begin + r, head);
    }
    __syncthreads();
  }

  // Normalised q and k of n rows from position p, a warp each, and γ. Every value head writes the rows of its key head:
  // the same bits.
  __device__ void load_rows(int p, int n) {
    const int lane = threadIdx.x % warp, at_chunk = p % chunk_rows;
    for (int i = threadIdx.x / warp; i < 2 * n; i += warps) {
      const int r = i / 2;
      const bool is_q = i % 2 == 0;
      const int64_t t = row_of(p + r), at = t * c.kh + key_head();
      const uint2 raw =
          *reinterpret_cast<const uint2*>(x + t * x_stride + ((is_q ? 0 : c.kh) + key_head()) * head_dim + lane * 4);
      const float2 a = unpack(raw.x), b = unpack(raw.y);
      const float sum = warp_sum(fmaf(b.y, b.y, fmaf(b.x, b.x, fmaf(a.y, a.y, a.x * a.x))));
      const float s = 1.0f / sqrtf(sum + l2_eps);
      const float4 y{a.x * s, a.y * s, b.x * s, b.y * s};
      *reinterpret_cast<float4*>((is_q ? sh.q[r] : sh.k[at_chunk + r]) + lane * 4) = y;
      *reinterpret_cast<float4*>((is_q ? c.q : c.k) + at * head_dim + lane * 4) = y;
      if (lane == 0) (is_q ? c.q_r : c.k_r)[at] = s;
    }
    if (threadIdx.x == threads - 1) {
      double last = at_chunk > 0 ? sh.gamma[at_chunk - 1] : 0.0;
      for (int r = 0; r < n; r++) {
        const int64_t at = row_of(p + r) * c.vh + head;
        sh.gamma[at_chunk + r] = last += c.g[at];
        sh.beta[r] = c.beta[at];
        c.gamma[at] = last;
      }
    }
    __syncthreads();
  }

  // The products of the n rows with the chunk's rows up to them; four threads to a row of the chunk.
  __device__ void inner_products(int at_chunk, int n) {
    const int j = threadIdx.x / 4, part = threadIdx.x % 4;
    float sums[2 * R] = {};
    if (j < at_chunk + n) {
#pragma unroll
      for (int i = 0; i < head_dim / 16; i++) {
        const int at = i * 16 + part * 4;
        const float4 k = load4(sh.k[j] + at);
#pragma unroll
        for (int r = 0; r < R; r++) {
          if (r >= n) break;
          sums[2 * r] += dot4(load4(sh.k[at_chunk + r] + at), k);
          sums[2 * r + 1] += dot4(load4(sh.q[r] + at), k);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * R; i++) {
      sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], 1);
      sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], 2);
    }
    if (part != 0 || j >= at_chunk + n) return;
#pragma unroll
    for (int r = 0; r < R; r++) {
      if (r >= n || j > at_chunk + r) continue;
      const float decay = expf(static_cast<float>(sh.gamma[at_chunk + r] - sh.gamma[j]));
      sh.products[2 * r][j] = decay * sums[2 * r];
      sh.products[2 * r + 1][j] = decay * sums[2 * r + 1];
    }
  }

  // This warp's share of e^γ Sᵀk + Σ_j e^{γ-γ_j} ⟨k,k_j⟩ u_j over the rows before, and of the same with q.
  __device__ void share(const float4 (&S)[own_rows], int at_chunk, int n) {
    const int w = threadIdx.x / warp, lane = threadIdx.x % warp;
    float4 sums[2 * R] = {};
#pragma unroll
    for (int i = 0; i < own_rows; i += 4) {
#pragma unroll
      for (int r = 0; r < 2 * R; r++) {
        if (r / 2 >= n) break;
        const float4 k = load4((r % 2 == 0 ? sh.k[at_chunk + r / 2] : sh.q[r / 2]) + w * own_rows + i);
        add4(sums[r], k.x, S[i]), add4(sums[r], k.y, S[i + 1]);
        add4(sums[r], k.z, S[i + 2]), add4(sums[r], k.w, S[i + 3]);
      }
    }
#pragma unroll
    for (int r = 0; r < 2 * R; r++) {
      if (r / 2 >= n) break;
      const float decay = expf(static_cast<float>(sh.gamma[at_chunk + r / 2]));
      sums[r].x *= decay, sums[r].y *= decay, sums[r].z *= decay, sums[r].w *= decay;
    }
#pragma unroll 2
    for (int j = w; j < at_chunk; j += warps) {
      const float4 u = load4(sh.u[j] + lane * 4);
#pragma unroll
      for (int r = 0; r < 2 * R; r++) {
        if (r / 2 < n) add4(sums[r], sh.products[r][j], u);
      }
    }
#pragma unroll
    for (int r = 0; r < 2 * R; r++) *reinterpret_cast<float4*>(sh.sums[w][r] + lane * 4) = sums[r];
    __syncthreads();
  }

  // u and o of the rows, a thread per column.
  __device__ void finish(int p, int n) {
    if (threadIdx.x < head_dim) {
      const int b = threadIdx.x, at_chunk = p % chunk_rows;
      const float scale = rsqrtf(static_cast<float>(head_dim));
      float u[R];
#pragma unroll
      for (int r = 0; r < R; r++) {
        if (r >= n) break;
        const int64_t t = row_of(p + r);
        const float v = widen(x[t * x_stride + 2 * c.kh * head_dim + head * head_dim + b]);
        float read = 0, out = 0;
#pragma unroll
        for (int w = 0; w < warps; w++) read += sh.sums[w][2 * r][b], out += sh.sums[w][2 * r + 1][b];
#pragma unroll
        for (int j = 0; j < r; j++) read = fmaf(sh.products[2 * r][at_chunk + j], u[j], read);
        u[r] = sh.beta[r] * (v - read);
#pragma unroll
        for (int j = 0; j <= r; j++) out = fmaf(sh.products[2 * r + 1][at_chunk + j], u[j], out);
        sh.u[at_chunk + r][b] = u[r];
        c.u[(t * c.vh + head) * head_dim + b] = u[r];
        o[t * o_stride + head * head_dim + b] = narrow<half_t>(scale * out);
      }
    }
    __syncthreads();
  }

  // S <- e^{γ_C} S + Σ_j k_j (e^{γ_C-γ_j} u_j)ᵀ over the whole chunk.
  __device__ void advance(float4 (&S)[own_rows]) const {
    const int w = threadIdx.x / warp, lane = threadIdx.x % warp;
    const double end = sh.gamma[chunk_rows - 1];
    const float decay = expf(static_cast<float>(end));
#pragma unroll
    for (int i = 0; i < own_rows; i++) S[i].x *= decay, S[i].y *= decay, S[i].z *= decay, S[i].w *= decay;
    for (int j = 0; j < chunk_rows; j++) {
      const float factor = expf(static_cast<float>(end - sh.gamma[j]));
      const float4 u = load4(sh.u[j] + lane * 4);
#pragma unroll
      for (int i = 0; i < own_rows; i += 4) {
        const float4 a = load4(sh.k[j] + w * own_rows + i);
        add4(S[i], factor * a.x, u), add4(S[i + 1], factor * a.y, u);
        add4(S[i + 2], factor * a.z, u), add4(S[i + 3], factor * a.w, u);
      }
    }
    __syncthreads();
  }

  __device__ void run(int rows) {
    const int w = threadIdx.x / warp, lane = threadIdx.x % warp;
    float* state =
        c.state + ((static_cast<int64_t>(slot) * c.vh + head) * head_dim + w * own_rows) * head_dim + lane * 4;
    float4 S[own_rows];
#pragma unroll
    for (int i = 0; i < own_rows; i++) S[i] = __ldcs(reinterpret_cast<const float4*>(state + i * head_dim));
    fetch_ring();
    bool advanced = false;
    for (int p = first; p < first + rows;) {
      const int at_chunk = p % chunk_rows, n = min(min(R, first + rows - p), chunk_rows - at_chunk);
      load_rows(p, n);
      if (p == first) barrier_wait(&sh.full, 0);
      inner_products(at_chunk, n);
      __syncthreads();
      share(S, at_chunk, n);
      finish(p, n);
      p += n;
      if (p % chunk_rows == 0) {
        advance(S);
        advanced = true;
      }
    }
    if (!advanced || c.speculative[segment] != 0) return;
#pragma unroll
    for (int i = 0; i < own_rows; i++) *reinterpret_cast<float4*>(state + i * head_dim) = S[i];
  }
};

template <int R>
__global__ void __launch_bounds__(threads, 2)
    decode_kernel(Call c, const half_t* x, int64_t x_stride, half_t* o, int64_t o_stride) {
  extern __shared__ __align__(16) char memory[];
  Shared<R>& sh = *reinterpret_cast<Shared<R>*>(memory);
  const int segment = blockIdx.y, start = c.starts[segment], rows = c.starts[segment + 1] - start;
  if (rows == 0) return;
  Decode<R>{c,
            x,
            x_stride,
            o,
            o_stride,
            sh,
            segment,
            static_cast<int>(blockIdx.x),
            c.slots[segment],
            start,
            c.positions[start]}
      .run(rows);
}

template <int R>
void launch(Queue& queue, const Call& c, const Tensor& o, const Tensor& x) {
  const dim3 grid(static_cast<unsigned>(c.vh), static_cast<unsigned>(c.segments));
  check(cudaFuncSetAttribute(decode_kernel<R>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<R>)),
        "cudaFuncSetAttribute");
  decode_kernel<R><<<grid, threads, sizeof(Shared<R>), queue.stream>>>(c, data_of<half_t>(x), x.row_stride(),
                                                                       data_of<half_t>(o), o.row_stride());
}

}  // namespace

void decode_128(Queue& queue, const Call& c, const Tensor& o, const Tensor& x) {
  if (c.rows <= c.segments) {
    launch<1>(queue, c, o, x);
  } else {
    launch<3>(queue, c, o, x);
  }
}

}  // namespace furlong::cuda::delta
