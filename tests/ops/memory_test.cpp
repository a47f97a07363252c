// Sequences fed piece by piece through a memory, drafts and their rejection included, give the very bits of one pass.
#include <gtest/gtest.h>

#include <numeric>

#include "support.h"

namespace furlong::test {
namespace {

// Rows given at once and how many of them stay; the rest are drafts that turn out wrong.
struct Piece {
  int32_t rows, kept;
  bool speculative;
};

// An op that reads rows and writes rows, with or without memory.
struct Streamed {
  std::vector<std::pair<int64_t, Kind>> inputs;  // width, kind
  int64_t out_width;
  std::function<void(Stream&, const std::vector<Array>& in, const Array& out, const Packed&, const Array& speculative,
                     bool memory)>
      run;
  // The first `after` positions of each sequence are now final, the first `before` were already.
  std::function<void(Stream&, const Array& before, const Array& after)> commit;
};

// Two sequences, so that a step holds segments at different positions.
using Plan = std::vector<Piece>;

Plan decode(Plan plan, const std::vector<int32_t>& kept, int times) {
  for (int i = 0; i < times; i++) plan.push_back({3, kept[static_cast<size_t>(i) % kept.size()], true});
  return plan;
}

const std::vector<std::pair<Plan, Plan>>& plans() {
  static const std::vector<std::pair<Plan, Plan>> all = {
      {decode({{64, 64, false}, {30, 30, false}}, {1, 3, 2}, 40), decode({{5, 5, false}, {1, 1, false}}, {3, 1}, 40)},
      {decode({{130, 130, false}}, {2}, 30), decode({{1, 1, false}}, {1}, 30)},
      {decode({{60, 60, false}, {3, 3, false}}, {3}, 5), decode({{63, 63, false}}, {3, 3, 1}, 5)},
  };
  return all;
}

int32_t kept_rows(const Plan& plan) {
  return std::accumulate(plan.begin(), plan.end(), 0, [](int32_t n, const Piece& p) { return n + p.kept; });
}

void check(const Streamed& op, DType dtype, const std::string& what) {
  ThreadPool threads(2);
  Stream stream(threads);
  Random random(61);
  for (const auto& [first, second] : plans()) {
    const std::vector<Plan> plan{first, second};
    // One pass over each sequence.
    std::vector<std::vector<Values>> input(2);
    std::vector<Array> whole;
    for (size_t s = 0; s < 2; s++) {
      const int32_t rows = kept_rows(plan[s]);
      std::vector<Array> in;
      for (const auto& [width, kind] : op.inputs) {
        // Gates must be negative or within (0, 1); numbers in (-1, 0) serve the former, their square the latter.
        input[s].push_back(kind == Kind::model ? random.normal(rows * width) : random.uniform(rows * width, -1, 0));
        in.emplace_back(dtype_of_kind(kind, dtype), Shape{rows, width}, input[s].back());
      }
      whole.emplace_back(dtype, Shape{rows, op.out_width});
      op.run(stream, in, whole.back(), Packed({rows}), Array::indices({0}), false);
    }
    // The same in pieces.
    std::vector<int32_t> at{0, 0};
    for (size_t step = 0; step < std::min(first.size(), second.size()); step++) {
      const std::vector<int32_t> rows{first[step].rows, second[step].rows};
      const Packed packed(rows, at);
      std::vector<Array> in;
      for (size_t i = 0; i < op.inputs.size(); i++) {
        const auto [width, kind] = op.inputs[i];
        Values values;
        for (size_t s = 0; s < 2; s++) {
          const auto begin = input[s][i].begin() + at[s] * width;
          values.insert(values.end(), begin, begin + plan[s][step].kept * width);
          const Values wrong = random.uniform((rows[s] - plan[s][step].kept) * width, -1, 0);
          values.insert(values.end(), wrong.begin(), wrong.end());
        }
        in.emplace_back(dtype_of_kind(kind, dtype), Shape{packed.rows, width}, values);
      }
      const Array out(dtype, {packed.rows, op.out_width});
      op.run(stream, in, out, packed, Array::indices({first[step].speculative, second[step].speculative}), true);
      std::vector<int32_t> before = at;
      int64_t row = 0;
      for (size_t s = 0; s < 2; s++) {
        const int32_t kept = plan[s][step].kept;
        ASSERT_EQ(bits_of(out.view().rows(row, row + kept)), bits_of(whole[s].view().rows(at[s], at[s] + kept)))
            << what << ", step " << step << ", sequence " << s << " from position " << at[s];
        row += rows[s];
        at[s] += kept;
        if (!plan[s][step].speculative) before[s] = at[s];
      }
      if (op.commit) op.commit(stream, Array::indices(before), Array::indices(at));
    }
  }
}

void for_all(const std::function<Streamed(const OpTable&, DType)>& make) {
  for (const auto* ops : cpu::all_ops()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      check(make(*ops, dtype), dtype, fmt::format("{} {}", ops->isa, name_of(dtype)));
    }
  }
}

constexpr int32_t drafts = 3;

TEST(Memory, Conv) {
  for_all([](const OpTable& ops, DType dtype) {
    const int64_t channels = 37, taps = 4;
    Random random(62);
    const auto w = std::make_shared<Array>(dtype, Shape{channels, 1, taps}, random.normal(channels * taps));
    // What earlier sequences left in the window must not matter.
    const auto window = std::make_shared<Array>(dtype, Shape{3, taps - 1 + drafts, channels},
                                                Values(static_cast<size_t>(3 * (taps - 1 + drafts) * channels), 9.0));
    const auto slots = std::make_shared<Array>(Array::indices({2, 0}));
    return Streamed{{{channels, Kind::model}},
                    channels,
                    [=, &ops](Stream& s, const std::vector<Array>& in, const Array& out, const Packed& packed,
                              const Array& speculative, bool memory) {
                      DeltaSlots where;
                      if (memory) {
                        where.state = *window;  // defined
                        where.window = *window;
                        where.slots = *slots;
                        where.speculative = speculative;
                      }
                      ops.conv_silu(s, out, in[0], *w, packed, where);
                    },
                    {}};
  });
}

TEST(Memory, Attention) {
  for_all([](const OpTable& ops, DType dtype) {
    const AttentionShape shape{4, 2, 16};
    const int64_t q = shape.heads * shape.head_dim, kv = shape.kv_heads * shape.head_dim, page = 16, pages = 40;
    const auto k = std::make_shared<Array>(dtype, Shape{pages, page, kv}),
               v = std::make_shared<Array>(dtype, Shape{pages, page, kv});
    std::vector<int32_t> order;
    for (int32_t i = 0; i < 2 * 18; i++) order.push_back((7 * i + 3) % 36 + 1);
    const auto table = std::make_shared<Array>(Array::indices(order, {2, 18}));
    return Streamed{{{q, Kind::model}, {kv, Kind::model}, {kv, Kind::model}},
                    q,
                    [=, &ops](Stream& s, const std::vector<Array>& in, const Array& out, const Packed& packed,
                              const Array&, bool memory) {
                      const Array lse(DType::f32, {packed.rows, shape.heads});
                      KvPages where;
                      if (memory) where = {*k, *v, *table};
                      ops.attention(s, out, lse, in[0], in[1], in[2], packed, where, shape);
                    },
                    {}};
  });
}

TEST(Memory, DeltaRule) {
  for_all([](const OpTable& ops, DType) {
    const DeltaShape d{2, 4, 8, 12};
    const int64_t in_width = 2 * d.key_heads * d.key_dim + d.value_heads * d.value_dim, ring = delta_chunk + drafts;
    // States start at zero; what is left in the rings must not matter.
    const auto state = std::make_shared<Array>(DType::f32, Shape{3, d.value_heads, d.key_dim, d.value_dim});
    const auto filled = [](const Shape& shape, DType dtype = DType::f32) {
      return std::make_shared<Array>(dtype, shape, Values(static_cast<size_t>(count(shape)), 9.0));
    };
    const auto k = filled({3, ring, d.key_heads, d.key_dim}), u = filled({3, ring, d.value_heads, d.value_dim});
    const auto g = filled({3, ring, d.value_heads}, DType::f64);
    const auto slots = std::make_shared<Array>(Array::indices({2, 0}));
    const auto where = [=](const Tensor& speculative) {
      return DeltaSlots{*state, *k, *u, *g, {}, *slots, speculative};
    };
    const auto run = [=, &ops](Stream& s, const std::vector<Array>& in, const Array& out, const Packed& packed,
                               const Array& speculative, bool memory) {
      if (!memory) state->set(Values(static_cast<size_t>(state->view().numel()), 0.0));  // new sequences
      Values squares = in[2].values();
      for (auto& b : squares) b *= b;
      const Array beta(DType::f32, {packed.rows, d.value_heads}, squares);
      const Array q1(DType::f32, {packed.rows, d.key_heads, d.key_dim}),
          k1(DType::f32, {packed.rows, d.key_heads, d.key_dim});
      const Array q_r(DType::f32, {packed.rows, d.key_heads}), k_r(DType::f32, {packed.rows, d.key_heads});
      const Array u1(DType::f32, {packed.rows, d.value_heads, d.value_dim}),
          gamma(DType::f64, {packed.rows, d.value_heads});
      const DeltaSaved saved{q1, k1, q_r, k_r, u1, gamma, {}};
      ops.delta_rule(s, out, in[0], in[1], beta, {}, {}, packed, memory ? where(speculative) : DeltaSlots(), saved, d);
    };
    return Streamed{{{in_width, Kind::model}, {d.value_heads, Kind::sum}, {d.value_heads, Kind::sum}},
                    d.value_heads * d.value_dim,
                    run,
                    [=, &ops](Stream& s, const Array& before, const Array& after) {
                      const DeltaSlots memory = where({});
                      ops.delta_commit(s, {memory}, memory.slots, before, after, d);
                    }};
  });
}

// Sequences packed together give the bits they give alone.
TEST(Memory, PackingDoesNotChangeBits) {
  ThreadPool threads(2);
  Stream stream(threads);
  Random random(63);
  const std::vector<int32_t> lengths{65, 1, 130, 40};
  const Packed packed(lengths);
  const int64_t channels = 40;
  const AttentionShape shape{2, 1, 20};
  for (const auto* ops : cpu::all_ops()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Array x(dtype, {packed.rows, channels}, random.normal(packed.rows * channels)),
          w(dtype, {channels, 1, 4}, random.normal(4 * channels));
      const Array k(dtype, {packed.rows, 20}, random.normal(packed.rows * 20)),
          v(dtype, {packed.rows, 20}, random.normal(packed.rows * 20));
      const Array conv(dtype, {packed.rows, channels}), o(dtype, {packed.rows, channels}),
          lse(DType::f32, {packed.rows, 2});
      ops->conv_silu(stream, conv, x, w, packed, {});
      ops->attention(stream, o, lse, x, k, v, packed, {}, shape);
      int64_t at = 0;
      for (const int32_t n : lengths) {
        const Packed alone({n});
        const Array y(dtype, {n, channels}), one(dtype, {n, channels}), one_lse(DType::f32, {n, 2});
        ops->conv_silu(stream, y, x.view().rows(at, at + n), w, alone, {});
        ops->attention(stream, one, one_lse, x.view().rows(at, at + n), k.view().rows(at, at + n),
                       v.view().rows(at, at + n), alone, {}, shape);
        EXPECT_EQ(y.bits(), bits_of(conv.view().rows(at, at + n)));
        EXPECT_EQ(one.bits(), bits_of(o.view().rows(at, at + n)));
        at += n;
      }
    }
  }
}

}  // namespace
}  // namespace furlong::test
