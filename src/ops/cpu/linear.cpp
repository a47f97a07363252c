#include <algorithm>
#include <array>
#include <vector>

#include "ops/cpu/bodies.h"
#include "ops/cpu/gemm.h"
#include "ops/packs.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

// Columns that a thread packs together (gemm.cpp), and rows worth a thread of their own.
constexpr int64_t column_block = 64, row_block = 48;
// Where nothing is turned while it is packed: columns that rows should meet in one go, and rows worth packing for.
constexpr int64_t wide_columns = 256, many_rows = 192;

// Runs tile(row begin, row end, column begin, column end) over the output, on several threads where it pays. turned:
// what is packed by columns is turned.
template <class F>
void tiles(Stream& stream, int64_t rows, int64_t columns, int64_t depth, bool turned, F&& tile) {
  const int64_t threads = stream.threads().size();
  if (rows * columns * depth < serial_work || threads == 1) {
    tile(0, rows, 0, columns);
    return;
  }
  const auto by_rows = [&](int64_t parts) {
    stream.threads().parallel(parts, [&](int64_t i) { tile(rows * i / parts, rows * (i + 1) / parts, 0, columns); });
  };
  // Columns are split, so that each is packed once; where they are few, rows. A few parts for each thread, because a
  // core may be taken away.
  const int64_t column_parts = std::min(4 * threads, (columns + column_block - 1) / column_block);
  const bool narrow = !turned && columns < wide_columns * column_parts && rows >= 2 * threads * many_rows;
  if (narrow && column_parts >= 2 * threads) {
    by_rows(std::min(4 * threads, rows / many_rows / threads * threads));
  } else if (column_parts >= 2 * threads || rows < 2 * row_block) {
    const int64_t blocks = (columns + column_block - 1) / column_block;
    stream.threads().parallel(column_parts, [&](int64_t i) {
      const int64_t c0 = blocks * i / column_parts * column_block;
      tile(0, rows, c0, std::min(columns, blocks * (i + 1) / column_parts * column_block));
    });
  } else {
    by_rows(std::min(4 * threads, rows / row_block));
  }
}

template <class A, class B, class C>
void nn(Stream& stream, const Tensor& dx, const Tensor& dy, const B* w, int64_t n, int64_t k, bool accumulate) {
  const A* a = dy.as<A>();
  C* c = dx.as<C>();
  tiles(stream, dy.rows(), k, n, false, [&](int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    gemm_nn(r1 - r0, c1 - c0, n, a + r0 * dy.row_stride(), dy.row_stride(), 1, w + c0, k, c + r0 * dx.row_stride() + c0,
            dx.row_stride(), accumulate);
  });
}

template <class A, class B>
void tn(Stream& stream, Acc<B>* dw, const Tensor& dy, const Tensor& x) {
  const int64_t n = dy.dim(1), k = x.dim(1);
  const A* a = dy.as<A>();
  const B* b = x.as<B>();
  tiles(stream, n, k, dy.rows(), false, [&](int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    gemm_nn(r1 - r0, c1 - c0, dy.rows(), a + r0, 1, dy.row_stride(), b + c0, x.row_stride(), dw + r0 * k + c0, k, true);
  });
}

// The packs of w (N,K), or of one of w (E,N,K); null: there are none.
const void* packs_of(const Stream& stream, const Tensor& w, int64_t expert) {
  const void* packs = stream.packs() == nullptr ? nullptr : stream.packs()->find(w);
  if (packs == nullptr || expert == 0) return packs;
  int64_t bytes = 0;
  dispatch(w.dtype(), [&]<class T>() { bytes = packed_size<T>(w.dim(1), w.dim(2)); });
  return static_cast<const char*>(packs) + expert * bytes;
}

