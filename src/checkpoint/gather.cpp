#include "checkpoint/gather.h"

#include <algorithm>
#include <cstring>
#include <sstream>

#include "base/error.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

constexpr int64_t piece = 1 << 24;

}  // namespace

WholeTensors::WholeTensors(const Mesh& mesh, const Weights& weights)
    : ranks_(mesh.world()), weights_(weights), threads_(1), stream_(threads_) {
  const std::vector<Shard> own = shares_of(weights);
  if (ranks_.size() == 1) {
    shares_.push_back(own);
    return;
  }
  CHECK(weights.rank().ranks() == ranks_.size(), "weights of {} ranks among {}", weights.rank().ranks(), ranks_.size());
  std::string mine;
  for (const Shard& share : own) mine += (share.own.size() > 0 ? text_of(share) : "") + '\n';
  for (const std::string& text : ranks_.gather_bytes(mine)) {
    std::vector<Shard>& shares = shares_.emplace_back(own);
    std::istringstream lines(text);
    std::string line;
    for (auto& share : shares) {
      CHECK(std::getline(lines, line), "shares of fewer tensors than {}", shares.size());
      if (line.empty()) {
        share.own = {0, 0};
      } else {
        share = shard_from_text(line, "a rank's share");
      }
    }
  }
}

bool WholeTensors::defined(size_t tensor) const {
  return std::any_of(shares_.begin(), shares_.end(),
                     [&](const auto& of_rank) { return of_rank[tensor].own.size() > 0; });
}

DType WholeTensors::dtype(size_t tensor) const {
  return weights_.specs()[tensor].always_f32 && weights_.dtype() == DType::bf16 ? DType::f32 : weights_.dtype();
}

void WholeTensors::serve(const std::function<void()>& body) {
  if (ranks_.rank() == 0) {
    try {
      body();
    } catch (...) {
      send({-1, 0, 0});
      throw;
    }
    send({-1, 0, 0});
    return;
  }
  std::vector<std::vector<uint8_t>> none;
  for (Call call = receive(); call.tensor >= 0; call = receive()) move(call, none);
}

void WholeTensors::read(size_t tensor, Range window, const std::function<void(const void* data, int64_t count)>& sink) {
  const size_t width = size_of(dtype(tensor));
  std::vector<std::vector<uint8_t>> received(static_cast<size_t>(ranks_.size()));
  std::vector<uint8_t> joined;
  for (int64_t begin = window.begin; begin < window.end; begin += piece) {
    const Range part = {begin, std::min(window.end, begin + piece)};
    if (ranks_.size() == 1) {
      const OnHost host(slice(tensor, part));
      sink(host.view().data(), part.size());
      continue;
    }
    const Call call = {static_cast<int64_t>(tensor), part.begin, part.end};
    send(call);
    move(call, received);
    joined.resize(static_cast<size_t>(part.size()) * width);
    int64_t count = 0;
    for (size_t r = 0; r < received.size(); r++) {
      for_each_run_in(shares_[r][tensor], part, [&, first = int64_t{-1}](const Run& run) mutable {
        if (first < 0) first = run.first;
        std::memcpy(joined.data() + static_cast<size_t>(run.full_first - part.begin) * width,
                    received[r].data() + static_cast<size_t>(run.first - first) * width,
                    static_cast<size_t>(run.count) * width);
        count += run.count;
      });
    }
    CHECK(count == part.size(), "{}: the ranks have {} of the {} numbers from {}", weights_.specs()[tensor].name, count,
          part.size(), part.begin);
    sink(joined.data(), part.size());
  }
}

void WholeTensors::send(const Call& call) {
  if (ranks_.size() == 1) return;
  Call copy = call;
  const Tensor bytes(&copy, DType::u8, {static_cast<int64_t>(sizeof copy)});
  std::vector<Tensor> from(static_cast<size_t>(ranks_.size()), bytes), to(from.size());
  from[0] = Tensor();
  ranks_.exchange(stream_, to, from);
}

WholeTensors::Call WholeTensors::receive() {
  Call call{};
  std::vector<Tensor> from(static_cast<size_t>(ranks_.size())), to(from.size());
  to[0] = Tensor(&call, DType::u8, {static_cast<int64_t>(sizeof call)});
  ranks_.exchange(stream_, to, from);
  return call;
}

void WholeTensors::move(const Call& call, std::vector<std::vector<uint8_t>>& received) {
  const auto tensor = static_cast<size_t>(call.tensor);
  const Range window = {call.begin, call.end};
  std::vector<Tensor> from(static_cast<size_t>(ranks_.size())), to(from.size());
  const OnHost mine(slice(tensor, window));
  from[0] = mine.view();
  for (size_t r = 0; r < received.size(); r++) {
    const int64_t count = numbers_in(shares_[r][tensor], window).size();
    received[r].resize(static_cast<size_t>(count) * size_of(dtype(tensor)));
    if (count > 0) to[r] = Tensor(received[r].data(), dtype(tensor), {count});
  }
  if (from[0].numel() == 0 && received.empty()) return;
  ranks_.exchange(stream_, to, from);
}

Tensor WholeTensors::slice(size_t tensor, Range window) const {
  const Shard& share = shares_[static_cast<size_t>(ranks_.rank())][tensor];
  const Range numbers = numbers_in(share, window);
  if (numbers.size() == 0) return {};
  const Tensor& t = weights_.tensors()[tensor];
  CHECK(t.contiguous() && t.dtype() == dtype(tensor), "{} {}", weights_.specs()[tensor].name, t.describe());
  const int64_t at = numbers.begin + (weights_.specs()[tensor].owned ? 0 : share.own.begin);
  return {static_cast<uint8_t*>(t.data()) + static_cast<size_t>(at) * size_of(t.dtype()),
          t.dtype(),
          {numbers.size()},
          t.device()};
}

}  // namespace furlong
