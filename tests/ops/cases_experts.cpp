#include <algorithm>
#include <limits>

#include "cases.h"

namespace furlong::test {
namespace {

OpCase linear_case(int64_t rows, int64_t k, int64_t n, bool wide, int64_t pad) {
  Random random(11);
  OpCase c{fmt::format("linear {}x{}x{}{}", rows, k, n, wide ? " to fp32" : "")};
  if (wide) c.inner_roundings = 1;  // a gradient kept in fp32 is rounded for the tensor cores
  const Kind kind = wide ? Kind::sum : Kind::model;
  const int x = c.in("x", {rows, k}, random.normal(rows * k));
  const int w = c.in("w", {n, k}, random.normal(n * k, 0.3));
  const int dy = c.in("dy", {rows, n}, random.normal(rows * n), kind);
  const int y = c.out("y", {rows, n}, k, kind);
  const int dx = c.out("dx", {rows, k}, n);
  const int dx_sum = c.inout("dx +=", {rows, k}, random.normal(rows * k), n);
  const int dw = c.inout("dw", {n, k}, random.normal(n * k), rows, Kind::sum);
  for (const int i : {x, dy, y, dx}) c.operands[static_cast<size_t>(i)].pad = pad;
  for (const int i : {x, dy, y, dx, dx_sum}) c.operands[static_cast<size_t>(i)].by_row = true;
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    ops.linear(stream, t[y], t[x], t[w]);
    ops.linear_dx(stream, t[dx], t[dy], t[w], false);
    ops.linear_dx(stream, t[dx_sum], t[dy], t[w], true);
    ops.linear_dw(stream, t[dw], t[dy], t[x]);
  };
  return c;
}

// Several products of the same rows, the second into a part of wider ones.
OpCase linear_many_case(int64_t rows, int64_t k, const std::vector<int64_t>& widths) {
  Random random(16);
  OpCase c{fmt::format("linear_many {}x{}x{}", rows, k, fmt::join(widths, "|"))};
  const int x = c.in("x", {rows, k}, random.normal(rows * k));
  c.operands[static_cast<size_t>(x)].by_row = true;
  std::vector<int> w, y;
  for (const int64_t n : widths) {
    w.push_back(c.in(fmt::format("w{}", w.size()), {n, k}, random.normal(n * k, 0.3)));
    y.push_back(c.out(fmt::format("y{}", y.size()), {rows, n}, k, y.size() % 2 == 0 ? Kind::sum : Kind::model));
    c.operands[static_cast<size_t>(y.back())].by_row = true;
    c.operands[static_cast<size_t>(y.back())].pad = y.size() == 2 ? 3 : 0;
  }
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    const auto part = [&](size_t i) { return LinearOf{t[static_cast<size_t>(y[i])], t[static_cast<size_t>(w[i])]}; };
    if (w.size() == 2) ops.linear_many(stream, t[x], {part(0), part(1)});
    if (w.size() == 4) ops.linear_many(stream, t[x], {part(0), part(1), part(2), part(3)});
    if (w.size() == 6) ops.linear_many(stream, t[x], {part(0), part(1), part(2), part(3), part(4), part(5)});
  };
  return c;
}

// spare: rows of no expert after the last one's, not numbers on entry and left as they are.
OpCase grouped_case(const std::vector<int32_t>& rows_of, int64_t k, int64_t n, int64_t spare = 0) {
  Random random(12);
  const Packed packed(rows_of);
  const int64_t experts = static_cast<int64_t>(rows_of.size()), rows = packed.rows + spare;
  const int64_t most = *std::max_element(rows_of.begin(), rows_of.end());
  const auto filled = [&](int64_t columns, Values values) {
    std::fill(values.end() - spare * columns, values.end(), std::numeric_limits<double>::quiet_NaN());
    return values;
  };
  OpCase c{fmt::format("grouped_linear {} rows, {} experts, {}x{}", rows, experts, k, n)};
  if (spare > 0) c.name += fmt::format(", {} rows to spare", spare);
  const int offsets = c.in("offsets", {experts + 1}, packed.starts.values(), Kind::index);
  const int x = c.in("x", {rows, k}, filled(k, random.normal(rows * k)));
  const int w = c.in("w", {experts, n, k}, random.normal(experts * n * k, 0.3));
  const int dy = c.in("dy", {rows, n}, filled(n, random.normal(rows * n)));
  const int y = c.inout("y", {rows, n}, Values(static_cast<size_t>(rows * n), 1), k);
  const int dx = c.inout("dx", {rows, k}, Values(static_cast<size_t>(rows * k), 1), n);
  const int dw = c.inout("dw", {experts, n, k}, random.normal(experts * n * k), most, Kind::sum);
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    ops.grouped_linear(stream, t[y], t[x], t[w], t[offsets]);
    ops.grouped_linear_dx(stream, t[dx], t[dy], t[w], t[offsets]);
    ops.grouped_linear_dw(stream, t[dw], t[dy], t[x], t[offsets]);
  };
  return c;
}

