#include "trainer/replay.h"

#include <algorithm>
#include <cstring>
#include <map>

#include "base/error.h"
#include "checkpoint/safetensors.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

int64_t width_of(const ModelConfig& c) { return c.num_layers * c.experts_per_token; }

// The numbers of a tensor of the file.
template <class T>
std::vector<T> numbers_of(const TensorEntry& entry) {
  std::vector<T> out(static_cast<size_t>(entry.numel()));
  std::memcpy(out.data(), entry.bytes.data(), out.size() * sizeof(T));
  return out;
}

const TensorEntry& entry_of(const SafetensorsFile& file, const std::string& name,
                            std::initializer_list<const char*> dtypes, const std::vector<int64_t>& shape) {
  const TensorEntry* found = file.find(name);
  if (found == nullptr) fail(Exit::input, "{}: there is no tensor {}", file.path(), name);
  const bool known = std::find(dtypes.begin(), dtypes.end(), found->dtype) != dtypes.end();
  const bool fits = found->shape.size() == shape.size() &&
                    std::equal(shape.begin(), shape.end(), found->shape.begin(),
                               [](int64_t wanted, int64_t there) { return wanted < 0 || wanted == there; });
  if (!known || !fits) {
    fail(Exit::input, "{}: {} is {}; routes of this model are {} with {} layers and {} experts a token", file.path(),
         name, found->describe(), *dtypes.begin(), shape.size() > 1 ? shape[1] : 0, shape.back());
  }
  return *found;
}

}  // namespace

BatchRoutes replayed_routes(Exec& exec, const ModelConfig& c, const Pack& pack,
                            const std::vector<const Trajectory*>& trajectories, bool observe) {
  auto& [stream, arena, mesh] = exec;
  const int64_t rows = pack.batch.rows(), layers = c.num_layers, k = c.experts_per_token;
  const auto choices = [&](const char* name, DType t) { return arena.make(name, t, {layers * rows, k}); };
  BatchRoutes routes{.ids = choices("routes.ids", DType::i32),
                     .weights = choices("routes.weights", DType::f32),
                     .given = true,
                     .own = observe ? choices("routes.own", DType::i32) : Tensor()};
  if (stream.is_dry() || rows == 0) return routes;
  std::vector<int32_t> ids(static_cast<size_t>(routes.ids.numel()));
  std::vector<float> weights(ids.size());
  int64_t row = 0;
  for (const size_t sample : pack.samples) {
    const Trajectory& t = *trajectories[sample];
    CHECK(t.routes != nullptr && t.routes->rows() + 1 == std::ssize(t.tokens), "a trajectory without its routes");
    for (int64_t r = 0; r < std::ssize(t.tokens); r++, row++) {
      const int64_t from = std::min(r, t.routes->rows() - 1);
      for (int64_t layer = 0; layer < layers; layer++) {
        const auto to = static_cast<ptrdiff_t>((layer * rows + row) * k);
        std::copy_n(t.routes->ids(from) + layer * k, k, ids.begin() + to);
        std::copy_n(t.routes->weights(from) + layer * k, k, weights.begin() + to);
      }
    }
  }
  copy(stream, routes.ids, Tensor(ids.data(), DType::i32, {layers * rows, k}));
  copy(stream, routes.weights, Tensor(weights.data(), DType::f32, {layers * rows, k}));
  return routes;
}

RouteDifference route_difference(const ModelConfig& c, const Pack& pack, const BatchRoutes& routes) {
  const OnHost given(routes.ids), own(routes.own);
  const int64_t rows = pack.batch.rows(), k = c.experts_per_token;
  // The last row of each sequence is not a replayed one.
  std::vector<uint8_t> replayed(static_cast<size_t>(rows), 1);
  const auto starts = pack.batch.starts();
  for (size_t i = 1; i < starts.size(); i++) replayed[static_cast<size_t>(starts[i]) - 1] = 0;
  RouteDifference out;
  for (int64_t i = 0; i < c.num_layers * rows; i++) {
    if (replayed[static_cast<size_t>(i % rows)] == 0) continue;
    const auto* theirs = given.view().as<int32_t>() + i * k;
    const auto* ours = own.view().as<int32_t>() + i * k;
    out.choices += k;
    out.differing +=
        std::count_if(theirs, theirs + k, [&](int32_t id) { return std::find(ours, ours + k, id) == ours + k; });
  }
  return out;
}

