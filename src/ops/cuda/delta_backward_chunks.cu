// The delta rule backward for heads of 128 in bf16: what is left once every chunk has the states at its two ends.
#include "ops/cuda/delta_backward.cuh"

namespace furlong::cuda::delta {
namespace {

constexpr int threads = 256, warps = threads / warp;

struct Shared {
  KeyRecord keys;
  half_t D[head_dim * head_dim], S[head_dim * head_dim];
  half_t x[chunk_rows * head_dim], u[chunk_rows * head_dim], do_[chunk_rows * head_dim];
  half_t E[chunk_rows * chunk_rows], M[chunk_rows * chunk_rows];
  double gamma[chunk_rows];
  float beta[chunk_rows], e_gamma[chunk_rows], to_end[chunk_rows];
  // Sums over the columns of a row: two halves of the columns; sums over the rows of a column: four warps of rows.
  float flow_rows[2][chunk_rows], beta_rows[2][chunk_rows], flow_columns[4][chunk_rows];
  float q_state[2][chunk_rows], k_state[2][chunk_rows], x_state[2][chunk_rows], x_value[chunk_rows];
  float ends[warps];
  uint64_t full;
};

__device__ inline float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// A block takes one chunk at one key head and goes over its value heads (ops/cpu/delta_rule_backward.cpp has the
// formulas). A warp takes 16 rows and, of matrices over the chunk, 32 columns; of dq and dk, 64.
struct Chunks {
  const Call& c;
  const Backward128& b;
  Shared& sh;
  Chunk ck;
  int chunk, key_head;
  float kk[4][4], qk[4][4];  // ⟨k_i,k_j⟩, ⟨q_i,k_j⟩
  float dq[8][4], dk[8][4];

  __device__ int side() const { return threadIdx.x / warp / 4; }  // which half of the columns
  __device__ int row0() const { return threadIdx.x / warp % 4 * 16; }
  __device__ bool own(int r) const { return r >= ck.lo && r < ck.hi; }
  __device__ bool below() const { return side() * 32 <= row0(); }  // the warp's tile reaches the diagonal

  static constexpr int pieces = chunk_rows * head_dim / 8 / threads;  // of 8 numbers, of do and of u, a thread
  static constexpr int states = head_dim * head_dim / 4 / threads;    // of 4 numbers, of S
  static constexpr int values = chunk_rows / warps;                   // rows of v a warp

  // The loads of a head overlap each other; S, which is twice as large as all the rest, comes in halves.
  __device__ void load_head(int head, uint32_t& parity) {
    const int64_t at = static_cast<int64_t>(chunk) * c.vh + head;
    if (threadIdx.x == 0) {
      barrier_expect(&sh.full, sizeof sh.D + sizeof sh.x);
      bulk_load(sh.D, b.D + at * Backward128::D_size, sizeof sh.D, &sh.full);
      bulk_load(sh.x, b.solved + at * Backward128::solved_size, sizeof sh.x, &sh.full);
    }
    const float4* from = reinterpret_cast<const float4*>(c.states + at * Backward128::D_size) + threadIdx.x;
    float4 S[states / 2];
#pragma unroll
    for (int i = 0; i < states / 2; i++) S[i] = __ldcs(from + i * threads);
    load_rows(head);
    if (threadIdx.x < chunk_rows) {
      const int r = threadIdx.x;
      const HeadRecord& record = b.records.heads[at];
      sh.beta[r] = record.beta[r], sh.e_gamma[r] = record.e_gamma[r], sh.to_end[r] = record.to_end[r];
      // Rows that are not the batch's have no part in any sum.
      sh.gamma[r] = own(r) ? c.gamma[static_cast<int64_t>(ck.base + r) * c.vh + head] : 0;
    }
    barrier_wait(&sh.full, parity);
    parity ^= 1;
    float along = 0;  // ⟨S,D⟩
    put_state(S, 0, along);
#pragma unroll
    for (int i = 0; i < states / 2; i++) S[i] = __ldcs(from + (states / 2 + i) * threads);
    along_values(head);
    put_state(S, states / 2, along);
    along = warp_sum(along);
    if (threadIdx.x % warp == 0) sh.ends[threadIdx.x / warp] = along;
    __syncthreads();
  }
  __device__ void put_state(const float4 (&S)[states / 2], int first, float& along) {
#pragma unroll
    for (int i = 0; i < states / 2; i++) {
      const int index = ((first + i) * threads + threadIdx.x) * 4;
      const int to = place<head_dim>(index / head_dim, index % head_dim);
      const uint2 d = *reinterpret_cast<const uint2*>(sh.D + to);
      const float2 d0 = unpack(d.x), d1 = unpack(d.y);
      along = fmaf(S[i].w, d1.y, fmaf(S[i].z, d1.x, fmaf(S[i].y, d0.y, fmaf(S[i].x, d0.x, along))));
      *reinterpret_cast<uint2*>(sh.S + to) = {pack(S[i].x, S[i].y), pack(S[i].z, S[i].w)};
    }
  }

