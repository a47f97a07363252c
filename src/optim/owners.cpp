#include "optim/owners.h"

#include <algorithm>
#include <cstring>

#include "ops/reduce.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

constexpr int64_t unit = 64;  // numbers: the ranges of owners begin at multiples of it

}  // namespace

Tensor flat(const Tensor& tensor, int64_t first, int64_t count) {
  CHECK(tensor.contiguous() && first >= 0 && first + count <= tensor.numel(), "[{}, {}) of {}", first, first + count,
        tensor.describe());
  return {static_cast<char*>(tensor.data()) + static_cast<size_t>(first) * size_of(tensor.dtype()),
          tensor.dtype(),
          {count},
          tensor.device()};
}

Range owned_block(int64_t numel, int64_t index, int64_t holders) {
  const Range units = block_of((numel + unit - 1) / unit, index, holders);
  return {std::min(units.begin * unit, numel), std::min(units.end * unit, numel)};
}

Range owned_numbers(const ModelConfig& config, const TensorSpec& spec, const MeshRank& place) {
  if (!spec.here || spec.copied) return {};
  const auto holders = holders_of(config, spec, place);
  const auto me = std::find(holders.begin(), holders.end(), static_cast<int>(place.stage_rank()));
  CHECK(me != holders.end(), "{}: rank {} of the stage is none of its holders", spec.name, place.stage_rank());
  return owned_block(spec.numel(), me - holders.begin(), std::ssize(holders));
}

Owners::Owners(const ModelConfig& config, const Weights& weights, DType main_grads, bool train_mtp, int64_t block,
               const Mesh& mesh, const Stream* stream)
    : mesh_(mesh), config_(config), specs_(weights.specs()), parts_(mtp_part(config) + 1) {
  const MeshRank& place = mesh.place();
  tied_stages_ = config.head_is_embedding() && place.sizes.pipeline > 1;
  if (tied_stages_) {
    joining_piece_ = std::max(unit, std::min(block, specs_.front().numel()));
    const DType dtype = weights.dtype() == DType::f64 ? DType::f64 : main_grads;
    if (place.stage == 0) joining_ = Buffer(static_cast<size_t>(joining_piece_) * size_of(dtype), weights.device());
  }
  int64_t most = 0, ranks = 1;
  for (size_t i = 0; i < specs_.size(); i++) {
    const TensorSpec& spec = specs_[i];
    trained_.push_back(weights.tensors()[i].defined() && !spec.copied && (train_mtp || !spec.mtp));
    holders_.push_back(spec.here && !spec.copied ? holders_of(config, spec, place) : std::vector<int>());
    const auto& holders = holders_.back();
    index_.push_back(std::find(holders.begin(), holders.end(), static_cast<int>(place.stage_rank())) - holders.begin());
    owned_.push_back(owned_numbers(config, spec, place));
    if (!trained_.back() || holders.size() < 2) continue;
    // The first rank's block may be smaller than others by a unit.
    most = std::max(most, owned_block(spec.numel(), 0, std::ssize(holders)).size() + unit);
    ranks = std::max<int64_t>(ranks, std::ssize(holders));
  }
  if (ranks == 1) return;
  piece_ = std::min(most, std::max(block / ranks / unit * unit, unit));
  // Gradients in bf16 are summed in fp32, which needs a place of its own behind those of the ranks.
  const bool widened = main_grads == DType::bf16;
  const DType dtype = weights.dtype() == DType::f64 ? DType::f64 : DType::f32;
  slot_bytes_ = static_cast<size_t>(piece_) * size_of(dtype);
  staging_ = Buffer(slot_bytes_ * static_cast<size_t>(ranks + widened), weights.device());
  if (weights.device() == Device::cuda) {
    CHECK(stream != nullptr, "weights on a device without a stream");
    beside_ = std::make_unique<Stream>(stream->threads(), Device::cuda);
    ready_ = cuda::make_event();
  }
}

std::function<Range(const TensorSpec&)> Owners::rule() const {
  if (mesh_.is_alone()) return {};
  return [this](const TensorSpec& spec) {
    const auto at =
        std::find_if(specs_.begin(), specs_.end(), [&](const TensorSpec& s) { return s.name == spec.name; });
    CHECK(at != specs_.end(), "{} is no tensor of these weights", spec.name);
    return owned_[static_cast<size_t>(at - specs_.begin())];
  };
}

