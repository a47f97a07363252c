#include "plan/memory.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "ops/delta_rule.h"

namespace furlong {
namespace {

constexpr uint64_t mib = uint64_t{1} << 20;
// The matrix library and recorded graphs beside the context that was open before: 20 MiB on one H200
// (docs/performance.md, "Memory").
constexpr uint64_t library_bytes = 20 * mib;
// Page-locked memory of one queue for small uploads (tensor/cuda/queue.h).
constexpr uint64_t staging_bytes = 32 * mib;
// Of an offloaded update: numbers of the blocks on their way, three each way (optim/offload.cpp).
constexpr uint64_t block_numbers = 3 * 8 * mib;
// Of gradients that are summed over ranks: numbers that arrive at one rank at a time, cut at multiples of a unit
// (OptimOptions::exchange_block, optim/owners.cpp).
constexpr uint64_t exchanged_numbers = 16 * mib, exchange_unit = 64;
// Where the parts of a block begin that are used at the same time.
constexpr uint64_t part_boundary = 256;
// The program itself, tokenizer, prompts and trajectories.
constexpr uint64_t program_bytes = 64 * mib;
// Of what resident data leaves free, for the rollout, when no fraction is given. A CPU's memory serves others too.
constexpr double device_part = 0.95, host_part = 0.5;

uint64_t bytes_of(const RankSize& size, DType dtype) {
  return static_cast<uint64_t>(size.dense + size.experts) * size_of(dtype);
}

uint64_t fraction_of(double fraction, uint64_t bytes) {
  return static_cast<uint64_t>(fraction * static_cast<double>(bytes));
}

// Builds the rows of one plan.
class Planner {
 public:
  Planner(const PlanInputs& in, const DryRuns& runs) : in_(in), runs_(runs) {}

  MemoryPlan run() {
    plan_.device_limit = in_.cuda ? in_.device_total : 0;
    plan_.host_limit = in_.host_available;
    if (in_.cuda) {
      resident(in_.device_measured ? "taken before (driver, CUDA context, other programs)" : "driver and CUDA context",
               in_.device_taken);
    }
    models();
    if (in_.routes > 0) on_host("recorded routes", in_.routes);
    if (in_.cuda) {
      resident("kernels, matrix library, graphs", library_bytes);
      scratch();
    }
    phases();
    host();
    judge();
    return std::move(plan_);
  }

 private:
  size_t at(Phase phase) const { return static_cast<size_t>(phase); }
  PlanRow& row(const std::string& name) { return plan_.rows.emplace_back(PlanRow{name}); }
  // The place where weights lie: a GPU's memory, or the host's of one process.
  std::array<uint64_t, 2>& here(PlanRow& r) { return in_.cuda ? r.device : r.host; }
  void resident(const std::string& name, uint64_t bytes) { here(row(name)).fill(bytes); }
  void on_host(const std::string& name, uint64_t bytes) {
    row(name).host.fill(bytes * static_cast<uint64_t>(in_.cuda ? in_.gpus_a_host : 1));
  }

  void models() {
    const RankSize whole = size_of_rank(in_.model, in_.layout, in_.dtype);
    if (in_.reference) resident("reference weights", whole.bytes);
    learner(in_.model, "", in_.mtp ? std::nullopt : std::optional<bool>(false));
    if (!in_.critic || !in_.trains) return;
    ModelConfig critic = in_.model;
    critic.mtp_num_layers = 0;
    critic.value_head = true;
    learner(critic, "critic: ", std::nullopt);
  }

