// Gumbel-max sampling. One pass over the logits gives each part of a row its softmax sums, its likeliest token and,
// where all tokens are kept, its best noisy one. Rows that keep only some find the last kept token first, by selection
// on (likelihood, id) with integer weights, whose sums do not depend on their order.
#include "ops/cuda/softmax_row.cuh"

namespace furlong::cuda {
namespace {

// A SampleRow as the device reads it: the key's words as random_block arranges them.
struct DeviceRow {
  uint32_t key[2], position, sample, group;
  float temperature;  // 0: the likeliest token
  float inverse;      // of the temperature that the log-prob is taken at
  int32_t top_k;      // 0: all
  double top_p;

  __device__ bool filtered() const { return temperature != 0 && (top_k > 0 || top_p < 1); }
};

// A token and its value; the better of two is the larger, at equal values the lower id.
struct Entry {
  float value;
  int32_t id;

  __device__ bool better_than(const Entry& other) const {
    return value > other.value || (value == other.value && id < other.id);
  }
};

// A token's place in falling order of likelihood, ties in rising order of id.
struct Place {
  uint32_t value, id;

  __device__ bool within(const Place& last) const {
    return value < last.value || (value == last.value && id <= last.id);
  }
};
__device__ Place everything() { return {0xffffffffu, 0xffffffffu}; }

__device__ Place place_of(float logit, int64_t id) {
  const uint32_t bits = __float_as_uint(logit + 0.0f);  // + 0: the two zeros are equal
  return {bits & 0x80000000u ? bits : ~(bits | 0x80000000u), static_cast<uint32_t>(id)};
}

// random_block (base/rng.h) of four neighbouring tokens.
__device__ uint4 random_words(const DeviceRow& row, uint32_t index) {
  uint4 c = make_uint4(index, row.position, row.sample, row.group);
  uint32_t k0 = row.key[0], k1 = row.key[1];
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const uint64_t p0 = uint64_t{philox::multiplier0} * c.x, p1 = uint64_t{philox::multiplier1} * c.z;
    c = make_uint4(static_cast<uint32_t>(p1 >> 32) ^ c.y ^ k0, static_cast<uint32_t>(p1),
                   static_cast<uint32_t>(p0 >> 32) ^ c.w ^ k1, static_cast<uint32_t>(p0));
    k0 += philox::weyl0;
    k1 += philox::weyl1;
  }
  return c;
}

// As furlong::gumbel.
__device__ float gumbel_of(uint32_t word) {
  const float v = (static_cast<float>(word) + 0.5f) * (1.0f / 4294967296.0f);
  return -logf(-log1pf(-(v < 0.99999994f ? v : 0.99999994f)));
}

__device__ float noisy(float logit, float temperature, uint32_t word) {
  return __fadd_rn(__fdiv_rn(logit, temperature), gumbel_of(word));
}

template <class V>
__device__ V pick(int i, V a, V b, V c, V d) {
  return i < 2 ? (i == 0 ? a : b) : (i == 2 ? c : d);
}

__device__ Entry noisy_entry(const DeviceRow& row, const Entry& token) {
  const uint4 words = random_words(row, static_cast<uint32_t>(token.id) / 4);
  const uint32_t word = pick(token.id % 4, words.x, words.y, words.z, words.w);
  return {noisy(token.value, row.temperature, word), token.id};
}

// Whether a token may reach `best` with noise of at most `bound`; the margin covers the product's rounding.
__device__ bool may_reach(float logit, float inverse, float bound, float best) {
  const float z = logit * inverse;
  return fmaf(fabsf(z), 1e-6f, z) + bound >= best;
}

// No less than gumbel_of(word), which is <= -log(v) with v >= 2^-(zeros+1), and close enough to spare most logarithms.
__device__ float noise_bound(uint32_t word) { return 0.694f * static_cast<float>(__clz(static_cast<int>(word)) + 1); }

// best = the better of it and the noisy tokens id .. id + 3 that are within `last`.
__device__ void consider_quad(Entry& best, const float (&x)[4], int64_t id, const DeviceRow& row, const Place& last) {
  const float largest = fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3]));
  if (!may_reach(largest, row.inverse, noise_bound(0), best.value)) return;
  const uint4 words = random_words(row, static_cast<uint32_t>(id / 4));
  const uint32_t smallest = min(min(words.x, words.y), min(words.z, words.w));
  if (!may_reach(largest, row.inverse, noise_bound(smallest), best.value)) return;
