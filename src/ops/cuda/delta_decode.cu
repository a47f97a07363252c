// The delta rule of a few rows per segment with memory, for heads of 128 in bf16: bound by reading the states. A row is
// solved by the arithmetic of the training chunk (delta_prepare.cu, delta_forward_128.cu), operand by operand and in
// its order, so that it has the same bits: from the ring come the keys and right-hand sides of the chunk's earlier
// rows.
#include "ops/cuda/delta_solve.cuh"

namespace furlong::cuda::delta {
namespace {

constexpr int threads = 256, warps = threads / warp;
constexpr int own_columns = head_dim / warps, N = own_columns / 8;  // of the state, of a warp
constexpr int row_tiles = chunk_rows / 16, state_tiles = head_dim / 16;
static_assert(threads == 2 * team && team / warp == row_tiles);

struct Shared {
  half_t k[chunk_rows * head_dim], q[chunk_rows * head_dim], r[chunk_rows * head_dim];
  half_t T[chunk_rows * chunk_rows], P[chunk_rows * chunk_rows];
  float L[chunk_rows * t_stride];
  double gamma[chunk_rows];
  float beta[chunk_rows], e_gamma[chunk_rows], to_end[chunk_rows];
};

__device__ inline void copy_16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

// A block takes one value head of one segment. A warp has 16 columns of the state, in registers as accumulators of the
// tensor cores lie.
struct Decode {
  const Call& c;
  const half_t* x;
  int64_t x_stride;
  half_t* o;
  int64_t o_stride;
  Shared& sh;
  int segment, head, slot;

  using State = float[state_tiles][N][4];
  using Pairs = uint32_t[row_tiles][N][2];  // 64 rows of the warp's columns as right operands

  __device__ int column() const { return threadIdx.x / warp * own_columns; }

  // f(row, column, two numbers of the state)
  template <class F>
  __device__ void each(State& S, F f) const {
#pragma unroll
    for (int m = 0; m < state_tiles; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int n = 0; n < N; n++) {
          f(m * 16 + h * 8 + tile_row(), column() + n * 8 + tile_column(), S[m][n][2 * h], S[m][n][2 * h + 1]);
        }
      }
    }
  }
  __device__ float* state_at(int row, int at) const {
    return c.state + ((static_cast<int64_t>(slot) * c.vh + head) * head_dim + row) * head_dim + at;
  }
  __device__ void load_state(State& S) const {
    each(S, [&](int row, int at, float& a, float& b) {
      const float2 y = __ldcs(reinterpret_cast<const float2*>(state_at(row, at)));
      a = y.x, b = y.y;
    });
  }
  __device__ void store_state(State& S) const {
    each(S, [&](int row, int at, float& a, float& b) { *reinterpret_cast<float2*>(state_at(row, at)) = {a, b}; });
  }

