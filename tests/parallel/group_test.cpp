// What every kind of group must do.
#include <gtest/gtest.h>

#include <numeric>

#include "base/threads.h"
#include "parallel/mesh.h"
#include "parallel/on_ranks.h"
#include "tensor/buffer.h"

namespace furlong::test {
namespace {

// A number that tells from whom, to whom, in which round and at which place.
int32_t mark(int from, int to, int round, int64_t at) {
  return static_cast<int32_t>(((from * 7 + to) * 31 + round) * 100003 + at);
}

struct Rank {
  explicit Rank(World& world) : threads(1), stream(threads), me(world.rank()) {}
  ThreadPool threads;
  Stream stream;
  int me;
};

std::vector<int> everyone() {
  std::vector<int> ranks(test_ranks);
  std::iota(ranks.begin(), ranks.end(), 0);
  return ranks;
}

// What `me` sends to or gets from each rank: `count(from, to)` numbers, none where that is 0.
std::vector<OwnedTensor> boxes(int size, const std::function<int64_t(int)>& count) {
  std::vector<OwnedTensor> made;
  for (int r = 0; r < size; r++) made.push_back(count(r) == 0 ? OwnedTensor() : OwnedTensor(DType::i32, {count(r)}));
  return made;
}
std::vector<Tensor> views(const std::vector<OwnedTensor>& boxes) { return {boxes.begin(), boxes.end()}; }

// One exchange among `group`, count(from, to) numbers each way, checked.
void exchange_checked(Group& group, Stream& stream, int round, const std::function<int64_t(int, int)>& count) {
  const int me = group.rank();
  const auto from = boxes(group.size(), [&](int r) { return count(me, r); });
  const auto to = boxes(group.size(), [&](int r) { return count(r, me); });
  for (int r = 0; r < group.size(); r++) {
    for (int64_t i = 0; i < count(me, r); i++)
      from[static_cast<size_t>(r)].view().as<int32_t>()[i] = mark(me, r, round, i);
  }
  group.exchange(stream, views(to), views(from));
  for (int r = 0; r < group.size(); r++) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < count(r, me); i++)
      wrong += to[static_cast<size_t>(r)].view().as<int32_t>()[i] != mark(r, me, round, i) ? 1 : 0;
    EXPECT_EQ(wrong, 0) << "from rank " << r << " to rank " << me << " in round " << round;
  }
}

TEST(Groups, ExchangeUnequalPartsAndNone) {
  on_ranks([](World& world) {
    Rank rank(world);
    const auto group = world.group(everyone());
    for (int round = 0; round < 20; round++) {
      exchange_checked(*group, rank.stream, round,
                       [&](int from, int to) -> int64_t { return (from * 5 + to * 3 + round) % 4 * 97; });
    }
  });
}

TEST(Groups, MessagesOfManyPieces) {
  on_ranks([](World& world) {
    Rank rank(world);
    const auto group = world.group(everyone());
    exchange_checked(*group, rank.stream, 0, [](int from, int to) -> int64_t { return 100000 + 257 * from + to; });
  });
}

// A send does not wait for its receiver: everyone sends first and receives later, and other groups' messages pass.
TEST(Groups, ASendNeedsNoReceiverYet) {
  on_ranks([](World& world) {
    Rank rank(world);
    const auto group = world.group(everyone());
    constexpr int64_t n = 1 << 20;
    const int next = (rank.me + 1) % test_ranks, before = (rank.me + test_ranks - 1) % test_ranks;
    OwnedTensor out(DType::i32, {n}), in(DType::i32, {n});
    std::vector<Tensor> none(test_ranks), from(test_ranks), to(test_ranks);
    from[static_cast<size_t>(next)] = out;
    to[static_cast<size_t>(before)] = in;
    for (int round = 0; round < 3; round++) {
      for (int64_t i = 0; i < n; i++) out.view().as<int32_t>()[i] = mark(rank.me, next, round, i);
      group->exchange(rank.stream, none, from);
    }
    EXPECT_EQ(group->gather_bytes("x").size(), 4u);
    for (int round = 0; round < 3; round++) {
      group->exchange(rank.stream, to, none);
      int64_t wrong = 0;
      for (int64_t i = 0; i < n; i++) wrong += in.view().as<int32_t>()[i] != mark(before, rank.me, round, i) ? 1 : 0;
      EXPECT_EQ(wrong, 0) << "round " << round;
    }
  });
}

// Only those with something to move call, and messages of two ranks keep their order.
TEST(Groups, TwoOfFour) {
  on_ranks([](World& world) {
    Rank rank(world);
    const auto group = world.group(everyone());
    if (rank.me != 1 && rank.me != 3) return;
    for (int round = 0; round < 200; round++) {
      exchange_checked(*group, rank.stream, round, [&](int from, int to) -> int64_t {
        return from % 2 == 1 && to % 2 == 1 && from != to ? 1 + round % 50 : 0;
      });
    }
  });
}

