#include "data/trajectory.h"

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "data_room/scratch.h"

namespace furlong {
namespace {

const std::string good_row =
    R"({"tokens":[1,2,3,4],"response_length":2,"loss_mask":[1,0],"reward":0.5,"group_index":3,"index":9,)"
    R"("rollout_log_probs":[-0.1,-2],"status":"truncated","weight_version":4})";

std::vector<Trajectory> read(const std::string& content, const std::string& suffix = "") {
  const Scratch scratch;
  return read_trajectories(scratch.file("t.jsonl", content) + suffix);
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const size_t at = text.find(from);
  EXPECT_NE(at, text.npos) << from;
  return text.replace(at, from.size(), to);
}

TEST(Trajectory, ReadsARow) {
  const auto all = read(good_row + "\n");
  ASSERT_EQ(all.size(), 1u);
  const Trajectory& t = all[0];
  EXPECT_EQ(t.tokens, (std::vector<int32_t>{1, 2, 3, 4}));
  EXPECT_EQ(t.response_length, 2);
  EXPECT_EQ(t.prompt_length(), 2);
  EXPECT_EQ(t.loss_mask, (std::vector<uint8_t>{1, 0}));
  EXPECT_EQ(t.reward, 0.5);
  EXPECT_EQ(t.group_index, 3);
  EXPECT_EQ(t.index, 9);
  EXPECT_EQ(t.rollout_log_probs, (std::vector<float>{-0.1f, -2.0f}));
  EXPECT_FALSE(t.log_probs || t.ref_log_probs || t.label || t.prompt_text || t.response_text);
  EXPECT_EQ(t.status, Trajectory::Status::truncated);
  EXPECT_EQ(t.weight_version, 4);
  EXPECT_EQ(t.extra_json, "");
}

TEST(Trajectory, DefaultsOfTheLeastRow) {
  const auto all =
      read(R"({"tokens":[1,2],"response_length":1,"reward":null,"group_index":0,"index":0,"log_probs":null})");
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].loss_mask, (std::vector<uint8_t>{1}));
  EXPECT_FALSE(all[0].reward);
  EXPECT_EQ(all[0].status, Trajectory::Status::completed);
  EXPECT_TRUE(all[0].rollout_log_probs.empty());
}

TEST(Trajectory, HeaderAndSlices) {
  const std::string header = trajectory_header() + "\n";
  EXPECT_EQ(header, "{\"format\":\"furlong.trajectory\",\"version\":1}\n");
  std::string rows;
  for (int i = 0; i < 4; i++) rows += replaced(good_row, "\"index\":9", fmt::format("\"index\":{}", i)) + "\n";
  EXPECT_EQ(read(header + rows).size(), 4u);
  EXPECT_EQ(read(rows).size(), 4u);
  const auto some = read(header + rows, "@[1:-1]");
  ASSERT_EQ(some.size(), 2u);
  EXPECT_EQ(some[0].index, 1);
  EXPECT_TRUE(read("").empty());
  EXPECT_TRUE(read(header).empty());
  const auto refused = [](const char* first) {
    return error_of(Exit::input, [&] { read(std::string(first) + "\n"); });
  };
  expect_contains(refused(R"({"format":"furlong.trajectory","version":2})"), "t.jsonl:1: trajectory format version 2");
  expect_contains(refused(R"({"format":"furlong.trajectory"})"), "no key \"version\"");
  expect_contains(refused(R"({"format":"other","version":1})"), "\"format\" is \"other\"");
  expect_contains(error_of(Exit::input, [&] { read(rows + header); }), "t.jsonl:5: no key \"tokens\"");
}

