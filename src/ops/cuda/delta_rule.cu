// The delta rule forward and the commit for heads of any size, in fp32.
#include "ops/cuda/delta.cuh"

namespace furlong::cuda {
namespace delta {
namespace {

constexpr int threads = 256;
constexpr int slice = 32;  // columns of a state that a block of the forward takes

// One block: the number of chunks of each segment, summed, then listed.
__global__ void __launch_bounds__(threads) plan_kernel(Call c, Plan plan) {
  __shared__ int sums[threads];
  const int per = (c.segments + threads - 1) / threads;
  const int begin = min(static_cast<int>(threadIdx.x) * per, c.segments), end = min(begin + per, c.segments);
  int own = 0;
  for (int s = begin; s < end; s++) own += chunks_in(c, s);
  sums[threadIdx.x] = own;
  __syncthreads();
  for (int d = 1; d < threads; d *= 2) {
    const int before = threadIdx.x >= d ? sums[threadIdx.x - d] : 0;
    __syncthreads();
    sums[threadIdx.x] += before;
    __syncthreads();
  }
  int at = sums[threadIdx.x] - own;
  for (int s = begin; s < end; s++) {
    plan.first[s] = at;
    at += chunks_in(c, s);
  }
  if (threadIdx.x == threads - 1) plan.first[c.segments] = sums[threads - 1];
  __syncthreads();
  for (int s = 0; s < c.segments; s++) {
    const int first = plan.first[s], n = plan.first[s + 1] - first;
    for (int i = threadIdx.x; i < n; i += threads) plan.chunks[first + i] = chunk_of(c, s, i);
  }
}

// A warp takes one head of one row: q and k divided by their lengths, and the inverse lengths.
template <class T>
__global__ void __launch_bounds__(threads) normalise_kernel(Call c, const T* x, int64_t x_stride) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x) / warp;
  const int lane = threadIdx.x % warp;
  if (at >= 2 * static_cast<int64_t>(c.rows) * c.kh) return;
  const int64_t t = at / (2 * c.kh);
  const int part = static_cast<int>(at % (2 * c.kh)), head = part % c.kh;
  const T* from = x + t * x_stride + part * c.dk;
  float sum = 0;
  for (int i = lane; i < c.dk; i += warp) sum = fmaf(widen(from[i]), widen(from[i]), sum);
  const float r = 1.0f / sqrtf(warp_sum(sum) + l2_eps);
  const int64_t row = t * c.kh + head;
  float* to = (part < c.kh ? c.q : c.k) + row * c.dk;
  for (int i = lane; i < c.dk; i += warp) to[i] = widen(from[i]) * r;
  if (lane == 0) (part < c.kh ? c.q_r : c.k_r)[row] = r;
}

// acc[m][n] += Σ_k a(m, k) b(k, n)
template <int M, int N, class A, class B>
__device__ inline void products(float (&acc)[M][N], int depth, A a, B b) {
#pragma unroll 4
  for (int k = 0; k < depth; k++) {
    float x[M], y[N];
#pragma unroll
    for (int m = 0; m < M; m++) x[m] = a(m, k);
#pragma unroll
    for (int n = 0; n < N; n++) y[n] = b(k, n);
#pragma unroll
    for (int m = 0; m < M; m++) {
#pragma unroll
      for (int n = 0; n < N; n++) acc[m][n] = fmaf(x[m], y[n], acc[m][n]);
    }
  }
}

// A block's shared memory: one chunk and the state's slice. Rows are padded by one.
struct Shared {
  int dk;
  float *state, *k, *q, *kk, *qk, *hk, *hq, *u;
  double* gamma;
  float *beta, *g;
  static constexpr int wide = chunk_rows + 1, narrow = slice + 1;

