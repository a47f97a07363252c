// The delta rule forward for heads of 128 in bf16: the scan over chunks.
#include "ops/cuda/delta_solve.cuh"

namespace furlong::cuda::delta {
namespace {

constexpr int threads = 256, solvers = 128;  // four warps solve for u, four hold the state
constexpr int stages = 3;

template <int W>
struct Shared {
  struct Stage {
    KeyRecord keys;
    HeadRecord head;
  };
  Stage stage[stages];
  half_t S[head_dim * W];                            // the state entering the chunk
  half_t r[chunk_rows * W], scaled[chunk_rows * W];  // β (v - e^γ Sᵀk); e^{γ_C-γ} u
  half_t u[2][chunk_rows * W];
  uint64_t full[stages];
};

// The barrier of the solvers, and one that the others pass as often: racecheck takes accesses for ordered by the number
// of barriers that their threads have passed.
enum Barrier { solving = 1, holding = 2 };

// A block takes W columns of one value head of one segment. With r_i = β_i (v_i - e^{γ_i} Sᵀk_i), a chunk is
//   u = T r,   o = e^γ Sᵀq / sqrt(Dk) + P u,   S <- e^{γ_C} S + Σ_j k_j (e^{γ_C-γ_j} u_j)ᵀ.
// The first four warps form u, 16 rows each; the others hold S, 32 rows each, and form o while the first go on.
template <int W>
struct Scan {
  static constexpr int N = W / 8;
  const Call& c;
  const Records& records;
  const half_t* x;
  int64_t x_stride;
  half_t* o;
  int64_t o_stride;
  Shared<W>& sh;
  int segment, head, column, slot, begin, end;

  __device__ void fetch(int chunk) {
    auto& to = sh.stage[(chunk - begin) % stages];
    uint64_t* full = &sh.full[(chunk - begin) % stages];
    barrier_expect(full, sizeof(KeyRecord) + sizeof(HeadRecord));
    bulk_load(&to.keys, records.keys + static_cast<int64_t>(chunk) * c.kh + head / c.group, sizeof(KeyRecord), full);
    bulk_load(&to.head, records.heads + static_cast<int64_t>(chunk) * c.vh + head, sizeof(HeadRecord), full);
  }
  __device__ auto& arrived(int chunk) {
    barrier_wait(&sh.full[(chunk - begin) % stages], (chunk - begin) / stages & 1);
    return sh.stage[(chunk - begin) % stages];
  }

  // The values of this thread's rows of a chunk, as bf16 pairs; zero where the rows are not the batch's.
  __device__ void load_values(uint32_t (&v)[N][2], const Chunk& ck) const {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = threadIdx.x / warp * 16 + tile_row() + h * 8;
      const bool own = r >= ck.lo && r < ck.hi;
      const half_t* from = x + static_cast<int64_t>(ck.base + r) * x_stride + 2 * c.kh * head_dim + head * head_dim +
                           column + tile_column();
#pragma unroll
      for (int n = 0; n < N; n++) v[n][h] = own ? *reinterpret_cast<const uint32_t*>(from + n * 8) : 0u;
    }
  }

  // The ring gets what the kernel before found of the chunk's own rows; of keys by the first of their value heads.
  __device__ void keep_row(const KeyRecord& keys, const HeadRecord& values, const Chunk& ck) const {
    const int r = ck.lo + threadIdx.x;
    if (r < ck.hi) {
      c.ring_g_at(slot, ck.begin + r, head) = c.gamma[static_cast<int64_t>(ck.base + r) * c.vh + head];
      c.ring_beta_at(slot, ck.begin + r, head) = values.beta[r];
    }
    if (head % c.group != 0) return;
    constexpr int pieces = head_dim / 8;
    for (int i = ck.lo * pieces + threadIdx.x; i < ck.hi * pieces; i += solvers) {
      half_t* to = c.ring_keys_at(slot, ck.begin + i / pieces, head / c.group) + i % pieces * 8;
      *reinterpret_cast<uint4*>(to) =
          *reinterpret_cast<const uint4*>(keys.k + place<head_dim>(i / pieces, i % pieces * 8));
    }
  }

