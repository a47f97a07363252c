// Per-head RMS norm and partial rotary embedding. A warp holds one head of one row in registers; a block shares the
// angles of its rows among their heads.
#include "ops/cuda/packs.cuh"

namespace furlong::cuda {
namespace {

constexpr int warps = block_threads / warp;
constexpr int most_half = 256;                // pairs that rotate
constexpr int batch_of_heads = 4;             // heads that a warp takes at once; backward, half as many
constexpr int64_t backward_blocks = 3 * 132;  // blocks of a sum over rows; fixed, so that its order is

// theta^(-2j/rotary_dim), formed on the host as the CPU's bodies form it.
struct Frequencies {
  float of[most_half];
};

Frequencies frequencies_of(const RopeShape& shape) {
  CHECK(shape.rotary_dim <= 2 * most_half, "{} rotating dims", shape.rotary_dim);
  Frequencies frequencies{};
  for (int64_t j = 0; j < shape.rotary_dim / 2; j++) {
    const float exponent = static_cast<float>(2 * j) / static_cast<float>(shape.rotary_dim);
    frequencies.of[j] = 1.0f / std::pow(static_cast<float>(shape.theta), exponent);
  }
  return frequencies;
}

template <class T>
struct Heads {
  Rows<const T> x;
  Weights w;
  const int32_t* positions;
  int64_t rows;
  int heads, n, stride, half, rows_per_block;
  float eps;
};

// cos and sin of position · frequency of the block's rows from `first` on, the angle formed in fp32: `half` cosines of
// a row, then its sines.
template <class T>
__device__ inline void make_angles(float* angles, const Heads<T>& a, const Frequencies& frequencies, int64_t first) {
  for (int i = threadIdx.x; i < a.rows_per_block * a.half; i += block_threads) {
    const int row = i / a.half, j = i - row * a.half;
    if (first + row >= a.rows) break;
    float sine, cosine;
    sincosf(static_cast<float>(a.positions[first + row]) * frequencies.of[j], &sine, &cosine);
    angles[row * 2 * a.half + j] = cosine;
    angles[(row * 2 + 1) * a.half + j] = sine;
  }
}

// v = v · cos ∓ partner · sin for eight neighbouring numbers of one half; `low` says which.
__device__ inline void turn_pack(float (&v)[pack], const float* partner, const float* cosine, const float* sine,
                                 bool low, float sign) {
  const float by = low ? -sign : sign;
#pragma unroll
  for (int i = 0; i < pack; i += 4) {
    const float4 q = *reinterpret_cast<const float4*>(partner + i), c = *reinterpret_cast<const float4*>(cosine + i),
                 s = *reinterpret_cast<const float4*>(sine + i);
    v[i] = v[i] * c.x + q.x * (by * s.x);
    v[i + 1] = v[i + 1] * c.y + q.y * (by * s.y);
    v[i + 2] = v[i + 2] * c.z + q.z * (by * s.z);
    v[i + 3] = v[i + 3] * c.w + q.w * (by * s.w);
  }
}

// The same where a pack may lie in both halves.
__device__ inline void turn_numbers(float (&v)[pack], int c, const float* whole, const float* angles, int half,
                                    float sign) {
#pragma unroll
  for (int i = 0; i < pack; i++) {
    if (c + i >= 2 * half) continue;
    const bool low = c + i < half;
    const int j = low ? c + i : c + i - half;
    v[i] = v[i] * angles[j] + whole[low ? j + half : j] * ((low ? -sign : sign) * angles[half + j]);
  }
}

// Turns the pairs (j, j + half) of a head by their angle, back where `sign` is -1. `whole` holds the 2·half rotating
// numbers while the lanes exchange partners. Whole: no pack lies in both halves.
template <bool Whole, int Packs>
__device__ inline void turn(float (&v)[Packs][pack], float* whole, const float* angles, int half, float sign) {
  const int lane = threadIdx.x % warp;
  __syncwarp();
#pragma unroll
  for (int p = 0; p < Packs; p++) {
    const int c = (p * warp + lane) * pack;
    if (c >= 2 * half) continue;
    if constexpr (Whole) {
      *reinterpret_cast<float4*>(whole + c) = make_float4(v[p][0], v[p][1], v[p][2], v[p][3]);
      *reinterpret_cast<float4*>(whole + c + 4) = make_float4(v[p][4], v[p][5], v[p][6], v[p][7]);
    } else {
#pragma unroll
      for (int i = 0; i < pack; i++) {
        if (c + i < 2 * half) whole[c + i] = v[p][i];
      }
    }
  }
  __syncwarp();
#pragma unroll
  for (int p = 0; p < Packs; p++) {
    const int c = (p * warp + lane) * pack;
    if (c >= 2 * half) continue;
    if constexpr (Whole) {
      const bool low = c < half;
      const int j = low ? c : c - half;
      turn_pack(v[p], whole + (low ? c + half : j), angles + j, angles + half + j, low, sign);
    } else {
      turn_numbers(v[p], c, whole, angles, half, sign);
    }
  }
}

// Up to `Batch` consecutive heads of a block's rows that a warp takes at once.
template <int Batch>
struct Items {
  int row[Batch], head[Batch];  // the row within the block's
  bool there[Batch];

