#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/check.h"
#include "base/error.h"

namespace furlong {
namespace {

double half_cosine(double part) { return 0.5 * (std::cos(std::numbers::pi * part) + 1); }

// Of the way from min_lr to lr, what is left when `part` of a WSD schedule's descent is done.
double wsd_left(WsdDecay decay, double part) {
  switch (decay) {
    case WsdDecay::linear: return 1 - part;
    case WsdDecay::cosine: return half_cosine(part);
    case WsdDecay::exponential: return 2 * std::pow(0.5, part) - 1;
    case WsdDecay::minus_sqrt: return 1 - std::sqrt(part);
  }
  CHECK(false, "decay {}", static_cast<int>(decay));
  return 0;
}

}  // namespace

LrDecay parse_lr_decay(const std::string& name) {
  if (name == "constant") return LrDecay::constant;
  if (name == "linear") return LrDecay::linear;
  if (name == "cosine") return LrDecay::cosine;
  if (name == "inverse-square-root") return LrDecay::inverse_square_root;
  if (name == "WSD") return LrDecay::wsd;
  fail(Exit::usage, "decay style {}: needs constant, linear, cosine, inverse-square-root or WSD", name);
}

WsdDecay parse_wsd_decay(const std::string& name) {
  if (name == "linear") return WsdDecay::linear;
  if (name == "cosine") return WsdDecay::cosine;
  if (name == "exponential") return WsdDecay::exponential;
  if (name == "minus_sqrt") return WsdDecay::minus_sqrt;
  fail(Exit::usage, "WSD decay style {}: needs linear, cosine, exponential or minus_sqrt", name);
}

double LrSchedule::rate(double lr, int64_t done) const {
  const auto step = static_cast<double>(done), end = static_cast<double>(decay_steps);
  if (step < warmup_steps) return warmup_init + (lr - warmup_init) * step / warmup_steps;
  if (decay == LrDecay::constant) return lr;
  CHECK(end > warmup_steps, "a decay of {} steps after {} of warm-up", decay_steps, warmup_steps);
  if (step > end) return min_lr;
  double left = 1;
  switch (decay) {
    case LrDecay::constant: break;
    case LrDecay::linear: left = 1 - (step - warmup_steps) / (end - warmup_steps); break;
    case LrDecay::cosine: left = half_cosine((step - warmup_steps) / (end - warmup_steps)); break;
    case LrDecay::inverse_square_root:
      CHECK(warmup_steps > 0, "no warm-up");
      return std::max(min_lr, lr * std::sqrt(warmup_steps / step));
    case LrDecay::wsd: {
      const auto descent = static_cast<double>(wsd_steps);
      if (step > end - descent) left = wsd_left(wsd_decay, (step - (end - descent)) / descent);
      break;
    }
  }
  return min_lr + (lr - min_lr) * left;
}

}  // namespace furlong
