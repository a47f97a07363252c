#include "rl/loss_head.h"

#include <algorithm>

#include "ops/embed.h"
#include "ops/linear.h"
#include "ops/loss.h"
#include "ops/reduce.h"

namespace furlong {
namespace {

constexpr int64_t logits_budget = 32 << 20;

struct Chunk {
  Tensor index, targets;  // (R) i32
  Tensor hidden;          // (R,H)
  Tensor logits, log_prob, lse, entropy;
};

int64_t chunk_size(const HeadOptions& options, int64_t vocab) {
  if (options.chunk_rows > 0) return options.chunk_rows;
  return std::clamp<int64_t>(logits_budget / (vocab * 4), 16, 4096);
}

double value(const Tensor& t, int64_t i) { return t.dtype() == DType::f64 ? t.as<double>()[i] : t.as<float>()[i]; }

void set(const Tensor& t, int64_t i, double v) {
  if (t.dtype() == DType::f64) {
    t.as<double>()[i] = v;
  } else {
    t.as<float>()[i] = static_cast<float>(v);
  }
}

Chunk forward_chunk(Exec& exec, const Weights& w, Tensor hidden, std::span<const HeadRow> rows,
                    const HeadOptions& options) {
  auto& [stream, arena] = exec;
  const auto n = static_cast<int64_t>(rows.size());
  const DType acc = accumulate_dtype(hidden.dtype());
  Chunk c;
  c.index = arena.make("head.index", DType::i32, {n});
  c.targets = arena.make("head.targets", DType::i32, {n});
  if (!stream.is_dry()) {
    for (int64_t i = 0; i < n; i++) {
      c.index.as<int32_t>()[i] = rows[static_cast<size_t>(i)].row;
      c.targets.as<int32_t>()[i] = rows[static_cast<size_t>(i)].target;
    }
  }
  c.hidden = arena.make("head.hidden", hidden.dtype(), {n, hidden.dim(1)});
  embed(stream, c.hidden, c.index, hidden);
  c.logits = arena.make("head.logits", acc, {n, w.lm_head.rows()});
  linear(stream, c.logits, c.hidden, w.lm_head);
  c.log_prob = arena.make("head.log_prob", acc, {n});
  c.lse = arena.make("head.lse", acc, {n});
  if (options.entropy) c.entropy = arena.make("head.entropy", acc, {n});
  log_prob(stream, c.log_prob, c.lse, c.entropy, c.logits, c.targets, options.temperature);
  return c;
}

}  // namespace

void score_rows(Exec& exec, const Weights& w, Tensor hidden, std::span<const HeadRow> rows, const HeadOptions& options,
                std::span<double> log_probs, std::span<double> entropies) {
  const auto step = static_cast<size_t>(chunk_size(options, w.lm_head.rows()));
  for (size_t begin = 0; begin < rows.size(); begin += step) {
    const Arena::Scope scope(exec.arena);
    const auto part = rows.subspan(begin, std::min(step, rows.size() - begin));
    const Chunk c = forward_chunk(exec, w, hidden, part, options);
    if (exec.stream.is_dry()) continue;
    for (size_t i = 0; i < part.size(); i++) {
      log_probs[begin + i] = value(c.log_prob, static_cast<int64_t>(i));
      if (options.entropy) entropies[begin + i] = value(c.entropy, static_cast<int64_t>(i));
    }
  }
}

void loss_head(Exec& exec, const Weights& w, Tensor hidden, std::span<const HeadRow> rows, const HeadOptions& options,
               const RowLoss& loss, Tensor dhidden, Tensor dlm_head) {
  auto& [stream, arena] = exec;
  const DType acc = accumulate_dtype(hidden.dtype());
  set_zero(stream, dhidden);
  const auto step = static_cast<size_t>(chunk_size(options, w.lm_head.rows()));
  for (size_t begin = 0; begin < rows.size(); begin += step) {
    const Arena::Scope scope(arena);
    const auto part = rows.subspan(begin, std::min(step, rows.size() - begin));
    const auto n = static_cast<int64_t>(part.size());
    const Chunk c = forward_chunk(exec, w, hidden, part, options);
    Tensor d_log_prob = arena.make("head.d_log_prob", acc, {n});
    Tensor d_entropy = options.entropy ? arena.make("head.d_entropy", acc, {n}) : Tensor();
    if (!stream.is_dry()) {
      for (int64_t i = 0; i < n; i++) {
        const HeadGradient g =
            loss(begin + static_cast<size_t>(i), value(c.log_prob, i), options.entropy ? value(c.entropy, i) : 0);
        set(d_log_prob, i, g.d_log_prob);
        if (options.entropy) set(d_entropy, i, g.d_entropy);
      }
    }
    log_prob_backward(stream, c.logits, d_log_prob, d_entropy, c.lse, c.entropy, c.targets, options.temperature);
    if (dlm_head.defined()) linear_dw(stream, dlm_head, c.logits, c.hidden);
    Tensor drows = arena.make("head.dhidden", hidden.dtype(), {n, hidden.dim(1)});
    linear_dx(stream, drows, c.logits, w.lm_head, false);
    scatter_rows(stream, dhidden, drows, c.index);
  }
}

}  // namespace furlong
