// The delta rule backward for heads of 128 in bf16: the scan over chunks, last to first.
#include "ops/cuda/delta_backward.cuh"

namespace furlong::cuda::delta {
namespace {

constexpr int threads = 256, solvers = 128;  // four warps solve for x, four hold the gradient of the state
constexpr int stages = 3;

template <int W>
struct Shared {
  struct Stage {
    KeyRecord keys;
    HeadRecord head;
  };
  Stage stage[stages];
  half_t D[head_dim * W];                                    // the gradient of the state leaving the chunk
  half_t du[chunk_rows * W], y[chunk_rows * W];              // of u; -β e^γ x
  half_t do_[2][chunk_rows * W], scaled[2][chunk_rows * W];  // of o; e^γ do / sqrt(Dk)
  uint64_t full[stages];
};

// The barrier of the solvers, and one that the others pass as often: racecheck takes accesses for ordered by the number
// of barriers that their threads have passed.
enum Barrier { solving = 1, holding = 2 };

// A block takes W columns of one value head of one segment. With P and T as the forward's, a chunk is
//   x = Tᵀ (Pᵀ do + e^{γ_C-γ} k D),   dv = β x,   y = -β e^γ x,   D <- e^{γ_C} D + qᵀ (e^γ do / sqrt(Dk)) + kᵀ y.
// The first four warps form x, 16 rows each; the others hold D, 32 rows each.
template <int W>
struct Scan {
  static constexpr int N = W / 8, pieces = chunk_rows * W / 8 / (threads - solvers);
  const Call& c;
  const Backward128& b;
  Shared<W>& sh;
  int segment, head, column, begin, end;

  // Chunks are counted from the last: the n-th is end - 1 - n.
  __device__ void fetch(int n) {
    const int64_t chunk = end - 1 - n;
    auto& to = sh.stage[n % stages];
    uint64_t* full = &sh.full[n % stages];
    barrier_expect(full, sizeof(KeyRecord) + sizeof(HeadRecord));
    bulk_load(&to.keys, b.records.keys + chunk * c.kh + head / c.group, sizeof(KeyRecord), full);
    bulk_load(&to.head, b.records.heads + chunk * c.vh + head, sizeof(HeadRecord), full);
  }
  __device__ auto& arrived(int n) {
    barrier_wait(&sh.full[n % stages], n / stages & 1);
    return sh.stage[n % stages];
  }

  __device__ void solve() {
    const int r0 = threadIdx.x / warp * 16;
    __syncthreads();  // the first do is there
    for (int n = 0; n < end - begin; n++) {
      const int chunk = end - 1 - n;
      const auto& in = arrived(n);
      const Chunk ck = b.records.plan.chunks[chunk];
      uint32_t k[head_dim / 16][4], P[chunk_rows / 16][4], T[chunk_rows / 16][4];
      load_left<chunk_rows, true>(P, in.head.P, r0);
      load_left<head_dim, false>(k, in.keys.k, r0);
      load_left<chunk_rows, true>(T, in.head.T, r0);
      float acc[N][4] = {}, from_D[N][4] = {};
      multiply_left<W>(acc, P, sh.do_[n & 1]);
      __syncthreads();  // D is there
      multiply_left<W>(from_D, k, sh.D);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = r0 + tile_row() + h * 8;
        const float factor = in.head.to_end[r];
#pragma unroll
        for (int i = 0; i < N; i++) {
          *reinterpret_cast<uint32_t*>(sh.du + place<W>(r, i * 8 + tile_column())) = pack(
              fmaf(factor, from_D[i][2 * h], acc[i][2 * h]), fmaf(factor, from_D[i][2 * h + 1], acc[i][2 * h + 1]));
        }
      }
      group_sync<solving, solvers>();
      float x[N][4] = {};
      multiply_left<W>(x, T, sh.du);
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = r0 + tile_row() + h * 8;
        const float factor = -in.head.beta[r] * in.head.e_gamma[r];
#pragma unroll
        for (int i = 0; i < N; i++) {
          *reinterpret_cast<uint32_t*>(sh.y + place<W>(r, i * 8 + tile_column())) =
              pack(factor * x[i][2 * h], factor * x[i][2 * h + 1]);
        }
      }
      __syncthreads();  // y is there
      half_t* image = b.solved + (static_cast<int64_t>(chunk) * c.vh + head) * Backward128::solved_size;
#pragma unroll
      for (int h = 0; h < 2; h++) {
        const int r = r0 + tile_row() + h * 8;
        const float beta = in.head.beta[r];
        half_t* to = b.dx + static_cast<int64_t>(ck.base + r) * b.dx_stride + Backward128::value_at(c, head) + column +
                     tile_column();
#pragma unroll
        for (int i = 0; i < N; i++) {
          *reinterpret_cast<uint32_t*>(image + place<head_dim>(r, column + i * 8 + tile_column())) =
              pack(x[i][2 * h], x[i][2 * h + 1]);
          if (r >= ck.lo && r < ck.hi) {
            *reinterpret_cast<uint32_t*>(to + i * 8) = pack(beta * x[i][2 * h], beta * x[i][2 * h + 1]);
          }
        }
      }
    }
  }