Tensor Owners::view(const Weights& whole, size_t tensor) const {
  const Tensor& t = whole.tensors()[tensor];
  if (mesh_.is_alone() || !t.defined()) return t;
  return flat(t, owned_[tensor].begin, owned_[tensor].size());
}

std::vector<Tensor> Owners::views(const Weights& whole) const {
  std::vector<Tensor> out;
  for (size_t i = 0; i < specs_.size(); i++) out.push_back(view(whole, i));
  return out;
}

void Owners::reduce_tensor(Stream& stream, size_t tensor, const Tensor& grad) {
  const auto& holders = holders_[tensor];
  const auto n = std::ssize(holders), me = static_cast<std::ptrdiff_t>(index_[tensor]);
  const auto place = [&](std::ptrdiff_t slot, DType dtype, int64_t count) {
    return Tensor(static_cast<char*>(staging_.data()) + static_cast<size_t>(slot) * slot_bytes_, dtype, {count},
                  grad.device());
  };
  // What each owner takes in the round that begins at `done`.
  const auto share = [&](std::ptrdiff_t holder, int64_t done) {
    const Range all = owned_block(grad.numel(), holder, n);
    const int64_t begin = std::min(all.begin + done, all.end);
    return flat(grad, begin, std::min(piece_, all.end - begin));
  };
  int64_t longest = 0;
  for (std::ptrdiff_t j = 0; j < n; j++) longest = std::max(longest, owned_block(grad.numel(), j, n).size());
  std::vector<Tensor> to(static_cast<size_t>(mesh_.stage().size())), from(to.size());
  for (int64_t done = 0; done < longest; done += piece_) {
    const Tensor mine = share(me, done);
    for (std::ptrdiff_t j = 0; j < n; j++) {
      const auto r = static_cast<size_t>(holders[static_cast<size_t>(j)]);
      from[r] = j == me ? Tensor() : share(j, done);
      to[r] = j == me ? Tensor() : place(j, grad.dtype(), mine.numel());
    }
    mesh_.stage().exchange(stream, to, from);
    if (mine.numel() == 0) continue;
    const auto part = [&](std::ptrdiff_t j) { return j == me ? mine : place(j, grad.dtype(), mine.numel()); };
    const bool widened = grad.dtype() == DType::bf16;
    const Tensor sum = widened ? place(n, DType::f32, mine.numel()) : part(0);
    if (widened) convert(stream, sum, part(0));
    for (std::ptrdiff_t j = 1; j < n; j++) add(stream, sum, part(j));
    if (sum.data() != mine.data()) convert(stream, mine, sum);
  }
}

Stream& Owners::reduce(Stream& stream, const Weights& grads, int part) {
  Stream& at = beside_ != nullptr ? *beside_ : stream;
  if (slot_bytes_ == 0 || stream.is_dry() || waits(part) || !reduced_.insert(part).second) return at;
  if (beside_ != nullptr) {
    cuda::mark(stream.queue(), *ready_);
    cuda::wait_for(at.queue(), *ready_);
  }
  for (size_t i = 0; i < specs_.size(); i++) {
    if (specs_[i].part == part && trained_[i] && holders_[i].size() > 1) reduce_tensor(at, i, grads.tensors()[i]);
  }
  return at;
}

// In pieces, from the last stage to the first.
void Owners::join_stages(Stream& stream, const Weights& grads) {
  joined_ = true;
  const MeshRank& place = mesh_.place();
  const bool first = place.stage == 0, last = place.stage + 1 == place.sizes.pipeline;
  if (first == last) return;
  std::vector<Tensor> to(static_cast<size_t>(mesh_.pipeline().size())), from(to.size());
  for (int64_t begin = 0; begin < grads.embed.numel(); begin += joining_piece_) {
    const int64_t count = std::min(joining_piece_, grads.embed.numel() - begin);
    const Tensor mine = flat(grads.embed, begin, count);
    if (first) to.back() = Tensor(joining_.data(), mine.dtype(), {count}, mine.device());
    if (last) from.front() = mine;
    mesh_.pipeline().exchange(stream, to, from);
    if (first) add(stream, mine, to.back());
  }
}