OpCase route_case(int64_t rows, int64_t experts, int64_t k) {
  Random random(13);
  OpCase c{fmt::format("route {} rows to {} of {}", rows, k, experts)};
  Values l = random.normal(rows * experts, 2);
  for (size_t i = 0; i + 1 < l.size(); i += 5) l[i + 1] = l[i];  // ties
  const int logits = c.in("logits", {rows, experts}, l, Kind::sum);
  const int dweights = c.in("dweights", {rows, k}, random.normal(rows * k), Kind::sum);
  const int ids = c.out("ids", {rows, k}, 0, Kind::index), weights = c.out("weights", {rows, k}, k, Kind::sum);
  const int offsets = c.out("offsets", {experts + 1}, 0, Kind::index),
            row_of = c.out("row_of", {rows, k}, 0, Kind::index);
  const int token_of = c.out("token_of", {rows * k}, 0, Kind::index);
  const int dlogits = c.out("dlogits", {rows, experts}, k, Kind::sum);
  for (const int i : {logits, dweights, ids, weights, dlogits}) c.operands[static_cast<size_t>(i)].by_row = true;
  c.operands[static_cast<size_t>(row_of)].by_row = c.operands[static_cast<size_t>(token_of)].by_row = false;
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    const Routing routing{t[ids], t[weights], t[offsets], t[row_of], t[token_of]};
    ops.route(stream, routing, t[logits]);
    if (t[logits].rows() == t[row_of].rows()) ops.sort_by_expert(stream, routing, 0, experts);
    ops.route_backward(stream, t[dlogits], t[dweights], routing);
  };
  return c;
}

// ids: k experts of each token.
OpCase move_case(const std::string& what, const std::vector<int32_t>& chosen, int64_t experts, int64_t k,
                 int64_t columns) {
  Random random(14);
  const int64_t rows = static_cast<int64_t>(chosen.size()) / k;
  OpCase c{fmt::format("moe rows, {}: {} tokens, {} of {}, {} wide", what, rows, k, experts, columns)};
  const int ids = c.index("ids", {rows, k}, chosen);
  const int weights = c.in("weights", {rows, k}, random.uniform(rows * k, 0, 1), Kind::sum);
  const int x = c.in("x", {rows, columns}, random.normal(rows * columns));
  const int a = c.in("a", {rows * k, columns}, random.normal(rows * k * columns));
  const int da = c.in("da", {rows * k, columns}, random.normal(rows * k * columns));
  const int shared = c.in("shared", {rows, columns}, random.normal(rows * columns));
  const int logit = c.in("shared_logit", {rows, 1}, random.normal(rows, 2));
  const int offsets = c.out("offsets", {experts + 1}, 0, Kind::index),
            row_of = c.out("row_of", {rows, k}, 0, Kind::index);
  const int token_of = c.out("token_of", {rows * k}, 0, Kind::index);
  const int gathered = c.out("rows", {rows * k, columns}, 1), y = c.out("y", {rows, columns}, k + 1);
  const int dx = c.inout("dx", {rows, columns}, random.normal(rows * columns), k + 1);
  const int dshared = c.out("dshared", {rows, columns}, 1), dlogit = c.out("dshared_logit", {rows, 1}, columns);
  const int dweights = c.out("dweights", {rows, k}, columns, Kind::sum);
  const int scaled = c.inout("scaled", {rows * k, columns}, random.normal(rows * k * columns), 1);
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    const Routing routing{t[ids], t[weights], t[offsets], t[row_of], t[token_of]};
    ops.sort_by_expert(stream, routing, 0, experts);
    ops.gather_rows(stream, t[gathered], t[x], routing);
    ops.combine(stream, t[y], t[a], t[shared], t[logit], {}, routing);
    ops.gather_rows_backward(stream, t[dx], t[da], routing);
    ops.combine_backward(stream, t[dshared], t[dlogit], t[x], t[shared], t[logit]);
    ops.routing_weight_gradient(stream, t[dweights], t[da], t[a], routing);
    ops.scale_rows(stream, t[scaled], routing);
  };
  return c;
}

