// Times the ops on rows at the model's true shapes, beside the copy bandwidth.
#include <cstdio>

#include "cuda/timing.h"
#include "ops/table.h"

using namespace furlong;

namespace {

constexpr double copy_limit = 4.3e12;  // bytes a second

OwnedTensor make(DType dtype, std::initializer_list<int64_t> shape) { return {dtype, shape, Device::cuda}; }

template <class F>
void time(Stream& stream, const char* name, double bytes, F&& f) {
  const double ms = bench::median_ms(stream, f);
  const double rate = bytes / (ms * 1e-3);
  std::printf("%-44s %9.4f ms %8.0f GB/s %5.1f%%\n", name, ms, rate * 1e-9, 100 * rate / copy_limit);
  std::fflush(stdout);
}

double size(std::initializer_list<Tensor> tensors) {
  double bytes = 0;
  for (const auto& t : tensors) bytes += static_cast<double>(t.bytes());
  return bytes;
}

constexpr auto bf = DType::bf16;
constexpr auto f32 = DType::f32;
constexpr auto i32 = DType::i32;

void norms(Stream& stream) {
  const OpTable& op = cuda::ops();
  for (const int64_t t : {1, 256, 8192}) {
    const auto x = make(bf, {t, 2048}), y = make(bf, {t, 2048}), dx = make(bf, {t, 2048}), w = make(bf, {2048});
    const auto r = make(f32, {t}), dw = make(f32, {2048});
    const std::string rows = std::to_string(t) + "x2048";
    time(stream, ("rms_norm " + rows).c_str(), size({x, y}), [&] { op.rms_norm(stream, y, r, x, w, 1e-6); });
    if (t < 8192) continue;
    time(stream, ("rms_norm_backward " + rows).c_str(), size({x, y, dx, dx}),
         [&] { op.rms_norm_backward(stream, dx, dw, y, x, w, r); });
  }
  for (const int64_t t : {256 * 32, 8192 * 32}) {
    const auto o = make(bf, {t, 128}), z = make(bf, {t, 128}), y = make(bf, {t, 128}), w = make(bf, {128});
    const auto do_ = make(bf, {t, 128}), dz = make(bf, {t, 128}), r = make(f32, {t}), dw = make(f32, {128});
    const std::string rows = std::to_string(t) + "x128";
    time(stream, ("gated_rms_norm " + rows).c_str(), size({o, z, y, r}),
         [&] { op.gated_rms_norm(stream, y, r, o, z, w, 1e-6); });
    time(stream, ("gated_rms_norm_backward " + rows).c_str(), size({o, z, y, do_, dz, r}),
         [&] { op.gated_rms_norm_backward(stream, do_, dz, dw, y, o, z, w, r); });
  }
}

void ropes(Stream& stream) {
  const OpTable& op = cuda::ops();
  for (const int64_t t : {256, 8192}) {
    for (const int64_t heads : {16, 2}) {
      const int64_t stride = heads == 16 ? 512 : 256;
      const RopeShape shape{heads, 256, stride, 64};
      const auto x = make(bf, {t, heads * stride}), y = make(bf, {t, heads * 256}), w = make(bf, {256});
      const auto r = make(f32, {t, heads}), dw = make(f32, {256}), positions = make(i32, {t});
      const auto dx = make(bf, {t, heads * stride});
      const std::string rows = std::to_string(t) + " rows of " + std::to_string(heads) + " heads";
      time(stream, ("norm_rope " + rows).c_str(), size({y, y, r}),
           [&] { op.norm_rope(stream, y, r, x, w, positions, shape); });
      time(stream, ("norm_rope_backward " + rows).c_str(), size({y, y, y, r}),
           [&] { op.norm_rope_backward(stream, dx, dw, y, x, w, r, positions, shape); });
    }
  }
}

void elementwise(Stream& stream) {
  const OpTable& op = cuda::ops();
  {
    const int64_t t = 65536, n = 512;
    const auto in = make(bf, {t, 2 * n}), y = make(bf, {t, n}), din = make(bf, {t, 2 * n});
    time(stream, "swiglu 65536x512", size({in, y}), [&] { op.swiglu(stream, y, in); });
    time(stream, "swiglu_backward 65536x512", size({in, y, din}), [&] { op.swiglu_backward(stream, din, y, in); });
  }
  {
    const int64_t t = 8192;
    const AttentionShape shape{16, 2, 256};
    const auto a = make(bf, {t, 4096}), o = make(bf, {t, 4096}), x = make(bf, {t, 8192}), dx = make(bf, {t, 8192});
    const auto do_ = make(bf, {t, 4096});
    time(stream, "attention_gate 8192", size({a, o, a}), [&] { op.attention_gate(stream, a, o, x, shape); });
    time(stream, "attention_gate_backward 8192", size({a, o, a, a, a}),
         [&] { op.attention_gate_backward(stream, do_, dx, a, o, x, shape); });
  }
  {
    const auto x = make(bf, {8192, 2048}), y = make(bf, {8192, 2048}), wide = make(f32, {8192, 2048});
    const auto big = make(bf, {65536, 2048}), big_wide = make(f32, {65536, 2048});
    time(stream, "add 8192x2048 bf16", size({x, y, y}), [&] { op.add(stream, y, x); });
    time(stream, "convert 8192x2048 f32 to bf16", size({wide, x}), [&] { op.convert(stream, x, wide); });
    time(stream, "convert 65536x2048 f32 to bf16", size({big, big_wide}), [&] { op.convert(stream, big, big_wide); });
    time(stream, "convert 65536x2048 bf16 to f32", size({big, big_wide}), [&] { op.convert(stream, big_wide, big); });
    time(stream, "sum_of_squares 65536x2048 f32", size({big_wide}), [&] { op.sum_of_squares(stream, big_wide); });
    time(stream, "all_finite 65536x2048 f32", size({big_wide}), [&] { op.all_finite(stream, big_wide); });
    time(stream, "set_zero 65536x2048 f32", size({big_wide}), [&] { op.set_zero(stream, big_wide); });
  }
  {
    const int64_t n = int64_t{1} << 28;
    const auto w = make(bf, {n}), master = make(f32, {n}), m = make(f32, {n}), v = make(f32, {n}), g = make(f32, {n});
    const AdamParams params{1e-4, 0.9, 0.999, 1e-8, 0.1, 1, 3};
    time(stream, "adamw 2^28", size({w, master, master, m, m, v, v, g}),
         [&] { op.adamw(stream, w, master, m, v, g, params); });
  }
}

// Tokens as a text has them: a few often, many once.
void embeddings(Stream& stream) {
  const OpTable& op = cuda::ops();
  const auto table = make(bf, {248320, 2048});
  const auto dtable = make(f32, {248320, 2048});
  for (const int64_t t : {8192, 32768}) {
    const auto x = make(bf, {t, 2048}), tokens = make(i32, {t});
    std::vector<int32_t> ids(static_cast<size_t>(t));
    uint64_t state = 1;
    for (auto& id : ids) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      const double u = static_cast<double>(state >> 40) / 16777216.0;
      id = static_cast<int32_t>(248319 * u * u * u * u * u);
    }
    cuda::check(cudaMemcpy(static_cast<Tensor>(tokens).data(), ids.data(), ids.size() * 4, cudaMemcpyHostToDevice),
                "ids");
    std::sort(ids.begin(), ids.end());
    const auto distinct = std::unique(ids.begin(), ids.end()) - ids.begin();
    const std::string rows = std::to_string(t) + "x2048";
    time(stream, ("embed " + rows).c_str(), size({x, x}), [&] { op.embed(stream, x, tokens, table, 0, -1); });
    time(stream, ("embed_backward " + rows + ", " + std::to_string(distinct) + " distinct").c_str(),
         size({x}) + static_cast<double>(distinct) * 2048 * 8,
         [&] { op.embed_backward(stream, dtable, x, tokens, 0, -1); });
  }
}