  template <class T>
  __device__ Items(const Heads<T>& a, int64_t first, int item) {
    const int left = static_cast<int>(min(a.rows - first, static_cast<int64_t>(a.rows_per_block)));
    int t = item / a.heads, h = item - t * a.heads;
#pragma unroll
    for (int b = 0; b < Batch; b++) {
      row[b] = t;
      head[b] = h;
      there[b] = t < left;
      if (++h == a.heads) {
        h = 0;
        t++;
      }
    }
  }
};

// The packs of the heads a warp has taken; heads lie `stride` numbers apart.
template <bool Whole, int Batch, int Packs, class T>
__device__ inline void load_heads(Octet<T> (&to)[Batch][Packs], const Items<Batch>& items, Rows<const T> x,
                                  int64_t first, int stride, int n) {
#pragma unroll
  for (int b = 0; b < Batch; b++) {
#pragma unroll
    for (int p = 0; p < Packs; p++) {
      const int c = (p * warp + static_cast<int>(threadIdx.x) % warp) * pack;
      to[b][p] = load_pack<Whole>(x.at(first + items.row[b], items.head[b] * static_cast<int64_t>(stride) + c),
                                  items.there[b] ? n - c : 0, x.aligned);
    }
  }
}

// One norm and its output, or two of the same shape of head.
template <class T>
struct Norms {
  Heads<T> a[2];
  Rows<T> y[2];
  float* r[2];
};

// Each warp: y = turned(x · r · w) of heads of the block's rows, r = 1/rms(x). blockIdx.y says which of the norms.
template <class T, bool Whole, int Packs>
__global__ void __launch_bounds__(block_threads, Packs == 1 ? 4 : 1)
    norm_rope_kernel(const __grid_constant__ Norms<T> norms, const __grid_constant__ Frequencies frequencies) {
  const Heads<T>& a = norms.a[blockIdx.y];
  const Rows<T>& y = norms.y[blockIdx.y];
  float* r = norms.r[blockIdx.y];
  constexpr int batch = Packs == 1 ? batch_of_heads : 1;
  extern __shared__ float4 shared[];
  float* whole = reinterpret_cast<float*>(shared) + threadIdx.x / warp * 2 * a.half;
  float* angles = reinterpret_cast<float*>(shared) + warps * 2 * a.half;
  const int64_t first = blockIdx.x * static_cast<int64_t>(a.rows_per_block);
  const int lane = threadIdx.x % warp, all = a.rows_per_block * a.heads;
  float scale[Packs][pack];
  dependents_may_start();
#pragma unroll
  for (int p = 0; p < Packs; p++) a.w.load<Whole>(scale[p], (p * warp + lane) * pack, a.n);
  wait_for_earlier();
  if (first >= a.rows) return;
  int item = threadIdx.x / warp * batch;
  Items<batch> items(a, first, item);
  Octet<T> in[batch][Packs];
  load_heads<Whole>(in, items, a.x, first, a.stride, a.n);
  make_angles(angles, a, frequencies, first);
  __syncthreads();
  while (item < all) {
    float sum[batch] = {};
#pragma unroll
    for (int b = 0; b < batch; b++) {
#pragma unroll
      for (int p = 0; p < Packs; p++) {
        float v[pack];
        widen_pack(in[b][p], v);
#pragma unroll
        for (int i = 0; i < pack; i++) sum[b] = fmaf(v[i], v[i], sum[b]);
      }
    }
    team_sum<warp>(sum, nullptr);
#pragma unroll
    for (int b = 0; b < batch; b++) {
      if (!items.there[b]) break;
      const float rt = 1.0f / sqrtf(sum[b] / static_cast<float>(a.n) + a.eps);
      const int64_t t = first + items.row[b];
      if (lane == 0) r[t * a.heads + items.head[b]] = rt;
      float v[Packs][pack];
#pragma unroll
      for (int p = 0; p < Packs; p++) {
        widen_pack(in[b][p], v[p]);
#pragma unroll
        for (int i = 0; i < pack; i++) v[p][i] = v[p][i] * rt * scale[p][i];
      }
      turn<Whole>(v, whole, angles + items.row[b] * 2 * a.half, a.half, 1.0f);
#pragma unroll
      for (int p = 0; p < Packs; p++) {
        const int c = (p * warp + lane) * pack;
        if (c < a.n)
          store_floats<Whole>(y.at(t, items.head[b] * static_cast<int64_t>(a.n) + c), v[p], a.n - c, y.aligned);
      }
    }
    item += warps * batch;
    if (item >= all) break;
    items = Items<batch>(a, first, item);
    load_heads<Whole>(in, items, a.x, first, a.stride, a.n);
  }
}

// The heads a warp has taken: d, their gradient dy, turned back and taken through the norm, and dw += d x r in the
// lane's columns.
template <bool Whole, class T, int Batch, int Packs>
__device__ inline void backward_heads(Rows<T> dx, const Octet<T> (&x)[Batch][Packs], const Octet<T> (&dy)[Batch][Packs],
                                      const float* r, const Items<Batch>& items, const Heads<T>& a, int64_t first,
                                      float* whole, const float* angles, const float (&scale)[Packs][pack],
                                      float (&dw)[Packs][pack]) {
  float d[Batch][Packs][pack], rt[Batch], sum[Batch] = {};
#pragma unroll
  for (int b = 0; b < Batch; b++) {
    rt[b] = items.there[b] ? r[(first + items.row[b]) * a.heads + items.head[b]] : 0.0f;
  }
#pragma unroll
  for (int b = 0; b < Batch; b++) {
#pragma unroll
    for (int p = 0; p < Packs; p++) widen_pack(dy[b][p], d[b][p]);
    if (items.there[b]) turn<Whole>(d[b], whole, angles + items.row[b] * 2 * a.half, a.half, -1.0f);
#pragma unroll
    for (int p = 0; p < Packs; p++) {
      float v[pack];
      widen_pack(x[b][p], v);
#pragma unroll
      for (int i = 0; i < pack; i++) {
        dw[p][i] = fmaf(d[b][p][i], v[i] * rt[b], dw[p][i]);
        d[b][p][i] *= scale[p][i];
        sum[b] = fmaf(d[b][p][i], v[i], sum[b]);
      }
    }
  }
  team_sum<warp>(sum, nullptr);
#pragma unroll
  for (int b = 0; b < Batch; b++) {
    if (!items.there[b]) break;
    const float slope = sum[b] * rt[b] / static_cast<float>(a.n) * rt[b];
#pragma unroll
    for (int p = 0; p < Packs; p++) {
      const int c = (p * warp + static_cast<int>(threadIdx.x) % warp) * pack;
      float v[pack];
      widen_pack(x[b][p], v);
#pragma unroll
      for (int i = 0; i < pack; i++) v[i] = rt[b] * (d[b][p][i] - v[i] * slope);
      if (c >= a.n) continue;
      store_floats<Whole>(dx.at(first + items.row[b], items.head[b] * static_cast<int64_t>(a.stride) + c), v, a.n - c,
                          dx.aligned);
    }
  }
}

// Each block: the gradient of its rows' heads, and its part of dw. Two sets of angles, so that one barrier a group of
// rows suffices.
template <class T, bool Whole, int Packs>
__global__ void __launch_bounds__(block_threads, Packs == 1 ? 3 : 1)
    norm_rope_backward_kernel(Rows<T> dx, Rows<const T> dy, const float* r, float* partial, const Heads<T> a,
                              const __grid_constant__ Frequencies frequencies) {
  constexpr int batch = Packs == 1 ? batch_of_heads / 2 : 1;
  extern __shared__ float4 shared[];
  float* whole = reinterpret_cast<float*>(shared) + threadIdx.x / warp * 2 * a.half;
  float* both = reinterpret_cast<float*>(shared) + warps * 2 * a.half;
  const int lane = threadIdx.x % warp, all = a.rows_per_block * a.heads;
  float scale[Packs][pack], dw[Packs][pack] = {};
#pragma unroll
  for (int p = 0; p < Packs; p++) a.w.load<Whole>(scale[p], (p * warp + lane) * pack, a.n);
  const int64_t step = gridDim.x * static_cast<int64_t>(a.rows_per_block);
  int set = 0;
  for (int64_t first = blockIdx.x * static_cast<int64_t>(a.rows_per_block); first < a.rows; first += step, set ^= 1) {
    float* angles = both + set * a.rows_per_block * 2 * a.half;
    for (int item = threadIdx.x / warp * batch, turn_of = 0; item < all || turn_of == 0;
         item += warps * batch, turn_of++) {
      const Items<batch> items(a, first, item);
      Octet<T> x[batch][Packs], grad[batch][Packs];
      load_heads<Whole>(x, items, a.x, first, a.stride, a.n);
      load_heads<Whole>(grad, items, dy, first, a.n, a.n);
      if (turn_of == 0) {
        make_angles(angles, a, frequencies, first);
        __syncthreads();
      }
      backward_heads<Whole>(dx, x, grad, r, items, a, first, whole, angles, scale, dw);
    }
  }
  write_partial<warp>(partial, dw, a.n);
}

template <class T>
Heads<T> heads_of(const Tensor& x, const Tensor& w, const Tensor& positions, const RopeShape& shape, int batch) {
  Heads<T> a{rows_of<const T>(x),
             weights_of(w, 1),
             data_of<const int32_t>(positions),
             x.rows(),
             static_cast<int>(shape.heads),
             static_cast<int>(shape.head_dim),
             static_cast<int>(shape.head_stride),
             static_cast<int>(shape.rotary_dim / 2),
             1,
             static_cast<float>(shape.eps)};
  a.x.aligned = a.x.aligned && shape.head_stride * sizeof(T) % 16 == 0;
  a.rows_per_block = static_cast<int>(blocks_for(batch * warps, shape.heads));
  return a;
}

// Rows of heads · head_dim numbers, aligned where every head is.
template <class T>
Rows<T> head_rows(const Tensor& t, int64_t head_stride) {
  Rows<T> rows = rows_of<T>(t);
  rows.aligned = rows.aligned && head_stride * sizeof(T) % 16 == 0;
  return rows;
}

template <class T>
size_t shared_bytes(const Heads<T>& a, int sets) {
  return static_cast<size_t>((warps + sets * a.rows_per_block) * 2 * a.half) * sizeof(float);
}

// Calls f.template operator()<Whole, Packs>() for heads of n numbers.
template <class F>
void for_head_dim(int64_t n, bool whole, F&& f) {
  if (whole && n <= warp * pack) return f.template operator()<true, 1>();
  if (n <= warp * pack) return f.template operator()<false, 1>();
  CHECK(n <= 4 * warp * pack, "heads of {} numbers", n);
  f.template operator()<false, 4>();
}

// Whether every pack of eight is aligned and lies in one half of the rotating numbers or outside them.
template <class T>
bool is_whole(const Heads<T>& a) {
  return a.x.aligned && a.w.aligned && a.n % pack == 0 && a.half % pack == 0;
}

}  // namespace

void norm_rope(Stream& stream, Tensor y, Tensor r, Tensor x, Tensor w, Tensor positions, const RopeShape& shape) {
  const Frequencies frequencies = frequencies_of(shape);
  dispatch(x.dtype(), [&]<class T>() {
    const Heads<T> a = heads_of<T>(x, w, positions, shape, batch_of_heads);
    const auto out = head_rows<T>(y, shape.head_dim);
    for_head_dim(shape.head_dim, is_whole(a) && out.aligned, [&]<bool Whole, int Packs>() {
      launch_early(stream, norm_rope_kernel<T, Whole, Packs>,
                   dim3(static_cast<uint32_t>(blocks_for(a.rows, a.rows_per_block))), block_threads, shared_bytes(a, 1),
                   Norms<T>{{a, a}, {out, out}, {data_of<float>(r), nullptr}}, frequencies);
    });
  });
  check_launch(stream.queue(), "norm_rope");
}

void norm_rope_both(Stream& stream, const RopeOf& one, const RopeOf& two, Tensor positions) {
  constexpr int64_t few_rows = 64;
  const RopeShape &s = one.shape, &t = two.shape;
  const bool alike = one.x.dtype() == two.x.dtype() && one.x.rows() == two.x.rows() && s.head_dim == t.head_dim &&
                     s.rotary_dim == t.rotary_dim && s.theta == t.theta;
  if (!alike || one.x.rows() > few_rows) {
    for (const RopeOf* p : {&one, &two}) cuda::norm_rope(stream, p->y, p->r, p->x, p->w, positions, p->shape);
    return;
  }
  const Frequencies frequencies = frequencies_of(s);
  dispatch(one.x.dtype(), [&]<class T>() {
    const Norms<T> n{{heads_of<T>(one.x, one.w, positions, s, batch_of_heads),
                      heads_of<T>(two.x, two.w, positions, t, batch_of_heads)},
                     {head_rows<T>(one.y, s.head_dim), head_rows<T>(two.y, t.head_dim)},
                     {data_of<float>(one.r), data_of<float>(two.r)}};
    bool whole = true;
    int64_t blocks = 0;
    size_t shared = 0;
    for (int i = 0; i < 2; i++) {
      whole = whole && is_whole(n.a[i]) && n.y[i].aligned;
      blocks = std::max(blocks, blocks_for(n.a[i].rows, n.a[i].rows_per_block));
      shared = std::max(shared, shared_bytes(n.a[i], 1));
    }
    for_head_dim(s.head_dim, whole, [&]<bool Whole, int Packs>() {
      launch_early(stream, norm_rope_kernel<T, Whole, Packs>, dim3(static_cast<uint32_t>(blocks), 2), block_threads,
                   shared, n, frequencies);
    });
  });
  check_launch(stream.queue(), "norm_rope_both");
}

void norm_rope_backward(Stream& stream, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor r, Tensor positions,
                        const RopeShape& shape) {
  const Frequencies frequencies = frequencies_of(shape);
  dispatch(x.dtype(), [&]<class T>() {
    const Heads<T> a = heads_of<T>(x, w, positions, shape, batch_of_heads / 2);
    const auto out = head_rows<T>(dx, shape.head_stride);
    const auto in = head_rows<const T>(dy, shape.head_dim);
    const int64_t blocks = std::min(blocks_for(a.rows, a.rows_per_block), backward_blocks);
    float* partial = stream.queue().scratch<float>(blocks * shape.head_dim);
    for_head_dim(shape.head_dim, is_whole(a) && out.aligned && in.aligned, [&]<bool Whole, int Packs>() {
      norm_rope_backward_kernel<T, Whole, Packs>
          <<<static_cast<uint32_t>(blocks), block_threads, shared_bytes(a, 2), stream.queue().stream>>>(
              out, in, data_of<const float>(r), partial, a, frequencies);
    });
    add_columns(stream, data_of<float>(dw), partial, blocks, shape.head_dim);
  });
  check_launch(stream.queue(), "norm_rope_backward");
}

}  // namespace furlong::cuda
