// Ranks that exchange for ever, for lost_rank.sh: mpirun -n 4 rank_loop FOLDER [cuda] [throw|spin|big RANK]; cuda: on a
// GPU each. Each rank writes
// its process id to FOLDER/pid.RANK once it is under way. throw, spin: that rank ends with an error, or stops
// exchanging, after a while. big N: one message of N bytes from rank 0 to rank 1, checked, and the end.
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>

#include "base/error.h"
#include "base/log.h"
#include "parallel/mpi.h"
#include "parallel/nccl.h"
#include "tensor/buffer.h"
#include "tensor/cuda_devices.h"

namespace furlong {
namespace {

// Long enough that rank 0 has heard what each rank does.
constexpr double seconds_before_trouble = 2;

void big_message(World& world, int64_t bytes) {
  ThreadPool threads(1);
  Stream stream(threads);
  const int both[] = {0, 1};
  const auto group = world.group(both);
  OwnedTensor tensor(DType::u8, {bytes});
  auto* numbers = tensor.view().as<uint8_t>();
  const auto right = [](int64_t i) { return static_cast<uint8_t>((i * 2654435761u) >> 13); };
  std::vector<Tensor> from(2), to(2);
  if (world.rank() == 0) {
    for (int64_t i = 0; i < bytes; i++) numbers[i] = right(i);
    from[1] = tensor;
  } else {
    to[0] = tensor;
  }
  group->exchange(stream, to, from);
  int64_t wrong = 0;
  for (int64_t i = 0; i < bytes; i++) wrong += numbers[i] != right(i) ? 1 : 0;
  if (wrong != 0) fail(Exit::numerics, "{} of {} bytes arrived wrong", wrong, bytes);
  if (world.rank() == 1) log::warn("{} bytes arrived", bytes);
}

[[noreturn]] void loop(World& world, Device device, const std::string& folder, const std::string& trouble,
                       int at_fault) {
  ThreadPool threads(1);
  if (device == Device::cuda) cuda::open(cuda::device_of(world.local_rank(), cuda::device_count()));
  Stream stream(threads, device);
  std::vector<int> ranks;
  for (int r = 0; r < world.size(); r++) ranks.push_back(r);
  const auto group = world.group(ranks);
  const OwnedTensor out(DType::f32, {world.size(), 4096}, device), in(DType::f32, {world.size(), 4096}, device);
  std::vector<Tensor> from, to;
  for (int r = 0; r < world.size(); r++) {
    from.push_back(out.view().at(r));
    to.push_back(in.view().at(r));
  }
  const auto begun = std::chrono::steady_clock::now();
  bool under_way = false;
  for (int64_t round = 0;; round++) {
    world.phase(fmt::format("round {}", round / 100 * 100));
    group->exchange(stream, to, from);
    stream.synchronize();
    if (device == Device::cpu) group->gather_bytes("onwards");
    if (under_way ||
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begun).count() < seconds_before_trouble)
      continue;
    under_way = true;
    const std::string name = fmt::format("{}/pid.{}", folder, world.rank());
    std::ofstream(name + ".new") << getpid() << "\n";
    std::rename((name + ".new").c_str(), name.c_str());
    if (world.rank() == at_fault) {
      if (trouble == "throw") fail(Exit::numerics, "the loss is not finite");
      world.phase("thinking");
      for (;;) sleep(1);
    }
  }
}

int run(std::vector<std::string> words) {
  const char* ranks = std::getenv("OMPI_COMM_WORLD_SIZE");
  const bool on_gpus = words.size() > 1 && words[1] == "cuda";
  if (on_gpus) words.erase(words.begin() + 1);
  const std::string trouble = words.size() > 2 ? words[1] : "";
  const int64_t number = words.size() > 2 ? std::atoll(words[2].c_str()) : -1;
  const double timeout = trouble == "spin" ? 8.0 : 600.0;
  auto world = mpi_world({.ranks = ranks == nullptr ? 1 : std::atoi(ranks), .timeout_seconds = timeout});
  if (on_gpus) world = nccl_world(std::move(world), {.timeout_seconds = timeout});
  if (world->rank() != 0) log::set_prefix(fmt::format("[rank {}] ", world->rank()));
  try {
    if (trouble == "big") {
      big_message(*world, number);
    } else {
      loop(*world, on_gpus ? Device::cuda : Device::cpu, words.at(0), trouble, static_cast<int>(number));
    }
  } catch (const Error& e) {
    if (!world->end_with(static_cast<int>(e.code()), e.what())) log::error("{}", e.what());
    return static_cast<int>(e.code());
  }
  return 0;
}

}  // namespace
}  // namespace furlong

int main(int argc, char** argv) { return furlong::run({argv + 1, argv + argc}); }