#pragma unroll 1  // seldom reached: short code matters more
  for (int i = 0; i < 4; i++) {
    const float l = pick(i, x[0], x[1], x[2], x[3]);
    const uint32_t word = pick(i, words.x, words.y, words.z, words.w);
    if (!may_reach(l, row.inverse, noise_bound(word), best.value)) continue;
    const Entry entry{noisy(l, row.temperature, word), static_cast<int32_t>(id) + i};
    if (entry.better_than(best) && place_of(l, id + i).within(last)) best = entry;
  }
}

// Whether any of four logits is as likely as the last kept.
__device__ bool may_be_within(const float (&x)[4], const Place& last) {
  return place_of(fmaxf(fmaxf(x[0], x[1]), fmaxf(x[2], x[3])), 0).value <= last.value;
}

// The best of a block's entries, in thread 0. `shared` holds one entry a warp.
__device__ Entry block_best(Entry best, Entry* shared) {
#pragma unroll
  for (int d = warp / 2; d > 0; d /= 2) {
    const Entry other{__shfl_xor_sync(0xffffffffu, best.value, d), __shfl_xor_sync(0xffffffffu, best.id, d)};
    if (other.better_than(best)) best = other;
  }
  if (threadIdx.x % warp == 0) shared[threadIdx.x / warp] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (uint32_t i = 1; i < blockDim.x / warp; i++) {
      if (shared[i].better_than(best)) best = shared[i];
    }
  }
  return best;
}

// What one pass leaves of each part of each row: the softmax's sums, the likeliest token, the best noisy one.
struct Parts {
  RowPart* sums;
  Entry *likeliest, *best;
  int count;
};

// The lowest id of a part's largest logit; the same in every thread.
__device__ int32_t first_of(const float (&x)[quads][4], float largest, int64_t part, int32_t* shared) {
  constexpr int32_t none = std::numeric_limits<int32_t>::max();
  int32_t id = none;
#pragma unroll
  for (int k = quads - 1; k >= 0; k--) {
#pragma unroll
    for (int i = 3; i >= 0; i--) {
      if (x[k][i] == largest) id = static_cast<int32_t>(quad_column(part, k)) + i;
    }
  }
  id = __reduce_min_sync(0xffffffffu, id);
  if (threadIdx.x % warp == 0) shared[threadIdx.x / warp] = id;
  __syncthreads();
  for (int i = 0; i < block_threads / warp; i++) id = min(id, shared[i]);
  return id == none ? static_cast<int32_t>(part * part_columns) : id;  // none in a part of NaN
}

