// How the ranks of a run are laid out: Megatron's mesh. Attention, norms and embeddings live on
// data x context x tensor ranks of a pipeline stage; experts on expert-data x expert x expert-tensor ranks of it.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "parallel/group.h"

namespace furlong {

// The sizes that a user chooses; the data sizes follow from the number of ranks.
struct ParallelSizes {
  int64_t tensor = 1, pipeline = 1, context = 1, expert = 1, expert_tensor = 1;
  bool operator==(const ParallelSizes&) const = default;
};

// One rank's place. Within the world (Megatron's order, fastest first): tensor, context, data, pipeline; and for
// experts: expert-tensor, expert, expert-data, pipeline.
struct MeshRank {
  ParallelSizes sizes;
  int64_t data_size = 1, expert_data_size = 1;
  int64_t tensor = 0, context = 0, data = 0, stage = 0;
  int64_t expert = 0, expert_tensor = 0, expert_data = 0;

  // Ranks of the run, and of a stage; this rank's number in its stage (Mesh::stage).
  int64_t ranks() const { return sizes.tensor * sizes.context * data_size * sizes.pipeline; }
  int64_t stage_ranks() const { return sizes.tensor * sizes.context * data_size; }
  int64_t stage_rank() const { return data * row_parts() + row_part(); }
  // Ranks that share a batch: its rows lie on them in row_parts() blocks, this rank's being block row_part().
  int64_t row_parts() const { return sizes.tensor * sizes.context; }
  int64_t row_part() const { return context * sizes.tensor + tensor; }
};

// What keeps `ranks` ranks from being laid out so; empty when nothing does.
std::string mesh_problem(const ParallelSizes&, int64_t ranks);
// The place of world rank `rank` among `ranks`; mesh_problem must be empty.
MeshRank mesh_rank(const ParallelSizes&, int64_t rank, int64_t ranks);

// A contiguous part of [0, n): block i of `parts`, sizes differing by at most one.
struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};
constexpr Range block_of(int64_t n, int64_t i, int64_t parts) { return {n * i / parts, n * (i + 1) / parts}; }

// How rows travel to the ranks of their experts. alltoall: each row to the experts it chose, as many as there are, once
// the host has counted them. flex: every row to every rank of the group, whatever it chose, without asking the host.
enum class Dispatcher : uint8_t { alltoall, flex };

// This rank's place and the groups it exchanges with. Every rank makes one at the same point of the program.
class Mesh {
 public:
  // One rank by itself.
  Mesh();
  // Throws Error(Exit::usage) when the sizes do not fit the number of ranks.
  Mesh(World& world, const ParallelSizes& sizes, Dispatcher dispatcher = Dispatcher::alltoall);
  // A mesh of one, for whoever computes alone.
  static const Mesh& alone();
  // A place among ranks that are not there, for dry runs: its groups know their sizes and move nothing.
  static Mesh planned(const MeshRank& place, Dispatcher dispatcher = Dispatcher::alltoall);

  const MeshRank& place() const { return place_; }
  Dispatcher dispatcher() const { return dispatcher_; }
  bool is_alone() const { return place_.ranks() == 1; }

  Group& world() const { return *world_; }        // all ranks
  Group& stage() const { return *stage_; }        // of this pipeline stage, in the world's order
  Group& tensor() const { return *tensor_; }      // they split heads and vocabulary
  Group& context() const { return *context_; }    // they split the rows of a batch
  Group& rows() const { return *rows_; }          // tensor x context: all with the same batch
  Group& data() const { return *data_; }          // they have different batches
  Group& pipeline() const { return *pipeline_; }  // by stage
  Group& experts() const { return *experts_; }    // one set of all experts, rank e·expert_tensor + j

 private:
  MeshRank place_;
  Dispatcher dispatcher_ = Dispatcher::alltoall;
  std::unique_ptr<Group> world_, stage_, tensor_, context_, rows_, data_, pipeline_, experts_;
};

}  // namespace furlong
