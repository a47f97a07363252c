#include "ops/cpu/rows.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

// cos and sin of position · theta^(-2j/rotary_dim), the angle formed in fp32. Kept per position where the batch holds
// fewer positions than rows (many short sequences), else per row.
template <class S>
class Angles {
 public:
  Angles(Stream& stream, const Tensor& positions, const RopeShape& shape)
      : positions_(positions.as<int32_t>()), half_(shape.rotary_dim / 2) {
    const int64_t rows = positions.rows();
    const int64_t last = *std::max_element(positions_, positions_ + rows);
    by_position_ = last < rows;
    const int64_t entries = by_position_ ? last + 1 : rows;
    table_.resize(static_cast<size_t>(entries * 2 * half_));
    std::vector<float> frequency(static_cast<size_t>(half_));
    for (int64_t j = 0; j < half_; j++) {
      const float exponent = static_cast<float>(2 * j) / static_cast<float>(shape.rotary_dim);
      frequency[static_cast<size_t>(j)] = 1.0f / std::pow(static_cast<float>(shape.theta), exponent);
    }
    blocks(stream, entries, 60 * half_, [&](int64_t begin, int64_t end) {
      for (int64_t e = begin; e < end; e++) {
        const float position = static_cast<float>(by_position_ ? e : positions_[e]);
        S* at = table_.data() + e * 2 * half_;
        for (int64_t j = 0; j < half_; j++) {
          const S angle = static_cast<S>(position * frequency[static_cast<size_t>(j)]);
          at[j] = std::cos(angle);
          at[half_ + j] = std::sin(angle);
        }
      }
    });
  }

  const S* cos(int64_t row) const { return table_.data() + (by_position_ ? positions_[row] : row) * 2 * half_; }
  const S* sin(int64_t row) const { return cos(row) + half_; }

 private:
  const int32_t* positions_;
  int64_t half_;
  bool by_position_;
  std::vector<S> table_;
};

// d = the gradient of the normed head: dy turned back by the angle.
template <class T>
void turn_back(Acc<T>* d, const T* dy, const Acc<T>* c, const Acc<T>* s, int64_t half, int64_t n) {
  for (int64_t j = 0; j < half; j++) {
    const auto a = widen(dy[j]), b = widen(dy[j + half]);
    d[j] = a * c[j] + b * s[j];
    d[j + half] = b * c[j] - a * s[j];
  }
  for (int64_t i = 2 * half; i < n; i++) d[i] = widen(dy[i]);
}

template <class T>
void turn_heads(Stream& stream, const RopeOf& p, const Angles<Acc<T>>& angles) {
  using S = Acc<T>;
  const RopeShape& shape = p.shape;
  const int64_t n = shape.head_dim, half = shape.rotary_dim / 2, heads = shape.heads;
  const auto scale = widened<S>(p.w, 1);
  const T* xp = p.x.as<T>();
  T* yp = p.y.as<T>();
  S* rp = p.r.as<S>();
  blocks(stream, p.x.rows(), 4 * n * heads, [&](int64_t begin, int64_t end) {
    std::vector<S> scratch(static_cast<size_t>(n));
    S* v = scratch.data();
    for (int64_t t = begin; t < end; t++) {
      const S *c = angles.cos(t), *s = angles.sin(t);
      for (int64_t h = 0; h < heads; h++) {
        const T* xt = xp + t * p.x.row_stride() + h * shape.head_stride;
        T* yt = yp + t * p.y.row_stride() + h * n;
        const S rt = S(1) / std::sqrt(dot(xt, xt, n) / static_cast<S>(n) + static_cast<S>(shape.eps));
        rp[t * heads + h] = rt;
        for (int64_t i = 0; i < n; i++) v[i] = widen(xt[i]) * rt * scale[static_cast<size_t>(i)];
        for (int64_t j = 0; j < half; j++) {
          yt[j] = narrow<T>(v[j] * c[j] - v[j + half] * s[j]);
          yt[j + half] = narrow<T>(v[j + half] * c[j] + v[j] * s[j]);
        }
        for (int64_t i = 2 * half; i < n; i++) yt[i] = narrow<T>(v[i]);
      }
    }
  });
}

}  // namespace