// Each block: one part of one row.
__global__ void __launch_bounds__(block_threads, 4)
    sample_parts_kernel(Parts out, Rows<const float> logits, int64_t n, const DeviceRow* rows) {
  __shared__ float shared[3][block_threads / warp];
  __shared__ int32_t ids[block_threads / warp];
  __shared__ Entry entries[block_threads / warp], start;
  const uint32_t r = blockIdx.x / out.count, part = blockIdx.x - r * out.count;
  const DeviceRow row = rows[r];
  float x[quads][4];
  load_part(x, logits.at(r, 0), part, n, logits.aligned);
  const float largest = part_max(x, shared[0]);
  const RowPart sums = part_sums(x, largest, row.inverse, shared[1]);
  const Entry top{largest, first_of(x, largest, part, ids)};
  if (threadIdx.x == 0) {
    out.sums[blockIdx.x] = sums;
    out.likeliest[blockIdx.x] = top;
  }
  if (row.temperature == 0 || row.filtered()) return;
  // The noisy value of the likeliest is where the others have to start.
  if (threadIdx.x < warp) {
    const Entry entry = noisy_entry(row, top);
    if (threadIdx.x == 0) start = entry;
  }
  __syncthreads();
  Entry best = start;
#pragma unroll 2  // read again, from the cache, so that the code is short
  for (int k = 0; k < quads; k++) {
    const int64_t id = quad_column(part, k);
    if (id >= n) break;
    float again[4];
    load_quad(again, logits.at(r, 0), id, n, logits.aligned);
    consider_quad(best, again, id, row, everything());
  }
  best = block_best(best, entries);
  if (threadIdx.x == 0) out.best[blockIdx.x] = best;
}

// The best of a row's entries; called by a whole warp, the same in every lane.
__device__ Entry best_of(const Entry* entries, int count) {
  Entry best = entries[0];
  for (int p = threadIdx.x % warp; p < count; p += warp) {
    if (entries[p].better_than(best)) best = entries[p];
  }
#pragma unroll
  for (int d = warp / 2; d > 0; d /= 2) {
    const Entry other{__shfl_xor_sync(0xffffffffu, best.value, d), __shfl_xor_sync(0xffffffffu, best.id, d)};
    if (other.better_than(best)) best = other;
  }
  return best;
}

// Each warp: one row's token, where filter_kernel has not drawn it, and its log-prob.
__global__ void __launch_bounds__(block_threads)
    finish_kernel(int32_t* tokens, float* log_probs, Parts parts, Rows<const float> logits, const DeviceRow* rows,
                  int64_t count) {
  const int64_t r = (blockIdx.x * static_cast<int64_t>(block_threads) + threadIdx.x) / warp;
  if (r >= count) return;
  const DeviceRow row = rows[r];
  const Entry* entries = (row.temperature == 0 ? parts.likeliest : parts.best) + r * parts.count;
  const int32_t token = row.filtered() ? tokens[r] : best_of(entries, parts.count).id;
  __syncwarp();
  if (threadIdx.x % warp == 0) tokens[r] = token;
  if (log_probs == nullptr) return;
  const RowSoftmax softmax = join_parts(parts.sums + r * parts.count, parts.count);
  if (threadIdx.x % warp == 0) log_probs[r] = softmax.log_prob(*logits.at(r, token), row.inverse);
}

constexpr int filter_threads = 1024;
constexpr int bins = 2 * filter_threads;
constexpr int most_candidates = 2048;
constexpr float bins_per_nat = bins / 24.0f;
constexpr float weight_one = 17592186044416.0f;  // 2^44: the sum over 2^19 tokens fits in 64 bits

struct FilterShared {
  uint32_t low[bins], high[bins];  // the histogram: 32-bit words, which shared memory adds to by itself
  Place candidates[most_candidates];
  unsigned long long warp_sums[filter_threads / warp];
  unsigned long long before;  // the weight ahead of `chosen`
  uint32_t chosen;
  int found;
  Entry entries[filter_threads / warp];

  __device__ unsigned long long weight(int bin) const {
    return static_cast<unsigned long long>(high[bin]) << 32 | low[bin];
  }
};

// The sum of x over the threads up to this one, and over all in `total`.
__device__ unsigned long long scan(unsigned long long x, FilterShared& s, unsigned long long& total) {
  const int lane = threadIdx.x % warp;
#pragma unroll
  for (int d = 1; d < warp; d *= 2) {
    const unsigned long long other = __shfl_up_sync(0xffffffffu, x, d);
    if (lane >= d) x += other;
  }
  __syncthreads();
  if (lane == warp - 1) s.warp_sums[threadIdx.x / warp] = x;
  __syncthreads();
  unsigned long long before = 0;
  total = 0;
  for (int i = 0; i < filter_threads / warp; i++) {
    if (i < static_cast<int>(threadIdx.x) / warp) before += s.warp_sums[i];
    total += s.warp_sums[i];
  }
  return before + x;
}

