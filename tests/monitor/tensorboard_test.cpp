#include "monitor/tensorboard.h"

#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <limits>
#include <vector>

#include "data_room/scratch.h"
#include "monitor/metrics.h"

namespace furlong {
namespace {

using Figures = std::vector<std::pair<std::string, double>>;

// The files of a folder in the order in which TensorBoard reads them.
std::vector<std::string> event_files(const std::string& folder) {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) paths.push_back(entry.path().string());
  std::sort(paths.begin(), paths.end());
  return paths;
}

// A reader of its own: the summaries' steps, in the order of files and records.
std::vector<int64_t> steps_in(const std::string& folder) {
  std::vector<int64_t> steps;
  for (const auto& path : event_files(folder)) {
    const std::string text = read_file(path);
    for (size_t at = 0; at < text.size();) {
      uint64_t length = 0;
      std::memcpy(&length, text.data() + at, 8);
      const std::string event = text.substr(at + 12, length);
      at += length + 16;
      EXPECT_LE(at, text.size()) << path;
      // wall time (9 bytes), then the step (a varint below 128 here) unless it is 0, then a summary or something else.
      size_t field = 9;
      int64_t step = 0;
      if (event.at(field) == 0x10) step = event.at(field + 1), field += 2;
      if (event.at(field) == 0x2a) steps.push_back(step);
    }
  }
  return steps;
}

void write_steps(const std::string& folder, int64_t from, int64_t to) {
  EventWriter writer(folder, from);
  for (int64_t step = from; step < to; step++) writer.write(step, Figures{{"a", static_cast<double>(step)}, {"b", 1}});
}

TEST(TensorBoard, Checksum) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(""), 0u);
}

TEST(TensorBoard, BytesOfItsOwnWriter) {
  const std::string ours =
      tfrecord(version_event(1700000000.25)) + tfrecord(restart_event(1700000000.5, 300)) +
      tfrecord(
          scalars_event(1700000001.75, 300,
                        Figures{{"train/loss", 0.1}, {"rollout/raw_reward", -1.5}, {std::string(150, 'a'), 3e38}})) +
      tfrecord(scalars_event(1, 0, Figures{{"x", std::numeric_limits<double>::infinity()}}));
  EXPECT_EQ(ours, read_file(FURLONG_TEST_DATA "/tensorboard/events.bin"));
}

TEST(TensorBoard, AResumedRunHasEachStepOnce) {
  const Scratch scratch;
  const std::string folder = scratch.path("tensorboard");
  write_steps(folder, 0, 6);
  EXPECT_EQ(steps_in(folder), (std::vector<int64_t>{0, 1, 2, 3, 4, 5}));
  write_steps(folder, 4, 7);  // goes on from a checkpoint after step 3
  EXPECT_EQ(steps_in(folder), (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6}));
  write_steps(folder, 7, 8);
  EXPECT_EQ(event_files(folder).size(), 3u);
  write_steps(folder, 2, 3);  // an older checkpoint: two files are void as a whole
  EXPECT_EQ(steps_in(folder), (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(event_files(folder).size(), 2u);
  write_steps(folder, 0, 1);
  EXPECT_EQ(steps_in(folder), (std::vector<int64_t>{0}));
}

TEST(TensorBoard, WhatIsTornOrDamagedEndsItsFile) {
  const std::string whole = tfrecord(version_event(1)) + tfrecord(scalars_event(2, 0, Figures{{"a", 1}})) +
                            tfrecord(scalars_event(3, 1, Figures{{"a", 2}}));
  const size_t last = whole.size() - tfrecord(scalars_event(3, 1, Figures{{"a", 2}})).size();
  EXPECT_EQ(events_before(whole, 9), whole);
  EXPECT_EQ(events_before(whole, 1), whole.substr(0, last));
  for (size_t cut = 0; cut < whole.size(); cut++) {
    const std::string kept = events_before(whole.substr(0, cut), 9);
    EXPECT_EQ(kept, whole.substr(0, kept.size()));
    EXPECT_EQ(kept.size() >= last, cut >= last) << cut;
    std::string damaged = whole;
    damaged[cut] ^= 0x20;
    EXPECT_LT(events_before(damaged, 9).size(), whole.size()) << cut;
  }
  // A length beyond the file, in a frame whose checksum is right.
  EXPECT_EQ(events_before(std::string(8, '\xff') + tfrecord(std::string(8, '\xff')).substr(20), 9), "");
  // A payload that is no event.
  EXPECT_EQ(events_before(tfrecord(std::string(3, '\xff')), 9), "");
}

TEST(TensorBoard, OtherFilesStay) {
  const Scratch scratch;
  const std::string folder = scratch.path("tensorboard");
  make_directories(folder);
  const std::string other = scratch.file("tensorboard/events.out.tfevents.1700000000.host", "theirs");
  write_steps(folder, 0, 1);
  EXPECT_EQ(read_file(other), "theirs");
}

TEST(TensorBoard, AFullDiskStopsNothing) {
  const Scratch scratch;
  const std::string folder = scratch.path("tensorboard");
  rlimit old{}, small{};
  getrlimit(RLIMIT_FSIZE, &old);
  small = old;
  small.rlim_cur = 200;
  testing::internal::CaptureStderr();
  EventWriter writer(folder, 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  setrlimit(RLIMIT_FSIZE, &small);
  for (int64_t step = 0; step < 9; step++) writer.write(step, Figures{{"name", 1}});
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, old_handler);
  const std::string log = testing::internal::GetCapturedStderr();
  const size_t first = log.find("TensorBoard events could not be written");
  ASSERT_NE(first, log.npos) << log;
  EXPECT_EQ(log.find("TensorBoard events", first + 1), log.npos);
  writer.write(9, Figures{{"name", 1}});  // space again
  const std::string text = read_file(event_files(folder)[0]);
  EXPECT_EQ(events_before(text, 99), text);
  EXPECT_EQ(steps_in(folder).back(), 9);
}

TEST(TensorBoard, AFolderThatCannotBeStopsNothing) {
  const Scratch scratch;
  testing::internal::CaptureStderr();
  MetricsWriter writer(scratch.path("m.jsonl"), 0, scratch.file("f", "") + "/tensorboard");
  writer.write(0, Figures{{"a", 1}});
  writer.sync();
  expect_contains(testing::internal::GetCapturedStderr(), "TensorBoard events could not be written, the run goes on");
  EXPECT_EQ(read_file(scratch.path("m.jsonl")), "{\"step\":0,\"a\":1}\n");
}

TEST(TensorBoard, BesideTheRowsOfMetrics) {
  const Scratch scratch;
  for (const int64_t from : {0, 2}) {
    MetricsWriter writer(scratch.path("m.jsonl"), from, scratch.path("events"));
    for (int64_t step = from; step < from + 3; step++) writer.write(step, Figures{{"a", 1}});
    writer.sync();
  }
  EXPECT_EQ(steps_in(scratch.path("events")), (std::vector<int64_t>{0, 1, 2, 3, 4}));
}

}  // namespace
}  // namespace furlong
