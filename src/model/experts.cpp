#include "model/experts.h"

#include <algorithm>
#include <cstring>

#include "model/collectives.h"
#include "ops/embed.h"
#include "ops/linear.h"
#include "ops/reduce.h"
#include "ops/swiglu.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

// ExpertSizes on this rank. Rank e·width_ranks + j of the group holds block e of the experts and block j of their
// width.
struct ExpertSizes {
  Group& group;
  int64_t experts, here, first;  // of the model; on this rank, from which on
  int64_t width_ranks, width, k, hidden;

  ExpertSizes(const ModelConfig& c, const Mesh& mesh)
      : group(mesh.experts()),
        experts(c.num_experts),
        here(c.num_experts / mesh.place().sizes.expert),
        first(mesh.place().expert * here),
        width_ranks(mesh.place().sizes.expert_tensor),
        width(c.moe_intermediate_size / width_ranks),
        k(c.experts_per_token),
        hidden(c.hidden_size) {}
  int64_t ranks() const { return group.size(); }
  int64_t most_choices() const { return std::min(k, here); }  // of a token among the experts here
};

Routing make_arrived(Arena& arena, const ExpertSizes& s, int64_t tokens, int64_t k, int64_t rows, DType acc) {
  return {.ids = arena.make("experts.ids", DType::i32, {tokens, k}),
          .weights = arena.make("experts.weights", acc, {tokens, k}),
          .offsets = arena.make("experts.offsets", DType::i32, {s.here + 1}),
          .row_of = arena.make("experts.row_of", DType::i32, {tokens, k}),
          .token_of = arena.make("experts.token_of", DType::i32, {rows})};
}

void make_work(Exec& exec, const ExpertSizes& s, int64_t rows, DType t, Arrivals& a) {
  a.rows = exec.arena.make("experts.rows", t, {rows, s.hidden});
  a.gate_up = exec.arena.make("experts.gate_up", t, {rows, 2 * s.width});
  a.act = exec.arena.make("experts.act", t, {rows, s.width});
}

// alltoall ------------------------------------------------------------------------------------------------------------

// How a layer's rows are cut. At home they lie by expert, so that each block of experts has a block of rows, which goes
// to all ranks of that block; arrived rows lie by the rank that sent them.
struct Routes {
  std::vector<int64_t> sent, arrived;  // starts by block of experts, by rank

  // Nothing is known on a dry stream: all that can arrive, and it is not said where from.
  Routes(Exec& exec, const ExpertSizes& s, const Batch* batch, const Arrivals& a, int64_t arrived_before) {
    if (exec.stream.is_dry()) {
      const int64_t most =
          batch == nullptr ? arrived_before : s.ranks() * most_rows_here(exec.mesh, batch->rows()) * s.most_choices();
      arrived = {0, most};
      return;
    }
    const auto count = [&](int64_t rank, int64_t first) {
      const auto* at = a.counts.data() + rank * s.experts + first;
      int64_t n = 0;
      for (int64_t e = 0; e < s.here; e++) n += at[e];
      return n;
    };
    sent = arrived = {0};
    for (int64_t first = 0; first < s.experts; first += s.here) {
      sent.push_back(sent.back() + count(s.group.rank(), first));
    }
    for (int64_t r = 0; r < s.ranks(); r++) arrived.push_back(arrived.back() + count(r, s.first));
  }
  int64_t rows() const { return arrived.back(); }
};

Tensor slice(const Tensor& t, const std::vector<int64_t>& starts, int64_t i, int64_t offset = 0) {
  return t.rows(offset + starts[static_cast<size_t>(i)], offset + starts[static_cast<size_t>(i) + 1]);
}

// arrived (R,C) = everyone's rows for the experts here, from `home` (T·k,C) of each.
void to_experts(Exec& exec, const ExpertSizes& s, const Routes& routes, Tensor arrived, Tensor home) {
  if (exec.stream.is_dry()) return;
  std::vector<Tensor> to, from;
  for (int64_t r = 0; r < s.ranks(); r++) {
    to.push_back(slice(arrived, routes.arrived, r));
    from.push_back(slice(home, routes.sent, r / s.width_ranks));
  }
  s.group.exchange(exec.stream, to, from);
}