// One row's tokens and how selection sees them. The digits of a token, most significant first: a bin of its distance
// from the likeliest, its place's value in three, its id in two. Each rises as likelihood falls.
struct Tokens {
  const float* logits;
  int n;
  float top, inverse;
  bool aligned;
  static constexpr int digits = 6;

  __device__ uint32_t bin(float logit) const {
    return static_cast<uint32_t>(fminf((top - logit) * inverse * bins_per_nat, bins - 1));
  }
  __device__ static uint32_t digit(const Place& p, int d) {
    switch (d) {
      case 1: return p.value >> 21;
      case 2: return p.value >> 10 & 2047u;
      case 3: return p.value & 1023u;
      case 4: return p.id >> 11;
      default: return p.id & 2047u;
    }
  }
};

// Adds a token's weight to its bin.
template <class Weigh>
__device__ void count_token(FilterShared& s, const Weigh& weigh, float logit, const Place& p, uint32_t digit) {
  const unsigned long long weight = weigh(logit, p);
  const auto low = static_cast<uint32_t>(weight);
  const uint32_t before = low == 0 ? 0 : atomicAdd(&s.low[digit], low);
  const uint32_t high = static_cast<uint32_t>(weight >> 32) + (before + low < before ? 1 : 0);
  if (high != 0) atomicAdd(&s.high[digit], high);
}

// The bin in which the running sum of the histogram reaches `wanted`, or at first wanted_of(the sum of all); takes what
// lies ahead of the bin off `wanted`.
template <class Wanted>
__device__ uint32_t reach(FilterShared& s, unsigned long long& wanted, const Wanted& wanted_of) {
  __syncthreads();
  const unsigned long long first = s.weight(2 * threadIdx.x), second = s.weight(2 * threadIdx.x + 1);
  if (threadIdx.x == 0) {
    s.chosen = bins - 1;
    s.before = 0;
  }
  unsigned long long total;
  const unsigned long long end = scan(first + second, s, total), begin = end - first - second;
  if (wanted == 0) wanted = wanted_of(total);
  if (begin < wanted && wanted <= end) {
    const bool in_first = wanted <= begin + first;
    s.chosen = 2 * threadIdx.x + (in_first ? 0 : 1);
    s.before = begin + (in_first ? 0 : first);
  }
  __syncthreads();
  wanted -= s.before;
  return s.chosen;
}

__device__ void clear(FilterShared& s) {
  __syncthreads();
  for (int i = threadIdx.x; i < bins; i += filter_threads) s.low[i] = s.high[i] = 0;
  __syncthreads();
}

// Calls f(logit, id) for every token of the row, several loads on their way at a time.
template <class F>
__device__ void each_token(const Tokens& t, const F& f) {
  constexpr int ahead = 4;
  for (int first = 4 * threadIdx.x; first < t.n; first += 4 * ahead * filter_threads) {
    float x[ahead][4];
#pragma unroll
    for (int k = 0; k < ahead; k++) load_quad(x[k], t.logits, first + 4 * k * filter_threads, t.n, t.aligned);
#pragma unroll
    for (int k = 0; k < ahead; k++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int id = first + 4 * k * filter_threads + i;
        if (id < t.n) f(x[k][i], id);
      }
    }
  }
}

// Keeps the tokens of one bin, where they are few.
template <class Weigh>
__device__ bool collect(FilterShared& s, const Tokens& t, const Weigh& weigh, uint32_t bin) {
  __syncthreads();
  if (threadIdx.x == 0) s.found = 0;
  __syncthreads();
  each_token(t, [&](float l, int id) {
    if (t.bin(l) != bin) return;
    const Place p = place_of(l, id);
    if (weigh(l, p) == 0) return;
    const int at = atomicAdd(&s.found, 1);
    if (at < most_candidates) s.candidates[at] = p;
  });
  __syncthreads();
  return s.found <= most_candidates;
}

