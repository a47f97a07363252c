#pragma once
#include "tensor/stream.h"

namespace furlong {

// x (T,C) = table[tokens - first], zeros for tokens that are not in the table;  tokens (T) i32 within [0, vocabulary),
// of which the table has [first, first + rows of table). vocabulary -1: the table is all there is.
void embed(Stream&, Tensor x, Tensor tokens, Tensor table, int64_t first = 0, int64_t vocabulary = -1);
// dtable (V,C) f32 += of the tokens that are in it, in token order
void embed_backward(Stream&, Tensor dtable, Tensor dx, Tensor tokens, int64_t first = 0, int64_t vocabulary = -1);
// x (T,C)[index[r]] = rows (R,C)[r];  index (R) i32, no two alike
void scatter_rows(Stream&, Tensor x, Tensor rows, Tensor index);

}  // namespace furlong
