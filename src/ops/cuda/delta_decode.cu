// The delta rule of a few rows per segment with memory, for heads of 128 in bf16: bound by reading the states. A row is
// solved by the arithmetic of the training chunk (delta_prepare.cu, delta_forward_128.cu), operand by operand and in
// its order, so that it has the same bits: from the ring come the keys and right-hand sides of the chunk's earlier
// rows. The same kernel may do the whole core of a layer: the convolution and the gates before the rule and the norm
// behind it, each by the arithmetic of its own kernel.
#include "ops/cuda/delta_core.cuh"
#include "ops/cuda/delta_solve.cuh"

namespace furlong::cuda::delta {
namespace {

constexpr int threads = core_threads, warps = threads / warp;
constexpr int own_columns = head_dim / warps, N = own_columns / 8;  // of the state, of a warp
constexpr int blocks_at_once = 3;                                   // on a multiprocessor
constexpr int T_stride = 2 * t_stride;                              // in bf16, where L was
constexpr int few_segments = 8;
[[maybe_unused]] constexpr int products_done = 3, rows_done = 4;  // barriers of some warps
constexpr int row_tiles = chunk_rows / 16, state_tiles = head_dim / 16;
static_assert(threads == 2 * team && team / warp == row_tiles);

struct Shared {
  half_t k[chunk_rows * head_dim], q[chunk_rows * head_dim], r[chunk_rows * head_dim];
  half_t P[16 * chunk_rows];  // of a tile's rows
  float L[chunk_rows * t_stride];
  double gamma[chunk_rows];
  float beta[chunk_rows], e_gamma[chunk_rows], to_end[chunk_rows];
  uint4 inputs[convolving];  // of the convolution: each thread's first own row

  // Where P and L will lie.
  __device__ Early& early() { return reinterpret_cast<Early*>(P)[threadIdx.x]; }
  __device__ half_t* T() { return reinterpret_cast<half_t*>(L); }
  // Own rows of o, where those of q have been.
  __device__ half_t* outputs(int row) { return q + row * head_dim; }
};
static_assert(sizeof(Early) * convolving <= offsetof(Shared, gamma) - offsetof(Shared, P));
static_assert(blocks_at_once * (sizeof(Shared) + 1024) <= 228 * 1024);

// A block takes one value head of one segment, a warp 16 columns of the state. What limits the rule is the chain of its
// steps: three blocks of a multiprocessor hide more of it than two, so that the state is not held in registers. It is
// brought into the second-level cache at the start and read where it is used. Core: x is what comes before the
// convolution, o what comes out of the norm.
// Few: where all blocks run at once anyway there are two on a multiprocessor, and the state is in registers before the
// kernels ahead have ended.
template <bool Core, bool Few>
struct Decode {
  const Call& c;
  const Layer* layer;
  const half_t* x;
  int64_t x_stride;
  half_t* o;
  int64_t o_stride;
  Shared& sh;
  int segment, head, key_head, slot;
  Extent extent;

  // Where in the ring a chunk's rows lie: one division for all.
  struct Entries {
    int64_t first;
    int begin, ring;
    __device__ int in_ring(int r) const { return begin + r < ring ? begin + r : begin + r - ring; }
    __device__ int64_t at(int r) const { return first + in_ring(r); }
  };
  using Pairs = uint32_t[row_tiles][N][2];  // 64 rows of the warp's columns as right operands

  __device__ CoreRows core() const { return {c, *layer, x, x_stride, extent, slot, head, key_head}; }
  __device__ int column() const { return threadIdx.x / warp * own_columns; }

  // The numbers of a state that this thread has, pairs (m, h, n) of them, lie at rows m·16 + h·8 and columns n·8 from
  // the first; where a chunk that may be taken back lies behind, they are `carried` instead.
  using Carried = float2[state_tiles * 2 * N];
  __device__ float* first_of_state() const {
    return c.state + (static_cast<int64_t>(slot) * c.vh + head) * head_dim * head_dim + tile_row() * head_dim +
           column() + tile_column();
  }
  __device__ static constexpr int place_in_state(int m, int h, int n) { return (m * 16 + h * 8) * head_dim + n * 8; }
  __device__ static constexpr int place_of_pair(int m, int h, int n) { return (m * 2 + h) * N + n; }
  __device__ void fetch_state() const {
    constexpr int parts = 4, numbers = head_dim * head_dim / parts;
    if (threadIdx.x >= parts) return;
    const float* from =
        c.state + (static_cast<int64_t>(slot) * c.vh + head) * head_dim * head_dim + threadIdx.x * numbers;
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "n"(numbers * 4) : "memory");
  }

