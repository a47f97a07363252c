// Every setting of every command in one plain struct, and the one table that describes them. Parsing of the command
// line and of recipes, --help, docs/flags.md, the resolved config.toml and the range checks all read that table.
// Names are miles' flags with '-' as '_'. An empty text or list means "not given"; a number without a default is
// optional.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace furlong {

enum class Command : uint16_t {
  train = 1,
  sft = 2,
  eval = 4,
  generate = 8,
  score = 16,
  tokenize = 32,
  grade = 64,
  init = 128,
  convert = 256,
  inspect = 512,
  serve = 1024,
  bench = 2048,
};

using Texts = std::vector<std::string>;
using Integers = std::vector<int64_t>;

struct Settings {
  // Model and checkpoints
  std::string hf_checkpoint;  // folder in the Hugging Face layout
  std::string ref_load;       // weights of the reference model; hf_checkpoint when empty
  std::string load;           // folder of training checkpoints to resume from, or of other weights
  std::string
      save;  // folder of training checkpoints (validate: run_dir/checkpoints); init, convert: the new checkpoint
  std::optional<int64_t> save_interval;  // rollouts
  int64_t keep_checkpoints = 2;          // newest training checkpoints
  std::string save_hf;                   // folder of the exported checkpoint; {rollout_id} is replaced
  std::string save_hf_dtype = "source";  // source | bf16 | fp32
  bool random_init = false;              // weights at random from hf_checkpoint's config.json
  std::optional<double> max_text_loss;   // nats a token; none: half of ln(vocab_size); 0: not looked at

  // Device and run
  std::string device = "cpu";  // cpu | cuda
  std::string dtype = "auto";  // fp32 | bf16; validate: bf16 on cuda, fp32 on cpu
  int64_t seed = 1234;
  int64_t threads = 0;  // 0: one per core
  std::string run_dir;  // validate: runs/<command>

  // Prompts
  std::string prompt_data;              // file, or file@[a:b]
  std::string data_on_error = "error";  // error | skip
  std::string input_key = "input";
  std::string label_key;
  std::string metadata_key = "metadata";
  std::string tool_key = "tools";
  bool apply_chat_template = false;
  std::string apply_chat_template_kwargs;  // a JSON object
  std::string chat_template;               // "" (the checkpoint's own) | qwen3 | qwen3.5 | a file
  bool rollout_shuffle = false;
  int64_t rollout_seed = 42;

  // Batches and length of the run
  std::optional<int64_t> num_rollout;
  std::optional<int64_t> num_epoch;
  std::optional<int64_t> rollout_batch_size;  // prompts a rollout
  int64_t n_samples_per_prompt = 1;
  std::optional<int64_t> global_batch_size;      // samples an optimizer step; validate fills it
  std::optional<int64_t> num_steps_per_rollout;  // validate fills it
  bool use_dynamic_batch_size = false;
  std::optional<int64_t> max_tokens_per_gpu;
  int64_t micro_batch_size = 1;  // samples, without use_dynamic_batch_size
  bool balance_data = false;
  int64_t log_probs_chunk_size = -1;            // rows of logits at a time; -1: a whole sequence
  std::string recompute_granularity = "none";   // none | full
  std::string recompute_method;                 // validate: uniform when full
  std::optional<int64_t> recompute_num_layers;  // validate: 1 when full

  // Sampling
  std::optional<int64_t> rollout_max_prompt_len;    // tokens; validate: rollout_max_context_len - 1
  std::optional<int64_t> rollout_max_response_len;  // tokens
  std::optional<int64_t> rollout_max_context_len;   // tokens
  double rollout_temperature = 1;
  double rollout_top_p = 1;
  int64_t rollout_top_k = -1;
  Texts rollout_stop;
  Integers rollout_stop_token_ids;

  // Rollout engine
  std::string rollout_speculative_algorithm = "none";           // EAGLE | none
  std::optional<int64_t> rollout_speculative_num_steps;         // validate fills these three when EAGLE
  std::optional<int64_t> rollout_speculative_eagle_topk;        //
  std::optional<int64_t> rollout_speculative_num_draft_tokens;  //
  std::optional<double> rollout_forced_accept_length;
  std::string rollout_speculative_cost_model = "auto";  // auto | measured | none
  bool true_on_policy = false;
  std::optional<double> rollout_mem_fraction_static;
  std::optional<int64_t> rollout_max_running_requests;
  Integers rollout_cuda_graph_bs;
  int64_t rollout_ep_size = 1;
  int64_t rollout_num_gpus_per_engine = 1;
  bool use_rollout_routing_replay = false;

