#include "cases.h"

namespace furlong::test {
namespace {

struct Size {
  int64_t rows, columns, pad;
};

// One row, one column, no multiple of a vector, and enough work for several threads.
const std::vector<Size> sizes = {{1, 1, 0}, {3, 17, 0}, {1, 300, 0}, {5, 64, 3}, {67, 130, 0}, {301, 300, 5}};

void by_row(OpCase& c, std::initializer_list<int> operands) {
  for (const int i : operands) c.operands[static_cast<size_t>(i)].by_row = true;
}

// The size of the terms of dx of a norm: dy · weight / rms, at the row where 1/rms is largest.
double norm_terms(const Size& s, const Values& x, const Values& dy, double weight) {
  double most = 0;
  for (int64_t t = 0; t < s.rows; t++) {
    const Values row(x.begin() + t * s.columns, x.begin() + (t + 1) * s.columns);
    most = std::max(most, 1 / std::sqrt(inner(row, row) / static_cast<double>(s.columns)));
  }
  return most * largest(dy) * weight;
}

OpCase norm(const Size& s) {
  Random random(1);
  OpCase c{fmt::format("rms_norm {}x{}", s.rows, s.columns)};
  const int x = c.in("x", {s.rows, s.columns}, random.normal(s.rows * s.columns, 2));
  const int w = c.in("w", {s.columns}, random.normal(s.columns, 0.3));
  const int dy = c.in("dy", {s.rows, s.columns}, random.normal(s.rows * s.columns));
  const int y = c.out("y", {s.rows, s.columns}, s.columns), r = c.out("r", {s.rows}, s.columns, Kind::sum);
  const int dx = c.inout("dx", {s.rows, s.columns}, random.normal(s.rows * s.columns), s.columns);
  const int dw = c.inout("dw", {s.columns}, random.normal(s.columns), s.rows + s.columns, Kind::sum);
  for (const int i : {x, dy, y, dx}) c.operands[static_cast<size_t>(i)].pad = s.pad;
  by_row(c, {x, dy, y, r, dx});
  c.operands[static_cast<size_t>(dx)].summands =
      norm_terms(s, c.operands[static_cast<size_t>(x)].values, c.operands[static_cast<size_t>(dy)].values,
                 1 + largest(c.operands[static_cast<size_t>(w)].values));
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    ops.rms_norm(stream, t[y], t[r], t[x], t[w], 1e-6);
    ops.rms_norm_backward(stream, t[dx], t[dw], t[dy], t[x], t[w], t[r]);
  };
  return c;
}

OpCase gated_norm(const Size& s) {
  Random random(2);
  const int64_t n = s.rows * s.columns;
  OpCase c{fmt::format("gated_rms_norm {}x{}", s.rows, s.columns)};
  const int o = c.in("o", {s.rows, s.columns}, random.normal(n, 0.5));
  const int z = c.in("z", {s.rows, s.columns}, random.normal(n, 3));
  const int w = c.in("w", {s.columns}, random.uniform(s.columns, 0.5, 1.5));
  const int dy = c.in("dy", {s.rows, s.columns}, random.normal(n));
  const int y = c.out("y", {s.rows, s.columns}, s.columns), r = c.out("r", {s.rows}, s.columns, Kind::sum);
  const int do_ = c.out("do", {s.rows, s.columns}, s.columns), dz = c.out("dz", {s.rows, s.columns}, s.columns);
  const int dw = c.inout("dw", {s.columns}, random.normal(s.columns), s.rows + s.columns, Kind::sum);
  for (const int i : {o, z, dy, y, do_, dz}) c.operands[static_cast<size_t>(i)].pad = s.pad;
  by_row(c, {o, z, dy, y, r, do_, dz});
  c.operands[static_cast<size_t>(do_)].summands = norm_terms(
      s, c.operands[static_cast<size_t>(o)].values, c.operands[static_cast<size_t>(dy)].values,
      largest(c.operands[static_cast<size_t>(w)].values) * largest(c.operands[static_cast<size_t>(z)].values));
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    ops.gated_rms_norm(stream, t[y], t[r], t[o], t[z], t[w], 1e-6);
    ops.gated_rms_norm_backward(stream, t[do_], t[dz], t[dw], t[dy], t[o], t[z], t[w], t[r]);
  };
  return c;
}