void norm_rope(Stream& stream, Tensor y, Tensor r, Tensor x, Tensor w, Tensor positions, const RopeShape& shape) {
  dispatch(x.dtype(), [&]<class T>() {
    const Angles<Acc<T>> angles(stream, positions, shape);
    turn_heads<T>(stream, {y, r, x, w, shape}, angles);
  });
}

void norm_rope_both(Stream& stream, const RopeOf& queries, const RopeOf& keys, Tensor positions) {
  if (queries.shape.rotary_dim != keys.shape.rotary_dim || queries.shape.theta != keys.shape.theta) {
    for (const RopeOf* p : {&queries, &keys}) {
      FURLONG_ISA::norm_rope(stream, p->y, p->r, p->x, p->w, positions, p->shape);
    }
    return;
  }
  dispatch(queries.x.dtype(), [&]<class T>() {
    const Angles<Acc<T>> angles(stream, positions, queries.shape);
    for (const RopeOf* p : {&queries, &keys}) turn_heads<T>(stream, *p, angles);
  });
}

void norm_rope_backward(Stream& stream, Tensor dx, Tensor dw, Tensor dy, Tensor x, Tensor w, Tensor r, Tensor positions,
                        const RopeShape& shape) {
  dispatch(x.dtype(), [&]<class T>() {
    using S = Acc<T>;
    const int64_t n = shape.head_dim, half = shape.rotary_dim / 2, heads = shape.heads, rows = x.rows();
    const auto scale = widened<S>(w, 1);
    const Angles<S> angles(stream, positions, shape);
    const S* rp = r.as<S>();
    const auto x_head = [&](int64_t t, int64_t h) { return x.as<T>() + t * x.row_stride() + h * shape.head_stride; };
    const auto dy_head = [&](int64_t t, int64_t h) { return dy.as<T>() + t * dy.row_stride() + h * n; };
    blocks(stream, rows, 6 * n * heads, [&](int64_t begin, int64_t end) {
      std::vector<S> scratch(static_cast<size_t>(n));
      S* d = scratch.data();
      for (int64_t t = begin; t < end; t++) {
        for (int64_t h = 0; h < heads; h++) {
          const T* xt = x_head(t, h);
          T* dxt = dx.as<T>() + t * dx.row_stride() + h * shape.head_stride;
          const S rt = rp[t * heads + h];
          turn_back(d, dy_head(t, h), angles.cos(t), angles.sin(t), half, n);
          for (int64_t i = 0; i < n; i++) d[i] *= scale[static_cast<size_t>(i)];
          const S mean = dot(d, xt, n) * rt / static_cast<S>(n);
          for (int64_t i = 0; i < n; i++) dxt[i] = narrow<T>(rt * (d[i] - widen(xt[i]) * rt * mean));
        }
      }
    });
    // dw in order of token and head. Two tasks at most: the rotating dims and the others.
    S* dwp = dw.as<S>();
    const auto add = [&](int64_t first, int64_t last, bool rotating) {
      std::vector<S> scratch(static_cast<size_t>(n));
      S* d = scratch.data();
      for (int64_t t = 0; t < rows; t++) {
        for (int64_t h = 0; h < heads; h++) {
          const T *xt = x_head(t, h), *dyt = dy_head(t, h);
          const S rt = rp[t * heads + h];
          if (rotating) {
            turn_back(d, dyt, angles.cos(t), angles.sin(t), half, last);
          } else {
            for (int64_t i = first; i < last; i++) d[i] = widen(dyt[i]);
          }
          for (int64_t i = first; i < last; i++) dwp[i] = mul_add(d[i], widen(xt[i]) * rt, dwp[i]);
        }
      }
    };
    if (rows * heads * n < serial_work || half == 0 || 2 * half == n) {
      add(0, n, true);
    } else {
      stream.threads().parallel(2, [&](int64_t i) { i == 0 ? add(0, 2 * half, true) : add(2 * half, n, false); });
    }
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
