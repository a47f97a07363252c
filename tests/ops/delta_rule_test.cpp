// The chunked delta rule against its plain recurrence in float64 and against recorded reference outputs.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>

#include "base/file.h"
#include "base/json.h"
#include "support.h"

namespace furlong::test {
namespace {

// What a run of the delta rule needs beside its inputs, in one dtype.
struct Memory {
  Array q, k, q_r, k_r, u, gamma, states;
  Memory(DType sum, int64_t rows, int64_t chunks, const DeltaShape& d)
      : q(sum, {rows, d.key_heads, d.key_dim}),
        k(sum, {rows, d.key_heads, d.key_dim}),
        q_r(sum, {rows, d.key_heads}),
        k_r(sum, {rows, d.key_heads}),
        u(sum, {rows, d.value_heads, d.value_dim}),
        gamma(DType::f64, {rows, d.value_heads}),
        states(sum, {chunks, d.value_heads, d.key_dim, d.value_dim}) {}
  operator DeltaSaved() const { return {q, k, q_r, k_r, u, gamma, states}; }
};

Values normalised(const double* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  Values out(x, x + n);
  for (auto& v : out) v /= std::sqrt(sum + 1e-6);
  return out;
}

// One value head of one sequence: S <- e^g S; u = beta (v - Sᵀk); S <- S + k uᵀ; o = Sᵀ q / sqrt(Dk).
void recurrence(int64_t rows, const DeltaShape& d, int64_t head, const double* x, const double* g, const double* beta,
                double* state, double* o) {
  const int64_t width = 2 * d.key_heads * d.key_dim + d.value_heads * d.value_dim;
  const int64_t key_head = head / (d.value_heads / d.key_heads);
  for (int64_t t = 0; t < rows; t++) {
    const double* row = x + t * width;
    const Values q = normalised(row + key_head * d.key_dim, d.key_dim);
    const Values k = normalised(row + (d.key_heads + key_head) * d.key_dim, d.key_dim);
    const double* v = row + 2 * d.key_heads * d.key_dim + head * d.value_dim;
    const double decay = std::exp(g[t * d.value_heads + head]);
    for (int64_t c = 0; c < d.value_dim; c++) {
      double read = 0;
      for (int64_t i = 0; i < d.key_dim; i++) read += (state[i * d.value_dim + c] *= decay) * k[static_cast<size_t>(i)];
      const double u = beta[t * d.value_heads + head] * (v[c] - read);
      double out = 0;
      for (int64_t i = 0; i < d.key_dim; i++) {
        state[i * d.value_dim + c] += k[static_cast<size_t>(i)] * u;
        out += state[i * d.value_dim + c] * q[static_cast<size_t>(i)];
      }
      o[(t * d.value_heads + head) * d.value_dim + c] = out / std::sqrt(static_cast<double>(d.key_dim));
    }
  }
}

void expect_near(const Values& got, const Values& wanted, double bound, const std::string& what) {
  ASSERT_EQ(got.size(), wanted.size()) << what;
  for (size_t i = 0; i < got.size(); i++) {
    ASSERT_NEAR(got[i], wanted[i], bound * std::max(1.0, std::abs(wanted[i]))) << what << " entry " << i;
  }
}

TEST(DeltaRule, EqualsTheRecurrence) {
  ThreadPool threads(2);
  Stream stream(threads);
  Random random(51);
  const std::vector<std::vector<int32_t>> packings = {{1}, {63, 2}, {64, 65}, {130, 1, 40}, {200}};
  for (const auto& lengths : packings) {
    for (const DeltaShape d : {DeltaShape{1, 1, 1, 1}, DeltaShape{2, 6, 5, 9}, DeltaShape{3, 3, 8, 4}}) {
      for (const double strongest : {1e-3, 1.0, 30.0}) {
        const Packed packed(lengths);
        const int64_t rows = packed.rows, out = d.value_heads * d.value_dim, in = 2 * d.key_heads * d.key_dim + out;
        const Shape state_shape{static_cast<int64_t>(lengths.size()), d.value_heads, d.key_dim, d.value_dim};
        const Values x = random.normal(rows * in), beta = random.uniform(rows * d.value_heads, 0, 1);
        const Values g = random.uniform(rows * d.value_heads, -strongest, -1e-4);
        Values state = random.normal(count(state_shape)), o(static_cast<size_t>(rows * out));
        const Array xa(DType::f64, {rows, in}, x), ga(DType::f64, {rows, d.value_heads}, g);
        const Array ba(DType::f64, {rows, d.value_heads}, beta), before(DType::f64, state_shape, state);
        const Array after(DType::f64, state_shape), oa(DType::f64, {rows, out});
        delta_rule(stream, oa, xa, ga, ba, before, after, packed, {}, Memory(DType::f64, rows, delta_chunks(packed), d),
                   d);
        int64_t start = 0;
        for (size_t s = 0; s < lengths.size(); s++) {
          for (int64_t h = 0; h < d.value_heads; h++) {
            recurrence(lengths[s], d, h, x.data() + start * in, g.data() + start * d.value_heads,
                       beta.data() + start * d.value_heads,
                       state.data() + (static_cast<int64_t>(s) * d.value_heads + h) * d.key_dim * d.value_dim,
                       o.data() + start * out);
          }
          start += lengths[s];
        }
        // Rounding of the cumulative decay, which reaches 64 times the strongest, and of sums over the sequence.
        const double bound = 1e-15 * (64 * strongest + static_cast<double>(rows)) * 16;
        const std::string what = fmt::format("{} rows, {}x{}, decay to {}", rows, d.key_dim, d.value_dim, strongest);
        expect_near(oa.values(), o, bound, what + ", o");
        expect_near(after.values(), state, bound, what + ", state");
      }
    }
  }
}

// A safetensors file of F32 tensors: an 8-byte header length, a JSON header, the numbers.
struct Golden {
  Json header;
  std::string bytes;

