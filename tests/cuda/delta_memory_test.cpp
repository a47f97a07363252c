// The delta rule fed piece by piece through slots, drafts and their rejection included, gives the result of one pass.
#include <gtest/gtest.h>

#include <numeric>

#include "../ops/tolerance.h"
#include "device_array.h"

namespace furlong::test {
namespace {

// Rows given at once and how many of them stay; the rest are drafts that turn out wrong.
struct Piece {
  int32_t rows, kept;
  bool speculative;
};
using Plan = std::vector<Piece>;

constexpr int64_t drafts = 3;

Plan decode(Plan plan, const std::vector<int32_t>& kept, int times) {
  for (int i = 0; i < times; i++) plan.push_back({3, kept[static_cast<size_t>(i) % kept.size()], true});
  return plan;
}

// Two sequences each, so that a step holds segments at different positions.
std::vector<std::pair<Plan, Plan>> plans() {
  return {
      {decode({{64, 64, false}, {30, 30, false}}, {1, 3, 2}, 40), decode({{5, 5, false}, {1, 1, false}}, {3, 1}, 40)},
      {decode({{130, 130, false}}, {2}, 30), decode({{1, 1, false}}, {1}, 30)},
      {decode({{60, 60, false}, {3, 3, false}}, {3}, 5), decode({{63, 63, false}}, {3, 3, 1}, 5)},
      {{{50, 50, false}, {100, 100, false}, {1, 1, false}, {1, 1, false}},
       {{62, 62, false}, {1, 1, false}, {1, 1, false}, {1, 1, false}}},
  };
}

// A layer's memory on the device: slot 1 and 2 serve the two sequences; what is left in the rings must not matter.
struct Memory {
  DeltaShape d;
  DType rings;
  Array state, k, u, g, slots, beta;
  std::vector<DeviceArray> device;

  Memory(Stream& stream, const DeltaShape& shape, DType dtype)
      : d(shape),
        rings(delta_rings(Device::cuda, dtype, shape)),
        state(DType::f32, {3, d.value_heads, d.key_dim, d.value_dim}),
        k(filled(rings, {3, delta_chunk + drafts, d.key_heads, d.key_dim})),
        u(filled(rings, {3, delta_chunk + drafts, d.value_heads, d.value_dim})),
        g(filled(DType::f64, {3, delta_chunk + drafts, d.value_heads})),
        slots(Array::indices({2, 1})),
        beta(filled(DType::f32, {3, delta_chunk + drafts, d.value_heads})) {
    for (const Array* a : {&state, &k, &u, &g, &slots, &beta}) device.emplace_back(stream, *a);
  }
  static Array filled(DType dtype, const Shape& shape) {
    return {dtype, shape, Values(static_cast<size_t>(count(shape)), 9.0)};
  }
  DeltaSlots view(const Tensor& speculative) const {
    return {device[0], device[1], device[2], device[3], {}, device[4], speculative, device[5]};
  }
};

// The inputs of one call and what it writes.
struct Call {
  Array x, g, beta, o, q, k, q_r, k_r, u, gamma;
  Call(DType dtype, const DeltaShape& d, int64_t rows, const Values& xs, const Values& gs, const Values& betas)
      : x(dtype, {rows, 2 * d.key_heads * d.key_dim + d.value_heads * d.value_dim}, xs),
        g(DType::f32, {rows, d.value_heads}, gs),
        beta(DType::f32, {rows, d.value_heads}, betas),
        o(dtype, {rows, d.value_heads * d.value_dim}),
        q(DType::f32, {rows, d.key_heads, d.key_dim}),
        k(DType::f32, {rows, d.key_heads, d.key_dim}),
        q_r(DType::f32, {rows, d.key_heads}),
        k_r(DType::f32, {rows, d.key_heads}),
        u(DType::f32, {rows, d.value_heads, d.value_dim}),
        gamma(DType::f64, {rows, d.value_heads}) {}

