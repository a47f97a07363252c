#include <cstring>

#include <atomic>

#include "ops/cpu/rows.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

// Numbers summed as one partial sum.
constexpr int64_t sum_block = 16384;
constexpr int sum_width = 16;

// Calls f(first number, count) for each contiguous piece of at most `piece` numbers, in order.
template <class T, class F>
void pieces(const Tensor& x, int64_t piece, F&& f) {
  const T* p = x.as<T>();
  const int64_t rows = x.contiguous() ? 1 : x.rows(), n = x.numel() / rows;
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t i = 0; i < n; i += piece) f(p + r * x.row_stride() + i, std::min(piece, n - i));
  }
}

template <class T>
double block_sum_of_squares(const T* x, int64_t n) {
  double lane[sum_width] = {};
  int64_t i = 0;
  for (; i + sum_width <= n; i += sum_width) {
    for (int j = 0; j < sum_width; j++) {
      const double v = static_cast<double>(widen(x[i + j]));
      lane[j] += v * v;
    }
  }
  for (int j = 0; i + j < n; j++) {
    const double v = static_cast<double>(widen(x[i + j]));
    lane[j] += v * v;
  }
  for (int half = sum_width / 2; half > 0; half /= 2) {
    for (int j = 0; j < half; j++) lane[j] += lane[j + half];
  }
  return lane[0];
}

template <class T>
bool block_finite(const T* x, int64_t n) {
  using Bits = std::conditional_t<sizeof(T) == 2, uint16_t, std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;
  constexpr int mantissa = sizeof(T) == 2 ? 7 : sizeof(T) == 4 ? 23 : 52;
  constexpr int exponent = sizeof(T) == 8 ? 11 : 8;
  constexpr Bits mask = static_cast<Bits>(((Bits{1} << exponent) - 1) << mantissa);
  Bits bad = 0;
  for (int64_t i = 0; i < n; i++) bad |= static_cast<Bits>((std::bit_cast<Bits>(x[i]) & mask) == mask);
  return bad == 0;
}

// Calls f(row of y, row of x, begin, end) over both tensors.
template <class F>
void both(Stream& stream, const Tensor& y, const Tensor& x, F&& f) {
  const int64_t rows = y.contiguous() && x.contiguous() ? 1 : y.rows(), n = y.numel() / rows;
  if (rows == 1) {
    column_blocks(stream, n, 1, [&](int64_t begin, int64_t end) { f(0, begin, end); });
  } else {
    blocks(stream, rows, n, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) f(t, int64_t{0}, n);
    });
  }
}

}  // namespace

void add(Stream& stream, Tensor y, Tensor x) {
  dispatch(y.dtype(), [&]<class T>() {
    dispatch(x.dtype(), [&]<class X>() {
      T* yp = y.as<T>();
      const X* xp = x.as<X>();
      both(stream, y, x, [&](int64_t row, int64_t begin, int64_t end) {
        T* yt = yp + row * y.row_stride();
        const X* xt = xp + row * x.row_stride();
        for (int64_t i = begin; i < end; i++) yt[i] = narrow<T>(static_cast<Acc<T>>(widen(yt[i]) + widen(xt[i])));
      });
    });
  });
}

void convert(Stream& stream, Tensor y, Tensor x) {
  dispatch(y.dtype(), [&]<class T>() {
    dispatch(x.dtype(), [&]<class X>() {
      T* yp = y.as<T>();
      const X* xp = x.as<X>();
      both(stream, y, x, [&](int64_t row, int64_t begin, int64_t end) {
        T* yt = yp + row * y.row_stride();
        const X* xt = xp + row * x.row_stride();
        for (int64_t i = begin; i < end; i++) {
          if constexpr (std::is_same_v<T, X>) {
            yt[i] = xt[i];
          } else {
            yt[i] = narrow<T>(static_cast<Acc<T>>(widen(xt[i])));
          }
        }
      });
    });
  });
}

double sum_of_squares(Stream& stream, Tensor x) {
  return dispatch(x.dtype(), [&]<class T>() {
    std::vector<std::pair<const T*, int64_t>> parts;
    pieces<T>(x, sum_block, [&](const T* p, int64_t n) { parts.emplace_back(p, n); });
    std::vector<double> sums(parts.size());
    blocks(stream, static_cast<int64_t>(parts.size()), std::min(sum_block, x.numel()), [&](int64_t begin, int64_t end) {
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); i++) {
        sums[i] = block_sum_of_squares(parts[i].first, parts[i].second);
      }
    });
    double sum = 0;
    for (const double s : sums) sum += s;
    return sum;
  });
}

bool all_finite(Stream& stream, Tensor x) {
  return dispatch(x.dtype(), [&]<class T>() {
    std::vector<std::pair<const T*, int64_t>> parts;
    pieces<T>(x, sum_block, [&](const T* p, int64_t n) { parts.emplace_back(p, n); });
    std::atomic<bool> finite = true;
    blocks(stream, static_cast<int64_t>(parts.size()), std::min(sum_block, x.numel()), [&](int64_t begin, int64_t end) {
      for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); i++) {
        if (!block_finite(parts[i].first, parts[i].second)) finite = false;
      }
    });
    return finite.load();
  });
}

void scale(Stream& stream, Tensor x, double factor) {
  dispatch(x.dtype(), [&]<class T>() {
    T* p = x.as<T>();
    const auto by = static_cast<Acc<T>>(factor);
    both(stream, x, x, [&](int64_t row, int64_t begin, int64_t end) {
      T* xt = p + row * x.row_stride();
      for (int64_t i = begin; i < end; i++) xt[i] = narrow<T>(static_cast<Acc<T>>(widen(xt[i]) * by));
    });
  });
}

void set_zero(Stream&, Tensor x) {
  const int64_t rows = x.contiguous() ? 1 : x.rows();
  const size_t bytes = x.bytes() / static_cast<size_t>(rows);
  const size_t stride = static_cast<size_t>(x.row_stride()) * size_of(x.dtype());
  for (int64_t r = 0; r < rows; r++)
    std::memset(static_cast<char*>(x.data()) + static_cast<size_t>(r) * stride, 0, bytes);
}

}  // namespace furlong::cpu::FURLONG_ISA