  // Asks for a head's numbers to be brought into the second-level cache.
  __device__ void announce(int head) const {
    const auto fetch = [](const void* from, uint32_t bytes) {
      asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
    };
    const int64_t at = static_cast<int64_t>(chunk) * c.vh + head;
    if (threadIdx.x == 0) {
      fetch(c.states + at * Backward128::D_size, Backward128::D_size * sizeof(float));
      fetch(b.D + at * Backward128::D_size, Backward128::D_size * sizeof(half_t));
      fetch(b.solved + at * Backward128::solved_size, Backward128::solved_size * sizeof(half_t));
    }
    const int r = threadIdx.x;
    if (r >= chunk_rows || !own(r)) return;
    const int64_t row = ck.base + r;
    fetch(c.u + (row * c.vh + head) * head_dim, head_dim * sizeof(float));
    fetch(b.do_ + row * b.do_stride + head * head_dim, head_dim * sizeof(half_t));
    fetch(b.x + row * b.x_stride + Backward128::value_at(c, head), head_dim * sizeof(half_t));
  }

  // do and u as images.
  __device__ void load_rows(int head) {
    uint4 d[pieces];
    float4 u[pieces][2];
#pragma unroll
    for (int i = 0; i < pieces; i++) {
      const int piece = i * threads + threadIdx.x, r = piece / 16, column = piece % 16 * 8;
      const int64_t row = ck.base + r;
      d[i] = {}, u[i][0] = u[i][1] = {};
      if (!own(r)) continue;
      d[i] = *reinterpret_cast<const uint4*>(b.do_ + row * b.do_stride + head * head_dim + column);
      const float4* from = reinterpret_cast<const float4*>(c.u + (row * c.vh + head) * head_dim + column);
      u[i][0] = from[0], u[i][1] = from[1];
    }
#pragma unroll
    for (int i = 0; i < pieces; i++) {
      const int piece = i * threads + threadIdx.x, at = place<head_dim>(piece / 16, piece % 16 * 8);
      *reinterpret_cast<uint4*>(sh.do_ + at) = d[i];
      *reinterpret_cast<uint4*>(sh.u + at) = {pack(u[i][0].x, u[i][0].y), pack(u[i][0].z, u[i][0].w),
                                              pack(u[i][1].x, u[i][1].y), pack(u[i][1].z, u[i][1].w)};
    }
  }
  // ⟨x,v⟩ of each row, once x is there.
  __device__ void along_values(int head) {
    const int lane = threadIdx.x % warp;
    uint2 raw[values];
#pragma unroll
    for (int i = 0; i < values; i++) {
      const int r = threadIdx.x / warp * values + i;
      raw[i] = {};
      if (own(r)) {
        raw[i] = *reinterpret_cast<const uint2*>(b.x + static_cast<int64_t>(ck.base + r) * b.x_stride +
                                                 Backward128::value_at(c, head) + lane * 4);
      }
    }
#pragma unroll
    for (int i = 0; i < values; i++) {
      const int r = threadIdx.x / warp * values + i;
      const uint2 x = *reinterpret_cast<const uint2*>(sh.x + place<head_dim>(r, lane * 4));
      const float2 x0 = unpack(x.x), x1 = unpack(x.y), v0 = unpack(raw[i].x), v1 = unpack(raw[i].y);
      const float sum = warp_sum(fmaf(x1.y, v1.y, fmaf(x1.x, v1.x, fmaf(x0.y, v0.y, x0.x * v0.x))));
      if (lane == 0) sh.x_value[r] = sum;
    }
  }