  // The chunk's rows, own ones normalised and with v in place of r; zeros up to the end of a tile. What lies in the
  // ring no other kernel of a recorded step writes: it is read before the kernels ahead have ended.
  __device__ void load_rows(const ChunkRead& in) const {
    const Chunk& ck = in.ck;
    constexpr int pieces = head_dim / 8;
    const int w = threadIdx.x / warp;
#pragma unroll 1
    for (int i = threadIdx.x; i < end_of(ck) * pieces; i += threads) {
      const int r = i / pieces, piece = i % pieces * 8, at = place<head_dim>(r, piece);
      if (r < ck.lo) {
        copy_16(sh.k + at, c.ring_keys_at(slot, ck.begin + r, in.key_head) + piece);
        copy_16(sh.r + at, c.ring_right_at(slot, ck.begin + r, head) + piece);
      } else if (r >= ck.hi) {
        *reinterpret_cast<uint4*>(sh.k + at) = uint4{};
        *reinterpret_cast<uint4*>(sh.r + at) = uint4{};
      }
    }
    if (w == warps - 1) {
      in.decays(head, {sh.gamma, sh.beta, sh.e_gamma, sh.to_end}, [] { wait_for_earlier(); });
    } else {
      wait_for_earlier();
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < (ck.hi - ck.lo) * pieces; i += threads) {
      const int r = ck.lo + i / pieces, piece = i % pieces * 8;
      copy_16(sh.r + place<head_dim>(r, piece),
              x + static_cast<int64_t>(ck.base + r) * x_stride + (2 * c.kh + head) * head_dim + piece);
    }
#pragma unroll 1
    for (int i = w; i < 2 * (ck.hi - ck.lo); i += warps) {
      const int r = ck.lo + i / 2;
      const half_t* from = in.query(r) + i % 2 * c.kh * head_dim;
      in.normalise(*reinterpret_cast<const uint2*>(from), r, i % 2 == 0 ? sh.q : sh.k, nullptr, nullptr);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
  }
  // The rows up to the end of the last row's tile.
  __device__ static int end_of(const Chunk& ck) { return (ck.hi + 15) / 16 * 16; }

  // T by the first team, P of the tiles with own rows by the second.
  __device__ void prepare(const Chunk& ck) const {
    const int r0 = threadIdx.x % team / warp * 16;
    const bool first = team_of() == 0;
    if (r0 < ck.hi && (first || r0 + 16 > ck.lo)) {
      products<2>(first ? sh.k : sh.q, sh.k, sh.gamma, r0, [&](int r, int j, float x, float y) {
        if (first) {
          put_lower_pair(sh.L, sh.beta, r, j, x, y);
        } else {
          put_query_pair(sh.P, r, j, x, y);
        }
      });
    } else if (first) {
      for (int i = threadIdx.x % warp; i < 16 * t_stride; i += warp) sh.L[r0 * t_stride + i] = 0;
    }
    if (first) {
      team_sync();
      invert(sh.L, ck.hi);
      put_inverse(sh.T, sh.L, end_of(ck));
    }
    __syncthreads();
  }

  // acc = rows of an image from r0 times the state.
  __device__ static void through_state(float (&acc)[N][4], const half_t* rows, int r0, State& S) {
#pragma unroll
    for (int m = 0; m < state_tiles; m++) {
      uint32_t a[4];
      load_a<head_dim>(a, rows, r0, m * 16);
#pragma unroll
      for (int n = 0; n < N; n++) {
        mma(acc[n], a, turned(pack(S[m][n][0], S[m][n][1])), turned(pack(S[m][n][2], S[m][n][3])));
      }
    }
  }

  // r of the own rows, into the image and, where they stay, into the ring.
  __device__ void right_sides(const Chunk& ck, State& S, bool stays) const {
    for (int r0 = ck.lo / 16 * 16; r0 < ck.hi; r0 += 16) {
      float acc[N][4] = {};
      through_state(acc, sh.k, r0, S);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = r0 + tile_row() + h * 8;
        if (r < ck.lo || r >= ck.hi) continue;
        const float beta = sh.beta[r], decay = sh.e_gamma[r];
#pragma unroll
        for (int n = 0; n < N; n++) {
          const int at = column() + n * 8 + tile_column();
          uint32_t* place_of = reinterpret_cast<uint32_t*>(sh.r + place<head_dim>(r, at));
          const float2 value = unpack(*place_of);
          const uint32_t both = pack(right_side(beta, value.x, decay, acc[n][2 * h]),
                                     right_side(beta, value.y, decay, acc[n][2 * h + 1]));
          *place_of = both;
          if (stays) *reinterpret_cast<uint32_t*>(c.ring_right_at(slot, ck.begin + r, head) + at) = both;
        }
      }
    }
    __syncwarp();
  }

