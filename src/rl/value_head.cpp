#include "rl/value_head.h"

#include "ops/linear.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

// (T,1), in the arena.
Tensor value_column(Exec& exec, const Weights& w, Tensor hidden) {
  const Tensor values = exec.arena.make("value.values", accumulate_dtype(hidden.dtype()), {hidden.rows(), 1});
  linear(exec.stream, values, hidden, w.lm_head);
  return values;
}

template <class T>
std::vector<double> fetched(Stream& stream, Tensor column) {
  std::vector<T> numbers(static_cast<size_t>(column.rows()));
  copy(stream, Tensor(numbers.data(), column.dtype(), {column.rows(), 1}), column);
  return {numbers.begin(), numbers.end()};
}

std::vector<double> column_numbers(Stream& stream, Tensor column) {
  return column.dtype() == DType::f64 ? fetched<double>(stream, column) : fetched<float>(stream, column);
}

template <class T>
void send(Stream& stream, Tensor column, const std::vector<double>& numbers) {
  std::vector<T> narrow(numbers.begin(), numbers.end());
  copy(stream, column, Tensor(narrow.data(), column.dtype(), {column.rows(), 1}));
}

bool lies_in(Range here, const HeadRow& row) { return here.begin <= row.row && row.row < here.end; }
size_t place_in(Range here, const HeadRow& row) { return static_cast<size_t>(row.row - here.begin); }

}  // namespace

void value_rows(Exec& exec, const Weights& w, Tensor hidden, Range here, std::span<const HeadRow> rows,
                std::span<double> values) {
  const Arena::Scope scope(exec.arena);
  if (hidden.rows() == 0) return;
  const Tensor column = value_column(exec, w, hidden);
  if (exec.stream.is_dry()) return;
  const std::vector<double> found = column_numbers(exec.stream, column);
  for (size_t i = 0; i < rows.size(); i++) {
    if (lies_in(here, rows[i])) values[i] = found[place_in(here, rows[i])];
  }
}

void value_head(Exec& exec, const Weights& w, Tensor hidden, Range here, std::span<const HeadRow> rows,
                const std::function<double(size_t, double)>& d_value, Tensor dhidden, Tensor dhead) {
  const Arena::Scope scope(exec.arena);
  if (hidden.rows() == 0) return;
  const Tensor column = value_column(exec, w, hidden);
  if (!exec.stream.is_dry()) {
    const std::vector<double> found = column_numbers(exec.stream, column);
    std::vector<double> derivatives(found.size(), 0.0);
    for (size_t i = 0; i < rows.size(); i++) {
      if (!lies_in(here, rows[i])) continue;
      const size_t at = place_in(here, rows[i]);
      derivatives[at] = d_value(i, found[at]);
    }
    if (column.dtype() == DType::f64) {
      send<double>(exec.stream, column, derivatives);
    } else {
      send<float>(exec.stream, column, derivatives);
    }
  }
  linear_dw(exec.stream, dhead, column, hidden);
  linear_dx(exec.stream, dhidden, column, w.lm_head, false);
}

}  // namespace furlong