TEST(Trajectory, RefusesBadRows) {
  const struct {
    const char* from;
    const char* to;
    const char* message;
  } cases[] = {
      {"\"tokens\":[1,2,3,4],", "", "t.jsonl:2: no key \"tokens\""},
      {"[1,2,3,4]", "\"abc\"", "\"tokens\" is a string; expected a list"},
      {"[1,2,3,4]", "[]", "\"tokens\" is empty"},
      {"[1,2,3,4]", "[1,-2,3,4]", "\"tokens\"[1] is -2; expected an integer from 0"},
      {"[1,2,3,4]", "[1,2.0,3,4]", "\"tokens\"[1] is 2.0"},
      {"[1,2,3,4]", "[1,2,3,\"4\"]", "\"tokens\"[3] is a string"},
      {"[1,2,3,4]", "[1,2,3,2147483648]", "\"tokens\"[3] is 2147483648"},
      {"[1,2,3,4]", "[1,2]", "\"response_length\" is 2; expected an integer from 0 to 1"},
      {"\"response_length\":2", "\"response_length\":4", "\"response_length\" is 4"},
      {"\"response_length\":2", "\"response_length\":-1", "\"response_length\" is -1"},
      {"\"response_length\":2", "\"response_length\":1.5", "\"response_length\" is a number"},
      {"\"response_length\":2", "\"response_length\":18446744073709551615",
       "\"response_length\" is 18446744073709551615"},
      {"\"response_length\":2", "\"response_length\":1", "\"loss_mask\" has 2 entries; expected response_length = 1"},
      {"\"loss_mask\":[1,0]", "\"loss_mask\":[1,2]", "\"loss_mask\"[1] is 2; expected an integer from 0 to 1"},
      {"\"loss_mask\":[1,0]", "\"loss_mask\":[true,0]", "\"loss_mask\"[0] is a boolean"},
      {"\"loss_mask\":[1,0]", "\"loss_mask\":[1,0,1]", "\"loss_mask\" has 3 entries"},
      {"\"reward\":0.5,", "", "no key \"reward\""},
      {"\"reward\":0.5", "\"reward\":\"1\"", "\"reward\" is a string; expected a number, or null"},
      {"\"reward\":0.5", "\"reward\":{\"score\":1}", "\"reward\" is an object"},
      {"\"reward\":0.5", "\"reward\":true", "\"reward\" is a boolean"},
      {"\"reward\":0.5", "\"reward\":NaN", "t.jsonl:2:"},
      {"\"group_index\":3", "\"group_index\":-3", "\"group_index\" is -3; expected an integer of 0 or more"},
      {"\"index\":9", "\"index\":\"9\"", "\"index\" is a string"},
      {"[-0.1,-2]", "[-0.1]", "\"rollout_log_probs\" has 1 entries"},
      {"[-0.1,-2]", "[-0.1,null]", "\"rollout_log_probs\"[1] is null"},
      {"[-0.1,-2]", "[-0.1,1e39]", "\"rollout_log_probs\"[1] is 1e+39; expected a finite 32-bit float"},
      {"[-0.1,-2]", "-1", "\"rollout_log_probs\" is an integer"},
      {"\"status\"", "\"log_probs\":[1,2,3],\"status\"", "\"log_probs\" has 3 entries"},
      {"\"status\"", "\"ref_log_probs\":{},\"status\"", "\"ref_log_probs\" is an object"},
      {"\"truncated\"", "\"done\"", "\"status\" is \"done\"; expected \"completed\""},
      {"\"truncated\"", "7", "\"status\" is 7"},
      {"\"weight_version\":4", "\"weight_version\":\"v4\"", "\"weight_version\" is a string"},
      {"\"status\"", "\"response\":[1],\"status\"", "\"response\" is a list"},
      {"\"status\"", "\"spec_drafted\":-1,\"status\"", "\"spec_drafted\" is -1"},
      {"\"status\"", "\"index\":1,\"status\"", "\"index\" occurs twice"},
  };
  for (const auto& c : cases) {
    const std::string content = good_row + "\n" + replaced(good_row, c.from, c.to) + "\n" + good_row + "\n";
    expect_contains(error_of(Exit::input, [&] { read(content); }), c.message);
  }
}