  // E = e^{γ_i-γ_j} ⟨do_i,u_j⟩ / sqrt(Dk) (j <= i) and the symmetric M with -β_i e^{γ_i-γ_j} ⟨x_i,u_j⟩ below the
  // diagonal; what flows into γ and β through them.
  __device__ void pairs() {
    float e[4][4] = {}, m[4][4] = {};
    if (below()) {
      multiply<head_dim, false, head_dim, true>(e, sh.do_, row0(), sh.u, side() * 32, 0, head_dim);
      multiply<head_dim, false, head_dim, true>(m, sh.x, row0(), sh.u, side() * 32, 0, head_dim);
    }
    const float scale = rsqrtf(static_cast<float>(head_dim));
    float column_sum[4][2] = {};
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int i = row0() + tile_row() + h * 8;
      const float beta = sh.beta[i];
      const double gamma = sh.gamma[i];
      float flow_row = 0, beta_row = 0;
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const int column = side() * 32 + n * 8 + tile_column();
        float E[2], M[2];
#pragma unroll
        for (int s = 0; s < 2; s++) {
          const int j = column + s, at = 2 * h + s;
          const bool in = j <= i && own(i) && own(j);
          const float decay = in ? __expf(static_cast<float>(gamma - sh.gamma[j])) : 0.0f;
          const float d = j < i ? -m[n][at] * decay : 0.0f;
          E[s] = scale * decay * e[n][at];
          M[s] = beta * d;
          const float flow = fmaf(E[s], qk[n][at], M[s] * kk[n][at]);
          beta_row = fmaf(d, kk[n][at], beta_row);
          flow_row += flow;
          column_sum[n][s] += flow;
          if (j <= i) sh.M[place<chunk_rows>(j, i)] = narrow<half_t>(M[s]);
        }
        const int at = place<chunk_rows>(i, column);
        *reinterpret_cast<uint32_t*>(sh.E + at) = pack(E[0], E[1]);
        if (column < i) {
          *reinterpret_cast<uint32_t*>(sh.M + at) = pack(M[0], M[1]);
        }
      }
      flow_row = quad_sum(flow_row), beta_row = quad_sum(beta_row);
      if (threadIdx.x % 4 == 0) sh.flow_rows[side()][i] = flow_row, sh.beta_rows[side()][i] = beta_row;
    }
#pragma unroll
    for (int n = 0; n < 4; n++) {
#pragma unroll
      for (int s = 0; s < 2; s++) {
        float sum = column_sum[n][s];
#pragma unroll
        for (int lanes = 4; lanes < warp; lanes *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
        if (threadIdx.x % warp < 4) {
          sh.flow_columns[row0() / 16][side() * 32 + n * 8 + tile_column() + s] = sum;
        }
      }
    }
    __syncthreads();
  }

