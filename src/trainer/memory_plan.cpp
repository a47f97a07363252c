#include "trainer/memory_plan.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "base/error.h"
#include "base/host_memory.h"
#include "base/text.h"
#include "model/mtp.h"
#include "monitor/table.h"
#include "rl/loss_head.h"
#include "trainer/options.h"

namespace furlong {
namespace {

constexpr double gib = 1073741824.0;
constexpr uint64_t route_bytes = sizeof(uint16_t) + sizeof(float);  // of one choice

bool offered(const char* name) {
  const auto& all = fields();
  const auto at = std::find_if(all.begin(), all.end(), [&](const Field& f) { return f.name == name; });
  return at != all.end() && !at->later;
}

PlanLayout layout_of(const Settings& s, int64_t ranks) {
  const ParallelSizes p = parallel_sizes(s);
  PlanLayout l{p.tensor, p.pipeline, p.context, p.expert, p.expert_tensor};
  const int64_t least = std::max(p.tensor * p.pipeline * p.context, p.pipeline * p.expert * p.expert_tensor);
  l.gpus = ranks > 0 ? ranks : s.gpus.value_or(least);
  return l;
}

// The least that any rank has, as all ranks of a mesh agree on it.
MachineMemory least_of(const Mesh& mesh, const MachineMemory& mine) {
  MachineMemory least = mine;
  for (const auto& bytes : mesh.world().gather_bytes({reinterpret_cast<const char*>(&mine), sizeof mine})) {
    MachineMemory other;
    std::memcpy(&other, bytes.data(), sizeof other);
    least.host_available = std::min(least.host_available, other.host_available);
    if (other.device_total - other.device_taken < least.device_total - least.device_taken) {
      least.device_total = other.device_total;
      least.device_taken = other.device_taken;
    }
  }
  return least;
}

// The last rank of a pipeline stage: it holds the larger share where one does not divide.
MeshRank last_of_stage(const PlanLayout& l, int64_t stage) {
  return mesh_rank(l.sizes(), (stage + 1) * (l.gpus / l.pipeline) - 1, l.gpus);
}

Weights outline_at(const PlanInputs& in, const MeshRank& place) {
  return Weights::outline(in.model, in.dtype, {.device = in.cuda ? Device::cuda : Device::cpu, .rank = place});
}

// A forward pass over one packed batch, log-probs and entropies of every row, then the MTP head's.
WorkingBytes scoring(const PlanInputs& in, Dispatcher dispatcher, ThreadPool& threads) {
  const Device device = in.cuda ? Device::cuda : Device::cpu;
  const Mesh mesh = Mesh::planned(last_of_stage(in.layout, in.layout.pipeline - 1), dispatcher);
  const Weights outline = outline_at(in, mesh.place());
  const std::vector<int32_t> tokens(static_cast<size_t>(in.micro_tokens), 0);
  const std::vector<HeadRow> rows(tokens.size());
  BatchBuilder builder;
  builder.add(tokens.data(), in.micro_tokens);
  Stream dry = Stream::dry(threads, device);
  Arena measure = Arena::measuring(device);
  Exec exec{dry, measure, mesh};
  const Batch batch = placed(exec, builder.batch());
  const Tensor hidden = model_forward(exec, in.model, outline, batch, nullptr);
  score_rows(exec, outline, hidden, rows, {.entropy = true, .batch_rows = batch.rows()}, {}, {});
  if (!outline.mtp.empty()) {
    const Tensor m = mtp_forward(exec, in.model, outline, hidden, batch.tokens, batch, {}, nullptr);
    score_rows(exec, outline, m, rows, {.batch_rows = batch.rows()}, {}, {});
  }
  WorkingBytes found{.parts = {}, .bytes = measure.high_mark()};
  std::map<std::string, uint64_t> parts;
  for (const auto& [name, bytes] : measure.at_high_mark()) parts[name.substr(0, name.find('.'))] += bytes;
  found.parts.assign(parts.begin(), parts.end());
  return found;
}

// Of the stage that needs most: the first holds most micro-batches at a time, the last has the heads.
WorkingBytes training(const PlanInputs& in, const TrainOptions& options, Dispatcher dispatcher, ThreadPool& threads) {
  WorkingBytes most;
  for (int64_t stage = 0; stage < in.layout.pipeline; stage++) {
    Weights outline = outline_at(in, last_of_stage(in.layout, stage));
    const WorkingMemory found =
        TrainStep::working_memory(in.model, outline, threads, options, in.micro_tokens, in.micro_segments, dispatcher);
    if (found.bytes > most.bytes) most = {found.parts, found.bytes};
  }
  return most;
}

// Of the stage whose block is largest; the smallest pools are those of all stages.
RolloutBytes rollout(const PlanInputs& in, const EngineOptions& options, ThreadPool& threads) {
  RolloutBytes all;
  for (int64_t stage = 0; stage < in.layout.pipeline; stage++) {
    const EngineNeeds needs = engine_needs(in.model, outline_at(in, last_of_stage(in.layout, stage)), options, threads);
    const bool first = stage == 0;
    all.page = needs.memory.page;
    all.pages = first ? needs.memory.pages : std::min(all.pages, needs.memory.pages);
    all.slots = first ? needs.memory.slots : std::min(all.slots, needs.memory.slots);
    all.least = std::max<uint64_t>(all.least, needs.least);
    all.working = std::max<uint64_t>(all.working, needs.arena + needs.unread);
    if (needs.block <= all.block) continue;
    all.block = needs.block;
    all.page_bytes = needs.pages;
    all.slot_bytes = needs.slots;
    all.packs = needs.packs;
  }
  return all;
}

}  // namespace

MachineMemory machine_memory(Device device, const Settings& settings) {
  MachineMemory m;
  if (device == Device::cuda) {
    const auto memory = cuda::memory();
    m.device_total = memory.total;
    m.device_taken = memory.total - memory.free;
    m.device_found = true;
  }
  m.host_available = available_host_memory();
  if (settings.gpu_memory_gib && device == Device::cuda) {
    m.device_total = static_cast<uint64_t>(*settings.gpu_memory_gib * gib);
  }
  if (settings.host_memory_gib) m.host_available = static_cast<uint64_t>(*settings.host_memory_gib * gib);
  return m;
}

PlanInputs plan_inputs(const Settings& s, const ModelConfig& config, const Workload& work, const MachineMemory& there) {
  PlanInputs in;
  in.model = config;
  in.layout = layout_of(s, work.ranks);
  in.dtype = compute_dtype(s);
  in.cuda = parse_device(s.device) == Device::cuda;
  in.gpus_a_host = std::min<int64_t>(in.layout.gpus, 8);
  in.trains = work.trains;
  in.rolls = work.rolls;
  in.at_once = s.train_during_tail || s.async_rollout;
  in.mtp = s.enable_mtp_training;
  in.critic = work.trains && !work.supervised && s.advantage_estimator == "ppo" && !s.debug_rollout_only;
  in.reference = work.trains && !work.supervised && needs_reference(s);
  if (s.use_rollout_routing_replay && work.trains && !work.supervised) {
    const int64_t samples = s.rollout_batch_size.value_or(1) * s.n_samples_per_prompt;
    const auto row = static_cast<uint64_t>(config.num_layers * config.experts_per_token) * route_bytes;
    in.routes = static_cast<uint64_t>(samples * work.longest) * row;
  }
  in.offload = s.optimizer_cpu_offload ? s.optimizer_offload_fraction : 0;
  in.overlap = s.overlap_cpu_optimizer_d2h_h2d;
  in.master = parse_dtype(s.main_params_dtype);
  in.exp_avg = parse_dtype(s.exp_avg_dtype);
  in.exp_avg_sq = parse_dtype(s.exp_avg_sq_dtype);
  in.main_grads = parse_dtype(s.main_grads_dtype);
  in.may_offload = offered("optimizer_cpu_offload");
  in.may_spread = offered("expert_model_parallel_size");
  in.recompute = s.recompute_granularity == "full";
  in.packs = s.use_dynamic_batch_size;
  in.longest = work.longest;
  if (work.trains && !s.debug_rollout_only) {
    const int64_t samples = s.global_batch_size.value_or(s.rollout_batch_size.value_or(1) * s.n_samples_per_prompt);
    const int64_t longest = std::max<int64_t>(work.longest, 2);
    in.micro_tokens = s.micro_batch_size * longest;
    in.micro_segments = s.micro_batch_size;
    if (in.packs) {
      // A longer sample is a micro-batch of its own, and a step may have fewer tokens than a micro-batch takes.
      const int64_t budget = s.max_tokens_per_gpu.value_or(longest) * s.context_parallel_size;
      const bool fewer = samples < budget / longest;
      in.micro_tokens = std::max(longest, fewer ? samples * longest : budget);
      in.micro_segments = std::min(samples, in.micro_tokens / std::max<int64_t>(2, work.shortest) + 1);
    }
  }
  if (work.pack_size > 0) {
    in.micro_tokens = work.pack_size;
    in.micro_segments = work.pack_size / 2;
  }
  if (work.rolls) {
    // Data-parallel ranks of an engine share its running requests.
    const int64_t data = in.layout.data();
    in.max_running =
        (engine_options(config, s.hf_checkpoint, s, work.longest, work.requests).max_running + data - 1) / data;
    in.fraction = s.rollout_mem_fraction_static;
  }
  in.device_total = there.device_total;
  in.device_taken = there.device_taken;
  in.host_available = there.host_available;
  in.device_measured = there.device_found;
  return in;
}

DryRuns dry_runs(const Settings& s, const Workload& work, ThreadPool& threads) {
  DryRuns runs;
  runs.training = [s, work, &threads](const PlanInputs& in) {
    const Dispatcher dispatcher = parse_dispatcher(s.moe_token_dispatcher_type);
    if (!in.trains) return scoring(in, dispatcher, threads);
    TrainOptions options = train_options(s, in.model);
    if (work.supervised) options.objective = Objective::supervised;
    options.recompute = in.recompute ? Recompute::full : Recompute::none;
    return training(in, options, dispatcher, threads);
  };
  runs.rollout = [s, work, &threads](const PlanInputs& in, uint64_t pool) {
    EngineOptions options = engine_options(in.model, s.hf_checkpoint, s, work.longest, work.requests);
    options.max_running = std::min(options.max_running, in.max_running);
    options.memory_bytes = pool;
    return rollout(in, options, threads);
  };
  return runs;
}

std::string plan_table(const MemoryPlan& plan, const PlanInputs& in) {
  using Align = Table::Align;
  const auto size = [](uint64_t bytes) { return bytes == 0 ? std::string("-") : human_bytes(bytes); };
  std::vector<Table::Column> columns = {{"memory"}};
  const std::string per_host = in.gpus_a_host > 1 ? fmt::format("host ({} GPUs)", in.gpus_a_host) : "host";
  for (const std::string& place : in.cuda ? Texts{"GPU", per_host} : Texts{"host"}) {
    if (in.rolls) columns.push_back({place + ", rollout", Align::right});
    if (in.trains) columns.push_back({place + ", training", Align::right});
    if (!in.rolls && !in.trains) columns.push_back({place, Align::right});
  }
  Table table(columns);
  const auto add = [&](const std::string& name, const std::array<uint64_t, 2>& device,
                       const std::array<uint64_t, 2>& host) {
    std::vector<std::string> cells = {name};
    const auto place = [&](const std::array<uint64_t, 2>& bytes) {
      if (in.rolls) cells.push_back(size(bytes[0]));
      if (in.trains) cells.push_back(size(bytes[1]));
      if (!in.rolls && !in.trains) cells.push_back(size(bytes[0]));
    };
    if (in.cuda) place(device);
    place(host);
    table.add(cells);
  };
  for (const auto& r : plan.rows) add(r.name, r.device, r.host);
  table.add_rule();
  const auto both = [](auto&& of) { return std::array<uint64_t, 2>{of(Phase::rollout), of(Phase::training)}; };
  add("total", both([&](Phase p) { return plan.device(p); }), both([&](Phase p) { return plan.host(p); }));
  add("there is", {plan.device_limit, plan.device_limit}, {plan.host_limit, plan.host_limit});
  return table.str();
}

CheckedPlan require_memory(const Session& session, const Settings& s, const Workload& work) {
  const MachineMemory there = least_of(*session.mesh, machine_memory(session.device, s));
  const PlanInputs in = plan_inputs(s, session.config, work, there);
  const DryRuns runs = dry_runs(s, work, *session.threads);
  CheckedPlan checked{plan_memory(in, runs), {}, in};
  checked.table = plan_table(checked.plan, in);
  if (checked.plan.fits()) return checked;
  const auto nearest = nearest_that_fits(in, runs);
  fail(Exit::resources, "this does not fit, and nothing was loaded:\n  {}\n\n{}\n{}",
       fmt::join(checked.plan.problems, "\n  "), checked.table,
       nearest.empty() ? std::string("no setting makes it fit: a smaller model or a larger machine is needed")
                       : fmt::format("what would fit:\n  {}", fmt::join(nearest, "\n  ")));
}

std::vector<std::pair<std::string, double>> DeviceMemoryWatch::metrics() {
  if (device_ != Device::cuda) return {};
  const auto memory = cuda::memory();
  most_ = std::max<uint64_t>(most_, memory.total - memory.free);
  return {{"perf/device_memory_gib", static_cast<double>(most_) / gib},
          {"perf/device_memory_plan_gib", static_cast<double>(planned_) / gib}};
}

std::string DeviceMemoryWatch::summary() const {
  if (most_ == 0) return "";
  return fmt::format("device memory: {} in use at most, {} planned", human_bytes(most_), human_bytes(planned_));
}

}  // namespace furlong
