// What every command that runs a model holds: architecture, weights, tokenizer, stop ids, threads.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/prompts.h"
#include "model/weights.h"
#include "parallel/group.h"
#include "rollout/engine.h"
#include "tokenizer/chat.h"
#include "tokenizer/tokenizer.h"
#include "trainer/settings.h"

namespace furlong {

struct Session {
  std::string directory;  // the Hugging Face checkpoint
  ModelConfig config;
  Device device = Device::cpu;
  std::unique_ptr<ThreadPool> threads;
  std::unique_ptr<Mesh> mesh = std::make_unique<Mesh>();  // the ranks that compute together, each with its weights
  Weights weights;
  std::optional<Tokenizer> tokenizer;  // absent when the folder has none
  std::optional<ChatTemplate> chat;    // the checkpoint's own or --chat-template; absent when there is neither
  std::string chat_error;              // why it is absent
  ChatValues chat_values;              // from --apply-chat-template-kwargs
  std::vector<int32_t> stop_ids;       // of generation_config.json, else of config.json
};

ParallelSizes parallel_sizes(const Settings& settings);
Dispatcher parse_dispatcher(const std::string& name);
DType parse_dtype(const std::string& name);
// Of --dtype, auto by --device.
DType compute_dtype(const Settings& settings);
Device parse_device(const std::string& name);

// Opens the device of this rank and reads the checkpoint that --hf-checkpoint names, but for its weights. Throws
// Error(Exit::input) or Error(Exit::usage), or Error(Exit::resources) without a device that can be used.
Session open_session(const Settings& settings, const World& world);
Session open_session(const Settings& settings);  // of a process alone
// Lays the ranks of a run out in the mesh of --tensor-model-parallel-size and its like; all of them call. Throws
// Error(Exit::usage) with everything that keeps them or the model from being laid out so.
void join_mesh(Session& session, const Settings& settings, World& world);
// This rank's weights of a checkpoint folder of any kind that is read (Hugging Face, torch_dist, training checkpoints),
// in the shape of the session's config and on its device. `flag` names it in errors. Throws Error(Exit::input).
Weights read_weights(const Session& session, const std::string& path, DType dtype, const char* flag);
// The same in the shape of another config of that trunk: of a critic, whose head then stays at zero.
Weights read_weights(const Session& session, const ModelConfig& config, const std::string& path, DType dtype,
                     const char* flag);
// to = from, of the same model and place.
void copy_weights(Weights& to, const Weights& from, ThreadPool& threads);
// Whether --load names weights alone: a Hugging Face or torch_dist checkpoint.
bool loads_weights_alone(const Settings& settings);
// This rank's weights, once their memory is known to be there: those of --load where it names any, else
// --hf-checkpoint's. Training checkpoints that train and sft resume from are read later, by RunFiles::resume.
void load_weights(Session& session, const Settings& settings);

// A message of a prompt set as the chat template takes it.
Message message_of(const ChatMessage& message);
// The ids of a chat prompt (with `tools`, a JSON list, unless empty), or of plain text. Throws when the checkpoint
// lacks a tokenizer or a chat template.
std::vector<int32_t> encode_chat(const Session& session, const std::vector<Message>& messages,
                                 const std::string& tools = {});
std::vector<int32_t> encode_text(const Session& session, const std::string& text);
// Of a prompt of a set; `where` begins the error of a conversation that the template refuses.
std::vector<int32_t> encode_prompt(const Session& session, const Prompt& prompt, const std::string& where);

// The text of generated ids. A model may draw ids above the tokenizer's last; they have no text and are left out.
std::string decode_ids(const Session& session, const std::vector<int32_t>& ids);

// --rollout-stop: whether a response's text holds one of these texts, looked for where the newest token can complete
// it. Empty when there are none.
std::function<bool(std::span<const int32_t>)> stop_rule(const Session& session, const Texts& texts);

// A prompt set with its tokens.
struct PreparedPrompts {
  PromptSet set;
  std::vector<std::vector<int32_t>> tokens;
  int64_t longest = 0;
  bool rendered = false;                // rewards are asked for the prompt's text, not its messages
  std::vector<int64_t> past_responses;  // tokens of each prompt's longest response so far, -1: none; empty: unknown
};

// Reads, renders and tokenises; drops prompts of more than max_prompt_len tokens (0: none) and says how many. Throws
// Error(Exit::input) when nothing is left, or when a prompt cannot fit `context` tokens with one token of response.
PreparedPrompts prepare_prompts(const Session& session, const PromptOptions& options, int64_t max_prompt_len,
                                int64_t context);

// Engine options from the rollout settings, for requests of at most max_tokens tokens. `where` names the checkpoint in
// errors; memory_bytes is the caller's to set.
EngineOptions engine_options(const ModelConfig& config, const std::string& where, const Settings& settings,
                             int64_t max_tokens, int64_t max_requests);

}  // namespace furlong