  __host__ __device__ static size_t floats(int dk) {
    return static_cast<size_t>(dk) * slice + 2 * chunk_rows * (dk + 1) + 2 * chunk_rows * wide +
           3 * chunk_rows * narrow + 4 * chunk_rows;
  }
  __device__ Shared(char* memory, int dk) : dk(dk) {
    gamma = reinterpret_cast<double*>(memory);
    beta = reinterpret_cast<float*>(gamma + chunk_rows);
    g = beta + chunk_rows;
    state = g + chunk_rows;
    k = state + dk * slice;
    q = k + chunk_rows * (dk + 1);
    kk = q + chunk_rows * (dk + 1);
    qk = kk + chunk_rows * wide;
    hk = qk + chunk_rows * wide;
    hq = hk + chunk_rows * narrow;
    u = hq + chunk_rows * narrow;
  }
};

// A block takes `slice` columns of one value head of one segment and goes over its chunks (model-spec 3.4).
template <class T>
struct Forward {
  const Call& c;
  const T* x;
  int64_t x_stride;
  T* o;
  int64_t o_stride;
  Shared sh;
  int segment, head, key_head, column, columns, slot;
  Chunk ck;
  int first;  // the first row of the chunk that exists

  __device__ bool own(int r) const { return r >= ck.lo; }
  __device__ int64_t row(int r) const { return ck.base + r; }

  __device__ void load_state() {
    const int64_t size = c.state_size(), at = static_cast<int64_t>(segment) * c.vh + head;
    const float* from = c.slots != nullptr    ? c.state + (static_cast<int64_t>(slot) * c.vh + head) * size
                        : c.state0 != nullptr ? c.state0 + at * size
                                              : nullptr;
    for (int i = threadIdx.x; i < c.dk * slice; i += threads) {
      const int a = i / slice, b = i % slice;
      sh.state[i] = from != nullptr && b < columns ? from[static_cast<int64_t>(a) * c.dv + column + b] : 0.0f;
    }
    __syncthreads();
  }
  __device__ void store_state(float* to) const {
    for (int i = threadIdx.x; i < c.dk * slice; i += threads) {
      const int a = i / slice, b = i % slice;
      if (b < columns) to[static_cast<int64_t>(a) * c.dv + column + b] = sh.state[i];
    }
  }