  // Weights and what trains them, in rows of these names.
  void learner(const ModelConfig& model, const std::string& who, std::optional<bool> part) {
    const auto& l = in_.layout;
    const auto resident = [&](const std::string& name, uint64_t bytes) { this->resident(who + name, bytes); };
    const auto on_host = [&](const std::string& name, uint64_t bytes) { this->on_host(who + name, bytes); };
    const RankSize whole = size_of_rank(model, l, in_.dtype);
    resident("weights", whole.bytes);
    if (!in_.trains) return;
    const RankSize trained = size_of_rank(model, l, in_.main_grads, part);
    resident("gradients", trained.bytes);
    // Gradients kept in bf16 are summed in fp32 a part of the model at a time.
    if (in_.main_grads != DType::f32) {
      resident("gradients of a micro-batch", whole.largest_part * size_of(DType::f32));
    }
    if (const int64_t ranks = l.gpus / l.pipeline; ranks > 1) {
      const uint64_t numbers =
          std::min(exchanged_numbers, whole.largest) + exchange_unit * static_cast<uint64_t>(ranks);
      resident("gradients on their way between ranks",
               (numbers + (in_.main_grads != DType::f32 ? numbers / static_cast<uint64_t>(ranks) : 0)) *
                   size_of(DType::f32));
    }
    if (in_.model.head_is_embedding() && l.pipeline > 1) {
      const ModelConfig rank = rank_model(in_.model, l);
      resident("a tied head's gradient on its way to the first stage",
               std::min(exchanged_numbers, static_cast<uint64_t>(rank.vocab_size * rank.hidden_size)) *
                   size_of(in_.main_grads));
    }
    // Optimizer state is spread over the ranks that hold the same weights.
    const auto spread = [&](RankSize size) {
      size.dense = (size.dense + l.data() * l.context - 1) / (l.data() * l.context);
      size.experts = (size.experts + l.expert_data() - 1) / l.expert_data();
      return size;
    };
    const bool own_masters = in_.dtype == DType::bf16 && in_.master != DType::bf16;
    const RankSize state = spread(trained);
    const uint64_t masters = own_masters ? bytes_of(spread(whole), in_.master) : 0;
    const uint64_t moments = bytes_of(state, in_.exp_avg) + bytes_of(state, in_.exp_avg_sq);
    const double away = in_.cuda ? in_.offload : 0;
    const auto put = [&](const std::string& name, uint64_t bytes, uint64_t largest) {
      const uint64_t moved = fraction_of(away, bytes);
      // Tensors move whole.
      if (away < 1) resident(name, std::min(bytes, bytes - moved + largest));
      if (moved > 0) on_host(name, moved);
    };
    if (masters > 0) put("fp32 masters", masters, away > 0 ? whole.largest * size_of(in_.master) : 0);
    put("optimizer moments", moments, away > 0 ? whole.largest * (size_of(in_.exp_avg) + size_of(in_.exp_avg_sq)) : 0);
    if (away > 0) {
      if (masters == 0) on_host("weights on the host", fraction_of(away, bytes_of(spread(whole), in_.dtype)));
      if (in_.overlap) on_host("gradients on the host", fraction_of(away, bytes_of(state, in_.main_grads)));
      const uint64_t moving = (in_.overlap ? 0 : size_of(in_.main_grads)) + (masters > 0 ? size_of(in_.dtype) : 0);
      on_host("blocks on their way", block_numbers * moving);
    }
    largest_ = std::max(largest_, whole.largest * size_of(DType::f32));
  }

  void scratch() {
    const ModelConfig rank = rank_model(in_.model, in_.layout);
    PlanRow& r = row("scratch of kernels");
    uint64_t bytes = 0;
    if (in_.micro_tokens > 0) {
      bytes += kernel_scratch(rank, in_.dtype, in_.micro_tokens, in_.micro_segments, in_.trains);
    }
    if (in_.rolls) bytes += kernel_scratch(rank, in_.dtype, 2048 + in_.max_running, in_.max_running + 1, false);
    r.device.fill(bytes);
  }

  uint64_t taken() const {
    uint64_t sum = 0;
    for (const auto& r : plan_.rows) sum += in_.cuda ? r.device[0] : r.host[0];
    return sum;
  }

  void phases() {
    const uint64_t base = in_.cuda ? in_.device_total : in_.host_available, resident_bytes = taken();
    const WorkingBytes work = in_.micro_tokens > 0 ? runs_.training(in_) : WorkingBytes();
    const uint64_t kept = resident_bytes + (in_.at_once ? work.bytes + part_boundary : 0);
    const uint64_t left = base > kept ? base - kept : 0;
    if (in_.rolls) {
      const RolloutBytes none = runs_.rollout(in_, 1);
      const uint64_t whole = in_.fraction ? fraction_of(*in_.fraction, base) : 0;
      uint64_t room = in_.fraction ? (whole > resident_bytes ? whole - resident_bytes : 0)
                                   : fraction_of(in_.cuda ? device_part : host_part, left);
      // Pages and slots lie on boundaries inside their block.
      const uint64_t beside = none.working + mib;
      plan_.pool = room > beside ? room - beside : 0;
      if (plan_.pool < none.least) {
        plan_.problems.push_back(fmt::format(
            "the rollout has {} for pages and slots{}, one request of {} tokens needs {}", human_bytes(plan_.pool),
            in_.fraction ? fmt::format(" under --rollout-mem-fraction-static {}", *in_.fraction) : "", in_.longest,
            human_bytes(none.least)));
        plan_.pool = none.least;
      }
      const RolloutBytes rollout = runs_.rollout(in_, plan_.pool);
      // Beside scrap, one slot is kept for a prompt being read.
      const int64_t pages = (in_.longest + rollout.page - 1) / std::max<int64_t>(1, rollout.page) + 1;
      plan_.sequences =
          std::max<int64_t>(1, std::min({in_.max_running, rollout.slots - 2, (rollout.pages - 1) / pages}));
      const auto one = [&](const std::string& name, uint64_t bytes) {
        auto& both = here(row(name));
        both[at(Phase::rollout)] = bytes;
        if (in_.at_once) both[at(Phase::training)] = bytes;
      };
      one(fmt::format("rollout pages ({} x {} tokens)", rollout.pages, rollout.page), rollout.page_bytes);
      one(fmt::format("rollout slots ({})", rollout.slots), rollout.slot_bytes);
      plan_.block = rollout.block;
      if (in_.at_once) plan_.block += (part_boundary - plan_.block % part_boundary) % part_boundary;
      if (rollout.packs > 0) one("rollout weights in packs", rollout.packs);
      one("rollout working memory", plan_.block - rollout.page_bytes - rollout.slot_bytes - rollout.packs);
    }
    if (in_.micro_tokens > 0) {
      for (const auto& [name, bytes] : work.parts) {
        auto& both = here(row((in_.trains ? "training working memory: " : "working memory: ") + name));
        both[at(Phase::training)] = bytes;
        if (!in_.trains || in_.at_once) both[at(Phase::rollout)] = bytes;
      }
      if (in_.at_once) {
        plan_.training_at = plan_.block;
        plan_.block += work.bytes;
      } else {
        plan_.block = std::max(plan_.block, work.bytes);
      }
    }
  }

