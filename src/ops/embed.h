#pragma once
#include "tensor/stream.h"

namespace furlong {

// x (T,C) = table[tokens];  tokens (T) i32 within [0, rows of table)
void embed(Stream&, Tensor x, Tensor tokens, Tensor table);
// dtable (V,C) f32 += , in token order
void embed_backward(Stream&, Tensor dtable, Tensor dx, Tensor tokens);
// x (T,C)[index[r]] = rows (R,C)[r];  index (R) i32, no two alike
void scatter_rows(Stream&, Tensor x, Tensor rows, Tensor index);

}  // namespace furlong