  // The numbers of D that this thread holds: f(row, column of the slice, the two numbers).
  template <class F>
  __device__ static void each(float (&D)[2][N][4], F f) {
    const int row = (threadIdx.x - solvers) / warp * 32 + tile_row();
#pragma unroll
    for (int m = 0; m < 2; m++) {
#pragma unroll
      for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int n = 0; n < N; n++) f(row + m * 16 + h * 8, n * 8 + tile_column(), D[m][n][2 * h], D[m][n][2 * h + 1]);
      }
    }
  }
  __device__ void show(float (&D)[2][N][4]) {
    each(D, [&](int row, int at, float& x, float& y) {
      *reinterpret_cast<uint32_t*>(sh.D + place<W>(row, at)) = pack(x, y);
    });
  }

  __device__ void load_do(uint4 (&raw)[pieces], int n) const {
    const Chunk ck = b.records.plan.chunks[end - 1 - n];
#pragma unroll
    for (int i = 0; i < pieces; i++) {
      const int piece = threadIdx.x - solvers + i * (threads - solvers), r = piece / N;
      raw[i] = {};
      if (r < ck.lo || r >= ck.hi) continue;
      raw[i] = *reinterpret_cast<const uint4*>(b.do_ + static_cast<int64_t>(ck.base + r) * b.do_stride +
                                               head * head_dim + column + piece % N * 8);
    }
  }
  __device__ void show_do(const uint4 (&raw)[pieces], int n) {
    const float* e_gamma = arrived(n).head.e_gamma;
#pragma unroll
    for (int i = 0; i < pieces; i++) {
      const int piece = threadIdx.x - solvers + i * (threads - solvers), r = piece / N, at = place<W>(r, piece % N * 8);
      const float factor = e_gamma[r] * rsqrtf(static_cast<float>(head_dim));
      const uint32_t from[4] = {raw[i].x, raw[i].y, raw[i].z, raw[i].w};
      uint32_t to[4];
#pragma unroll
      for (int j = 0; j < 4; j++) {
        const float2 v = unpack(from[j]);
        to[j] = pack(factor * v.x, factor * v.y);
      }
      *reinterpret_cast<uint4*>(sh.do_[n & 1] + at) = raw[i];
      *reinterpret_cast<uint4*>(sh.scaled[n & 1] + at) = {to[0], to[1], to[2], to[3]};
    }
  }
  __device__ void keep_D(int chunk) const {
    half_t* image = b.D + (static_cast<int64_t>(chunk) * c.vh + head) * Backward128::D_size;
    for (int i = threadIdx.x - solvers; i < head_dim * N; i += threads - solvers) {
      const int row = i / N, at = i % N * 8;
      *reinterpret_cast<uint4*>(image + place<head_dim>(row, column + at)) =
          *reinterpret_cast<const uint4*>(sh.D + place<W>(row, at));
    }
  }

  __device__ void hold() {
    const int w = (threadIdx.x - solvers) / warp;
    const int64_t of_segment = (static_cast<int64_t>(segment) * c.vh + head) * Backward128::D_size;
    float D[2][N][4];
    uint4 raw[pieces];
    load_do(raw, 0);
    each(D, [&](int row, int at, float& x, float& y) {
      float2 from{};
      if (b.dstate1 != nullptr) {
        from = *reinterpret_cast<const float2*>(b.dstate1 + of_segment + row * head_dim + column + at);
      }
      x = from.x, y = from.y;
    });
    show(D);
    show_do(raw, 0);
    if (begin + 1 < end) load_do(raw, 1);
    __syncthreads();  // the first do is there
    for (int n = 0; n < end - begin; n++) {
      const auto& in = arrived(n);
      __syncthreads();  // D is there, and the stage of the chunk before is free
      group_sync<holding, threads - solvers>();
      if (threadIdx.x == solvers && n > 0 && n - 1 + stages < end - begin) fetch(n - 1 + stages);
      keep_D(end - 1 - n);
      const float decay = in.head.e_gamma[chunk_rows - 1];
      each(D, [&](int, int, float& x, float& y) { x *= decay, y *= decay; });
#pragma unroll
      for (int m = 0; m < 2; m++) {
        multiply<head_dim, true, W, false>(D[m], in.keys.q, w * 32 + m * 16, sh.scaled[n & 1], 0, 0, chunk_rows);
      }
      if (n + 1 < end - begin) show_do(raw, n + 1);
      if (n + 2 < end - begin) load_do(raw, n + 2);
      uint32_t k[2][chunk_rows / 16][4];
#pragma unroll
      for (int m = 0; m < 2; m++) load_left<head_dim, true>(k[m], in.keys.k, w * 32 + m * 16);
      __syncthreads();  // y and the next do are there
#pragma unroll
      for (int m = 0; m < 2; m++) multiply_left<W>(D[m], k[m], sh.y);
      show(D);
    }
    if (b.dstate0 == nullptr) return;
    each(D, [&](int row, int at, float& x, float& y) {
      *reinterpret_cast<float2*>(b.dstate0 + of_segment + row * head_dim + column + at) = {x, y};
    });
  }

  __device__ void run() {
    if (threadIdx.x == solvers) {
      for (int i = 0; i < stages; i++) barrier_start(&sh.full[i]);
      barriers_started();
      for (int n = 0; n < min(stages, end - begin); n++) fetch(n);
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
__global__ void __launch_bounds__(threads, 1) scan_kernel(Call c, Backward128 b) {
  extern __shared__ __align__(128) char memory[];
  const int segment = blockIdx.y, head = blockIdx.x / (head_dim / W), column = blockIdx.x % (head_dim / W) * W;
  const int begin = b.records.plan.first[segment], end = b.records.plan.first[segment + 1];
  if (begin == end) return;
  Scan<W>{c, b, *reinterpret_cast<Shared<W>*>(memory), segment, head, column, begin, end}.run();
}

template <int W>
void scan(Queue& queue, const Call& c, const Backward128& b) {
  check(cudaFuncSetAttribute(scan_kernel<W>, cudaFuncAttributeMaxDynamicSharedMemorySize, sizeof(Shared<W>)),
        "cudaFuncSetAttribute");
  const dim3 grid(static_cast<unsigned>(c.vh * (head_dim / W)), static_cast<unsigned>(c.segments));
  scan_kernel<W><<<grid, threads, sizeof(Shared<W>), queue.stream>>>(c, b);
}

}  // namespace

void backward_scan_128(Queue& queue, const Call& c, const Backward128& b) {
  // Narrow slices until there is a block for every multiprocessor.
  if (static_cast<int64_t>(c.segments) * c.vh * 2 < queue.multiprocessors) {
    scan<32>(queue, c, b);
  } else {
    scan<64>(queue, c, b);
  }
}

}  // namespace furlong::cuda::delta