  explicit Golden(const std::string& path) : bytes(read_file(path)) {
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof length);
    header = parse_json(std::string_view(bytes).substr(8, length), path);
    bytes = bytes.substr(8 + length);
  }
  bool has(const std::string& name) const { return header.contains(name); }
  Shape shape(const std::string& name) const { return header.at(name).at("shape").get<Shape>(); }
  Values values(const std::string& name) const {
    const auto offsets = header.at(name).at("data_offsets").get<std::vector<size_t>>();
    std::vector<float> numbers((offsets[1] - offsets[0]) / sizeof(float));
    std::memcpy(numbers.data(), bytes.data() + offsets[0], offsets[1] - offsets[0]);
    return Values(numbers.begin(), numbers.end());
  }
};

// [q | k | v] of each row.
Values joined(const Values& q, const Values& k, const Values& v, int64_t rows) {
  Values out;
  for (int64_t t = 0; t < rows; t++) {
    for (const Values* part : {&q, &k, &v}) {
      const int64_t width = static_cast<int64_t>(part->size()) / rows;
      out.insert(out.end(), part->begin() + t * width, part->begin() + (t + 1) * width);
    }
  }
  return out;
}

TEST(DeltaRule, EqualsTheReference) {
  const Golden golden(FURLONG_TEST_DATA "/goldens/golden_gated_delta_rule.safetensors");
  ThreadPool threads(2);
  Stream stream(threads);
  int cases = 0;
  for (; golden.has(fmt::format("case{}.q", cases)); cases++) {
    const auto value = [&](const char* name) { return golden.values(fmt::format("case{}.{}", cases, name)); };
    const Shape qs = golden.shape(fmt::format("case{}.q", cases)), vs = golden.shape(fmt::format("case{}.v", cases));
    const DeltaShape d{qs[1], vs[1], qs[2], vs[2]};
    const int64_t rows = qs[0];
    const Packed packed({static_cast<int32_t>(rows)});
    const Values x = joined(value("q"), value("k"), value("v"), rows);
    const Values dx = joined(value("dq"), value("dk"), value("dv"), rows);
    const Shape in{rows, static_cast<int64_t>(x.size()) / rows}, gates{rows, d.value_heads};
    const Shape out{rows, d.value_heads * d.value_dim}, state{1, d.value_heads, d.key_dim, d.value_dim};
    const bool from_state = golden.has(fmt::format("case{}.state0", cases));
    for (const auto* ops : cpu::all_ops()) {
      const Array xa(DType::f32, in, x), ga(DType::f32, gates, value("g")), ba(DType::f32, gates, value("beta"));
      const Array s0(DType::f32, state, from_state ? value("state0") : Values()), s1(DType::f32, state),
          o(DType::f32, out);
      const Array dout(DType::f32, out, value("dout")), ds1(DType::f32, state, value("dstate")), ds0(DType::f32, state);
      const Array dxa(DType::f32, in), dga(DType::f32, gates), dba(DType::f32, gates);
      const Memory memory(DType::f32, rows, delta_chunks(packed), d);
      ops->delta_rule(stream, o, xa, ga, ba, from_state ? s0.view() : Tensor(), s1, packed, {}, memory, d);
      ops->delta_rule_backward(stream, dxa, dga, dba, from_state ? ds0.view() : Tensor(), dout, ds1, xa, ga, ba, packed,
                               memory, d);
      const auto check = [&](const Array& got, const Values& wanted, const char* name) {
        expect_near(got.values(), wanted, 1e-5, fmt::format("case {}, {}, {}", cases, ops->isa, name));
      };
      check(o, value("out"), "out");
      check(s1, value("state"), "state");
      check(dxa, dx, "dq, dk, dv");
      check(dga, value("dg"), "dg");
      check(dba, value("dbeta"), "dbeta");
      if (from_state) check(ds0, value("dstate0"), "dstate0");
    }
  }
  EXPECT_EQ(cases, 9);
}

}  // namespace
}  // namespace furlong::test
