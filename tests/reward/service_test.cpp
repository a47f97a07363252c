// Rewards from outside: what reaches a service or command, what its faults become, and how long they may take.
#include <gtest/gtest.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "base/rng.h"
#include "reward/faulty_server.h"
#include "reward/judge.h"

namespace furlong {
namespace {

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

class LogFolder {
 public:
  LogFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "furlong-reward-XXXXXX").string();
    path_ = mkdtemp(name.data()) != nullptr ? name : "";
  }
  ~LogFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

CallOptions by_command(const LogFolder& folder, const std::string& arguments = "") {
  CallOptions options;
  options.command = std::string(FURLONG_REWARD_COMMAND) + arguments;
  options.log_directory = folder.path();
  options.name = "reward";
  options.workers = 1;
  options.timeout = 2;
  return options;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

RewardQuery query(const std::string& response) { return {.response = response}; }

Score judged(Judge& judge, const std::string& response, const std::string& key = "") {
  RewardQuery q = query(response);
  q.reward_key = key;
  return judge.wait(judge.submit({q}))[0];
}

// How often the stress tests ask; a release asks 10,000 times.
int64_t stress_calls(int64_t usual) {
  const char* text = std::getenv("FURLONG_REWARD_CALLS");
  return text == nullptr ? usual : std::stoll(text);
}

TEST(RewardCommand, AnswersAndFaults) {
  const LogFolder folder;
  Judge judge({.service = by_command(folder)});
  EXPECT_EQ(judged(judge, "7").reward, 7);
  EXPECT_EQ(judged(judge, "-0.25").reward, -0.25);
  EXPECT_EQ(judged(judge, "keys", "score").reward, 0.5);
  for (const char* fault :
       {"hang", "exit", "die", "junk", "chatter", "other", "twice", "endless", "error", "null", "keys", "fork"}) {
    double took = 0;
    Score score;
    took = seconds_of([&] { score = judged(judge, fault); });
    EXPECT_FALSE(score.reward.has_value()) << fault;
    EXPECT_FALSE(score.error.empty()) << fault;
    EXPECT_LT(took, 4) << fault;
    // The next one finds a process that answers.
    const Score next = judged(judge, "7");
    EXPECT_EQ(next.reward, 7) << "after " << fault << ": " << next.error;
  }
}

TEST(RewardCommand, SaysWhy) {
  const LogFolder folder;
  CallOptions options = by_command(folder);
  options.timeout = 5;
  Judge judge({.service = options});
  EXPECT_PRED2(contains, judged(judge, "error").error, "no judge today");
  EXPECT_PRED2(contains, judged(judge, "exit").error, "exit status 3");
  EXPECT_PRED2(contains, judged(judge, "die").error, "exit status 137");
  EXPECT_NE(read_file(folder.path() + "/reward-0.err").find("ready"), std::string::npos);
}

TEST(RewardCommand, ThatCannotBeStartedIsUnscored) {
  const LogFolder folder;
  CallOptions options = by_command(folder);
  options.command = "/nowhere/at/all";
  Judge judge({.service = options});
  const Score score = judged(judge, "7");
  EXPECT_FALSE(score.reward.has_value());
  EXPECT_NE(score.error.find("exit status 127"), std::string::npos) << score.error;
}

TEST(RewardCommand, GroupsAreOneQuestion) {
  const LogFolder folder;
  Judge judge({.service = by_command(folder)});
  const auto scores = judge.wait(judge.submit({query("1"), query("2.5"), query("null"), query("text")}, true));
  ASSERT_EQ(scores.size(), 4u);
  EXPECT_EQ(scores[0].reward, 1);
  EXPECT_EQ(scores[1].reward, 2.5);
  EXPECT_FALSE(scores[2].reward.has_value());
  EXPECT_FALSE(scores[3].reward.has_value());
  Judge other({.service = by_command(folder, " short")});
  for (const Score& score : other.wait(other.submit({query("1"), query("2")}, true))) {
    EXPECT_FALSE(score.reward.has_value());
    EXPECT_NE(score.error.find("not a list of 2"), std::string::npos) << score.error;
  }
}

TEST(RewardCommand, EndsAtOnceWithItsPool) {
  const LogFolder folder;
  CallOptions options = by_command(folder);
  options.timeout = 60;
  const double took = seconds_of([&] {
    Judge judge({.service = options});
    judge.submit({query("hang")});
    judge.submit({query("hang")});
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  });
  EXPECT_LT(took, 5);
}

TEST(RewardCommand, ManyCallsWithFaults) {
  const LogFolder folder;
  CallOptions options = by_command(folder);
  options.workers = 4;
  options.timeout = 1;
  Judge judge({.service = options});
  const char* faults[] = {"hang", "exit", "die", "junk", "chatter", "other", "endless", "null"};
  const int64_t calls = stress_calls(400);
  std::vector<std::string> asked;
  for (int64_t i = 0; i < calls; i++) {
    const RngKey key{.seed = 5, .position = static_cast<uint32_t>(i), .purpose = Purpose::data};
    const bool bad = random_word(key, 0) % 5 == 0;
    asked.push_back(bad ? faults[random_word(key, 1) % std::size(faults)] : std::to_string(i));
  }
  std::vector<uint64_t> tickets;
  for (const auto& response : asked) tickets.push_back(judge.submit({query(response)}));
  for (int64_t i = 0; i < calls; i++) {
    const auto n = static_cast<size_t>(i);
    const Score score = judge.wait(tickets[n])[0];
    if (asked[n] == std::to_string(i)) {
      EXPECT_EQ(score.reward, static_cast<double>(i)) << score.error;
    } else {
      EXPECT_FALSE(score.reward.has_value()) << asked[n];
    }
  }
}

#ifdef FURLONG_HTTP

CallOptions by_http(const FaultyServer& server) {
  CallOptions options;
  options.url = server.url();
  options.workers = 4;
  options.timeout = 0.3;
  options.backoff = 0.01;
  return options;
}

std::string wish(int64_t value, const std::string& fault = "", int times = 1 << 30) {
  if (fault.empty()) return fmt::format("{{\"value\":{}}}", value);
  return fmt::format("{{\"value\":{},\"fault\":\"{}\",\"times\":{}}}", value, fault, times);
}

TEST(RewardService, SpeaksAsServicesOfMilesDo) {
  FaultyServer server(0);
  server.keep_bodies();
  Judge judge({.rm_type = "remote_rm", .service = by_http(server)});
  RewardQuery q{.prompt = "\"What is \\u00e9?\"",
                .response = wish(3),
                .label = {LabelValue::Kind::integer, "42", 42},
                .metadata = "{\"a\":1}"};
  EXPECT_EQ(judge.wait(judge.submit({q}))[0].reward, 3);
  ASSERT_EQ(server.bodies().size(), 1u);
  EXPECT_EQ(server.bodies()[0], "{\"prompt\":\"What is \\u00e9?\",\"response\":\"{\\\"value\\\":3}\",\"label\":42}");
  // A row's own rule stands before the service.
  q.metadata = "{\"rm_type\":\"math\"}";
  q.response = "\\boxed{42}";
  EXPECT_EQ(judge.wait(judge.submit({q}))[0].reward, 1);
  EXPECT_EQ(server.requests(), 1);
  // Connections are kept.
  for (int i = 0; i < 50; i++) EXPECT_EQ(judged(judge, wish(i)).reward, i);
  EXPECT_LE(server.connections(), 4);
}

TEST(RewardService, MayAnswerInAnyFormOfHttp) {
  FaultyServer server(0);
  CallOptions options = by_http(server);
  options.workers = 1;
  options.tries = 1;
  options.timeout = 5;
  Judge judge({.rm_type = "remote_rm", .service = options});
  int value = 10;
  for (int round = 0; round < 3; round++) {
    for (const char* how : {"", "chunked", "close", "old", "forgets", "bytes"}) {
      const Score score = judged(judge, fmt::format("{{\"value\":{},\"how\":\"{}\"}}", ++value, how));
      EXPECT_EQ(score.reward, value) << how << ": " << score.error;
    }
  }
}

TEST(RewardService, BatchesAndGroups) {
  FaultyServer server(0);
  server.keep_bodies();
  CallOptions options = by_http(server);
  options.workers = 1;
  options.batch = 8;
  {
    Judge judge({.rm_type = "remote_rm", .service = options});
    std::vector<uint64_t> tickets;
    for (int i = 0; i < 100; i++) tickets.push_back(judge.submit({query(wish(i))}));
    for (int i = 0; i < 100; i++) EXPECT_EQ(judge.wait(tickets[static_cast<size_t>(i)])[0].reward, i);
    EXPECT_LT(server.requests(), 50);
  }
  options.batch = 1;
  Judge judge({.rm_type = "remote_rm", .service = options});
  const auto scores = judge.wait(judge.submit({query(wish(5)), query(wish(6))}, true));
  EXPECT_EQ(scores[0].reward, 5);
  EXPECT_EQ(scores[1].reward, 6);
  EXPECT_TRUE(server.bodies().back().starts_with("{\"samples\":[{\"prompt\":")) << server.bodies().back();
}

TEST(RewardService, EveryFaultAloneIsUnscoredInTime) {
  FaultyServer server(1);
  CallOptions options = by_http(server);
  options.workers = 1;
  options.tries = 2;
  options.breaker_after = 1000;
  Judge judge({.rm_type = "remote_rm", .service = options});
  int64_t value = 0;
  for (const char* fault : {"delay", "reset", "5xx", "404", "redirect", "junk", "nan", "text", "null", "deep", "short",
                            "drip", "endless", "header", "mail", "both"}) {
    Score score;
    const double took = seconds_of([&] { score = judged(judge, wish(value++, fault)); });
    EXPECT_FALSE(score.reward.has_value()) << fault << ": " << *score.reward;
    EXPECT_FALSE(score.error.empty()) << fault;
    // Two tries of 0.3 s and a wait of at most 0.015 s between them; the rest is for a busy machine.
    EXPECT_LT(took, 1.5) << fault;
    EXPECT_EQ(judged(judge, wish(value)).reward, value) << "after " << fault;
    value++;
  }
  // What cannot get better is not asked twice.
  const int64_t before = server.requests();
  judged(judge, wish(value++, "404"));
  judged(judge, wish(value++, "null"));
  EXPECT_EQ(server.requests(), before + 2);
}

TEST(RewardService, ManyCallsWithFaults) {
  FaultyServer server(0.8);
  CallOptions options = by_http(server);
  options.workers = 16;
  options.timeout = 0.5;
  options.breaker_after = 1 << 20;
  options.most_bytes = 1 << 20;
  Judge judge({.rm_type = "remote_rm", .service = options});
  const char* faults[] = {"delay", "reset", "5xx", "junk", "endless", "drip", "short"};
  const int64_t calls = stress_calls(1000);
  // Of the faults three in four pass within the tries.
  std::vector<int> times;
  std::vector<uint64_t> tickets;
  for (int64_t i = 0; i < calls; i++) {
    const RngKey key{.seed = 6, .position = static_cast<uint32_t>(i), .purpose = Purpose::data};
    const bool bad = random_word(key, 0) % 5 == 0;
    times.push_back(!bad ? 0 : random_word(key, 1) % 4 == 0 ? 1 << 30 : 1 + static_cast<int>(random_word(key, 2) % 3));
    const char* fault = faults[random_word(key, 3) % std::size(faults)];
    tickets.push_back(judge.submit({query(bad ? wish(i, fault, times.back()) : wish(i))}));
  }
  int64_t unscored = 0;
  for (int64_t i = 0; i < calls; i++) {
    const auto n = static_cast<size_t>(i);
    const Score score = judge.wait(tickets[n])[0];
    if (times[n] > 4) {
      EXPECT_FALSE(score.reward.has_value()) << i;
      unscored++;
    } else {
      EXPECT_EQ(score.reward, static_cast<double>(i)) << score.error;
    }
  }
  EXPECT_GT(unscored, calls / 50);
  EXPECT_EQ(judge.stats().unanswered, unscored);
}

TEST(RewardService, ThatIsAwayIsSoonNotAsked) {
  std::string url;
  {
    const FaultyServer server(0);
    url = server.url();  // nobody listens there any more
  }
  CallOptions options;
  options.url = url;
  options.workers = 2;
  options.timeout = 0.3;
  options.backoff = 0.005;
  options.breaker_after = 6;
  options.breaker_rest = 60;
  Judge judge({.rm_type = "remote_rm", .service = options});
  std::vector<uint64_t> tickets;
  for (int i = 0; i < 50; i++) tickets.push_back(judge.submit({query(wish(i))}));
  std::string last;
  for (const uint64_t ticket : tickets) {
    const Score score = judge.wait(ticket)[0];
    EXPECT_FALSE(score.reward.has_value());
    last = score.error;
  }
  EXPECT_NE(last.find("not asked: 6 calls in a row"), std::string::npos) << last;
  EXPECT_LE(judge.stats().tries, 7);
  EXPECT_EQ(judge.stats().breaker_opened, 1);
}

TEST(RewardService, IsAskedAgainWhenItIsBack) {
  FaultyServer server(0);
  CallOptions options = by_http(server);
  options.workers = 1;
  options.tries = 1;
  options.breaker_after = 3;
  options.breaker_rest = 0.1;
  Judge judge({.rm_type = "remote_rm", .service = options});
  for (int i = 0; i < 5; i++) EXPECT_FALSE(judged(judge, wish(i, "5xx")).reward.has_value());
  EXPECT_EQ(server.requests(), 3);
  std::this_thread::sleep_for(std::chrono::milliseconds(150));
  EXPECT_EQ(judged(judge, wish(7)).reward, 7);
  EXPECT_EQ(judged(judge, wish(8)).reward, 8);
}

TEST(RewardService, UrlsThatAreNoneAreRefused) {
  for (const char* url : {"localhost:80", "ftp://x/", "http://", "http:///path", "http://user:pw@host/", "http://a b/",
                          "http://x:0/", "http://x:99999/", "http://x:a/", "http://[::1", "http://::1/"}) {
    CallOptions options;
    options.url = url;
    try {
      const Judge judge({.rm_type = "remote_rm", .service = options});
      ADD_FAILURE() << url;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Exit::usage) << url;
    }
  }
}

#endif

TEST(Judge, ChecksTheRulesOfRows) {
  Judge judge({.rm_type = "deepscaler"});
  judge.check("{}", "row");
  judge.check("{\"rm_type\":\"dapo\"}", "row");
  for (const char* metadata : {"{\"rm_type\":\"dappo\"}", "{\"rm_type\":\"remote_rm\"}"}) {
    try {
      judge.check(metadata, "file:3");
      ADD_FAILURE() << metadata;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Exit::input);
      EXPECT_NE(std::string(e.what()).find("file:3"), std::string::npos) << e.what();
    }
  }
  RewardQuery q{.response = "Answer: 42",
                .label = {LabelValue::Kind::string, "42", 0},
                .metadata = "{\"rm_type\":\"dapo\"}",
                .reward_key = "acc"};
  EXPECT_EQ(judge.wait(judge.submit({q}))[0].reward, 1);
  EXPECT_THROW(Judge({.rm_type = "remote_rm"}), Error);
  EXPECT_THROW(Judge({.rm_type = "deepscalar"}), Error);
}

TEST(Rewards, AreReadFromAnswers) {
  const auto one = [](const char* text, const char* key = "") { return read_rewards(text, 1, key, false)[0]; };
  EXPECT_EQ(one("1").reward, 1);
  EXPECT_EQ(one(" -2.5e-1 ").reward, -0.25);
  EXPECT_EQ(one("true").reward, 1);
  EXPECT_EQ(one("{\"reward\":3}").reward, 3);
  EXPECT_EQ(one("{\"score\":3,\"acc\":1}", "acc").reward, 1);
  EXPECT_EQ(one("{\"id\":1,\"reward\":{\"score\":3,\"acc\":1}}", "acc").reward, 1);
  for (const char* text : {"null", "\"1\"", "[1]", "{}", "1e999", "NaN", "Infinity", "", "1 2", "{\"reward\":null}",
                           "{\"score\":1}", "{\"reward\":\"1\"}"}) {
    const Score score = one(text);
    EXPECT_FALSE(score.reward.has_value()) << text;
    EXPECT_FALSE(score.error.empty()) << text;
  }
  EXPECT_NE(one("{\"score\":1}").error.find("--reward-key"), std::string::npos);
}

}  // namespace
}  // namespace furlong
