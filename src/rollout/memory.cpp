#include "rollout/memory.h"

#include <algorithm>
#include <cstring>

#include "model/delta_net.h"
#include "ops/reduce.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

constexpr size_t fp32 = 4;
constexpr size_t boundary = 256;

size_t on_boundary(size_t bytes) { return (bytes + boundary - 1) / boundary * boundary; }

}  // namespace

ModelConfig remembered_model(const ModelConfig& c, const MeshRank& rank) {
  ModelConfig r = c;
  const Range layers = stage_layers(c, rank);
  r.full_attention.assign(c.full_attention.begin() + layers.begin, c.full_attention.begin() + layers.end);
  r.num_layers = layers.size();
  if (rank.stage + 1 != rank.sizes.pipeline) r.mtp_num_layers = 0;
  const HeadRanges heads = mixer_heads(c, rank);
  r.num_heads = heads.query.size();
  r.num_kv_heads = heads.kv.size();
  r.linear_num_key_heads = heads.delta_key.size();
  r.linear_num_value_heads = heads.delta_value.size();
  return r;
}

size_t RolloutMemory::page_bytes(const ModelConfig& c, DType dtype, const MemoryOptions& o) {
  const int64_t layers = c.num_attention_layers() + (o.mtp ? c.mtp_num_layers : 0);
  return static_cast<size_t>(2 * layers * o.page * c.num_kv_heads * c.head_dim) * size_of(dtype);
}

size_t RolloutMemory::slot_bytes(const ModelConfig& c, DType dtype, const MemoryOptions& o, Device device) {
  const int64_t ring = delta_chunk + o.draft_rows, window = c.conv_kernel - 1 + o.draft_rows;
  const int64_t state = c.linear_num_value_heads * c.linear_key_head_dim * c.linear_value_head_dim;
  const DType rings = delta_rings(device, dtype, delta_shape(c));
  const int64_t per_head = rings == DType::bf16 ? 3 : 2;  // fp32 numbers: the decay in double, beta
  return static_cast<size_t>(c.num_delta_layers()) *
         (static_cast<size_t>(state + ring * per_head * c.linear_num_value_heads) * fp32 +
          static_cast<size_t>(ring * (c.key_dim() + c.value_dim())) * size_of(rings) +
          static_cast<size_t>(window * c.conv_dim()) * size_of(dtype));
}

RolloutMemory::Bytes RolloutMemory::bytes_of(const ModelConfig& c, DType dtype, const MemoryOptions& o, Device device) {
  return {static_cast<size_t>(o.pages) * page_bytes(c, dtype, o),
          static_cast<size_t>(o.slots) * slot_bytes(c, dtype, o, device)};
}

size_t RolloutMemory::block_bytes(const ModelConfig& c, DType dtype, const MemoryOptions& o, Device device) {
  const auto bytes = bytes_of(c, dtype, o, device);
  const int64_t tensors = 2 * (c.num_attention_layers() + (o.mtp ? c.mtp_num_layers : 0)) + 6 * c.num_delta_layers();
  return on_boundary(bytes.pages + bytes.slots) + static_cast<size_t>(tensors) * boundary;
}