// home (T·k,C) = what the experts made of its rows, summed over the blocks of their width.
void to_homes(Exec& exec, const ExpertSizes& s, const Routes& routes, Tensor home, Tensor arrived) {
  const Arena::Scope scope(exec.arena);
  const int64_t n = home.rows();
  const Tensor parts =
      s.width_ranks == 1 ? home : exec.arena.make("experts.parts", home.dtype(), {s.width_ranks * n, home.dim(1)});
  if (!exec.stream.is_dry()) {
    std::vector<Tensor> to, from;
    for (int64_t r = 0; r < s.ranks(); r++) {
      to.push_back(slice(parts, routes.sent, r / s.width_ranks, r % s.width_ranks * n));
      from.push_back(slice(arrived, routes.arrived, r));
    }
    s.group.exchange(exec.stream, to, from);
  }
  if (s.width_ranks > 1) sum_parts(exec, home, parts, s.width_ranks);
}

// Every rank's rows for every expert.
void count_rows(Exec& exec, const ExpertSizes& s, const Routing& routing, Arrivals& a) {
  std::vector<int32_t> offsets(static_cast<size_t>(s.experts) + 1);
  copy(exec.stream, Tensor(offsets.data(), DType::i32, {s.experts + 1}), routing.offsets);
  const std::string_view mine(reinterpret_cast<const char*>(offsets.data()), offsets.size() * sizeof(int32_t));
  a.counts.clear();
  for (const std::string& theirs : s.group.gather_bytes(mine)) {
    CHECK(theirs.size() == mine.size(), "{} bytes of counts", theirs.size());
    std::memcpy(offsets.data(), theirs.data(), theirs.size());
    for (size_t e = 0; e + 1 < offsets.size(); e++) a.counts.push_back(offsets[e + 1] - offsets[e]);
  }
}

// The choices of arrived rows: one each.
void sort_arrived(Exec& exec, const ExpertSizes& s, const Arrivals& a) {
  if (!exec.stream.is_dry()) {
    std::vector<int32_t> ids;
    for (int64_t r = 0; r < s.ranks(); r++) {
      for (int64_t e = 0; e < s.here; e++) {
        const int64_t n = a.counts[static_cast<size_t>(r * s.experts + s.first + e)];
        ids.insert(ids.end(), static_cast<size_t>(n), static_cast<int32_t>(e));
      }
    }
    copy(exec.stream, a.routing.ids, Tensor(ids.data(), DType::i32, {std::ssize(ids), 1}));
  }
  sort_by_expert(exec.stream, a.routing);
}

// A routing by which gather_rows takes rows by expert back to the order in which they arrived.
Routing back_again(const Routing& routing) {
  Routing r = routing;
  r.token_of = routing.row_of.reshape({routing.row_of.numel()});
  r.row_of = routing.token_of.reshape({routing.token_of.numel(), 1});
  return r;
}

void alltoall_forward(Exec& exec, const ExpertSizes& s, const MoeWeights& w, Tensor y, Tensor x, Tensor shared,
                      Tensor shared_logit, Tensor residual, const Batch& batch, const Routing& routing, bool replayed,
                      Arrivals& a) {
  auto& [stream, arena, mesh] = exec;
  const DType t = x.dtype();
  const int64_t choices = routing.ids.numel();
  if (!replayed) {
    sort_by_expert(stream, routing);
    if (!stream.is_dry()) count_rows(exec, s, routing, a);
  }
  const Routes routes(exec, s, &batch, a, 0);
  const int64_t rows = routes.rows();
  a.routing = make_arrived(arena, s, rows, 1, rows, accumulate_dtype(t));
  make_work(exec, s, rows, t, a);
  const Arena::Scope scope(arena);
  const Tensor home = arena.make("experts.home", t, {choices, s.hidden});
  const Tensor arrived = arena.make("experts.arrived", t, {rows, s.hidden});
  gather_rows(stream, home, x, routing);
  to_experts(exec, s, routes, arrived, home);
  sort_arrived(exec, s, a);
  gather_rows(stream, a.rows, arrived, a.routing);
  const Tensor out = arena.make("experts.out", t, {rows, s.hidden});
  rows_forward(exec, w, out, a);
  gather_rows(stream, arrived, out, back_again(a.routing));
  to_homes(exec, s, routes, home, arrived);
  combine(stream, y, home, shared, shared_logit, residual, routing);
}

