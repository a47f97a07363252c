#include <algorithm>

#include "ops/cpu/bodies.h"
#include "ops/cpu/gemm.h"
#include "ops/packs.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

// Columns that a thread packs together (gemm.cpp), and rows worth a thread of their own.
constexpr int64_t column_block = 64, row_block = 48;

// Runs tile(row begin, row end, column begin, column end) over the output, on several threads where it pays.
template <class F>
void tiles(Stream& stream, int64_t rows, int64_t columns, int64_t depth, F&& tile) {
  const int64_t threads = stream.threads().size();
  if (rows * columns * depth < serial_work || threads == 1) {
    tile(0, rows, 0, columns);
    return;
  }
  // Columns are split, so that each is packed once; where they are few, rows. A few parts for each thread, because a
  // core may be taken away.
  const int64_t column_parts = std::min(4 * threads, (columns + column_block - 1) / column_block);
  if (column_parts >= 2 * threads || rows < 2 * row_block) {
    const int64_t blocks = (columns + column_block - 1) / column_block;
    stream.threads().parallel(column_parts, [&](int64_t i) {
      const int64_t c0 = blocks * i / column_parts * column_block;
      tile(0, rows, c0, std::min(columns, blocks * (i + 1) / column_parts * column_block));
    });
  } else {
    const int64_t parts = std::min(4 * threads, rows / row_block);
    stream.threads().parallel(parts, [&](int64_t i) { tile(rows * i / parts, rows * (i + 1) / parts, 0, columns); });
  }
}

template <class A, class B, class C>
void nt(Stream& stream, const Tensor& y, const Tensor& x, const B* w, int64_t n, int64_t k, const void* packed) {
  const A* xp = x.as<A>();
  C* yp = y.as<C>();
  tiles(stream, x.rows(), n, k, [&](int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    gemm_nt(r1 - r0, c1 - c0, k, xp + r0 * x.row_stride(), x.row_stride(), w + c0 * k, k, yp + r0 * y.row_stride() + c0,
            y.row_stride(), false, packed == nullptr ? nullptr : packed_columns<B>(packed, k, c0));
  });
}

template <class A, class B, class C>
void nn(Stream& stream, const Tensor& dx, const Tensor& dy, const B* w, int64_t n, int64_t k, bool accumulate) {
  const A* a = dy.as<A>();
  C* c = dx.as<C>();
  tiles(stream, dy.rows(), k, n, [&](int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    gemm_nn(r1 - r0, c1 - c0, n, a + r0 * dy.row_stride(), dy.row_stride(), 1, w + c0, k, c + r0 * dx.row_stride() + c0,
            dx.row_stride(), accumulate);
  });
}

template <class A, class B>
void tn(Stream& stream, Acc<B>* dw, const Tensor& dy, const Tensor& x) {
  const int64_t n = dy.dim(1), k = x.dim(1);
  const A* a = dy.as<A>();
  const B* b = x.as<B>();
  tiles(stream, n, k, dy.rows(), [&](int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    gemm_nn(r1 - r0, c1 - c0, dy.rows(), a + r0, 1, dy.row_stride(), b + c0, x.row_stride(), dw + r0 * k + c0, k, true);
  });
}

// The three products by the dtype of the model and whether the other side is kept in fp32.
void product(Stream& stream, const Tensor& y, const Tensor& x, const Tensor& w, int64_t n, int64_t k, int64_t expert) {
  const void* packs = stream.packs() == nullptr ? nullptr : stream.packs()->find(w);
  dispatch(w.dtype(), [&]<class T>() {
    const T* wp = w.as<T>() + expert * n * k;
    const void* packed = packs == nullptr ? nullptr : static_cast<const char*>(packs) + expert * packed_size<T>(n, k);
    if (y.dtype() == dtype_of<T>) {
      nt<T, T, T>(stream, y, x, wp, n, k, packed);
    } else {
      nt<T, T, Acc<T>>(stream, y, x, wp, n, k, packed);
    }
  });
}

void product_dx(Stream& stream, const Tensor& dx, const Tensor& dy, const Tensor& w, int64_t n, int64_t k,
                int64_t expert, bool accumulate) {
  dispatch(w.dtype(), [&]<class T>() {
    const T* wp = w.as<T>() + expert * n * k;
    if (dy.dtype() == dtype_of<T>) {
      nn<T, T, T>(stream, dx, dy, wp, n, k, accumulate);
    } else {
      nn<Acc<T>, T, T>(stream, dx, dy, wp, n, k, accumulate);
    }
  });
}

void product_dw(Stream& stream, const Tensor& dw, const Tensor& dy, const Tensor& x, int64_t expert) {
  dispatch(x.dtype(), [&]<class T>() {
    Acc<T>* out = dw.as<Acc<T>>() + expert * dy.dim(1) * x.dim(1);
    if (dy.dtype() == dtype_of<T>) {
      tn<T, T>(stream, out, dy, x);
    } else {
      tn<Acc<T>, T>(stream, out, dy, x);
    }
  });
}