// Calls f(part), where part(r0, r1, c0, c1) computes those rows and columns of y = x wᵀ, w one of (E,N,K) or (N,K).
// after: the packs that are wanted when all columns are done, or null.
template <class F>
void with_parts(Stream& stream, const Tensor& y, const Tensor& x, const Tensor& w, int64_t expert, const void* after,
                F&& f) {
  const int64_t k = x.dim(1), n = y.dim(1);
  const void* packed = packs_of(stream, w, expert);
  dispatch(w.dtype(), [&]<class T>() {
    const T *wp = w.as<T>() + expert * n * k, *xp = x.as<T>();
    const auto into = [&]<class C>(C* yp) {
      f([&](int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
        gemm_nt(r1 - r0, c1 - c0, k, xp + r0 * x.row_stride(), x.row_stride(), wp + c0 * k, k,
                yp + r0 * y.row_stride() + c0, y.row_stride(), false,
                packed == nullptr ? nullptr : packed_columns<T>(packed, k, c0),
                packed == nullptr || c1 == n ? after : packed_columns<T>(packed, k, c1));
      });
    };
    if (y.dtype() == dtype_of<T>) {
      into(y.as<T>());
    } else {
      into(y.as<Acc<T>>());
    }
  });
}

void product(Stream& stream, const Tensor& y, const Tensor& x, const Tensor& w, int64_t expert,
             const void* after = nullptr) {
  with_parts(stream, y, x, w, expert, after,
             [&](const auto& part) { tiles(stream, x.rows(), y.dim(1), x.dim(1), true, part); });
}

// Products of the same few rows, which share out their columns in one go: a block of columns is a task.
class Together {
 public:
  // So few are not worth splitting.
  static bool serves(const Tensor& x) { return x.rows() < 2 * row_block; }

  explicit Together(const Tensor& x) : x_(x) {}
  void add(const Tensor& y, const Tensor& w) {
    CHECK(count_ < most, "more than {} products", most);
    products_[count_++] = {y, w, tasks_};
    tasks_ += (w.rows() + column_block - 1) / column_block;
    work_ += x_.rows() * w.numel();
  }
  int64_t tasks() const { return tasks_; }
  void run(Stream& stream, int64_t task) const {
    size_t i = count_ - 1;
    while (task < products_[i].first) i--;
    const auto& [y, w, first] = products_[i];
    const int64_t c0 = (task - first) * column_block, c1 = std::min(w.rows(), c0 + column_block);
    with_parts(stream, y, x_, w, 0, nullptr, [&](const auto& part) { part(0, x_.rows(), c0, c1); });
  }
  void run(Stream& stream) const {
    if (work_ < serial_work) {
      for (int64_t i = 0; i < tasks_; i++) run(stream, i);
    } else {
      stream.threads().parallel_in_order(tasks_, [&](int64_t i) { run(stream, i); });
    }
  }

 private:
  struct Product {
    Tensor y, w;
    int64_t first = 0;  // task
  };
  static constexpr size_t most = 8;

  Tensor x_;
  std::array<Product, most> products_;
  size_t count_ = 0;
  int64_t tasks_ = 0, work_ = 0;
};

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

// The experts that have rows, those with most first: what is left for the end is small.
std::vector<int32_t> by_rows(const Tensor& offsets) {
  const int32_t* at = offsets.as<int32_t>();
  std::vector<int32_t> order;
  for (int32_t e = 0; e < offsets.rows() - 1; e++) {
    if (at[e] < at[e + 1]) order.push_back(e);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return at[a + 1] - at[a] > at[b + 1] - at[b]; });
  return order;
}

// Calls f(expert, row begin, row end) for every expert that has rows, experts spread over the threads.
template <class F>
void each_expert(Stream& stream, const Tensor& offsets, F&& f) {
  const int32_t* at = offsets.as<int32_t>();
  const auto order = by_rows(offsets);
  stream.threads().parallel_uneven(std::ssize(order), [&](int64_t i) {
    const int32_t e = order[static_cast<size_t>(i)];
    f(e, at[e], at[e + 1]);
  });
}

}  // namespace

void linear(Stream& stream, Tensor y, Tensor x, Tensor w) {
  if (!Together::serves(x)) return product(stream, y, x, w, 0);
  Together one(x);
  one.add(y, w);
  one.run(stream);
}

void linear_many(Stream& stream, Tensor x, std::initializer_list<LinearOf> products) {
  if (!Together::serves(x)) {
    for (const auto& p : products) FURLONG_ISA::linear(stream, p.y, x, p.w);
    return;
  }
  Together all(x);
  for (const auto& p : products) all.add(p.y, p.w);
  all.run(stream);
}