  __device__ void load_rows() {
    for (int r = first + threadIdx.x / warp; r < ck.hi; r += threads / warp) {
      const int64_t at = (row(r) * c.kh + key_head) * c.dk;
      const float* k = own(r) ? c.k + at : c.ring_k_at(slot, ck.begin + r, key_head);
      for (int i = threadIdx.x % warp; i < c.dk; i += warp) {
        sh.k[r * (c.dk + 1) + i] = k[i];
        sh.q[r * (c.dk + 1) + i] = own(r) ? c.q[at + i] : 0.0f;
      }
      const int b = threadIdx.x % warp;
      if (!own(r)) sh.u[r * Shared::narrow + b] = b < columns ? c.ring_u_at(slot, ck.begin + r, head)[column + b] : 0;
    }
    for (int r = first + threadIdx.x; r < ck.hi; r += threads) {
      if (own(r)) {
        sh.g[r] = c.g[row(r) * c.vh + head];
        sh.beta[r] = c.beta[row(r) * c.vh + head];
      } else {
        sh.gamma[r] = c.ring_g_at(slot, ck.begin + r, head);
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      double last = first < ck.lo ? sh.gamma[ck.lo - 1] : 0;
      for (int r = ck.lo; r < ck.hi; r++) sh.gamma[r] = last += sh.g[r];
    }
    __syncthreads();
    if (column == 0) {
      for (int r = ck.lo + threadIdx.x; r < ck.hi; r += threads) c.gamma[row(r) * c.vh + head] = sh.gamma[r];
    }
  }

  // ⟨k_i,k_j⟩ and ⟨q_i,k_j⟩ times e^{γ_i-γ_j}, zero above the diagonal.
  __device__ void inner_products() {
    const int i0 = threadIdx.x / 16, j0 = threadIdx.x % 16, stride = c.dk + 1;
    float kk[4][4] = {}, qk[4][4] = {};
    const auto right = [&](int d, int n) { return sh.k[(j0 + 16 * n) * stride + d]; };
    products(
        kk, c.dk, [&](int m, int d) { return sh.k[(i0 + 16 * m) * stride + d]; }, right);
    products(
        qk, c.dk, [&](int m, int d) { return sh.q[(i0 + 16 * m) * stride + d]; }, right);
#pragma unroll
    for (int m = 0; m < 4; m++) {
#pragma unroll
      for (int n = 0; n < 4; n++) {
        const int i = i0 + 16 * m, j = j0 + 16 * n;
        const bool in = j >= first && j <= i && i < ck.hi;
        const float decay = in ? expf(static_cast<float>(sh.gamma[i] - sh.gamma[j])) : 0.0f;
        sh.kk[i * Shared::wide + j] = in ? kk[m][n] * decay : 0.0f;
        sh.qk[i * Shared::wide + j] = in ? qk[m][n] * decay : 0.0f;
      }
    }
  }

  // Sᵀk and Sᵀq
  __device__ void through_state() {
    const int i0 = threadIdx.x / slice, b = threadIdx.x % slice, stride = c.dk + 1;
    float hk[8][1] = {}, hq[8][1] = {};
    const auto right = [&](int d, int) { return sh.state[d * slice + b]; };
    products(
        hk, c.dk, [&](int m, int d) { return sh.k[(i0 + 8 * m) * stride + d]; }, right);
    products(
        hq, c.dk, [&](int m, int d) { return sh.q[(i0 + 8 * m) * stride + d]; }, right);
#pragma unroll
    for (int m = 0; m < 8; m++) {
      sh.hk[(i0 + 8 * m) * Shared::narrow + b] = hk[m][0];
      sh.hq[(i0 + 8 * m) * Shared::narrow + b] = hq[m][0];
    }
  }

  // u_i = β_i (v_i - e^{γ_i} Sᵀk_i - Σ_{j<i} e^{γ_i-γ_j} ⟨k_i,k_j⟩ u_j): eight rows at a time, the rows before the
  // eight by all threads, those among them row after row by one warp.
  __device__ void corrections() {
    const int b = threadIdx.x % slice, part = threadIdx.x / slice;
    const int64_t v_at = 2ll * c.kh * c.dk + static_cast<int64_t>(head) * c.dv + column + b;
    for (int r0 = ck.lo; r0 < ck.hi; r0 += 8) {
      const int i = r0 + part;
      if (i < ck.hi) {
        float sum = 0;
#pragma unroll 4
        for (int j = first; j < r0; j++) sum = fmaf(sh.kk[i * Shared::wide + j], sh.u[j * Shared::narrow + b], sum);
        const float v = b < columns ? widen(x[row(i) * x_stride + v_at]) : 0.0f;
        sh.u[i * Shared::narrow + b] = v - expf(static_cast<float>(sh.gamma[i])) * sh.hk[i * Shared::narrow + b] - sum;
      }
      __syncthreads();
      if (part == 0) {
        for (int n = r0; n < min(r0 + 8, static_cast<int>(ck.hi)); n++) {
          float sum = 0;
          for (int j = r0; j < n; j++) sum = fmaf(sh.kk[n * Shared::wide + j], sh.u[j * Shared::narrow + b], sum);
          const float u = sh.beta[n] * (sh.u[n * Shared::narrow + b] - sum);
          sh.u[n * Shared::narrow + b] = u;
          if (b < columns) c.u[(row(n) * c.vh + head) * c.dv + column + b] = u;
        }
      }
      __syncthreads();
    }
  }

  // o_i = (e^{γ_i} Sᵀq_i + Σ_{j≤i} e^{γ_i-γ_j} ⟨q_i,k_j⟩ u_j) / sqrt(Dk)
  __device__ void outputs() {
    const int b = threadIdx.x % slice;
    const float scale = 1.0f / sqrtf(static_cast<float>(c.dk));
    for (int i = ck.lo + threadIdx.x / slice; i < ck.hi && b < columns; i += threads / slice) {
      float sum = expf(static_cast<float>(sh.gamma[i])) * sh.hq[i * Shared::narrow + b];
#pragma unroll 4
      for (int j = first; j <= i; j++) sum = fmaf(sh.qk[i * Shared::wide + j], sh.u[j * Shared::narrow + b], sum);
      o[row(i) * o_stride + static_cast<int64_t>(head) * c.dv + column + b] = narrow<T>(scale * sum);
    }
  }

  // S <- e^{γ_C} S + Σ_j k_j (e^{γ_C-γ_j} u_j)ᵀ
  __device__ void advance() {
    __syncthreads();
    const double end = sh.gamma[ck.hi - 1];
    for (int i = threadIdx.x; i < (ck.hi - first) * slice; i += threads) {
      const int r = first + i / slice;
      sh.hk[r * Shared::narrow + i % slice] =
          expf(static_cast<float>(end - sh.gamma[r])) * sh.u[r * Shared::narrow + i % slice];
    }
    __syncthreads();
    const float decay = expf(static_cast<float>(end));
    const int b = threadIdx.x % slice, stride = c.dk + 1;
    for (int a0 = threadIdx.x / slice * 4; a0 < c.dk; a0 += threads / slice * 4) {
      float sum[4][1] = {};
      products(
          sum, ck.hi - first, [&](int m, int r) { return a0 + m < c.dk ? sh.k[(first + r) * stride + a0 + m] : 0.0f; },
          [&](int r, int) { return sh.hk[(first + r) * Shared::narrow + b]; });
#pragma unroll
      for (int m = 0; m < 4; m++) {
        if (a0 + m < c.dk) sh.state[(a0 + m) * slice + b] = decay * sh.state[(a0 + m) * slice + b] + sum[m][0];
      }
    }
    __syncthreads();
  }

  __device__ void run(const Plan& plan) {
    const int64_t size = c.state_size();
    const int begin = plan.first[segment], end = plan.first[segment + 1];
    load_state();
    for (int n = begin; n < end; n++) {
      ck = plan.chunks[n];
      first = c.slots != nullptr && n == begin ? 0 : ck.lo;
      if (c.states != nullptr) store_state(c.states + (static_cast<int64_t>(n) * c.vh + head) * size);
      load_rows();
      inner_products();
      through_state();
      __syncthreads();
      corrections();
      outputs();
      if (ck.hi == chunk_rows || (n + 1 == end && c.state1 != nullptr)) advance();
      __syncthreads();
    }
    if (c.state1 != nullptr) store_state(c.state1 + (static_cast<int64_t>(segment) * c.vh + head) * size);
    // A slot moves on past complete chunks only.
    const bool completed = end - begin > 1 || (end > begin && ck.hi == chunk_rows);
    if (c.slots != nullptr && c.speculative[segment] == 0 && completed) {
      store_state(c.state + (static_cast<int64_t>(slot) * c.vh + head) * size);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(threads)
    forward_kernel(Call c, Plan plan, const T* x, int64_t x_stride, T* o, int64_t o_stride) {
  extern __shared__ __align__(16) char memory[];
  const int segment = blockIdx.y, head = blockIdx.x % c.vh, column = blockIdx.x / c.vh * slice;
  if (c.starts[segment] == c.starts[segment + 1]) return;
  Forward<T>{c,
             x,
             x_stride,
             o,
             o_stride,
             Shared(memory, c.dk),
             segment,
             head,
             head / c.group,
             column,
             min(slice, c.dv - column),
             c.slots != nullptr ? c.slots[segment] : 0,
             {},
             0}
      .run(plan);
}

// A block takes one row of the batch: into the ring unless its chunk is over.
__global__ void __launch_bounds__(threads) ring_kernel(Call c) {
  const int t = blockIdx.x;
  int low = 0, high = c.segments - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (c.starts[middle] <= t) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int p = c.positions[t], end = c.positions[c.starts[low + 1] - 1] + 1;
  if (c.speculative[low] == 0 && p < end / chunk_rows * chunk_rows) return;
  const int64_t entry = static_cast<int64_t>(c.slots[low]) * c.ring + p % c.ring;
  const int64_t keys = static_cast<int64_t>(c.kh) * c.dk, values = static_cast<int64_t>(c.vh) * c.dv;
  for (int64_t i = threadIdx.x; i < keys; i += threads) c.ring_k[entry * keys + i] = c.k[t * keys + i];
  for (int64_t i = threadIdx.x; i < values; i += threads) c.ring_u[entry * values + i] = c.u[t * values + i];
  for (int i = threadIdx.x; i < c.vh; i += threads) {
    c.ring_g[entry * c.vh + i] = c.gamma[static_cast<int64_t>(t) * c.vh + i];
  }
}

// A block moves one value head of one slot past the chunk that a commit completes.
__global__ void __launch_bounds__(threads)
    commit_kernel(Call c, const __grid_constant__ CommitLayers layers, const int32_t* before, const int32_t* after) {
  __shared__ float factor[chunk_rows];
  const int segment = blockIdx.y, head = blockIdx.x, key_head = head / c.group;
  const int from = before[segment] / chunk_rows;
  if (from == after[segment] / chunk_rows) return;
  layers.select(c);
  const int slot = c.slots[segment], begin = from * chunk_rows;
  const double end = c.ring_g_at(slot, begin + chunk_rows - 1, head);
  for (int r = threadIdx.x; r < chunk_rows; r += threads) {
    factor[r] = expf(static_cast<float>(end - c.ring_g_at(slot, begin + r, head)));
  }
  __syncthreads();
  const float decay = expf(static_cast<float>(end));
  float* state = c.state + (static_cast<int64_t>(slot) * c.vh + head) * c.state_size();
  constexpr int deep = 8;  // rows of the state that a thread takes at once
  const int tiles = (c.dk + deep - 1) / deep;
  for (int i = threadIdx.x; i < tiles * c.dv; i += threads) {
    const int a0 = i / c.dv * deep, b = i % c.dv;
    float sum[deep] = {};
#pragma unroll 2
    for (int r = 0; r < chunk_rows; r++) {
      const float u = factor[r] * c.ring_u_at(slot, begin + r, head)[b];
      const float* k = c.ring_k_at(slot, begin + r, key_head) + a0;
#pragma unroll
      for (int m = 0; m < deep; m++) sum[m] = fmaf(a0 + m < c.dk ? k[m] : 0.0f, u, sum[m]);
    }
#pragma unroll
    for (int m = 0; m < deep; m++) {
      float* s = state + static_cast<int64_t>(a0 + m) * c.dv + b;
      if (a0 + m < c.dk) *s = decay * *s + sum[m];
    }
  }
}

template <class T>
void forward_any(Queue& queue, const Call& c, const Tensor& o, const Tensor& x) {
  const int64_t most = most_chunks(c.rows, c.segments);
  char* scratch = static_cast<char*>(
      queue.scratch(static_cast<size_t>(most) * sizeof(Chunk) + static_cast<size_t>(c.segments + 1) * sizeof(int)));
  const Plan plan{reinterpret_cast<Chunk*>(scratch), reinterpret_cast<int*>(scratch + most * sizeof(Chunk))};
  make_plan(queue, c, plan);
  const int64_t heads = 2ll * c.rows * c.kh;
  normalise_kernel<T><<<static_cast<unsigned>(blocks_for(heads, threads / warp)), threads, 0, queue.stream>>>(
      c, data_of<T>(x), x.row_stride());
  const size_t bytes = Shared::floats(c.dk) * sizeof(float);
  CHECK(bytes <= 227 * 1024, "delta_rule: keys of {} are longer than 256", c.dk);
  check(cudaFuncSetAttribute(forward_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)),
        "cudaFuncSetAttribute");
  const dim3 grid(static_cast<unsigned>(c.vh * blocks_for(c.dv, slice)), static_cast<unsigned>(c.segments));
  forward_kernel<T>
      <<<grid, threads, bytes, queue.stream>>>(c, plan, data_of<T>(x), x.row_stride(), data_of<T>(o), o.row_stride());
}

}  // namespace

void make_plan(Queue& queue, const Call& c, const Plan& plan) { plan_kernel<<<1, threads, 0, queue.stream>>>(c, plan); }

}  // namespace delta

void delta_rule(Stream& stream, Tensor o, Tensor x, Tensor g, Tensor beta, Tensor state0, Tensor state1,
                const Segments& segments, const DeltaSlots& slots, const DeltaSaved& saved, const DeltaShape& shape) {
  Queue& queue = stream.queue();
  const delta::Call c = delta::call_of(g, beta, state0, state1, segments, slots, saved, shape);
  const bool fits = delta::fits_tensor_cores(x, shape) && delta::fits_tensor_cores(o, shape);
  if (fits && (!slots.defined() || delta::rings_of_tensor_cores(slots))) {
    delta::forward_128(queue, c, o, x);
  } else {
    CHECK(!slots.defined() || !delta::rings_of_tensor_cores(slots), "delta_rule: rings in bf16, rows not aligned");
    dispatch(x.dtype(), [&]<class T>() { delta::forward_any<T>(queue, c, o, x); });
    if (c.slots != nullptr) {
      delta::ring_kernel<<<static_cast<unsigned>(c.rows), delta::threads, 0, queue.stream>>>(c);
    }
  }
  check_launch(queue, "delta_rule");
}

void delta_core(Stream& stream, Tensor y, const DeltaCore& core, const Segments& segments, const DeltaSlots& slots,
                const DeltaSaved& saved, const DeltaShape& shape) {
  const delta::Call c = delta::call_of(core.g, core.beta, {}, {}, segments, slots, saved, shape);
  if (delta::decodes_128(c) && delta::rings_of_tensor_cores(slots) && delta::fits_tensor_cores(core.qkv, shape) &&
      delta::core_fits(y, core, slots)) {
    delta::decode_core_128(stream.queue(), c, y, core, segments, slots);
    check_launch(stream.queue(), "delta_core");
    return;
  }
  const int64_t heads = y.rows() * shape.value_heads;
  const auto by_head = [&](const Tensor& t) { return t.reshape({heads, shape.value_dim}); };
  cuda::conv_silu(stream, core.mixed, core.qkv, core.conv, segments, slots);
  cuda::delta_gates(stream, core.g, core.beta, core.a, core.b, core.A_log, core.dt_bias);
  cuda::delta_rule(stream, core.o, core.mixed, core.g, core.beta, {}, {}, segments, slots, saved, shape);
  cuda::gated_rms_norm(stream, by_head(y), core.o_r, by_head(core.o), by_head(core.z), core.norm, core.eps);
}

void delta_commit(Stream& stream, const std::vector<DeltaSlots>& layers, Tensor slots, Tensor before, Tensor after,
                  const DeltaShape& d) {
  Queue& queue = stream.queue();
  delta::Call c{};
  c.kh = static_cast<int>(d.key_heads), c.vh = static_cast<int>(d.value_heads);
  c.dk = static_cast<int>(d.key_dim), c.dv = static_cast<int>(d.value_dim), c.group = c.vh / c.kh;
  c.segments = static_cast<int>(before.rows());
  for (size_t first = 0; first < layers.size(); first += delta::CommitLayers::most) {
    const auto count = static_cast<int>(std::min<size_t>(delta::CommitLayers::most, layers.size() - first));
    delta::CommitLayers memory{};
    for (int i = 0; i < count; i++) {
      delta::set_slots(c, layers[first + static_cast<size_t>(i)]);
      memory.layer[i] = {c.state, c.ring_k, c.ring_u, c.ring_beta, c.ring_keys, c.ring_right, c.ring_g};
    }
    c.slots = slots.as<int32_t>();
    if (delta::rings_of_tensor_cores(layers.front())) {
      delta::commit_128(queue, c, memory, count, before.as<int32_t>(), after.as<int32_t>());
    } else {
      const dim3 grid(static_cast<unsigned>(c.vh), static_cast<unsigned>(c.segments), static_cast<unsigned>(count));
      delta::commit_kernel<<<grid, delta::threads, 0, queue.stream>>>(c, memory, before.as<int32_t>(),
                                                                      after.as<int32_t>());
    }
    check_launch(queue, "delta_commit");
  }
}

}  // namespace furlong::cuda