  // The chunk's rows, own ones normalised and with v in place of r; zeros up to the end of a tile. What lies in the
  // ring no other kernel of a recorded step writes: it is read before the kernels ahead have ended.
  // meanwhile() comes behind that.
  template <class F>
  __device__ void load_rows(const ChunkRead& in, const Entries& entries, F meanwhile) const {
    const Chunk& ck = in.ck;
    if constexpr (Core) {
      core().fetch_early(ck, sh.early());
      asm volatile("cp.async.commit_group;" ::: "memory");
    }
    const int piece = threadIdx.x % pieces * 8, key_step = c.kh * head_dim, right_step = c.vh * head_dim;
    const half_t *keys = c.keys_of(entries.first, in.key_head) + piece,
                 *right = c.right_of(entries.first, head) + piece;
#pragma unroll 1
    for (int r = threadIdx.x / pieces; r < end_of(ck); r += threads / pieces) {
      const int at = place<head_dim>(r, piece);
      if (r < ck.lo) {
        copy_16(sh.k + at, keys + entries.in_ring(r) * key_step);
        copy_16(sh.r + at, right + entries.in_ring(r) * right_step);
      } else if (r >= ck.hi) {
        *reinterpret_cast<uint4*>(sh.k + at) = uint4{};
        *reinterpret_cast<uint4*>(sh.r + at) = uint4{};
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
    if (threadIdx.x / warp == warps - 1) {
      find_decays(in, entries, meanwhile);
    } else {
      meanwhile();
      wait_for_earlier();
      take_own(in);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
  }
  // By all warps but the last, which finds the decays.
  __device__ void take_own(const ChunkRead& in) const {
    const Chunk& ck = in.ck;
    if constexpr (Core) {
      core().convolve(ck, sh.early(), sh.q, sh.k, sh.r, sh.inputs);
      group_sync<rows_done, threads - warp>();
    } else {
      load_own(ck);
    }
#pragma unroll 1
    for (int i = threadIdx.x / warp; i < 2 * (ck.hi - ck.lo); i += warps - 1) {
      const int r = ck.lo + i / 2;
      half_t* image = i % 2 == 0 ? sh.q : sh.k;
      const half_t* from =
          Core ? image + place<head_dim>(r, threadIdx.x % warp * 4) : in.query(r) + i % 2 * c.kh * head_dim;
      in.normalise(*reinterpret_cast<const uint2*>(from), r, image, nullptr, nullptr);
    }
  }

  template <class F>
  __device__ void find_decays(const ChunkRead& in, const Entries& entries, F meanwhile) const {
    const auto ready = [&] {
      meanwhile();
      wait_for_earlier();
    };
    const auto entry = [&](int r) { return entries.at(r); };
    const ChunkRead::Decays to{sh.gamma, sh.beta, sh.e_gamma, sh.to_end};
    if constexpr (Core) {
      const float A_log = layer->A_log[head];
      const half_t bias = layer->dt_bias[head];
      in.decays(
          head, to, ready,
          [&](int64_t t) {
            return gates_of(A_log, layer->a[t * layer->a_stride + head], layer->b[t * layer->b_stride + head], bias);
          },
          entry);
    } else {
      in.decays(
          head, to, ready, [&](int64_t t) { return in.given_gates(t, head); }, entry);
    }
  }

  // The values of own rows.
  __device__ void load_own(const Chunk& ck) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < (ck.hi - ck.lo) * pieces; i += threads - warp) {
      const int r = ck.lo + i / pieces, piece = i % pieces * 8;
      copy_16(sh.r + place<head_dim>(r, piece),
              x + static_cast<int64_t>(ck.base + r) * x_stride + (2 * c.kh + head) * head_dim + piece);
    }
  }

  // The rows up to the end of the last row's tile.
  __device__ static int end_of(const Chunk& ck) { return (ck.hi + 15) / 16 * 16; }

  // L by all warps, a block of 16 x 16 at a time; T by the first team and P of the first own rows by the second.
  // read_ahead() asks for numbers of the state as late as is early enough.
  template <class F>
  __device__ void prepare(const Chunk& ck, F read_ahead) const {
    const int w = threadIdx.x / warp, tiles = (ck.hi + 15) / 16;
#pragma unroll 1
    for (int i = w; i < tiles * (tiles + 1) / 2; i += warps) {
      const int m = i < 3 ? (i + 1) / 2 : 2 + i / 6;
      block_products(sh.k, sh.k, sh.gamma, m * 16, (i - m * (m + 1) / 2) * 16,
                     [&](int r, int j, float x, float y) { put_lower_pair(sh.L, sh.beta, r, j, x, y); });
    }
    for (int i = w; i < row_tiles * row_tiles; i += warps) {  // the other blocks
      const int m = i / row_tiles, k = i % row_tiles;
      if (m < tiles && k <= m) continue;
      float* to = sh.L + (m * 16 + threadIdx.x % warp / 2) * t_stride + k * 16 + threadIdx.x % 2 * 8;
      *reinterpret_cast<float4*>(to) = *reinterpret_cast<float4*>(to + 4) = float4{};
    }
    if (team_of() == 0) {
      asm volatile("bar.sync %0, %1;" ::"n"(products_done), "n"(threads) : "memory");
      invert(sh.L, ck.hi);
      read_ahead();
      put_inverse_in_place(end_of(ck));
    } else {
      asm volatile("bar.arrive %0, %1;" ::"n"(products_done), "n"(threads) : "memory");
      read_ahead();
      queries_of(ck.lo / 16, tiles);
    }
  }
  // P of a tile's rows, by the second team.
  __device__ void queries_of(int m, int tiles) const {
    const int k = threadIdx.x % team / warp;
    if (m >= tiles || k > m) return;
    block_products(sh.q, sh.k, sh.gamma, m * 16, k * 16,
                   [&](int r, int j, float x, float y) { put_query_pair(sh.P, r - m * 16, j, x, y); });
  }
  // As put_inverse, but T stays in the rows of L: eight lanes read one before they write it.
  __device__ void put_inverse_in_place(int rows) const {
    for (int at = threadIdx.x; at < rows * chunk_rows / 8; at += team) {
      const int r = at / 8, from = at % 8 * 8;
      const uint4 eight = inverse_at(sh.L + r * t_stride, r, from);
      __syncwarp();
      *reinterpret_cast<uint4*>(sh.T() + r * T_stride + from) = eight;
    }
  }

  // A part of a state that a thread reads at once: two tiles take 16 registers, four spill others.
  static constexpr int part_tiles = Few ? state_tiles : 2;
  using Part = float2[part_tiles][2][N];
  __device__ void read_part(Part& s, int m0, const float2* carried) const {
    const float* first = first_of_state();
#pragma unroll
    for (int i = 0; i < part_tiles * 2 * N; i++) {
      const int m = i / (2 * N), h = i / N % 2, n = i % N;
      s[m][h][n] = carried == nullptr ? __ldcs(reinterpret_cast<const float2*>(first + place_in_state(m0 + m, h, n)))
                                      : carried[place_of_pair(m0 + m, h, n)];
    }
  }

  using Read = float[N][4];

  // by_rows += 16 rows of an image from r0 times the state; with Queries by_q as well, the same of the queries. With
  // Ahead `s` has the first part already.
  template <bool Queries, bool Ahead = false>
  __device__ void through_state(Read& by_rows, Read& by_q, const half_t* rows, int r0, const float2* carried,
                                Part& s) const {
#pragma unroll
    for (int m0 = 0; m0 < state_tiles; m0 += part_tiles) {
      if (m0 > 0 || !Ahead) read_part(s, m0, carried);
#pragma unroll
      for (int m = 0; m < part_tiles; m++) {
        uint32_t k[4], q[4];
        load_a<head_dim>(k, rows, r0, (m0 + m) * 16);
        if constexpr (Queries) load_a<head_dim>(q, sh.q, r0, (m0 + m) * 16);
#pragma unroll
        for (int n = 0; n < N; n++) {
          const uint32_t low = turned(pack(s[m][0][n].x, s[m][0][n].y)),
                         high = turned(pack(s[m][1][n].x, s[m][1][n].y));
          mma(by_rows[n], k, low, high);
          if constexpr (Queries) mma(by_q[n], q, low, high);
        }
      }
    }
  }

  // r of the own rows, into the image and, where they stay, into the ring; and what their queries read of the state.
  __device__ void right_sides(const Chunk& ck, bool stays, const Entries& entries, Read& by_q, const float2* carried,
                              Part& s) const {
    const int first = ck.lo / 16 * 16;
#pragma unroll 1
    for (int r0 = first; r0 < ck.hi; r0 += 16) {
      Read acc = {};
      if (r0 == first) {
        through_state<true, true>(acc, by_q, sh.k, r0, carried, s);
      } else {
        through_state<false>(acc, acc, sh.k, r0, carried, s);
      }
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
          if (stays) *reinterpret_cast<uint32_t*>(c.right_of(entries.at(r), head) + at) = both;
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
          matrices(a, sh.T() + (m * 16 + threadIdx.x % 16) * T_stride + k * 16 + threadIdx.x % warp / 16 * 8);
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

  // acc: what the queries of the first tile with own rows read of the state.
  __device__ void outputs(const Chunk& ck, Read& acc, const Pairs& u, const float2* carried) const {
    const float scale = rsqrtf(static_cast<float>(head_dim));
    const int first = ck.lo / 16 * 16;
#pragma unroll 1
    for (int r0 = first; r0 < ck.hi; r0 += 16) {
      if (r0 > first) {
#pragma unroll
        for (int n = 0; n < N; n++) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
        Part s;
        through_state<false>(acc, acc, sh.q, r0, carried, s);
        __syncthreads();
        if (team_of() == 1) queries_of(r0 / 16, row_tiles);
        __syncthreads();
      }
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
        load_a<chunk_rows>(a, sh.P, 0, k * 16);
#pragma unroll
        for (int n = 0; n < N; n++) mma(acc[n], a, u[k][n][0], u[k][n][1]);
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = r0 + tile_row() + h * 8;
        if (r < ck.lo || r >= ck.hi) continue;
        half_t* to = (Core ? sh.outputs(r) : o + static_cast<int64_t>(ck.base + r) * o_stride + head * head_dim) +
                     column() + tile_column();
#pragma unroll
        for (int n = 0; n < N; n++) *reinterpret_cast<uint32_t*>(to + n * 8) = pack(acc[n][2 * h], acc[n][2 * h + 1]);
      }
    }
  }

  // S <- e^{γ_C} S + Σ_j k_j (e^{γ_C-γ_j} u_j)ᵀ over the whole chunk: in memory or, if it may be taken back, carried
  // to the next chunk.
  __device__ void advance(const Pairs& scaled, bool taken_back, const float2* from, Carried& to) const {
    const float decay = sh.e_gamma[chunk_rows - 1];
    float* first = first_of_state();
#pragma unroll 1
    for (int m = 0; m < state_tiles; m++) {
      float S[N][4];
#pragma unroll
      for (int i = 0; i < 2 * N; i++) {
        const int h = i / N, n = i % N;
        const float2 pair = from == nullptr ? *reinterpret_cast<const float2*>(first + place_in_state(m, h, n))
                                            : from[place_of_pair(m, h, n)];
        S[n][2 * h] = pair.x * decay, S[n][2 * h + 1] = pair.y * decay;
      }
#pragma unroll
      for (int k = 0; k < row_tiles; k++) {
        uint32_t a[4];
        load_a_transposed<head_dim>(a, sh.k, m * 16, k * 16);
#pragma unroll
        for (int n = 0; n < N; n++) mma(S[n], a, scaled[k][n][0], scaled[k][n][1]);
      }
#pragma unroll
      for (int i = 0; i < 2 * N; i++) {
        const int h = i / N, n = i % N;
        const float2 pair{S[n][2 * h], S[n][2 * h + 1]};
        if (taken_back) {
          to[place_of_pair(m, h, n)] = pair;
        } else {
          *reinterpret_cast<float2*>(first + place_in_state(m, h, n)) = pair;
        }
      }
    }
  }

  // Keys, γ and β of the own rows, into the ring; keys by the first value head of their key head.
  __device__ void keep_rows(const Chunk& ck, const Entries& entries) const {
    for (int r = ck.lo + threadIdx.x; r < ck.hi; r += threads) {
      c.g_of(entries.at(r), head) = sh.gamma[r];
      c.beta_of(entries.at(r), head) = sh.beta[r];
    }
    if (head != key_head * c.group) return;
    for (int i = ck.lo * pieces + threadIdx.x; i < ck.hi * pieces; i += threads) {
      half_t* to = c.keys_of(entries.at(i / pieces), key_head) + i % pieces * 8;
      *reinterpret_cast<uint4*>(to) =
          *reinterpret_cast<const uint4*>(sh.k + place<head_dim>(i / pieces, i % pieces * 8));
    }
  }

  __device__ ChunkRead chunk(const Chunk& ck) const { return {c, x, x_stride, ck, key_head, slot, ck.lo > 0}; }

  __device__ Entries entries_from(int begin) const {
    return {static_cast<int64_t>(slot) * c.ring, begin % c.ring, c.ring};
  }

  __device__ void run(int chunks, bool speculative) const {
    Carried pairs;
    const float2* carried = nullptr;
    Pairs u;
    if constexpr (!Few) fetch_state();
    for (int i = 0; i < chunks; i++) {
      const ChunkRead in = chunk(chunk_of(extent, segment, i));
      const Chunk& ck = in.ck;
      const bool stays = speculative || ck.hi < chunk_rows;
      const Entries entries = entries_from(ck.begin);
      Part part;
      load_rows(in, entries, [&] {
        if constexpr (Few) read_part(part, 0, carried);
      });
      // The blocks of a cluster read the same keys of the ring, and the same inputs of the window, before one of them
      // writes others there. Nothing written is handed over: no fence.
      if (i == 0) asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
      prepare(ck, [&] {
        if constexpr (!Few) read_part(part, 0, carried);
      });
      Read by_q = {};  // while the other team is still at T
      right_sides(ck, stays, entries, by_q, carried, part);
      __syncthreads();
      solve(ck, false, u);
      if constexpr (Core) {
        CoreRows::Gate gate = core().gate_of(ck);
        outputs(ck, by_q, u, carried);
        core().norm_outputs(ck, gate, sh.outputs(ck.lo), o, o_stride);
      } else {
        outputs(ck, by_q, u, carried);
      }
      if (i == 0) asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
      if (stays) keep_rows(ck, entries);
      if (ck.hi < chunk_rows) break;
      if (!speculative || i + 1 < chunks) {
        solve(ck, true, u);
        advance(u, speculative, carried, pairs);
        if (speculative) carried = pairs;
      }
      if (i + 1 < chunks) __syncthreads();
    }
    if constexpr (Core) {
      if (chunks > 1) {
        asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
        asm volatile("barrier.cluster.wait.aligned;" ::: "memory");
      }
      core().keep_inputs(chunks == 1, sh.inputs);
    }
  }

  // Moves the state past a chunk that lies in the ring.
  __device__ void commit(int begin) const {
    Carried pairs;
    Pairs u;
    fetch_state();
    const ChunkRead in = chunk({segment, 0, begin, chunk_rows, chunk_rows});
    load_rows(in, entries_from(begin), [] {});
    prepare(in.ck, [] {});
    __syncthreads();
    solve(in.ck, true, u);
    advance(u, false, nullptr, pairs);
  }
};

template <bool Core, bool Few>
__global__ void __launch_bounds__(threads, Few ? 2 : blocks_at_once)
    decode_kernel(const __grid_constant__ Call c, const __grid_constant__ Layer layer, const half_t* x,
                  int64_t x_stride, half_t* o, int64_t o_stride) {
  extern __shared__ __align__(128) char memory[];
  dependents_may_start();
  const int segment = blockIdx.y, slot = c.slots[segment];
  const bool speculative = c.speculative[segment] != 0;
  const Extent extent{c.starts[segment], c.starts[segment + 1], c.positions[min(c.starts[segment], c.rows - 1)]};
  const int chunks = chunks_in(extent);
  if (chunks == 0) return wait_for_earlier();
  Decode<Core, Few>{c,
                    &layer,
                    x,
                    x_stride,
                    o,
                    o_stride,
                    *reinterpret_cast<Shared*>(memory),
                    segment,
                    static_cast<int>(blockIdx.x),
                    static_cast<int>(blockIdx.x) / c.group,
                    slot,
                    extent}
      .run(chunks, speculative);
}

// A block moves one value head of one slot past the chunk that a commit completes.
__global__ void __launch_bounds__(threads, blocks_at_once)
    commit_kernel(Call c, const __grid_constant__ CommitLayers layers, const int32_t* before, const int32_t* after) {
  extern __shared__ __align__(128) char memory[];
  const int segment = blockIdx.y, from = before[segment] / chunk_rows;
  if (from == after[segment] / chunk_rows) return;
  layers.select(c);
  Decode<false, false>{c,
                       nullptr,
                       nullptr,
                       0,
                       nullptr,
                       0,
                       *reinterpret_cast<Shared*>(memory),
                       segment,
                       static_cast<int>(blockIdx.x),
                       static_cast<int>(blockIdx.x) / c.group,
                       c.slots[segment],
                       {}}
      .commit(from * chunk_rows);
}

template <class Kernel>
void allow_memory(Kernel* kernel) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared)),
        "cudaFuncSetAttribute");
}

