// The parallel part of the delta rule for heads of 128 in bf16: what of a chunk does not depend on the state entering
// it.
#include "ops/cuda/delta_tile.cuh"

namespace furlong::cuda::delta {
namespace {

constexpr int threads = 256, team = 128, teams = threads / team;  // a team of four warps takes a value head
constexpr int stride = chunk_rows + 4, half = chunk_rows / 2, block = 16;

struct Work {
  float L[chunk_rows * stride];  // becomes T; the quarter above the diagonal holds what is between
  double gamma[chunk_rows];
  float beta[chunk_rows];
};
struct Shared {
  KeyRecord keys;
  Work work[teams];
};

__device__ inline int team_of() { return threadIdx.x / team; }
__device__ inline void team_sync() { asm volatile("bar.sync %0, 128;" ::"r"(1 + team_of()) : "memory"); }

__device__ inline uint32_t tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

// c (16,8) += a·b over Depth columns of a, both fp32 in shared memory.
template <int Depth>
__device__ inline void multiply_tf32(float (&c)[4], const float* a, const float* b) {
  const int g = threadIdx.x % warp / 4, t = threadIdx.x % 4;
#pragma unroll
  for (int k = 0; k < Depth; k += 8) {
    const uint32_t x0 = tf32(a[g * stride + k + t]), x1 = tf32(a[(g + 8) * stride + k + t]);
    const uint32_t x2 = tf32(a[g * stride + k + t + 4]), x3 = tf32(a[(g + 8) * stride + k + t + 4]);
    const uint32_t y0 = tf32(b[(k + t) * stride + g]), y1 = tf32(b[(k + t + 4) * stride + g]);
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(x0), "r"(x1), "r"(x2), "r"(x3), "r"(y0), "r"(y1));
  }
}

__device__ inline void put_tile(float* to, const float (&c)[4], float sign) {
  to += tile_row() * stride + tile_column();
  *reinterpret_cast<float2*>(to) = {sign * c[0], sign * c[1]};
  *reinterpret_cast<float2*>(to + 8 * stride) = {sign * c[2], sign * c[3]};
}

// L <- (I + L)⁻¹ of a strictly lower triangular L: blocks of 16 on the diagonal by substitution, then twice
// [A 0; B C]⁻¹ = [A⁻¹ 0; -C⁻¹ B A⁻¹ C⁻¹].
__device__ void invert(float* L) {
  const int w = threadIdx.x % team / warp, lane = threadIdx.x % warp;
  float* diagonal = L + w * block * (stride + 1);
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
  team_sync();
  {
    const int r = 1 + w / 2 * 2, n = w % 2 * 8;  // block (r, r-1), eight of its columns
    float* off = L + r * block * stride + (r - 1) * block;
    float* between = L + w / 2 * block * stride + half + n;
    float c[4] = {};
    multiply_tf32<block>(c, off, L + (r - 1) * block * (stride + 1) + n);
    put_tile(between, c, 1);
    team_sync();
    float d[4] = {};
    multiply_tf32<block>(d, L + r * block * (stride + 1), between);
    put_tile(off + n, d, -1);
  }
  team_sync();
  const int row = w / 2 * block, n0 = w % 2 * block;
#pragma unroll
  for (int n = n0; n < n0 + block; n += 8) {
    float c[4] = {};
    multiply_tf32<half>(c, L + (half + row) * stride, L + n);
    put_tile(L + row * stride + half + n, c, 1);
  }
  team_sync();
#pragma unroll
  for (int n = n0; n < n0 + block; n += 8) {
    float c[4] = {};
    multiply_tf32<half>(c, L + (half + row) * stride + half, L + half + n);
    put_tile(L + (half + row) * stride + n, c, -1);
  }
  team_sync();
}

// A block takes one chunk at one key head, and a team each of its value heads.
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
    const int lane = threadIdx.x % warp;
    constexpr int at_once = chunk_rows / (threads / warp);
    const int r0 = threadIdx.x / warp * at_once;
    uint2 q[at_once], k[at_once];
#pragma unroll
    for (int i = 0; i < at_once; i++) {
      const int r = r0 + i;
      if (r < ck.lo || r >= ck.hi) continue;
      const half_t* row = x + static_cast<int64_t>(ck.base + r) * x_stride + key_head * head_dim + lane * 4;
      q[i] = *reinterpret_cast<const uint2*>(row);
      k[i] = *reinterpret_cast<const uint2*>(row + c.kh * head_dim);
    }
#pragma unroll
    for (int i = 0; i < at_once; i++) {
      const int r = r0 + i;
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

  __device__ Work& work() const { return sh.work[team_of()]; }
  __device__ HeadRecord& record(int head) const { return records.heads[static_cast<int64_t>(chunk) * c.vh + head]; }

  // γ of every row, that of the last own one after it, by a team's first warp; two rows a lane.
  __device__ void decays(int head) {
    if (threadIdx.x % team < warp) {
      const int lane = threadIdx.x % warp;
      double before = 0, kept[2] = {};
      float g[2], beta[2];
      if (ringed) before = c.ring_g_at(slot, ck.begin + ck.lo - 1, head);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int r = lane * 2 + i;
        const bool own = r >= ck.lo && r < ck.hi;
        const int64_t at = static_cast<int64_t>(ck.base + r) * c.vh + head;
        g[i] = own ? c.g[at] : 0.0f;
        beta[i] = own ? c.beta[at] : 0.0f;
        if (ringed && r < ck.lo) kept[i] = c.ring_g_at(slot, ck.begin + r, head);
      }
      double sum = static_cast<double>(g[0]) + g[1];
#pragma unroll
      for (int d = 1; d < warp; d *= 2) {
        const double other = __shfl_up_sync(0xffffffffu, sum, d);
        if (lane >= d) sum += other;
      }
      double gamma[2] = {before + (sum - g[1]), before + sum};
      const double end = __shfl_sync(0xffffffffu, gamma[1], warp - 1);
      HeadRecord& to = record(head);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int r = lane * 2 + i;
        if (r < ck.lo) gamma[i] = kept[i];
        work().gamma[r] = gamma[i];
        work().beta[r] = to.beta[r] = beta[i];
        to.e_gamma[r] = expf(static_cast<float>(gamma[i]));
        to.to_end[r] = expf(static_cast<float>(end - gamma[i]));
        if (keep && r >= ck.lo && r < ck.hi) c.gamma[static_cast<int64_t>(ck.base + r) * c.vh + head] = gamma[i];
      }
    }
  }

  // Calls put(i, j, ⟨rows_i,k_j⟩ e^{γ_i-γ_j}, that of j + 1) for the warp's 16 rows i and even j; zero above the
  // diagonal.
  template <class Put>
  __device__ void products(const half_t* rows, Put put) {
    const int r0 = threadIdx.x % team / warp * 16;
    float s[8][4] = {};
#pragma unroll
    for (int k = 0; k < head_dim; k += 16) {
      uint32_t a[4];
      load_a<head_dim>(a, rows, r0, k);
#pragma unroll
      for (int n = 0; n < 8; n += 2) {
        if (n * 8 > r0) continue;  // above the diagonal
        uint32_t y[4];
        load_b_transposed<head_dim>(y, sh.keys.k, k, n * 8);
        mma(s[n], a, y[0], y[1]);
        mma(s[n + 1], a, y[2], y[3]);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int i = r0 + tile_row() + h * 8;
      const double own = work().gamma[i];
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const int j = n * 8 + tile_column();
        float p[2] = {};
        if (n * 8 <= r0 + 8) {
#pragma unroll
          for (int e = 0; e < 2; e++) {
            if (j + e <= i) p[e] = s[n][2 * h + e] * __expf(static_cast<float>(own - work().gamma[j + e]));
          }
        }
        put(i, j, p[0], p[1]);
      }
    }
  }

  // T of the team's L: 16 bytes of the image at a time.
  __device__ void put_inverse(half_t* T) const {
    for (int at = threadIdx.x % team; at < chunk_rows * chunk_rows / 8; at += team) {
      const int r = at / 8, column = at % 8 * 8;
      float x[8];
#pragma unroll
      for (int i = 0; i < 8; i++) x[i] = column + i <= r ? work().L[r * stride + column + i] : 0.0f;
      *reinterpret_cast<uint4*>(T + place<chunk_rows>(r, column)) = {pack(x[0], x[1]), pack(x[2], x[3]),
                                                                     pack(x[4], x[5]), pack(x[6], x[7])};
    }
  }

  __device__ void run() {
    load_rows();
    if (team_of() < c.group) decays(key_head * c.group + team_of());
    __syncthreads();
    uint4* keys = reinterpret_cast<uint4*>(records.keys + static_cast<int64_t>(chunk) * c.kh + key_head);
    for (int i = threadIdx.x; i < static_cast<int>(sizeof(KeyRecord) / 16); i += threads) {
      keys[i] = reinterpret_cast<const uint4*>(&sh.keys)[i];
    }
    const float scale = rsqrtf(static_cast<float>(head_dim));
    for (int i = team_of(); i < c.group; i += teams) {
      const int head = key_head * c.group + i;
      if (i >= teams) {
        team_sync();
        decays(head);
        team_sync();
      }
      float* L = work().L;
      half_t* P = record(head).P;
      products(sh.keys.k, [&](int r, int j, float x, float y) {
        const float beta = work().beta[r];
        *reinterpret_cast<float2*>(L + r * stride + j) = {j < r ? beta * x : 0.0f, j + 1 < r ? beta * y : 0.0f};
      });
      products(sh.keys.q, [&](int r, int j, float x, float y) {
        *reinterpret_cast<uint32_t*>(P + place<chunk_rows>(r, j)) = pack(scale * x, scale * y);
      });
      team_sync();
      invert(L);
      put_inverse(record(head).T);
    }
  }
};

__global__ void __launch_bounds__(threads, 3)
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