  // Which groups a rollout keeps
  std::string dynamic_sampling_filter_path;            // validate: check_reward_nonzero_std, whatever path names it
  std::optional<int64_t> dynamic_sampling_max_groups;  // drawn a rollout; validate: 10 rollout_batch_size
  std::optional<int64_t> over_sampling_batch_size;     // groups drawn at a time; validate: rollout_batch_size
  bool partial_rollout = false;
  bool mask_offpolicy_in_partial_rollout = false;

  // Rollout and training at once
  bool train_during_tail = false;
  std::optional<int64_t> tail_sequences;  // validate: a quarter of the rollout's samples
  bool async_rollout = false;

  // Conversations with an environment
  std::string custom_generate_url;      // one of the two, or neither
  std::string custom_generate_command;  //
  int64_t generate_max_turns = 16;

  // Reward
  std::string rm_type;
  std::string nltk_data;  // a folder, for the rule ifbench
  std::string reward_key;
  std::string rm_url;
  int64_t rm_batch_size = 1;  // samples a request
  int64_t rm_concurrency = 16;
  double rm_timeout = 30;  // seconds
  int64_t rm_tries = 5;
  double rm_max_unscored = 0.2;  // of a rollout's samples
  std::string custom_rm_command;
  int64_t custom_rm_processes = 4;
  bool group_rm = false;

  // Evaluation; validate fills every eval_* left out from its rollout counterpart
  std::optional<int64_t> eval_interval;  // rollouts
  Texts eval_prompt_data;                // name, file, name, file, ...
  std::string eval_config;               // file that describes the sets
  std::string eval_input_key;
  std::string eval_label_key;
  std::string eval_reward_key;
  int64_t n_samples_per_eval_prompt = 1;
  std::optional<int64_t> eval_max_prompt_len;
  std::optional<int64_t> eval_max_response_len;
  std::optional<double> eval_temperature;
  std::optional<double> eval_top_p;
  std::optional<int64_t> eval_top_k;
  bool skip_eval_before_train = false;
  bool log_passrate = false;

  // Algorithm
  std::string advantage_estimator = "grpo";
  bool disable_grpo_std_normalization = false;
  bool disable_rewards_normalization = false;
  double eps_clip = 0.2;
  std::optional<double> eps_clip_high;  // validate: eps_clip
  std::optional<double> eps_clip_c;
  bool use_kl_loss = false;
  double kl_loss_coef = 0;
  std::string kl_loss_type = "k1";  // k1 | k2 | k3 | low_var_kl
  double kl_coef = 0;
  bool use_unbiased_kl = false;
  double entropy_coef = 0;
  int64_t observe_kl = 0;  // rollouts between two looks at the reference; 0: never
  bool observe_training_entropy = false;
  bool use_rollout_logprobs = false;
  bool skip_actor_forward_only = false;
  bool calculate_per_token_loss = false;
  std::optional<double> pg_loss_divisor;             // tokens
  std::string custom_pg_loss_reducer_function_path;  // validate: get_pg_loss_reducer, whatever path names it
  bool normalize_advantages = false;
  double gamma = 1;
  double lambd = 1;
  std::string critic_load;          // weights that the critic starts from; the policy's when empty
  std::optional<double> critic_lr;  // lr when not given
  int64_t critic_lr_warmup_iters = 0;
  int64_t num_critic_only_steps = 0;  // rollouts
  double value_clip = 0.2;
  bool use_tis = false;
  double tis_clip = 2;
  double tis_clip_low = 0;
  // validate: vanilla_tis_function | icepop_function | compute_mis_weights, whatever path names it
  std::string custom_tis_function_path;
  std::string tis_level = "token";    // token | sequence | geometric; this to rs_veto_threshold: compute_mis_weights
  std::string tis_mode = "truncate";  // truncate | clip | mask
  std::optional<double> tis_lower_bound;  // validate: 1 / tis_upper_bound
  std::optional<double> tis_upper_bound;  // validate: 2
  bool tis_batch_normalize = false;
  bool use_rs = false;
  std::string rs_level = "token";                        // as tis_level
  std::optional<double> rs_lower_bound, rs_upper_bound;  // validate: those of tis
  std::optional<double> rs_veto_threshold;
  bool get_mismatch_metrics = false;
  bool use_opsm = false;
  double opsm_delta = 1e-4;
  std::optional<int64_t> ref_update_interval;  // rollouts