  Values run(Stream& stream, const DeltaShape& d, const Packed& packed, const Memory* memory,
             const Array* speculative) {
    std::vector<DeviceArray> t;
    for (const Array* a : std::initializer_list<const Array*>{&x, &g, &beta, &o, &q, &k, &q_r, &k_r, &u, &gamma,
                                                              &packed.starts, &packed.positions}) {
      t.emplace_back(stream, *a);
    }
    if (speculative != nullptr) t.emplace_back(stream, *speculative);
    const DeltaSaved saved{t[4], t[5], t[6], t[7], t[8], t[9], {}};
    cuda::ops().delta_rule(stream, t[3], t[0], t[1], t[2], {}, {}, {t[10], t[11]},
                           memory != nullptr ? memory->view(t.back()) : DeltaSlots(), saved, d);
    t[3].fetch(stream);
    return o.values();
  }
};

void commit(Stream& stream, const Memory& memory, const std::vector<int32_t>& before,
            const std::vector<int32_t>& after) {
  const Array a = Array::indices(before), b = Array::indices(after);
  const DeviceArray da(stream, a), db(stream, b);
  const DeltaSlots view = memory.view({});
  cuda::ops().delta_commit(stream, {view}, view.slots, da, db, memory.d);
  stream.synchronize();
}

Values part_of(const Values& v, int64_t width, int64_t begin, int64_t rows) {
  return {v.begin() + begin * width, v.begin() + (begin + rows) * width};
}

void check(const DeltaShape& d, DType dtype, double strongest) {
  ThreadPool threads(2);
  Stream stream(threads, Device::cuda);
  Random random(71);
  const int64_t in = 2 * d.key_heads * d.key_dim + d.value_heads * d.value_dim, heads = d.value_heads;
  const int64_t out = heads * d.value_dim;
  for (const auto& [first, second] : plans()) {
    const std::vector<Plan> plan{first, second};
    std::vector<Values> x, g, beta, whole;
    for (const auto& p : plan) {
      const auto rows = std::accumulate(p.begin(), p.end(), 0, [](int32_t n, const Piece& q) { return n + q.kept; });
      x.push_back(random.normal(rows * in));
      g.push_back(random.uniform(rows * heads, strongest, -1e-3));
      beta.push_back(random.uniform(rows * heads, 0, 1));
      whole.push_back(
          Call(dtype, d, rows, x.back(), g.back(), beta.back()).run(stream, d, Packed({rows}), nullptr, nullptr));
    }
    const Memory memory(stream, d, dtype);
    std::vector<int32_t> at{0, 0};
    for (size_t step = 0; step < std::min(first.size(), second.size()); step++) {
      const std::vector<int32_t> rows{first[step].rows, second[step].rows};
      const Packed packed(rows, at);
      Values xs, gs, betas;
      for (size_t s = 0; s < 2; s++) {
        const int32_t kept = plan[s][step].kept, wrong = rows[s] - kept;
        const auto add = [&](Values& to, const Values& from, int64_t width, const Values& rest) {
          const Values own = part_of(from, width, at[s], kept);
          to.insert(to.end(), own.begin(), own.end());
          to.insert(to.end(), rest.begin(), rest.end());
        };
        add(xs, x[s], in, random.normal(wrong * in));
        add(gs, g[s], heads, random.uniform(wrong * heads, -1, 0));
        add(betas, beta[s], heads, random.uniform(wrong * heads, 0, 1));
      }
      const Array speculative = Array::indices({first[step].speculative, second[step].speculative});
      const Values got = Call(dtype, d, packed.rows, xs, gs, betas).run(stream, d, packed, &memory, &speculative);
      std::vector<int32_t> before = at;
      int64_t row = 0;
      for (size_t s = 0; s < 2; s++) {
        const int32_t kept = plan[s][step].kept;
        const Values a = part_of(whole[s], out, at[s], kept), b = part_of(got, out, row, kept);
        const double size = largest(whole[s]);
        // Sums of a chunk and a head's width in fp32. On tensor cores a row is solved by the arithmetic of its chunk:
        // the same bits.
        const double bound = memory.rings == DType::bf16 ? 0
                             : dtype == DType::bf16      ? 8 * 0.5 * epsilon(dtype) * size
                                                         : tolerance(dtype, dtype, delta_chunk + d.key_dim, size, size);
        for (size_t i = 0; i < a.size(); i++) {
          ASSERT_NEAR(a[i], b[i], bound) << name_of(dtype) << ", step " << step << ", sequence " << s
                                         << " from position " << at[s] << ", entry " << i;
        }
        row += rows[s];
        at[s] += kept;
        if (!plan[s][step].speculative) before[s] = at[s];
      }
      commit(stream, memory, before, at);
    }
  }
}

TEST(CudaDeltaMemory, PiecesEqualOnePass) {
  cuda::open();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const double strongest : {-0.02, -1.0}) {
      check({2, 4, 8, 12}, dtype, strongest);
      check({2, 4, 128, 128}, dtype, strongest);
      check({2, 6, 128, 128}, dtype, strongest);
      check({2, 2, 128, 128}, dtype, strongest);
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace furlong::test
