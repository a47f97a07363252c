// Watchdogs of several ranks in one process: what is said and how each would end.
#include "parallel/watchdog.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <memory>

#include "base/error.h"

namespace furlong {
namespace {

using watch::Clock;

struct Watchers {
  struct Rank {
    std::mutex mutex;
    std::string said;
    std::atomic<int> code{-1};
    std::unique_ptr<Watchdog> dog;
  };
  watch::Card card;
  std::vector<std::unique_ptr<Rank>> ranks;
  WatchLimits limits{.silence = 3, .start = 5};
  int size;

  explicit Watchers(int n, bool all = true) : size(n) {
    for (int r = 0; r < n; r++) ranks.push_back(std::make_unique<Rank>());
    auto socket = watch::listen_for_ranks(true, card);
    start(0, std::move(socket));
    for (int r = 1; r < n && all; r++) start(r, {});
  }
  void start(int r, watch::Socket socket) {
    Rank& rank = *ranks[static_cast<size_t>(r)];
    const Watchdog::Ending ending{.say =
                                      [&rank](const std::string& line) {
                                        const std::lock_guard lock(rank.mutex);
                                        rank.said += line + "\n";
                                      },
                                  .end = [&rank](int code) { rank.code = code; }};
    rank.dog = std::make_unique<Watchdog>(
        Watchdog::Me{.rank = r, .size = size, .local_rank = r, .host = "host" + std::to_string(r)}, limits, card,
        std::move(socket), ending);
  }
  Watchdog& dog(int r) { return *ranks[static_cast<size_t>(r)]->dog; }
  std::string said(int r) {
    const std::lock_guard lock(ranks[static_cast<size_t>(r)]->mutex);
    return ranks[static_cast<size_t>(r)]->said;
  }
  // The exit code of a rank, once it ends; -1 when it does not within some seconds.
  int code(int r, double patience = 15) {
    const auto& code = ranks[static_cast<size_t>(r)]->code;
    for (const auto begun = Clock::now();
         code < 0 && std::chrono::duration<double>(Clock::now() - begun).count() < patience;)
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    return code;
  }
};

#define EXPECT_SAYS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

TEST(Watchdog, NamesARankWhoseProcessIsGone) {
  Watchers all(4);
  all.dog(2).phase("training step 7");
  for (int i = 0; i < 5; i++) all.dog(2).exchanged();
  std::this_thread::sleep_for(std::chrono::milliseconds(1300));  // the word of it goes out once a second
  all.ranks[2]->dog.reset();
  EXPECT_EQ(all.code(0), 6);
  EXPECT_EQ(all.code(1), 6);
  EXPECT_EQ(all.code(3), 6);
  EXPECT_SAYS(all.said(0), "lost rank 2 (host2), in `training step 7` for ");
  EXPECT_SAYS(all.said(0), "after 5 exchanges: its connection closed");
  EXPECT_EQ(all.said(1) + all.said(3), "");  // rank 0 has said it
}

TEST(Watchdog, NamesRank0) {
  Watchers all(3);
  all.dog(0).phase("saving");
  std::this_thread::sleep_for(std::chrono::milliseconds(1300));
  all.ranks[0]->dog.reset();
  EXPECT_EQ(all.code(1), 6);
  EXPECT_EQ(all.code(2), 6);
  EXPECT_SAYS(all.said(1), "rank 1 (host1): lost rank 0 (host0), in `saving`");
}

TEST(Watchdog, NamesARankThatIsSilent) {
  Watchers all(2, false);
  watch::Frame hello;
  hello.rank = 1;
  watch::put(hello.host, "quiet");
  watch::put(hello.phase, "nothing");
  const auto socket = watch::connect_to_first(all.card, hello, Clock::now() + std::chrono::seconds(5));
  EXPECT_EQ(all.code(0), 6);
  EXPECT_SAYS(all.said(0), "lost rank 1 (quiet), in `nothing` for 3 s");
  EXPECT_SAYS(all.said(0), "no word from it for 3 s");
}

TEST(Watchdog, NamesARankThatNeverCame) {
  Watchers all(2, false);
  EXPECT_EQ(all.code(0), 6);
  EXPECT_SAYS(all.said(0), "lost rank 1: it has not reached rank 0 within 5 s");
}

// 1 waits for 3, which waits for 2, which waits for nobody: 2 is at fault.
TEST(Watchdog, FollowsWhoWaitsForWhom) {
  Watchers all(4);
  all.dog(2).phase("sorting");
  all.dog(3).waits_for(2);
  all.dog(1).waits_for(3);
  all.dog(0).waits_for(watch::any_rank);
  std::this_thread::sleep_for(std::chrono::milliseconds(1300));
  all.dog(1).stuck(3, 600);
  for (int r = 0; r < 4; r++) EXPECT_EQ(all.code(r), 6) << r;
  EXPECT_SAYS(all.said(0), "rank 2 (host2), in `sorting` for ");
  EXPECT_SAYS(all.said(0), "keeps the others waiting: rank 1 has waited 600 s");
}

TEST(Watchdog, OfAllWhoWaitForEveryoneFindsTheOneWhoDoesNot) {
  Watchers all(3);
  all.dog(0).phase("grading");
  all.dog(1).waits_for(watch::any_rank);
  all.dog(2).waits_for(watch::any_rank);
  std::this_thread::sleep_for(std::chrono::milliseconds(1300));
  all.dog(2).stuck(watch::any_rank, 30);
  EXPECT_EQ(all.code(0), 6);
  EXPECT_SAYS(all.said(0), "rank 0 (host0), in `grading` for ");
}

TEST(Watchdog, ACircleIsNobodysFault) {
  Watchers all(2);
  all.dog(0).waits_for(1);
  all.dog(1).waits_for(0);
  std::this_thread::sleep_for(std::chrono::milliseconds(1300));
  all.dog(1).stuck(0, 30);
  EXPECT_EQ(all.code(0), 6);
  EXPECT_SAYS(all.said(0), "nobody can go on; ranks 0 1 in `starting`");
}

TEST(Watchdog, ARankThatFailsTellsTheOthers) {
  Watchers all(3);
  all.dog(1).phase("reading");
  EXPECT_TRUE(all.dog(1).end_with(3, "prompts.jsonl:7: no label"));  // rank 0 has printed it
  EXPECT_SAYS(all.said(0), "rank 1 (host1), in `reading` for ");
  EXPECT_SAYS(all.said(0), "prompts.jsonl:7: no label");
  EXPECT_EQ(all.code(0), 6);
  EXPECT_EQ(all.code(2), 6);
  EXPECT_EQ(all.ranks[1]->code, -1);  // it ends itself, with its own code
}

TEST(Watchdog, Rank0FailsByItselfToo) {
  Watchers all(2);
  EXPECT_FALSE(all.dog(0).end_with(4, "disk full"));  // its own thread prints it
  EXPECT_EQ(all.said(0), "");
  EXPECT_EQ(all.code(1), 6);
  EXPECT_EQ(all.ranks[0]->code, -1);
}

// A missing file is missing for all: rank 0 says so, in its own words and once.
TEST(Watchdog, WhatIsWrongForAllIsSaidOnce) {
  Watchers all(4);
  const std::string message = "cannot read prompts.jsonl: No such file or directory" + std::string(500, '!');
  std::vector<std::thread> threads;
  std::array<bool, 4> printed{};
  for (const size_t r : {2u, 1u, 3u, 0u}) {
    threads.emplace_back([&, r] { printed[r] = all.dog(static_cast<int>(r)).end_with(3, message); });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(printed, (std::array<bool, 4>{false, true, true, true}));
  EXPECT_EQ(all.said(0), "");
  for (int r = 0; r < 4; r++) EXPECT_EQ(all.ranks[static_cast<size_t>(r)]->code, -1) << r;
}

TEST(Watchdog, NobodyIsMissedAtTheEnd) {
  Watchers all(3);
  for (int r = 0; r < 3; r++) all.dog(r).leave();
  for (const int r : {1, 0, 2}) all.ranks[static_cast<size_t>(r)]->dog.reset();
  for (int r = 0; r < 3; r++) EXPECT_EQ(all.ranks[static_cast<size_t>(r)]->code, -1) << all.said(r);
}

// Whoever does not know the secret, or sends something else, is sent away, and the run goes on.
TEST(Watchdog, StrangersAreSentAway) {
  Watchers all(3, false);
  all.start(1, {});
  const auto connected = [&] {
    const int fd = socket(AF_INET, SOCK_STREAM, 0);
    const timeval patience{.tv_sec = 5};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(all.card.port);
    to.sin_addr.s_addr = all.card.address[0];
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
    return fd;
  };
  watch::Frame verdict;
  verdict.kind = watch::Kind::failed;
  verdict.rank = 2;
  watch::Frame hello;
  hello.kind = watch::Kind::hello;
  hello.rank = 2;  // which has not come yet
  watch::put(hello.text, "open sesame");
  watch::Frame far = hello;
  far.rank = 1 << 20;
  std::copy_n(all.card.secret, watch::Card::half_secret, far.text);
  watch::Frame again = far;  // the right secret, but rank 1 is here already
  again.rank = 1;
  watch::Frame old = far;
  old.rank = 2;
  old.version = 7;
  for (const auto& frame : {verdict, hello, far, again, old}) {
    const int fd = connected();
    EXPECT_EQ(send(fd, &frame, sizeof frame, MSG_NOSIGNAL), static_cast<ssize_t>(sizeof frame));
    char byte;
    EXPECT_LE(recv(fd, &byte, 1, 0), 0);  // closed, and nothing said
    close(fd);
  }
  const int fd = connected();
  const std::string http = "GET / HTTP/1.1\r\n" + std::string(2000, 'x');
  EXPECT_GT(send(fd, http.data(), http.size(), MSG_NOSIGNAL), 0);
  char byte;
  EXPECT_LE(recv(fd, &byte, 1, 0), 0);
  close(fd);
  const int silent = connected();
  all.start(2, {});  // the true one is let in
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_EQ(all.ranks[0]->code, -1) << all.said(0);
  EXPECT_EQ(all.ranks[1]->code, -1);
  close(silent);
}

TEST(Watchdog, WhoDoesNotFindRank0SaysWhere) {
  watch::Card card;
  auto socket = watch::listen_for_ranks(true, card);
  socket.close();
  watch::Frame hello;
  hello.rank = 3;
  watch::put(hello.host, "far");
  try {
    watch::connect_to_first(card, hello, Clock::now() + std::chrono::milliseconds(500));
    FAIL() << "connected";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::lost);
    EXPECT_SAYS(std::string(e.what()), "rank 3 (far) cannot reach rank 0 at 127.0.0.1:" + std::to_string(card.port));
  }
}

class BrokenDevice : public Watched {
 public:
  std::string trouble() override { return broken ? "the device hangs" : ""; }
  void abort() noexcept override { aborted = true; }
  std::atomic<bool> broken{false}, aborted{false};
};

TEST(Watchdog, AsksWhatElseMayHang) {
  Watchers all(2);
  BrokenDevice first, second;
  all.dog(0).add(&first);
  all.dog(1).add(&second);
  all.dog(1).phase("rollout");
  std::this_thread::sleep_for(std::chrono::milliseconds(1300));
  EXPECT_EQ(all.ranks[0]->code, -1);
  second.broken = true;
  EXPECT_EQ(all.code(0), 6);
  EXPECT_EQ(all.code(1), 6);
  EXPECT_TRUE(first.aborted);
  EXPECT_TRUE(second.aborted);
  EXPECT_SAYS(all.said(0), "rank 1: the device hangs; rank 0 in `starting`, rank 1 in `rollout`");
}

}  // namespace
}  // namespace furlong
