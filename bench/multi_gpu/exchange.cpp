// What the ranks' exchanges cost, beside NCCL's own collectives over the same bytes in the same run:
//   mpirun -n N bench_exchange [MB]     each rank's part of an exchange with one other rank
// Figures are medians; GB/s is what one GPU sends, which NCCL's "bus bandwidth" is for these.
#include <nccl.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>

#include "model/collectives.h"
#include "ops/reduce.h"
#include "parallel/mpi.h"
#include "parallel/nccl.h"
#include "tensor/cuda/queue.h"
#include "tensor/cuda_devices.h"

namespace furlong::bench {
namespace {

// Milliseconds of one call, on the device.
template <class F>
double median_ms(Stream& stream, F&& call) {
  constexpr int warm = 3, rounds = 15;
  std::vector<double> ms;
  cudaEvent_t begin = nullptr, end = nullptr;
  cuda::check(cudaEventCreate(&begin), "cudaEventCreate");
  cuda::check(cudaEventCreate(&end), "cudaEventCreate");
  for (int i = 0; i < warm + rounds; i++) {
    cuda::check(cudaEventRecord(begin, stream.queue().stream), "cudaEventRecord");
    call();
    cuda::check(cudaEventRecord(end, stream.queue().stream), "cudaEventRecord");
    stream.synchronize();
    float t = 0;
    cuda::check(cudaEventElapsedTime(&t, begin, end), "cudaEventElapsedTime");
    if (i >= warm) ms.push_back(t);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::nth_element(ms.begin(), ms.begin() + rounds / 2, ms.end());
  return ms[rounds / 2];
}

void nccl(ncclResult_t status, const char* what) {
  if (status != ncclSuccess) fail(Exit::lost, "{}: {}", what, ncclGetErrorString(status));
}

void run(World& world, int64_t megabytes) {
  ThreadPool threads(1);
  Stream stream(threads, Device::cuda);
  const int n = world.size(), me = world.rank();
  const Mesh mesh(world, {.expert = n}, Dispatcher::flex);
  Group& group = mesh.experts();
  constexpr int64_t width = 2048;
  const int64_t rows = megabytes * 1000000 / (2 * width);
  Arena arena(static_cast<size_t>(rows) * width * static_cast<size_t>(8 * n + 16), Device::cuda);
  Exec exec{stream, arena, mesh};
  const OwnedTensor part(DType::bf16, {rows, width}, Device::cuda), whole(DType::bf16, {rows * n, width}, Device::cuda),
      other(DType::bf16, {rows * n, width}, Device::cuda);
  const Tensor mine = part, all = whole, sums = other;
  set_zero(stream, mine);
  set_zero(stream, all);
  set_zero(stream, sums);
  const RowBlocks blocks = blocks_of_sizes(group, std::vector<int64_t>(static_cast<size_t>(n), rows));
  const double sent = static_cast<double>(rows) * width * 2 * (n - 1);  // bytes
  const auto line = [&](const char* what, double ms) {
    if (me == 0) std::printf("  %-44s %8.3f ms  %6.1f GB/s\n", what, ms, sent / ms * 1e-6);
  };

  ncclUniqueId id{};
  if (me == 0) nccl(ncclGetUniqueId(&id), "ncclGetUniqueId");
  const auto ids = group.gather_bytes({id.internal, sizeof id.internal});
  std::copy(ids[0].begin(), ids[0].end(), id.internal);
  ncclComm_t comm = nullptr;
  nccl(ncclCommInitRank(&comm, n, id, me), "ncclCommInitRank");
  const cudaStream_t queue = stream.queue().stream;
  const auto count = static_cast<size_t>(rows * width);

  if (me == 0) std::printf("%d GPUs, %.1f MB to each other rank, bf16\n", n, static_cast<double>(rows) * width * 2e-6);
  line("all-to-all, exchange", median_ms(stream, [&] {
         std::vector<Tensor> to, from;
         for (int r = 0; r < n; r++) {
           to.push_back(sums.rows(r * rows, (r + 1) * rows));
           from.push_back(all.rows(r * rows, (r + 1) * rows));
         }
         group.exchange(stream, to, from);
       }));
  line("all-gather, ours", median_ms(stream, [&] {
         const Arena::Scope scope(arena);
         all_gather(exec, blocks, "bench", mine);
       }));
  line("all-gather, NCCL", median_ms(stream, [&] {
         nccl(ncclAllGather(mine.data(), all.data(), count, ncclBfloat16, comm, queue), "ncclAllGather");
       }));
  line("reduce-scatter, ours (fp32 sums, rank order)", median_ms(stream, [&] {
         const Arena::Scope scope(arena);
         reduce_scatter(exec, blocks, mine, all);
       }));
  line("reduce-scatter, NCCL", median_ms(stream, [&] {
         nccl(ncclReduceScatter(all.data(), mine.data(), count, ncclBfloat16, ncclSum, comm, queue),
              "ncclReduceScatter");
       }));
  line("all-reduce of one part, ours", median_ms(stream, [&] {
                                         const Arena::Scope scope(arena);
                                         reduce_scatter(exec, blocks, mine, all);
                                         all_gather(exec, blocks, "bench", mine);
                                       }) / 2);
  line("all-reduce of one part, NCCL", median_ms(stream, [&] {
                                         nccl(ncclAllReduce(all.data(), sums.data(), count * static_cast<size_t>(n),
                                                            ncclBfloat16, ncclSum, comm, queue),
                                              "ncclAllReduce");
                                       }) / 2);
  ncclCommDestroy(comm);
}

}  // namespace
}  // namespace furlong::bench

int main(int argc, char** argv) {
  using namespace furlong;
  try {
    const char* ranks = std::getenv("OMPI_COMM_WORLD_SIZE");
    auto world = nccl_world(mpi_world({.ranks = ranks == nullptr ? 1 : std::atoi(ranks), .timeout_seconds = 60}));
    cuda::open(cuda::device_of(world->local_rank(), cuda::device_count()));
    for (const int64_t megabytes : {1, 8, 34, 128}) bench::run(*world, argc > 1 ? std::atoll(argv[1]) : megabytes);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "bench_exchange: %s\n", e.what());
    return 4;
  }
  return 0;
}
