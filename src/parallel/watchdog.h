// Ranks that watch each other beside their exchanges: a thread of each rank sends a word a second to rank 0 and hears
// one from it, over TCP of its own, so that neither a rank that hangs inside MPI nor one whose MPI is broken is missed.
// Whoever notices a lost or stuck rank names it, and all ranks end with exit code 6.
#pragma once
#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "parallel/watch_wire.h"

namespace furlong {

struct WatchLimits {
  double silence = 20;  // seconds without a word after which a rank is lost
  double start = 60;    // seconds for all ranks to reach rank 0
};

// Something else whose trouble ends a run (NCCL's communicators); asked once a second from the watchdog's thread.
class Watched {
 public:
  virtual ~Watched() = default;
  // What is wrong, or "".
  virtual std::string trouble() = 0;
  // The process is about to end: lets go of what waits for other ranks.
  virtual void abort() noexcept = 0;
};

class Watchdog {
 public:
  struct Me {
    int rank = 0, size = 1, local_rank = 0;
    std::string host;
  };
  // How the reason is printed and the process ended.
  struct Ending {
    std::function<void(const std::string& line)> say;
    std::function<void(int code)> end;
  };

  // Starts to watch. `socket`: rank 0's listening one; others connect by the card. Throws Error(Exit::lost) when rank 0
  // cannot be reached. Of the thread that will do the exchanges. SIGTERM must be blocked in all threads of the process:
  // it is taken here.
  Watchdog(Me me, WatchLimits limits, const watch::Card& card, watch::Socket socket, Ending ending = of_the_process());
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // What this rank does from now on.
  void phase(std::string_view what);
  // From now on this rank waits for `rank` (watch::any_rank: it cannot know for whom), or, no_rank, no longer.
  void waits_for(int rank) { waits_for_ = rank; }
  // One more exchange is done.
  void exchanged() { exchanges_.fetch_add(1, std::memory_order_relaxed); }

  // A wait has run out: the run ends with the name of the rank that keeps the others waiting. Returns when nobody has
  // ended it for some seconds.
  void stuck(int rank, double seconds);
  // This rank ends by itself with this exit code. True when rank 0 has printed the message.
  bool end_with(int code, std::string_view message) noexcept;
  // All ranks have done their work: from now on nobody who leaves is missed.
  void leave();

  void add(Watched*);
  void remove(Watched*);

  static Ending of_the_process();  // into the log; at once, with no destructors

 private:
  struct Peer {
    watch::Socket socket;
    watch::Frame last;  // its latest word
    watch::Clock::time_point heard;
    bool here = false, left = false;
  };
  struct Stranger {
    watch::Socket socket;
    watch::Clock::time_point since;
  };

  void run();
  void wait_for_news(double seconds);
  void read_signals();
  void read_requests();
  void admit_strangers();
  void read_peers();
  void handle(int rank, const watch::Frame& frame);
  void beat();
  void check_silence(watch::Clock::time_point now, bool was_asleep);
  void check_watched();
  void lost(int rank, const std::string& how);
  void judge_stuck(const watch::Frame& report);
  void rank_failed(const watch::Frame& report);
  bool fails_alike(const watch::Frame& report);
  // Rank 0: all end for this reason. at_fault: the rank that ends with `code` by itself, or no_rank.
  void verdict(const std::string& text, int at_fault, int code);
  void obey(const watch::Frame& frame);
  void finish(int code, const std::string& line);
  void pause_for_the_one_at_fault();

  watch::Frame word(watch::Kind kind);
  std::string describe(int rank);
  std::string what_all_do();

  Me me_;
  WatchLimits limits_;
  watch::Card card_;
  watch::Socket listening_;
  Ending ending_;
  std::vector<Peer> peers_;  // rank 0: of every rank; others: rank 0 alone
  std::vector<Stranger> strangers_;
  watch::Clock::time_point started_, told_to_stop_{}, leaving_since_{};

  std::mutex mutex_;  // guards the next ones
  std::string phase_ = "starting";
  watch::Clock::time_point phase_since_;
  std::vector<watch::Frame> requests_;
  std::vector<Watched*> watched_;
  std::string verdict_;       // why the run ends
  bool has_verdict_ = false;  //
  bool finishing_ = false;    // this thread is ending the process
  std::atomic<int> waits_for_{watch::no_rank};
  std::atomic<uint64_t> exchanges_{0};
  std::atomic<bool> failing_{false}, leaving_{false}, stop_{false}, ended_{false};
  int wake_ = -1, signals_ = -1;
  std::thread thread_;
};

}  // namespace furlong
