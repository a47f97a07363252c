#include "rl/loss_head.h"

#include <algorithm>

#include "ops/embed.h"
#include "ops/linear.h"
#include "ops/loss.h"
#include "ops/reduce.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

// Logits held at once: what a cache holds on the CPU, what keeps the matrix product busy on a device.
constexpr int64_t logits_budget = int64_t{32} << 20, device_logits_budget = int64_t{2} << 30;

struct Chunk {
  Tensor index, targets;  // (R) i32
  Tensor hidden;          // (R,H)
  Tensor logits, log_prob, lse, entropy;
};

int64_t chunk_size(const HeadOptions& options, Device device, int64_t vocab) {
  if (options.chunk_rows > 0) return options.chunk_rows;
  const int64_t budget = device == Device::cpu ? logits_budget : device_logits_budget;
  return std::clamp<int64_t>(budget / (vocab * 4), 16, 4096);
}

// Numbers of a chunk on the host, as long as the chunk.
class HostNumbers {
 public:
  HostNumbers(DType dtype, int64_t n)
      : bytes_(static_cast<size_t>(n) * size_of(dtype)), view_(bytes_.data(), dtype, {n}) {}
  // The numbers of `t`, which may be undefined.
  HostNumbers(Stream& stream, const Tensor& t) : HostNumbers(t.dtype(), t.rows()) {
    if (t.defined()) copy(stream, view_, t);
  }
  double operator[](int64_t i) const {
    return view_.dtype() == DType::f64 ? view_.as<double>()[i] : static_cast<double>(view_.as<float>()[i]);
  }
  void set(int64_t i, double v) {
    if (view_.dtype() == DType::f64) {
      view_.as<double>()[i] = v;
    } else {
      view_.as<float>()[i] = static_cast<float>(v);
    }
  }
  const Tensor& view() const { return view_; }

 private:
  std::vector<uint8_t> bytes_;
  Tensor view_;
};

Chunk forward_chunk(Exec& exec, const Weights& w, Tensor hidden, std::span<const HeadRow> rows,
                    const HeadOptions& options) {
  auto& [stream, arena, mesh] = exec;
  const auto n = static_cast<int64_t>(rows.size());
  const DType acc = accumulate_dtype(hidden.dtype());
  Chunk c;
  c.index = arena.make("head.index", DType::i32, {n});
  c.targets = arena.make("head.targets", DType::i32, {n});
  if (!stream.is_dry()) {
    std::vector<int32_t> index, targets;
    for (const HeadRow& row : rows) {
      index.push_back(row.row);
      targets.push_back(row.target);
    }
    copy(stream, c.index, Tensor(index.data(), DType::i32, {n}));
    copy(stream, c.targets, Tensor(targets.data(), DType::i32, {n}));
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
  const auto step = static_cast<size_t>(chunk_size(options, exec.stream.device(), w.lm_head.rows()));
  for (size_t begin = 0; begin < rows.size(); begin += step) {
    const Arena::Scope scope(exec.arena);
    const auto part = rows.subspan(begin, std::min(step, rows.size() - begin));
    const Chunk c = forward_chunk(exec, w, hidden, part, options);
    if (exec.stream.is_dry()) continue;
    const HostNumbers found(exec.stream, c.log_prob), entropy(exec.stream, c.entropy);
    for (size_t i = 0; i < part.size(); i++) {
      log_probs[begin + i] = found[static_cast<int64_t>(i)];
      if (options.entropy) entropies[begin + i] = entropy[static_cast<int64_t>(i)];
    }
  }
}

void loss_head(Exec& exec, const Weights& w, Tensor hidden, std::span<const HeadRow> rows, const HeadOptions& options,
               const RowLoss& loss, Tensor dhidden, Tensor dlm_head) {
  auto& [stream, arena, mesh] = exec;
  const DType acc = accumulate_dtype(hidden.dtype());
  set_zero(stream, dhidden);
  const auto step = static_cast<size_t>(chunk_size(options, exec.stream.device(), w.lm_head.rows()));
  for (size_t begin = 0; begin < rows.size(); begin += step) {
    const Arena::Scope scope(arena);
    const auto part = rows.subspan(begin, std::min(step, rows.size() - begin));
    const auto n = static_cast<int64_t>(part.size());
    const Chunk c = forward_chunk(exec, w, hidden, part, options);
    Tensor d_log_prob = arena.make("head.d_log_prob", acc, {n});
    Tensor d_entropy = options.entropy ? arena.make("head.d_entropy", acc, {n}) : Tensor();
    if (!stream.is_dry()) {
      const HostNumbers found(stream, c.log_prob), entropy(stream, c.entropy);
      HostNumbers by_log_prob(acc, n), by_entropy(acc, n);
      for (int64_t i = 0; i < n; i++) {
        const HeadGradient g = loss(begin + static_cast<size_t>(i), found[i], options.entropy ? entropy[i] : 0);
        by_log_prob.set(i, g.d_log_prob);
        by_entropy.set(i, g.d_entropy);
      }
      copy(stream, d_log_prob, by_log_prob.view());
      if (options.entropy) copy(stream, d_entropy, by_entropy.view());
    }
    log_prob_backward(stream, c.logits, d_log_prob, d_entropy, c.lse, c.entropy, c.targets, options.temperature);
    if (dlm_head.defined()) linear_dw(stream, dlm_head, c.logits, c.hidden);
    Tensor drows = arena.make("head.dhidden", hidden.dtype(), {n, hidden.dim(1)});
    linear_dx(stream, drows, c.logits, w.lm_head, false);
    scatter_rows(stream, dhidden, drows, c.index);
  }
}

}  // namespace furlong
