#include "furlong/launch.h"

#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "base/error.h"

namespace furlong {
namespace {

int number_of(const char* text, int otherwise) {
  int value = otherwise;
  if (text != nullptr) std::from_chars(text, text + std::strlen(text), value);
  return value;
}

}  // namespace

Launch read_launch(const std::function<const char*(const char*)>& get) {
  const struct {
    const char *by, *rank, *ranks;
  } launchers[] = {
      {"mpirun", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
      {"mpirun", "PMI_RANK", "PMI_SIZE"},
      // A batch script itself has SLURM_PROCID and SLURM_NTASKS too; only tasks of srun belong to a step.
      {"srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"},
  };
  for (const auto& l : launchers) {
    const int rank = number_of(get(l.rank), -1), ranks = number_of(get(l.ranks), 1);
    if (rank >= 0 && ranks > 1 && rank < ranks) return {rank, ranks, l.by};
  }
  return {};
}

void check_launch(const Launch& launch, Command command, const Settings& settings) {
  const int64_t wanted = settings.nproc.value_or(launch.ranks);
  if (launch.ranks > 1 && wanted != launch.ranks) {
    fail(Exit::usage, "--nproc {}, but {} has started {} ranks; leave --nproc out under {}", wanted, launch.by,
         launch.ranks, launch.by);
  }
  const bool shares = command == Command::train || command == Command::sft || command == Command::convert;
  if (wanted > 1 && !shares) {
    fail(Exit::usage, "`furlong {}` runs in one process, not {}", name_of(command), wanted);
  }
}

Texts mpirun_words(int64_t nproc, bool as_root, const std::string& program, const Texts& words) {
  Texts out = {"mpirun", "--quiet", "-n", std::to_string(nproc), "--oversubscribe", "--bind-to", "none"};
  if (as_root) out.push_back("--allow-run-as-root");
  out.push_back(program);
  out.insert(out.end(), words.begin(), words.end());
  return out;
}

void become_mpirun(int64_t nproc, const Texts& words) {
  std::string program(4096, '\0');
  const ssize_t n = readlink("/proc/self/exe", program.data(), program.size());
  if (n <= 0) fail(Exit::resources, "cannot find this program's file: {}", std::strerror(errno));
  program.resize(static_cast<size_t>(n));
  Texts all = mpirun_words(nproc, geteuid() == 0, program, words);
  std::vector<char*> pointers;
  for (auto& word : all) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  // mpirun wants to know how to reach other hosts, and there may be no ssh; here there are none.
  setenv("OMPI_MCA_plm_rsh_agent", "sh", 0);
  execvp(pointers[0], pointers.data());
  fail(Exit::resources, "--nproc {} needs mpirun (Debian: openmpi-bin): {}", nproc, std::strerror(errno));
}

}  // namespace furlong
