#include "support.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "checkpoint/hf.h"
#include "golden.h"
#include "ops/linear.h"
#include "tensor/copy.h"

namespace furlong::test {

Pass::Pass(const ModelConfig& config, const Weights& weights, const Sequences& sequences, const PassOptions& options)
    : config_(config),
      weights_(weights),
      options_(options),
      threads_(options.threads),
      arena_(0),
      grads_(config, accumulate_dtype(weights.dtype()), Placement{.device = weights.device(), .rank = weights.rank()}),
      saved_{.recompute = options.recompute} {
  pack(options.plan != nullptr ? *options.plan : sequences);
  const Device device = weights.device();
  Stream dry = Stream::dry(threads_, device), stream(threads_, device);
  Arena measure = Arena::measuring(device);
  Exec planned{dry, measure, *options.mesh};
  run(planned);
  arena_ = Arena(measure.high_mark(), device);
  pack(sequences);
  Exec exec{stream, arena_, *options.mesh};
  run(exec);
}

void Pass::pack(const Sequences& sequences) {
  builder_.clear();
  starts_.clear();
  next_.clear();
  rows_.clear();
  mtp_rows_.clear();
  for (const auto& tokens : sequences) {
    const auto base = static_cast<int32_t>(builder_.rows());
    starts_.push_back(base);
    const auto n = static_cast<int32_t>(tokens.size());
    builder_.add(tokens.data(), n);
    for (int32_t t = 0; t < n; t++) {
      const auto at = [&](int32_t i) { return tokens[static_cast<size_t>(i)]; };
      next_.push_back(t + 1 < n ? at(t + 1) : 0);
      if (t + 1 < n) rows_.push_back({base + t, at(t + 1)});
      if (t + 2 < n) mtp_rows_.push_back({base + t, at(t + 2)});
    }
  }
  starts_.push_back(builder_.rows());
}

void Pass::run(Exec& exec) {
  const Batch batch = placed(exec, builder_.batch());
  const bool keep = options_.backward && options_.trunk;
  hidden_ = model_forward(exec, config_, weights_, batch, keep ? &saved_ : nullptr);
  if (options_.mtp && hidden_.defined()) {
    const Tensor next =
        on_device(exec.stream, exec.arena, "test.next", Tensor(next_.data(), DType::i32, {batch.rows()}));
    mtp_ = mtp_forward(exec, config_, weights_, hidden_, next, batch, {}, options_.backward ? &mtp_saved_ : nullptr);
  }
  losses(exec, batch);
}

void Pass::losses(Exec& exec, const Batch& batch) {
  if (!hidden_.defined()) {  // an earlier pipeline stage
    if (options_.trunk && options_.backward) model_backward(exec, config_, weights_, saved_, {}, batch, grads_);
    return;
  }
  const DType t = weights_.dtype();
  const auto weight = [&](const std::vector<HeadRow>& rows) {
    return options_.row_weight > 0 ? options_.row_weight : 1.0 / static_cast<double>(std::max<size_t>(1, rows.size()));
  };
  const HeadOptions head{
      .temperature = options_.temperature, .entropy = options_.entropy != 0, .batch_rows = batch.rows()};
  const HeadOptions mtp_head{.batch_rows = batch.rows()};
  if (options_.trunk && !options_.backward) {
    log_probs_.resize(rows_.size());
    entropies_.resize(head.entropy ? rows_.size() : 0);
    score_rows(exec, weights_, hidden_, rows_, head, log_probs_, entropies_);
    for (size_t i = 0; i < rows_.size(); i++) {
      loss_ += weight(rows_) * ((head.entropy ? options_.entropy * entropies_[i] : 0) - log_probs_[i]);
    }
  } else if (options_.trunk) {
    const Tensor dhidden = exec.arena.make("test.dhidden", t, {hidden_.rows(), config_.hidden_size});
    const double w = weight(rows_);
    loss_head(
        exec, weights_, hidden_, rows_, head,
        [&](size_t, double log_prob, double entropy) {
          log_probs_.push_back(log_prob);
          if (head.entropy) entropies_.push_back(entropy);
          loss_ += w * (options_.entropy * entropy - log_prob);
          return HeadGradient{.d_log_prob = -w, .d_entropy = w * options_.entropy};
        },
        dhidden, grads_.lm_head);
    model_backward(exec, config_, weights_, saved_, dhidden, batch, grads_);
  }
  if (!options_.mtp) return;
  const double w = weight(mtp_rows_);
  if (!options_.backward) {
    mtp_log_probs_.resize(mtp_rows_.size());
    score_rows(exec, weights_, mtp_, mtp_rows_, mtp_head, mtp_log_probs_, {});
    for (const double p : mtp_log_probs_) mtp_loss_ -= w * p;
    return;
  }
  const Tensor dm = exec.arena.make("test.dm", t, {hidden_.rows(), config_.hidden_size});
  loss_head(exec, weights_, mtp_, mtp_rows_, mtp_head,
            [&](size_t, double log_prob, double) {
              mtp_log_probs_.push_back(log_prob);
              mtp_loss_ -= w * log_prob;
              return HeadGradient{.d_log_prob = -w};
            },
            dm, {});
  mtp_backward(exec, config_, weights_, mtp_saved_, dm, batch, grads_);
}

std::vector<double> Pass::log_softmax(Tensor hidden) {
  const int64_t vocab = weights_.lm_head.rows();
  OwnedTensor logits(accumulate_dtype(weights_.dtype()), {hidden.rows(), vocab});
  Stream stream(threads_);
  linear(stream, logits.view(), hidden, weights_.lm_head);
  std::vector<double> out = values_of(logits.view());
  for (auto row = out.begin(); row != out.end(); row += vocab) {
    const double top = *std::max_element(row, row + vocab);
    double sum = 0;
    for (auto x = row; x != row + vocab; ++x) sum += std::exp(*x - top);
    const double lse = top + std::log(sum);
    for (auto x = row; x != row + vocab; ++x) *x -= lse;
  }
  return out;
}

std::vector<double> values_of(const Tensor& tensor) {
  const OnHost host(tensor);
  const Tensor& t = host;
  std::vector<double> out(static_cast<size_t>(t.numel()));
  for (size_t i = 0; i < out.size(); i++) {
    switch (t.dtype()) {
      case DType::f32: out[i] = static_cast<double>(t.as<float>()[i]); break;
      case DType::bf16: out[i] = static_cast<double>(static_cast<float>(t.as<bf16>()[i])); break;
      default: out[i] = t.as<double>()[i];
    }
  }
  return out;
}

std::string bytes_of(const Tensor& t) { return {static_cast<const char*>(t.data()), t.bytes()}; }

ModelConfig tiny_config() { return read_model_config(data_path("tiny")); }

Weights tiny_weights(const ModelConfig& config, DType dtype) { return load_hf(data_path("tiny"), config, dtype); }

Weights widened(const ModelConfig& config, const Weights& weights) {
  Weights out(config, DType::f64);
  for_each_tensor(
      [](const TensorSpec&, const Tensor& from, const Tensor& to) {
        const std::vector<double> values = values_of(from);
        std::copy(values.begin(), values.end(), to.as<double>());
      },
      weights, out);
  return out;
}

void fill_random(Weights& weights, uint32_t seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& t) {
        const auto ends_with = [&](std::string_view s) { return spec.name.ends_with(s); };
        const auto columns = static_cast<double>(spec.shape.back());
        for (int64_t i = 0; i < t.numel(); i++) {
          double x = normal(engine);
          if (spec.decays()) {
            x *= (ends_with("embed_tokens.weight") ? 1.0 : 1.0 / std::sqrt(columns));
          } else if (ends_with("A_log")) {
            x = 1.5 * x - 2;
          } else if (ends_with("dt_bias")) {
            x = x - 1;
          } else {
            x = 0.2 * x + (ends_with("linear_attn.norm.weight") ? 1 : 0);
          }
          switch (t.dtype()) {
            case DType::f32: t.as<float>()[i] = static_cast<float>(x); break;
            case DType::bf16: t.as<bf16>()[i] = bf16(static_cast<float>(x)); break;
            default: t.as<double>()[i] = x;
          }
        }
      },
      weights);
}

