#include "ops/cpu/rows.h"

namespace furlong::cpu::FURLONG_ISA {
namespace {

void check_tokens(const Tensor& tokens, int64_t vocabulary) {
  const int32_t* id = tokens.as<int32_t>();
  for (int64_t t = 0; t < tokens.rows(); t++) {
    CHECK(id[t] >= 0 && id[t] < vocabulary, "token {} at row {} of a table of {} rows", id[t], t, vocabulary);
  }
}

}  // namespace

void embed(Stream& stream, Tensor x, Tensor tokens, Tensor table, int64_t first, int64_t vocabulary) {
  check_tokens(tokens, vocabulary);
  dispatch(table.dtype(), [&]<class T>() {
    const int64_t n = x.dim(1);
    const int32_t* id = tokens.as<int32_t>();
    T* out = x.as<T>();
    const T* in = table.as<T>();
    blocks(stream, x.rows(), n, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; t++) {
        const int64_t row = id[t] - first;
        if (row >= 0 && row < table.rows()) {
          std::copy_n(in + row * table.row_stride(), n, out + t * x.row_stride());
        } else {
          std::fill_n(out + t * x.row_stride(), n, T(0));
        }
      }
    });
  });
}

void embed_backward(Stream& stream, Tensor dtable, Tensor dx, Tensor tokens, int64_t first, int64_t vocabulary) {
  check_tokens(tokens, vocabulary);
  dispatch(dx.dtype(), [&]<class T>() {
    const int32_t* id = tokens.as<int32_t>();
    const T* in = dx.as<T>();
    Acc<T>* out = dtable.as<Acc<T>>();
    column_blocks(stream, dx.dim(1), dx.rows(), [&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < dx.rows(); t++) {
        if (id[t] < first || id[t] >= first + dtable.rows()) continue;
        const T* d = in + t * dx.row_stride();
        Acc<T>* row = out + (id[t] - first) * dtable.row_stride();
        for (int64_t i = begin; i < end; i++) row[i] += widen(d[i]);
      }
    });
  });
}

void scatter_rows(Stream& stream, Tensor x, Tensor rows, Tensor index) {
  check_tokens(index, x.rows());
  dispatch(x.dtype(), [&]<class T>() {
    const int64_t n = x.dim(1);
    const int32_t* at = index.as<int32_t>();
    blocks(stream, rows.rows(), n, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; r++) {
        std::copy_n(rows.as<T>() + r * rows.row_stride(), n, x.as<T>() + at[r] * x.row_stride());
      }
    });
  });
}

}  // namespace furlong::cpu::FURLONG_ISA