  // u = T r of the chunk's rows, or e^{γ_C-γ} u.
  __device__ void solve(const Chunk& ck, bool scaled, Pairs& u) const {
#pragma unroll
    for (int m = 0; m < row_tiles; m++) {
      float acc[N][4] = {};
      if (m * 16 < ck.hi) {
#pragma unroll
        for (int k = 0; k <= m; k++) {  // T is zero above the diagonal
          uint32_t a[4], b[4];
          load_a<chunk_rows>(a, sh.T, m * 16, k * 16);
          load_b<head_dim>(b, sh.r, k * 16, column());
          mma(acc[0], a, b[0], b[1]);
          mma(acc[1], a, b[2], b[3]);
        }
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float factor = scaled ? sh.to_end[m * 16 + tile_row() + h * 8] : 1.0f;
#pragma unroll
        for (int n = 0; n < N; n++) u[m][n][h] = turned(pack(factor * acc[n][2 * h], factor * acc[n][2 * h + 1]));
      }
    }
  }

  __device__ void outputs(const Chunk& ck, State& S, const Pairs& u) const {
    const float scale = rsqrtf(static_cast<float>(head_dim));
    for (int r0 = ck.lo / 16 * 16; r0 < ck.hi; r0 += 16) {
      float acc[N][4] = {};
      through_state(acc, sh.q, r0, S);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const float factor = scale * sh.e_gamma[r0 + tile_row() + h * 8];
#pragma unroll
        for (int n = 0; n < N; n++) acc[n][2 * h] *= factor, acc[n][2 * h + 1] *= factor;
      }
#pragma unroll
      for (int k = 0; k < row_tiles; k++) {
        if (k * 16 > r0) continue;
        uint32_t a[4];
        load_a<chunk_rows>(a, sh.P, r0, k * 16);
#pragma unroll
        for (int n = 0; n < N; n++) mma(acc[n], a, u[k][n][0], u[k][n][1]);
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = r0 + tile_row() + h * 8;
        if (r < ck.lo || r >= ck.hi) continue;
        half_t* to = o + static_cast<int64_t>(ck.base + r) * o_stride + head * head_dim + column() + tile_column();
#pragma unroll
        for (int n = 0; n < N; n++) *reinterpret_cast<uint32_t*>(to + n * 8) = pack(acc[n][2 * h], acc[n][2 * h + 1]);
      }
    }
  }

  // S <- e^{γ_C} S + Σ_j k_j (e^{γ_C-γ_j} u_j)ᵀ over the whole chunk.
  __device__ void advance(State& S, const Pairs& scaled) const {
    const float decay = sh.e_gamma[chunk_rows - 1];
#pragma unroll
    for (int m = 0; m < state_tiles; m++) {
#pragma unroll
      for (int n = 0; n < N; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) S[m][n][i] *= decay;
      }
#pragma unroll
      for (int k = 0; k < row_tiles; k++) {
        uint32_t a[4];
        load_a_transposed<head_dim>(a, sh.k, m * 16, k * 16);
#pragma unroll
        for (int n = 0; n < N; n++) mma(S[m][n], a, scaled[k][n][0], scaled[k][n][1]);
      }
    }
  }

  // Keys, γ and β of the own rows, into the ring; keys by the first value head of their key head.
  __device__ void keep_rows(const Chunk& ck) const {
    for (int r = ck.lo + threadIdx.x; r < ck.hi; r += threads) {
      c.ring_g_at(slot, ck.begin + r, head) = sh.gamma[r];
      c.ring_beta_at(slot, ck.begin + r, head) = sh.beta[r];
    }
    if (head % c.group != 0) return;
    constexpr int pieces = head_dim / 8;
    for (int i = ck.lo * pieces + threadIdx.x; i < ck.hi * pieces; i += threads) {
      half_t* to = c.ring_keys_at(slot, ck.begin + i / pieces, head / c.group) + i % pieces * 8;
      *reinterpret_cast<uint4*>(to) =
          *reinterpret_cast<const uint4*>(sh.k + place<head_dim>(i / pieces, i % pieces * 8));
    }
  }

  __device__ ChunkRead chunk(const Chunk& ck) const { return {c, x, x_stride, ck, head / c.group, slot, ck.lo > 0}; }

  __device__ void run(int chunks) const {
    const bool speculative = c.speculative[segment] != 0;
    State S;
    Pairs u;
    load_state(S);
    for (int i = 0; i < chunks; i++) {
      const ChunkRead in = chunk(chunk_of(c, segment, i));
      const Chunk& ck = in.ck;
      const bool stays = speculative || ck.hi < chunk_rows;
      load_rows(in);
      // The blocks of a cluster read the same keys of the ring before one of them writes others there. Nothing written
      // is handed over: no fence.
      if (i == 0) asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
      prepare(ck);
      right_sides(ck, S, stays);
      solve(ck, false, u);
      outputs(ck, S, u);
      if (i == 0) asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
      if (stays) keep_rows(ck);
      if (ck.hi < chunk_rows) break;
      if (!speculative || i + 1 < chunks) {
        solve(ck, true, u);
        advance(S, u);
      }
      if (i + 1 < chunks) __syncthreads();
    }
    const int hi = chunk_of(c, segment, chunks - 1).hi;
    if (!speculative && (chunks > 1 || hi == chunk_rows)) store_state(S);
  }

  // Moves the state past a chunk that lies in the ring.
  __device__ void commit(int begin) const {
    State S;
    Pairs u;
    load_state(S);
    const ChunkRead in = chunk({segment, 0, begin, chunk_rows, chunk_rows});
    load_rows(in);
    prepare(in.ck);
    solve(in.ck, true, u);
    advance(S, u);
    store_state(S);
  }
};