TEST(Trajectory, ATornLastLineIsDroppedAndOnlyThat) {
  // A cut anywhere in the last row leaves the rows before it.
  const std::string whole = trajectory_header() + "\n" + good_row + "\n" + good_row;
  const size_t last = whole.size() - good_row.size();
  testing::internal::CaptureStderr();
  for (size_t cut = last; cut < whole.size(); cut++) EXPECT_EQ(read(whole.substr(0, cut)).size(), 1u) << cut;
  expect_contains(testing::internal::GetCapturedStderr(), "t.jsonl:3: the last line is torn");
  EXPECT_EQ(read(whole).size(), 2u);
  EXPECT_TRUE(read(trajectory_header() + "\n" + good_row, "@[2:1]").empty());
  // With its newline written it is no torn line.
  error_of(Exit::input, [&] { read(whole.substr(0, whole.size() - 5) + "\n"); });
  // A whole row that is wrong is an error, last or not.
  error_of(Exit::input, [&] { read(replaced(good_row, "\"reward\":0.5", "\"reward\":[]")); });
}

TEST(Trajectory, DamagedBytesGiveErrorsOnly) {
  const Scratch scratch;
  const std::string whole = trajectory_header() + "\n" + good_row + "\n" + good_row + "\n";
  std::mt19937 generator(1);
  const std::string likely = "{}[]\",:0123456789eE+-.\\ntrue \r\n";
  int errors = 0;
  for (int round = 0; round < 3000; round++) {
    std::string content = whole;
    for (uint32_t edits = generator() % 3 + 1; edits > 0; edits--) {
      const size_t at = generator() % content.size();
      const char c = generator() % 4 == 0 ? static_cast<char>(generator()) : likely[generator() % likely.size()];
      if (generator() % 3 == 0) {
        content.erase(at, generator() % 9);
      } else {
        content.insert(at, 1, c);
      }
    }
    try {
      for (const Trajectory& t : read_trajectories(scratch.file("t.jsonl", content))) {
        ASSERT_LT(static_cast<size_t>(t.response_length), t.tokens.size());
        ASSERT_EQ(t.loss_mask.size(), static_cast<size_t>(t.response_length));
        trajectory_row(t);
      }
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), Exit::input);
      expect_contains(error.what(), "t.jsonl:");
      errors++;
    }
  }
  EXPECT_GT(errors, 1000);
}

Trajectory sample() {
  Trajectory t;
  t.tokens = {5, 6, 7, 8, 2147483647};
  t.response_length = 3;
  t.loss_mask = {1, 0, 1};
  t.reward = 0.1;
  t.group_index = 12;
  t.index = 99;
  t.rollout_log_probs = {-0.1f, -1e-30f, -103.27893f};
  t.log_probs = std::vector<float>{0.0f, -0.0f, std::numeric_limits<float>::denorm_min()};
  t.status = Trajectory::Status::aborted;
  t.weight_version = 7;
  t.prompt_text = "p \"q\" \n é";
  t.response_text = "";
  t.label = LabelValue{LabelValue::Kind::floating, "2.50", 2.5};
  t.spec_accepted = 4;
  t.spec_drafted = 6;
  t.spec_verify_steps = 2;
  t.extra_json = R"({"metadata":{"z":1.50,"a":[1, 2]},"big":123456789012345678901234})";
  return t;
}

void expect_equal(const Trajectory& a, const Trajectory& b) {
  EXPECT_EQ(a.tokens, b.tokens);
  EXPECT_EQ(a.response_length, b.response_length);
  EXPECT_EQ(a.loss_mask, b.loss_mask);
  EXPECT_EQ(a.reward, b.reward);
  EXPECT_EQ(a.group_index, b.group_index);
  EXPECT_EQ(a.index, b.index);
  EXPECT_EQ(a.rollout_log_probs, b.rollout_log_probs);
  EXPECT_EQ(a.log_probs, b.log_probs);
  EXPECT_EQ(a.ref_log_probs, b.ref_log_probs);
  EXPECT_EQ(a.status, b.status);
  EXPECT_EQ(a.weight_version, b.weight_version);
  EXPECT_EQ(a.prompt_text, b.prompt_text);
  EXPECT_EQ(a.response_text, b.response_text);
  EXPECT_EQ(a.label, b.label);
  EXPECT_EQ(a.spec_accepted, b.spec_accepted);
  EXPECT_EQ(a.spec_drafted, b.spec_drafted);
  EXPECT_EQ(a.spec_verify_steps, b.spec_verify_steps);
  EXPECT_EQ(a.extra_json, b.extra_json);
}

