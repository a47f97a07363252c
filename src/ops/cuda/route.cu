// Routing: the choice of experts, the stable sort of choices by expert, the gradient of the weights.
#include "ops/cuda/kernel.cuh"

namespace furlong::cuda {
namespace {

constexpr int route_threads = 128, route_warps = route_threads / warp;
constexpr unsigned all_lanes = 0xffffffffu;

// Numbers in the order of floats; -0 and 0 are one.
__device__ uint32_t ordered(float x) {
  const uint32_t u = __float_as_uint(x + 0.0f);
  return u & 0x80000000u ? ~u : u | 0x80000000u;
}
__device__ float unordered(uint32_t u) { return __uint_as_float(u & 0x80000000u ? u & 0x7fffffffu : ~u); }

// The largest number of a warp's lanes and the lowest expert that offers it, 0 being no offer.
__device__ void warp_best(uint32_t& key, int& expert) {
  const uint32_t top = __reduce_max_sync(all_lanes, key);
  expert = static_cast<int>(__reduce_min_sync(all_lanes, key == top ? static_cast<unsigned>(expert) : ~0u));
  key = top;
}

// ids and weights of a token, by a warp: k times the largest logit that is left. A lane holds those of PerLane experts
// in registers and strikes out what was taken; 0: any number of experts, read again each time and passed over where
// they come before the last one taken.
template <int PerLane>
__device__ void route_token(int32_t* ids, float* weights, const float* row, int experts, int k) {
  const int lane = threadIdx.x % warp;
  uint32_t keys[PerLane > 0 ? PerLane : 1];
#pragma unroll
  for (int i = 0; i < PerLane; i++) keys[i] = lane + i * warp < experts ? max(ordered(row[lane + i * warp]), 1u) : 0;
  uint32_t last = ~0u;
  int last_expert = -1;
  float first = 0, sum = 0;
  for (int c = 0; c < k; c++) {
    uint32_t best = 0;
    int expert = 0;
    if constexpr (PerLane > 0) {
#pragma unroll
      for (int i = 0; i < PerLane; i++) {
        if (keys[i] > best) {
          best = keys[i];
          expert = lane + i * warp;
        }
      }
    } else {
      for (int e = lane; e < experts; e += warp) {
        const uint32_t key = max(ordered(row[e]), 1u);
        if (key > best && (key < last || (key == last && e > last_expert))) {
          best = key;
          expert = e;
        }
      }
    }
    warp_best(best, expert);
    last = best;
    last_expert = expert;
#pragma unroll
    for (int i = 0; i < PerLane; i++) {
      if (lane + i * warp == expert) keys[i] = 0;
    }
    const float logit = unordered(best);
    if (c == 0) first = logit;
    const float p = expf(logit - first);
    sum += p;
    if (lane == c % warp) {
      ids[c] = expert;
      weights[c] = p;
    }
  }
  for (int c = lane; c < k; c += warp) weights[c] /= sum;  // each lane what it wrote
}

template <int PerLane>
__global__ __launch_bounds__(route_threads) void route_kernel(int32_t* ids, float* weights, const float* logits,
                                                              int64_t stride, int64_t rows, int experts, int k) {
  dependents_may_start();
  wait_for_earlier();
  const int64_t t = static_cast<int64_t>(blockIdx.x) * route_warps + threadIdx.x / warp;
  if (t < rows) route_token<PerLane>(ids + t * k, weights + t * k, logits + t * stride, experts, k);
}

// dlogits of a token, a warp for each: zeros, then p (dp - Σ p dp) at its experts.
__global__ __launch_bounds__(route_threads) void route_backward_kernel(float* dlogits, int64_t stride,
                                                                       const float* dweights, const int32_t* ids,
                                                                       const float* weights, int64_t rows, int experts,
                                                                       int k) {
  const int64_t t = static_cast<int64_t>(blockIdx.x) * route_warps + threadIdx.x / warp;
  const int lane = threadIdx.x % warp;
  if (t >= rows) return;
  float* row = dlogits + t * stride;
  for (int e = lane; e < experts; e += warp) row[e] = 0;
  float mean = 0;
  for (int c = lane; c < k; c += warp) mean += weights[t * k + c] * dweights[t * k + c];
  mean = warp_sum(mean);
  __syncwarp();
  for (int c = lane; c < k; c += warp) {
    const float p = weights[t * k + c];
    row[ids[t * k + c]] = p * (dweights[t * k + c] - mean);
  }
}

// ---- The sort. A block takes a run of choices; each of its warps an equal run of these, 32 at a time. ----

constexpr int most_experts = 4096;

struct Sort {
  const int32_t* ids;
  int32_t *offsets, *row_of, *token_of;
  int32_t* counts;  // (blocks, experts): choices of an expert in a block; null where there is one block
  int64_t choices;
  int experts, k;
  int first, all;  // of these, `experts` from `first` on are sorted
};

// -1: past the end, or an expert that is not sorted
__device__ int expert_at(const Sort& s, int64_t i) {
  if (i >= s.choices) return -1;
  const int e = s.ids[i];
  if (static_cast<unsigned>(e) >= static_cast<unsigned>(s.all)) __trap();
  return e >= s.first && e < s.first + s.experts ? e - s.first : -1;
}

// A warp takes 32 · Rounds choices.
template <int Rounds>
__device__ int64_t begin_of(int warp_index) {
  return (static_cast<int64_t>(blockIdx.x) * (blockDim.x / warp) + warp_index) * warp * Rounds;
}

// The exclusive sum over a block of one number a thread; `total` is the sum of all. `sums` holds 33 numbers.
__device__ int block_scan(int x, int* sums, int& total) {
  const int lane = threadIdx.x % warp, wi = threadIdx.x / warp, count = blockDim.x / warp;
  int sum = x;
#pragma unroll
  for (int d = 1; d < warp; d *= 2) {
    const int other = __shfl_up_sync(all_lanes, sum, d);
    if (lane >= d) sum += other;
  }
  __syncthreads();
  if (lane == warp - 1) sums[wi] = sum;
  __syncthreads();
  if (wi == 0) {
    int mine = lane < count ? sums[lane] : 0;
#pragma unroll
    for (int d = 1; d < warp; d *= 2) {
      const int other = __shfl_up_sync(all_lanes, mine, d);
      if (lane >= d) mine += other;
    }
    __syncwarp();  // all have read
    sums[lane + 1] = mine;
    if (lane == 0) sums[0] = 0;
  }
  __syncthreads();
  total = sums[warp];
  return sums[wi] + sum - x;
}

// counts[block][e] = the block's choices of expert e.
template <int Rounds>
__global__ void count_kernel(Sort s) {
  dependents_may_start();
  wait_for_earlier();
  extern __shared__ int shared[];
  for (int e = threadIdx.x; e < s.experts; e += blockDim.x) shared[e] = 0;
  __syncthreads();
  const int lane = threadIdx.x % warp, wi = threadIdx.x / warp;
#pragma unroll
  for (int r = 0; r < Rounds; r++) {
    const int e = expert_at(s, begin_of<Rounds>(wi) + r * warp + lane);
    if (e >= 0) atomicAdd(&shared[e], 1);
  }
  __syncthreads();
  for (int e = threadIdx.x; e < s.experts; e += blockDim.x) s.counts[int64_t{blockIdx.x} * s.experts + e] = shared[e];
}

// A choice's place among those of its warp's run: equal experts before it in the 32 at hand, and `seen` in those
// before.
__device__ int rank_of(int e, uint16_t* seen) {
  const unsigned same = __match_any_sync(all_lanes, e);
  const int lane = threadIdx.x % warp, before = __popc(same & ((1u << lane) - 1));
  const int rank = e < 0 ? 0 : seen[e] + before;
  __syncwarp();
  if (e >= 0 && before == 0) seen[e] = static_cast<uint16_t>(seen[e] + __popc(same));
  __syncwarp();
  return rank;
}

// Numbers of a warp's run: an even count, so that no two warps share a word.
__host__ __device__ constexpr int run_of(int experts) { return (experts + 1) / 2 * 2; }

// Turns the warps' numbers of choices of an expert into those of the warps before; returns the sum.
__device__ int sum_of_warps(uint16_t* seen, int run, int count) {
  constexpr int at_once = 8;
  int before = 0;
  for (int w0 = 0; w0 < count; w0 += at_once) {
    int n[at_once];
#pragma unroll
    for (int w = 0; w < at_once; w++) n[w] = seen[(w0 + w) * run];
#pragma unroll
    for (int w = 0; w < at_once; w++) {
      seen[(w0 + w) * run] = static_cast<uint16_t>(before);
      before += n[w];
    }
  }
  return before;
}

// Rows of all choices. The row of a choice: choices of lower experts, those of its expert in earlier blocks, in earlier
// warps of the block, and earlier ones of its warp.
template <int Rounds>
__global__ void place_kernel(Sort s) {
  dependents_may_start();
  wait_for_earlier();
  extern __shared__ int shared[];
  __shared__ int sums[warp + 1];
  const int lane = threadIdx.x % warp, wi = threadIdx.x / warp, count = blockDim.x / warp;
  const int64_t begin = begin_of<Rounds>(wi) + lane;
  int e[Rounds], rank[Rounds];
#pragma unroll
  for (int r = 0; r < Rounds; r++) e[r] = expert_at(s, begin + r * warp);
  const int run = run_of(s.experts);
  int* first = shared;                                     // of an expert in this block
  auto* seen = reinterpret_cast<uint16_t*>(shared + run);  // (warps, run)
  for (int i = threadIdx.x; i < run * count / 2; i += blockDim.x) reinterpret_cast<uint32_t*>(seen)[i] = 0;
  __syncthreads();
#pragma unroll
  for (int r = 0; r < Rounds; r++) rank[r] = rank_of(e[r], seen + wi * run);
  __syncthreads();

  int done = 0;  // choices of the experts before
  for (int e0 = 0; e0 < s.experts; e0 += blockDim.x) {
    const int mine = e0 + threadIdx.x;
    int total = 0, earlier = 0;
    if (mine < s.experts) {
      total = sum_of_warps(seen + mine, run, count);
      if (s.counts != nullptr) {
        total = 0;
#pragma unroll 32
        for (int b = 0; b < gridDim.x; b++) {
          const int n = s.counts[int64_t{b} * s.experts + mine];
          if (b < blockIdx.x) earlier += n;
          total += n;
        }
      }
    }
    int all = 0;
    const int start = done + block_scan(total, sums, all);
    if (mine < s.experts) {
      first[mine] = start + earlier;
      if (blockIdx.x == 0) s.offsets[mine] = start;
    }
    done += all;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) s.offsets[s.experts] = done;
  __syncthreads();

#pragma unroll
  for (int r = 0; r < Rounds; r++) {
    const int64_t i = begin + r * warp;
    if (e[r] < 0) {
      if (i < s.choices) s.row_of[i] = -1;
      continue;
    }
    const int row = first[e[r]] + seen[wi * run + e[r]] + rank[r];
    s.row_of[i] = row;
    s.token_of[row] = static_cast<int32_t>(static_cast<uint32_t>(i) / static_cast<uint32_t>(s.k));
  }
}

template <int Rounds>
void launch_sort(Stream& stream, Sort s, int threads) {
  static const bool allowed [[maybe_unused]] = [] {
    check(cudaFuncSetAttribute(place_kernel<Rounds>, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 * 1024),
          "sort_by_expert");
    return true;
  }();
  const auto blocks = static_cast<unsigned>(std::max<int64_t>(1, blocks_for(s.choices, threads * Rounds)));
  const size_t counted = static_cast<size_t>(run_of(s.experts)) * sizeof(int);
  if (blocks > 1) {
    s.counts = stream.queue().scratch<int32_t>(int64_t{blocks} * s.experts);
    launch_early(stream, count_kernel<Rounds>, dim3(blocks), threads, counted, s);
  }
  launch_early(stream, place_kernel<Rounds>, dim3(blocks), threads, counted + counted / 2 * (threads / warp), s);
}

template <int PerLane>
void launch_route(Stream& stream, const Routing& r, const Tensor& logits) {
  const int64_t rows = logits.rows();
  launch_early(stream, route_kernel<PerLane>, dim3(static_cast<unsigned>(blocks_for(rows, route_warps))), route_threads,
               0, data_of<int32_t>(r.ids), data_of<float>(r.weights), data_of<float>(logits), logits.row_stride(), rows,
               static_cast<int>(logits.dim(1)), static_cast<int>(r.ids.dim(1)));
}

// ---- All of it for few tokens. ----

constexpr int few_tokens = 8, few_choices = 64, few_threads = few_tokens * warp;

struct Few {
  int32_t *ids, *offsets, *row_of, *token_of;
  float* weights;
  const float* logits;
  int64_t logits_stride;
  const uint4* x;
  uint4* rows;
  int64_t x_stride, rows_stride;  // in packs of 16 bytes
  int tokens, experts, k, packs;
};

// A block for each choice: each routes all tokens, a warp for each, and finds the places of all choices; it moves the
// row of its own. The first writes the routing down.
template <int PerLane>
__global__ __launch_bounds__(few_threads) void route_rows_kernel(Few f) {
  __shared__ int32_t ids[few_choices];
  __shared__ float weights[few_choices];
  __shared__ int row;  // of this block's choice
  dependents_may_start();
  wait_for_earlier();
  const int token = threadIdx.x / warp, choices = f.tokens * f.k, own = blockIdx.x;
  if (token < f.tokens) {
    route_token<PerLane>(ids + token * f.k, weights + token * f.k, f.logits + token * f.logits_stride, f.experts, f.k);
  }
  __syncthreads();
  // Choices are sorted by expert, then by token.
  const auto before = [&](int expert, int choice) {
    int n = 0;
    for (int j = 0; j < choices; j++) n += ids[j] < expert || (ids[j] == expert && j < choice);
    return n;
  };
  const int i = threadIdx.x;
  if (i < choices && (own == 0 || i == own)) {
    const int place = before(ids[i], i);
    if (i == own) row = place;
    if (own == 0) {
      f.ids[i] = ids[i];
      f.weights[i] = weights[i];
      f.row_of[i] = place;
      f.token_of[place] = i / f.k;
    }
  }
  if (own == 0) {
    for (int e = threadIdx.x; e <= f.experts; e += few_threads) f.offsets[e] = before(e, 0);
  }
  __syncthreads();
  const uint4* from = f.x + own / f.k * f.x_stride;
  uint4* to = f.rows + row * f.rows_stride;
  for (int c = threadIdx.x; c < f.packs; c += few_threads) to[c] = from[c];
}

bool in_packs(const Tensor& t) {
  const auto whole = [&](int64_t numbers) { return numbers * static_cast<int64_t>(size_of(t.dtype())) % 16 == 0; };
  return reinterpret_cast<uintptr_t>(t.data()) % 16 == 0 && whole(t.dim(1)) && whole(t.row_stride());
}

void launch_few(Stream& stream, const Routing& r, const Tensor& rows, const Tensor& x, const Tensor& logits) {
  const auto packs = [&](int64_t numbers) { return numbers * static_cast<int64_t>(size_of(x.dtype())) / 16; };
  const Few f{data_of<int32_t>(r.ids),
              data_of<int32_t>(r.offsets),
              data_of<int32_t>(r.row_of),
              data_of<int32_t>(r.token_of),
              data_of<float>(r.weights),
              data_of<const float>(logits),
              logits.row_stride(),
              data_of<const uint4>(x),
              data_of<uint4>(rows),
              packs(x.row_stride()),
              packs(rows.row_stride()),
              static_cast<int>(x.rows()),
              static_cast<int>(logits.dim(1)),
              static_cast<int>(r.ids.dim(1)),
              static_cast<int>(packs(x.dim(1)))};
  const auto kernel = f.experts <= 8 * warp ? route_rows_kernel<8> : route_rows_kernel<0>;
  launch_early(stream, kernel, dim3(static_cast<unsigned>(f.tokens * f.k)), few_threads, 0, f);
}

}  // namespace

void route(Stream& stream, const Routing& routing, Tensor logits) {
  Queue& queue = stream.queue();
  CHECK(logits.dtype() == DType::f32, "routing logits in {}", name_of(logits.dtype()));
  if (logits.dim(1) <= 8 * warp) {
    launch_route<8>(stream, routing, logits);
  } else {
    launch_route<0>(stream, routing, logits);
  }
  check_launch(queue, "route");
}

void sort_by_expert(Stream& stream, const Routing& routing, int64_t first, int64_t all) {
  Queue& queue = stream.queue();
  const int64_t experts = routing.offsets.rows() - 1, choices = routing.ids.numel();
  CHECK(experts <= most_experts && choices < INT32_MAX, "{} choices of {} experts", choices, experts);
  const Sort s{data_of<int32_t>(routing.ids),
               data_of<int32_t>(routing.offsets),
               data_of<int32_t>(routing.row_of),
               data_of<int32_t>(routing.token_of),
               nullptr,
               choices,
               static_cast<int>(experts),
               static_cast<int>(routing.ids.dim(1)),
               static_cast<int>(first),
               static_cast<int>(all)};
  if (experts < all && routing.token_of.numel() > 0) {
    check(cudaMemsetAsync(routing.token_of.data(), 0xff, routing.token_of.bytes(), queue.stream), "sort_by_expert");
  }
  // Few choices: one block. More: a block for each 1024, and larger ones once their number weighs.
  const int threads = experts <= 1024 && choices > 512 ? 1024 : 256;
  if (choices <= threads || (choices > 4096 && choices <= 1024 * 128)) {
    launch_sort<1>(stream, s, threads);
  } else if (choices <= 2 * threads) {
    launch_sort<2>(stream, s, threads);
  } else if (choices <= 1024 * 1024) {
    launch_sort<4>(stream, s, threads);
  } else {
    launch_sort<16>(stream, s, threads);
  }
  check_launch(queue, "sort_by_expert");
}

void route_rows(Stream& stream, const Routing& routing, Tensor rows, Tensor x, Tensor logits) {
  if (x.rows() <= few_tokens && routing.ids.numel() <= few_choices && in_packs(x) && in_packs(rows)) {
    CHECK(logits.dtype() == DType::f32, "routing logits in {}", name_of(logits.dtype()));
    launch_few(stream, routing, rows, x, logits);
    check_launch(stream.queue(), "route_rows");
    return;
  }
  cuda::route(stream, routing, logits);
  cuda::sort_by_expert(stream, routing, 0, routing.offsets.rows() - 1);
  cuda::gather_rows(stream, rows, x, routing);
}

void route_backward(Stream& stream, Tensor dlogits, Tensor dweights, const Routing& routing) {
  Queue& queue = stream.queue();
  const int64_t rows = dlogits.rows();
  route_backward_kernel<<<static_cast<unsigned>(blocks_for(rows, route_warps)), route_threads, 0, queue.stream>>>(
      data_of<float>(dlogits), dlogits.row_stride(), data_of<float>(dweights), data_of<int32_t>(routing.ids),
      data_of<float>(routing.weights), rows, static_cast<int>(dlogits.dim(1)), static_cast<int>(routing.ids.dim(1)));
  check_launch(queue, "route_backward");
}

}  // namespace furlong::cuda
