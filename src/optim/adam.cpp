#include "optim/adam.h"

#include <cmath>

#include "ops/reduce.h"

namespace furlong {
namespace {

DType state_dtype(DType weights) { return weights == DType::f64 ? DType::f64 : DType::f32; }

}  // namespace

Optimizer::Optimizer(const ModelConfig& config, Weights& weights, OptimOptions options, Stream* stream)
    : weights_(&weights), options_(options), has_masters_(weights.dtype() == DType::bf16) {
  const std::optional<bool> part = options.train_mtp ? std::nullopt : std::optional<bool>(false);
  if (has_masters_) {
    masters_ = Weights(config, DType::f32, weights.device());
    ThreadPool alone(1);
    Stream host(alone);
    for_each_tensor([&](const TensorSpec&, const Tensor& master,
                        const Tensor& weight) { convert(stream != nullptr ? *stream : host, master, weight); },
                    masters_, weights);
  }
  exp_avg_ = Weights(config, state_dtype(weights.dtype()), weights.device(), part);
  exp_avg_sq_ = Weights(config, state_dtype(weights.dtype()), weights.device(), part);
}

double Optimizer::lr_at(int64_t steps) const {
  if (steps >= options_.warmup_steps) return options_.lr;
  const double done = static_cast<double>(steps) / static_cast<double>(options_.warmup_steps);
  return options_.warmup_init + (options_.lr - options_.warmup_init) * done;
}

StepResult Optimizer::step(Stream& stream, const Weights& grads) {
  double squares = 0;
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& grad) {
        if (!spec.mtp || options_.train_mtp) squares += sum_of_squares(stream, grad);
      },
      grads);
  StepResult result{.grad_norm = std::sqrt(squares), .lr = lr_at(steps_)};
  if (!std::isfinite(result.grad_norm)) {
    result.skipped = true;
    return result;
  }
  AdamParams params{
      .lr = result.lr, .beta1 = options_.beta1, .beta2 = options_.beta2, .eps = options_.eps, .step = ++steps_};
  if (options_.clip_grad > 0) params.grad_scale = std::min(1.0, options_.clip_grad / (result.grad_norm + 1e-6));
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& weight, const Tensor& master, const Tensor& m, const Tensor& v,
          const Tensor& grad) {
        if (spec.mtp && !options_.train_mtp) return;
        params.weight_decay = spec.decays() ? options_.weight_decay : 0;
        adamw(stream, weight, master, m, v, grad, params);
      },
      *weights_, masters(), exp_avg_, exp_avg_sq_, grads);
  return result;
}

void Optimizer::weights_from_masters(Stream& stream) {
  if (!has_masters_) return;
  for_each_tensor(
      [&](const TensorSpec&, const Tensor& weight, const Tensor& master) { convert(stream, weight, master); },
      *weights_, masters_);
}

}  // namespace furlong
