// Attention fed piece by piece through pages, drafts and their rejection and shared pages included, gives what one pass
// over the whole sequences gives.
#include <gtest/gtest.h>

#include "../ops/support.h"
#include "../ops/tolerance.h"
#include "device_array.h"

namespace furlong::test {
namespace {

// Rows given at once to each sequence, and how many of them stay; the rest are drafts that turn out wrong.
struct Step {
  std::vector<int32_t> rows, kept;
};

constexpr int64_t page = 32, table_width = 200, pool = 2 * table_width;
constexpr int32_t shared_pages = 2, fork_at = shared_pages * static_cast<int32_t>(page);

// Sequence 0 fills the shared pages in the first step; sequence 1 then goes on from them.
std::vector<Step> many_steps() {
  std::vector<Step> steps{{{fork_at, 0}, {fork_at, 0}}, {{100, 1}, {100, 1}}, {{3, 200}, {1, 200}}};
  for (int i = 0; i < 25; i++) {
    steps.push_back({{3, 1 + i % 3}, {1 + i % 3, 1}});
    steps.push_back({{2, 3}, {1, 1 + (i + 1) % 3}});
  }
  steps.push_back({{70, 9}, {70, 9}});
  steps.push_back({{1, 8}, {1, 8}});
  steps.push_back({{90, 150}, {90, 150}});
  steps.push_back({{3, 3}, {3, 3}});
  return steps;
}

// Long enough for parts of more than one size.
std::vector<Step> long_memory() {
  return {{{fork_at, 0}, {fork_at, 0}}, {{5000, 4031}, {5000, 4031}}, {{3, 3}, {2, 3}}, {{1, 8}, {1, 8}}};
}

class Sequences {
 public:
  Sequences(const AttentionShape& shape, DType dtype, ThreadPool& threads, const std::vector<Step>& steps)
      : shape_(shape), dtype_(dtype), stream_(threads, Device::cuda), steps_(steps), random_(71) {
    int32_t total[2] = {0, fork_at};
    for (const Step& s : steps) {
      for (int i = 0; i < 2; i++) total[i] += s.kept[static_cast<size_t>(i)];
    }
    for (const int i : {0, 1}) {
      Sequence& s = sequences_[i];
      s.rows = total[i];
      s.q = random_.normal(s.rows * queries());
      s.k = random_.normal(s.rows * keys());
      s.v = random_.normal(s.rows * keys());
      if (i == 1) {
        std::copy_n(sequences_[0].k.begin(), fork_at * keys(), s.k.begin());
        std::copy_n(sequences_[0].v.begin(), fork_at * keys(), s.v.begin());
      }
      run(s.q, s.k, s.v, Packed({s.rows}), nullptr, s.o, s.lse);
    }
  }

  // exact: to the bit.
  void check(bool exact = false) {
    std::vector<int32_t> order;
    for (int32_t i = 0; i < 2 * table_width; i++) {
      const auto slot = static_cast<int32_t>(i % table_width);
      order.push_back(slot < shared_pages ? slot + 1 : (7 * i + 3) % (pool - 10) + shared_pages + 1);
    }
    const Array k(dtype_, {pool, page, keys()}, Values(static_cast<size_t>(pool * page * keys()), 5.0)),
        v(dtype_, {pool, page, keys()}, Values(static_cast<size_t>(pool * page * keys()), 5.0)),
        table = Array::indices(order, {2, table_width});
    const DeviceArray pages_k(stream_, k), pages_v(stream_, v), device_table(stream_, table);
    const KvPages pages{pages_k, pages_v, device_table, exact};
    std::vector<int32_t> at{0, 0};
    for (const Step& step : steps_) {
      Values q, keys_in, values_in, o, lse;
      for (size_t s = 0; s < 2; s++) {
        append(q, sequences_[s].q, at[s], step.kept[s], step.rows[s], queries());
        append(keys_in, sequences_[s].k, at[s], step.kept[s], step.rows[s], keys());
        append(values_in, sequences_[s].v, at[s], step.kept[s], step.rows[s], keys());
      }
      run(q, keys_in, values_in, Packed(step.rows, at), &pages, o, lse);
      int32_t row = 0;
      for (size_t s = 0; s < 2; s++) {
        compare("o", o, sequences_[s].o, row, at[s], step.kept[s], queries(), dtype_, exact);
        compare("lse", lse, sequences_[s].lse, row, at[s], step.kept[s], shape_.heads, DType::f32, exact);
        if (::testing::Test::HasFailure()) return;
        row += step.rows[s];
        at[s] += step.kept[s];
      }
      if (at[1] == 0) at[1] = fork_at;
    }
  }

