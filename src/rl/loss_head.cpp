#include "rl/loss_head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "model/collectives.h"
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
  std::vector<int32_t> has_target;  // per row: not negative where the target is in this rank's vocabulary
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

// The rows of a batch on this context parallel rank, and the part of the head that its tensor parallel ranks each have.
struct Head {
  Exec& exec;
  const Weights& w;
  const HeadOptions& options;
  RowBlocks by_tensor;
  Range rows, vocabulary;
  Tensor hidden;  // (those rows, H)

  Head(Exec& e, const Weights& weights, Tensor here, const HeadOptions& o)
      : exec(e),
        w(weights),
        options(o),
        by_tensor(tensor_rows(e.mesh, batch_rows(here))),
        rows(context_rows(e.mesh, batch_rows(here)).mine()),
        vocabulary(weights.vocabulary()) {
    hidden = all_gather(e, by_tensor, "head.rows", here);
  }
  int64_t batch_rows(const Tensor& here) const {
    CHECK(options.batch_rows >= 0 || exec.mesh.place().row_parts() == 1, "a part of the rows of an unknown number");
    return options.batch_rows >= 0 ? options.batch_rows : here.rows();
  }
  bool whole() const { return by_tensor.group.size() == 1; }  // the whole vocabulary lies here

  // Rows of logits at a time, the same on all tensor parallel ranks.
  size_t step() const {
    const int64_t ranks = by_tensor.group.size(), most = (w.full_vocabulary() + ranks - 1) / ranks;
    return static_cast<size_t>(chunk_size(options, exec.stream.device(), most));
  }
  // Those of `all` that lie here, by their number. Before anything is known: as many as there can be.
  std::vector<size_t> mine(std::span<const HeadRow> all) const { return of_block(all, rows); }
  std::vector<size_t> of_block(std::span<const HeadRow> all, Range block) const {
    std::vector<size_t> numbers;
    const bool split = exec.mesh.context().size() > 1, dry = exec.stream.is_dry();
    for (size_t i = 0; i < all.size(); i++) {
      const bool here = dry ? std::ssize(numbers) < rows.size() : block.begin <= all[i].row && all[i].row < block.end;
      if (!split || here) numbers.push_back(i);
    }
    return numbers;
  }
};

Chunk forward_chunk(const Head& head, std::span<const HeadRow> rows, std::span<const size_t> numbers) {
  auto& [stream, arena, mesh] = head.exec;
  const auto n = std::ssize(numbers);
  const DType acc = accumulate_dtype(head.hidden.dtype());
  Chunk c;
  c.index = arena.make("head.index", DType::i32, {n});
  c.targets = arena.make("head.targets", DType::i32, {n});
  if (!stream.is_dry()) {
    std::vector<int32_t> index, targets;
    for (const size_t i : numbers) {
      index.push_back(static_cast<int32_t>(rows[i].row - head.rows.begin));
      const int64_t target = rows[i].target - head.vocabulary.begin;
      targets.push_back(
          static_cast<int32_t>(head.whole() || (target >= 0 && target < head.vocabulary.size()) ? target : -1));
    }
    copy(stream, c.index, Tensor(index.data(), DType::i32, {n}));
    copy(stream, c.targets, Tensor(targets.data(), DType::i32, {n}));
    c.has_target.assign(targets.begin(), targets.end());
  }
  c.hidden = arena.make("head.hidden", head.hidden.dtype(), {n, head.hidden.dim(1)});
  embed(stream, c.hidden, c.index, head.hidden);
  c.logits = arena.make("head.logits", acc, {n, head.w.lm_head.rows()});
  linear(stream, c.logits, c.hidden, head.w.lm_head);
  c.log_prob = arena.make("head.log_prob", acc, {n});
  c.lse = arena.make("head.lse", acc, {n});
  if (head.options.entropy) c.entropy = arena.make("head.entropy", acc, {n});
  log_prob(stream, c.log_prob, c.lse, c.entropy, c.logits, c.targets, head.options.temperature);
  return c;
}

// What a row's loss is made of, of the whole vocabulary.
struct RowNumbers {
  std::vector<double> log_prob, entropy;
};

