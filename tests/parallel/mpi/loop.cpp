// Ranks that exchange for ever, for lost_rank.sh: mpirun -n 4 rank_loop FOLDER [throw|spin|big RANK]. Each rank writes
// its process id to FOLDER/pid.RANK once it is under way. throw, spin: that rank ends with an error, or stops
// exchanging, after a while. big N: one message of N bytes from rank 0 to rank 1, checked, and the end.
#include <unistd.h>

#include <cstdlib>
#include <fstream>

#include "base/error.h"
#include "base/log.h"
#include "parallel/mpi.h"
#include "tensor/buffer.h"

namespace furlong {
namespace {

constexpr int rounds_before_trouble = 50;

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

[[noreturn]] void loop(World& world, const std::string& folder, const std::string& trouble, int at_fault) {
  ThreadPool threads(1);
  Stream stream(threads);
  std::vector<int> ranks;
  for (int r = 0; r < world.size(); r++) ranks.push_back(r);
  const auto group = world.group(ranks);
  const OwnedTensor out(DType::f32, {world.size(), 4096}), in(DType::f32, {world.size(), 4096});
  std::vector<Tensor> from, to;
  for (int r = 0; r < world.size(); r++) {
    from.push_back(out.view().at(r));
    to.push_back(in.view().at(r));
  }
  for (int64_t round = 0;; round++) {
    world.phase(fmt::format("round {}", round / 100 * 100));
    group->exchange(stream, to, from);
    group->gather_bytes("onwards");
    if (round == rounds_before_trouble) {
      const std::string name = fmt::format("{}/pid.{}", folder, world.rank());
      std::ofstream(name + ".new") << getpid() << "\n";
      std::rename((name + ".new").c_str(), name.c_str());
    }
    if (round == 2 * rounds_before_trouble && world.rank() == at_fault) {
      if (trouble == "throw") fail(Exit::numerics, "the loss is not finite");
      world.phase("thinking");
      for (;;) sleep(1);
    }
  }
}

int run(int argc, char** argv) {
  const char* ranks = std::getenv("OMPI_COMM_WORLD_SIZE");
  const std::string trouble = argc > 3 ? argv[2] : "";
  const auto world =
      mpi_world({.ranks = ranks == nullptr ? 1 : std::atoi(ranks), .timeout_seconds = trouble == "spin" ? 8.0 : 600.0});
  if (world->rank() != 0) log::set_prefix(fmt::format("[rank {}] ", world->rank()));
  try {
    if (trouble == "big") {
      big_message(*world, std::atoll(argv[3]));
    } else {
      loop(*world, argv[1], trouble, argc > 3 ? std::atoi(argv[3]) : -1);
    }
  } catch (const Error& e) {
    if (!world->end_with(static_cast<int>(e.code()), e.what())) log::error("{}", e.what());
    return static_cast<int>(e.code());
  }
  return 0;
}

}  // namespace
}  // namespace furlong

int main(int argc, char** argv) { return furlong::run(argc, argv); }
