#include "optim/offload.h"

#include <algorithm>
#include <utility>

#include "ops/reduce.h"

namespace furlong {
namespace {

constexpr int64_t cut_at = 64;  // a tensor is cut at multiples of so many numbers, which keeps its parts aligned
constexpr size_t slots = 3;     // blocks between the way down and the way up

// The memory from the first to the last number of a run of pieces.
std::pair<char*, size_t> range(const std::vector<Tensor>& tensors, const std::vector<Offload::Piece>& pieces) {
  const auto at = [&](const Offload::Piece& p, int64_t number) {
    const Tensor& t = tensors[p.tensor];
    return static_cast<char*>(t.data()) + static_cast<size_t>(number) * size_of(t.dtype());
  };
  char* begin = at(pieces.front(), pieces.front().first);
  char* end = at(pieces.back(), pieces.back().first + pieces.back().count);
  return {begin, static_cast<size_t>(end - begin)};
}

size_t whole(size_t bytes) { return (bytes + 4095) / 4096 * 4096; }

}  // namespace

Offload::Offload(const ModelConfig& config, std::vector<Tensor> weights, DType dtype, const Weights& masters,
                 Placement place, DType main_grads, bool overlap, bool train_mtp, int64_t block)
    : weights_(std::move(weights)),
      masters_(masters),
      overlap_(overlap),
      masters_travel_(dtype == masters.dtype()),
      main_grads_(main_grads),
      host_(*place.threads),
      down_(cuda::make_queue()),
      up_(cuda::make_queue()),
      ready_(cuda::make_event()) {
  // Owned parts of neighbours do not lie together.
  cut(place.on_host, !place.owned, train_mtp, block);
  if (overlap) {
    if (!train_mtp) place.only_mtp = false;
    place.only_on_host = true;
    grads_ = Weights(config, main_grads, place);
  }
  ring_ = Buffer::page_locked(slots * (grad_slot_bytes_ + weight_slot_bytes_), *place.threads);
  const size_t gradient_events = overlap ? static_cast<size_t>(mtp_part(config)) + 1 : slots;
  for (size_t i = 0; i < gradient_events; i++) grads_here_.push_back(cuda::make_event());
  for (size_t i = 0; i < slots; i++) weights_there_.push_back(cuda::make_event());
}

// Blocks of up to `numbers` numbers, none across two parts; a large tensor is several.
void Offload::cut(const std::vector<bool>& on_host, bool together, bool train_mtp, int64_t numbers) {
  const auto& specs = masters_.specs();
  const int parts = specs.back().part + 1;
  std::vector<int> order = {parts - 2, parts - 1, parts - 3};  // the head, the MTP head, the final norm
  if (!specs.back().mtp) order = {parts - 1, parts - 2};
  for (int part = order.back() - 1; part >= 0; part--) order.push_back(part);
  for (const int part : order) {
    int64_t room = 0;
    for (size_t i = 0; i < specs.size(); i++) {
      if (specs[i].part != part || !on_host[i]) continue;
      const bool goes_on =
          together && room > 0 && i > 0 && !blocks_.empty() && blocks_.back().pieces.back().tensor == i - 1;
      if (!goes_on) room = 0;
      for (int64_t first = 0; first < weights_[i].numel();) {
        if (room == 0) {
          blocks_.push_back({.pieces = {}, .part = part, .trained = train_mtp || !specs[i].mtp});
          room = std::max(numbers, cut_at);
        }
        const int64_t left = weights_[i].numel() - first, count = left <= room ? left : room / cut_at * cut_at;
        if (count > 0) blocks_.back().pieces.push_back({i, first, count});
        first += count;
        room = count > 0 ? room - count : 0;
      }
    }
  }
  for (size_t i = 0; i < blocks_.size(); i++) {
    if (blocks_[i].trained) trained_.push_back(i);
    size_t gradients = 0;
    for (const Piece& p : blocks_[i].pieces) {
      gradients += static_cast<size_t>(p.count) * size_of(specs[p.tensor].always_f32 ? DType::f32 : main_grads_) + 64;
    }
    if (!overlap_) grad_slot_bytes_ = std::max(grad_slot_bytes_, whole(gradients));
    if (!masters_travel_) {
      weight_slot_bytes_ = std::max(weight_slot_bytes_, whole(range(weights_, blocks_[i].pieces).second));
    }
  }
}

char* Offload::grad_slot(size_t i) const { return static_cast<char*>(ring_.data()) + i % slots * grad_slot_bytes_; }

char* Offload::weight_slot(size_t i) const {
  return static_cast<char*>(ring_.data()) + slots * grad_slot_bytes_ + i % slots * weight_slot_bytes_;
}

Tensor Offload::within(const std::vector<Tensor>& like, const Block& block, const Piece& piece, char* copy) {
  const Tensor& t = like[piece.tensor];
  const char* at = static_cast<const char*>(t.data()) + static_cast<size_t>(piece.first) * size_of(t.dtype());
  return {copy + (at - range(like, block.pieces).first), t.dtype(), {piece.count}};
}

void Offload::copy_block(cuda::Queue& queue, const std::vector<Tensor>& device, char* host, const Block& block,
                         bool up) const {
  const auto [at, bytes] = range(device, block.pieces);
  if (up) {
    cuda::copy_async(queue, at, host, bytes, true);
  } else {
    cuda::copy_async(queue, host, at, bytes, false);
  }
}

void Offload::send(Stream& stream, const std::vector<Tensor>& grads, int part) {
  if (!overlap_) return;
  cuda::mark(stream.queue(), *ready_);
  cuda::wait_for(*down_, *ready_);
  for (const Block& block : blocks_) {
    if (block.part == part && block.trained)
      copy_block(*down_, grads, range(grads_.tensors(), block.pieces).first, block, false);
  }
  cuda::mark(*down_, *grads_here_[static_cast<size_t>(part)]);
  sent_.insert(part);
}

void Offload::settle() {
  sent_.clear();
  cuda::synchronize(*down_);
  cuda::synchronize(*up_);
}

void Offload::step(Stream& stream, const std::vector<Tensor>& grads, const Update& update) {
  cuda::mark(stream.queue(), *ready_);
  cuda::wait_for(*up_, *ready_);
  cuda::wait_for(*down_, *ready_);
  const size_t n = trained_.size();
  const auto fetch = [&](size_t i) {
    copy_block(*down_, grads, grad_slot(i), trained(i), false);
    cuda::mark(*down_, *grads_here_[i % slots]);
  };
  for (size_t i = 0; i < n; i++) {
    if (!overlap_ && i < slots) fetch(i);
    if (overlap_ && !sent_.contains(trained(i).part)) send(stream, grads, trained(i).part);
  }
  for (size_t i = 0; i < n; i++) {
    const Block& block = trained(i);
    cuda::wait_for(*grads_here_[overlap_ ? static_cast<size_t>(block.part) : i % slots]);
    if (i >= slots) cuda::wait_for(*weights_there_[i % slots]);
    for (const Piece& p : block.pieces) {
      const Tensor grad =
          overlap_ ? flat(grads_.tensors()[p.tensor], p.first, p.count) : within(grads, block, p, grad_slot(i));
      const Tensor weight = masters_travel_ ? flat(masters_.tensors()[p.tensor], p.first, p.count)
                                            : within(weights_, block, p, weight_slot(i));
      update(host_, p, weight, grad);
    }
    copy_block(*up_, weights_, masters_travel_ ? range(masters_.tensors(), block.pieces).first : weight_slot(i), block,
               true);
    cuda::mark(*up_, *weights_there_[i % slots]);
    if (!overlap_ && i + slots < n) fetch(i + slots);
  }
  cuda::mark(*up_, *ready_);
  cuda::wait_for(stream.queue(), *ready_);
  settle();  // what travelled may be written again
}

void Offload::fetch_masters(Stream& stream) {
  stream.synchronize();
  const auto fetch = [&](size_t i) {
    const Block& block = blocks_[i];
    copy_block(*down_, weights_, masters_travel_ ? range(masters_.tensors(), block.pieces).first : weight_slot(i),
               block, false);
    cuda::mark(*down_, *weights_there_[i % slots]);
  };
  for (size_t i = 0; i < std::min(blocks_.size(), slots); i++) fetch(i);
  for (size_t i = 0; i < blocks_.size(); i++) {
    cuda::wait_for(*weights_there_[i % slots]);
    for (const Piece& p : blocks_[i].pieces) {
      if (masters_travel_) break;
      convert(host_, flat(masters_.tensors()[p.tensor], p.first, p.count),
              within(weights_, blocks_[i], p, weight_slot(i)));
    }
    if (i + slots < blocks_.size()) fetch(i + slots);
  }
  settle();
}

void Offload::push_weights(Stream& stream) {
  stream.synchronize();
  for (size_t i = 0; i < blocks_.size(); i++) {
    const Block& block = blocks_[i];
    if (i >= slots) cuda::wait_for(*weights_there_[i % slots]);
    for (const Piece& p : block.pieces) {
      if (masters_travel_) break;
      convert(host_, within(weights_, block, p, weight_slot(i)), flat(masters_.tensors()[p.tensor], p.first, p.count));
    }
    copy_block(*up_, weights_, masters_travel_ ? range(masters_.tensors(), block.pieces).first : weight_slot(i), block,
               true);
    cuda::mark(*up_, *weights_there_[i % slots]);
  }
  settle();
}

}  // namespace furlong