OpCase ranks_case(int64_t tokens, int64_t ranks) {
  OpCase c{fmt::format("route to ranks: {} tokens, {} ranks", tokens, ranks)};
  const int row_of = c.out("row_of", {tokens, ranks}, 0, Kind::index);
  const int weights = c.out("weights", {tokens, ranks}, 0, Kind::sum);
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    ops.route_to_ranks(stream, t[row_of], t[weights]);
  };
  return c;
}

// ids: k of all experts of each token, of which `here` from `first` on are here. There are rows for as many choices as
// tokens can make of these; a token's sum has no shared part.
OpCase move_part_case(const std::vector<int32_t>& chosen, int64_t all, int64_t first, int64_t here, int64_t k,
                      int64_t columns) {
  Random random(17);
  const int64_t tokens = static_cast<int64_t>(chosen.size()) / k, rows = tokens * std::min(k, here);
  OpCase c{fmt::format("moe rows of experts {} to {} of {}: {} tokens, {} each, {} wide", first, first + here, all,
                       tokens, k, columns)};
  const int ids = c.index("ids", {tokens, k}, chosen);
  const int weights = c.in("weights", {tokens, k}, random.uniform(tokens * k, 0, 1), Kind::sum);
  const int x = c.in("x", {tokens, columns}, random.normal(tokens * columns));
  const int a = c.in("a", {rows, columns}, random.normal(rows * columns));
  const int da = c.in("da", {rows, columns}, random.normal(rows * columns));
  const int offsets = c.out("offsets", {here + 1}, 0, Kind::index);
  const int row_of = c.out("row_of", {tokens, k}, 0, Kind::index);
  const int token_of = c.out("token_of", {rows}, 0, Kind::index);
  const int gathered = c.inout("rows", {rows, columns}, random.normal(rows * columns), 1);
  const int y = c.out("y", {tokens, columns}, k);
  const int dx = c.inout("dx", {tokens, columns}, random.normal(tokens * columns), k + 1);
  const int dweights = c.out("dweights", {tokens, k}, columns, Kind::sum);
  const int scaled = c.inout("scaled", {rows, columns}, random.normal(rows * columns), 1);
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    const Routing routing{t[ids], t[weights], t[offsets], t[row_of], t[token_of]};
    ops.sort_by_expert(stream, routing, first, all);
    ops.gather_rows(stream, t[gathered], t[x], routing);
    ops.combine(stream, t[y], t[a], {}, {}, {}, routing);
    ops.gather_rows_backward(stream, t[dx], t[da], routing);
    ops.routing_weight_gradient(stream, t[dweights], t[da], t[a], routing);
    ops.scale_rows(stream, t[scaled], routing);
  };
  return c;
}

// k different experts for each of so many tokens.
std::vector<int32_t> choices(int64_t tokens, int64_t k, int64_t experts) {
  Random random(18);
  std::vector<int32_t> out;
  for (int64_t t = 0; t < tokens; t++) {
    const auto start = static_cast<int64_t>(random.uniform(0, static_cast<double>(experts)));
    for (int64_t c = 0; c < k; c++) out.push_back(static_cast<int32_t>((start + c * (experts / k)) % experts));
  }
  return out;
}

}  // namespace

