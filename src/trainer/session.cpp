#include "trainer/session.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "checkpoint/dist_folder.h"
#include "checkpoint/hf.h"
#include "checkpoint/init.h"
#include "checkpoint/resume.h"
#include "checkpoint/torch_dist.h"
#include "tensor/copy.h"
#include "tensor/cuda_devices.h"

namespace furlong {
namespace {

constexpr double default_initializer_range = 0.02;
constexpr int64_t default_max_running = 512;

std::vector<int32_t> read_stop_ids(const std::string& directory, const ModelConfig& config) {
  const std::string path = directory + "/generation_config.json";
  if (!std::filesystem::exists(path)) return config.eos_token_ids;
  const Json json = read_json_file(path);
  if (!json.contains("eos_token_id") || json["eos_token_id"].is_null()) return config.eos_token_ids;
  const Json& value = json["eos_token_id"];
  std::vector<int32_t> ids;
  for (const Json& id : value.is_array() ? value : Json::array({value})) {
    if (!id.is_number_integer()) fail(Exit::input, "{}: eos_token_id must be an integer or a list of integers", path);
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace

ParallelSizes parallel_sizes(const Settings& s) {
  return {.tensor = s.tensor_model_parallel_size,
          .pipeline = s.pipeline_model_parallel_size,
          .context = s.context_parallel_size,
          .expert = s.expert_model_parallel_size,
          .expert_tensor = s.expert_tensor_parallel_size};
}

Dispatcher parse_dispatcher(const std::string& name) {
  return name == "alltoall" ? Dispatcher::alltoall : Dispatcher::flex;
}

DType parse_dtype(const std::string& name) {
  if (name == "fp32") return DType::f32;
  if (name == "bf16") return DType::bf16;
  fail(Exit::usage, "--dtype {}: fp32 or bf16 wanted", name);
}

DType compute_dtype(const Settings& s) {
  if (s.dtype == "auto") return parse_device(s.device) == Device::cuda ? DType::bf16 : DType::f32;
  return parse_dtype(s.dtype);
}

Device parse_device(const std::string& name) {
  if (name == "cpu") return Device::cpu;
  if (name == "cuda") return Device::cuda;
  fail(Exit::usage, "--device {}: cpu or cuda wanted", name);
}

Session open_session(const Settings& settings) { return open_session(settings, *solo_world()); }

Session open_session(const Settings& settings, const World& world) {
  if (settings.hf_checkpoint.empty()) fail(Exit::usage, "--hf-checkpoint DIR is needed: the model to start from");
  Session session;
  session.directory = settings.hf_checkpoint;
  session.config = read_model_config(session.directory);
  if (settings.use_rollout_routing_replay && session.config.dense()) {
    fail(Exit::usage, "--use-rollout-routing-replay: {} is a dense model, which routes nothing; leave it out",
         session.directory);
  }
  session.threads =
      std::make_unique<ThreadPool>(settings.threads > 0 ? static_cast<int>(settings.threads) : world.cores());
  session.device = parse_device(settings.device);
  if (session.device == Device::cuda) {
    cuda::open(cuda::device_of(world.local_rank(), cuda::device_count()));
    const auto device = cuda::device_info();
    log::info("{}: {} multiprocessors, {:.1f} of {:.1f} GiB free", device.name, device.multiprocessors,
              static_cast<double>(device.free_bytes) / 1073741824.0,
              static_cast<double>(device.total_bytes) / 1073741824.0);
  }
  if (std::filesystem::exists(session.directory + "/tokenizer.json")) {
    session.tokenizer = Tokenizer::load(session.directory);
    if (session.tokenizer->vocab_size() > session.config.vocab_size) {
      fail(Exit::input, "{}: the tokenizer has ids up to {}, the model only {} tokens", session.directory,
           session.tokenizer->vocab_size() - 1, session.config.vocab_size);
    }
  }
  if (!settings.chat_template.empty()) {
    session.chat = named_chat_template(settings.chat_template, session.directory);
  } else {
    try {
      session.chat = chat_template_of(session.directory);
    } catch (const Error& e) {
      session.chat_error = e.what();
    }
  }
  session.chat_values.values = settings.apply_chat_template_kwargs;
  session.stop_ids = read_stop_ids(session.directory, session.config);
  return session;
}

void join_mesh(Session& session, const Settings& settings, World& world) {
  const ParallelSizes sizes = parallel_sizes(settings);
  Texts problems = layout_problems(session.config, sizes);
  if (std::string ranks = mesh_problem(sizes, world.size()); !ranks.empty()) problems.push_back(std::move(ranks));
  if (!problems.empty()) fail(Exit::usage, "this layout is not possible: {}", fmt::join(problems, "; "));
  session.mesh = std::make_unique<Mesh>(world, sizes, parse_dispatcher(settings.moe_token_dispatcher_type));
}

Weights read_weights(const Session& session, const std::string& path, DType dtype, const char* flag) {
  return read_weights(session, session.config, path, dtype, flag);
}

Weights read_weights(const Session& session, const ModelConfig& config, const std::string& path, DType dtype,
                     const char* flag) {
  const LoadHfOptions options{.threads = session.threads.get(), .device = session.device, .mesh = *session.mesh};
  if (path == session.directory) return load_hf(path, config, dtype, options);
  switch (checkpoint_kind(path)) {
    case CheckpointKind::torch_dist:
      log::info("{}: weights of a torch_dist checkpoint; config and tokenizer are those of {}", path,
                session.directory);
      return load_torch_dist(path, config, dtype, options);
    case CheckpointKind::furlong: {
      Weights weights(config, dtype, Placement{.device = session.device, .rank = session.mesh->place()});
      if (const auto found = load_latest(path, {{"weights", &weights}}, {}, *session.mesh)) {
        log::info("{}: weights of iteration {}", path, found->iteration);
        return weights;
      }
      break;
    }
    case CheckpointKind::hf: return load_hf(path, config, dtype, options);
    case CheckpointKind::none: break;
  }
  fail(Exit::input,
       "{} {}: there is no checkpoint in that folder, neither in the Hugging Face layout nor torch_dist nor one of a "
       "training run. Check the path.",
       flag, path);
}

void copy_weights(Weights& to, const Weights& from, ThreadPool& threads) {
  Stream stream(threads, to.device());
  for_each_tensor(
      [&](const TensorSpec&, const Tensor& a, const Tensor& b) {
        if (a.defined()) copy(stream, a, b);
      },
      to, from);
  stream.synchronize();
}

bool loads_weights_alone(const Settings& settings) {
  if (settings.load.empty()) return false;
  const CheckpointKind kind = checkpoint_kind(settings.load);
  return kind == CheckpointKind::hf || kind == CheckpointKind::torch_dist;
}

void load_weights(Session& session, const Settings& settings) {
  const bool alone = loads_weights_alone(settings);
  if (settings.random_init && alone) {
    fail(Exit::usage, "--random-init and the weights of --load {} exclude each other", settings.load);
  }
  if (settings.random_init) {
    session.weights = Weights(session.config, compute_dtype(settings),
                              Placement{.device = session.device, .rank = session.mesh->place()});
    Stream stream(*session.threads, session.device);
    init_weights(session.weights, session.config, static_cast<uint64_t>(settings.seed), default_initializer_range,
                 session.threads.get(), session.device == Device::cuda ? &stream : nullptr);
    stream.synchronize();
  } else {
    // Only train and sft have a folder to save to, and resume from it, or from --load the first time.
    const bool resumes = !settings.save.empty() && !alone;
    const std::string& path = settings.load.empty() || resumes ? session.directory : settings.load;
    session.weights = read_weights(session, path, compute_dtype(settings), "--load");
  }
}

std::vector<int32_t> encode_text(const Session& session, const std::string& text) {
  if (!session.tokenizer) {
    fail(Exit::input, "{} has no tokenizer.json; give token ids, or copy the tokenizer's files there",
         session.directory);
  }
  return session.tokenizer->encode(text);
}

Message message_of(const ChatMessage& message) { return {message.role, message.content, std::nullopt, message.others}; }

std::vector<int32_t> encode_chat(const Session& session, const std::vector<Message>& messages,
                                 const std::string& tools) {
  if (!session.chat) fail(Exit::usage, "{}", session.chat_error);
  ChatValues values = session.chat_values;
  if (!tools.empty()) values.tools = tools;
  return encode_text(session, render_chat(*session.chat, messages, true, values));
}

std::string decode_ids(const Session& session, const std::vector<int32_t>& ids) {
  std::vector<int32_t> known;
  for (const int32_t id : ids) {
    if (session.tokenizer->contains(id)) known.push_back(id);
  }
  return session.tokenizer->decode(known);
}

std::function<bool(std::span<const int32_t>)> stop_rule(const Session& session, const Texts& texts) {
  if (texts.empty()) return {};
  if (!session.tokenizer) fail(Exit::input, "--rollout-stop needs a tokenizer, which {} lacks", session.directory);
  size_t longest = 0;
  for (const auto& text : texts) {
    if (text.empty()) fail(Exit::usage, "--rollout-stop: an empty text would end every response at once");
    longest = std::max(longest, text.size());
  }
  return [&session, texts, longest](std::span<const int32_t> tokens) {
    // Every token with text has at least one byte, so this many hold any stop that ends in the newest.
    const size_t tail = std::min(tokens.size(), longest + 4);
    const std::string text = decode_ids(session, {tokens.end() - static_cast<std::ptrdiff_t>(tail), tokens.end()});
    return std::any_of(texts.begin(), texts.end(),
                       [&](const std::string& stop) { return text.find(stop) != std::string::npos; });
  };
}

std::vector<int32_t> encode_prompt(const Session& session, const Prompt& prompt, const std::string& where) {
  if (!prompt.is_chat()) return encode_text(session, prompt.text);
  std::vector<Message> messages;
  for (const ChatMessage& message : prompt.messages) messages.push_back(message_of(message));
  try {
    return encode_chat(session, messages, prompt.tools);
  } catch (const Error& e) {
    if (e.code() != Exit::input) throw;
    fail(Exit::input, "{}: {}", where, e.what());
  }
}

PreparedPrompts prepare_prompts(const Session& session, const PromptOptions& options, int64_t max_prompt_len,
                                int64_t context) {
  PreparedPrompts prepared{.set = PromptSet(options), .tokens = {}, .rendered = options.apply_chat_template};
  std::vector<uint8_t> kept;
  std::vector<std::vector<int32_t>> tokens;
  const int64_t bad_rows = prepared.set.bad().count();
  for (int64_t i = 0; i < prepared.set.size(); i++) {
    try {
      auto ids = encode_prompt(session, prepared.set[i], prepared.set.where(i));
      if (ids.empty()) fail(Exit::input, "{}: the prompt has no tokens", prepared.set.where(i));
      const auto length = static_cast<int64_t>(ids.size());
      kept.push_back(max_prompt_len > 0 && length > max_prompt_len ? 0 : 1);
      if (kept.back() == 0) continue;
      if (length >= context) {
        fail(Exit::input,
             "{}: the prompt has {} tokens, which leaves no room for a response in a context of {}. Drop such prompts "
             "with --rollout-max-prompt-len N, or shorten them.",
             prepared.set.where(i), length, context);
      }
      prepared.longest = std::max(prepared.longest, length);
      tokens.push_back(std::move(ids));
    } catch (const Error& error) {
      prepared.set.bad().add(error);
      kept.resize(static_cast<size_t>(i) + 1);
      kept.back() = 0;
    }
  }
  const int64_t unfit = prepared.set.bad().count() - bad_rows;
  prepared.set.bad().report(options.path, prepared.set.size() - unfit);
  const int64_t dropped = prepared.set.keep(kept) - unfit;
  if (dropped > 0) log::info("{}: {} prompts of more than {} tokens left out", options.path, dropped, max_prompt_len);
  if (tokens.empty()) {
    fail(Exit::input, "{}: every prompt is longer than --rollout-max-prompt-len {}", options.path, max_prompt_len);
  }
  prepared.tokens = std::move(tokens);
  return prepared;
}

EngineOptions engine_options(const ModelConfig& config, const std::string& where, const Settings& settings,
                             int64_t max_tokens, int64_t max_requests) {
  EngineOptions options;
  options.max_running = std::min(settings.rollout_max_running_requests.value_or(default_max_running), max_requests);
  options.max_tokens = max_tokens;
  options.record_routes = settings.use_rollout_routing_replay;
  if (settings.rollout_speculative_algorithm != "none") {
    if (config.mtp_num_layers == 0) {
      fail(Exit::usage, "--rollout-speculative-algorithm {}: {} has no MTP head (mtp_num_hidden_layers is 0); use none",
           settings.rollout_speculative_algorithm, where);
    }
    options.drafts = settings.rollout_speculative_num_draft_tokens.value_or(3) - 1;
    options.forced_accept_length = settings.rollout_forced_accept_length.value_or(0);
    const std::string& model = settings.rollout_speculative_cost_model;
    // Where the first groups to end are kept, or learnt from together, what ends first must not follow the machine; a
    // forced length is timed as it is.
    const bool keeps_first = settings.train_during_tail ||
                             settings.over_sampling_batch_size.value_or(0) > settings.rollout_batch_size.value_or(0);
    const bool measures = settings.device == "cuda" && !keeps_first && options.forced_accept_length == 0;
    options.measure_speculation = model == "measured" || (model == "auto" && measures);
  }
  options.exact = settings.true_on_policy;
  if (options.exact && settings.device == "cuda" &&
      (config.head_dim != 256 || config.linear_key_head_dim != 128 || config.linear_value_head_dim != 128)) {
    fail(Exit::usage,
         "--true-on-policy: on a GPU heads of 256 (attention) and 128 (delta net) are exact, as Qwen3.5's; those of {} "
         "are {}, {} and {}. --device cpu is exact for any",
         where, config.head_dim, config.linear_key_head_dim, config.linear_value_head_dim);
  }
  options.graph_batches.assign(settings.rollout_cuda_graph_bs.begin(), settings.rollout_cuda_graph_bs.end());
  if (options.graph_batches.empty()) {
    options.graph_batches = {1, 2, 4, 8};
    for (int64_t n = 16; n <= 256; n += 8) options.graph_batches.push_back(n);
  }
  std::erase_if(options.graph_batches, [&](int64_t n) { return n > options.max_running + 8; });
  return options;
}

}  // namespace furlong
