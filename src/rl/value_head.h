// A critic's head: one number per row, the product of its hidden state with the only row of Weights::lm_head
// (ModelConfig::value_head). Nothing is gathered: each rank computes the rows that lie on it (rows_here).
#pragma once
#include <functional>
#include <span>

#include "rl/loss_head.h"

namespace furlong {

// values (as long as rows) of the rows in `here`; the others stay as they are. hidden (T,H) has the rows `here`.
void value_rows(Exec&, const Weights&, Tensor hidden, Range here, std::span<const HeadRow> rows,
                std::span<double> values);

// Asks `d_value` for the derivative of the loss by each of these values and back-propagates: dhidden (T,H) is
// overwritten, dhead (1,H) f32 +=.
void value_head(Exec&, const Weights&, Tensor hidden, Range here, std::span<const HeadRow> rows,
                const std::function<double(size_t row, double value)>& d_value, Tensor dhidden, Tensor dhead);

}  // namespace furlong