RolloutMemory::RolloutMemory(const ModelConfig& c, DType dtype, const MemoryOptions& o, Stream* stream,
                             const Share& place)
    : config_(c), options_(o), stream_(stream), device_(stream != nullptr ? stream->device() : Device::cpu) {
  CHECK(o.pages >= 2 && o.slots >= 2 && o.draft_rows >= 1, "{} pages, {} slots", o.pages, o.slots);
  size_t at = 0;
  const auto make = [&](DType t, std::initializer_list<int64_t> shape) {
    if (!place.defined()) return tensors_.emplace_back(t, shape, device_).view();
    const Tensor sized(nullptr, t, shape, device_);
    const Tensor tensor = sized.placed(place.part(at, sized.bytes()).data(), device_);
    at += on_boundary(sized.bytes());
    return tensor;
  };
  const auto make_pages = [&] {
    const int64_t width = c.num_kv_heads * c.head_dim;
    return KvPages{make(dtype, {o.pages, o.page, width}), make(dtype, {o.pages, o.page, width}), {}, o.exact};
  };
  const int64_t ring = delta_chunk + o.draft_rows;
  const int64_t kh = c.linear_num_key_heads, vh = c.linear_num_value_heads;
  const int64_t dk = c.linear_key_head_dim, dv = c.linear_value_head_dim;
  const DType rings = delta_rings(device_, dtype, delta_shape(c));
  for (const bool full : c.full_attention) {
    if (full) {
      view_.attention.push_back(make_pages());
    } else {
      view_.delta.push_back({.state = make(DType::f32, {o.slots, vh, dk, dv}),
                             .ring_k = make(rings, {o.slots, ring, kh * dk}),
                             .ring_u = make(rings, {o.slots, ring, vh * dv}),
                             .ring_g = make(DType::f64, {o.slots, ring, vh}),
                             .window = make(dtype, {o.slots, c.conv_kernel - 1 + o.draft_rows, c.conv_dim()}),
                             .slots = {},
                             .speculative = {},
                             .ring_beta = {}});
      // The rule reads ring entries per head.
      auto& d = view_.delta.back();
      d.ring_k = d.ring_k.reshape({o.slots, ring, kh, dk});
      d.ring_u = d.ring_u.reshape({o.slots, ring, vh, dv});
      if (rings == DType::bf16) d.ring_beta = make(DType::f32, {o.slots, ring, vh});
    }
  }
  if (o.mtp && c.mtp_num_layers > 0) view_.mtp = make_pages();
  for (int64_t i = 1; i < o.pages; i++) free_pages_.insert(static_cast<int32_t>(i));
  for (int64_t i = 1; i < o.slots; i++) free_slots_.insert(static_cast<int32_t>(i));
  references_.assign(static_cast<size_t>(o.pages), 0);
}

int32_t RolloutMemory::take_page() {
  CHECK(!free_pages_.empty(), "a page taken from an empty pool");
  const int32_t page = *free_pages_.begin();
  free_pages_.erase(free_pages_.begin());
  references_[static_cast<size_t>(page)] = 1;
  return page;
}

void RolloutMemory::drop_page(int32_t page) {
  if (--references_[static_cast<size_t>(page)] == 0) free_pages_.insert(page);
}

void RolloutMemory::copy_entry(const Tensor& t, int32_t to, int32_t from) {
  const Tensor target = t.rows(to, to + 1), source = t.rows(from, from + 1);
  if (device_ == Device::cpu) {
    std::memcpy(target.data(), source.data(), target.bytes());
  } else {
    copy(*stream_, target, source);
  }
}

Tensor RolloutMemory::integers(size_t part, const std::vector<int32_t>& host, std::initializer_list<int64_t> shape) {
  // The ops take views that may be written; these are only read.
  const Tensor view(const_cast<int32_t*>(host.data()), DType::i32, shape);
  if (device_ == Device::cpu) return view;
  Buffer& buffer = device_integers_[part];
  if (buffer.bytes() < view.bytes()) {
    stream_->synchronize();
    buffer = Buffer(2 * view.bytes(), device_);
  }
  const Tensor device = view.placed(buffer.data(), device_);
  copy(*stream_, device, view);
  return device;
}

void RolloutMemory::copy_page(int32_t to, int32_t from) {
  const auto copy = [&](const KvPages& p) {
    copy_entry(p.k, to, from);
    copy_entry(p.v, to, from);
  };
  for (const auto& p : view_.attention) copy(p);
  if (view_.mtp.defined()) copy(view_.mtp);
}

void RolloutMemory::copy_slot(int32_t to, int32_t from) {
  for (const auto& d : view_.delta) {
    for (const auto& t : {d.state, d.ring_k, d.ring_u, d.ring_g, d.ring_beta, d.window}) {
      if (t.defined()) copy_entry(t, to, from);
    }
  }
}

void RolloutMemory::clear_slot(int32_t slot) {
  for (const auto& d : view_.delta) {
    const Tensor state = d.state.rows(slot, slot + 1);
    if (device_ == Device::cpu) {
      std::memset(state.data(), 0, state.bytes());
    } else {
      set_zero(*stream_, state);
    }
  }
}

SequenceMemory RolloutMemory::reserve(int64_t rows) {
  CHECK(!free_slots_.empty() && free_pages() >= pages_for(rows), "no room for {} rows", rows);
  SequenceMemory sequence;
  sequence.slot = *free_slots_.begin();
  free_slots_.erase(free_slots_.begin());
  clear_slot(sequence.slot);
  for (int64_t i = 0; i < pages_for(rows); i++) sequence.pages.push_back(take_page());
  return sequence;
}

