// The program: one command, the environment, and the one place where errors end.
#include <cstdio>
#include <cstdlib>
#include <new>

#include "base/check.h"
#include "base/error.h"
#include "base/log.h"
#include "furlong/cli.h"
#include "furlong/commands.h"
#include "furlong/version.h"

namespace furlong {
namespace {

int run_command(const Invocation& invocation) {
  const Settings& settings = invocation.settings;
  switch (invocation.command) {
    case Command::train: return run_train(settings);
    case Command::sft: return run_sft(settings);
    case Command::eval: return run_eval(settings);
    case Command::generate: return run_generate(settings);
    case Command::score: return run_score(settings);
    case Command::tokenize: return run_tokenize(settings);
    case Command::grade: return run_grade(settings);
    case Command::init: return run_init(settings);
    case Command::convert: return run_convert(settings);
    case Command::inspect: return run_inspect(settings);
  }
  CHECK(false, "a command without a function");
}

int print(const std::string& text) {
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (!written) fail(Exit::resources, "cannot write to standard output");
  return 0;
}

int run(const Texts& words) {
  const Invocation invocation = parse_command_line(words);
  switch (invocation.action) {
    case Invocation::Action::help: return print(help_text());
    case Invocation::Action::command_help: return print(help_text(invocation.command));
    case Invocation::Action::version: return print(version_text());
    case Invocation::Action::dump_flags: return print(flags_markdown());
    case Invocation::Action::run: break;
  }
  if (!invocation.warning.empty()) log::warn("{}", invocation.warning);
  return run_command(invocation);
}

}  // namespace
}  // namespace furlong

int main(int argc, char** argv) {
  using furlong::Exit;
  const char* no_color = std::getenv("NO_COLOR");
  if (no_color != nullptr && *no_color != '\0') furlong::log::set_color(false);
  try {
    return furlong::run(furlong::Texts(argv + (argc > 0 ? 1 : 0), argv + argc));
  } catch (const furlong::Error& e) {
    furlong::log::error("{}", e.what());
    return static_cast<int>(e.code());
  } catch (const std::bad_alloc&) {
    furlong::log::error("out of memory; use fewer tokens a micro-batch, fewer running sequences or a smaller model");
    return static_cast<int>(Exit::resources);
  } catch (const std::exception& e) {
    furlong::log::error("this is a mistake in furlong, not yours: {}", e.what());
    return static_cast<int>(Exit::bug);
  }
}