// A chunk's numbers on the host. Where the vocabulary is split, joined over its parts in the order of ranks; lse and
// entropy of the chunk then become those of the whole vocabulary too.
RowNumbers row_numbers(const Head& head, Chunk& c) {
  auto& [stream, arena, mesh] = head.exec;
  const HostNumbers found(stream, c.log_prob), lse(stream, c.lse), entropies(stream, c.entropy);
  const bool entropy = head.options.entropy;
  const int64_t n = c.lse.rows();
  RowNumbers out;
  if (head.whole()) {
    for (int64_t i = 0; i < n; i++) {
      out.log_prob.push_back(found[i]);
      out.entropy.push_back(entropy ? entropies[i] : 0);
    }
    return out;
  }
  // Per row: the target's logit over temperature where it is here, log-sum-exp, and the mean logit.
  std::vector<double> mine;
  for (int64_t i = 0; i < n; i++) {
    mine.push_back(c.has_target[static_cast<size_t>(i)] >= 0 ? found[i] + lse[i] : 0);
    mine.push_back(lse[i]);
    mine.push_back(entropy ? lse[i] - entropies[i] : 0);
  }
  const std::string_view bytes(reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(double));
  std::vector<std::vector<double>> all;
  for (const std::string& theirs : head.by_tensor.group.gather_bytes(bytes)) {
    CHECK(theirs.size() == bytes.size(), "{} bytes of another's rows beside {}", theirs.size(), bytes.size());
    std::memcpy(all.emplace_back(mine.size()).data(), theirs.data(), theirs.size());
  }
  HostNumbers joined_lse(c.lse.dtype(), n), joined_entropy(c.lse.dtype(), n);
  for (int64_t i = 0; i < n; i++) {
    const auto at = static_cast<size_t>(3 * i);
    double top = -std::numeric_limits<double>::infinity(), sum = 0, logit = 0, mean = 0;
    for (const auto& part : all) top = std::max(top, part[at + 1]);
    for (const auto& part : all) {
      sum += std::exp(part[at + 1] - top);
      logit += part[at];
    }
    const double total = top + std::log(sum);
    for (const auto& part : all) mean += std::exp(part[at + 1] - total) * part[at + 2];
    out.log_prob.push_back(logit - total);
    out.entropy.push_back(entropy ? total - mean : 0);
    joined_lse.set(i, total);
    joined_entropy.set(i, out.entropy.back());
  }
  copy(stream, c.lse, joined_lse.view());
  if (entropy) copy(stream, c.entropy, joined_entropy.view());
  return out;
}

// Everyone's numbers, from those that each context parallel rank has of its own rows.
void share_numbers(const Head& head, std::span<const HeadRow> rows, const HeadOptions& options,
                   std::span<double> log_probs, std::span<double> entropies) {
  Group& group = head.exec.mesh.context();
  std::vector<double> mine;
  for (const size_t i : head.mine(rows)) {
    mine.push_back(log_probs[i]);
    if (options.entropy) mine.push_back(entropies[i]);
  }
  const auto all = group.gather_bytes({reinterpret_cast<const char*>(mine.data()), mine.size() * sizeof(double)});
  for (int r = 0; r < group.size(); r++) {
    const std::string& theirs = all[static_cast<size_t>(r)];
    size_t at = 0;
    const auto next = [&] {
      double x = 0;
      CHECK(at + sizeof x <= theirs.size(), "{} bytes of another's rows", theirs.size());
      std::memcpy(&x, theirs.data() + at, sizeof x);
      at += sizeof x;
      return x;
    };
    for (const size_t i : head.of_block(rows, block_of(head.batch_rows({}), r, group.size()))) {
      log_probs[i] = next();
      if (options.entropy) entropies[i] = next();
    }
  }
}

}  // namespace

void score_rows(Exec& exec, const Weights& w, Tensor hidden, std::span<const HeadRow> rows, const HeadOptions& options,
                std::span<double> log_probs, std::span<double> entropies) {
  const Arena::Scope whole(exec.arena);
  const Head head(exec, w, hidden, options);
  const std::vector<size_t> mine = head.mine(rows);
  for (size_t begin = 0; begin < mine.size(); begin += head.step()) {
    const Arena::Scope scope(exec.arena);
    const auto numbers = std::span(mine).subspan(begin, std::min(head.step(), mine.size() - begin));
    Chunk c = forward_chunk(head, rows, numbers);
    if (exec.stream.is_dry()) continue;
    const RowNumbers found = row_numbers(head, c);
    for (size_t i = 0; i < numbers.size(); i++) {
      log_probs[numbers[i]] = found.log_prob[i];
      if (options.entropy) entropies[numbers[i]] = found.entropy[i];
    }
  }
  if (exec.mesh.context().size() > 1 && !exec.stream.is_dry()) share_numbers(head, rows, options, log_probs, entropies);
}

void loss_head(Exec& exec, const Weights& w, Tensor hidden, std::span<const HeadRow> rows, const HeadOptions& options,
               const RowLoss& loss, Tensor dhidden, Tensor dlm_head) {
  auto& [stream, arena, mesh] = exec;
  const Arena::Scope whole(arena);
  const Head head(exec, w, hidden, options);
  const DType acc = accumulate_dtype(hidden.dtype());
  const Tensor dhead = head.whole() ? dhidden : arena.make_like("head.drows", head.hidden);
  set_zero(stream, dhead);
  const std::vector<size_t> mine = head.mine(rows);
  for (size_t begin = 0; begin < mine.size(); begin += head.step()) {
    const Arena::Scope scope(arena);
    const auto numbers = std::span(mine).subspan(begin, std::min(head.step(), mine.size() - begin));
    const auto n = std::ssize(numbers);
    Chunk c = forward_chunk(head, rows, numbers);
    Tensor d_log_prob = arena.make("head.d_log_prob", acc, {n});
    Tensor d_entropy = options.entropy ? arena.make("head.d_entropy", acc, {n}) : Tensor();
    if (!stream.is_dry()) {
      const RowNumbers found = row_numbers(head, c);
      HostNumbers by_log_prob(acc, n), by_entropy(acc, n);
      for (int64_t i = 0; i < n; i++) {
        const auto at = static_cast<size_t>(i);
        const HeadGradient g = loss(numbers[at], found.log_prob[at], found.entropy[at]);
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
    scatter_rows(stream, dhead, drows, c.index);
  }
  if (!head.whole()) reduce_scatter(exec, head.by_tensor, dhidden, dhead);
}

}  // namespace furlong