void alltoall_backward(Exec& exec, const ExpertSizes& s, const MoeWeights& w, Tensor dx, Tensor dweights, Tensor dy,
                       const Routing& routing, const Arrivals& a, MoeWeights& grads) {
  auto& [stream, arena, mesh] = exec;
  const DType t = dy.dtype(), acc = accumulate_dtype(t);
  const int64_t choices = routing.ids.numel(), rows = a.rows.rows();
  const Arena::Scope scope(arena);
  const Routes routes(exec, s, nullptr, a, rows);
  // The weights of the rows, in the order in which these lie at home.
  const Tensor by_row = arena.make("experts.by_row", acc, {choices, 1});
  const Tensor row_of = routing.row_of.reshape({choices});
  scatter_rows(stream, by_row, routing.weights.reshape({choices, 1}), row_of);
  to_experts(exec, s, routes, a.routing.weights, by_row);
  const Tensor home = arena.make("experts.home", t, {choices, s.hidden});
  const Tensor arrived = arena.make("experts.arrived", t, {rows, s.hidden});
  gather_rows(stream, home, dy, routing);
  to_experts(exec, s, routes, arrived, home);
  const Tensor dby_row = arena.make("experts.dweights", acc, {rows, 1});
  const Tensor back = arena.make("experts.dx", t, {rows, s.hidden});
  set_zero(stream, back);
  rows_backward(exec, w, back, dby_row, arrived, a, grads);
  to_homes(exec, s, routes, home, back);
  gather_rows_backward(stream, dx, home, routing);
  to_homes(exec, s, routes, by_row, dby_row);
  embed(stream, dweights.reshape({choices, 1}), row_of, by_row);
}

// flex ----------------------------------------------------------------------------------------------------------------

// A routing by which combine and gather_rows_backward sum what the ranks made of each token, one after another.
Routing from_ranks(Exec& exec, const ExpertSizes& s, int64_t tokens, DType acc) {
  auto& [stream, arena, mesh] = exec;
  const int64_t parts = tokens * s.ranks();
  Routing r;
  r.row_of = arena.make("experts.parts_of", DType::i32, {tokens, s.ranks()});
  r.weights = arena.make("experts.ones", acc, {tokens, s.ranks()});
  r.ids = r.row_of;
  r.token_of = r.row_of.reshape({parts});
  route_to_ranks(stream, r.row_of, r.weights);
  return r;
}

// parts (ranks·T, C) = what every rank made of the tokens here, from its `all` (tokens of all ranks, C).
Tensor to_tokens(Exec& exec, const RowBlocks& blocks, Tensor all) {
  const int64_t n = blocks.mine().size(), ranks = blocks.group.size();
  const Tensor parts = exec.arena.make("experts.parts", all.dtype(), {ranks * n, all.dim(1)});
  if (exec.stream.is_dry()) return parts;
  std::vector<Tensor> to, from;
  for (int64_t r = 0; r < ranks; r++) {
    const Range theirs = blocks.of(static_cast<int>(r));
    to.push_back(parts.rows(r * n, (r + 1) * n));
    from.push_back(all.rows(theirs.begin, theirs.end));
  }
  blocks.group.exchange(exec.stream, to, from);
  return parts;
}

void flex_forward(Exec& exec, const ExpertSizes& s, const MoeWeights& w, Tensor y, Tensor x, Tensor shared,
                  Tensor shared_logit, Tensor residual, const Batch& batch, const Routing& routing, bool replayed,
                  Arrivals& a) {
  auto& [stream, arena, mesh] = exec;
  const DType t = x.dtype(), acc = accumulate_dtype(t);
  if (!replayed) a.counts = batch.expert_rows;
  const RowBlocks blocks = blocks_of_sizes(s.group, a.counts);
  const int64_t tokens = blocks.total();
  int64_t rows = tokens * s.most_choices();
  a.routing = make_arrived(arena, s, tokens, s.k, rows, acc);
  {
    const Arena::Scope scope(arena);
    copy(stream, a.routing.ids, all_gather(exec, blocks, "experts.gathered", routing.ids));
    copy(stream, a.routing.weights, all_gather(exec, blocks, "experts.gathered", routing.weights));
  }
  sort_by_expert(stream, a.routing, s.first, s.experts);
  if (stream.device() == Device::cpu && !stream.is_dry()) {
    rows = a.routing.offsets.as<int32_t>()[s.here];  // the host knows how many there are
    a.routing.token_of = a.routing.token_of.rows(0, rows);
  }
  make_work(exec, s, rows, t, a);
  const Arena::Scope scope(arena);
  gather_rows(stream, a.rows, all_gather(exec, blocks, "experts.gathered", x), a.routing);
  const Tensor out = arena.make("experts.out", t, {rows, s.hidden});
  rows_forward(exec, w, out, a);
  const Tensor sums = arena.make("experts.sums", t, {tokens, s.hidden});
  combine(stream, sums, out, {}, {}, {}, a.routing);
  const Tensor parts = to_tokens(exec, blocks, sums);
  combine(stream, y, parts, shared, shared_logit, residual, from_ranks(exec, s, x.rows(), acc));
}