SequenceMemory RolloutMemory::fork(const SequenceMemory& parent, int64_t rows) {
  CHECK(!free_slots_.empty() && free_pages() >= pages_for_fork(parent.length, rows), "no room for a fork of {} rows",
        rows);
  SequenceMemory child;
  child.slot = *free_slots_.begin();
  free_slots_.erase(free_slots_.begin());
  child.length = parent.length;
  copy_slot(child.slot, parent.slot);
  const auto shared = static_cast<size_t>(shared_pages(parent.length));
  for (size_t i = 0; i < shared; i++) {
    child.pages.push_back(parent.pages[i]);
    references_[static_cast<size_t>(parent.pages[i])]++;
  }
  for (auto i = static_cast<int64_t>(shared); i < pages_for(rows); i++) {
    child.pages.push_back(take_page());
    if (i < pages_for(parent.length)) copy_page(child.pages.back(), parent.pages[static_cast<size_t>(i)]);
  }
  return child;
}

void RolloutMemory::extend(SequenceMemory& sequence, int64_t rows) {
  while (std::ssize(sequence.pages) < pages_for(rows)) sequence.pages.push_back(take_page());
}

void RolloutMemory::commit(Stream& stream, std::span<SequenceMemory* const> sequences,
                           std::span<const int64_t> lengths) {
  commits_.clear();
  std::vector<int32_t> before, after;
  for (size_t i = 0; i < sequences.size(); i++) {
    auto& s = *sequences[i];
    if (s.length / delta_chunk != lengths[i] / delta_chunk) {
      commits_.push_back(s.slot);
      before.push_back(static_cast<int32_t>(s.length));
      after.push_back(static_cast<int32_t>(lengths[i]));
    }
    s.length = lengths[i];
  }
  if (commits_.empty()) return;
  const int64_t n = std::ssize(commits_);
  commits_.insert(commits_.end(), before.begin(), before.end());
  commits_.insert(commits_.end(), after.begin(), after.end());
  const Tensor all = integers(3, commits_, {3 * n});
  delta_commit(stream, view_.delta, all.rows(0, n), all.rows(n, 2 * n), all.rows(2 * n, 3 * n), delta_shape(config_));
}

void RolloutMemory::release(SequenceMemory& sequence) {
  for (const int32_t page : sequence.pages) drop_page(page);
  if (sequence.slot != 0) free_slots_.insert(sequence.slot);
  sequence = {};
}

void RolloutMemory::reset() {
  if (device_ == Device::cpu) return;
  const auto zero = [&](const Tensor& t) {
    if (t.defined()) set_zero(*stream_, t);
  };
  const auto zero_pages = [&](const KvPages& p) {
    zero(p.k);
    zero(p.v);
  };
  for (const auto& p : view_.attention) zero_pages(p);
  zero_pages(view_.mtp);
  for (const auto& d : view_.delta) {
    for (const auto& t : {d.state, d.ring_k, d.ring_u, d.ring_g, d.window}) zero(t);
  }
}

const MemoryView& RolloutMemory::view(std::span<const SequenceMemory* const> sequences,
                                      std::span<const uint8_t> speculative) {
  size_t widest = 1;
  for (const auto* s : sequences) widest = std::max(widest, s->pages.size());
  table_.assign(sequences.size() * widest, 0);
  slots_.clear();
  speculative_.assign(speculative.begin(), speculative.end());
  for (size_t i = 0; i < sequences.size(); i++) {
    std::copy(sequences[i]->pages.begin(), sequences[i]->pages.end(),
              table_.begin() + static_cast<int64_t>(i * widest));
    slots_.push_back(sequences[i]->slot);
  }
  const auto n = static_cast<int64_t>(sequences.size());
  const Tensor table = integers(0, table_, {n, static_cast<int64_t>(widest)}), slots = integers(1, slots_, {n});
  const Tensor flags = integers(2, speculative_, {n});
  view_ = view_over(table, slots, flags);
  return view_;
}

MemoryView RolloutMemory::view_over(Tensor table, Tensor slots, Tensor speculative) const {
  MemoryView view = view_;
  for (auto& p : view.attention) p.table = table;
  if (view.mtp.defined()) view.mtp.table = table;
  for (auto& d : view.delta) {
    d.slots = slots;
    d.speculative = speculative;
  }
  return view;
}

}  // namespace furlong
