// The rollout engine: requests in, completions out, on the trainer's own weights. One step runs prefill chunks, decode
// rows and drafts to be verified as one packed batch through model_forward; tokens are drawn by Gumbel-max on the
// target, so that they are the same with and without drafts, alone and batched.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "model/weights.h"
#include "ops/packs.h"
#include "rollout/decode_graphs.h"
#include "rollout/draft_policy.h"
#include "rollout/memory.h"
#include "rollout/request.h"
#include "rollout/scheduler.h"

namespace furlong {

struct EngineOptions {
  int64_t max_running = 512;
  int64_t drafts = 0;             // MTP proposals per round; 0: no speculation
  int64_t page = 32;              // rows per page
  int64_t max_tokens = 0;         // prompt + response of the longest request, to size the pool
  int64_t prefill_budget = 2048;  // prompt rows per step, a multiple of 64
  int64_t margin = 128;           // rows kept free for each sequence to grow; see SchedulerOptions
  bool share_prefixes = true;     // prompts that begin alike run their common rows once
  bool record_routes = false;     // for requests that want them; no step is a recorded graph then
  bool keep_prefixes = false;     // what has been run is kept for requests to come, while there is room
  // For pages and slots at most, and for packed weights if a quarter of it is enough for these; 0: as much as
  // max_running longest requests need.
  size_t memory_bytes = 0;
  bool pack_weights = true;  // on the CPU: products read the weights from a copy in their own order (ops/packs.h)
  int64_t max_pages = 0;     // pages and slots at most, scrap included; 0: no further limit
  int64_t max_slots = 0;     //
  std::vector<int64_t> graph_batches;  // batch sizes to record as CUDA graphs; without effect on the CPU
  // Above 0: a verification accepts this many tokens on average, whatever was drawn (to time random weights).
  double forced_accept_length = 0;
  // On a GPU in bf16: decoded rows have the very bits that training's forward gives them. Slower where few sequences
  // are long; the CPU needs nothing for it.
  bool exact = false;
  // Time steps with and without drafts before the first request, and leave drafts out where they do not pay. That
  // changes no token, but how often drafts are verified follows the machine.
  bool measure_speculation = false;
  StepCosts step_costs;        // or these costs
  bool greedy_drafts = false;  // drafts by the likeliest token instead of the target's own noise (to measure the gain)
};

struct EngineStats {
  int64_t steps = 0, prefill_rows = 0, decode_rows = 0, emitted = 0;
  int64_t drafted = 0, accepted = 0, verify_steps = 0;
  int64_t preemptions = 0;
  int64_t shared_rows = 0;  // not run, because another sequence's could be used
};

// What an engine of these options takes: the pools that fit memory_bytes, and the working memory of its largest step.
struct EngineNeeds {
  MemoryOptions memory;
  size_t pages = 0, slots = 0, arena = 0;
  size_t packs = 0;   // packed weights
  size_t unread = 0;  // hidden rows that wait for the MTP head, if drafts may be left out
  size_t block = 0;   // of one block for all of it
  size_t least = 0;   // pages and slots for one longest request
};
// Of the rank that the weights are for. Found by a dry run; the weights may be an outline.
EngineNeeds engine_needs(const ModelConfig&, const Weights&, const EngineOptions&, ThreadPool&);

// On several ranks each has an engine and all of them step together. Ranks with the same batch (Mesh::rows, and the
// stages of a pipeline) are given the same requests and decide alike; data parallel ranks have requests of their own,
// and take part in the others' steps with batches of no rows once theirs are done.
class Engine {
 public:
  // Borrows the weights; they may change between calls of generate. memory: a block of engine_needs that others may use
  // between those calls; undefined: the engine's own. The smallest pools of any rank are everyone's.
  Engine(const ModelConfig&, const Weights&, const EngineOptions&, ThreadPool&, Share memory = {},
         const Mesh& mesh = Mesh::alone());
  ~Engine();

  using Progress = std::function<void(size_t finished, int64_t tokens)>;
  // Completions in order of (request, sample). Throws Error(Exit::resources) for a request that can never fit, before
  // anything runs.
  std::vector<Completion> generate(std::span<const Request> requests, const Progress& progress = {});

