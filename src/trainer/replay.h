// Rollout routing replay: the policy is trained, and its old log-probs are computed, with the experts and gate weights
// that its samples were drawn with. The MTP head and a reference model keep their own.
#pragma once
#include <string>
#include <vector>

#include "data/trajectory.h"
#include "model/batch.h"
#include "model/config.h"
#include "rl/packing.h"

namespace furlong {

// The recorded routes of a pack's rows, in the exec's memory. The last row of a sequence, which was never sampled from
// and which no loss needs, takes the routes of the row before it. observe: with room for the routers' own choices. On a
// dry stream only the memory is made.
BatchRoutes replayed_routes(Exec&, const ModelConfig&, const Pack&, const std::vector<const Trajectory*>& trajectories,
                            bool observe);

struct RouteDifference {
  int64_t choices = 0;    // that were replayed
  int64_t differing = 0;  // those of them that the router would not have made
};
// After a forward pass over a pack with these routes.
RouteDifference route_difference(const ModelConfig&, const Pack&, const BatchRoutes&);

// Throws Error(Exit::input), naming `where`, unless every trajectory has the routes of all of its tokens but the last
// in a model like this.
void check_routes(const std::vector<Trajectory>& trajectories, const ModelConfig&, const std::string& where);

// The file of routes beside a trajectory file: N.jsonl and N.routes.safetensors.
std::string routes_path(const std::string& trajectory_path);
// Tensors "ids" (U8, or U16 of more than 256 experts) and "weights" (F32), each (rows, layers, experts of a token), and
// "samples" (n, 4) I64: for each trajectory the first row and the number of rows of its prompt, which samples of one
// prompt share, and of its response. Throws Error(Exit::resources).
void save_routes(const std::string& path, const std::vector<Trajectory>& trajectories, const ModelConfig&);
// Gives the trajectories of the file beside it their routes. Throws Error(Exit::input).
void load_routes(const std::string& path, std::vector<Trajectory>& trajectories, const ModelConfig&);

}  // namespace furlong