  // MTP training
  bool enable_mtp_training = false;
  std::optional<int64_t> mtp_num_layers;
  double mtp_loss_scaling_factor = 0.2;

  // Optimizer
  std::string optimizer = "adam";
  double lr = 1e-6;
  double min_lr = 0;
  std::string lr_decay_style = "constant";
  std::optional<int64_t> lr_decay_iters;  // optimizer steps
  std::string lr_wsd_decay_style = "exponential";
  std::optional<int64_t> lr_wsd_decay_iters;
  int64_t lr_warmup_iters = 0;
  std::optional<double> lr_warmup_fraction;
  double lr_warmup_init = 0;
  double weight_decay = 0.01;
  double adam_beta1 = 0.9;
  double adam_beta2 = 0.999;
  double adam_eps = 1e-8;
  double clip_grad = 1.0;  // 0: off
  bool optimizer_cpu_offload = false;
  bool overlap_cpu_optimizer_d2h_h2d = false;
  double optimizer_offload_fraction = 1;
  bool use_precision_aware_optimizer = false;
  std::string main_grads_dtype = "fp32";  // fp32 | bf16, as the next three
  std::string main_params_dtype = "fp32";
  std::string exp_avg_dtype = "fp32";
  std::string exp_avg_sq_dtype = "fp32";

  // Parallelism
  std::optional<int64_t> nproc;              // ranks that mpirun starts on this host
  int64_t distributed_timeout_minutes = 10;  // of a wait for another rank
  int64_t tensor_model_parallel_size = 1;
  int64_t pipeline_model_parallel_size = 1;
  int64_t context_parallel_size = 1;
  int64_t expert_model_parallel_size = 1;
  int64_t expert_tensor_parallel_size = 1;
  bool sequence_parallel = false;
  std::string moe_token_dispatcher_type = "alltoall";
  int64_t actor_num_nodes = 1;
  int64_t actor_num_gpus_per_node = 8;
  bool colocate = false;

  // Debugging
  bool debug_rollout_only = false;
  bool debug_train_only = false;
  std::string save_debug_rollout_data;  // trajectory file; {rollout_id} is replaced
  std::string load_debug_rollout_data;
  std::string dump_grads;  // folder

  // What a run shows of itself
  bool dry_run = false;
  int64_t keep_rollouts = 10;  // newest ones whose trajectories stay in the run directory
  bool use_wandb = false;
  std::string wandb_project, wandb_team;

  // Files of the batch commands
  std::string input;
  std::string output = "-";

  // generate
  int64_t max_new_tokens = 256;
  double temperature = 1;
  double top_p = 1;
  int64_t top_k = -1;
  bool ignore_eos = false;

  // serve
  std::string host = "127.0.0.1";
  int64_t port = 8000;
  std::string api_key, api_key_file;
  std::string served_model_name;  // validate: hf_checkpoint
  int64_t max_queued_requests = 1024;
  double stuck_seconds = 60;
  double drain_seconds = 20;

  // tokenize
  std::string tokenizer;  // file or folder
  bool decode = false;
  bool chat = false;

  // Memory plan
  bool plan = false;  // inspect: plan a run
  std::optional<int64_t> gpus;
  std::optional<double> gpu_memory_gib, host_memory_gib;
  std::optional<double> machine_tflops, machine_bandwidth;  // ceilings: TFLOP/s, GB/s

  // inspect: the trajectories of a rollout
  std::optional<int64_t> rollout;  // -1: the newest
  std::optional<int64_t> group, sample;
  std::string status;  // completed | truncated | aborted | failed
  std::optional<double> min_reward, max_reward;
  std::string contains;
  bool mixed = false;  // groups whose rewards differ
  bool text = false;

  // init and convert
  std::string preset;  // a name of apps/furlong/presets.h
  std::optional<int64_t> num_layers;
  bool config_only = false;               // init writes no weights
  std::string from = "hf";                // layout to read: hf | torch_dist
  std::string to = "hf";                  // layout to write: hf | torch_dist
  int64_t convert_workers = 1;            // threads that write torch_dist
  std::string expert_packing = "source";  // source | fused | per-expert

  // bench
  Texts bench_figures = {"train", "decode", "prefill"};
  std::string bench_clock = "wall";  // wall | processor

  // Where each setting given came from ("command line", "recipe.toml:12"), by name. Not a setting itself.
  std::map<std::string, std::string> given;
};