ModelConfig odd_config() {
  ModelConfig c;
  c.vocab_size = 60;
  c.hidden_size = 20;
  c.num_layers = 3;
  c.full_attention = {false, true, false};
  c.num_heads = 6;
  c.num_kv_heads = 2;
  c.head_dim = 8;
  c.rotary_dim = 4;
  c.linear_num_key_heads = 2;
  c.linear_num_value_heads = 6;
  c.linear_key_head_dim = 6;
  c.linear_value_head_dim = 10;
  c.num_experts = 5;
  c.experts_per_token = 2;
  c.moe_intermediate_size = 12;
  c.shared_intermediate_size = 14;
  c.mtp_num_layers = 1;
  c.max_position_embeddings = 512;
  return c;
}

Sequences disjoint_sequences(const std::vector<int64_t>& lengths, int64_t vocab, uint32_t seed) {
  std::mt19937 engine(seed);
  const auto share = static_cast<uint32_t>(vocab / static_cast<int64_t>(lengths.size()));
  Sequences out;
  for (size_t s = 0; s < lengths.size(); s++) {
    auto& tokens = out.emplace_back(static_cast<size_t>(lengths[s]));
    for (auto& t : tokens) t = static_cast<int32_t>(static_cast<uint32_t>(s) * share + engine() % share);
  }
  return out;
}

}  // namespace furlong::test
