#include "checkpoint/shards.h"

#include <algorithm>

#include "base/error.h"
#include "base/json.h"

namespace furlong {
namespace {

int64_t product(const std::vector<int64_t>& shape, size_t from = 0) {
  int64_t n = 1;
  for (size_t d = from; d < shape.size(); d++) n *= shape[d];
  return n;
}

// The size of dimension d of the block.
int64_t held_size(const Shard& s, size_t d) {
  if (d >= s.held.size() || s.held[d].empty()) return s.full_shape[d];
  int64_t n = 0;
  for (const Range& r : s.held[d]) n += r.size();
  return n;
}

int64_t block_numel(const Shard& s) {
  int64_t n = 1;
  for (size_t d = 0; d < s.full_shape.size(); d++) n *= held_size(s, d);
  return n;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Walk {
 public:
  Walk(const Shard& shard, Range window, const std::function<void(const Run&)>& f)
      : shard_(shard), window_(window), f_(f) {
    const auto& shape = shard.full_shape;
    for (size_t d = 0; d < shape.size() && d < shard.held.size(); d++) {
      if (!shard.held[d].empty()) inner_ = d;
    }
    full_.assign(shape.size(), 1);
    block_.assign(shape.size(), 1);
    for (size_t d = shape.size(); d-- > 1;) {
      full_[d - 1] = full_[d] * shape[d];
      block_[d - 1] = block_[d] * held_size(shard, d);
    }
  }

  // Of dimension d under the indices before it, whose numbers begin at `offset` of the whole tensor and `first` of the
  // block.
  void dimension(size_t d, int64_t offset, int64_t first) {
    if (d >= shard_.held.size() || shard_.held[d].empty()) return range(d, {0, shard_.full_shape[d]}, offset, first);
    for (const Range& r : shard_.held[d]) {
      range(d, r, offset, first);
      first += r.size() * block_[d];
    }
  }

 private:
  void range(size_t d, Range r, int64_t offset, int64_t first) {
    // The indices of r whose numbers can be wanted: i with window and own over them.
    const int64_t low = std::max((window_.begin - offset) / full_[d], r.begin + (shard_.own.begin - first) / block_[d]);
    const int64_t high = std::min(ceil_div(window_.end - offset, full_[d]),
                                  r.begin + ceil_div(std::max<int64_t>(shard_.own.end - first, 0), block_[d]));
    const Range wanted = {std::max(r.begin, low), std::min(r.end, high)};
    if (window_.end <= offset || wanted.size() <= 0) return;
    first += (wanted.begin - r.begin) * block_[d];
    if (d == inner_) return run(first, offset + wanted.begin * full_[d], wanted.size() * full_[d]);
    for (int64_t i = wanted.begin; i < wanted.end; i++, first += block_[d]) {
      dimension(d + 1, offset + i * full_[d], first);
    }
  }

  void run(int64_t first, int64_t full_first, int64_t count) {
    const int64_t begin =
        std::max({int64_t{0}, shard_.own.begin - first, window_.begin - full_first});  // of these numbers
    const int64_t end = std::min({count, shard_.own.end - first, window_.end - full_first});
    if (begin < end) f_({first + begin - shard_.own.begin, full_first + begin, end - begin});
  }

  const Shard& shard_;
  Range window_;
  const std::function<void(const Run&)>& f_;
  size_t inner_ = 0;                   // the last dimension that is held in part; all after it lies together
  std::vector<int64_t> full_, block_;  // numbers per index of a dimension: in the whole tensor, in the block
};

// This rank's place among those of its stage that hold the same numbers of a tensor, and how many they are.
std::pair<int64_t, int64_t> among_holders(const TensorSpec& spec, const MeshRank& place) {
  const Shard shard = shard_of(spec);
  // Key and value heads, of which there may be fewer than tensor parallel ranks: neighbours share one.
  const int64_t blocks = spec.split == Split::kv_heads ? spec.full_shape[0] / held_size(shard, 0) : 1;
  const auto kv_block = [&](const MeshRank& m) { return m.tensor * blocks / m.sizes.tensor; };
  int64_t before = 0, holders = 0;
  for (int64_t r = 0; r < place.stage_ranks(); r++) {
    const MeshRank m = mesh_rank(place.sizes, place.stage * place.stage_ranks() + r, place.ranks());
    bool same = true;
    switch (spec.split) {
      case Split::replicated: break;
      case Split::kv_heads: same = kv_block(m) == kv_block(place); break;
      case Split::vocab:
      case Split::heads:
      case Split::width:
      case Split::row: same = m.tensor == place.tensor; break;
      case Split::expert: same = m.expert == place.expert && m.expert_tensor == place.expert_tensor; break;
    }
    if (same && r < place.stage_rank()) before++;
    if (same) holders++;
  }
  return {before, holders};
}

Json json_of(const Range& r) { return {r.begin, r.end}; }

Range range_from(const Json& json) { return {json.at(0).get<int64_t>(), json.at(1).get<int64_t>()}; }

}  // namespace

int64_t Shard::full_numel() const { return product(full_shape); }

bool Shard::is_whole() const {
  return std::all_of(held.begin(), held.end(), [](const auto& h) { return h.empty(); }) &&
         own == Range{0, full_numel()};
}

void for_each_run_in(const Shard& shard, Range window, const std::function<void(const Run&)>& f) {
  if (shard.own.size() > 0 && window.size() > 0) Walk(shard, window, f).dimension(0, 0, 0);
}

std::vector<Run> runs_of(const Shard& shard) {
  std::vector<Run> runs;
  for_each_run_in(shard, {0, shard.full_numel()}, [&](const Run& run) { runs.push_back(run); });
  return runs;
}

Range numbers_in(const Shard& shard, Range window) {
  Range numbers = {0, 0};
  bool any = false;
  for_each_run_in(shard, window, [&](const Run& run) {
    if (!any) numbers.begin = run.first;
    any = true;
    numbers.end = run.first + run.count;
  });
  return numbers;
}

Shard shard_of(const TensorSpec& spec) {
  Shard shard{.full_shape = spec.full_shape, .held = spec.held, .own = {}};
  shard.own = spec.owned ? *spec.owned : Range{0, block_numel(shard)};
  return shard;
}

Shard share_of(const TensorSpec& spec, const MeshRank& place) {
  Shard shard = shard_of(spec);
  if (spec.copied || !spec.here) {
    shard.own = {0, 0};
  } else if (!spec.owned) {
    const auto [index, holders] = among_holders(spec, place);
    shard.own = block_of(shard.own.size(), index, holders);
  }
  return shard;
}

std::vector<Shard> shares_of(const Weights& weights) {
  std::vector<Shard> shares;
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& t) {
        shares.push_back(share_of(spec, weights.rank()));
        if (!t.defined()) shares.back().own = {0, 0};
      },
      weights);
  return shares;
}

