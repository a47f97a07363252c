#include "ops/cuda/conv.cuh"

namespace furlong::cuda {
namespace {

constexpr int threads = 128;

__device__ inline float silu_slope(float p) {
  const float s = __fdividef(1.0f, 1 + __expf(-p));
  return s * (1 + p * (1 - s));
}

// A thread takes V channels of row_tile rows and keeps the last inputs in registers.
constexpr int row_tile = 32;
constexpr int at_once = 4;  // rows whose loads are under way together

template <class T, int V>
__global__ void __launch_bounds__(threads) conv_kernel(Conv<T> c, T* y, int64_t y_stride) {
  const int channel = (blockIdx.x * threads + threadIdx.x) * V;
  if (channel >= c.channels) return;
  const int begin = blockIdx.y * row_tile, end = min(begin + row_tile, c.rows);
  int s = segment_of(c.starts, c.segments, begin), next = c.starts[s + 1];
  float w[fast_taps][V], past[fast_taps - 1][V];
  load_taps<T, V>(w, c.w + static_cast<int64_t>(channel) * fast_taps);
  load_history<T, V>(past, c, s, c.starts[s], begin, channel);
  const auto put = [&](int t, const Pack<T, V>& raw) {
    float x[V], out[V];
    widen(x, raw);
#pragma unroll
    for (int v = 0; v < V; v++) out[v] = silu(tap_sum(w, past, x, v));
    shift(past, x);
    store(y + t * y_stride + channel, out);
  };
  const T* from = c.x + channel;
  for (int t = begin; t < end;) {
    const int stop = min(end, next);
    for (; t + at_once <= stop; t += at_once) {
      Pack<T, V> raw[at_once];
#pragma unroll
      for (int i = 0; i < at_once; i++) raw[i] = load_pack<V>(from + (t + i) * c.x_stride);
#pragma unroll
      for (int i = 0; i < at_once; i++) put(t + i, raw[i]);
    }
    for (; t < stop; t++) put(t, load_pack<V>(from + t * c.x_stride));
    if (t == end) break;
    while (t >= next) next = c.starts[++s + 1];
    load_history<T, V>(past, c, s, t, t, channel);
  }
}

// Short segments with memory: a thread takes V channels of one whole segment and puts its inputs into the window.
template <class T, int V>
__global__ void __launch_bounds__(threads) conv_decode_kernel(Conv<T> c, T* y, int64_t y_stride) {
  dependents_may_start();
  const int channel = (blockIdx.x * threads + threadIdx.x) * V, s = blockIdx.y;
  float w[fast_taps][V], past[fast_taps - 1][V];
  if (channel < c.channels) load_taps<T, V>(w, c.w + static_cast<int64_t>(channel) * fast_taps);
  wait_for_earlier();
  const int begin = c.starts[s], end = c.starts[s + 1];
  if (channel >= c.channels || begin == end) return;
  load_history<T, V>(past, c, s, begin, begin, channel);
  const int position = c.positions[begin];
  for (int t = begin; t < end; t++) {
    float x[V], out[V];
    load(x, c.x + t * c.x_stride + channel);
#pragma unroll
    for (int v = 0; v < V; v++) out[v] = silu(tap_sum(w, past, x, v));
    shift(past, x);
    store(y + t * y_stride + channel, out);
    if (t >= end - c.entries) store(c.kept(s, position + t - begin) + channel, x);
  }
}

// Any number of taps: a thread takes one output.
template <class T>
__device__ float pre_activation(const Conv<T>& c, int s, int first, int t, int channel) {
  float sum = 0;
  for (int i = 0; i < c.taps; i++) {
    const T* x = c.before(s, first, t, c.taps - 1 - i);
    if (x != nullptr) sum = fmaf(widen(c.w[static_cast<int64_t>(channel) * c.taps + i]), widen(x[channel]), sum);
  }
  return sum;
}

template <class T>
__global__ void __launch_bounds__(threads) conv_any_kernel(Conv<T> c, T* y, int64_t y_stride) {
  const int channel = blockIdx.x * threads + threadIdx.x, t = blockIdx.y;
  if (channel >= c.channels) return;
  const int s = segment_of(c.starts, c.segments, t);
  y[t * y_stride + channel] = narrow<T>(silu(pre_activation(c, s, c.starts[s], t, channel)));
}

// Keeps the last inputs of each segment for the rows to come.
template <class T>
__global__ void __launch_bounds__(threads) keep_kernel(Conv<T> c) {
  const int channel = blockIdx.x * threads + threadIdx.x, s = blockIdx.y;
  if (channel >= c.channels) return;
  const int end = c.starts[s + 1];
  for (int t = max(c.starts[s], end - c.entries); t < end; t++) {
    c.kept(s, c.positions[t])[channel] = c.x[t * c.x_stride + channel];
  }
}

template <class T, int V>
void run_forward(Stream& stream, const Conv<T>& c, T* y, int64_t y_stride) {
  const unsigned across = static_cast<unsigned>(blocks_for(c.channels, threads * V));
  if (c.slots != nullptr && c.rows <= 4 * c.segments) {
    const dim3 grid(across, static_cast<unsigned>(c.segments));
    launch_early(stream, conv_decode_kernel<T, V>, grid, threads, 0, c, y, y_stride);
    return;
  }
  const dim3 grid(across, static_cast<unsigned>(blocks_for(c.rows, row_tile)));
  conv_kernel<T, V><<<grid, threads, 0, stream.queue().stream>>>(c, y, y_stride);
}

template <class T>
void keep(Queue& queue, const Conv<T>& c) {
  const dim3 grid(static_cast<unsigned>(blocks_for(c.channels, threads)), static_cast<unsigned>(c.segments));
  keep_kernel<T><<<grid, threads, 0, queue.stream>>>(c);
}

// Rows of one partial sum of dw.
constexpr int sum_tile = 64;

// A thread takes V channels of sum_tile rows, in order: the gradient before the SiLU of row t adds to dx of the rows
// t-3..t and to dw. The three rows after the tile are formed again for the dx they feed. dw_part: (tiles, C, taps).
template <class T, int V>
__global__ void __launch_bounds__(threads)
    conv_backward_kernel(Conv<T> c, T* dx, int64_t dx_stride, const T* dy, int64_t dy_stride, float* dw_part) {
  const int channel = (blockIdx.x * threads + threadIdx.x) * V;
  if (channel >= c.channels) return;
  const int begin = blockIdx.y * sum_tile, end = min(begin + sum_tile, c.rows);
  int s = segment_of(c.starts, c.segments, begin), next = c.starts[s + 1];
  float w[fast_taps][V], past[fast_taps - 1][V], dw[fast_taps][V] = {};
  float partial[fast_taps - 1][V] = {};  // dx of rows t-3, t-2, t-1 so far
  load_taps<T, V>(w, c.w + static_cast<int64_t>(channel) * fast_taps);
  load_history<T, V>(past, c, s, c.starts[s], begin, channel);
  int first = begin;  // rows before it are not this thread's or already written
  const auto flush = [&](int t) {
#pragma unroll
    for (int i = 0; i < fast_taps - 1; i++) {
      const int row = t - (fast_taps - 1) + i;
      if (row >= first && row < end) store(dx + row * dx_stride + channel, partial[i]);
#pragma unroll
      for (int v = 0; v < V; v++) partial[i][v] = 0;
    }
    first = t;
  };
  const auto step = [&](int t, const Pack<T, V>& x_raw, const Pack<T, V>& d_raw, bool counts) {
    float x[V], d[V], done[V];
    widen(x, x_raw);
    widen(d, d_raw);
#pragma unroll
    for (int v = 0; v < V; v++) {
      const float dp = d[v] * silu_slope(tap_sum(w, past, x, v));
      if (counts) {
        dw[0][v] = fmaf(dp, past[0][v], dw[0][v]);
        dw[1][v] = fmaf(dp, past[1][v], dw[1][v]);
        dw[2][v] = fmaf(dp, past[2][v], dw[2][v]);
        dw[3][v] = fmaf(dp, x[v], dw[3][v]);
      }
      done[v] = fmaf(w[0][v], dp, partial[0][v]);
      partial[0][v] = fmaf(w[1][v], dp, partial[1][v]);
      partial[1][v] = fmaf(w[2][v], dp, partial[2][v]);
      partial[2][v] = w[3][v] * dp;
    }
    shift(past, x);
    const int row = t - (fast_taps - 1);
    if (row >= first && row < end) store(dx + row * dx_stride + channel, done);
  };
  const T *from_x = c.x + channel, *from_d = dy + channel;
  int t = begin;
  while (true) {
    const int stop = min(end, next);
    for (; t + at_once <= stop; t += at_once) {
      Pack<T, V> x[at_once], d[at_once];
#pragma unroll
      for (int i = 0; i < at_once; i++) {
        x[i] = load_pack<V>(from_x + (t + i) * c.x_stride);
        d[i] = load_pack<V>(from_d + (t + i) * dy_stride);
      }
#pragma unroll
      for (int i = 0; i < at_once; i++) step(t + i, x[i], d[i], true);
    }
    for (; t < stop; t++) step(t, load_pack<V>(from_x + t * c.x_stride), load_pack<V>(from_d + t * dy_stride), true);
    if (t == end) break;
    flush(t);
    while (t >= next) next = c.starts[++s + 1];
    load_history<T, V>(past, c, s, t, t, channel);
  }
  for (; t < min(end + fast_taps - 1, next); t++) {
    step(t, load_pack<V>(from_x + t * c.x_stride), load_pack<V>(from_d + t * dy_stride), false);
  }
  flush(t);
#pragma unroll
  for (int v = 0; v < V; v++) {
    float* out = dw_part + (static_cast<int64_t>(blockIdx.y) * c.channels + channel + v) * fast_taps;
    const float sums[fast_taps] = {dw[0][v], dw[1][v], dw[2][v], dw[3][v]};
    store(out, sums);
  }
}

// Any number of taps: a thread takes one dx.
template <class T>
__global__ void __launch_bounds__(threads)
    conv_any_dx_kernel(Conv<T> c, T* dx, int64_t dx_stride, const T* dy, int64_t dy_stride) {
  const int channel = blockIdx.x * threads + threadIdx.x, t = blockIdx.y;
  if (channel >= c.channels) return;
  const int s = segment_of(c.starts, c.segments, t), first = c.starts[s], end = c.starts[s + 1];
  float sum = 0;
  for (int i = c.taps - 1; i >= 0; i--) {
    const int fed = t + c.taps - 1 - i;
    if (fed >= end) break;
    const float dp = widen(dy[fed * dy_stride + channel]) * silu_slope(pre_activation(c, s, first, fed, channel));
    sum = fmaf(widen(c.w[static_cast<int64_t>(channel) * c.taps + i]), dp, sum);
  }
  dx[t * dx_stride + channel] = narrow<T>(sum);
}

// Any number of taps: a thread takes one channel of sum_tile rows.
template <class T>
__global__ void __launch_bounds__(threads)
    conv_any_dw_kernel(Conv<T> c, const T* dy, int64_t dy_stride, float* dw_part) {
  const int channel = blockIdx.x * threads + threadIdx.x;
  if (channel >= c.channels) return;
  float* out = dw_part + (static_cast<int64_t>(blockIdx.y) * c.channels + channel) * c.taps;
  for (int i = 0; i < c.taps; i++) out[i] = 0;
  const int begin = blockIdx.y * sum_tile, end = min(begin + sum_tile, c.rows);
  int s = segment_of(c.starts, c.segments, begin);
  for (int t = begin; t < end; t++) {
    while (t >= c.starts[s + 1]) s++;
    const int first = c.starts[s];
    const float dp = widen(dy[t * dy_stride + channel]) * silu_slope(pre_activation(c, s, first, t, channel));
    for (int i = 0; i < c.taps; i++) {
      const T* x = c.before(s, first, t, c.taps - 1 - i);
      if (x != nullptr) out[i] = fmaf(dp, widen(x[channel]), out[i]);
    }
  }
}

// dw += the partial sums, tile after tile.
__global__ void __launch_bounds__(threads) sum_parts_kernel(float* dw, const float* parts, int tiles, int64_t size) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (i >= size) return;
  float sum = 0;
#pragma unroll 8
  for (int tile = 0; tile < tiles; tile++) sum += parts[tile * size + i];
  dw[i] += sum;
}

}  // namespace

