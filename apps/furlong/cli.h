// From the words of the command line, and the recipe they name, to checked settings.
#pragma once
#include <string>

#include "trainer/settings.h"

namespace furlong {

struct Invocation {
  enum class Action { run, help, command_help, version, dump_flags };
  Action action = Action::run;
  Command command = Command::train;
  Settings settings;
  std::string warning;  // one line for the log, or ""
};

// `words` without the program's name. The command line wins over the recipe (--config), the recipe over the defaults.
// Throws Error(Exit::usage) with every complaint at once; Error(Exit::input) when the recipe cannot be read.
Invocation parse_command_line(const Texts& words);

}  // namespace furlong
