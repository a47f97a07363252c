// The parallel part of the delta rule for heads of 128 in bf16: what of a chunk does not depend on the state entering
// it.
#include "ops/cuda/delta_tile.cuh"

namespace furlong::cuda::delta {
namespace {

constexpr int threads = 128;  // a warp takes 16 rows
constexpr int stride = chunk_rows + 4, half = chunk_rows / 2, block = 16;

struct Shared {
  KeyRecord keys;
  HeadRecord head;
  float L[chunk_rows * stride];  // becomes T
  float M[half * (half + 4)];
  double gamma[chunk_rows];
};

__device__ inline uint32_t tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

// c (16,8) += a·b over `depth` columns of a, both fp32 in shared memory.
template <int Depth>
__device__ inline void multiply_tf32(float (&c)[4], const float* a, int a_stride, const float* b, int b_stride) {
  const int g = threadIdx.x % warp / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int k = 0; k < Depth; k += 8) {
    const uint32_t x0 = tf32(a[g * a_stride + k + t]), x1 = tf32(a[(g + 8) * a_stride + k + t]);
    const uint32_t x2 = tf32(a[g * a_stride + k + t + 4]), x3 = tf32(a[(g + 8) * a_stride + k + t + 4]);
    const uint32_t y0 = tf32(b[(k + t) * b_stride + g]), y1 = tf32(b[(k + t + 4) * b_stride + g]);
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(y0), "r"(y1));
  }
}

__device__ inline void put_tile(float* to, int to_stride, const float (&c)[4], float sign) {
  const int g = tile_row(), t = tile_column();
  to[g * to_stride + t] = sign * c[0], to[g * to_stride + t + 1] = sign * c[1];
  to[(g + 8) * to_stride + t] = sign * c[2], to[(g + 8) * to_stride + t + 1] = sign * c[3];
}

// L <- (I + L)⁻¹ of a strictly lower triangular L: blocks of 16 on the diagonal by substitution, then twice
// [A 0; B C]⁻¹ = [A⁻¹ 0; -C⁻¹ B A⁻¹ C⁻¹].
__device__ void invert(Shared& sh) {
  const int w = threadIdx.x / warp, lane = threadIdx.x % warp;
  float* diagonal = sh.L + w * block * stride + w * block;
  {
    const int column = lane % block;
    float x[block];
#pragma unroll
    for (int i = 0; i < block; i++) x[i] = i == column ? 1.0f : 0.0f;
#pragma unroll
    for (int j = 0; j < block - 1; j++) {
#pragma unroll
      for (int i = j + 1; i < block; i++) x[i] = fmaf(-diagonal[i * stride + j], x[j], x[i]);
    }
    __syncwarp();
    if (lane < block) {
#pragma unroll
      for (int i = 0; i < block; i++) diagonal[i * stride + column] = x[i];
    }
  }
  __syncthreads();
  constexpr int m_stride = half + 4;
  {
    const int r = 1 + w / 2 * 2, n = w % 2 * 8;  // block (r, r-1), eight of its columns
    float* off = sh.L + r * block * stride + (r - 1) * block;
    float* m = sh.M + w / 2 * block * m_stride;
    float c[4] = {};
    multiply_tf32<block>(c, off, stride, sh.L + (r - 1) * block * (stride + 1) + n, stride);
    put_tile(m + n, m_stride, c, 1);
    __syncthreads();
    float d[4] = {};
    multiply_tf32<block>(d, sh.L + r * block * (stride + 1), stride, m + n, m_stride);
    put_tile(off + n, stride, d, -1);
  }
  __syncthreads();
  const int row = w / 2 * block, n0 = w % 2 * block;
#pragma unroll
  for (int n = 0; n < block; n += 8) {
    float c[4] = {};
    multiply_tf32<half>(c, sh.L + (half + row) * stride, stride, sh.L + n0 + n, stride);
    put_tile(sh.M + row * m_stride + n0 + n, m_stride, c, 1);
  }
  __syncthreads();
#pragma unroll
  for (int n = 0; n < block; n += 8) {
    float c[4] = {};
    multiply_tf32<half>(c, sh.L + (half + row) * stride + half, stride, sh.M + n0 + n, m_stride);
    put_tile(sh.L + (half + row) * stride + n0 + n, stride, c, -1);
  }
  __syncthreads();
}