  // Adds factor_i (rows·stateᵀ)_i to a gradient; sums: ⟨(rows·stateᵀ)_i, with_i⟩.
  template <class Factor>
  __device__ void through_state(float (&grad)[8][4], const half_t* rows, const half_t* state, const half_t* with,
                                float (&sums)[2][chunk_rows], Factor factor) {
    float t[8][4] = {};
    multiply<head_dim, false, head_dim, true>(t, rows, row0(), state, side() * 64, 0, head_dim);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = row0() + tile_row() + h * 8;
      const float f = factor(r);
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const float2 y =
            unpack(*reinterpret_cast<const uint32_t*>(with + place<head_dim>(r, side() * 64 + n * 8 + tile_column())));
        sum = fmaf(t[n][2 * h], y.x, fmaf(t[n][2 * h + 1], y.y, sum));
        grad[n][2 * h] = fmaf(f, t[n][2 * h], grad[n][2 * h]);
        grad[n][2 * h + 1] = fmaf(f, t[n][2 * h + 1], grad[n][2 * h + 1]);
      }
      sum = quad_sum(sum);
      if (threadIdx.x % 4 == 0) sums[side()][r] = sum;
    }
  }

  // dγ summed from the end of the chunk, and dβ; the first warp, two rows a lane.
  __device__ void gates(int head) const {
    if (threadIdx.x >= warp) return;
    const int lane = threadIdx.x;
    const float scale = rsqrtf(static_cast<float>(head_dim));
    double d[2], to_last = 0;
    float dbeta[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int r = lane * 2 + i;
      const float q_flow = scale * sh.e_gamma[r] * (sh.q_state[0][r] + sh.q_state[1][r]);
      const float k_flow = sh.to_end[r] * (sh.k_state[0][r] + sh.k_state[1][r]);
      const float x_flow = -sh.e_gamma[r] * (sh.x_state[0][r] + sh.x_state[1][r]);
      float columns = 0;
      for (int w = 0; w < 4; w++) columns += sh.flow_columns[w][r];
      d[i] = static_cast<double>(sh.flow_rows[0][r]) + sh.flow_rows[1][r] - columns;
      d[i] += static_cast<double>(q_flow) - k_flow + sh.beta[r] * x_flow;
      to_last += k_flow;
      dbeta[i] = sh.beta_rows[0][r] + sh.beta_rows[1][r] + sh.x_value[r] + x_flow;
    }
#pragma unroll
    for (int lanes = 1; lanes < warp; lanes *= 2) to_last += __shfl_xor_sync(0xffffffffu, to_last, lanes);
    if (lane == warp - 1) {
      float along = 0;
      for (int w = 0; w < warps; w++) along += sh.ends[w];
      d[1] += to_last + static_cast<double>(sh.e_gamma[chunk_rows - 1]) * along;
    }
    double sum = d[0] + d[1];
#pragma unroll
    for (int lanes = 1; lanes < warp; lanes *= 2) {
      const double other = __shfl_down_sync(0xffffffffu, sum, lanes);
      if (lane + lanes < warp) sum += other;
    }
    const double running[2] = {sum, sum - d[0]};
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int r = lane * 2 + i;
      if (!own(r)) continue;
      const int64_t at = static_cast<int64_t>(ck.base + r) * c.vh + head;
      b.dg[at] = static_cast<float>(running[i]);
      b.dbeta[at] = dbeta[i];
    }
  }

  __device__ void value_head(int head, uint32_t& parity) {
    load_head(head, parity);
    if ((head + 1) % c.group != 0) announce(head + 1);
    pairs();
    const float scale = rsqrtf(static_cast<float>(head_dim));
    multiply<chunk_rows, false, head_dim, false>(dq, sh.E, row0(), sh.keys.k, side() * 64, 0, chunk_rows);
    multiply<chunk_rows, true, head_dim, false>(dk, sh.E, row0(), sh.keys.q, side() * 64, 0, chunk_rows);
    multiply<chunk_rows, false, head_dim, false>(dk, sh.M, row0(), sh.keys.k, side() * 64, 0, chunk_rows);
    through_state(dq, sh.do_, sh.S, sh.keys.q, sh.q_state, [&](int r) { return scale * sh.e_gamma[r]; });
    through_state(dk, sh.u, sh.D, sh.keys.k, sh.k_state, [&](int r) { return sh.to_end[r]; });
    through_state(dk, sh.x, sh.S, sh.keys.k, sh.x_state, [&](int r) { return -sh.beta[r] * sh.e_gamma[r]; });
    __syncthreads();
    gates(head);
    __syncthreads();
  }

  // dx of a normalised row: ρ (dy - y ⟨y,dy⟩)
  __device__ void put(const float (&dy)[8][4], const half_t* image, const float* inverse, int column) {
    float along[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = row0() + tile_row() + h * 8;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const float2 y =
            unpack(*reinterpret_cast<const uint32_t*>(image + place<head_dim>(r, side() * 64 + n * 8 + tile_column())));
        sum = fmaf(dy[n][2 * h], y.x, fmaf(dy[n][2 * h + 1], y.y, sum));
      }
      along[h] = quad_sum(sum);
      if (threadIdx.x % 4 == 0) sh.q_state[side()][r] = along[h];
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = row0() + tile_row() + h * 8;
      if (!own(r)) continue;
      const int64_t row = ck.base + r;
      const float sum = sh.q_state[0][r] + sh.q_state[1][r], s = inverse[row * c.kh + key_head];
      half_t* to = b.dx + row * b.dx_stride + column + side() * 64 + tile_column();
#pragma unroll
      for (int n = 0; n < 8; n++) {
        const float2 y =
            unpack(*reinterpret_cast<const uint32_t*>(image + place<head_dim>(r, side() * 64 + n * 8 + tile_column())));
        *reinterpret_cast<uint32_t*>(to + n * 8) =
            pack(s * (dy[n][2 * h] - y.x * sum), s * (dy[n][2 * h + 1] - y.y * sum));
      }
    }
    __syncthreads();
  }

  __device__ void run() {
    if (threadIdx.x == 0) {
      barrier_start(&sh.full);
      barriers_started();
      barrier_expect(&sh.full, sizeof(KeyRecord));
      bulk_load(&sh.keys, b.records.keys + static_cast<int64_t>(chunk) * c.kh + key_head, sizeof(KeyRecord), &sh.full);
    }
    __syncthreads();
    barrier_wait(&sh.full, 0);
    uint32_t parity = 1;
#pragma unroll
    for (int n = 0; n < 4; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) kk[n][e] = qk[n][e] = 0;
    }