  void host() {
    on_host("program", program_bytes);
    if (!in_.cuda) return;
    const int queues = in_.trains + in_.rolls + (in_.trains && in_.offload > 0 ? 2 : 0);
    on_host("page-locked staging", staging_bytes * static_cast<uint64_t>(queues));
    if (largest_ > 0) on_host("largest tensor of a checkpoint", largest_);
  }

  void judge() {
    const auto judge_one = [&](const char* where, uint64_t wanted, uint64_t there) {
      if (wanted <= there) return;
      plan_.problems.push_back(fmt::format("{}: {} wanted, {} there, {} too little", where, human_bytes(wanted),
                                           human_bytes(there), human_bytes(wanted - there)));
    };
    if (in_.cuda) judge_one("GPU memory", plan_.device_peak(), plan_.device_limit);
    judge_one("host memory", plan_.host_peak(), plan_.host_limit);
  }

  const PlanInputs& in_;
  const DryRuns& runs_;
  MemoryPlan plan_;
  uint64_t largest_ = 0;
};

// A change of settings, and how a user writes it.
struct Change {
  std::string flags;
  PlanInputs inputs;
};

using TryOne = std::function<bool(const std::string& flags, const PlanInputs& changed)>;

// The model over more ranks, or other ones, and then with everything else that helps.
void spread_further(const PlanInputs& in, const Change& kept, const TryOne& try_one,
                    const std::vector<std::string>& found) {
  const std::pair<const char*, int64_t PlanLayout::*> ways[] = {
      {"--expert-model-parallel-size", &PlanLayout::expert},
      {"--context-parallel-size", &PlanLayout::context},
      {"--pipeline-model-parallel-size", &PlanLayout::pipeline},
      {"--tensor-model-parallel-size", &PlanLayout::tensor}};
  for (const bool all : {false, true}) {
    for (const auto& [flag, size] : ways) {
      for (int64_t n = 2; n <= 64 && found.empty(); n *= 2) {
        PlanInputs more = all ? kept.inputs : in;
        PlanLayout& l = more.layout;
        l = in.layout;
        if (n <= l.*size) continue;
        l.*size = n;
        l.gpus = std::max({l.gpus, l.tensor * l.context * l.pipeline, l.expert * l.expert_tensor * l.pipeline});
        if (!layout_problems(in.model, l).empty()) continue;
        more.gpus_a_host = std::min<int64_t>(8, l.gpus);
        std::string flags = fmt::format("{} GPUs with {} {}", l.gpus, flag, n);
        if (all && !kept.flags.empty()) flags += " " + kept.flags;
        // Tokens are counted for each context parallel rank; the last of two flags counts.
        if (more.packs && l.context != in.layout.context) {
          flags += fmt::format(" --max-tokens-per-gpu {}", more.micro_tokens / l.context);
        }
        try_one(flags, more);
      }
    }
  }
}

void append(std::string& text, const std::string& flag) { text += (text.empty() ? "" : " ") + flag; }

}  // namespace

uint64_t MemoryPlan::device(Phase phase) const {
  uint64_t sum = 0;
  for (const auto& r : rows) sum += r.device[static_cast<size_t>(phase)];
  return sum;
}

uint64_t MemoryPlan::host(Phase phase) const {
  uint64_t sum = 0;
  for (const auto& r : rows) sum += r.host[static_cast<size_t>(phase)];
  return sum;
}

uint64_t MemoryPlan::device_peak() const { return std::max(device(Phase::rollout), device(Phase::training)); }
uint64_t MemoryPlan::host_peak() const { return std::max(host(Phase::rollout), host(Phase::training)); }

uint64_t kernel_scratch(const ModelConfig& c, DType dtype, int64_t tokens, int64_t segments, bool backward) {
  const int64_t kh = c.linear_num_key_heads, vh = c.linear_num_value_heads, dk = c.linear_key_head_dim;
  const int64_t chunks = tokens / delta_chunk + segments, square = delta_chunk * delta_chunk;
  // The records of a chunk of the delta rule, and in the backward pass its solved rows and the state's gradient.
  int64_t delta = chunks * (kh * 2 * delta_chunk * dk * 2 + vh * (2 * square * 2 + 3 * delta_chunk * 4));
  if (backward) delta += chunks * vh * (delta_chunk * dk + dk * dk) * 2;
  if (dtype != DType::bf16) delta = backward ? 2 * tokens * vh * dk * 4 : chunks * 64;
  // A product's workspace; for the head's gradients in bf16 also the part of a gradient that is rounded at a time.
  int64_t product = dtype == DType::bf16 ? 32 << 20 : 0;
  if (backward && dtype == DType::bf16) {
    const int64_t rounded = std::min<int64_t>(256 << 20, std::min<int64_t>(tokens, 4096) * c.vocab_size * 2);
    product += rounded + std::min<int64_t>(tokens, 4096) * c.hidden_size * 4;
  }
  const int64_t rows = 4 << 20;  // partial sums of rows, embedding gradients, sampling
  return static_cast<uint64_t>(std::max(delta, product) + rows + (backward ? c.vocab_size * 8 : 0));
}

MemoryPlan plan_memory(const PlanInputs& inputs, const DryRuns& runs) { return Planner(inputs, runs).run(); }

std::vector<std::string> nearest_that_fits(const PlanInputs& in, const DryRuns& runs) {
  std::vector<std::string> found;
  const auto try_one = [&](const std::string& flags, const PlanInputs& changed) {
    const MemoryPlan plan = plan_memory(changed, runs);
    if (!plan.fits()) return false;
    found.push_back(changed.cuda ? fmt::format("{}: {} a GPU, {} on the host", flags, human_bytes(plan.device_peak()),
                                               human_bytes(plan.host_peak()))
                                 : fmt::format("{}: {}", flags, human_bytes(plan.host_peak())));
    return true;
  };
  // One kind of change after the other, each as small as will do; `kept` gathers them in case none does alone.
  Change kept{"", in};
  const auto once = [&](const std::string& flag, auto&& change) {
    PlanInputs alone = in;
    change(alone);
    change(kept.inputs);
    append(kept.flags, flag);
    return try_one(flag, alone);
  };
  // shares: how many of what the flag counts make up the size.
  const auto shrink = [&](const char* flag, int64_t PlanInputs::*size, int64_t least, int64_t shares, auto&& after) {
    if (in.*size / 2 < least) return;
    PlanInputs alone = in;
    while (alone.*size / 2 >= least) {
      alone.*size /= 2;
      after(alone);
      if (try_one(fmt::format("{} {}", flag, alone.*size / shares), alone)) break;
    }
    kept.inputs.*size = alone.*size;
    after(kept.inputs);
    append(kept.flags, fmt::format("{} {}", flag, alone.*size / shares));
  };
  if (in.trains && in.cuda && in.offload < 1 && in.may_offload) {
    once("--optimizer-cpu-offload", [](PlanInputs& i) { i.offload = 1; });
  }
  if (in.trains && !in.recompute) once("--recompute-granularity full", [](PlanInputs& i) { i.recompute = true; });
  if (in.trains && in.packs) {
    shrink("--max-tokens-per-gpu", &PlanInputs::micro_tokens, std::max<int64_t>(in.longest, 64), in.layout.context,
           [](PlanInputs& i) { i.micro_segments = std::min(i.micro_segments, i.micro_tokens / 2); });
  }
  if (in.rolls && in.fraction) {
    for (int percent = 5; percent <= 95; percent += 5) {
      PlanInputs alone = in;
      alone.fraction = percent / 100.0;
      if (try_one(fmt::format("--rollout-mem-fraction-static {:.2f}", *alone.fraction), alone)) break;
    }
    kept.inputs.fraction.reset();
    append(kept.flags, "no --rollout-mem-fraction-static");
  }
  if (in.rolls) shrink("--rollout-max-running-requests", &PlanInputs::max_running, 1, 1, [](PlanInputs&) {});
  if (found.empty() && !kept.flags.empty()) try_one(kept.flags, kept.inputs);
  if (found.empty() && in.cuda && in.may_spread) spread_further(in, kept, try_one, found);
  return found;
}

}  // namespace furlong