  __device__ void solve() {
    const int r0 = threadIdx.x / warp * 16;
    uint32_t v[N][2];
    Chunk ck = records.plan.chunks[begin];
    load_values(v, ck);
    for (int chunk = begin; chunk < end; chunk++) {
      const auto& in = arrived(chunk);
      uint32_t k[head_dim / 16][4], T[chunk_rows / 16][4];
      load_left<head_dim, false>(k, in.keys.k, r0);
      load_left<chunk_rows, false>(T, in.head.T, r0);
      const bool stays = c.slots != nullptr && (c.speculative[segment] != 0 || ck.hi < chunk_rows);
      __syncthreads();  // S is there
      if (stays && column == 0) keep_row(in.keys, in.head, ck);
      float acc[N][4] = {};
      multiply_left<W>(acc, k, sh.S);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = r0 + tile_row() + h * 8;
        const float beta = in.head.beta[r], decay = in.head.e_gamma[r];
        const bool kept = c.slots != nullptr && r < ck.lo;
        const half_t* ring = kept ? c.ring_right_at(slot, ck.begin + r, head) + column : nullptr;
        const bool keeps = stays && r >= ck.lo && r < ck.hi;
        half_t* keep = keeps ? c.ring_right_at(slot, ck.begin + r, head) + column : nullptr;
#pragma unroll
        for (int n = 0; n < N; n++) {
          const int at = n * 8 + tile_column();
          const float2 value = unpack(v[n][h]);
          uint32_t both = pack(right_side(beta, value.x, decay, acc[n][2 * h]),
                               right_side(beta, value.y, decay, acc[n][2 * h + 1]));
          if (kept) both = *reinterpret_cast<const uint32_t*>(ring + at);
          if (keeps) *reinterpret_cast<uint32_t*>(keep + at) = both;
          *reinterpret_cast<uint32_t*>(sh.r + place<W>(r, at)) = both;
        }
      }
      const Chunk now = ck;
      if (chunk + 1 < end) {
        ck = records.plan.chunks[chunk + 1];
        load_values(v, ck);
      }
      group_sync<solving, solvers>();
      float u[N][4] = {};
      multiply_left<W>(u, T, sh.r);
      half_t* image = sh.u[(chunk - begin) & 1];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = r0 + tile_row() + h * 8;
        const float factor = in.head.to_end[r];
#pragma unroll
        for (int n = 0; n < N; n++) {
          const int at = place<W>(r, n * 8 + tile_column());
          *reinterpret_cast<uint32_t*>(image + at) = pack(u[n][2 * h], u[n][2 * h + 1]);
          *reinterpret_cast<uint32_t*>(sh.scaled + at) = pack(factor * u[n][2 * h], factor * u[n][2 * h + 1]);
        }
      }
      __syncthreads();  // u is there
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = r0 + tile_row() + h * 8;
        if (r < now.lo || r >= now.hi) continue;
        float* to = c.u + (static_cast<int64_t>(now.base + r) * c.vh + head) * head_dim + column + tile_column();
#pragma unroll
        for (int n = 0; n < N; n++) *reinterpret_cast<float2*>(to + n * 8) = {u[n][2 * h], u[n][2 * h + 1]};
      }
    }
  }

  // The numbers of the state that this thread holds: f(row, column of the slice, the two numbers).
  template <class F>
  __device__ static void each(float (&S)[2][N][4], F f) {
    const int row = (threadIdx.x - solvers) / warp * 32 + tile_row();
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int n = 0; n < N; n++) f(row + m * 16 + h * 8, n * 8 + tile_column(), S[m][n][2 * h], S[m][n][2 * h + 1]);
      }
    }
  }
  __device__ void store_state(float (&S)[2][N][4], float* to) const {
    each(S, [&](int row, int at, float& a, float& b) {
      *reinterpret_cast<float2*>(to + row * head_dim + column + at) = {a, b};
    });
  }
  __device__ void show_state(float (&S)[2][N][4]) {
    each(S, [&](int row, int at, float& a, float& b) {
      *reinterpret_cast<uint32_t*>(sh.S + place<W>(row, at)) = pack(a, b);
    });
  }

  __device__ void outputs(float (&acc)[N][4], int chunk) {
    const int r0 = (threadIdx.x - solvers) / warp * 16;
    const auto& in = sh.stage[(chunk - begin) % stages];
    const Chunk ck = records.plan.chunks[chunk];
    const float scale = rsqrtf(static_cast<float>(head_dim));
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float factor = scale * in.head.e_gamma[r0 + tile_row() + h * 8];
#pragma unroll
      for (int n = 0; n < N; n++) acc[n][2 * h] *= factor, acc[n][2 * h + 1] *= factor;
    }
    const half_t* u = sh.u[(chunk - begin) & 1];
    multiply<chunk_rows, false, W, false>(acc, in.head.P, r0, u, 0, 0, chunk_rows);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int r = r0 + tile_row() + h * 8;
      if (r < ck.lo || r >= ck.hi) continue;
      half_t* to = o + static_cast<int64_t>(ck.base + r) * o_stride + head * head_dim + column + tile_column();
