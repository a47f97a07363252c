// Ops that take one number to one number, and the movement of whole rows: a thread a pack of eight.
#include "ops/cuda/packs.cuh"

namespace furlong::cuda {
namespace {

// Both as one row where neither has gaps.
bool flat(const Tensor& a, const Tensor& b) { return a.contiguous() && b.contiguous(); }

template <class T>
struct Swiglu {
  Rows<T> y;
  Rows<const T> gate, up;
  int64_t n;

  __device__ void operator()(int64_t t, int64_t c) const {
    float g[pack], u[pack];
    load_floats(g, gate.at(t, c), n - c, gate.aligned);
    load_floats(u, up.at(t, c), n - c, up.aligned);
#pragma unroll
    for (int i = 0; i < pack; i++) u[i] = swiglu_of<T>(g[i], u[i]);
    store_floats(y.at(t, c), u, n - c, y.aligned);
  }
};

template <class T>
struct SwigluBackward {
  Rows<T> dgate, dup;
  Rows<const T> dy, gate, up;
  int64_t n;

  __device__ void operator()(int64_t t, int64_t c) const {
    float g[pack], u[pack], d[pack];
    load_floats(d, dy.at(t, c), n - c, dy.aligned);
    load_floats(g, gate.at(t, c), n - c, gate.aligned);
    load_floats(u, up.at(t, c), n - c, up.aligned);
#pragma unroll
    for (int i = 0; i < pack; i++) {
      const float s = sigmoid_of<T>(g[i]), by = d[i];
      d[i] = by * g[i] * s;
      u[i] = by * u[i] * s * (1.0f + g[i] * (1.0f - s));
    }
    store_floats(dgate.at(t, c), u, n - c, dgate.aligned);
    store_floats(dup.at(t, c), d, n - c, dup.aligned);
  }
};

// The second half of rows of 2n numbers.
template <class T>
Rows<T> second_half(Rows<T> rows, int64_t n) {
  return {rows.data + n, rows.stride, rows.aligned && n * sizeof(T) % 16 == 0};
}

// Rows of heads: item i is head i % heads of row i / heads, `stride` numbers after the head before.
template <class T>
struct HeadRows {
  Rows<T> rows;
  uint32_t heads;
  int64_t stride;

  __device__ T* at(int64_t item, int64_t c) const {
    const uint32_t t = static_cast<uint32_t>(item) / heads, h = static_cast<uint32_t>(item) - t * heads;
    return rows.at(t, h * stride + c);
  }
};

// The numbers from `first` on of each head.
template <class T>
HeadRows<T> heads_of(const Tensor& t, const AttentionShape& shape, int64_t stride, int64_t first) {
  Rows<T> rows = rows_of<T>(t);
  rows.aligned = rows.aligned && shape.head_dim * sizeof(T) % 16 == 0;
  rows.data += first;
  return {rows, static_cast<uint32_t>(shape.heads), stride};
}

template <class T>
struct Gate {
  HeadRows<T> a;
  HeadRows<const T> o, gate;
  int64_t n;

  __device__ void operator()(int64_t item, int64_t c) const {
    float g[pack], v[pack];
    load_floats(v, o.at(item, c), n - c, o.rows.aligned);
    load_floats(g, gate.at(item, c), n - c, gate.rows.aligned);
#pragma unroll
    for (int i = 0; i < pack; i++) v[i] *= sigmoid_of<T>(g[i]);
    store_floats(a.at(item, c), v, n - c, a.rows.aligned);
  }
};

template <class T>
struct GateBackward {
  HeadRows<T> do_, dgate;
  HeadRows<const T> da, o, gate;
  int64_t n;

  __device__ void operator()(int64_t item, int64_t c) const {
    float g[pack], v[pack], d[pack];
    load_floats(d, da.at(item, c), n - c, da.rows.aligned);
    load_floats(v, o.at(item, c), n - c, o.rows.aligned);
    load_floats(g, gate.at(item, c), n - c, gate.rows.aligned);
#pragma unroll
    for (int i = 0; i < pack; i++) {
      const float s = sigmoid_of<T>(g[i]);
      v[i] *= d[i] * s * (1.0f - s);
      d[i] *= s;
    }
    store_floats(do_.at(item, c), d, n - c, do_.rows.aligned);
    store_floats(dgate.at(item, c), v, n - c, dgate.rows.aligned);
  }
};

// Rows out of a part of a table, which begins at row `first` of it; zeros for what is in other parts.
template <class T>
struct LookUp {
  Rows<T> to;
  Rows<const T> part;
  const int32_t* index;
  int64_t first, entries, all, n;

  __device__ void operator()(int64_t t, int64_t c) const {
    const int64_t row = index[t] - first;
    const bool elsewhere = (row < 0 || row >= entries) && index[t] >= 0 && index[t] < all;
    Octet<T> numbers{};
    if (!elsewhere) numbers = load_pack(part.at(row, c), n - c, part.aligned);
    store_pack(to.at(t, c), numbers, n - c, to.aligned);
  }
};

// Rows into places of a table.
template <class T>
struct ScatterRows {
  Rows<T> to;
  Rows<const T> from;
  const int32_t* index;
  int64_t n;

  __device__ void operator()(int64_t t, int64_t c) const {
    store_pack(to.at(index[t], c), load_pack(from.at(t, c), n - c, from.aligned), n - c, to.aligned);
  }
};

template <class T, class X, bool Sum>
struct Take {
  Rows<T> y;
  Rows<const X> x;
  int64_t n;

