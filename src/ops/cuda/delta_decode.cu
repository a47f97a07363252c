// The delta rule of a few rows per segment with memory, for heads of 128 in bf16: bound by reading the states.
#include "ops/cuda/delta_tile.cuh"

namespace furlong::cuda::delta {
namespace {

constexpr int threads = 256, warps = threads / warp;
constexpr int own_rows = head_dim / warps;  // rows of the state that a warp holds; a lane has four columns of each

template <int R>
struct Shared {
  alignas(16) float k[R][head_dim], q[R][head_dim], sums[warps][2 * R][head_dim];
  float kk[R][R], qk[R][R];  // ⟨k_i,k_j⟩ and ⟨q_i,k_j⟩ times e^{γ_i-γ_j}
  double gamma[R];
  float beta[R];
};

__device__ inline float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }
__device__ inline float dot4(float4 a, float4 b) { return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, a.x * b.x))); }
__device__ inline void add4(float4& sum, float a, float4 b) {
  sum.x = fmaf(a, b.x, sum.x), sum.y = fmaf(a, b.y, sum.y), sum.z = fmaf(a, b.z, sum.z), sum.w = fmaf(a, b.w, sum.w);
}

// A block takes one value head of one segment, R rows of a chunk at a time. The state lies in registers; rows of the
// chunk before these are in the ring, or in the batch where they are the segment's own.
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
  __device__ const float* key(int p) const {
    return p < first ? c.ring_k_at(slot, p, key_head()) : c.k + (row_of(p) * c.kh + key_head()) * head_dim;
  }
  __device__ const float* correction(int p) const {
    return p < first ? c.ring_u_at(slot, p, head) : c.u + (row_of(p) * c.vh + head) * head_dim;
  }
  __device__ double gamma(int p) const {
    return p < first ? c.ring_g_at(slot, p, head) : c.gamma[row_of(p) * c.vh + head];
  }

  // Normalised q and k of n rows from position p, a warp each, and γ. Every value head writes the rows of its key head:
  // the same bits.
  __device__ void load_rows(int p, int n) {
    const int lane = threadIdx.x % warp;
    for (int i = threadIdx.x / warp; i < 2 * n; i += warps) {
      const int r = i / 2;
      const bool is_q = i % 2 == 0;
      const int64_t t = row_of(p + r), at = t * c.kh + key_head();
      const uint2 raw = *reinterpret_cast<const uint2*>(
          x + t * x_stride + ((is_q ? 0 : c.kh) + key_head()) * head_dim + lane * 4);
      const float2 a = unpack(raw.x), b = unpack(raw.y);
      const float sum = warp_sum(fmaf(b.y, b.y, fmaf(b.x, b.x, fmaf(a.y, a.y, a.x * a.x))));
      const float s = 1.0f / sqrtf(sum + l2_eps);
      const float4 y{a.x * s, a.y * s, b.x * s, b.y * s};
      *reinterpret_cast<float4*>((is_q ? sh.q : sh.k)[r] + lane * 4) = y;
      *reinterpret_cast<float4*>((is_q ? c.q : c.k) + at * head_dim + lane * 4) = y;
      if (lane == 0) (is_q ? c.q_r : c.k_r)[at] = s;
    }
    if (threadIdx.x == threads - 1) {
      double last = p % chunk_rows > 0 ? gamma(p - 1) : 0.0;
      for (int r = 0; r < n; r++) {
        const int64_t at = row_of(p + r) * c.vh + head;
        sh.gamma[r] = last += c.g[at];
        sh.beta[r] = c.beta[at];
        c.gamma[at] = last;
      }
    }
    __syncthreads();
  }

  // The products among the rows themselves; a warp takes a pair.
  __device__ void inner_products(int n) {
    const int lane = threadIdx.x % warp;
    for (int pair = threadIdx.x / warp; pair < n * n; pair += warps) {
      const int i = pair / n, j = pair % n;
      if (j > i) continue;
      const float4 k = load4(sh.k[j] + lane * 4);
      const float a = warp_sum(dot4(load4(sh.k[i] + lane * 4), k)), b = warp_sum(dot4(load4(sh.q[i] + lane * 4), k));
      const float decay = expf(static_cast<float>(sh.gamma[i] - sh.gamma[j]));
      if (lane == 0) sh.kk[i][j] = decay * a, sh.qk[i][j] = decay * b;
    }
  }

  // This warp's share of e^γ Sᵀk + Σ_j e^{γ-γ_j} ⟨k,k_j⟩ u_j over the rows before, and of the same with q.
  __device__ void share(const float4 (&S)[own_rows], int p, int n) {
    const int w = threadIdx.x / warp, lane = threadIdx.x % warp;
    float4 k_sum[R] = {}, q_sum[R] = {};
#pragma unroll
    for (int i = 0; i < own_rows; i += 4) {
#pragma unroll
      for (int r = 0; r < R; r++) {
        const float4 k = load4(sh.k[r] + w * own_rows + i), q = load4(sh.q[r] + w * own_rows + i);
        add4(k_sum[r], k.x, S[i]), add4(k_sum[r], k.y, S[i + 1]);
        add4(k_sum[r], k.z, S[i + 2]), add4(k_sum[r], k.w, S[i + 3]);
        add4(q_sum[r], q.x, S[i]), add4(q_sum[r], q.y, S[i + 1]);
        add4(q_sum[r], q.z, S[i + 2]), add4(q_sum[r], q.w, S[i + 3]);
      }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
      const float decay = r < n ? expf(static_cast<float>(sh.gamma[r])) : 0.0f;
      k_sum[r].x *= decay, k_sum[r].y *= decay, k_sum[r].z *= decay, k_sum[r].w *= decay;
      q_sum[r].x *= decay, q_sum[r].y *= decay, q_sum[r].z *= decay, q_sum[r].w *= decay;
    }
#pragma unroll 2
    for (int at = p / chunk_rows * chunk_rows + w; at < p; at += warps) {
      const float4 k = load4(key(at) + lane * 4), u = load4(correction(at) + lane * 4);
      const double g = gamma(at);
#pragma unroll
      for (int r = 0; r < R; r++) {
        const float decay = r < n ? expf(static_cast<float>(sh.gamma[r] - g)) : 0.0f;
        add4(k_sum[r], decay * warp_sum(dot4(load4(sh.k[r] + lane * 4), k)), u);
        add4(q_sum[r], decay * warp_sum(dot4(load4(sh.q[r] + lane * 4), k)), u);
      }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
      *reinterpret_cast<float4*>(sh.sums[w][2 * r] + lane * 4) = k_sum[r];
      *reinterpret_cast<float4*>(sh.sums[w][2 * r + 1] + lane * 4) = q_sum[r];
    }
    __syncthreads();
  }

  // u and o of the rows, a thread per column.
  __device__ void finish(int p, int n) {
    if (threadIdx.x < head_dim) {
      const int b = threadIdx.x;
      const float scale = rsqrtf(static_cast<float>(head_dim));
      float u[R];
#pragma unroll
      for (int r = 0; r < R; r++) {
        if (r >= n) break;
        float read = 0, out = 0;
#pragma unroll
        for (int w = 0; w < warps; w++) read += sh.sums[w][2 * r][b], out += sh.sums[w][2 * r + 1][b];
#pragma unroll
        for (int j = 0; j < r; j++) read = fmaf(sh.kk[r][j], u[j], read);
        const int64_t t = row_of(p + r);
        u[r] = sh.beta[r] * (widen(x[t * x_stride + 2 * c.kh * head_dim + head * head_dim + b]) - read);
#pragma unroll
        for (int j = 0; j <= r; j++) out = fmaf(sh.qk[r][j], u[j], out);
        c.u[(t * c.vh + head) * head_dim + b] = u[r];
        o[t * o_stride + head * head_dim + b] = narrow<half_t>(scale * out);
      }
    }
    __syncthreads();
  }

  // S <- e^{γ_C} S + Σ_j k_j (e^{γ_C-γ_j} u_j)ᵀ over the chunk from position `from`.
  __device__ void advance(float4 (&S)[own_rows], int from) const {
    const int w = threadIdx.x / warp, lane = threadIdx.x % warp;
    const double end = gamma(from + chunk_rows - 1);
    const float decay = expf(static_cast<float>(end));
#pragma unroll
    for (int i = 0; i < own_rows; i++) S[i].x *= decay, S[i].y *= decay, S[i].z *= decay, S[i].w *= decay;
    for (int p = from; p < from + chunk_rows; p++) {
      const float factor = expf(static_cast<float>(end - gamma(p)));
      const float4 u = load4(correction(p) + lane * 4);
      const float* k = key(p) + w * own_rows;
#pragma unroll
      for (int i = 0; i < own_rows; i += 4) {
        const float4 a = load4(k + i);
        add4(S[i], factor * a.x, u), add4(S[i + 1], factor * a.y, u);
        add4(S[i + 2], factor * a.z, u), add4(S[i + 3], factor * a.w, u);
      }
    }
  }

  __device__ void run(int rows) {
    const int w = threadIdx.x / warp, lane = threadIdx.x % warp;
    float* state = c.state + ((static_cast<int64_t>(slot) * c.vh + head) * head_dim + w * own_rows) * head_dim + lane * 4;
    float4 S[own_rows];
#pragma unroll
    for (int i = 0; i < own_rows; i++) S[i] = __ldcs(reinterpret_cast<const float4*>(state + i * head_dim));
    bool advanced = false;
    for (int p = first; p < first + rows;) {
      const int n = min(min(R, first + rows - p), chunk_rows - p % chunk_rows);
      load_rows(p, n);
      inner_products(n);
      share(S, p, n);
      finish(p, n);
      p += n;
      if (p % chunk_rows == 0) {
        advance(S, p - chunk_rows);
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
  __shared__ __align__(16) Shared<R> sh;
  const int segment = blockIdx.y, start = c.starts[segment], rows = c.starts[segment + 1] - start;
  if (rows == 0) return;
  Decode<R>{c, x, x_stride, o, o_stride, sh, segment, static_cast<int>(blockIdx.x), c.slots[segment], start,
            c.positions[start]}
      .run(rows);
}

template <int R>
void launch(Queue& queue, const Call& c, const Tensor& o, const Tensor& x) {
  const dim3 grid(static_cast<unsigned>(c.vh), static_cast<unsigned>(c.segments));
  decode_kernel<R><<<grid, threads, 0, queue.stream>>>(c, data_of<half_t>(x), x.row_stride(), data_of<half_t>(o),
                                                       o.row_stride());
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