template <bool Core>
void launch(Queue& queue, const Call& c, const Layer& layer, const Tensor& o, const Tensor& x) {
  const auto kernel = c.segments <= few_segments ? decode_kernel<Core, true> : decode_kernel<Core, false>;
  allow_memory(kernel);
  EarlyLaunch early;
  cudaLaunchAttribute& cluster = early.attributes[EarlyLaunch::count];
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(c.group), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(c.vh), static_cast<unsigned>(c.segments));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = sizeof(Shared);
  config.stream = queue.stream;
  config.attrs = queue.recording ? early.attributes : &cluster;  // early only there, as in launch_early
  config.numAttrs = queue.recording ? EarlyLaunch::count + 1 : 1;
  check(cudaLaunchKernelEx(&config, kernel, c, layer, data_of<half_t>(x), x.row_stride(), data_of<half_t>(o),
                           o.row_stride()),
        "launching the delta rule");
}

}  // namespace

void decode_128(Queue& queue, const Call& c, const Tensor& o, const Tensor& x) { launch<false>(queue, c, {}, o, x); }

bool core_fits(const Tensor& y, const DeltaCore& core, const DeltaSlots& slots) {
  return core.conv.dtype() == DType::bf16 && has_fast_taps<half_t>(core.conv) &&
         reinterpret_cast<uintptr_t>(core.conv.data()) % 16 == 0 && packs<half_t, 8>(y, y.dim(1)) &&
         packs<half_t, 8>(core.qkv, core.qkv.dim(1)) && packs<half_t, 8>(core.z, core.z.dim(1)) &&
         packs<half_t, 8>(slots.window, slots.window.dim(2)) && weights_of(core.norm, 0).aligned;
}