std::vector<OpCase> expert_cases() {
  std::vector<OpCase> cases;
  for (const bool wide : {false, true}) {
    cases.push_back(linear_case(1, 1, 1, wide, 0));
    cases.push_back(linear_case(1, 65, 33, wide, 0));
    cases.push_back(linear_case(7, 19, 5, wide, 3));
    cases.push_back(linear_case(130, 64, 63, wide, 0));
    cases.push_back(linear_case(65, 600, 130, wide, 1));
    // Products by parts of rows, steps of the transpose a page apart, in two chunks of panels.
    cases.push_back(linear_case(131, 70, 1539, wide, 1));
    cases.push_back(linear_case(800, 257, 65, wide, 0));
  }
  // One launch for few rows on a GPU; too many rows, too many products or odd depths go one by one.
  for (const int64_t rows : {1, 3, 17, 64, 70}) cases.push_back(linear_many_case(rows, 320, {130, 1, 33, 16}));
  cases.push_back(linear_many_case(5, 72, {1, 5000}));
  cases.push_back(linear_many_case(4, 19, {7, 1}));
  cases.push_back(linear_many_case(2, 64, {8, 1, 3, 40, 1, 9}));
  cases.push_back(ranks_case(1, 1));
  cases.push_back(ranks_case(130, 8));
  cases.push_back(grouped_case({3, 0, 5, 1}, 17, 9));
  cases.push_back(grouped_case({0, 70, 0}, 64, 33));
  cases.push_back(grouped_case({64, 1, 65, 0, 40}, 33, 65));
  // Shapes of the tensor cores: few rows to an expert, then many; more columns than tiles and stages have.
  cases.push_back(grouped_case({1, 0, 8, 17, 33, 0, 129, 2, 64, 0}, 320, 192));
  cases.push_back(grouped_case({0, 1, 129, 0, 300, 64, 2, 0}, 192, 320));
  cases.push_back(grouped_case({0, 0, 600, 0, 0}, 64, 64));
  cases.push_back(grouped_case({200, 90, 30, 225}, 448, 128));
  cases.push_back(grouped_case({1100, 37}, 320, 192));
  cases.push_back(grouped_case({3, 0, 5, 1}, 17, 9, 8));
  cases.push_back(grouped_case({200, 90, 30, 225}, 448, 128, 130));
  cases.push_back(grouped_case({1, 0, 8, 17, 33, 0, 129, 2, 64, 0}, 320, 192, 77));
  cases.push_back(grouped_case({1100, 37}, 320, 192, 600));
  std::vector<int32_t> spread;
  for (int32_t e = 0; e < 130; e++) spread.push_back(e % 7 == 0 ? 0 : e * e % 11);
  cases.push_back(grouped_case(spread, 128, 64));
  spread[70] = 5000;
  cases.push_back(grouped_case(spread, 64, 128));
  cases.push_back(route_case(1, 1, 1));
  cases.push_back(route_case(3, 5, 5));
  cases.push_back(route_case(130, 8, 2));
  cases.push_back(route_case(301, 130, 8));
  cases.push_back(move_case("spread", {0, 2, 1, 0, 2, 1, 0, 1, 1, 2}, 4, 2, 17));
  cases.push_back(move_case("all to one", std::vector<int32_t>(9, 3), 5, 1, 33));
  Random random(15);
  std::vector<int32_t> many;
  for (int i = 0; i < 130; i++) {
    for (const int32_t e : {0, 1, 2}) many.push_back(static_cast<int32_t>(random.uniform(0, 3)) * 3 + e);
  }
  cases.push_back(move_case("wide", many, 10, 3, 300));
  cases.push_back(move_part_case({0, 2, 1, 0, 2, 1, 0, 1, 1, 2}, 4, 1, 2, 2, 17));
  cases.push_back(move_part_case({0, 2, 1, 0, 2, 1, 0, 1, 1, 2}, 4, 3, 1, 2, 32));  // nothing to do
  cases.push_back(move_part_case(choices(130, 8, 16), 16, 8, 8, 8, 64));
  cases.push_back(move_part_case(choices(700, 8, 128), 128, 96, 32, 8, 300));
  cases.push_back(move_part_case(choices(1300, 10, 40), 40, 0, 4, 10, 8));
  return cases;
}

}  // namespace furlong::test