  __device__ void operator()(int64_t t, int64_t c) const {
    float v[pack];
    load_floats(v, x.at(t, c), n - c, x.aligned);
    if constexpr (Sum) {
      float before[pack];
      load_floats(before, static_cast<const T*>(y.at(t, c)), n - c, y.aligned);
#pragma unroll
      for (int i = 0; i < pack; i++) v[i] += before[i];
    }
    store_floats(y.at(t, c), v, n - c, y.aligned);
  }
};

template <class T>
struct Scale {
  Rows<T> x;
  float factor;
  int64_t n;

  __device__ void operator()(int64_t t, int64_t c) const {
    float v[pack];
    load_floats(v, static_cast<const T*>(x.at(t, c)), n - c, x.aligned);
#pragma unroll
    for (int i = 0; i < pack; i++) v[i] *= factor;
    store_floats(x.at(t, c), v, n - c, x.aligned);
  }
};

template <bool Sum>
void take(Stream& stream, const Tensor& y, const Tensor& x) {
  const int64_t rows = flat(y, x) ? 1 : y.rows(), n = y.numel() / rows;
  dispatch(y.dtype(), [&]<class T>() {
    dispatch(x.dtype(), [&]<class X>() {
      each_pack(stream, rows, n, Take<T, X, Sum>{rows_of<T>(y), rows_of<const X>(x), n});
    });
  });
}

}  // namespace

void swiglu(Stream& stream, Tensor y, Tensor gate_up) {
  dispatch(y.dtype(), [&]<class T>() {
    const int64_t n = y.dim(1);
    const auto gate = rows_of<const T>(gate_up);
    each_pack(stream, y.rows(), n, Swiglu<T>{rows_of<T>(y), gate, second_half(gate, n), n});
  });
  check_launch(stream.queue(), "swiglu");
}

void swiglu_backward(Stream& stream, Tensor dgate_up, Tensor dy, Tensor gate_up) {
  dispatch(dy.dtype(), [&]<class T>() {
    const int64_t n = dy.dim(1);
    const auto gate = rows_of<const T>(gate_up);
    const auto dgate = rows_of<T>(dgate_up);
    each_pack(stream, dy.rows(), n,
              SwigluBackward<T>{dgate, second_half(dgate, n), rows_of<const T>(dy), gate, second_half(gate, n), n});
  });
  check_launch(stream.queue(), "swiglu_backward");
}

void attention_gate(Stream& stream, Tensor a, Tensor o, Tensor x, const AttentionShape& shape) {
  dispatch(a.dtype(), [&]<class T>() {
    const int64_t d = shape.head_dim;
    each_pack(stream, a.rows() * shape.heads, d,
              Gate<T>{heads_of<T>(a, shape, d, 0), heads_of<const T>(o, shape, d, 0),
                      heads_of<const T>(x, shape, 2 * d, d), d});
  });
  check_launch(stream.queue(), "attention_gate");
}

void attention_gate_backward(Stream& stream, Tensor do_, Tensor dx, Tensor da, Tensor o, Tensor x,
                             const AttentionShape& shape) {
  dispatch(da.dtype(), [&]<class T>() {
    const int64_t d = shape.head_dim;
    each_pack(stream, da.rows() * shape.heads, d,
              GateBackward<T>{heads_of<T>(do_, shape, d, 0), heads_of<T>(dx, shape, 2 * d, d),
                              heads_of<const T>(da, shape, d, 0), heads_of<const T>(o, shape, d, 0),
                              heads_of<const T>(x, shape, 2 * d, d), d});
  });
  check_launch(stream.queue(), "attention_gate_backward");
}

void embed(Stream& stream, Tensor x, Tensor tokens, Tensor table, int64_t first, int64_t vocabulary) {
  dispatch(table.dtype(), [&]<class T>() {
    each_pack(stream, x.rows(), x.dim(1),
              LookUp<T>{rows_of<T>(x), rows_of<const T>(table), data_of<const int32_t>(tokens), first, table.rows(),
                        vocabulary, x.dim(1)});
  });
  check_launch(stream.queue(), "embed");
}

void scatter_rows(Stream& stream, Tensor x, Tensor rows, Tensor index) {
  dispatch(x.dtype(), [&]<class T>() {
    each_pack(stream, rows.rows(), rows.dim(1),
              ScatterRows<T>{rows_of<T>(x), rows_of<const T>(rows), data_of<const int32_t>(index), rows.dim(1)});
  });
  check_launch(stream.queue(), "scatter_rows");
}

void add(Stream& stream, Tensor y, Tensor x) {
  take<true>(stream, y, x);
  check_launch(stream.queue(), "add");
}

void convert(Stream& stream, Tensor y, Tensor x) {
  take<false>(stream, y, x);
  check_launch(stream.queue(), "convert");
}

void scale(Stream& stream, Tensor x, double factor) {
  const int64_t rows = x.contiguous() ? 1 : x.rows(), n = x.numel() / rows;
  dispatch(x.dtype(),
           [&]<class T>() { each_pack(stream, rows, n, Scale<T>{rows_of<T>(x), static_cast<float>(factor), n}); });
  check_launch(stream.queue(), "scale");
}

void set_zero(Stream& stream, Tensor x) {
  const size_t rows = x.contiguous() ? 1 : static_cast<size_t>(x.rows()), width = x.bytes() / rows;
  const size_t stride = static_cast<size_t>(x.row_stride()) * size_of(x.dtype());
  const cudaStream_t at = stream.queue().stream;
  check(rows == 1 ? cudaMemsetAsync(x.data(), 0, width, at) : cudaMemset2DAsync(x.data(), stride, 0, width, rows, at),
        "set_zero");
}

}  // namespace furlong::cuda
