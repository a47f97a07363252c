#include "optim/adam.h"

#include <algorithm>
#include <cmath>

#include "ops/reduce.h"

namespace furlong {
namespace {

// The first tensors that hold at most `part` of all numbers.
std::vector<bool> first_tensors(const std::vector<Tensor>& tensors, double part) {
  int64_t all = 0, taken = 0;
  for (const auto& t : tensors) all += t.numel();
  std::vector<bool> first;
  for (const auto& t : tensors) {
    taken += t.numel();
    first.push_back(t.numel() > 0 && static_cast<double>(taken) <= part * static_cast<double>(all));
  }
  return first;
}

}  // namespace

Optimizer::Optimizer(const ModelConfig& config, Weights& weights, OptimOptions options, Stream* stream,
                     const Mesh& mesh)
    : weights_(&weights),
      options_(options),
      has_masters_(weights.dtype() == DType::bf16 && options.main_params == DType::f32),
      owners_(config, weights, options.main_grads, options.train_mtp, options.exchange_block, mesh, stream) {
  ThreadPool alone(1);
  Stream host(alone);
  Stream& at = stream != nullptr ? *stream : host;
  const std::vector<Tensor> owned = owners_.views(weights);
  Placement place{.device = weights.device(), .rank = mesh.place(), .owned = owners_.rule(), .threads = &at.threads()};
  if (options.offload > 0 && weights.device() == Device::cuda) {
    on_host_ = place.on_host = first_tensors(owned, options.offload);
  }
  const bool offloads = !on_host_.empty() && std::find(on_host_.begin(), on_host_.end(), true) != on_host_.end();
  if (!offloads) on_host_ = place.on_host = {};
  if (has_masters_) {
    masters_ = Weights(config, DType::f32, place);
  } else if (offloads) {
    place.only_on_host = true;  // the host's copies of the weights
    masters_ = Weights(config, weights.dtype(), place);
    place.only_on_host = false;
  }
  if (!options.train_mtp) place.only_mtp = false;
  const bool f64 = weights.dtype() == DType::f64;
  exp_avg_ = Weights(config, f64 ? DType::f64 : options.exp_avg, place);
  exp_avg_sq_ = Weights(config, f64 ? DType::f64 : options.exp_avg_sq, place);
  if (offloads) {
    offload_ = std::make_unique<Offload>(config, owned, weights.dtype(), masters_, place, options.main_grads,
                                         options.overlap, options.train_mtp, options.offload_block);
    offload_->fetch_masters(at);
  }
  for (size_t i = 0; i < owned.size() && has_masters_; i++) {
    if (owned[i].defined() && (!offloads || !on_host_[i])) convert(at, masters_.tensors()[i], owned[i]);
  }
}

StepResult Optimizer::step(Stream& stream, const Weights& grads) {
  owners_.reduce_rest(stream, grads);
  const double squares = owners_.sum_of_squares(stream, grads);
  StepResult result{.grad_norm = std::sqrt(squares), .lr = options_.schedule.rate(options_.lr, steps_)};
  if (!std::isfinite(result.grad_norm)) {
    result.skipped = true;
    drop_gradients();
    return result;
  }
  AdamParams params{
      .lr = result.lr, .beta1 = options_.beta1, .beta2 = options_.beta2, .eps = options_.eps, .step = ++steps_};
  if (options_.clip_grad > 0) params.grad_scale = std::min(1.0, options_.clip_grad / (result.grad_norm + 1e-6));
  const auto& specs = weights_->specs();
  const auto decayed = [&](size_t i) {
    AdamParams p = params;
    p.weight_decay = specs[i].decays() ? options_.weight_decay : 0;
    return p;
  };
  for (size_t i = 0; i < specs.size(); i++) {
    if (!owners_.trains(i) || (!on_host_.empty() && on_host_[i])) continue;
    const Tensor weight = owners_.view(*weights_, i);
    adamw(stream, weight, has_masters_ ? masters_.tensors()[i] : weight, exp_avg_.tensors()[i],
          exp_avg_sq_.tensors()[i], owners_.view(grads, i), decayed(i));
  }
  if (offload_ != nullptr) {
    const auto update = [&](Stream& host, const Offload::Piece& p, Tensor weight, Tensor grad) {
      const auto piece = [&](const Weights& w) { return flat(w.tensors()[p.tensor], p.first, p.count); };
      adamw(host, weight, piece(masters_), piece(exp_avg_), piece(exp_avg_sq_), grad, decayed(p.tensor));
    };
    offload_->step(stream, owners_.views(grads), update);
  }
  owners_.forget();
  owners_.spread(stream, *weights_);
  return result;
}

void Optimizer::gradients_done(Stream& stream, const Weights& grads, int part) {
  if (owners_.waits(part)) return;
  Stream& summed = owners_.reduce(stream, grads, part);
  if (offload_ != nullptr) offload_->send(summed, owners_.views(grads), part);
}

void Optimizer::drop_gradients() {
  owners_.forget();
  if (offload_ != nullptr) offload_->settle();
}

void Optimizer::weights_from_masters(Stream& stream) {
  if (!has_masters_) return;
  for (size_t i = 0; i < masters_.tensors().size(); i++) {
    const Tensor& master = masters_.tensors()[i];
    if (master.numel() > 0 && (on_host_.empty() || !on_host_[i])) {
      convert(stream, owners_.view(*weights_, i), master);
    }
  }
  if (offload_ != nullptr) offload_->push_weights(stream);
  owners_.spread(stream, *weights_);
}

void Optimizer::weights_loaded(Stream& stream) {
  if (offload_ != nullptr && !has_masters_) offload_->fetch_masters(stream);
}

uint64_t Optimizer::host_bytes() const {
  return masters_.host_bytes() + exp_avg_.host_bytes() + exp_avg_sq_.host_bytes() +
         (offload_ != nullptr ? offload_->host_bytes() : 0);
}

uint64_t Optimizer::device_bytes() const {
  return masters_.bytes() + exp_avg_.bytes() + exp_avg_sq_.bytes() - masters_.host_bytes() - exp_avg_.host_bytes() -
         exp_avg_sq_.host_bytes() + owners_.bytes();
}

}  // namespace furlong
