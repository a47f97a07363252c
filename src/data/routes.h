// The experts that a sequence's rows were sampled with: ids and gate weights, layer by layer.
#pragma once
#include <cstdint>
#include <memory>
#include <vector>

namespace furlong {

// Rows one after another, each with the choices of all layers in order.
struct RouteRows {
  int64_t width = 0;  // choices of a row: layers x experts of a token
  std::vector<uint16_t> ids;
  std::vector<float> weights;
  int64_t rows() const { return width == 0 ? 0 : static_cast<int64_t>(ids.size()) / width; }
  bool operator==(const RouteRows&) const = default;
};

// Of a prompt, recorded once for all of its samples, and of a response. The last token of a sequence is never run.
struct Routes {
  std::shared_ptr<const RouteRows> prompt;
  RouteRows response;
  int64_t rows() const { return prompt->rows() + response.rows(); }
  // The `width` choices of a row.
  const uint16_t* ids(int64_t row) const { return of(row).ids.data() + at(row); }
  const float* weights(int64_t row) const { return of(row).weights.data() + at(row); }

 private:
  const RouteRows& of(int64_t row) const { return row < prompt->rows() ? *prompt : response; }
  int64_t at(int64_t row) const { return (row < prompt->rows() ? row : row - prompt->rows()) * of(row).width; }
};

}  // namespace furlong