// A block takes one chunk at one key head and then each of its value heads.
struct Prepare {
  const Call& c;
  const Records& records;
  const half_t* x;
  int64_t x_stride;
  bool keep;
  Shared& sh;
  Chunk ck;
  int chunk, key_head, slot;
  bool ringed;

  // One row of q or k: divided by its length, kept, and put into the image. A lane has four numbers.
  __device__ void normalise(uint2 raw, int r, half_t* image, float* to, float* inverse) const {
    const int lane = threadIdx.x % warp;
    const float2 a = unpack(raw.x), b = unpack(raw.y);
    const float sum = warp_sum(fmaf(b.y, b.y, fmaf(b.x, b.x, fmaf(a.y, a.y, a.x * a.x))));
    const float s = 1.0f / sqrtf(sum + l2_eps);
    const float4 y{a.x * s, a.y * s, b.x * s, b.y * s};
    const int64_t at = static_cast<int64_t>(ck.base + r) * c.kh + key_head;
    if (keep) {
      *reinterpret_cast<float4*>(to + at * head_dim + lane * 4) = y;
      if (lane == 0) inverse[at] = s;
    }
    *reinterpret_cast<uint2*>(image + place<head_dim>(r, lane * 4)) = {pack(y.x, y.y), pack(y.z, y.w)};
  }

  __device__ void load_rows() {
    const int lane = threadIdx.x % warp, r0 = threadIdx.x / warp * 16;
    constexpr int at_once = 8;
#pragma unroll
    for (int part = 0; part < 16; part += at_once) {
      uint2 q[at_once], k[at_once];
#pragma unroll
      for (int i = 0; i < at_once; i++) {
        const int r = r0 + part + i;
        if (r < ck.lo || r >= ck.hi) continue;
        const half_t* row = x + static_cast<int64_t>(ck.base + r) * x_stride + key_head * head_dim + lane * 4;
        q[i] = *reinterpret_cast<const uint2*>(row);
        k[i] = *reinterpret_cast<const uint2*>(row + c.kh * head_dim);
      }
#pragma unroll
      for (int i = 0; i < at_once; i++) {
        const int r = r0 + part + i;
        if (r >= ck.lo && r < ck.hi) {
          normalise(q[i], r, sh.keys.q, c.q, c.q_r);
          normalise(k[i], r, sh.keys.k, c.k, c.k_r);
          continue;
        }
        float4 y{};
        if (ringed && r < ck.lo) {
          y = *reinterpret_cast<const float4*>(c.ring_k_at(slot, ck.begin + r, key_head) + lane * 4);
        }
        const int at = place<head_dim>(r, lane * 4);
        *reinterpret_cast<uint2*>(sh.keys.k + at) = {pack(y.x, y.y), pack(y.z, y.w)};
        *reinterpret_cast<uint2*>(sh.keys.q + at) = {0, 0};
      }
    }
  }

