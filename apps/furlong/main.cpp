// The program: one command, the environment, and the one place where errors end.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>

#include "base/check.h"
#include "base/error.h"
#include "base/log.h"
#include "furlong/cli.h"
#include "furlong/commands.h"
#include "furlong/launch.h"
#include "furlong/version.h"
#include "parallel/mpi.h"
#include "parallel/nccl.h"

namespace furlong {
namespace {

int run_command(const Invocation& invocation, World& world) {
  const Settings& settings = invocation.settings;
  switch (invocation.command) {
    case Command::train: return run_train(settings, world);
    case Command::sft: return run_sft(settings, world);
    case Command::eval: return run_eval(settings, world);
    case Command::generate: return run_generate(settings, world);
    case Command::score: return run_score(settings, world);
    case Command::tokenize: return run_tokenize(settings);
    case Command::grade: return run_grade(settings);
    case Command::init: return run_init(settings);
    case Command::convert: return run_convert(settings, world);
    case Command::serve: return run_serve(settings);
    case Command::inspect: return run_inspect(settings);
    case Command::bench: return run_bench(settings);
  }
  CHECK(false, "a command without a function");
}

int print(const std::string& text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (!written) fail(Exit::resources, "cannot write to standard output");
  return 0;
}

// What went wrong, in words, and the exit code; the words are empty when all went well.
struct Outcome {
  int code = 0;
  std::string error;
};
template <class F>
Outcome outcome_of(F&& body) {
  try {
    return {body(), ""};
  } catch (const Error& e) {
    return {static_cast<int>(e.code()), e.what()};
  } catch (const std::bad_alloc&) {
    return {static_cast<int>(Exit::resources),
            "out of memory; use fewer tokens a micro-batch, fewer running sequences or a smaller model"};
  } catch (const std::exception& e) {
    return {static_cast<int>(Exit::bug), fmt::format("this is a mistake in furlong, not yours: {}", e.what())};
  }
}

// As one of several ranks: rank 0 speaks for all, the others only warn.
std::unique_ptr<World> join(const Launch& launch, const Settings& settings) {
  if (launch.rank != 0) {
    log::set_level(log::Level::warn);
    log::set_prefix(fmt::format("[rank {}] ", launch.rank));
  }
  const double timeout = 60.0 * static_cast<double>(settings.distributed_timeout_minutes);
  auto world = mpi_world({.ranks = launch.ranks, .timeout_seconds = timeout});
  return settings.device == "cuda" ? nccl_world(std::move(world), {.timeout_seconds = timeout}) : std::move(world);
}

int run_rank(const Launch& launch, const Invocation& invocation) {
  const auto world = join(launch, invocation.settings);
  world->phase(name_of(invocation.command));
  const Outcome outcome = outcome_of([&] { return run_command(invocation, *world); });
  if (!outcome.error.empty() && !world->end_with(outcome.code, outcome.error)) log::error("{}", outcome.error);
  return outcome.code;
}

int run(const Texts& words, const Launch& launch) {
  const Invocation invocation = parse_command_line(words);
  switch (invocation.action) {
    case Invocation::Action::help: return print(help_text());
    case Invocation::Action::command_help: return print(help_text(invocation.command));
    case Invocation::Action::version: return print(version_text());
    case Invocation::Action::dump_flags: return print(flags_markdown());
    case Invocation::Action::run: break;
  }
  check_launch(launch, invocation.command, invocation.settings);
  if (launch.ranks == 1 && invocation.settings.nproc.value_or(1) > 1) become_mpirun(*invocation.settings.nproc, words);
  if (!invocation.warning.empty() && launch.rank == 0) log::warn("{}", invocation.warning);
  return run_rank(launch, invocation);
}

}  // namespace
}  // namespace furlong

int main(int argc, char** argv) {
  using namespace furlong;
  const char* no_color = std::getenv("NO_COLOR");
  if (no_color != nullptr && *no_color != '\0') log::set_color(false);
  const Launch launch = read_launch([](const char* name) { return std::getenv(name); });
  const Outcome outcome = outcome_of([&] { return run(Texts(argv + (argc > 0 ? 1 : 0), argv + argc), launch); });
  // Before the ranks know each other all of them find the same mistakes.
  if (!outcome.error.empty() && launch.rank == 0) log::error("{}", outcome.error);
  return outcome.code;
}