// The part of the program that a setting belongs to; the order of --help and of the documents.
enum class Topic {
  checkpoint,
  run,
  prompts,
  batches,
  sampling,
  engine,
  reward,
  evaluation,
  algorithm,
  mtp,
  optimizer,
  parallel,
  observing,
  debugging,
  files,
  generate,
  serve,
  tokenize,
  convert,
  bench,
  no_effect,  // miles' flags that are accepted, named in one warning line and otherwise left alone
};

// What a setting's value looks like.
enum class Kind { flag, integer, real, text, texts, integers, json, words /* any values, dropped */ };

using Member = std::variant<std::monostate, bool Settings::*, int64_t Settings::*, std::optional<int64_t> Settings::*,
                            double Settings::*, std::optional<double> Settings::*, std::string Settings::*,
                            Texts Settings::*, Integers Settings::*>;

// One row of the table. Built by the functions in settings_fields.cpp.
struct Field {
  std::string name;  // snake_case; the flag is --name with '-'
  Topic topic;
  unsigned commands;  // the Commands that take it, or-ed
  Kind kind;
  Member member;     // monostate: nothing is kept
  std::string help;  // one line
  std::string unit;
  double min = -1e300, max = 1e300;  // of a number, or of each number of a list
  bool above_min = false;            // min itself is excluded
  bool below_max = false;            // max itself is excluded
  Texts choices;                     // of a text; empty: any
  std::string differs;               // how and why it differs from miles
  bool later = false;                // belongs to later work: only `allowed` (or leaving it out) is accepted
  Texts allowed;                     // as format_value writes them
  std::string no_effect;             // why the flag changes nothing here; warned of when given

  // inspect reads every setting of train, so that it can plan any recipe.
  bool takes(Command command) const {
    const auto train = static_cast<unsigned>(Command::train);
    return (commands & static_cast<unsigned>(command)) != 0 || (command == Command::inspect && (commands & train) != 0);
  }
  std::string flag() const;        // "--eps-clip-high"
  std::string value_hint() const;  // "N", "X", "TEXT", "a|b", "TEXT ..."
  std::string range_text() const;  // "(0, 1]", ">= 1", "a, b, c"; empty: anything
};

const std::vector<Field>& fields();
const char* title(Topic topic);
const char* name_of(Command command);
// The command of that name, or nothing.
std::optional<Command> command_named(const std::string& name);
const std::vector<Command>& all_commands();

// The field of a command by its name as a user may write it: leading dashes, '-' or '_', and "sglang_" for "rollout_".
// Null when the command has no such setting.
const Field* find_field(const std::string& name, Command command);
// What to tell a user who wrote a name that the command does not have: the command it belongs to, why it is not here,
// or the nearest names. Without a full stop.
std::string unknown_name(const std::string& name, Command command);

// A value as read from a file or from the command line, before the field says what it must be.
struct RawValue {
  enum class From { words, flag, integer, real, text, list, table } from = From::words;
  Texts words;  // words: as on the command line; otherwise the value or the list's values as text; table: its JSON
  bool integers_only = false;  // of a list: every value was an integer
  bool texts_only = false;     // of a list: every value was a text
};

// Sets one field, checking type, range and choices. Returns the complaint, or "" when all is well; then settings.given
// remembers the origin. A list given as one empty word is emptied.
std::string set_value(Settings& settings, const Field& field, const RawValue& value, const std::string& origin);

// The value as to_toml writes it ("0.2", "true", "\"a\"", "[1, 2]"); "" when not given.
std::string format_value(const Settings& settings, const Field& field);

// Checks what concerns several settings, refuses what this build cannot do, and fills the values derived from others
// (marked "validate" above). Throws Error(Exit::usage) with all complaints at once. Calling it twice changes nothing.
void validate(Settings& settings, Command command);
// The same, handing the complaints back.
Texts find_conflicts(Settings& settings, Command command);
// One line naming every given setting that has no effect, or "".
std::string no_effect_warning(const Settings& settings, Command command);

// Throws Error(Exit::usage) listing the complaints; returns when there are none.
void fail_if_any(const Texts& complaints);

// The resolved settings as a recipe that reads back to the same values.
std::string to_toml(const Settings& settings, Command command);
// "eps_clip: 0.2 -> 0.3" for every setting of the command whose values differ.
Texts differences(const Settings& before, const Settings& after, Command command);

std::string help_text(Command command);  // furlong <command> --help
std::string help_text();                 // furlong --help
std::string flags_markdown();            // docs/flags.md

}  // namespace furlong