#pragma unroll
      for (int n = 0; n < N; n++) *reinterpret_cast<uint32_t*>(to + n * 8) = pack(acc[n][2 * h], acc[n][2 * h + 1]);
    }
  }

  __device__ void hold() {
    constexpr int64_t size = head_dim * head_dim;
    const int w = (threadIdx.x - solvers) / warp;
    const float* from = c.slots != nullptr    ? c.state + (static_cast<int64_t>(slot) * c.vh + head) * size
                        : c.state0 != nullptr ? c.state0 + (static_cast<int64_t>(segment) * c.vh + head) * size
                                              : nullptr;
    float S[2][N][4];
    each(S, [&](int row, int at, float& a, float& b) {
      float2 y{};
      if (from != nullptr) y = *reinterpret_cast<const float2*>(from + row * head_dim + column + at);
      a = y.x, b = y.y;
    });
    show_state(S);
    float acc[N][4];
    bool advanced = false;
    for (int chunk = begin; chunk < end; chunk++) {
      const auto& in = arrived(chunk);
      __syncthreads();  // S is there
      group_sync<holding, threads - solvers>();
      if (chunk > begin) outputs(acc, chunk - 1);
#pragma unroll
      for (int n = 0; n < N; n++) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
      multiply<head_dim, false, W, false>(acc, in.keys.q, w * 16, sh.S, 0, 0, head_dim);
      if (c.states != nullptr) store_state(S, c.states + (static_cast<int64_t>(chunk) * c.vh + head) * size);
      uint32_t k[2][chunk_rows / 16][4];
#pragma unroll
      for (int m = 0; m < 2; m++) load_left<head_dim, true>(k[m], in.keys.k, w * 32 + m * 16);
      __syncthreads();  // u is there, and the stage of the chunk before is free
      if (threadIdx.x == solvers && chunk > begin && chunk - 1 + stages < end) fetch(chunk - 1 + stages);
      if (chunk + 1 == end) {
        advanced = records.plan.chunks[chunk].hi == chunk_rows;
        if (!advanced && c.state1 == nullptr) break;
      }
      const float decay = in.head.e_gamma[chunk_rows - 1];
      each(S, [&](int, int, float& a, float& b) { a *= decay, b *= decay; });
#pragma unroll
      for (int m = 0; m < 2; m++) multiply_left<W>(S[m], k[m], sh.scaled);
      show_state(S);
    }
    outputs(acc, end - 1);
    if (c.state1 != nullptr) store_state(S, c.state1 + (static_cast<int64_t>(segment) * c.vh + head) * size);
    if (c.slots != nullptr && c.speculative[segment] == 0 && (advanced || end - begin > 1)) {
      store_state(S, c.state + (static_cast<int64_t>(slot) * c.vh + head) * size);
    }
  }

  __device__ void run() {
    if (threadIdx.x == solvers) {
      for (int i = 0; i < stages; i++) barrier_start(&sh.full[i]);
      barriers_started();
      for (int i = 0; i < min(stages, end - begin); i++) fetch(begin + i);
    }
    __syncthreads();
    if (threadIdx.x < solvers) {
      solve();
    } else {
      hold();
    }
  }
};

template <int W>
__global__ void __launch_bounds__(threads, 1)
    scan_kernel(Call c, Records records, const half_t* x, int64_t x_stride, half_t* o, int64_t o_stride) {
  extern __shared__ __align__(128) char memory[];
  const int segment = blockIdx.y, head = blockIdx.x / (head_dim / W), column = blockIdx.x % (head_dim / W) * W;
  const int begin = records.plan.first[segment], end = records.plan.first[segment + 1];
  if (begin == end) return;
  Scan<W>{c,
          records,
          x,
          x_stride,
          o,
          o_stride,
          *reinterpret_cast<Shared<W>*>(memory),
          segment,
          head,
          column,
          c.slots != nullptr ? c.slots[segment] : 0,
          begin,
          end}
      .run();
}

template <int W>
void scan(Queue& queue, const Call& c, const Records& records, const Tensor& o, const Tensor& x) {
  check(cudaFuncSetAttribute(scan_kernel<W>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<W>)),
        "cudaFuncSetAttribute");
  const dim3 grid(static_cast<unsigned>(c.vh * (head_dim / W)), static_cast<unsigned>(c.segments));
  scan_kernel<W><<<grid, threads, sizeof(Shared<W>), queue.stream>>>(c, records, data_of<half_t>(x), x.row_stride(),
                                                                     data_of<half_t>(o), o.row_stride());
}

}  // namespace

void forward_128(Queue& queue, const Call& c, const Tensor& o, const Tensor& x) {
  if (decodes_128(c)) return decode_128(queue, c, o, x);
  Carve size;
  carve_records(size, c);
  Carve carve(queue.scratch(size.used()));
  const Records records = carve_records(carve, c);
  prepare_128(queue, c, records, x, true);
  // Narrow slices until there is a block for every multiprocessor.
  if (static_cast<int64_t>(c.segments) * c.vh * 2 < queue.multiprocessors) {
    scan<32>(queue, c, records, o, x);
  } else {
    scan<64>(queue, c, records, o, x);
  }
}

}  // namespace furlong::cuda::delta
