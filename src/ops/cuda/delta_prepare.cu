// The parallel part of the delta rule for heads of 128 in bf16: what of a chunk does not depend on the state entering
// it.
#include "ops/cuda/delta_solve.cuh"

namespace furlong::cuda::delta {
namespace {

constexpr int threads = 256, teams = threads / team;  // a team of four warps takes a value head

struct Work {
  float L[chunk_rows * t_stride];  // becomes T; the quarter above the diagonal holds what is between
  double gamma[chunk_rows];
  float beta[chunk_rows];
};
struct Shared {
  KeyRecord keys;
  Work work[teams];
};

// A block takes one chunk at one key head, and a team each of its value heads.
struct Prepare : ChunkRead {
  const Records& records;
  bool keep;
  Shared& sh;
  int chunk;

  __device__ void load_rows() const {
    const int lane = threadIdx.x % warp;
    constexpr int at_once = chunk_rows / (threads / warp);
    const int r0 = threadIdx.x / warp * at_once;
    uint2 q[at_once], k[at_once];
#pragma unroll
    for (int i = 0; i < at_once; i++) {
      const int r = r0 + i;
      if (r < ck.lo || r >= ck.hi) continue;
      q[i] = *reinterpret_cast<const uint2*>(query(r));
      k[i] = *reinterpret_cast<const uint2*>(query(r) + c.kh * head_dim);
    }
#pragma unroll
    for (int i = 0; i < at_once; i++) {
      const int r = r0 + i;
      if (r >= ck.lo && r < ck.hi) {
        normalise(q[i], r, sh.keys.q, keep ? c.q : nullptr, c.q_r);
        normalise(k[i], r, sh.keys.k, keep ? c.k : nullptr, c.k_r);
        continue;
      }
      uint2 y{};
      if (ringed && r < ck.lo) {
        y = *reinterpret_cast<const uint2*>(c.ring_keys_at(slot, ck.begin + r, key_head) + lane * 4);
      }
      const int at = place<head_dim>(r, lane * 4);
      *reinterpret_cast<uint2*>(sh.keys.k + at) = y;
      *reinterpret_cast<uint2*>(sh.keys.q + at) = {0, 0};
    }
  }

  __device__ Work& work() const { return sh.work[team_of()]; }
  __device__ HeadRecord& record(int head) const { return records.heads[static_cast<int64_t>(chunk) * c.vh + head]; }

  // By a team's first warp.
  __device__ void find_decays(int head) const {
    if (threadIdx.x % team >= warp) return;
    HeadRecord& to = record(head);
    decays(
        head, {work().gamma, work().beta, to.e_gamma, to.to_end}, [] {},
        [&](int64_t t) { return given_gates(t, head); }, [&](int r) { return c.entry(slot, ck.begin + r); });
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int r = threadIdx.x % warp * 2 + i;
      to.beta[r] = work().beta[r];
      if (keep && r >= ck.lo && r < ck.hi) c.gamma[static_cast<int64_t>(ck.base + r) * c.vh + head] = work().gamma[r];
    }
  }

  __device__ void run() const {
    load_rows();
    if (team_of() < c.group) find_decays(key_head * c.group + team_of());
    __syncthreads();
    uint4* keys = reinterpret_cast<uint4*>(records.keys + static_cast<int64_t>(chunk) * c.kh + key_head);
    for (int i = threadIdx.x; i < static_cast<int>(sizeof(KeyRecord) / 16); i += threads) {
      keys[i] = reinterpret_cast<const uint4*>(&sh.keys)[i];
    }
    const int r0 = threadIdx.x % team / warp * 16;
    for (int i = team_of(); i < c.group; i += teams) {
      const int head = key_head * c.group + i;
      if (i >= teams) {
        team_sync();
        find_decays(head);
        team_sync();
      }
      put_lower(work().L, sh.keys.k, work().gamma, work().beta, r0);
      put_queries(record(head).P, sh.keys.q, sh.keys.k, work().gamma, r0);
      team_sync();
      invert(work().L);
      put_inverse(record(head).T, work().L);
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
  Prepare{{c, x, x_stride, ck, static_cast<int>(blockIdx.x), ringed ? c.slots[ck.segment] : 0, ringed},
          records,
          keep,
          *reinterpret_cast<Shared*>(memory),
          chunk}
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