 private:
  struct Sequence {
    int32_t rows;
    Values q, k, v, o, lse;  // o and lse of one pass
  };
  int64_t queries() const { return shape_.heads * shape_.head_dim; }
  int64_t keys() const { return shape_.kv_heads * shape_.head_dim; }

  void append(Values& to, const Values& from, int32_t at, int32_t kept, int32_t rows, int64_t width) {
    to.insert(to.end(), from.begin() + at * width, from.begin() + (at + kept) * width);
    const Values wrong = random_.normal((rows - kept) * width);
    to.insert(to.end(), wrong.begin(), wrong.end());
  }

  void run(const Values& q, const Values& k, const Values& v, const Packed& packed, const KvPages* pages, Values& o,
           Values& lse) {
    const auto array = [&](const Values& values, int64_t width) { return Array(dtype_, {packed.rows, width}, values); };
    const Array hq = array(q, queries()), hk = array(k, keys()), hv = array(v, keys()),
                ho(dtype_, {packed.rows, queries()}), hl(DType::f32, {packed.rows, shape_.heads});
    const DeviceArray dq(stream_, hq), dk(stream_, hk), dv(stream_, hv), dout(stream_, ho), dl(stream_, hl);
    const DeviceArray starts(stream_, packed.starts), positions(stream_, packed.positions);
    cuda::ops().attention(stream_, dout, dl, dq, dk, dv, {starts, positions}, pages == nullptr ? KvPages() : *pages,
                          shape_);
    dout.fetch(stream_);
    dl.fetch(stream_);
    o = ho.values();
    lse = hl.values();
  }

  void compare(const char* what, const Values& got, const Values& whole, int32_t row, int32_t at, int32_t count,
               int64_t width, DType storage, bool exact) const {
    const double size = largest(whole);
    const auto terms = static_cast<int64_t>(whole.size()) / width + shape_.head_dim;
    for (int64_t i = 0; i < count * width; i++) {
      const double a = whole[static_cast<size_t>(at * width + i)], b = got[static_cast<size_t>(row * width + i)];
      if (exact) ASSERT_EQ(a, b) << what << ", " << name_of(dtype_) << ", position " << at + i / width;
      // Both passes round the weights to bf16, relative to different maxima.
      const double inner = dtype_ == DType::bf16 && storage == DType::bf16 ? epsilon(DType::bf16) * size : 0;
      ASSERT_LE(std::abs(a - b), 2 * tolerance(storage, DType::f32, terms, a, size) + inner)
          << what << ", " << name_of(dtype_) << ", position " << at + i / width << ", column " << i % width << ": " << b
          << " for " << a;
    }
  }

  AttentionShape shape_;
  DType dtype_;
  Stream stream_;
  std::vector<Step> steps_;
  Random random_;
  Sequence sequences_[2];
};

TEST(CudaMemory, attention) {
  cuda::open();
  ThreadPool threads(2);
  for (const AttentionShape& shape :
       {AttentionShape{16, 2, 256}, AttentionShape{3, 1, 256}, AttentionShape{4, 2, 24}}) {
    for (const DType dtype : {DType::bf16, DType::f32}) {
      SCOPED_TRACE(fmt::format("{}/{} heads of {}", shape.heads, shape.kv_heads, shape.head_dim));
      Sequences(shape, dtype, threads, many_steps()).check();
      Sequences(shape, dtype, threads, many_steps()).check(true);
    }
  }
  Sequences({2, 1, 256}, DType::bf16, threads, long_memory()).check();
  Sequences({2, 1, 256}, DType::bf16, threads, long_memory()).check(true);
  Sequences({2, 1, 16}, DType::f32, threads, long_memory()).check();
}

}  // namespace
}  // namespace furlong::test