void conv_silu(Stream& stream, Tensor y, Tensor x, Tensor w, const Segments& segments, const DeltaSlots& slots) {
  Queue& queue = stream.queue();
  dispatch(x.dtype(), [&]<class T>() {
    constexpr int V = 16 / sizeof(T);
    const Conv<T> c = conv_of<T>(x, w, segments, slots);
    const bool fast = has_fast_taps<T>(w);
    T* out = data_of<T>(y);
    const bool decode = c.slots != nullptr && c.rows <= 4 * c.segments;
    if (!fast) {
      const dim3 grid(static_cast<unsigned>(blocks_for(c.channels, threads)), static_cast<unsigned>(c.rows));
      conv_any_kernel<T><<<grid, threads, 0, queue.stream>>>(c, out, y.row_stride());
    } else if (packs<T, V>(x, c.channels) && packs<T, V>(y, c.channels)) {
      run_forward<T, V>(stream, c, out, y.row_stride());
    } else {
      run_forward<T, 1>(stream, c, out, y.row_stride());
    }
    if (c.slots != nullptr && !(decode && fast)) keep(queue, c);
  });
  check_launch(queue, "conv_silu");
}

void conv_silu_backward(Stream& stream, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, const Segments& segments) {
  Queue& queue = stream.queue();
  dispatch(x.dtype(), [&]<class T>() {
    constexpr int V = 4;
    const Conv<T> c = conv_of<T>(x, w, segments, {});
    const int64_t tiles = blocks_for(c.rows, sum_tile), size = dw.numel();
    float* parts = queue.scratch<float>(tiles * size);
    T* out = data_of<T>(dx);
    const T* grad = data_of<T>(dy);
    const auto grid = [&](int per, int64_t down) {
      return dim3(static_cast<unsigned>(blocks_for(c.channels, threads * per)), static_cast<unsigned>(down));
    };
    if (!has_fast_taps<T>(w)) {
      conv_any_dx_kernel<T>
          <<<grid(1, c.rows), threads, 0, queue.stream>>>(c, out, dx.row_stride(), grad, dy.row_stride());
      conv_any_dw_kernel<T><<<grid(1, tiles), threads, 0, queue.stream>>>(c, grad, dy.row_stride(), parts);
    } else if (packs<T, V>(x, c.channels) && packs<T, V>(dx, c.channels) && packs<T, V>(dy, c.channels)) {
      conv_backward_kernel<T, V>
          <<<grid(V, tiles), threads, 0, queue.stream>>>(c, out, dx.row_stride(), grad, dy.row_stride(), parts);
    } else {
      conv_backward_kernel<T, 1>
          <<<grid(1, tiles), threads, 0, queue.stream>>>(c, out, dx.row_stride(), grad, dy.row_stride(), parts);
    }
    sum_parts_kernel<<<static_cast<unsigned>(blocks_for(size, threads)), threads, 0, queue.stream>>>(
        dw.as<float>(), parts, static_cast<int>(tiles), size);
  });
  check_launch(queue, "conv_silu_backward");
}

}  // namespace furlong::cuda