OpCase rope(int64_t rows, int64_t heads, int64_t head_dim, int64_t rotary_dim, bool gated, int32_t first) {
  Random random(3);
  const int64_t stride = gated ? 2 * head_dim : head_dim;
  RopeShape shape{heads, head_dim, stride, rotary_dim};
  OpCase c{fmt::format("norm_rope {} rows, {} heads of {}, {} rotating{}", rows, heads, head_dim, rotary_dim,
                       gated ? ", gated" : "")};
  std::vector<int32_t> at;
  for (int64_t t = 0; t < rows; t++) at.push_back(first + static_cast<int32_t>(t));
  const int x = c.in("x", {rows, heads * stride}, random.normal(rows * heads * stride));
  const int w = c.in("w", {head_dim}, random.normal(head_dim, 0.3));
  const int positions = c.index("positions", {rows}, at);
  const int dy = c.in("dy", {rows, heads * head_dim}, random.normal(rows * heads * head_dim));
  const int y = c.out("y", {rows, heads * head_dim}, head_dim), r = c.out("r", {rows, heads}, head_dim, Kind::sum);
  const int dx = c.out("dx", {rows, heads * stride}, head_dim);
  const int dw = c.inout("dw", {head_dim}, random.normal(head_dim), rows * heads + head_dim, Kind::sum);
  by_row(c, {x, positions, dy, y, r, dx});
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    ops.norm_rope(stream, t[y], t[r], t[x], t[w], t[positions], shape);
    ops.norm_rope_backward(stream, t[dx], t[dw], t[dy], t[x], t[w], t[r], t[positions], shape);
  };
  return c;
}

OpCase swiglu_case(const Size& s) {
  Random random(4);
  OpCase c{fmt::format("swiglu {}x{}", s.rows, s.columns)};
  const int in = c.in("gate_up", {s.rows, 2 * s.columns}, random.normal(2 * s.rows * s.columns, 3));
  const int dy = c.in("dy", {s.rows, s.columns}, random.normal(s.rows * s.columns));
  const int y = c.out("y", {s.rows, s.columns}, 1), din = c.out("dgate_up", {s.rows, 2 * s.columns}, 1);
  for (const int i : {in, dy, y, din}) c.operands[static_cast<size_t>(i)].pad = s.pad;
  by_row(c, {in, dy, y, din});
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    ops.swiglu(stream, t[y], t[in]);
    ops.swiglu_backward(stream, t[din], t[dy], t[in]);
  };
  return c;
}

// The table is `entries` rows of a vocabulary of 11, from row `first` on.
OpCase embed_case(const Size& s, int64_t first = 0, int64_t entries = 11) {
  Random random(5);
  const int64_t vocabulary = 11;
  OpCase c{fmt::format("embed {}x{} from {} of {}", s.rows, s.columns, entries, vocabulary)};
  const int tokens = c.index("tokens", {s.rows}, random.integers(s.rows, vocabulary));
  const int table = c.in("table", {entries, s.columns}, random.normal(entries * s.columns));
  const int dx = c.in("dx", {s.rows, s.columns}, random.normal(s.rows * s.columns));
  const int x = c.out("x", {s.rows, s.columns}, 1);
  const int dtable = c.inout("dtable", {entries, s.columns}, random.normal(entries * s.columns), s.rows, Kind::sum);
  for (const int i : {dx, x}) c.operands[static_cast<size_t>(i)].pad = s.pad;
  by_row(c, {tokens, dx, x});
  // Every other row of a larger tensor, last first.
  std::vector<int32_t> places;
  for (int64_t t = 0; t < s.rows; t++) places.push_back(static_cast<int32_t>(2 * (s.rows - 1 - t)));
  const int index = c.index("index", {s.rows}, places);
  const int spread = c.inout("spread", {2 * s.rows, s.columns}, random.normal(2 * s.rows * s.columns), 1);
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    ops.embed(stream, t[x], t[tokens], t[table], first, vocabulary);
    ops.embed_backward(stream, t[dtable], t[dx], t[tokens], first, vocabulary);
    if (t[dx].rows() == t[index].rows()) ops.scatter_rows(stream, t[spread], t[dx], t[index]);
  };
  return c;
}

// part: every other target is not among the logits.
OpCase log_prob_case(int64_t rows, int64_t vocabulary, double temperature, bool entropy, double spread,
                     bool part = false) {
  Random random(6);
  OpCase c{fmt::format("log_prob {}x{} at {}{}", rows, vocabulary, temperature, entropy ? " with entropy" : "")};
  if (part) c.name += ", of a part of the vocabulary";
  const Values l = random.normal(rows * vocabulary, spread);
  const int in = c.in("logits", {rows, vocabulary}, l, Kind::sum);
  std::vector<int32_t> at = random.integers(rows, static_cast<int32_t>(vocabulary));
  for (size_t i = 0; part && i < at.size(); i += 2) at[i] = -1;
  const int targets = c.index("targets", {rows}, at);
  const int d = c.in("d_log_prob", {rows}, random.normal(rows), Kind::sum);
  const int de = c.in("d_entropy", {rows}, random.normal(rows), Kind::sum);
  // A log-probability is a difference of numbers as large as the logits.
  const int64_t terms = vocabulary + static_cast<int64_t>(largest(l) / temperature);
  const int lp = c.out("log_prob", {rows}, terms, Kind::sum), lse = c.out("lse", {rows}, terms, Kind::sum);
  const int h = c.out("entropy", {rows}, terms, Kind::sum);
  const int grad = c.inout("dlogits", {rows, vocabulary}, l, terms, Kind::sum);
  by_row(c, {in, targets, d, de, lp, lse, h, grad});
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    ops.log_prob(stream, t[lp], t[lse], entropy ? t[h] : Tensor(), t[in], t[targets], temperature);
    ops.log_prob_backward(stream, t[grad], t[d], entropy ? t[de] : Tensor(), t[lse], entropy ? t[h] : Tensor(),
                          t[targets], temperature);
  };
  return c;
}