TEST(Trajectory, RoundTrips) {
  const Scratch scratch;
  Trajectory plain;
  plain.tokens = {1};
  const std::vector<Trajectory> written = {sample(), plain};
  write_trajectories(scratch.path("t.jsonl"), written);
  EXPECT_FALSE(std::filesystem::exists(scratch.path("t.jsonl.tmp")));
  const auto all = read_trajectories(scratch.path("t.jsonl"));
  ASSERT_EQ(all.size(), 2u);
  expect_equal(all[0], written[0]);
  expect_equal(all[1], written[1]);
  EXPECT_TRUE(std::signbit((*all[0].log_probs)[1]));
  expect_contains(trajectory_row(all[0]), "[-0.1,-1e-30,-103.27893]");  // no digit more than a float needs
  // Written again it is the same file.
  write_trajectories(scratch.path("u.jsonl"), all);
  EXPECT_EQ(read_file(scratch.path("t.jsonl")), read_file(scratch.path("u.jsonl")));
}

TEST(Trajectory, UnknownKeysSurviveUnchanged) {
  const auto all =
      read(replaced(good_row, "{\"tokens\"", R"({"prompt":[{"role":"user"}], "my key":  {"b":1.0,"a":[ 2]},"tokens")"));
  ASSERT_EQ(all.size(), 1u);
  EXPECT_EQ(all[0].extra_json, R"({"prompt":[{"role":"user"}],"my key":{"b":1.0,"a":[ 2]}})");
  EXPECT_FALSE(all[0].prompt_text);
  expect_contains(trajectory_row(all[0]), R"("my key":{"b":1.0,"a":[ 2]}})");
}

TEST(Trajectory, EveryFloatReadsBackAsItself) {
  std::mt19937 generator(7);
  Trajectory t;
  const float corners[] = {0.0f,
                           std::numeric_limits<float>::max(),
                           std::numeric_limits<float>::lowest(),
                           std::numeric_limits<float>::min(),
                           std::numeric_limits<float>::denorm_min(),
                           16777216.0f,
                           0.1f,
                           -1.0f / 3.0f,
                           9.5367431640625e-07f};
  t.rollout_log_probs.assign(std::begin(corners), std::end(corners));
  while (t.rollout_log_probs.size() < 200000) {
    const auto x = std::bit_cast<float>(static_cast<uint32_t>(generator()));
    if (std::isfinite(x)) t.rollout_log_probs.push_back(x);
  }
  t.response_length = static_cast<int32_t>(t.rollout_log_probs.size());
  t.tokens.assign(t.rollout_log_probs.size() + 1, 1);
  t.loss_mask.assign(t.rollout_log_probs.size(), 1);
  const auto all = read(trajectory_row(t));
  ASSERT_EQ(all.size(), 1u);
  for (size_t i = 0; i < t.rollout_log_probs.size(); i++) {
    ASSERT_EQ(std::bit_cast<uint32_t>(t.rollout_log_probs[i]), std::bit_cast<uint32_t>(all[0].rollout_log_probs[i]));
  }
}

TEST(Trajectory, NumbersThatAreNot) {
  Trajectory t = sample();
  t.reward = std::nan("");
  expect_contains(trajectory_row(t), "\"reward\":null");
  t.rollout_log_probs[1] = std::numeric_limits<float>::infinity();
  expect_contains(error_of(Exit::numerics, [&] { trajectory_row(t); }), "sample 99 of group 12: rollout_log_probs[1]");
}

TEST(Trajectory, WriterAppends) {
  const Scratch scratch;
  const std::string path = scratch.path("t.jsonl");
  for (int run = 0; run < 3; run++) {
    TrajectoryWriter writer(path);
    writer.add(sample());
    writer.close();
  }
  EXPECT_EQ(read_trajectories(path).size(), 3u);
  // A crash in the middle of a row costs that row alone.
  const std::string content = read_file(path);
  scratch.file("t.jsonl", content.substr(0, content.size() - 40));
  TrajectoryWriter writer(path);
  writer.add(sample());
  writer.close();
  EXPECT_EQ(read_file(path), content);
  error_of(Exit::resources, [&] { TrajectoryWriter other(scratch.path("none/t.jsonl")); });
}

}  // namespace
}  // namespace furlong
