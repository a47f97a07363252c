// Groups under NCCL. By itself this program is one rank on one GPU, all of whose exchanges go through NCCL; under
// mpirun -n N test_nccl it is one of N ranks with a GPU each.
#include <gtest/gtest.h>

#include <numeric>
#include <thread>

#include "cuda/gpu_ranks.h"
#include "parallel/mesh.h"
#include "tensor/buffer.h"
#include "tensor/copy.h"

namespace furlong::test {
namespace {

class Nccl : public ::testing::Test {
 protected:
  World& world = Ranks::get();
  ThreadPool threads{1};
  Stream stream{threads, Device::cuda};
  const int me = world.rank(), n = world.size();

  std::vector<int> everyone() const {
    std::vector<int> ranks(static_cast<size_t>(n));
    std::iota(ranks.begin(), ranks.end(), 0);
    return ranks;
  }
  static int32_t mark(int from, int to, int round, int64_t at) {
    return static_cast<int32_t>(((from * 7 + to) * 31 + round) * 100003 + at);
  }
};

// Device tensors from and to each rank of a group, `count(from, to)` numbers each.
struct Boxes {
  std::vector<OwnedTensor> out, in;
  std::vector<Tensor> from, to;
  template <class F>
  Boxes(const Group& group, F&& count) {
    for (int r = 0; r < group.size(); r++) {
      out.push_back(box(count(group.rank(), r)));
      in.push_back(box(count(r, group.rank())));
    }
    from.assign(out.begin(), out.end());
    to.assign(in.begin(), in.end());
  }
  static OwnedTensor box(int64_t numbers) {
    return numbers == 0 ? OwnedTensor() : OwnedTensor(DType::i32, {numbers}, Device::cuda);
  }
  template <class F>
  void fill(F&& value) {
    for (size_t r = 0; r < from.size(); r++) {
      std::vector<int32_t> numbers(static_cast<size_t>(from[r].numel()));
      for (size_t i = 0; i < numbers.size(); i++) numbers[i] = value(static_cast<int>(r), static_cast<int64_t>(i));
      if (!numbers.empty()) write_numbers(from[r], 0, from[r].numel(), numbers.data());
    }
  }
  template <class F>
  int64_t wrong(F&& value) const {
    int64_t count = 0;
    for (size_t r = 0; r < to.size(); r++) {
      if (to[r].numel() == 0) continue;
      const OnHost host(to[r]);
      for (int64_t i = 0; i < to[r].numel(); i++)
        count += host.view().as<int32_t>()[i] != value(static_cast<int>(r), i) ? 1 : 0;
    }
    return count;
  }
};

TEST_F(Nccl, ExchangesUnequalParts) {
  ASSERT_TRUE(nccl_built());
  const auto group = world.group(everyone());
  for (int round = 0; round < 6; round++) {
    const auto count = [&](int from, int to) -> int64_t {
      return (from + 2 * to + round) % 3 == 0 && n > 1 ? 0 : 1 + 1000003 * (round % 3) + from;
    };
    Boxes boxes(*group, count);
    boxes.fill([&](int to, int64_t at) { return mark(me, to, round, at); });
    group->exchange(stream, boxes.to, boxes.from);
    stream.synchronize();
    EXPECT_EQ(boxes.wrong([&](int from, int64_t at) { return mark(from, me, round, at); }), 0) << "round " << round;
  }
}

TEST_F(Nccl, IsRecordedInAGraph) {
  const auto group = world.group(everyone());
  Boxes boxes(*group, [](int from, int to) -> int64_t { return 4096 + 16 * from + to; });
  group->exchange(stream, boxes.to, boxes.from);
  stream.synchronize();
  const auto graph = cuda::record(stream.queue(), [&] { group->exchange(stream, boxes.to, boxes.from); });
  for (int round = 0; round < 5; round++) {
    boxes.fill([&](int to, int64_t at) { return mark(me, to, round, at); });
    cuda::launch(stream.queue(), *graph);
    stream.synchronize();
    EXPECT_EQ(boxes.wrong([&](int from, int64_t at) { return mark(from, me, round, at); }), 0) << "round " << round;
  }
}

TEST_F(Nccl, EveryGroupOfAMeshAndTheHostBesideIt) {
  const Mesh mesh(world, {.expert = n});
  int round = 0;
  for (Group* group : {&mesh.world(), &mesh.stage(), &mesh.tensor(), &mesh.context(), &mesh.rows(), &mesh.data(),
                       &mesh.pipeline(), &mesh.experts()}) {
    Boxes boxes(*group, [](int from, int to) -> int64_t { return 1 + from + to; });
    boxes.fill([&](int to, int64_t at) { return mark(group->rank(), to, round, at); });
    group->exchange(stream, boxes.to, boxes.from);
    stream.synchronize();
    EXPECT_EQ(boxes.wrong([&](int from, int64_t at) { return mark(from, group->rank(), round, at); }), 0) << round;
    EXPECT_EQ(group->gather_bytes(std::to_string(me))[static_cast<size_t>(group->rank())], std::to_string(me));
    // Tensors of the host.
    Stream host(threads);
    std::vector<int32_t> out(static_cast<size_t>(group->size())), in(out.size(), -1);
    std::vector<Tensor> from, to;
    for (size_t r = 0; r < out.size(); r++) {
      out[r] = mark(group->rank(), static_cast<int>(r), round, 5);
      from.emplace_back(&out[r], DType::i32, std::initializer_list<int64_t>{1});
      to.emplace_back(&in[r], DType::i32, std::initializer_list<int64_t>{1});
    }
    group->exchange(host, to, from);
    for (size_t r = 0; r < in.size(); r++) EXPECT_EQ(in[r], mark(static_cast<int>(r), group->rank(), round, 5));
    round++;
  }
}

// Without NCCL tensors of a GPU go by way of the host.
TEST_F(Nccl, TheHostCarriesTensorsOfGpusToo) {
  const auto group = Ranks::host_world()->group(everyone());
  for (int round = 0; round < 4; round++) {
    Boxes boxes(*group, [&](int from, int to) -> int64_t { return (from + to + round) % 2 == 0 ? 300007 + from : 3; });
    boxes.fill([&](int to, int64_t at) { return mark(me, to, round, at); });
    group->exchange(stream, boxes.to, boxes.from);
    stream.synchronize();
    EXPECT_EQ(boxes.wrong([&](int from, int64_t at) { return mark(from, me, round, at); }), 0) << "round " << round;
  }
}

// Threads that this program starts use the rank's device, whichever its number.
TEST_F(Nccl, EveryThreadUsesTheRanksDevice) {
  const OwnedTensor here(DType::i32, {4}, Device::cuda);
  const std::vector<int32_t> numbers = {4, 3, 2, 1};
  std::thread([&] {
    write_numbers(here, 0, 4, numbers.data());
    Stream other(threads, Device::cuda);
    OwnedTensor there(DType::i32, {4}, Device::cuda);
    copy(other, there, here);
    other.synchronize();
    const OnHost back(there);
    for (size_t i = 0; i < 4; i++) EXPECT_EQ(back.view().as<int32_t>()[i], numbers[i]);
  }).join();
}

}  // namespace
}  // namespace furlong::test
