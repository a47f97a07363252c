// How this process was started: alone, or as one of the ranks of mpirun or srun.
#pragma once
#include <functional>
#include <string>

#include "trainer/settings.h"

namespace furlong {

struct Launch {
  int rank = 0, ranks = 1;
  std::string by;  // "mpirun", "srun"; "" alone
};

// Reads what launchers leave in the environment. `get` returns a variable's value or null.
Launch read_launch(const std::function<const char*(const char*)>& get);

// Throws Error(Exit::usage) when the command cannot run as so many ranks, or when --nproc says another number.
void check_launch(const Launch& launch, Command command, const Settings& settings);

// The words that start `program` with `words` as `nproc` ranks on this host.
Texts mpirun_words(int64_t nproc, bool as_root, const std::string& program, const Texts& words);
// Becomes mpirun. Throws Error(Exit::resources) when it cannot be started.
[[noreturn]] void become_mpirun(int64_t nproc, const Texts& words);

}  // namespace furlong
