#include "monitor/metrics.h"

#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <limits>

#include "data_room/scratch.h"
#include "monitor/table.h"

namespace furlong {
namespace {

using Row = std::vector<std::pair<std::string, double>>;

Row row(int64_t step) { return {{"train/loss", 0.1 * static_cast<double>(step)}, {"a", 1.0 / 3.0}, {"n", 8}}; }

TEST(Metrics, WritesOneObjectAStep) {
  const Scratch scratch;
  MetricsWriter writer(scratch.path("m.jsonl"), 0);
  writer.write(0, row(3));
  writer.write(1, Row{{"odd \"name\"", -1e300}});
  writer.sync();
  EXPECT_EQ(read_file(scratch.path("m.jsonl")),
            "{\"step\":0,\"train/loss\":0.30000000000000004,\"a\":0.3333333333333333,\"n\":8}\n"
            "{\"step\":1,\"odd \\\"name\\\"\":-1e+300}\n");
}

TEST(Metrics, NotFiniteIsNullAndWarnedOfOnce) {
  const Scratch scratch;
  testing::internal::CaptureStderr();
  MetricsWriter writer(scratch.path("m.jsonl"), 0);
  for (int64_t step = 0; step < 2; step++) {
    writer.write(step, Row{{"x", std::nan("")}, {"y", -std::numeric_limits<double>::infinity()}});
  }
  const std::string log = testing::internal::GetCapturedStderr();
  expect_contains(log, "step 0: x is nan; written as null");
  expect_contains(log, "step 0: y is -inf");
  EXPECT_EQ(log.find("step 1"), log.npos);
  EXPECT_EQ(read_file(scratch.path("m.jsonl")),
            "{\"step\":0,\"x\":null,\"y\":null}\n{\"step\":1,\"x\":null,\"y\":null}\n");
}

TEST(Metrics, ResumedFileEqualsTheUninterruptedOne) {
  const Scratch scratch;
  const auto run = [&](const std::string& path, int64_t from, int64_t to) {
    MetricsWriter writer(path, from);
    for (int64_t step = from; step < to; step++) writer.write(step, row(step));
  };
  run(scratch.path("whole"), 0, 6);
  const std::string whole = read_file(scratch.path("whole"));
  testing::internal::CaptureStderr();  // hundreds of warnings
  // Stopped at any byte, resumed from a checkpoint after step 2 (or from nothing).
  const size_t three = whole.find("{\"step\":3");
  for (size_t cut = 0; cut <= whole.size(); cut++) {
    scratch.file("part", whole.substr(0, cut));
    const int64_t from = cut >= three ? 3 : 0;
    run(scratch.path("part"), from, 6);
    ASSERT_EQ(read_file(scratch.path("part")), whole) << cut;
  }
  expect_contains(testing::internal::GetCapturedStderr(),
                  "1 damaged rows dropped, the first at " + scratch.path("part"));
}

TEST(Metrics, ResumeKeepsWhatIsNotItsOwnAndDropsDamage) {
  const Scratch scratch;
  const std::string path = scratch.file("m", "{\"note\":1}\n{\"step\":0}\nbroken\n{\"step\":5}\n{\"step\":1}\n");
  testing::internal::CaptureStderr();
  MetricsWriter writer(path, 2);
  expect_contains(testing::internal::GetCapturedStderr(), "1 damaged rows dropped, the first at " + path + ":3:1");
  EXPECT_EQ(read_file(path), "{\"note\":1}\n{\"step\":0}\n{\"step\":1}\n");
}

TEST(Metrics, AFileThatCannotBeWrittenStopsNothing) {
  const Scratch scratch;
  testing::internal::CaptureStderr();
  MetricsWriter writer(scratch.path("none/m.jsonl"), 0);
  writer.write(0, row(0));
  writer.sync();
  MetricsWriter folder(scratch.path(""), 0);
  folder.write(0, row(0));
  const std::string log = testing::internal::GetCapturedStderr();
  expect_contains(log, "metrics could not be written");
}

TEST(Metrics, AFullDiskWarnsOnceAndLeavesNoTornRow) {
  const Scratch scratch;
  const std::string path = scratch.path("m.jsonl");
  testing::internal::CaptureStderr();
  MetricsWriter writer(path, 0);
  // A limit on the file's size makes write() fail as a full disk does: first a part is written, then nothing.
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit small{200, old_limit.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  for (int64_t step = 0; step < 8; step++) writer.write(step, row(step));
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  const std::string log = testing::internal::GetCapturedStderr();
  const size_t first = log.find("metrics could not be written");
  ASSERT_NE(first, log.npos) << log;
  EXPECT_EQ(log.find("metrics could not be written", first + 1), log.npos);
  const std::string content = read_file(path);
  EXPECT_LE(content.size(), 200u);
  EXPECT_GT(content.size(), 50u);
  EXPECT_EQ(content.back(), '\n');
  // Space again: rows again.
  writer.write(9, row(9));
  expect_contains(read_file(path), "{\"step\":9,");
}

TEST(StepLine, Plain) {
  const StepLine line{11, 3000, 0.512, 0.31, 1234, 1.2e-4, 0.831, 2.91, 12.3, 4.5, 12345, 3 * 3600 + 12 * 60};
  EXPECT_EQ(
      format_step_line(line),
      "step 12/3000 reward 0.512±0.310 len 1.23k kl 1.2e-4 grad 0.831 acc 2.91 roll 12.3s train 4.50s 12.3k tok/s "
      "ETA 3h12m");
  EXPECT_EQ(format_step_line({0, 1}), "step 1/1");
  StepLine limited{.step = 0, .steps = 2, .rollout_seconds = 12.3, .tokens_per_second = 12345, .limit_share = 0.617};
  EXPECT_EQ(format_step_line(limited), "step 1/2 roll 12.3s 12.3k tok/s 62% of limit");
  limited.limit_share = 0.00123;
  EXPECT_EQ(format_step_line(limited), "step 1/2 roll 12.3s 12.3k tok/s 0.123% of limit");
  // Where not both fit, the speed is what is left out.
  StepLine both = line;
  both.limit_share = 0.617;
  EXPECT_EQ(format_step_line(both),
            "step 12/3000 reward 0.512±0.310 len 1.23k kl 1.2e-4 grad 0.831 acc 2.91 roll 12.3s train 4.50s 62% of "
            "limit ETA 3h12m");
}

TEST(StepLine, NeverWiderThan120Columns) {
  std::vector<double> values = {0,
                                -0.0,
                                std::nan(""),
                                std::numeric_limits<double>::infinity(),
                                -std::numeric_limits<double>::infinity(),
                                5e-324,
                                -5e-324,
                                -86399.0,
                                8639999,
                                86400e3};
  for (int e = -320; e <= 308; e++) {
    for (const double m : {1.0, 1.249, 9.4999, 9.9949, 9.9951, 9.9999}) {
      values.push_back(m * std::pow(10.0, e));
      values.push_back(-values.back());
    }
  }
  for (const double v : values) {
    EXPECT_LE(short_number(v).size(), 6u) << v << " " << short_number(v);
    EXPECT_LE(short_duration(v).size(), 6u) << v << " " << short_duration(v);
    for (const int64_t step : {int64_t{0}, int64_t{999998}, std::numeric_limits<int64_t>::max() - 1}) {
      const std::string line = format_step_line({step, step + 1, v, v, v, v, v, v, v, v, v, v, v});
      EXPECT_LE(text_columns(line), 120u) << line;
    }
  }
  // The widest that can be.
  const StepLine widest{888887, 888888,  -0.888,       -0.888,       -8.88e3, -8e-88,
                        -8e-88, -8.88e3, 99 * 60 * 35, 99 * 60 * 35, -8.88e3, 99 * 86400 + 82800};
  const std::string line = format_step_line(widest);
  EXPECT_EQ(line.find("tok/s"), line.npos);
  expect_contains(line, "ETA 99d23h");
  EXPECT_GT(text_columns(line), 107u);
  StepLine limited = widest;
  limited.limit_share = -8e-88;
  EXPECT_LE(text_columns(format_step_line(limited)), 120u);
}

TEST(ShortNumber, Table) {
  const struct {
    double value;
    const char* text;
  } cases[] = {{0, "0"},          {1, "1.00"},         {0.5124, "0.512"}, {-0.5, "-0.500"}, {0.9996, "1.00"},
               {0.001, "0.001"},  {0.00099, "9.9e-4"}, {2.914, "2.91"},   {9.996, "10.0"},  {99.96, "100"},
               {999.4, "999"},    {999.6, "1.00k"},    {12345, "12.3k"},  {1e6, "1.00M"},   {9.994e14, "999T"},
               {1e15, "1.0e15"},  {-1e15, "-1e15"},    {1e-12, "1e-12"},  {1.5e-300, "0"},  {-2e-4, "-2e-4"},
               {1.5e300, "2e300"}};
  for (const auto& c : cases) EXPECT_EQ(short_number(c.value), c.text);
}

TEST(ShortDuration, Table) {
  const struct {
    double value;
    const char* text;
  } cases[] = {{0, "0.00s"},      {9.99, "9.99s"},   {9.996, "10.0s"},  {99.96, "1m40s"},
               {245, "4m05s"},    {3599.6, "1h00m"}, {86399, "23h59m"}, {86400, "1d00h"},
               {8640000, "100d"}, {1e9, ">999d"},    {-1, "?"}};
  for (const auto& c : cases) EXPECT_EQ(short_duration(c.value), c.text) << c.value;
}

}  // namespace
}  // namespace furlong