void logits(Stream& stream) {
  const OpTable& op = cuda::ops();
  const int64_t v = 248320;
  {
    const int64_t t = 2048;
    const auto l = make(f32, {t, v}), lp = make(f32, {t}), lse = make(f32, {t}), h = make(f32, {t});
    const auto targets = make(i32, {t});
    time(stream, "log_prob 2048x248320", size({l}), [&] { op.log_prob(stream, lp, lse, h, l, targets, 1); });
    time(stream, "log_prob_backward 2048x248320", size({l, l}),
         [&] { op.log_prob_backward(stream, l, lp, h, lse, h, targets, 1); });
  }
  for (const int64_t t : {1, 64, 256}) {
    const auto l = make(f32, {t, v}), lp = make(f32, {t}), tokens = make(i32, {t});
    std::vector<float> values(static_cast<size_t>(v));
    uint64_t state = 7;
    for (auto& value : values) {
      double sum = 0;
      for (int i = 0; i < 6; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        sum += static_cast<double>(state >> 40) / 16777216.0 - 0.5;
      }
      value = static_cast<float>(4 * sum);
    }
    for (int64_t r = 0; r < t; r++) {
      cuda::check(cudaMemcpy(static_cast<Tensor>(l).as<float>() + r * v, values.data(), static_cast<size_t>(v) * 4,
                             cudaMemcpyHostToDevice),
                  "logits");
    }
    const std::pair<const char*, SampleParams> kinds[] = {
        {"greedy", {0, 0, 1}}, {"plain", {1, 0, 1}}, {"top-k 20", {1, 20, 1}}, {"top-p 0.95", {1, 0, 0.95}}};
    for (const auto& [name, params] : kinds) {
      std::vector<SampleRow> rows;
      for (int64_t r = 0; r < t; r++) rows.push_back({{1, 2, 3, static_cast<uint32_t>(r)}, params});
      time(stream, ("sample " + std::to_string(t) + " rows, " + name).c_str(), size({l}),
           [&] { op.sample(stream, tokens, lp, l, rows); });
    }
  }
}

}  // namespace

int main() {
  cuda::open();
  ThreadPool threads(1);
  Stream stream(threads, Device::cuda);
  norms(stream);
  ropes(stream);
  elementwise(stream);
  embeddings(stream);
  logits(stream);
}