void Owners::reduce_rest(Stream& stream, const Weights& grads) {
  if (tied_stages_ && !joined_ && !stream.is_dry()) join_stages(stream, grads);
  for (int part = parts_ - 1; part >= 0; part--) reduce(stream, grads, part);
  if (beside_ == nullptr) return;
  cuda::mark(beside_->queue(), *ready_);
  cuda::wait_for(stream.queue(), *ready_);
}

void Owners::spread(Stream& stream, const Weights& weights) {
  if (mesh_.is_alone()) return;
  std::vector<Tensor> to(static_cast<size_t>(mesh_.stage().size())), from(to.size());
  for (size_t i = 0; i < specs_.size(); i++) {
    const auto& holders = holders_[i];
    if (!trained_[i] || holders.size() < 2) continue;
    std::fill(to.begin(), to.end(), Tensor());
    std::fill(from.begin(), from.end(), Tensor());
    const auto n = std::ssize(holders);
    for (std::ptrdiff_t j = 0; j < n; j++) {
      if (j == index_[i]) continue;
      const auto r = static_cast<size_t>(holders[static_cast<size_t>(j)]);
      const Range theirs = owned_block(specs_[i].numel(), j, n);
      from[r] = view(weights, i);
      to[r] = flat(weights.tensors()[i], theirs.begin, theirs.size());
    }
    mesh_.stage().exchange(stream, to, from);
  }
  // The last stage's MTP head reads the first stage's embedding; tied, it is the head there.
  const MeshRank& place = mesh_.place();
  const bool first = place.stage == 0, last = place.stage + 1 == place.sizes.pipeline;
  if (first == last || (!specs_.back().mtp && !tied_stages_)) return;
  std::vector<Tensor> down(static_cast<size_t>(mesh_.pipeline().size())), up(down.size());
  if (first) up.back() = weights.embed;
  if (last) down.front() = weights.embed;
  mesh_.pipeline().exchange(stream, down, up);
}

double Owners::sum_of_squares(Stream& stream, const Weights& grads) {
  double mine = 0;
  for (size_t i = 0; i < specs_.size(); i++) {
    if (trained_[i]) mine += furlong::sum_of_squares(stream, view(grads, i));
  }
  if (mesh_.is_alone()) return mine;
  double all = 0;
  for (const auto& bytes : mesh_.world().gather_bytes({reinterpret_cast<const char*>(&mine), sizeof mine})) {
    double one = 0;
    std::memcpy(&one, bytes.data(), sizeof one);
    all += one;
  }
  return all;
}

std::string Owners::whole(const Weights& like, size_t tensor) const {
  const Tensor mine = view(like, tensor);
  std::string bytes;
  if (mine.numel() > 0 && !specs_[tensor].copied) {
    const OnHost host(mine);
    bytes.assign(static_cast<const char*>(host.view().data()), mine.bytes());
  }
  const auto messages = mesh_.world().gather_bytes(bytes);
  if (mesh_.world().rank() != 0) return {};
  const size_t size = size_of(specs_[tensor].always_f32 && like.dtype() == DType::bf16 ? DType::f32 : like.dtype());
  std::string all(static_cast<size_t>(specs_[tensor].full_numel()) * size, '\0');
  for (size_t r = 0; r < messages.size(); r++) {
    const MeshRank place = mesh_rank(mesh_.place().sizes, static_cast<int64_t>(r), mesh_.place().ranks());
    const TensorSpec spec = tensor_registry(config_, place)[tensor];
    const Range owned = owned_numbers(config_, spec, place);
    CHECK(messages[r].size() == static_cast<size_t>(owned.size()) * size, "{}: rank {} sent {} bytes", spec.name, r,
          messages[r].size());
    if (owned.size() == 0) continue;
    for_each_run(spec, [&](int64_t first, int64_t full_first, int64_t count) {
      const int64_t begin = std::max(first, owned.begin), end = std::min(first + count, owned.end);
      if (begin >= end) return;
      std::memcpy(all.data() + static_cast<size_t>(full_first + begin - first) * size,
                  messages[r].data() + static_cast<size_t>(begin - owned.begin) * size,
                  static_cast<size_t>(end - begin) * size);
    });
  }
  return all;
}

}  // namespace furlong
