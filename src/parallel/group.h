// Ranks that exchange tensors: threads of one process, MPI ranks, or GPUs under NCCL. Everything that crosses ranks is
// made of two operations, so that its order of summation is ours and the same for every kind of group.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tensor/stream.h"

namespace furlong {

class Watchdog;

class Group {
 public:
  Group(int rank, int size) : rank_(rank), size_(size) {}
  virtual ~Group() = default;
  Group(const Group&) = delete;
  Group& operator=(const Group&) = delete;

  int rank() const { return rank_; }  // the caller's, in this group
  int size() const { return size_; }

  // from[r] goes to rank r; what rank r sends here comes into to[r]. As many tensors as ranks, contiguous, on the
  // stream's device, of equal dtype and size at both ends; undefined or empty: nothing goes that way. Between two ranks
  // tensors arrive in the order of the calls, and only ranks with something to move need to call. to[rank()] is a copy
  // of from[rank()]. In the stream's order; nothing on a dry stream. On the host a send never waits; on a GPU it may
  // last until it is received, so that two ranks that send to each other do so in one call. Throws Error(Exit::lost).
  virtual void exchange(Stream&, std::span<const Tensor> to, std::span<const Tensor> from) = 0;

  // Everyone's bytes in the order of ranks: small messages between hosts. All ranks call, and all wait.
  virtual std::vector<std::string> gather_bytes(std::string_view mine) = 0;

  // Seconds that the exchanges of all groups of this process have taken on its GPU so far, waiting for others included;
  // those that were recorded in graphs are not counted. Waits for the exchanges under way. 0 on the host.
  virtual double exchange_seconds() { return 0; }

 private:
  int rank_, size_;
};

// A group of one.
std::unique_ptr<Group> solo_group();

// All ranks of a run.
class World {
 public:
  World(int rank, int size, int local_rank = 0, int local_size = 1)
      : rank_(rank), size_(size), local_rank_(local_rank), local_size_(local_size) {}
  virtual ~World() = default;
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }
  // Among the ranks of this host, which share its cores and have a GPU each.
  int local_rank() const { return local_rank_; }
  int local_size() const { return local_size_; }
  // CPU cores that this rank may count on.
  virtual int cores() const { return available_cores(); }

  // What this rank does from now on, in a few words: a rank that is lost or keeps others waiting is named with it.
  virtual void phase(std::string_view) {}
  // This rank ends with this exit code, for this reason: tells the others, which end too. Afterwards the world is good
  // for nothing but its destructor. True when rank 0 has printed the message.
  virtual bool end_with(int /*exit_code*/, std::string_view /*message*/) noexcept { return false; }
  // Null where ranks do not watch each other.
  virtual Watchdog* watchdog() { return nullptr; }

  // Some of the ranks, the caller among them, numbered in the order given. All of them call, with the same list, and
  // make the groups that they share in the same order.
  virtual std::unique_ptr<Group> group(std::span<const int> ranks) = 0;

 private:
  int rank_, size_, local_rank_, local_size_;
};

// The world of a process that runs alone.
std::unique_ptr<World> solo_world();

}  // namespace furlong