std::string text_of(const Shard& shard) {
  Json held = Json::array();
  for (size_t d = 0; d < std::min(shard.held.size(), shard.full_shape.size()); d++) {
    held.push_back(Json::array());
    for (const Range& r : shard.held[d]) held.back().push_back(json_of(r));
  }
  return Json{{"held", held}, {"of", shard.full_shape}, {"own", json_of(shard.own)}}.dump();
}

Shard shard_from_text(const std::string& text, const std::string& where) {
  constexpr int64_t most = int64_t{1} << 62;
  Shard shard;
  bool good = true;
  try {
    const Json json = parse_json(text, where);
    shard.full_shape = json.at("of").get<std::vector<int64_t>>();
    shard.own = range_from(json.at("own"));
    int64_t numel = 1;
    for (const int64_t d : shard.full_shape) {
      good = good && d > 0 && d <= most / numel;
      if (good) numel *= d;
    }
    const Json& held = json.at("held");
    good = good && !shard.full_shape.empty() && held.is_array() &&
           held.size() <= std::min(shard.held.size(), shard.full_shape.size());
    for (size_t d = 0; good && d < held.size(); d++) {
      int64_t end = 0;
      for (const Json& range : held[d]) {
        const Range r = range_from(range);
        good = good && end <= r.begin && r.begin < r.end && r.end <= shard.full_shape[d];
        end = r.end;
        shard.held[d].push_back(r);
      }
    }
  } catch (const Json::exception&) {
    good = false;
  }
  if (!good || shard.own.begin < 0 || shard.own.begin >= shard.own.end || shard.own.end > block_numel(shard)) {
    fail(Exit::input, "{}: \"{}\" is no part of a tensor", where, text);
  }
  return shard;
}

}  // namespace furlong