TEST(Groups, NumberedInTheOrderGiven) {
  on_ranks([](World& world) {
    Rank rank(world);
    const std::vector<int> ranks = rank.me < 2 ? std::vector<int>{1, 0} : std::vector<int>{3, 2};
    const auto pair = world.group(ranks);
    EXPECT_EQ(pair->size(), 2);
    EXPECT_EQ(pair->rank(), 1 - rank.me % 2);
    const auto names = pair->gather_bytes(std::to_string(rank.me));
    EXPECT_EQ(names, rank.me < 2 ? std::vector<std::string>({"1", "0"}) : std::vector<std::string>({"3", "2"}));
    exchange_checked(*pair, rank.stream, 1, [](int from, int to) -> int64_t { return 3 + from + 2 * to; });
    // One of one.
    const int alone[] = {rank.me};
    const auto self = world.group(alone);
    EXPECT_EQ(self->gather_bytes("me"), std::vector<std::string>{"me"});
    exchange_checked(*self, rank.stream, 2, [](int, int) -> int64_t { return 11; });
  });
}

// Two groups of the same ranks do not hear each other's messages.
TEST(Groups, OfTheSameRanksAreApart) {
  on_ranks([](World& world) {
    Rank rank(world);
    const auto first = world.group(everyone()), second = world.group(everyone());
    OwnedTensor a(DType::i32, {1}), b(DType::i32, {1}), in(DType::i32, {1});
    *a.view().as<int32_t>() = 100 + rank.me;
    *b.view().as<int32_t>() = 200 + rank.me;
    const auto next = static_cast<size_t>((rank.me + 1) % 4), before = static_cast<size_t>((rank.me + 3) % 4);
    std::vector<Tensor> none(4), from(4), to(4);
    to[before] = in;
    from[next] = a;
    first->exchange(rank.stream, none, from);
    from[next] = b;
    second->exchange(rank.stream, none, from);
    second->exchange(rank.stream, to, none);
    EXPECT_EQ(*in.view().as<int32_t>(), 200 + static_cast<int>(before));
    first->exchange(rank.stream, to, none);
    EXPECT_EQ(*in.view().as<int32_t>(), 100 + static_cast<int>(before));
  });
}

TEST(Groups, GatherShortLongAndEmpty) {
  on_ranks([](World& world) {
    Rank rank(world);
    const auto group = world.group(everyone());
    // Around the sizes at which a message takes another way.
    for (const size_t base :
         {size_t{0}, size_t{1}, size_t{246}, size_t{248}, size_t{249}, size_t{5000}, size_t{300000}}) {
      const auto bytes = [&](int r) {
        std::string text(base == 0 ? 0 : base + static_cast<size_t>(r) * (base / 100), '\0');
        for (size_t i = 0; i < text.size(); i++) text[i] = static_cast<char>(i * 31 + static_cast<size_t>(r));
        return text;
      };
      const auto all = group->gather_bytes(bytes(rank.me));
      ASSERT_EQ(all.size(), 4u);
      for (int r = 0; r < 4; r++) EXPECT_TRUE(all[static_cast<size_t>(r)] == bytes(r)) << base << " of rank " << r;
    }
    // One long among short ones.
    const auto all = group->gather_bytes(rank.me == 2 ? std::string(1000, 'z') : "a");
    EXPECT_EQ(all, (std::vector<std::string>{"a", "a", std::string(1000, 'z'), "a"}));
  });
}

TEST(Groups, ADryStreamMovesNothing) {
  on_ranks([](World& world) {
    ThreadPool threads(1);
    Stream dry = Stream::dry(threads);
    const auto group = world.group(everyone());
    OwnedTensor in(DType::i32, {5}), out(DType::i32, {5});
    *out.view().as<int32_t>() = 7;
    std::vector<Tensor> to(4, in), from(4, out);
    if (world.rank() != 3) group->exchange(dry, to, from);  // nobody waits for it
    EXPECT_EQ(*in.view().as<int32_t>(), 0);
  });
}

TEST(Groups, EveryGroupOfAMesh) {
  for (const ParallelSizes& sizes :
       {ParallelSizes{.tensor = 2, .expert = 4}, ParallelSizes{.pipeline = 2, .context = 2, .expert = 2},
        ParallelSizes{.tensor = 2, .pipeline = 2, .expert_tensor = 2}, ParallelSizes{}}) {
    on_ranks([&](World& world) {
      Rank rank(world);
      const Mesh mesh(world, sizes);
      int round = 0;
      for (Group* group : {&mesh.world(), &mesh.stage(), &mesh.tensor(), &mesh.context(), &mesh.rows(), &mesh.data(),
                           &mesh.pipeline(), &mesh.experts()}) {
        exchange_checked(*group, rank.stream, round++, [](int from, int to) -> int64_t { return 1 + from + to; });
        const auto all = group->gather_bytes(std::to_string(rank.me));
        EXPECT_EQ(all[static_cast<size_t>(group->rank())], std::to_string(rank.me));
        EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), all.size());
      }
    });
  }
}

}  // namespace
}  // namespace furlong::test