// The first token in falling order of likelihood at which the running sum of weigh(logit, place) reaches
// wanted_of(the sum over all).
template <class Weigh, class Wanted>
__device__ Place select(FilterShared& s, const Tokens& t, const Weigh& weigh, const Wanted& wanted_of) {
  clear(s);
  each_token(t, [&](float l, int id) { count_token(s, weigh, l, place_of(l, id), t.bin(l)); });
  unsigned long long wanted = 0;
  const uint32_t bin = reach(s, wanted, wanted_of);
  const bool few = collect(s, t, weigh, bin);
  const auto same = [](unsigned long long) { return ~0ull; };
  Place chosen{0, 0};
  for (int d = 1; d < Tokens::digits; d++) {
    clear(s);
    const auto consider = [&](float l, const Place& p) {
      for (int e = 1; e < d; e++) {
        if (Tokens::digit(p, e) != Tokens::digit(chosen, e)) return;
      }
      count_token(s, weigh, l, p, Tokens::digit(p, d));
    };
    if (few) {
      for (int i = threadIdx.x; i < s.found; i += filter_threads) {
        consider(t.logits[s.candidates[i].id], s.candidates[i]);
      }
    } else {
      each_token(t, [&](float l, int id) {
        if (t.bin(l) == bin) consider(l, place_of(l, id));
      });
    }
    const uint32_t digit = reach(s, wanted, same);
    switch (d) {
      case 1: chosen.value |= digit << 21; break;
      case 2: chosen.value |= digit << 10; break;
      case 3: chosen.value |= digit; break;
      case 4: chosen.id |= digit << 11; break;
      default: chosen.id |= digit;
    }
  }
  return chosen;
}

// The last of the kept tokens: first of the top_k likeliest; then, of their renormalised distribution, of the shortest
// run of likeliest tokens whose probability reaches top_p.
__device__ Place last_kept(FilterShared& s, const Tokens& t, const DeviceRow& row) {
  using Weight = unsigned long long;
  Place last = everything();
  if (row.top_k > 0) {
    last = select(
        s, t, [](float, const Place&) { return Weight{1}; }, [&](Weight) { return static_cast<Weight>(row.top_k); });
  }
  if (row.top_p >= 1) return last;
  const auto weight = [&](float l, const Place& p) {
    return p.within(last) ? __float2ull_rn(expf((l - t.top) * t.inverse) * weight_one) : Weight{0};
  };
  return select(s, t, weight, [&](Weight total) {
    return max(Weight{1}, static_cast<Weight>(max(ceil(row.top_p * static_cast<double>(total)), 0.0)));
  });
}

// Each block: the token of one row that keeps only some.
__global__ void __launch_bounds__(filter_threads)
    filter_kernel(int32_t* tokens, Parts parts, Rows<const float> logits, int64_t n, const DeviceRow* rows) {
  __shared__ FilterShared s;
  const DeviceRow row = rows[blockIdx.x];
  if (!row.filtered()) return;
  const Entry top = best_of(parts.likeliest + static_cast<int64_t>(blockIdx.x) * parts.count, parts.count);
  const Tokens t{logits.at(blockIdx.x, 0), static_cast<int>(n), top.value, row.inverse, logits.aligned};
  const Place last = last_kept(s, t, row);
  Entry best = noisy_entry(row, top);  // the likeliest token is always kept
  constexpr int ahead = 4;
  for (int first = 4 * threadIdx.x; first < t.n; first += 4 * ahead * filter_threads) {
    float x[ahead][4];
#pragma unroll
    for (int k = 0; k < ahead; k++) load_quad(x[k], t.logits, first + 4 * k * filter_threads, n, t.aligned);
#pragma unroll
    for (int k = 0; k < ahead; k++) {
      const int id = first + 4 * k * filter_threads;
      if (id < t.n && may_be_within(x[k], last)) consider_quad(best, x[k], id, row, last);
    }
  }
  best = block_best(best, s.entries);
  if (threadIdx.x == 0) tokens[blockIdx.x] = best.id;
}