void decode_core_128(Queue& queue, const Call& c, const Tensor& y, const DeltaCore& core, const Segments& segments,
                     const DeltaSlots& slots) {
  const Layer layer{.conv = conv_of<half_t>(core.qkv, core.conv, segments, slots),
                    .a = data_of<const half_t>(core.a),
                    .b = data_of<const half_t>(core.b),
                    .a_stride = core.a.row_stride(),
                    .b_stride = core.b.row_stride(),
                    .A_log = core.A_log.as<float>(),
                    .dt_bias = data_of<const half_t>(core.dt_bias),
                    .z = data_of<const half_t>(core.z),
                    .z_stride = core.z.row_stride(),
                    .norm = weights_of(core.norm, 0),
                    .eps = static_cast<float>(core.eps)};
  launch<true>(queue, c, layer, y, core.qkv);
}

void commit_128(Queue& queue, const Call& c, const CommitLayers& memory, int layers, const int32_t* before,
                const int32_t* after) {
  allow_memory(commit_kernel);
  const dim3 grid(static_cast<unsigned>(c.vh), static_cast<unsigned>(c.segments), static_cast<unsigned>(layers));
  commit_kernel<<<grid, threads, sizeof(Shared), queue.stream>>>(c, memory, before, after);
}

}  // namespace furlong::cuda::delta
