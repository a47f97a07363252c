#include "checkpoint/shards.h"

#include "layouts.h"
#include "scratch.h"

namespace furlong {
namespace {

// Calls f(layout, rank, specs) for every rank of every layout.
template <class F>
void for_each_rank(F&& f) {
  const ModelConfig config = splittable_config();
  for (const auto& layout : layouts()) {
    EXPECT_TRUE(layout_problems(config, layout.sizes).empty());
    for (int r = 0; r < layout.ranks; r++) f(layout, r, tensor_registry(config, layout.place(r)));
  }
}

std::vector<int64_t> places_of_runs(const Shard& shard, Range window) {
  std::vector<int64_t> places(static_cast<size_t>(shard.own.size()), -1);
  for_each_run_in(shard, window, [&](const Run& run) {
    for (int64_t i = 0; i < run.count; i++) places.at(static_cast<size_t>(run.first + i)) = run.full_first + i;
  });
  return places;
}

TEST(Shards, RunsAreTheRegistrys) {
  for_each_rank([](const Layout& layout, int rank, const std::vector<TensorSpec>& specs) {
    for (const auto& spec : specs) {
      const Shard shard = shard_of(spec);
      EXPECT_EQ(places_of_runs(shard, {0, spec.full_numel()}), places_of(spec))
          << spec.name << " rank " << rank << " of " << text_of(layout);
    }
  });
}

TEST(Shards, AWindowTakesTheNumbersInIt) {
  for_each_rank([](const Layout& layout, int rank, const std::vector<TensorSpec>& specs) {
    for (const auto& spec : specs) {
      Shard shard = shard_of(spec);
      const int64_t n = shard.own.size(), full = spec.full_numel();
      const auto all = places_of(spec);
      for (const Range own : {Range{0, n}, Range{n / 3, n}, Range{1, n - 1}, Range{n / 2, n / 2 + 1}}) {
        shard.own = own;
        for (const Range window : {Range{0, full}, Range{full / 3, full / 2}, Range{1, 2}, Range{full - 2, full}}) {
          std::vector<int64_t> expected(all.begin() + own.begin, all.begin() + own.end);
          for (auto& p : expected) p = window.begin <= p && p < window.end ? p : -1;
          EXPECT_EQ(places_of_runs(shard, window), expected)
              << spec.name << " rank " << rank << " of " << text_of(layout) << " own " << own.begin << " window "
              << window.begin;
          const Range numbers = numbers_in(shard, window);
          EXPECT_EQ(numbers.size(), std::count_if(expected.begin(), expected.end(), [](int64_t p) { return p >= 0; }));
          if (numbers.size() > 0) {
            EXPECT_GE(expected[static_cast<size_t>(numbers.begin)], 0);
          }
        }
      }
    }
  });
}

TEST(Shards, OverAllRanksEachNumberIsGivenOnce) {
  const ModelConfig config = splittable_config();
  std::map<std::string, std::vector<int>> given;  // by layout and tensor
  for_each_rank([&](const Layout& layout, int rank, const std::vector<TensorSpec>& specs) {
    for (const auto& spec : specs) {
      const MeshRank place = layout.place(rank);
      const Shard share = share_of(spec, place);
      auto& times = given[fmt::format("{}: {}", text_of(layout), spec.name)];
      times.resize(static_cast<size_t>(spec.full_numel()));
      for (const auto& run : runs_of(share)) {
        for (int64_t i = 0; i < run.count; i++) times[static_cast<size_t>(run.full_first + i)]++;
      }
      // A flat tensor is given whole: those that an optimizer owns are the same.
      TensorSpec flat = spec;
      if (spec.here) flat.owned = owned_by(config, place)(spec);
      EXPECT_EQ(share_of(flat, place).own, share.own) << spec.name << " rank " << rank << " of " << text_of(layout);
    }
  });
  for (const auto& [what, times] : given) {
    EXPECT_TRUE(std::all_of(times.begin(), times.end(), [](int n) { return n == 1; })) << what;
  }
}

TEST(Shards, TextRoundTripAndWhatItRefuses) {
  const Shard shard{.full_shape = {8, 6, 2}, .held = {{{{2, 4}, {5, 8}}, {{0, 3}}}}, .own = {4, 30}};
  EXPECT_EQ(text_of(shard), R"({"held":[[[2,4],[5,8]],[[0,3]],[]],"of":[8,6,2],"own":[4,30]})");
  const Shard back = shard_from_text(text_of(shard), "file");
  EXPECT_EQ(back.full_shape, shard.full_shape);
  EXPECT_EQ(back.held, shard.held);
  EXPECT_EQ(back.own, shard.own);
  EXPECT_EQ(shard_from_text(R"({"held":[],"of":[8,6,2],"own":[0,96]})", "file").own.size(), 96);
  for (const char* bad : {"",
                          "7",
                          "[]",
                          R"({"of":[8],"own":[0,4]})",
                          R"({"held":[],"own":[0,4]})",
                          R"({"held":[],"of":[],"own":[0,1]})",
                          R"({"held":[],"of":[8],"own":[0]})",
                          R"({"held":[],"of":[8],"own":[0,9]})",
                          R"({"held":[],"of":[8],"own":[4,4]})",
                          R"({"held":[],"of":[8],"own":[-1,4]})",
                          R"({"held":[[[0,9]]],"of":[8],"own":[0,4]})",
                          R"({"held":[[[0,4],[3,5]]],"of":[8],"own":[0,4]})",
                          R"({"held":[[[4,5],[0,2]]],"of":[8],"own":[0,3]})",
                          R"({"held":[[[2,2]]],"of":[8],"own":[0,1]})",
                          R"({"held":[[[0,2]]],"of":[8,6],"own":[0,13]})",
                          R"({"held":[[],[]],"of":[8],"own":[0,4]})",
                          R"({"held":[[],[],[],[]],"of":[2,2,2,2],"own":[0,4]})",
                          R"({"held":[[[0,9223372036854775807]]],"of":[8],"own":[0,4]})",
                          R"({"held":[],"of":[4294967296,4294967296],"own":[0,4]})",
                          R"({"held":[],"of":[0,4],"own":[0,4]})",
                          R"({"held":[],"of":[-8,-1],"own":[0,4]})",
                          R"({"held":[["a"]],"of":[8],"own":[0,4]})",
                          R"({"held":{"0":[[0,1]]},"of":[8],"own":[0,1]})"}) {
    EXPECT_TRUE(contains(error_of([&] { shard_from_text(bad, "file"); }), "file")) << bad;
  }
}

}  // namespace
}  // namespace furlong