  // The same as requests come and go, on one rank; the weights must not change meanwhile. All of it belongs to one
  // thread, which may call submit and cancel from a sink, too.
  // Returns the request's number; numbers rise. Throws Error(Exit::resources) for a request that can never fit.
  uint64_t submit(Request, Sink);
  // Within one step its samples end by FinishReason::abort and their memory is free.
  void cancel(uint64_t request);
  // One step for whatever is there; the sinks are called at its end. False: there was nothing to do.
  bool step();
  bool idle() const { return scheduler_->idle(); }
  // Leaves the memory to others until the next step; requests then go on from their tokens. The weights may change
  // meanwhile: tokens drawn before keep their log-probs.
  void sleep();
  // To be told when the weights have changed, idle or asleep: what is kept was made with weights of this version.
  // Before a call of generate it is needed only where prefixes are kept.
  void set_weights_version(uint64_t version);
  const DraftPolicy& draft_policy() const { return policy_; }

  const EngineStats& stats() const { return stats_; }
  void reset_stats() { stats_ = {}; }
  const RolloutMemory& memory() const { return *memory_; }
  const PrefixCache& kept_prefixes() const { return scheduler_->cache(); }
  size_t arena_bytes() const { return arena_.capacity(); }

 private:
  struct Round;  // what one step works on
  struct Draws;  // what was drawn for some rows
  void enter();
  void rest();
  void advance();
  void run(Round&);
  void tell(Sample&, bool finished);
  void build(Round&);
  void add_decoding(Round&, Sample&);
  void measure_speculation();
  double seconds_of_step(int64_t sequences, bool drafted);
  // Whether other ranks may have work where this one has none.
  bool in_lockstep() const { return mesh_.place().ranks() > 1; }
  bool is_last_stage() const { return mesh_.place().stage + 1 == mesh_.place().sizes.pipeline; }
  bool any_left(bool here);
  // All rows of a batch of `rows`, of which this rank has computed its own. Undefined where `here` is.
  Tensor all_rows(Tensor here, int64_t rows);
  Tensor forward(Round&);
  BatchRoutes routes_of(int64_t rows);
  void take_routes(Round&, const BatchRoutes&);
  void record(const Round&, const Request&, int64_t row, RouteRows&) const;
  void run_pieces(Round&, Tensor hidden);
  void draw(Round&, Tensor hidden);
  void accept(Round&, const Draws&);
  std::shared_ptr<OwnedTensor> copy_of(Tensor row);
  void keep_states(const Round&, Tensor hidden);
  struct DraftStep;  // what the step does about drafts
  DraftStep next_drafts(const Round&);
  void extend_drafts(Round&, Tensor hidden);
  void set_aside(Round&, Tensor hidden);
  void read_unread();
  void propose(std::span<Sample* const> samples, Tensor rows);
  Tensor mtp_rows(Tensor hidden, Tensor next_tokens, const Batch&, const MemoryView&);
  void sample_rows(Tensor rows, const std::vector<SampleRow>& keys, Draws&);
  Tensor logits_of(Tensor rows, Range& mine);
  void gather(Tensor to, Tensor from, const std::vector<int32_t>& index);
  void append(Sample&, const Draws&, size_t row);

  ModelConfig config_;
  const Weights& weights_;
  const Mesh& mesh_;
  EngineOptions options_;
  Stream stream_;
  Share share_;
  std::unique_ptr<RolloutMemory> memory_;
  std::unique_ptr<Scheduler> scheduler_;
  Arena arena_;
  Buffer own_packs_;
  std::optional<WeightPacks> packs_;
  bool packs_are_old_ = true;
  std::unique_ptr<DecodeGraphs> graphs_, plain_graphs_;  // with drafts, without
  DraftPolicy policy_;
  Buffer own_unread_;
  Tensor unread_;  // (rows, H) hidden rows of steps that left drafts out, until the MTP head reads them at once
  int64_t unread_rows_ = 0;  // of them in use
  std::vector<std::shared_ptr<OwnedTensor>> hidden_rows_;
  EngineStats stats_;
  uint64_t weights_version_ = 0;
  bool stepping_ = false, awake_ = false, measured_ = false, said_left_out_ = false;
};

}  // namespace furlong
