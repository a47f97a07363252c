#include "cases.h"

namespace furlong::test {
namespace {

using Run = decltype(OpCase::run);

Fused fused(OpCase c, Run together, Run apart) {
  c.run = std::move(together);
  return {std::move(c), std::move(apart)};
}

Fused add_norm(int64_t rows, int64_t columns, int64_t pad) {
  Random random(31);
  const int64_t n = rows * columns;
  OpCase c{fmt::format("add_rms_norm {}x{}", rows, columns)};
  const int d = c.in("d", {rows, columns}, random.normal(n)), w = c.in("w", {columns}, random.normal(columns, 0.3));
  const int x = c.inout("x", {rows, columns}, random.normal(n, 2), 1);
  const int y = c.out("y", {rows, columns}, columns), r = c.out("r", {rows}, columns, Kind::sum);
  for (const int i : {d, x, y}) c.operands[static_cast<size_t>(i)].pad = pad;
  return fused(
      c,
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.add_rms_norm(stream, t[y], t[r], t[x], t[d], t[w], 1e-6);
      },
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.add(stream, t[x], t[d]);
        ops.rms_norm(stream, t[y], t[r], t[x], t[w], 1e-6);
      });
}

Fused products(int64_t rows, int64_t k, const std::vector<int64_t>& widths) {
  Random random(32);
  OpCase c{fmt::format("linear_many {} by {} to {}", rows, k, fmt::join(widths, ", "))};
  const int x = c.in("x", {rows, k}, random.normal(rows * k));
  std::vector<int> w, y;
  for (const int64_t n : widths) {
    w.push_back(c.in("w", {n, k}, random.normal(n * k, 0.3)));
    y.push_back(c.out("y", {rows, n}, k, y.size() % 2 == 0 ? Kind::sum : Kind::model));
  }
  return fused(
      c,
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        const auto part = [&](size_t i) {
          return LinearOf{t[static_cast<size_t>(y[i])], t[static_cast<size_t>(w[i])]};
        };
        ops.linear_many(stream, t[x], {part(0), part(1), part(2), part(3)});
      },
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        for (size_t i = 0; i < w.size(); i++) {
          ops.linear(stream, t[static_cast<size_t>(y[i])], t[x], t[static_cast<size_t>(w[i])]);
        }
      });
}

Fused products_swiglu(int64_t rows, int64_t k, int64_t f, int64_t other) {
  Random random(33);
  OpCase c{fmt::format("linear_swiglu {} by {} to {} beside {}", rows, k, f, other)};
  const int x = c.in("x", {rows, k}, random.normal(rows * k));
  const int gate = c.in("w gate", {f, k}, random.normal(f * k, 0.3)),
            up = c.in("w up", {f, k}, random.normal(f * k, 0.3));
  const int w = c.in("w", {other, k}, random.normal(other * k, 0.3)), w1 = c.in("w1", {1, k}, random.normal(k, 0.3));
  const int both = c.out("gate_up", {rows, 2 * f}, k), act = c.out("y", {rows, f}, k);
  const int y = c.out("other", {rows, other}, k, Kind::sum), y1 = c.out("one", {rows, 1}, k, Kind::sum);
  return fused(
      c,
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.linear_swiglu(stream, t[act], t[both], t[x], t[gate], t[up], {{t[y], t[w]}, {t[y1], t[w1]}});
      },
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.linear(stream, t[both].columns(0, f), t[x], t[gate]);
        ops.linear(stream, t[both].columns(f, 2 * f), t[x], t[up]);
        ops.swiglu(stream, t[act], t[both]);
        ops.linear(stream, t[y], t[x], t[w]);
        ops.linear(stream, t[y1], t[x], t[w1]);
      });
}

Fused experts_swiglu(const std::vector<int32_t>& rows_of, int64_t k, int64_t f) {
  Random random(34);
  const Packed packed(rows_of);
  const int64_t experts = static_cast<int64_t>(rows_of.size()), rows = packed.rows;
  OpCase c{fmt::format("grouped_swiglu {} rows, {} experts, {} to {}", rows, experts, k, f)};
  const int offsets = c.in("offsets", {experts + 1}, packed.starts.values(), Kind::index);
  const int x = c.in("x", {rows, k}, random.normal(rows * k));
  const int w = c.in("w", {experts, 2 * f, k}, random.normal(experts * 2 * f * k, 0.3));
  const int both = c.out("gate_up", {rows, 2 * f}, k), y = c.out("y", {rows, f}, k);
  return fused(
      c,
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.grouped_swiglu(stream, t[y], t[both], t[x], t[w], t[offsets]);
      },
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.grouped_linear(stream, t[both], t[x], t[w], t[offsets]);
        ops.swiglu(stream, t[y], t[both]);
      });
}

