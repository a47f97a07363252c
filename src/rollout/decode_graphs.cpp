#include "rollout/decode_graphs.h"

#include <algorithm>

#include "tensor/copy.h"

namespace furlong {

DecodeGraphs::DecodeGraphs(Stream& stream, std::vector<int64_t> sizes, int64_t rows, int64_t pages)
    : stream_(stream), sizes_(std::move(sizes)), rows_(rows), pages_(pages) {
  std::sort(sizes_.begin(), sizes_.end());
  const int64_t most = sizes_.empty() ? 0 : sizes_.back();
  integers_ = Buffer(static_cast<size_t>(most * (2 * rows_ + pages_ + 3) + 1) * sizeof(int32_t), stream.device());
}

DecodeGraphs::Integers DecodeGraphs::upload(std::span<const SequenceMemory* const> sequences,
                                            std::span<const int32_t> tokens, int64_t size) {
  host_.assign(static_cast<size_t>(size * (2 * rows_ + pages_ + 3) + 1), 0);
  auto* device = static_cast<int32_t*>(integers_.data());
  int64_t at = 0;
  // Padding rows: token 0 at positions 0, 1, ... of scrap slot 0 and scrap page 0.
  const auto piece = [&](std::initializer_list<int64_t> shape, auto&& fill) {
    const Tensor t(device + at, DType::i32, shape, integers_.device());
    fill(host_.data() + at);
    at += t.numel();
    return t;
  };
  const auto used = static_cast<int64_t>(sequences.size());
  Integers out;
  out.tokens = piece({size * rows_}, [&](int32_t* to) { std::copy(tokens.begin(), tokens.end(), to); });
  out.positions = piece({size * rows_}, [&](int32_t* to) {
    for (int64_t i = 0; i < size * rows_; i++) {
      const int64_t length = i / rows_ < used ? sequences[static_cast<size_t>(i / rows_)]->length : 0;
      to[i] = static_cast<int32_t>(length + i % rows_);
    }
  });
  out.starts = piece({size + 1}, [&](int32_t* to) {
    for (int64_t i = 0; i <= size; i++) to[i] = static_cast<int32_t>(i * rows_);
  });
  out.table = piece({size, pages_}, [&](int32_t* to) {
    for (const auto* s : sequences) {
      CHECK(static_cast<int64_t>(s->pages.size()) <= pages_, "a sequence of {} pages", s->pages.size());
      std::copy(s->pages.begin(), s->pages.end(), to);
      to += pages_;
    }
  });
  out.slots = piece({size}, [&](int32_t* to) {
    for (const auto* s : sequences) *to++ = s->slot;
  });
  out.speculative = piece({size}, [&](int32_t* to) { std::fill(to, to + size, 1); });
  const Tensor target(device, DType::i32, {at}, integers_.device());
  copy(stream_, target, Tensor(host_.data(), DType::i32, {at}));
  return out;
}

Tensor DecodeGraphs::run(Arena& arena, const RolloutMemory& memory, std::span<const SequenceMemory* const> sequences,
                         std::span<const int32_t> tokens, int64_t least, const Forward& forward) {
  const int64_t wanted = std::max(least, static_cast<int64_t>(sequences.size()));
  const auto size = std::lower_bound(sizes_.begin(), sizes_.end(), wanted);
  if (size == sizes_.end()) return {};
  CHECK(arena.used() == 0, "a recorded step begins in an empty arena");
  const Integers integers = upload(sequences, tokens, *size);
  const MemoryView view = memory.view_over(integers.table, integers.slots, integers.speculative);
  const Batch batch{.tokens = integers.tokens,
                    .segments = {.starts = integers.starts, .positions = integers.positions, .chunks = 2 * *size},
                    .memory = &view};
  Recording& recording = recordings_[*size];
  if (!recording.seen) {
    recording.seen = true;
    return forward(batch);
  }
  if (recording.graph == nullptr || recording.version != cuda::scratch_version(stream_.queue())) {
    {
      const Arena::Scope scope(arena);
      recording.graph = cuda::record(stream_.queue(), [&] { recording.hidden = forward(batch); });
      recording.arena_bytes = arena.used();
    }
    recording.version = cuda::scratch_version(stream_.queue());
  }
  arena.take("rollout.graph", recording.arena_bytes);
  cuda::launch(stream_.queue(), *recording.graph);
  return recording.hidden;
}

}  // namespace furlong
