#include "parallel/mesh.h"

#include "base/error.h"

namespace furlong {
namespace {

class PlannedGroup : public Group {
 public:
  using Group::Group;
  void exchange(Stream& stream, std::span<const Tensor>, std::span<const Tensor>) override {
    CHECK(stream.is_dry(), "an exchange among ranks that are only planned");
  }
  std::vector<std::string> gather_bytes(std::string_view) override {
    CHECK(false, "messages among ranks that are only planned");
    return {};
  }
};

}  // namespace

std::string mesh_problem(const ParallelSizes& s, int64_t ranks) {
  for (const auto& [size, name] :
       {std::pair(s.tensor, "tensor"), std::pair(s.pipeline, "pipeline"), std::pair(s.context, "context"),
        std::pair(s.expert, "expert"), std::pair(s.expert_tensor, "expert-tensor")}) {
    if (size < 1) return fmt::format("the {} parallel size is {}; it is at least 1", name, size);
  }
  const int64_t dense = s.tensor * s.context * s.pipeline, experts = s.expert * s.expert_tensor * s.pipeline;
  if (ranks % dense != 0) {
    return fmt::format(
        "{} rank(s) cannot be split by tensor {} x context {} x pipeline {} = {}: start a multiple of it", ranks,
        s.tensor, s.context, s.pipeline, dense);
  }
  if (ranks % experts != 0) {
    return fmt::format(
        "{} rank(s) cannot be split by expert {} x expert-tensor {} x pipeline {} = {}: start a multiple of it", ranks,
        s.expert, s.expert_tensor, s.pipeline, experts);
  }
  return {};
}

MeshRank mesh_rank(const ParallelSizes& s, int64_t rank, int64_t ranks) {
  const std::string problem = mesh_problem(s, ranks);
  CHECK(problem.empty() && rank >= 0 && rank < ranks, "rank {} of {}: {}", rank, ranks, problem);
  MeshRank m{.sizes = s};
  m.data_size = ranks / (s.tensor * s.context * s.pipeline);
  m.expert_data_size = ranks / (s.expert * s.expert_tensor * s.pipeline);
  m.tensor = rank % s.tensor;
  m.context = rank / s.tensor % s.context;
  m.data = rank / (s.tensor * s.context) % m.data_size;
  m.stage = rank / (s.tensor * s.context * m.data_size);
  const int64_t in_stage = rank % (ranks / s.pipeline);
  m.expert_tensor = in_stage % s.expert_tensor;
  m.expert = in_stage / s.expert_tensor % s.expert;
  m.expert_data = in_stage / (s.expert_tensor * s.expert);
  return m;
}

Mesh::Mesh() {
  for (auto* group : {&world_, &stage_, &tensor_, &context_, &rows_, &data_, &pipeline_, &experts_})
    *group = solo_group();
}

Mesh::Mesh(World& world, const ParallelSizes& sizes, Dispatcher dispatcher) : dispatcher_(dispatcher) {
  if (const std::string problem = mesh_problem(sizes, world.size()); !problem.empty()) fail(Exit::usage, "{}", problem);
  place_ = mesh_rank(sizes, world.rank(), world.size());
  std::vector<MeshRank> all;
  for (int r = 0; r < world.size(); r++) all.push_back(mesh_rank(sizes, r, world.size()));
  // The ranks that agree with this one in what `key` takes of a place, in the order of ranks.
  const auto like_me = [&](auto key) {
    std::vector<int> ranks;
    for (int r = 0; r < world.size(); r++) {
      if (key(all[static_cast<size_t>(r)]) == key(place_)) ranks.push_back(r);
    }
    return world.group(ranks);
  };
  using M = const MeshRank&;
  world_ = like_me([](M) { return 0; });
  stage_ = like_me([](M m) { return m.stage; });
  tensor_ = like_me([](M m) { return std::tuple(m.stage, m.data, m.context); });
  context_ = like_me([](M m) { return std::tuple(m.stage, m.data, m.tensor); });
  rows_ = like_me([](M m) { return std::tuple(m.stage, m.data); });
  data_ = like_me([](M m) { return std::tuple(m.stage, m.row_part()); });
  pipeline_ = like_me([](M m) { return std::tuple(m.data, m.row_part()); });
  experts_ = like_me([](M m) { return std::tuple(m.stage, m.expert_data); });
}

Mesh Mesh::planned(const MeshRank& m, Dispatcher dispatcher) {
  Mesh mesh;
  mesh.dispatcher_ = dispatcher;
  if (m.ranks() == 1) return mesh;
  mesh.place_ = m;
  const auto group = [](int64_t rank, int64_t size) {
    return std::make_unique<PlannedGroup>(static_cast<int>(rank), static_cast<int>(size));
  };
  const ParallelSizes& s = m.sizes;
  mesh.world_ = group(m.stage * m.stage_ranks() + m.stage_rank(), m.ranks());
  mesh.stage_ = group(m.stage_rank(), m.stage_ranks());
  mesh.tensor_ = group(m.tensor, s.tensor);
  mesh.context_ = group(m.context, s.context);
  mesh.rows_ = group(m.row_part(), m.row_parts());
  mesh.data_ = group(m.data, m.data_size);
  mesh.pipeline_ = group(m.stage, s.pipeline);
  mesh.experts_ = group(m.expert * s.expert_tensor + m.expert_tensor, s.expert * s.expert_tensor);
  return mesh;
}

const Mesh& Mesh::alone() {
  static const Mesh mesh;
  return mesh;
}

}  // namespace furlong