void linear_swiglu(Stream& stream, Tensor y, Tensor gate_up, Tensor x, Tensor w_gate, Tensor w_up,
                   std::initializer_list<LinearOf> others) {
  const int64_t f = y.dim(1);
  const LinearOf gate{gate_up.columns(0, f), w_gate}, up{gate_up.columns(f, 2 * f), w_up};
  if (Together::serves(x)) {
    Together all(x);
    for (const auto& p : {gate, up}) all.add(p.y, p.w);
    for (const auto& p : others) all.add(p.y, p.w);
    all.run(stream);
  } else {
    FURLONG_ISA::linear_many(stream, x, {gate, up});
    FURLONG_ISA::linear_many(stream, x, others);
  }
  FURLONG_ISA::swiglu(stream, y, gate_up);
}

void linear_dx(Stream& stream, Tensor dx, Tensor dy, Tensor w, bool accumulate) {
  product_dx(stream, dx, dy, w, w.rows(), w.dim(1), 0, accumulate);
}

void linear_dw(Stream& stream, Tensor dw, Tensor dy, Tensor x) { product_dw(stream, dw, dy, x, 0); }

void grouped_linear(Stream& stream, Tensor y, Tensor x, Tensor w, Tensor offsets) {
  each_expert(stream, offsets,
              [&](int64_t e, int64_t r0, int64_t r1) { product(stream, y.rows(r0, r1), x.rows(r0, r1), w, e); });
}

void grouped_swiglu(Stream& stream, Tensor y, Tensor gate_up, Tensor x, Tensor w, Tensor offsets) {
  FURLONG_ISA::grouped_linear(stream, gate_up, x, w, offsets);
  FURLONG_ISA::swiglu(stream, y, gate_up);
}

void grouped_mlp(Stream& stream, const GroupedMlp& m, Tensor y, Tensor x, Tensor w) {
  if (!Together::serves(x)) {
    FURLONG_ISA::linear(stream, y, x, w);
    FURLONG_ISA::grouped_swiglu(stream, m.act, m.gate_up, m.x, m.w_gate_up, m.offsets);
    FURLONG_ISA::grouped_linear(stream, m.y, m.act, m.w_down, m.offsets);
    return;
  }
  // An expert from its rows to their results, and the other product's columns between the last of them.
  Together beside(x);
  beside.add(y, w);
  const int32_t* at = m.offsets.as<int32_t>();
  const auto order = by_rows(m.offsets);
  stream.threads().parallel_uneven(std::ssize(order) + beside.tasks(), [&](int64_t i) {
    if (i >= std::ssize(order)) return beside.run(stream, i - std::ssize(order));
    const int32_t e = order[static_cast<size_t>(i)], r0 = at[e], r1 = at[e + 1];
    product(stream, m.gate_up.rows(r0, r1), m.x.rows(r0, r1), m.w_gate_up, e, packs_of(stream, m.w_down, e));
    FURLONG_ISA::swiglu(stream, m.act.rows(r0, r1), m.gate_up.rows(r0, r1));
    // As tasks are handed out, this thread's next one is so many further on.
    const int64_t following = i + stream.threads().size();
    product(
        stream, m.y.rows(r0, r1), m.act.rows(r0, r1), m.w_down, e,
        following < std::ssize(order) ? packs_of(stream, m.w_gate_up, order[static_cast<size_t>(following)]) : nullptr);
  });
}

void grouped_linear_dx(Stream& stream, Tensor dx, Tensor dy, Tensor w, Tensor offsets) {
  each_expert(stream, offsets, [&](int64_t e, int64_t r0, int64_t r1) {
    product_dx(stream, dx.rows(r0, r1), dy.rows(r0, r1), w, w.dim(1), w.dim(2), e, false);
  });
}

void grouped_linear_dw(Stream& stream, Tensor dw, Tensor dy, Tensor x, Tensor offsets) {
  each_expert(stream, offsets,
              [&](int64_t e, int64_t r0, int64_t r1) { product_dw(stream, dw, dy.rows(r0, r1), x.rows(r0, r1), e); });
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