void check_routes(const std::vector<Trajectory>& trajectories, const ModelConfig& c, const std::string& where) {
  for (size_t i = 0; i < trajectories.size(); i++) {
    const Trajectory& t = trajectories[i];
    if (t.routes == nullptr) fail(Exit::input, "{}: trajectory {} has no recorded routes", where, i + 1);
    const RouteRows *prompt = t.routes->prompt.get(), *response = &t.routes->response;
    const bool complete = prompt != nullptr && t.routes->rows() + 1 == std::ssize(t.tokens) && t.routes->rows() > 0;
    if (!complete) fail(Exit::input, "{}: trajectory {} has not the routes of all its tokens", where, i + 1);
    for (const RouteRows* part : {prompt, response}) {
      if (part->rows() > 0 && part->width != width_of(c)) {
        fail(Exit::input, "{}: trajectory {} has routes of another model", where, i + 1);
      }
      for (const uint16_t id : part->ids) {
        if (id >= c.num_experts) {
          fail(Exit::input, "{}: trajectory {} was routed to expert {} of {}", where, i + 1, id, c.num_experts);
        }
      }
    }
  }
}

std::string routes_path(const std::string& trajectory_path) {
  const size_t dot = trajectory_path.rfind('.'), slash = trajectory_path.rfind('/');
  const bool named = dot != std::string::npos && (slash == std::string::npos || dot > slash);
  return (named ? trajectory_path.substr(0, dot) : trajectory_path) + ".routes.safetensors";
}

void save_routes(const std::string& path, const std::vector<Trajectory>& trajectories, const ModelConfig& c) {
  std::vector<const RouteRows*> parts;
  std::map<const RouteRows*, int64_t> first;
  int64_t rows = 0;
  const auto place = [&](const RouteRows* part) {
    const auto [at, fresh] = first.try_emplace(part, rows);
    if (fresh) {
      parts.push_back(part);
      rows += part->rows();
    }
    return at->second;
  };
  std::vector<int64_t> samples;
  for (const Trajectory& t : trajectories) {
    const RouteRows &prompt = *t.routes->prompt, &response = t.routes->response;
    for (const int64_t n : {place(&prompt), prompt.rows(), place(&response), response.rows()}) samples.push_back(n);
  }
  const std::vector<int64_t> shape = {rows, c.num_layers, c.experts_per_token};
  const bool narrow = c.num_experts <= 256;
  write_safetensors(
      path,
      {{.name = "ids",
        .dtype = narrow ? "U8" : "U16",
        .shape = shape,
        .emit =
            [&](const ByteSink& sink) {
              for (const RouteRows* part : parts) {
                const std::vector<uint8_t> bytes(part->ids.begin(), part->ids.end());
                narrow ? sink(bytes.data(), bytes.size()) : sink(part->ids.data(), part->ids.size() * 2);
              }
            }},
       {.name = "weights",
        .dtype = "F32",
        .shape = shape,
        .emit =
            [&](const ByteSink& sink) {
              for (const RouteRows* part : parts) sink(part->weights.data(), part->weights.size() * 4);
            }},
       {.name = "samples", .dtype = "I64", .shape = {std::ssize(trajectories), 4}, .emit = [&](const ByteSink& sink) {
          sink(samples.data(), samples.size() * 8);
        }}});
}

void load_routes(const std::string& path, std::vector<Trajectory>& trajectories, const ModelConfig& c) {
  const SafetensorsFile file(path);
  const TensorEntry& ids = entry_of(file, "ids", {"U8", "U16"}, {-1, c.num_layers, c.experts_per_token});
  const int64_t rows = ids.shape[0], width = width_of(c);
  const TensorEntry& weights = entry_of(file, "weights", {"F32"}, {rows, c.num_layers, c.experts_per_token});
  const auto samples = numbers_of<int64_t>(entry_of(file, "samples", {"I64"}, {-1, 4}));
  if (samples.size() != 4 * trajectories.size()) {
    fail(Exit::input, "{}: routes of {} trajectories, there are {}", path, samples.size() / 4, trajectories.size());
  }
  const auto part = [&](int64_t begin, int64_t count) {
    if (begin < 0 || count < 0 || begin > rows || count > rows - begin) {
      fail(Exit::input, "{}: a trajectory has rows {} to {} of {}", path, begin, begin + count, rows);
    }
    RouteRows out{.width = width, .ids = {}, .weights = std::vector<float>(static_cast<size_t>(count * width))};
    const auto from = static_cast<size_t>(begin * width), n = out.weights.size();
    std::memcpy(out.weights.data(), weights.bytes.data() + from * 4, n * 4);
    out.ids.resize(n);
    if (ids.dtype == "U8") {
      std::copy_n(ids.bytes.data() + from, n, out.ids.begin());
    } else {
      std::memcpy(out.ids.data(), ids.bytes.data() + from * 2, n * 2);
    }
    return out;
  };
  std::map<std::pair<int64_t, int64_t>, std::shared_ptr<const RouteRows>> prompts;
  for (size_t i = 0; i < trajectories.size(); i++) {
    const int64_t* s = samples.data() + 4 * i;
    auto& prompt = prompts[{s[0], s[1]}];
    if (!prompt) prompt = std::make_shared<const RouteRows>(part(s[0], s[1]));
    trajectories[i].routes = std::make_shared<const Routes>(Routes{prompt, part(s[2], s[3])});
  }
  check_routes(trajectories, c, path);
}

}  // namespace furlong
