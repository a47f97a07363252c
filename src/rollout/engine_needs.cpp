// The memory that an engine takes.
#include <algorithm>

#include "model/model.h"
#include "model/mtp.h"
#include "rollout/round.h"

namespace furlong {
namespace {

// Scrap, a prompt and one sample of it.
constexpr int64_t least_slots = 3;

// Prompts that a step runs pieces of.
int64_t most_prompts(const EngineOptions& o) { return std::min(o.max_running, o.prefill_budget); }

// In whole cache lines.
size_t in_lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

size_t bytes_of_packs(const Weights& w, const EngineOptions& o) {
  if (!o.pack_weights) return 0;
  const size_t bytes = WeightPacks::bytes(weights_of_products(w, o));
  return o.memory_bytes > 0 && bytes > o.memory_bytes / 4 ? 0 : bytes;
}

// As many pages and slots as `memory_bytes` hold, at most what the requests can use.
MemoryOptions memory_options(const ModelConfig& whole, const Weights& w, const EngineOptions& o, size_t memory_bytes) {
  const ModelConfig c = remembered_model(whole, w.rank());
  MemoryOptions m{
      .page = o.page, .pages = 0, .slots = 0, .draft_rows = 1 + o.drafts, .mtp = o.drafts > 0, .exact = o.exact};
  // Every running sample and the prompts that wait for one.
  const int64_t per_sequence = pages_of_longest(o);
  m.slots = 2 + o.max_running + std::max<int64_t>(1, o.max_running / 4);
  m.pages = 1 + m.slots * per_sequence;
  if (memory_bytes > 0) {
    const size_t slot = std::max<size_t>(1, RolloutMemory::slot_bytes(c, w.dtype(), m, w.device()));
    const size_t page = std::max<size_t>(1, RolloutMemory::page_bytes(c, w.dtype(), m));
    // Little memory means fewer sequences at once, not sequences without pages: slots stop at half of it, or where
    // the longest requests of all of them still have their pages.
    const size_t sequences = memory_bytes / (slot + static_cast<size_t>(per_sequence) * page);
    auto slots = static_cast<int64_t>(std::max(sequences, memory_bytes / 2 / slot));
    // They leave one longest request its pages.
    const size_t longest = static_cast<size_t>(per_sequence + 2) * page;
    const size_t beside = memory_bytes > longest ? memory_bytes - longest : 0;
    slots = std::min(slots, static_cast<int64_t>(beside / slot));
    m.slots = std::min(m.slots, std::max(least_slots, slots));
    const size_t taken = static_cast<size_t>(m.slots) * slot;
    const size_t left = memory_bytes > taken ? memory_bytes - taken : 0;
    m.pages = std::min(m.pages, std::max<int64_t>(2, static_cast<int64_t>(left / page)));
  }
  if (o.max_pages > 0) m.pages = std::clamp<int64_t>(o.max_pages, 2, m.pages);
  if (o.max_slots > 0) m.slots = std::clamp(o.max_slots, least_slots, m.slots);
  return m;
}

// The working memory of the largest step, found by running it dry.
size_t arena_bytes_of(const ModelConfig& c, const Weights& w, const EngineOptions& o, ThreadPool& threads) {
  Arena measure = Arena::measuring(w.device());
  Stream dry = Stream::dry(threads, w.device());
  const Mesh mesh = Mesh::planned(w.rank());
  Exec exec{dry, measure, mesh};
  BatchBuilder builder;
  const std::vector<int32_t> tokens(static_cast<size_t>(o.prefill_budget + o.max_running * (1 + o.drafts)), 0);
  builder.add(tokens.data(), static_cast<int64_t>(tokens.size()));
  Batch batch = placed(exec, builder.batch());
  if (o.record_routes) {
    const int64_t all = c.num_layers * batch.rows(), k = c.experts_per_token;
    batch.routes = {.ids = measure.make("rollout.ids", DType::i32, {all, k}),
                    .weights = measure.make("rollout.weights", DType::f32, {all, k})};
  }
  Tensor hidden = model_forward(exec, c, w, batch, nullptr);
  int64_t extended = std::ssize(tokens);
  if (o.drafts > 0) {
    // Each prompt that starts from another's rows brings the head the last of these as well.
    const std::vector<int32_t> leads(static_cast<size_t>(o.share_prefixes ? most_prompts(o) : 0), 0);
    if (!leads.empty()) builder.add(leads.data(), std::ssize(leads));
    extended += std::ssize(leads);
  }
  if (o.drafts > 0 && hidden.defined()) {
    const Batch more = placed(exec, builder.batch());
    hidden = measure.make("mtp.hidden", w.dtype(), {most_rows_here(mesh, extended), c.hidden_size});
    mtp_forward(exec, c, w, hidden, more.tokens, more, {}, nullptr);
  }
  for (const char* name : {"sample.rows", "mtp.hidden", "mtp.rows"}) {
    measure.make(name, w.dtype(), {extended, c.hidden_size});
  }
  if (w.rank().row_parts() > 1) {
    for (const char* name : {"rollout.hidden", "mtp.all"}) {
      measure.make(name, w.dtype(), {extended, c.hidden_size});
    }
  }
  const int64_t tensor = w.rank().sizes.tensor, chunk = sample_chunk(w.device());
  measure.make("sample.logits", DType::f32, {chunk, (c.vocab_size + tensor - 1) / tensor});
  if (tensor > 1) measure.make("sample.columns", DType::f32, {2 * (chunk / tensor + 1), c.vocab_size});
  measure.make("sample.slack", DType::u8, {1 << 20});
  return measure.high_mark();
}

}  // namespace

std::vector<Tensor> weights_of_products(const Weights& w, const EngineOptions& o) {
  std::vector<Tensor> found;
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& t) {
        const bool matrix = t.defined() && (t.rank() == 2 || (t.rank() == 3 && t.dim(1) > 1));  // not the convolution's
        const bool looked_up = t.data() == w.embed.data() && t.data() != w.lm_head.data();
        if (matrix && !looked_up && (o.drafts > 0 || !spec.mtp)) found.push_back(t);
      },
      w);
  return found;
}

EngineNeeds engine_needs(const ModelConfig& c, const Weights& w, const EngineOptions& o, ThreadPool& threads) {
  EngineNeeds needs;
  needs.packs = bytes_of_packs(w, o);
  needs.memory = memory_options(c, w, o, o.memory_bytes - std::min(o.memory_bytes, needs.packs));
  const ModelConfig kept = remembered_model(c, w.rank());
  const auto bytes = RolloutMemory::bytes_of(kept, w.dtype(), needs.memory, w.device());
  needs.pages = bytes.pages;
  needs.slots = bytes.slots;
  needs.arena = in_lines(arena_bytes_of(c, w, o, threads));
  needs.least =
      static_cast<size_t>(least_slots) * RolloutMemory::slot_bytes(kept, w.dtype(), needs.memory, w.device()) +
      static_cast<size_t>(pages_of_longest(o) + 2) * RolloutMemory::page_bytes(kept, w.dtype(), needs.memory);
  if (may_leave_drafts_out(o) && w.rank().stage + 1 == w.rank().sizes.pipeline) {
    needs.unread = in_lines(static_cast<size_t>(most_unread(o) * c.hidden_size) * size_of(w.dtype()));
  }
  needs.block =
      RolloutMemory::block_bytes(kept, w.dtype(), needs.memory, w.device()) + needs.arena + needs.unread + needs.packs;
  return needs;
}

}  // namespace furlong