  // γ of every row, that of the last own one after it, by the first warp; two rows a lane.
  __device__ void decays(int head) {
    if (threadIdx.x < warp) {
      const int lane = threadIdx.x;
      double before = 0, g[2], beta[2];
      if (ringed && ck.lo > 0) before = c.ring_g_at(slot, ck.begin + ck.lo - 1, head);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int r = lane * 2 + i;
        const bool own = r >= ck.lo && r < ck.hi;
        const int64_t at = static_cast<int64_t>(ck.base + r) * c.vh + head;
        g[i] = own ? c.g[at] : 0.0f;
        beta[i] = own ? c.beta[at] : 0.0f;
      }
      double sum = g[0] + g[1];
#pragma unroll
      for (int d = 1; d < warp; d *= 2) {
        const double other = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += other;
      }
      const double gamma[2] = {before + (sum - g[1]), before + sum};
      const double end = __shfl_sync(0xffffffffu, gamma[1], warp - 1);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int r = lane * 2 + i;
        double own = gamma[i];
        if (r < ck.lo) own = ringed ? c.ring_g_at(slot, ck.begin + r, head) : 0.0;
        sh.gamma[r] = own;
        sh.head.beta[r] = static_cast<float>(beta[i]);
        sh.head.e_gamma[r] = expf(static_cast<float>(own));
        sh.head.to_end[r] = expf(static_cast<float>(end - own));
        if (keep && r >= ck.lo && r < ck.hi) c.gamma[static_cast<int64_t>(ck.base + r) * c.vh + head] = own;
      }
    }
    __syncthreads();
  }

  __device__ void run() {
    load_rows();
    __syncthreads();
    const int w = threadIdx.x / warp, r0 = w * 16;
    float kk[8][4] = {}, qk[8][4] = {};
#pragma unroll
    for (int k = 0; k < head_dim; k += 16) {
      uint32_t a[4], b[4];
      load_a<head_dim>(a, sh.keys.k, r0, k);
      load_a<head_dim>(b, sh.keys.q, r0, k);
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        if (n * 8 > r0) continue;  // above the diagonal
        uint32_t y[4];
        load_b_transposed<head_dim>(y, sh.keys.k, k, n * 8);
        mma(kk[n], a, y[0], y[1]);
        mma(kk[n + 1], a, y[2], y[3]);
        mma(qk[n], b, y[0], y[1]);
        mma(qk[n + 1], b, y[2], y[3]);
      }
    }
    copy_out(records.keys + static_cast<int64_t>(chunk) * c.kh + key_head, &sh.keys);
    for (int i = 0; i < c.group; i++) {
      const int head = key_head * c.group + i;
      decays(head);
      fold(kk, qk);
      __syncthreads();
      invert(sh);
      for (int at = threadIdx.x; at < chunk_rows * chunk_rows / 2; at += threads) {
        const int r = at / half, column = at % half * 2;
        const float* from = sh.L + r * stride + column;
        *reinterpret_cast<uint32_t*>(sh.head.T + place<chunk_rows>(r, column)) = pack(from[0], from[1]);
      }
      __syncthreads();
      copy_out(records.heads + static_cast<int64_t>(chunk) * c.vh + head, &sh.head);
      __syncthreads();
    }
  }

  // L and P from the products and the decays.
  __device__ void fold(const float (&kk)[8][4], const float (&qk)[8][4]) {
    const float scale = rsqrtf(static_cast<float>(head_dim));
#pragma unroll
    for (int half_row = 0; half_row < 2; half_row++) {
      const int i = threadIdx.x / warp * 16 + tile_row() + half_row * 8;
      const double own = sh.gamma[i];
      const float beta = sh.head.beta[i];
#pragma unroll
      for (int n = 0; n < 8; n++) {
        float L[2], P[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const int j = n * 8 + tile_column() + e;
          const float decay = j <= i ? __expf(static_cast<float>(own - sh.gamma[j])) : 0.0f;
          L[e] = j < i ? beta * decay * kk[n][half_row * 2 + e] : 0.0f;
          P[e] = j <= i ? scale * decay * qk[n][half_row * 2 + e] : 0.0f;
        }
        const int column = n * 8 + tile_column();
        *reinterpret_cast<float2*>(sh.L + i * stride + column) = {L[0], L[1]};
        *reinterpret_cast<uint32_t*>(sh.head.P + place<chunk_rows>(i, column)) = pack(P[0], P[1]);
      }
    }
  }

  template <class R>
  __device__ static void copy_out(R* to, const R* from) {
    for (int i = threadIdx.x; i < static_cast<int>(sizeof(R) / 16); i += threads) {
      reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    }
  }
};

__global__ void __launch_bounds__(threads)
    prepare_kernel(Call c, Records records, const half_t* x, int64_t x_stride, bool keep) {
  extern __shared__ __align__(128) char memory[];
  const int chunk = blockIdx.y;
  if (chunk >= records.plan.first[c.segments]) return;
  const Chunk ck = records.plan.chunks[chunk];
  const bool ringed = c.slots != nullptr && ck.lo > 0;
  Prepare{c,
          records,
          x,
          x_stride,
          keep,
          *reinterpret_cast<Shared*>(memory),
          ck,
          chunk,
          static_cast<int>(blockIdx.x),
          ringed ? c.slots[ck.segment] : 0,
          ringed}
      .run();
}

}  // namespace

void prepare_128(Queue& queue, const Call& c, const Records& records, const Tensor& x, bool keep) {
  make_plan(queue, c, records.plan);
  check(cudaFuncSetAttribute(prepare_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)),
        "cudaFuncSetAttribute");
  const dim3 grid(static_cast<unsigned>(c.kh), static_cast<unsigned>(most_chunks(c.rows, c.segments)));
  prepare_kernel<<<grid, threads, sizeof(Shared), queue.stream>>>(c, records, data_of<half_t>(x), x.row_stride(), keep);
}

}  // namespace furlong::cuda::delta