void flex_backward(Exec& exec, const ExpertSizes& s, const MoeWeights& w, Tensor dx, Tensor dweights, Tensor dy,
                   const Arrivals& a, MoeWeights& grads) {
  auto& [stream, arena, mesh] = exec;
  const Arena::Scope scope(arena);
  const RowBlocks blocks = blocks_of_sizes(s.group, a.counts);
  const Tensor all = all_gather(exec, blocks, "experts.gathered", dy);
  const Tensor dx_all = arena.make_like("experts.dx", all);
  const Tensor dweights_all = arena.make_like("experts.dweights", a.routing.weights);
  set_zero(stream, dx_all);
  rows_backward(exec, w, dx_all, dweights_all, all, a, grads);
  const Tensor parts = to_tokens(exec, blocks, dx_all);
  gather_rows_backward(stream, dx, parts, from_ranks(exec, s, dy.rows(), a.routing.weights.dtype()));
  reduce_scatter(exec, blocks, dweights, dweights_all);
}

}  // namespace

void rows_forward(Exec& exec, const MoeWeights& w, Tensor out, const ExpertRows& e) {
  grouped_swiglu(exec.stream, e.act, e.gate_up, e.rows, w.gate_up, e.routing.offsets);
  grouped_linear(exec.stream, out, e.act, w.down, e.routing.offsets);
}

// The gradient of the down projection's input before the routing weight gives that weight's gradient.
void rows_backward(Exec& exec, const MoeWeights& w, Tensor dx, Tensor dweights, Tensor dy, const ExpertRows& e,
                   MoeWeights& grads) {
  auto& [stream, arena, mesh] = exec;
  const int64_t rows = e.rows.rows(), width = e.act.dim(1);
  const DType t = dy.dtype();
  const Tensor drows = arena.make("moe.drows", t, {rows, dy.dim(1)});
  gather_rows(stream, drows, dy, e.routing);
  const Tensor dact = arena.make("moe.dact", t, {rows, width});
  grouped_linear_dx(stream, dact, drows, w.down, e.routing.offsets);
  routing_weight_gradient(stream, dweights, dact, e.act, e.routing);
  scale_rows(stream, drows, e.routing);
  scale_rows(stream, dact, e.routing);
  grouped_linear_dw(stream, grads.down, drows, e.act, e.routing.offsets);
  const Tensor dgate_up = arena.make("moe.dgate_up", t, {rows, 2 * width});
  swiglu_backward(stream, dgate_up, dact, e.gate_up);
  grouped_linear_dw(stream, grads.gate_up, dgate_up, e.rows, e.routing.offsets);
  grouped_linear_dx(stream, drows, dgate_up, w.gate_up, e.routing.offsets);
  gather_rows_backward(stream, dx, drows, e.routing);
}

void experts_forward(Exec& exec, const ModelConfig& c, const MoeWeights& w, Tensor y, Tensor x, Tensor shared,
                     Tensor shared_logit, Tensor residual, const Batch& batch, const Routing& routing, bool replayed,
                     Arrivals& a) {
  const ExpertSizes s(c, exec.mesh);
  const auto forward = exec.mesh.dispatcher() == Dispatcher::flex ? flex_forward : alltoall_forward;
  forward(exec, s, w, y, x, shared, shared_logit, residual, batch, routing, replayed, a);
}

void experts_backward(Exec& exec, const ModelConfig& c, const MoeWeights& w, Tensor dx, Tensor dweights, Tensor dy,
                      const Routing& routing, const Arrivals& a, MoeWeights& grads) {
  const ExpertSizes s(c, exec.mesh);
  if (exec.mesh.dispatcher() == Dispatcher::flex) {
    flex_backward(exec, s, w, dx, dweights, dy, a, grads);
  } else {
    alltoall_backward(exec, s, w, dx, dweights, dy, routing, a, grads);
  }
}

}  // namespace furlong
