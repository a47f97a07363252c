// Who started this process, and how it starts others.
#include "furlong/launch.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "furlong/cli.h"

namespace furlong {
namespace {

Launch read(const std::map<std::string, std::string>& environment) {
  return read_launch([&](const char* name) -> const char* {
    const auto found = environment.find(name);
    return found == environment.end() ? nullptr : found->second.c_str();
  });
}

TEST(Launch, KnowsItsLauncher) {
  const Launch mpirun = read({{"OMPI_COMM_WORLD_RANK", "3"}, {"OMPI_COMM_WORLD_SIZE", "8"}});
  EXPECT_EQ(std::tuple(mpirun.rank, mpirun.ranks, mpirun.by), std::tuple(3, 8, "mpirun"));
  const Launch srun = read({{"SLURM_PROCID", "15"}, {"SLURM_NTASKS", "16"}, {"SLURM_STEP_NUM_TASKS", "16"}});
  EXPECT_EQ(std::tuple(srun.rank, srun.ranks, srun.by), std::tuple(15, 16, "srun"));
  const Launch hydra = read({{"PMI_RANK", "0"}, {"PMI_SIZE", "2"}});
  EXPECT_EQ(std::tuple(hydra.rank, hydra.ranks), std::tuple(0, 2));
  // mpirun within an allocation of Slurm.
  const Launch both = read({{"OMPI_COMM_WORLD_RANK", "1"},
                            {"OMPI_COMM_WORLD_SIZE", "2"},
                            {"SLURM_PROCID", "0"},
                            {"SLURM_STEP_NUM_TASKS", "4"}});
  EXPECT_EQ(std::tuple(both.rank, both.ranks), std::tuple(1, 2));
}

TEST(Launch, IsAloneOtherwise) {
  EXPECT_EQ(read({}).ranks, 1);
  EXPECT_EQ(read({{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_SIZE", "1"}}).ranks, 1);
  // A batch script has a number and the allocation's size, but is not started once a task.
  EXPECT_EQ(read({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "16"}}).ranks, 1);
  EXPECT_EQ(read({{"OMPI_COMM_WORLD_RANK", "9"}, {"OMPI_COMM_WORLD_SIZE", "8"}}).ranks, 1);
  EXPECT_EQ(read({{"OMPI_COMM_WORLD_RANK", "x"}, {"OMPI_COMM_WORLD_SIZE", "8"}}).ranks, 1);
}

void expect_refused(const Launch& launch, Command command, std::optional<int64_t> nproc, const std::string& part) {
  Settings settings;
  settings.nproc = nproc;
  try {
    check_launch(launch, command, settings);
    EXPECT_EQ(part, "") << "not refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::usage);
    EXPECT_NE(std::string(e.what()).find(part), std::string::npos) << e.what();
    EXPECT_NE(part, "") << e.what();
  }
}

TEST(Launch, RefusesWhatCannotBe) {
  expect_refused({0, 1, ""}, Command::train, std::nullopt, "");
  expect_refused({0, 1, ""}, Command::train, 4, "");
  expect_refused({2, 4, "mpirun"}, Command::train, 4, "");
  expect_refused({2, 4, "srun"}, Command::train, std::nullopt, "");
  expect_refused({2, 4, "srun"}, Command::train, 8, "--nproc 8, but srun has started 4 ranks");
  expect_refused({2, 4, "mpirun"}, Command::grade, std::nullopt, "`furlong grade` runs in one process, not 4");
  expect_refused({0, 1, ""}, Command::score, 2, "`furlong score` runs in one process, not 2");
}

TEST(Launch, StartsItselfUnderMpirun) {
  const Texts words = mpirun_words(4, true, "/opt/furlong", {"train", "--nproc", "4"});
  EXPECT_EQ(words.front(), "mpirun");
  const auto program = std::find(words.begin(), words.end(), "/opt/furlong");
  ASSERT_NE(program, words.end());
  EXPECT_EQ(Texts(program + 1, words.end()), Texts({"train", "--nproc", "4"}));
  const auto n = std::find(words.begin(), program, "-n");
  ASSERT_NE(n, program);
  EXPECT_EQ(*(n + 1), "4");
  EXPECT_NE(std::find(words.begin(), program, "--allow-run-as-root"), program);
  const Texts user = mpirun_words(2, false, "f", {});
  EXPECT_EQ(std::find(user.begin(), user.end(), "--allow-run-as-root"), user.end());
}

TEST(Launch, NprocIsASettingOfCommandsThatRunAModel) {
  const Invocation one = parse_command_line({"score", "--hf-checkpoint", "x", "--input", "-", "--nproc", "2"});
  EXPECT_EQ(one.settings.nproc, 2);
  EXPECT_EQ(one.settings.distributed_timeout_minutes, 10);
  EXPECT_THROW(parse_command_line({"score", "--hf-checkpoint", "x", "--input", "-", "--nproc", "0"}), Error);
  EXPECT_THROW(parse_command_line({"grade", "--input", "-", "--rm-type", "math", "--nproc", "2"}), Error);
}

}  // namespace
}  // namespace furlong
