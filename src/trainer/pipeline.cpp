#include "trainer/pipeline.h"

#include <algorithm>

namespace furlong {
namespace {

// Exchanges with the neighbours; what a stage sends and receives at one edge at a time goes in one call, so that
// neighbours that send to each other never wait for one another.
class Edges {
 public:
  Edges(Stream& stream, const Mesh& mesh)
      : stream_(stream), group_(mesh.pipeline()), stage_(mesh.place().stage), stages_(mesh.place().sizes.pipeline) {}

  bool first() const { return stage_ == 0; }
  bool last() const { return stage_ + 1 == stages_; }
  void before(const Tensor& to, const Tensor& from) { exchange(stage_ - 1, to, from); }
  void after(const Tensor& to, const Tensor& from) { exchange(stage_ + 1, to, from); }

 private:
  void exchange(int64_t peer, const Tensor& received, const Tensor& sent) {
    std::vector<Tensor> to(static_cast<size_t>(stages_)), from(to.size());
    to[static_cast<size_t>(peer)] = received;
    from[static_cast<size_t>(peer)] = sent;
    group_.exchange(stream_, to, from);
  }
  Stream& stream_;
  Group& group_;
  int64_t stage_, stages_;
};

}  // namespace

size_t in_flight(const MeshRank& place, size_t micro_batches) {
  return std::min(micro_batches, static_cast<size_t>(place.sizes.pipeline - place.stage));
}

void run_stage(Stream& stream, const Mesh& mesh, size_t micro_batches, const StageWork& work) {
  if (micro_batches == 0) return;
  Edges edges(stream, mesh);
  const size_t ahead = in_flight(mesh.place(), micro_batches) - 1;  // forwards before the first backward's own
  const Tensor nothing;
  const auto receive = [&](size_t i) {
    const Tensor input = work.input(i);
    if (!edges.first()) edges.before(input, nothing);
  };
  for (size_t i = 0; i < ahead; i++) {
    receive(i);
    work.forward(i);
    edges.after(nothing, work.output(i));
  }
  receive(ahead);
  for (size_t i = 0; i < micro_batches; i++) {
    const size_t next = i + ahead;
    if (next < micro_batches) work.forward(next);
    if (!edges.last()) edges.after(work.d_output(i), next < micro_batches ? work.output(next) : nothing);
    work.backward(i);
    const Tensor d = edges.first() ? nothing : work.d_input(i);
    const Tensor input = next + 1 < micro_batches ? work.input(next + 1) : nothing;
    if (!edges.first()) edges.before(input, d);
  }
}

}  // namespace furlong