__global__ void __launch_bounds__(threads, 2)
    decode_kernel(Call c, const half_t* x, int64_t x_stride, half_t* o, int64_t o_stride) {
  extern __shared__ __align__(128) char memory[];
  dependents_may_start();
  const int segment = blockIdx.y, chunks = chunks_in(c, segment);
  if (chunks == 0) return wait_for_earlier();
  Decode{c,
         x,
         x_stride,
         o,
         o_stride,
         *reinterpret_cast<Shared*>(memory),
         segment,
         static_cast<int>(blockIdx.x),
         c.slots[segment]}
      .run(chunks);
}

// A block moves one value head of one slot past the chunk that a commit completes.
__global__ void __launch_bounds__(threads, 2) commit_kernel(Call c, const int32_t* before, const int32_t* after) {
  extern __shared__ __align__(128) char memory[];
  const int segment = blockIdx.y, from = before[segment] / chunk_rows;
  if (from == after[segment] / chunk_rows) return;
  Decode{c,
         nullptr,
         0,
         nullptr,
         0,
         *reinterpret_cast<Shared*>(memory),
         segment,
         static_cast<int>(blockIdx.x),
         c.slots[segment]}
      .commit(from * chunk_rows);
}

template <class Kernel>
void allow_memory(Kernel* kernel) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)),
        "cudaFuncSetAttribute");
}

}  // namespace

void decode_128(Queue& queue, const Call& c, const Tensor& o, const Tensor& x) {
  allow_memory(decode_kernel);
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(c.group), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(c.vh), static_cast<unsigned>(c.segments));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = sizeof(Shared);
  config.stream = queue.stream;
  config.attrs = attributes;
  config.numAttrs = queue.recording ? 2 : 1;  // early only there, as in launch_early
  check(cudaLaunchKernelEx(&config, decode_kernel, c, data_of<half_t>(x), x.row_stride(), data_of<half_t>(o),
                           o.row_stride()),
        "launching the delta rule");
}

void commit_128(Queue& queue, const Call& c, const int32_t* before, const int32_t* after) {
  allow_memory(commit_kernel);
  const dim3 grid(static_cast<unsigned>(c.vh), static_cast<unsigned>(c.segments));
  commit_kernel<<<grid, threads, sizeof(Shared), queue.stream>>>(c, before, after);
}

}  // namespace furlong::cuda::delta