// Calls f(serial stream, expert, row begin, row end) for every expert that has rows, experts spread over the threads.
template <class F>
void each_expert(Stream& stream, const Tensor& offsets, F&& f) {
  const int32_t* at = offsets.as<int32_t>();
  stream.threads().parallel_uneven(offsets.rows() - 1, [&](int64_t e) {
    if (at[e] < at[e + 1]) f(stream, e, at[e], at[e + 1]);
  });
}

}  // namespace

void linear(Stream& stream, Tensor y, Tensor x, Tensor w) { product(stream, y, x, w, w.rows(), w.dim(1), 0); }

void linear_many(Stream& stream, Tensor x, std::initializer_list<LinearOf> products) {
  for (const auto& p : products) FURLONG_ISA::linear(stream, p.y, x, p.w);
}

void linear_swiglu(Stream& stream, Tensor y, Tensor gate_up, Tensor x, Tensor w_gate, Tensor w_up,
                   std::initializer_list<LinearOf> others) {
  const int64_t f = y.dim(1);
  FURLONG_ISA::linear(stream, gate_up.columns(0, f), x, w_gate);
  FURLONG_ISA::linear(stream, gate_up.columns(f, 2 * f), x, w_up);
  FURLONG_ISA::swiglu(stream, y, gate_up);
  FURLONG_ISA::linear_many(stream, x, others);
}

void linear_dx(Stream& stream, Tensor dx, Tensor dy, Tensor w, bool accumulate) {
  product_dx(stream, dx, dy, w, w.rows(), w.dim(1), 0, accumulate);
}

void linear_dw(Stream& stream, Tensor dw, Tensor dy, Tensor x) { product_dw(stream, dw, dy, x, 0); }

void grouped_linear(Stream& stream, Tensor y, Tensor x, Tensor w, Tensor offsets) {
  each_expert(stream, offsets, [&](Stream& s, int64_t e, int64_t r0, int64_t r1) {
    product(s, y.rows(r0, r1), x.rows(r0, r1), w, w.dim(1), w.dim(2), e);
  });
}

void grouped_swiglu(Stream& stream, Tensor y, Tensor gate_up, Tensor x, Tensor w, Tensor offsets) {
  FURLONG_ISA::grouped_linear(stream, gate_up, x, w, offsets);
  FURLONG_ISA::swiglu(stream, y, gate_up);
}

void grouped_mlp(Stream& stream, const GroupedMlp& m, Tensor y, Tensor x, Tensor w) {
  FURLONG_ISA::linear(stream, y, x, w);
  FURLONG_ISA::grouped_swiglu(stream, m.act, m.gate_up, m.x, m.w_gate_up, m.offsets);
  FURLONG_ISA::grouped_linear(stream, m.y, m.act, m.w_down, m.offsets);
}

void grouped_linear_dx(Stream& stream, Tensor dx, Tensor dy, Tensor w, Tensor offsets) {
  each_expert(stream, offsets, [&](Stream& s, int64_t e, int64_t r0, int64_t r1) {
    product_dx(s, dx.rows(r0, r1), dy.rows(r0, r1), w, w.dim(1), w.dim(2), e, false);
  });
}

void grouped_linear_dw(Stream& stream, Tensor dw, Tensor dy, Tensor x, Tensor offsets) {
  each_expert(stream, offsets, [&](Stream& s, int64_t e, int64_t r0, int64_t r1) {
    product_dw(s, dw, dy.rows(r0, r1), x.rows(r0, r1), e);
  });
}

size_t packed_bytes(const Tensor& w) {
  const int64_t last = w.rank() - 1, matrices = w.rank() == 3 ? w.rows() : 1;
  size_t bytes = 0;
  dispatch(w.dtype(),
           [&]<class T>() { bytes = static_cast<size_t>(matrices * packed_size<T>(w.dim(last - 1), w.dim(last))); });
  return bytes;
}

void pack_weight(Stream& stream, void* to, Tensor w) {
  const int64_t last = w.rank() - 1, n = w.dim(last - 1), k = w.dim(last);
  const int64_t matrices = w.rank() == 3 ? w.rows() : 1, parts = (n + column_block - 1) / column_block;
  dispatch(w.dtype(), [&]<class T>() {
    stream.threads().parallel(matrices * parts, [&](int64_t i) {
      const int64_t matrix = i / parts, begin = i % parts * column_block;
      pack_nt(static_cast<char*>(to) + matrix * packed_size<T>(n, k), w.as<T>() + matrix * n * k, k, begin,
              std::min(n, begin + column_block));
    });
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