Fused routed(int64_t rows, int64_t experts, int64_t k, int64_t columns) {
  Random random(35);
  OpCase c{fmt::format("route_rows {} tokens, {} of {}, {} wide", rows, k, experts, columns)};
  Values l = random.normal(rows * experts, 2);
  for (size_t i = 0; i + 1 < l.size(); i += 5) l[i + 1] = l[i];  // ties
  const int logits = c.in("logits", {rows, experts}, l, Kind::sum);
  const int x = c.in("x", {rows, columns}, random.normal(rows * columns));
  const int ids = c.out("ids", {rows, k}, 0, Kind::index), weights = c.out("weights", {rows, k}, k, Kind::sum);
  const int offsets = c.out("offsets", {experts + 1}, 0, Kind::index),
            row_of = c.out("row_of", {rows, k}, 0, Kind::index);
  const int token_of = c.out("token_of", {rows * k}, 0, Kind::index), to = c.out("rows", {rows * k, columns}, 1);
  return fused(
      c,
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        ops.route_rows(stream, {t[ids], t[weights], t[offsets], t[row_of], t[token_of]}, t[to], t[x], t[logits]);
      },
      [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
        const Routing routing{t[ids], t[weights], t[offsets], t[row_of], t[token_of]};
        ops.route(stream, routing, t[logits]);
        ops.sort_by_expert(stream, routing, 0, experts);
        ops.gather_rows(stream, t[to], t[x], routing);
      });
}

Fused combined(int64_t rows, int64_t experts, int64_t k, int64_t columns) {
  Random random(36);
  OpCase c{fmt::format("combine with residual {} tokens, {} of {}, {} wide", rows, k, experts, columns)};
  const int logits = c.in("logits", {rows, experts}, random.normal(rows * experts, 2), Kind::sum);
  const int a = c.in("a", {rows * k, columns}, random.normal(rows * k * columns));
  const int shared = c.in("shared", {rows, columns}, random.normal(rows * columns));
  const int residual = c.in("residual", {rows, columns}, random.normal(rows * columns));
  const int logit = c.in("shared_logit", {rows, 1}, random.normal(rows, 2), Kind::sum);
  const int ids = c.out("ids", {rows, k}, 0, Kind::index), weights = c.out("weights", {rows, k}, k, Kind::sum);
  const int offsets = c.out("offsets", {experts + 1}, 0, Kind::index),
            row_of = c.out("row_of", {rows, k}, 0, Kind::index);
  const int token_of = c.out("token_of", {rows * k}, 0, Kind::index), y = c.out("y", {rows, columns}, k + 2);
  const auto run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t, bool together) {
    const Routing routing{t[ids], t[weights], t[offsets], t[row_of], t[token_of]};
    ops.route(stream, routing, t[logits]);
    ops.sort_by_expert(stream, routing, 0, experts);
    ops.combine(stream, t[y], t[a], t[shared], t[logit], together ? t[residual] : Tensor(), routing);
    if (!together) ops.add(stream, t[y], t[residual]);
  };
  return fused(
      c, [=](const OpTable& o, Stream& s, const std::vector<Tensor>& t) { run(o, s, t, true); },
      [=](const OpTable& o, Stream& s, const std::vector<Tensor>& t) { run(o, s, t, false); });
}

}  // namespace

std::vector<Fused> fused_cases() {
  std::vector<Fused> cases;
  for (const int64_t rows : {1, 5, 67}) {
    cases.push_back(add_norm(rows, 33, 0));
    cases.push_back(add_norm(rows, 128, 8));
    cases.push_back(add_norm(rows, 600, 3));
    cases.push_back(add_norm(rows, 2048, 0));
    cases.push_back(products(rows, 320, {130, 1, 33, 16}));
    cases.push_back(products(rows, 17, {3, 1, 7, 20}));
    cases.push_back(products_swiglu(rows, 320, 72, 130));
    cases.push_back(products_swiglu(rows, 64, 1, 9));
    cases.push_back(products_swiglu(rows, 19, 8, 5));
  }
  // As many as the strips of a device of many multiprocessors, and more.
  cases.push_back(products(1, 128, {5000, 1, 2600, 32}));
  cases.push_back(products_swiglu(3, 128, 2500, 256));
  cases.push_back(experts_swiglu({1, 0, 8, 17, 33, 0, 129, 2, 64, 0}, 320, 96));
  cases.push_back(experts_swiglu({0, 1, 1, 0, 1, 2}, 64, 512));
  cases.push_back(experts_swiglu({5, 0, 40, 7}, 33, 19));
  cases.push_back(experts_swiglu({300, 0, 70}, 128, 64));
  cases.push_back(routed(1, 256, 8, 64));
  cases.push_back(routed(8, 256, 8, 128));
  cases.push_back(routed(5, 300, 8, 64));
  cases.push_back(routed(3, 5, 5, 17));
  cases.push_back(routed(40, 64, 4, 64));
  cases.push_back(combined(1, 256, 8, 64));
  cases.push_back(combined(37, 20, 3, 19));
  cases.push_back(combined(5, 64, 8, 600));
  return cases;
}

}  // namespace furlong::test