DeviceRow device_row(const SampleRow& row, int64_t n) {
  const uint64_t mixed = row.key.seed * 0x9E3779B97F4A7C15ull + static_cast<uint32_t>(row.key.purpose);
  const SampleParams& params = row.params;
  const auto temperature = static_cast<float>(params.temperature);
  return {{static_cast<uint32_t>(mixed), static_cast<uint32_t>(mixed >> 32)},
          row.key.position,
          row.key.sample,
          row.key.group,
          temperature,
          temperature == 0 ? 1.0f : static_cast<float>(1 / params.temperature),
          params.top_k > 0 && params.top_k < n ? static_cast<int32_t>(params.top_k) : 0,
          params.top_p};
}

// Tensors of these sizes behind each other.
struct Layout {
  char* at;
  template <class T>
  T* take(int64_t count) {
    T* place = reinterpret_cast<T*>(at);
    at += (static_cast<size_t>(count) * sizeof(T) + 15) / 16 * 16;
    return place;
  }
};

}  // namespace

void sample(Stream& stream, Tensor tokens, Tensor log_probs, Tensor logits, const std::vector<SampleRow>& rows) {
  CHECK(logits.dtype() == DType::f32, "no CUDA sampler for {}", name_of(logits.dtype()));
  Queue& queue = stream.queue();
  const int64_t count = logits.rows(), n = logits.dim(1), parts = parts_of(n);
  CHECK(n <= int64_t{1} << 19 && count * parts <= std::numeric_limits<int32_t>::max(), "sample: logits {}",
        logits.describe());
  const size_t row_bytes = static_cast<size_t>(count) * sizeof(DeviceRow);
  auto* staged = static_cast<DeviceRow*>(queue.stage(row_bytes));
  bool any_filtered = false;
  for (int64_t r = 0; r < count; r++) {
    const DeviceRow& row = staged[r] = device_row(rows[static_cast<size_t>(r)], n);
    any_filtered |= row.temperature != 0 && (row.top_k > 0 || row.top_p < 1);
  }
  Layout layout{static_cast<char*>(
      queue.scratch(row_bytes + static_cast<size_t>(count * parts) * (sizeof(RowPart) + 2 * sizeof(Entry)) + 4 * 16))};
  auto* device_rows = layout.take<DeviceRow>(count);
  check(cudaMemcpyAsync(device_rows, staged, row_bytes, cudaMemcpyHostToDevice, queue.stream), "sample");
  Parts out{};
  out.sums = layout.take<RowPart>(count * parts);
  out.likeliest = layout.take<Entry>(count * parts);
  out.best = layout.take<Entry>(count * parts);
  out.count = static_cast<int>(parts);
  const auto all = rows_of<const float>(logits);
  sample_parts_kernel<<<static_cast<uint32_t>(count * parts), block_threads, 0, queue.stream>>>(out, all, n,
                                                                                                device_rows);
  if (any_filtered) {
    filter_kernel<<<static_cast<uint32_t>(count), filter_threads, 0, queue.stream>>>(data_of<int32_t>(tokens), out, all,
                                                                                     n, device_rows);
  }
  finish_kernel<<<static_cast<uint32_t>(blocks_for(count, block_threads / warp)), block_threads, 0, queue.stream>>>(
      data_of<int32_t>(tokens), log_probs.defined() ? data_of<float>(log_probs) : nullptr, out, all, device_rows,
      count);
  check_launch(queue, "sample");
}

}  // namespace furlong::cuda
