#include "ops/embed.h"

#include "ops/front.h"

namespace furlong {
namespace {

// The size of the vocabulary that the rows of the table are a part of.
int64_t check_part(const char* op, const Tensor& table, int64_t first, int64_t vocabulary) {
  if (vocabulary < 0) vocabulary = table.rows();
  CHECK(first >= 0 && first + table.rows() <= vocabulary, "{}: rows {} to {} of a vocabulary of {}", op, first,
        first + table.rows(), vocabulary);
  return vocabulary;
}

}  // namespace

void embed(Stream& stream, Tensor x, Tensor tokens, Tensor table, int64_t first, int64_t vocabulary) {
  front::expect(x.rank() == 2 && table.rank() == 2 && x.dim(1) == table.dim(1) && tokens.numel() == x.rows() &&
                    tokens.dtype() == DType::i32 && x.dtype() == table.dtype(),
                "embed", "x (T,C), tokens (T) i32, table (V,C) wanted", {x, tokens, table});
  if (front::skip(stream, x)) return;
  front::body(table).embed(stream, x, tokens, table, first, check_part("embed", table, first, vocabulary));
}

void embed_backward(Stream& stream, Tensor dtable, Tensor dx, Tensor tokens, int64_t first, int64_t vocabulary) {
  front::expect(dx.rank() == 2 && dtable.rank() == 2 && dx.dim(1) == dtable.dim(1) && tokens.numel() == dx.rows() &&
                    tokens.dtype() == DType::i32 && dtable.dtype() == front::acc(dx.dtype()),
                "embed_backward", "dtable (V,C) in fp32, dx (T,C), tokens (T) i32 wanted", {dtable, dx, tokens});
  if (front::skip(stream, dx)) return;
  front::body(dx).embed_backward(stream, dtable, dx, tokens, first,
                                 check_part("embed_backward", dtable, first, vocabulary));
}

void scatter_rows(Stream& stream, Tensor x, Tensor rows, Tensor index) {
  front::expect(x.rank() == 2 && rows.rank() == 2 && x.dim(1) == rows.dim(1) && index.numel() == rows.rows() &&
                    index.dtype() == DType::i32 && x.dtype() == rows.dtype(),
                "scatter_rows", "x (T,C), rows (R,C), index (R) i32 wanted", {x, rows, index});
  if (front::skip(stream, rows)) return;
  front::body(x).scatter_rows(stream, x, rows, index);
}

}  // namespace furlong