#pragma unroll
    for (int n = 0; n < 8; n++) {
#pragma unroll
      for (int e = 0; e < 4; e++) dq[n][e] = dk[n][e] = 0;
    }
    if (below()) {
      multiply<head_dim, false, head_dim, true>(kk, sh.keys.k, row0(), sh.keys.k, side() * 32, 0, head_dim);
      multiply<head_dim, false, head_dim, true>(qk, sh.keys.q, row0(), sh.keys.k, side() * 32, 0, head_dim);
    }
    for (int i = 0; i < c.group; i++) value_head(key_head * c.group + i, parity);
    put(dq, sh.keys.q, c.q_r, key_head * head_dim);
    put(dk, sh.keys.k, c.k_r, (c.kh + key_head) * head_dim);
  }
};

__global__ void __launch_bounds__(threads, 1) chunks_kernel(Call c, Backward128 b) {
  extern __shared__ __align__(128) char memory[];
  const int chunk = blockIdx.y;
  if (chunk >= b.records.plan.first[c.segments]) return;
  Chunks{c, b, *reinterpret_cast<Shared*>(memory), b.records.plan.chunks[chunk], chunk, static_cast<int>(blockIdx.x)}
      .run();
}

}  // namespace

void backward_chunks_128(Queue& queue, const Call& c, const Backward128& b) {
  check(cudaFuncSetAttribute(chunks_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)),
        "cudaFuncSetAttribute");
  const dim3 grid(static_cast<unsigned>(c.kh), static_cast<unsigned>(most_chunks(c.rows, c.segments)));
  chunks_kernel<<<grid, threads, sizeof(Shared), queue.stream>>>(c, b);
}

namespace {

Backward128 carve_backward(Carve& carve, const Call& c) {
  const int64_t heads = most_chunks(c.rows, c.segments) * c.vh;
  Backward128 b{};
  b.records = carve_records(carve, c);
  b.solved = carve.take<half_t>(heads * Backward128::solved_size);
  b.D = carve.take<half_t>(heads * Backward128::D_size);
  return b;
}

}  // namespace

void backward_128(Queue& queue, const Call& c, const Tensor& dx, const Tensor& dg, const Tensor& dbeta,
                  const Tensor& dstate0, const Tensor& do_, const Tensor& dstate1, const Tensor& x) {
  Carve size;
  carve_backward(size, c);
  Carve carve(queue.scratch(size.used()));
  Backward128 b = carve_backward(carve, c);
  b.x = data_of<half_t>(x), b.do_ = data_of<half_t>(do_), b.dx = data_of<half_t>(dx);
  b.x_stride = x.row_stride(), b.do_stride = do_.row_stride(), b.dx_stride = dx.row_stride();
  b.dg = dg.as<float>(), b.dbeta = dbeta.as<float>();
  b.dstate0 = data_or_null<float>(dstate0), b.dstate1 = data_or_null<float>(dstate1);
  prepare_128(queue, c, b.records, x, false);
  backward_scan_128(queue, c, b);
  backward_chunks_128(queue, c, b);
}

}  // namespace furlong::cuda::delta
