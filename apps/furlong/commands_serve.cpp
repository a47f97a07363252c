// serve: the engine behind an HTTP server, until a signal ends it.
#include <malloc.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <ctime>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "furlong/commands.h"
#include "server/server.h"
#include "trainer/memory_plan.h"
#include "trainer/session.h"

namespace furlong {
namespace {

constexpr int64_t default_context = 32768;  // of a model that names none

sigset_t ending_signals() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  return set;
}

// Blocks the signals that end the server in this thread and in those it starts, or takes them again as ever.
void block_ending_signals(bool block) {
  const sigset_t set = ending_signals();
  pthread_sigmask(block ? SIG_BLOCK : SIG_UNBLOCK, &set, nullptr);
}

std::string api_key_of(const Settings& settings) {
  if (settings.api_key_file.empty()) return settings.api_key;
  const std::string text = read_file(settings.api_key_file);
  std::string key = text.substr(0, text.find_first_of("\r\n"));
  if (key.empty()) fail(Exit::input, "--api-key-file {}: its first line is empty", settings.api_key_file);
  return key;
}

ServerOptions server_options(const Settings& settings, const EngineOptions& engine) {
  ServerOptions options;
  options.host = settings.host;
  options.port = static_cast<int>(settings.port);
  options.api_key = api_key_of(settings);
  options.queue = {.max_running = engine.max_running, .max_waiting = settings.max_queued_requests};
  options.stuck_seconds = settings.stuck_seconds;
  return options;
}

ServedModel served_model(const Session& session, const Settings& settings, int64_t context) {
  ServedModel model;
  model.name = settings.served_model_name;
  model.created = std::time(nullptr);
  model.tokenizer = session.tokenizer;
  model.render_chat = [&session](const ChatPrompt& prompt) {
    if (!session.chat) fail(Exit::usage, "{}", session.chat_error);
    ChatValues values = prompt.values;
    if (!values.enable_thinking) values.enable_thinking = session.chat_values.enable_thinking;
    if (values.values.empty()) values.values = session.chat_values.values;
    return render_chat(*session.chat, prompt.messages, true, values);
  };
  model.stop_ids = session.stop_ids;
  model.vocab_size = session.config.vocab_size;
  model.context = context;
  model.seed = static_cast<uint64_t>(settings.seed);
  if (!model.tokenizer) return model;
  for (int32_t id = 0; id < model.tokenizer->vocab_size(); id++) {
    if (!model.tokenizer->contains(id)) continue;
    model.longest_token = std::max(model.longest_token, static_cast<int64_t>(model.tokenizer->token_bytes(id).size()));
  }
  return model;
}

// What the first client of /v1/chat/completions would be told is said at the start.
void try_chat_template(const ServedModel& model) {
  if (!model.tokenizer) return;
  try {
    model.render_chat({.messages = {{.role = "user", .content = "Hello"}}});
  } catch (const Error& e) {
    log::warn("/v1/chat/completions would refuse a plain question: {}", e.what());
  }
}

EngineCalls calls_of(Engine& engine) {
  EngineCalls calls;
  calls.submit = [&engine](Request request, Sink sink) { return engine.submit(std::move(request), std::move(sink)); };
  calls.cancel = [&engine](uint64_t request) { engine.cancel(request); };
  calls.step = [&engine] { return engine.step(); };
  calls.gauges = [&engine] {
    const RolloutMemory& memory = engine.memory();
    const EngineStats& stats = engine.stats();
    return EngineCalls::Gauges{.free_pages = memory.free_pages(),
                               .pages = memory.options().pages - 1,  // without the scrap ones
                               .free_slots = memory.free_slots(),
                               .slots = memory.options().slots - 1,
                               .kept_pages = engine.kept_prefixes().pages(),
                               .kept_slots = engine.kept_prefixes().slots(),
                               .shared_rows = stats.shared_rows,
                               .drafted = stats.drafted,
                               .accepted = stats.accepted,
                               .preemptions = stats.preemptions};
  };
  return calls;
}

// Waits for a signal, whose number it returns, or for the engine to fail: 0.
int wait_for_end(Server& server) {
  const sigset_t set = ending_signals();
  const int signals = signalfd(-1, &set, SFD_CLOEXEC);
  if (signals < 0) fail(Exit::resources, "cannot wait for signals (signalfd); raise the limit of open files");
  const auto failed = std::make_shared<Wake>();
  server.on_failure([failed] { failed->set(); });
  pollfd fds[2] = {{signals, POLLIN, 0}, {failed->fd(), POLLIN, 0}};
  while (poll(fds, 2, -1) < 0) {
  }
  signalfd_siginfo info{};
  const bool told = fds[0].revents != 0 && read(signals, &info, sizeof info) == sizeof info;
  close(signals);
  return told ? static_cast<int>(info.ssi_signo) : 0;
}

}  // namespace

int run_serve(const Settings& settings) {
  // What large requests took goes back to the system, instead of lying about in the heaps of many threads.
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  mallopt(M_ARENA_MAX, 4);
  // Threads that are started while the model is loaded must not take the signals; until then they end us at once.
  block_ending_signals(true);
  Session session = open_session(settings);
  block_ending_signals(false);
  const int64_t own = session.config.max_position_embeddings;
  const int64_t context =
      std::min(settings.rollout_max_context_len.value_or(own > 0 ? own : default_context), own > 0 ? own : INT64_MAX);
  EngineOptions options = engine_options(session.config, session.directory, settings, context, INT32_MAX);
  options.keep_prefixes = true;
  const ServerOptions serving = server_options(settings, options);
  check_server_options(serving);
  ServedModel model = served_model(session, settings, context);
  try_chat_template(model);
  options.memory_bytes =
      require_memory(session, settings, {.rolls = true, .longest = context, .requests = options.max_running}).plan.pool;
  load_weights(session, settings);
  Engine engine(session.config, session.weights, options, *session.threads);
  block_ending_signals(true);
  Server server(serving, std::move(model), calls_of(engine));
  const bool six = settings.host.find(':') != settings.host.npos;
  fmt::print("listening on http://{}{}{}:{}\n", six ? "[" : "", settings.host, six ? "]" : "", server.port());
  std::fflush(stdout);
  log::info("model {}: up to {} tokens a sequence, {} sequences at a time, memory for {} tokens",
            settings.served_model_name, context, options.max_running,
            (engine.memory().options().pages - 1) * engine.memory().options().page);
  const int signal = wait_for_end(server);
  if (signal == 0) std::rethrow_exception(server.failure());
  log::info("{}: no further requests; those at work have {:g} s. Once more ends them at once.",
            signal == SIGTERM ? "SIGTERM" : "Ctrl-C", settings.drain_seconds);
  block_ending_signals(false);
  if (!server.drain(settings.drain_seconds)) log::warn("some requests had not ended; they were broken off");
  return 128 + signal;
}

}  // namespace furlong
