// RMS norms. A row belongs to a team of 16, 32 or 256 threads that depends on its length alone, each thread with packs
// of eight neighbouring columns in registers; a sum over a row has one order whatever the batch.
#include "ops/cuda/packs.cuh"

namespace furlong::cuda {
namespace {

constexpr int most_packs = 8;                 // packs a thread holds of a wide row
constexpr int64_t backward_blocks = 2 * 132;  // blocks of a sum over rows; fixed, so that its order is
constexpr int64_t many_rows = 2048;           // from here on a team takes several rows at a time

// The rows one iteration of a team handles and what it needs to know of its place.
template <int Lanes, int Batch>
struct Place {
  static constexpr int teams = block_threads / Lanes;
  static constexpr int rows_per_block = teams * Batch;

  __device__ static int64_t first_row(int64_t block) { return (block * teams + threadIdx.x / Lanes) * Batch; }
  __device__ static int64_t column(int p) { return (p * Lanes + threadIdx.x % Lanes) * static_cast<int64_t>(pack); }
};

template <bool Whole, class T, int Lanes, int Packs, int Batch>
__device__ inline void load_rows(Octet<T> (&to)[Batch][Packs], Rows<const T> x, int64_t first, int64_t rows,
                                 int64_t n) {
#pragma unroll
  for (int b = 0; b < Batch; b++) {
#pragma unroll
    for (int p = 0; p < Packs; p++) {
      const int64_t c = Place<Lanes, Batch>::column(p);
      to[b][p] = load_pack<Whole>(x.at(first + b, c), first + b < rows ? n - c : 0, x.aligned);
    }
  }
}

// What a norm does beside y = x · r · w: y is multiplied by silu(z), or z is added to x before.
enum class Beside : uint8_t { nothing, gate, sum };

// x += z, in memory too.
template <bool Whole, int Lanes, class T, int Batch, int Packs>
__device__ inline void add_rows(Octet<T> (&x)[Batch][Packs], const Octet<T> (&z)[Batch][Packs], Rows<T> to,
                                int64_t first, int64_t rows, int64_t n) {
#pragma unroll
  for (int b = 0; b < Batch; b++) {
#pragma unroll
    for (int p = 0; p < Packs; p++) {
      const int64_t c = Place<Lanes, Batch>::column(p);
      float v[pack], d[pack];
      widen_pack(x[b][p], v);
      widen_pack(z[b][p], d);
#pragma unroll
      for (int i = 0; i < pack; i++) v[i] += d[i];
      narrow_pack(v, x[b][p]);
      if (first + b < rows && c < n) store_pack<Whole>(to.at(first + b, c), x[b][p], n - c, to.aligned);
    }
  }
}

// Each team: y = x · r · w of its rows, r = 1/rms(x).
template <class T, bool Whole, int Lanes, int Packs, int Batch, Beside With>
__global__ void __launch_bounds__(block_threads)
    norm_kernel(Rows<T> y, float* r, Rows<T> x, Rows<const T> z, Weights w, int64_t rows, int64_t n, float eps) {
  using At = Place<Lanes, Batch>;
  constexpr bool early_weights = Packs == 1;
  __shared__ float shared[block_threads / warp * Batch];
  dependents_may_start();
  const int64_t first = At::first_row(blockIdx.x);
  Octet<T> in[Batch][Packs], other[Batch][With == Beside::nothing ? 1 : Packs];
  float early[pack];
  if constexpr (early_weights) w.load<Whole>(early, At::column(0), n);
  wait_for_earlier();
  load_rows<Whole, T, Lanes>(in, Rows<const T>{x.data, x.stride, x.aligned}, first, rows, n);
  if constexpr (With != Beside::nothing) load_rows<Whole, T, Lanes>(other, z, first, rows, n);
  if constexpr (With == Beside::sum) add_rows<Whole, Lanes>(in, other, x, first, rows, n);
  float sum[Batch] = {};
#pragma unroll
  for (int b = 0; b < Batch; b++) {
#pragma unroll
    for (int p = 0; p < Packs; p++) {
      float v[pack];
      widen_pack(in[b][p], v);
      add_squares(sum[b], v);
    }
  }
  team_sum<Lanes>(sum, shared);
#pragma unroll
  for (int b = 0; b < Batch; b++) sum[b] = inverse_rms(sum[b], n, eps);
#pragma unroll
  for (int p = 0; p < Packs; p++) {
    const int64_t c = At::column(p);
    if (c >= n) break;
    float late[pack];
    if constexpr (!early_weights) w.load<Whole>(late, c, n);
    const float(&scale)[pack] = early_weights ? early : late;
#pragma unroll
    for (int b = 0; b < Batch; b++) {
      if (first + b >= rows) break;
      float v[pack];
      widen_pack(in[b][p], v);
      scale_pack(v, sum[b], scale);
      if constexpr (With == Beside::gate) gate_pack(v, other[b][p]);
      store_floats<Whole>(y.at(first + b, c), v, n - c, y.aligned);
    }
  }
  if (threadIdx.x % Lanes == 0) {
#pragma unroll
    for (int b = 0; b < Batch; b++) {
      if (first + b < rows) r[first + b] = sum[b];
    }
  }
}

// The operands of both backward kernels; z and dz of the gated one only.
template <class T>
struct BackwardRows {
  Rows<T> dx, dz;
  Rows<const T> dy, x, z;
  const float* r;
  int64_t rows, n;
};

// The packs of a team's rows: x, dy, and z or what dx holds before.
template <class T, int Packs, int Batch>
struct Loaded {
  Octet<T> x[Batch][Packs], dy[Batch][Packs], other[Batch][Packs];
  float rt[Batch];
};

template <bool Whole, int Lanes, bool Gated, class T, int Packs, int Batch>
__device__ inline void load_all(Loaded<T, Packs, Batch>& in, const BackwardRows<T>& a, int64_t first) {
  load_rows<Whole, T, Lanes>(in.x, a.x, first, a.rows, a.n);
  load_rows<Whole, T, Lanes>(in.dy, a.dy, first, a.rows, a.n);
  load_rows<Whole, T, Lanes>(in.other, Gated ? a.z : Rows<const T>{a.dx.data, a.dx.stride, a.dx.aligned}, first, a.rows,
                             a.n);
#pragma unroll
  for (int b = 0; b < Batch; b++) in.rt[b] = first + b < a.rows ? a.r[first + b] : 0.0f;
}

// d = dy times the gate z σ(z), and dz = dy x r w σ(z)(1 + z(1 - σ(z))).
template <class T>
__device__ inline void through_gate(float (&d)[pack], float (&dz)[pack], const Octet<T>& z, const float (&x)[pack],
                                    const float (&scale)[pack], float rt) {
  float g[pack];
  widen_pack(z, g);
#pragma unroll
  for (int i = 0; i < pack; i++) {
    const float s = sigmoid_of<T>(g[i]);
    dz[i] = d[i] * scale[i] * (x[i] * rt) * s * (1.0f + g[i] * (1.0f - s));
    d[i] *= g[i] * s;
  }
}

// One iteration of a team: of its rows dx (+)= r (dn - x r mean(dn x r)), dn = dy w (times the gate); dw += dy x r
// (times the gate) in its columns.
template <class T, bool Whole, int Lanes, int Packs, int Batch, bool Gated>
__device__ inline void norm_backward_rows(const Loaded<T, Packs, Batch>& in, const BackwardRows<T>& a, int64_t first,
                                          const float (&scale)[Packs][pack], float (&dw)[Packs][pack], float* shared) {
  using At = Place<Lanes, Batch>;
  float dn[Batch][Packs][pack], sum[Batch] = {};
#pragma unroll
  for (int b = 0; b < Batch; b++) {
#pragma unroll
    for (int p = 0; p < Packs; p++) {
      const int64_t c = At::column(p);
      float v[pack], (&d)[pack] = dn[b][p];
      widen_pack(in.x[b][p], v);
      widen_pack(in.dy[b][p], d);
      if constexpr (Gated) {
        float dz[pack];
        through_gate<T>(d, dz, in.other[b][p], v, scale[p], in.rt[b]);
        if (first + b < a.rows && c < a.n) store_floats<Whole>(a.dz.at(first + b, c), dz, a.n - c, a.dz.aligned);
      }
#pragma unroll
      for (int i = 0; i < pack; i++) {
        dw[p][i] = fmaf(d[i], v[i] * in.rt[b], dw[p][i]);
        d[i] *= scale[p][i];
        sum[b] = fmaf(d[i], v[i], sum[b]);
      }
    }
  }
  team_sum<Lanes>(sum, shared);
#pragma unroll
  for (int b = 0; b < Batch; b++) {
    if (first + b >= a.rows) break;
    const float rt = in.rt[b], slope = sum[b] * rt / static_cast<float>(a.n) * rt;
#pragma unroll
    for (int p = 0; p < Packs; p++) {
      const int64_t c = At::column(p);
      if (c >= a.n) break;
      float v[pack], before[pack] = {};
      widen_pack(in.x[b][p], v);
      if constexpr (!Gated) widen_pack(in.other[b][p], before);
#pragma unroll
      for (int i = 0; i < pack; i++) v[i] = before[i] + rt * (dn[b][p][i] - v[i] * slope);
      store_floats<Whole>(a.dx.at(first + b, c), v, a.n - c, a.dx.aligned);
    }
  }
}

// Each block: dx (and dz) of its groups of rows, the next group on its way meanwhile, and its rows' part of dw.
template <class T, bool Whole, int Lanes, int Packs, int Batch, bool Gated>
__global__ void __launch_bounds__(block_threads, Packs == 1 ? 2 : 1)
    norm_backward_kernel(BackwardRows<T> a, Weights w, float* partial) {
  using At = Place<Lanes, Batch>;
  __shared__ float shared[2][block_threads / warp * Batch];
  float scale[Packs][pack], dw[Packs][pack] = {};
#pragma unroll
  for (int p = 0; p < Packs; p++) w.load<Whole>(scale[p], At::column(p), a.n);
  const int64_t groups = (a.rows + At::rows_per_block - 1) / At::rows_per_block;
  Loaded<T, Packs, Batch> in;
  load_all<Whole, Lanes, Gated>(in, a, At::first_row(blockIdx.x));
  int turn = 0;
  for (int64_t group = blockIdx.x; group < groups; group += gridDim.x, turn ^= 1) {
    Loaded<T, Packs, Batch> next;
    if (Packs == 1 && group + gridDim.x < groups)
      load_all<Whole, Lanes, Gated>(next, a, At::first_row(group + gridDim.x));
    norm_backward_rows<T, Whole, Lanes, Packs, Batch, Gated>(in, a, At::first_row(group), scale, dw, shared[turn]);
    if (Packs == 1) {
      in = next;
    } else if (group + gridDim.x < groups) {
      load_all<Whole, Lanes, Gated>(in, a, At::first_row(group + gridDim.x));
    }
  }
  write_partial<Lanes>(partial, dw, a.n);
}

// Each block: 32 columns; warp i adds the parts i, i + 32, ..., then the first warp adds the warps' sums in order.
__global__ void __launch_bounds__(1024) add_columns_kernel(float* to, const float* columns, int64_t blocks, int64_t n) {
  __shared__ float shared[warp][warp];
  const int lane = threadIdx.x % warp, part = threadIdx.x / warp;
  const int64_t c = blockIdx.x * static_cast<int64_t>(warp) + lane;
  float sum = 0;
  if (c < n) {
#pragma unroll 4
    for (int64_t b = part; b < blocks; b += warp) sum += columns[b * n + c];
  }
  shared[part][lane] = sum;
  __syncthreads();
  if (part > 0 || c >= n) return;
  for (int i = 1; i < warp; i++) sum += shared[i][lane];
  to[c] += sum;
}

// Calls f.template operator()<Whole, Lanes, Packs>() for rows of n numbers.
template <class F>
void for_row_length(int64_t n, bool whole, F&& f) {
  if (whole && n <= 16 * pack) return f.template operator()<true, 16, 1>();
  if (n <= 16 * pack) return f.template operator()<false, 16, 1>();
  if (n <= 32 * pack) return f.template operator()<false, 32, 1>();
  if (whole && n <= block_threads * pack) return f.template operator()<true, block_threads, 1>();
  if (n <= block_threads * pack) return f.template operator()<false, block_threads, 1>();
  CHECK(n <= most_packs * block_threads * pack, "a norm over rows of {} numbers", n);
  f.template operator()<false, block_threads, most_packs>();
}

template <class T, Beside With>
void norm_rows(Stream& stream, Rows<T> y, float* r, Rows<T> x, Rows<const T> z, const Weights& w, int64_t rows,
               int64_t n, double eps) {
  const auto launch = [&]<bool Whole, int Lanes, int Packs, int Batch>() {
    launch_early(stream, norm_kernel<T, Whole, Lanes, Packs, Batch, With>,
                 dim3(static_cast<uint32_t>(blocks_for(rows, Place<Lanes, Batch>::rows_per_block))), block_threads, 0,
                 y, r, x, z, w, rows, n, static_cast<float>(eps));
  };
  const bool whole = n % pack == 0 && y.aligned && x.aligned && z.aligned && w.aligned;
  for_row_length(n, whole, [&]<bool Whole, int Lanes, int Packs>() {
    if (Packs == 1 && rows >= many_rows) {
      launch.template operator()<Whole, Lanes, Packs, Packs == 1 ? 2 : 1>();
    } else {
      launch.template operator()<Whole, Lanes, Packs, 1>();
    }
  });
}

template <class T, bool Gated>
void norm_rows_backward(Stream& stream, const BackwardRows<T>& a, const Tensor& dw, const Weights& w) {
  const bool whole = a.n % pack == 0 && a.dx.aligned && a.dy.aligned && a.x.aligned && w.aligned &&
                     (!Gated || (a.z.aligned && a.dz.aligned));
  for_row_length(a.n, whole, [&]<bool Whole, int Lanes, int Packs>() {
    constexpr int batch = Packs == 1 ? 2 : 1;
    const int64_t blocks = std::min(blocks_for(a.rows, Place<Lanes, batch>::rows_per_block), backward_blocks);
    float* partial = stream.queue().scratch<float>(blocks * a.n);
    norm_backward_kernel<T, Whole, Lanes, Packs, batch, Gated>
        <<<static_cast<uint32_t>(blocks), block_threads, 0, stream.queue().stream>>>(a, w, partial);
    add_columns(stream, data_of<float>(dw), partial, blocks, a.n);
  });
}

}  // namespace

void add_columns(Stream& stream, float* to, const float* columns, int64_t blocks, int64_t n) {
  add_columns_kernel<<<static_cast<uint32_t>(blocks_for(n, warp)), 1024, 0, stream.queue().stream>>>(to, columns,
                                                                                                     blocks, n);
}

void rms_norm(Stream& stream, Tensor y, Tensor r, Tensor x, Tensor w, double eps) {
  dispatch(x.dtype(), [&]<class T>() {
    norm_rows<T, Beside::nothing>(stream, rows_of<T>(y), data_of<float>(r), rows_of<T>(x), rows_of<const T>(x),
                                  weights_of(w, 1), x.rows(), x.dim(1), eps);
  });
  check_launch(stream.queue(), "rms_norm");
}

void add_rms_norm(Stream& stream, Tensor y, Tensor r, Tensor x, Tensor d, Tensor w, double eps) {
  dispatch(x.dtype(), [&]<class T>() {
    norm_rows<T, Beside::sum>(stream, rows_of<T>(y), data_of<float>(r), rows_of<T>(x), rows_of<const T>(d),
                              weights_of(w, 1), x.rows(), x.dim(1), eps);
  });
  check_launch(stream.queue(), "add_rms_norm");
}

void rms_norm_backward(Stream& stream, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor r) {
  dispatch(x.dtype(), [&]<class T>() {
    const BackwardRows<T> rows{
        rows_of<T>(dx), {}, rows_of<const T>(dy), rows_of<const T>(x), {}, data_of<const float>(r), x.rows(), x.dim(1)};
    norm_rows_backward<T, false>(stream, rows, dw, weights_of(w, 1));
  });
  check_launch(stream.queue(), "rms_norm_backward");
}

void gated_rms_norm(Stream& stream, Tensor y, Tensor r, Tensor o, Tensor z, Tensor w, double eps) {
  dispatch(o.dtype(), [&]<class T>() {
    norm_rows<T, Beside::gate>(stream, rows_of<T>(y), data_of<float>(r), rows_of<T>(o), rows_of<const T>(z),
                               weights_of(w, 0), o.rows(), o.dim(1), eps);
  });
  check_launch(stream.queue(), "gated_rms_norm");
}

void gated_rms_norm_backward(Stream& stream, Tensor do_, Tensor dz, Tensor dw, Tensor dy, Tensor o, Tensor z, Tensor w,
                             Tensor r) {
  dispatch(o.dtype(), [&]<class T>() {
    const BackwardRows<T> rows{rows_of<T>(do_),
                               rows_of<T>(dz),
                               rows_of<const T>(dy),
                               rows_of<const T>(o),
                               rows_of<const T>(z),
                               data_of<const float>(r),
                               o.rows(),
                               o.dim(1)};
    norm_rows_backward<T, true>(stream, rows, dw, weights_of(w, 0));
  });
  check_launch(stream.queue(), "gated_rms_norm_backward");
}

}  // namespace furlong::cuda