OpCase elementwise(const Size& s) {
  Random random(7);
  OpCase c{fmt::format("add, convert and scale {}x{}", s.rows, s.columns)};
  const int64_t n = s.rows * s.columns;
  const int x = c.in("x", {s.rows, s.columns}, random.normal(n));
  const int wide = c.in("wide", {s.rows, s.columns}, random.normal(n), Kind::sum);
  const int y = c.inout("y", {s.rows, s.columns}, random.normal(n), 1);
  const int y_wide = c.inout("y_wide", {s.rows, s.columns}, random.normal(n), 1, Kind::sum);
  const int scaled = c.inout("scaled", {s.rows, s.columns}, random.normal(n), 1);
  const int down = c.out("down", {s.rows, s.columns}, 1), up = c.out("up", {s.rows, s.columns}, 1, Kind::sum);
  for (const int i : {x, y, scaled, down}) c.operands[static_cast<size_t>(i)].pad = s.pad;
  by_row(c, {x, wide, y, y_wide, scaled, down, up});
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    ops.add(stream, t[y], t[x]);
    ops.add(stream, t[y_wide], t[x]);
    ops.scale(stream, t[scaled], 0.3);
    ops.convert(stream, t[down], t[wide]);
    ops.convert(stream, t[up], t[x]);
  };
  return c;
}

OpCase adamw_case(int64_t n, int64_t step) {
  Random random(8);
  OpCase c{fmt::format("adamw {} step {}", n, step)};
  const AdamParams params{1e-2, 0.9, 0.98, 1e-8, 0.1, 0.7, step};
  const int grad = c.in("grad", {n}, random.normal(n), Kind::sum);
  const int master = c.inout("master", {n}, random.normal(n), 8, Kind::sum);
  const int m = c.inout("m", {n}, random.normal(n, 0.1), 4, Kind::sum);
  const int v = c.inout("v", {n}, random.uniform(n, 0.01, 0.2), 4, Kind::sum);
  const int weight = c.out("weight", {n}, 8);
  const int alone = c.inout("master of itself", {n}, random.normal(n), 8, Kind::sum);
  const int m2 = c.inout("m of it", {n}, random.normal(n, 0.1), 4, Kind::sum);
  const int v2 = c.inout("v of it", {n}, random.uniform(n, 0.01, 0.2), 4, Kind::sum);
  c.run = [=](const OpTable& ops, Stream& stream, const std::vector<Tensor>& t) {
    ops.adamw(stream, t[weight], t[master], t[m], t[v], t[grad], params);
    ops.adamw(stream, t[alone], t[alone], t[m2], t[v2], t[grad], params);
  };
  return c;
}

}  // namespace

std::vector<OpCase> row_cases() {
  std::vector<OpCase> cases;
  for (const auto& s : sizes) {
    cases.push_back(norm(s));
    cases.push_back(gated_norm(s));
    cases.push_back(swiglu_case(s));
    cases.push_back(embed_case(s));
    cases.push_back(embed_case(s, 4, 5));
    cases.push_back(embed_case(s, 8, 3));
    cases.push_back(elementwise(s));
  }
  cases.push_back(rope(1, 1, 2, 2, false, 0));
  cases.push_back(rope(7, 3, 17, 6, true, 0));
  cases.push_back(rope(5, 2, 16, 16, false, 100));
  cases.push_back(rope(9, 2, 16, 0, true, 3));
  cases.push_back(rope(70, 4, 64, 16, true, 0));
  cases.push_back(log_prob_case(1, 1, 1, true, 1));
  cases.push_back(log_prob_case(3, 7, 0.5, true, 3));
  cases.push_back(log_prob_case(3, 7, 0.5, true, 3, true));
  cases.push_back(log_prob_case(40, 20000, 1.3, true, 2, true));
  cases.push_back(log_prob_case(5, 130, 1, false, 10));
  cases.push_back(log_prob_case(2, 20000, 1.3, true, 4));
  cases.push_back(log_prob_case(40, 513, 1, true, 2));
  for (const int64_t n : {1, 31, 20000}) cases.push_back(adamw_case(n, n));
  return cases;
}

std::vector<OpCase> all_cases() {
  auto cases = row_cases();
  for (auto& c : expert_cases()) cases.push_back(std::move(c));
  for (auto& c : sequence_cases()) cases.push_back(std::move(c));
  return cases;
}

}  // namespace furlong::test
