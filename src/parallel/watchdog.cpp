#include "parallel/watchdog.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>

#include "base/error.h"
#include "base/log.h"

namespace furlong {
namespace {

using watch::any_rank;
using watch::Clock;
using watch::Frame;
using watch::Kind;
using watch::no_rank;

constexpr double beat_seconds = 1, handshake_seconds = 10;
// How long a rank that ends by itself waits for rank 0's answer, and the others for its exit code to be the first.
constexpr double answer_seconds = 5, grace_seconds = 1.5, own_end_seconds = 10;
// A launcher that tells all ranks to stop has often seen one of them die: the reason is looked for so long.
constexpr double reason_seconds = 0.5;
constexpr double abort_seconds = 3, finalize_seconds = 60;
constexpr size_t most_strangers = 64;  // beside the ranks that are yet to come
// Ranks that fail with the same words within this time fail for the same reason.
constexpr double alike_seconds = 0.3;
constexpr size_t alike_bytes = 120;
constexpr int told_to_stop_code = 128 + SIGTERM;

double seconds_between(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}
double seconds_since(Clock::time_point from) { return seconds_between(from, Clock::now()); }
void sleep_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

}  // namespace

Watchdog::Watchdog(Me me, WatchLimits limits, const watch::Card& card, watch::Socket socket, Ending ending)
    : me_(std::move(me)),
      limits_(limits),
      card_(card),
      ending_(std::move(ending)),
      started_(Clock::now()),
      phase_since_(started_) {
  peers_.resize(me_.rank == 0 ? static_cast<size_t>(me_.size) : 1);
  for (auto& peer : peers_) peer.heard = started_;
  if (me_.rank == 0) {
    listening_ = std::move(socket);
  } else {
    Frame hello = word(Kind::hello);
    const auto patience = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(limits_.start));
    peers_[0].socket = watch::connect_to_first(card_, hello, started_ + patience);
    peers_[0].here = true;
    peers_[0].heard = Clock::now();
  }
  wake_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  signals_ = signalfd(-1, &term, SFD_NONBLOCK | SFD_CLOEXEC);
  if (wake_ < 0 || signals_ < 0) fail(Exit::resources, "cannot make the watchdog's files: too many are open");
  thread_ = std::thread([this] { run(); });
}

Watchdog::~Watchdog() {
  stop_ = true;
  eventfd_write(wake_, 1);
  if (thread_.joinable()) thread_.join();
  close(wake_);
  close(signals_);
}

Watchdog::Ending Watchdog::of_the_process() {
  return {[](const std::string& line) { log::error("{}", line); }, [](int code) { std::_Exit(code); }};
}

// ---- what the rank itself says

void Watchdog::phase(std::string_view what) {
  const std::lock_guard lock(mutex_);
  phase_ = what;
  phase_since_ = Clock::now();
}

void Watchdog::stuck(int rank, double seconds) {
  Frame frame = word(Kind::stuck);
  frame.waits_for = rank;
  frame.waited = static_cast<uint32_t>(seconds);
  {
    const std::lock_guard lock(mutex_);
    requests_.push_back(frame);
  }
  eventfd_write(wake_, 1);
  for (const auto begun = Clock::now(); seconds_since(begun) < answer_seconds && !ended_;) sleep_for(0.01);
}

bool Watchdog::end_with(int code, std::string_view message) noexcept {
  try {
    Frame frame = word(Kind::failed);
    frame.code = static_cast<uint8_t>(code);
    watch::put(frame.text, message);
    bool too_late;
    {
      const std::lock_guard lock(mutex_);
      too_late = finishing_;
      failing_ = !too_late;
      requests_.push_back(frame);
    }
    // The run is ending already, and its end (an aborted exchange) is what this error comes from.
    for (; too_late; sleep_for(0.01)) {
      if (ended_) return true;
    }
    eventfd_write(wake_, 1);
    for (const auto begun = Clock::now(); seconds_since(begun) < answer_seconds;) {
      {
        const std::lock_guard lock(mutex_);
        if (has_verdict_)
          return me_.rank != 0 && verdict_.find(watch::get(frame.text).substr(0, alike_bytes)) != std::string::npos;
      }
      sleep_for(0.005);
    }
  } catch (...) {  // the rank ends in any case
  }
  return false;
}

void Watchdog::leave() {
  leaving_since_ = Clock::now();
  leaving_ = true;
  eventfd_write(wake_, 1);
}

void Watchdog::add(Watched* watched) {
  const std::lock_guard lock(mutex_);
  watched_.push_back(watched);
}

void Watchdog::remove(Watched* watched) {
  const std::lock_guard lock(mutex_);
  std::erase(watched_, watched);
}

Frame Watchdog::word(Kind kind) {
  Frame frame;
  frame.kind = kind;
  frame.rank = me_.rank;
  frame.waits_for = waits_for_;
  frame.exchanges = exchanges_;
  watch::put(frame.host, me_.host);
  const std::lock_guard lock(mutex_);
  watch::put(frame.phase, phase_);
  frame.in_phase = static_cast<uint32_t>(seconds_since(phase_since_));
  return frame;
}

// ---- the thread

void Watchdog::run() {
  bool said_bye = false;
  auto next_beat = Clock::now(), turn = next_beat;
  while (!stop_ && !ended_) {
    wait_for_news(std::max(0.0, seconds_between(Clock::now(), next_beat)));
    const auto now = Clock::now();
    // A process that was stopped itself has heard nobody; it reads what has come before it judges.
    const bool was_asleep = seconds_between(turn, now) > beat_seconds + limits_.silence / 2;
    turn = now;
    read_signals();
    if (me_.rank == 0) admit_strangers();
    read_peers();
    read_requests();
    if (leaving_) {
      if (!said_bye) {
        for (auto& peer : peers_) peer.socket.send(word(Kind::bye));
        said_bye = true;
      }
      if (seconds_since(leaving_since_) > finalize_seconds) finish(6, "MPI_Finalize does not return");
      next_beat = now + std::chrono::seconds(1);
      continue;
    }
    check_silence(now, was_asleep);
    if (now < next_beat) continue;
    next_beat = now + std::chrono::milliseconds(static_cast<int64_t>(1000 * beat_seconds));
    beat();
    check_watched();
  }
}

void Watchdog::wait_for_news(double seconds) {
  std::vector<pollfd> files = {{wake_, POLLIN, 0}, {signals_, POLLIN, 0}};
  const auto add = [&](const watch::Socket& socket) {
    if (socket.open()) files.push_back({socket.fd(), POLLIN, 0});
  };
  add(listening_);
  for (const auto& stranger : strangers_) add(stranger.socket);
  for (const auto& peer : peers_) add(peer.socket);
  if (told_to_stop_ != Clock::time_point{}) seconds = std::min(seconds, 0.05);
  poll(files.data(), files.size(), static_cast<int>(1000 * seconds) + 1);
  eventfd_t news;
  eventfd_read(wake_, &news);
}

// A launcher ends all ranks when one of them died. That one's name comes by its closed connection, if it is given a
// moment; else this rank ends for no other reason than that it was told to.
void Watchdog::read_signals() {
  signalfd_siginfo info;
  if (read(signals_, &info, sizeof info) == static_cast<ssize_t>(sizeof info) && told_to_stop_ == Clock::time_point{})
    told_to_stop_ = Clock::now();
  if (told_to_stop_ == Clock::time_point{} || seconds_since(told_to_stop_) < reason_seconds) return;
  if (leaving_) return;
  const std::string line = fmt::format("rank {} ({}) was told to stop (SIGTERM)", me_.rank, me_.host);
  if (me_.rank == 0) {
    verdict(line, 0, told_to_stop_code);
    finish(told_to_stop_code, "");
  } else {
    Frame frame = word(Kind::failed);
    frame.code = told_to_stop_code;
    watch::put(frame.text, "told to stop (SIGTERM)");
    peers_[0].socket.send(frame);
    finish(told_to_stop_code, "");
  }
}

void Watchdog::read_requests() {
  std::vector<Frame> requests;
  {
    const std::lock_guard lock(mutex_);
    requests.swap(requests_);
  }
  for (const auto& frame : requests) {
    if (me_.rank != 0) {
      peers_[0].socket.send(frame);
    } else if (frame.kind == Kind::stuck) {
      judge_stuck(frame);
    } else {
      rank_failed(frame);
    }
  }
}

void Watchdog::admit_strangers() {
  for (watch::Socket socket = accept_one(listening_); socket.open(); socket = accept_one(listening_)) {
    if (strangers_.size() < peers_.size() + most_strangers) strangers_.push_back({std::move(socket), Clock::now()});
  }
  for (auto& stranger : strangers_) {
    bool ended = false;
    if (const auto frame = stranger.socket.receive(ended)) {
      const bool right = frame->kind == Kind::hello && frame->rank > 0 && frame->rank < me_.size &&
                         watch::same_secret(frame->text, card_.secret, watch::Card::half_secret);
      if (right && !peers_[static_cast<size_t>(frame->rank)].here) {
        Frame answer = word(Kind::hello);
        std::copy_n(card_.secret + watch::Card::half_secret, watch::Card::half_secret, answer.text);
        stranger.socket.send(answer);
        Peer& peer = peers_[static_cast<size_t>(frame->rank)];
        peer.socket = std::move(stranger.socket);
        peer.last = *frame;
        peer.heard = Clock::now();
        peer.here = true;
        continue;
      }
      ended = true;
    }
    if (ended || seconds_since(stranger.since) > handshake_seconds) stranger.socket.close();
  }
  std::erase_if(strangers_, [](const Stranger& s) { return !s.socket.open(); });
}

void Watchdog::read_peers() {
  for (size_t i = 0; i < peers_.size() && !ended_; i++) {
    Peer& peer = peers_[i];
    if (!peer.here || peer.left) continue;
    bool ended = false;
    while (const auto frame = peer.socket.receive(ended)) {
      peer.heard = Clock::now();
      handle(static_cast<int>(i), *frame);
      if (ended_) return;
    }
    if (!ended) continue;
    peer.socket.close();
    if (!peer.left && !leaving_) lost(static_cast<int>(i), "its connection closed");
    peer.left = true;
  }
}

void Watchdog::handle(int rank, const Frame& frame) {
  Peer& peer = peers_[static_cast<size_t>(rank)];
  switch (frame.kind) {
    case Kind::alive: peer.last = frame; break;
    case Kind::bye: peer.left = true; break;
    case Kind::stuck:
      if (me_.rank == 0) judge_stuck(frame);
      break;
    case Kind::failed:
      if (me_.rank == 0) rank_failed(frame);
      break;
    case Kind::verdict:
      if (me_.rank != 0) obey(frame);
      break;
    case Kind::hello: break;
  }
}

void Watchdog::beat() {
  const Frame frame = word(Kind::alive);
  if (me_.rank == 0) peers_[0].last = frame;
  for (auto& peer : peers_) {
    if (peer.socket.open() && !peer.left) peer.socket.send(frame);
  }
}

void Watchdog::check_silence(Clock::time_point now, bool was_asleep) {
  for (size_t i = me_.rank == 0 ? 1 : 0; i < peers_.size() && !ended_; i++) {
    Peer& peer = peers_[i];
    if (was_asleep) peer.heard = now;
    if (peer.left) continue;
    if (!peer.here && seconds_since(started_) > limits_.start) {
      lost(static_cast<int>(i), fmt::format("it has not reached rank 0 within {:.0f} s", limits_.start));
    } else if (peer.here && seconds_since(peer.heard) > limits_.silence) {
      lost(static_cast<int>(i), fmt::format("no word from it for {:.0f} s", seconds_since(peer.heard)));
    }
  }
}

void Watchdog::check_watched() {
  std::string trouble;
  {
    const std::lock_guard lock(mutex_);
    for (auto* watched : watched_) {
      if (trouble.empty()) trouble = watched->trouble();
    }
  }
  if (trouble.empty() || ended_) return;
  Frame frame = word(Kind::stuck);
  frame.waits_for = any_rank;
  watch::put(frame.text, trouble);
  if (me_.rank == 0) {
    judge_stuck(frame);
  } else {
    peers_[0].socket.send(frame);
  }
}

// ---- judgement

std::string Watchdog::describe(int rank) {
  const Peer& peer = peers_[static_cast<size_t>(rank)];
  if (!peer.here && rank != 0) return fmt::format("rank {}", rank);
  const double silent = rank == me_.rank ? 0 : seconds_since(peer.heard);
  return fmt::format("rank {} ({}), in `{}` for {:.0f} s after {} exchanges", rank, watch::get(peer.last.host),
                     watch::get(peer.last.phase), peer.last.in_phase + silent, peer.last.exchanges);
}

std::string Watchdog::what_all_do() {
  std::vector<std::pair<std::string, std::vector<int>>> by_phase;  // in the order of their first ranks
  for (size_t i = 0; i < peers_.size(); i++) {
    const std::string phase = watch::get(peers_[i].last.phase);
    auto known = std::find_if(by_phase.begin(), by_phase.end(), [&](const auto& one) { return one.first == phase; });
    if (known == by_phase.end()) known = by_phase.insert(known, {phase, {}});
    known->second.push_back(static_cast<int>(i));
  }
  std::string text;
  for (const auto& [phase, ranks] : by_phase) {
    text += fmt::format("{}rank{} {}{} in `{}`", text.empty() ? "" : ", ", ranks.size() == 1 ? "" : "s",
                        fmt::join(ranks.begin(), ranks.begin() + std::min<std::ptrdiff_t>(8, std::ssize(ranks)), " "),
                        ranks.size() > 8 ? " ..." : "", phase);
  }
  return text;
}

void Watchdog::lost(int rank, const std::string& how) {
  const std::string text =
      fmt::format("lost {}: {}; all ranks end. Start the same command again to resume.", describe(rank), how);
  if (me_.rank == 0) {
    verdict(text, no_rank, 6);
    finish(6, "");
    return;
  }
  // Rank 0 itself: nobody can pass the word on. One rank of each host and the first few speak for all.
  finish(6, me_.local_rank == 0 || me_.rank <= 8 ? fmt::format("rank {} ({}): {}", me_.rank, me_.host, text) : "");
}

// Follows who waits for whom to the rank that does not wait.
void Watchdog::judge_stuck(const Frame& report) {
  if (me_.rank == 0) peers_[0].last = word(Kind::alive);
  const std::string said = watch::get(report.text);
  int rank = report.waits_for;
  for (int i = 0; i < me_.size && rank >= 0 && peers_[static_cast<size_t>(rank)].last.waits_for >= 0; i++)
    rank = peers_[static_cast<size_t>(rank)].last.waits_for;
  if (rank == any_rank || (rank >= 0 && peers_[static_cast<size_t>(rank)].last.waits_for == any_rank)) {
    // Everyone is waited for: it is the one that itself waits for nobody, if there is just one.
    rank = no_rank;
    int idle = 0;
    for (int r = 0; r < me_.size; r++) {
      if (r == report.rank || peers_[static_cast<size_t>(r)].last.waits_for != no_rank) continue;
      rank = r;
      idle++;
    }
    if (idle != 1) rank = no_rank;
  }
  std::string text;
  if (!said.empty()) {
    text = fmt::format("rank {}: {}; {}", report.rank, said, what_all_do());
  } else if (rank >= 0 && peers_[static_cast<size_t>(rank)].last.waits_for == no_rank) {
    text = fmt::format("{}, keeps the others waiting: rank {} has waited {} s", describe(rank), report.rank,
                       report.waited);
  } else {
    text = fmt::format("rank {} has waited {} s, and nobody can go on; {}", report.rank, report.waited, what_all_do());
  }
  verdict(text + "; all ranks end.", no_rank, 6);
  finish(6, "");
}

// What is wrong for one rank is often wrong for all; then rank 0 says it, once.
bool Watchdog::fails_alike(const Frame& report) {
  for (const auto begun = Clock::now(); seconds_since(begun) < alike_seconds; sleep_for(0.01)) {
    const std::lock_guard lock(mutex_);
    const auto own = std::find_if(requests_.begin(), requests_.end(), [&](const Frame& mine) {
      return mine.kind == Kind::failed && watch::get(mine.text) == watch::get(report.text);
    });
    if (own != requests_.end()) return true;
  }
  return false;
}

void Watchdog::rank_failed(const Frame& report) {
  if (ended_) return;
  if (report.rank != 0 && fails_alike(report)) return;  // rank 0's own report is next
  if (report.rank != 0) peers_[static_cast<size_t>(report.rank)].last = report;
  const std::string text = report.rank == 0 ? fmt::format("rank 0: {}", watch::get(report.text))
                                            : fmt::format("{}: {}", describe(report.rank), watch::get(report.text));
  verdict(text, report.rank, report.code);
  if (report.rank == 0) {
    ended_ = true;  // the thread that failed ends the process
    return;
  }
  pause_for_the_one_at_fault();
  finish(6, "");
}

void Watchdog::verdict(const std::string& text, int at_fault, int code) {
  {
    const std::lock_guard lock(mutex_);
    if (has_verdict_) return;
    verdict_ = text;
  }
  // Rank 0 prints its own errors where it catches them.
  if (at_fault != 0 || code == told_to_stop_code) ending_.say(text);
  Frame frame = word(Kind::verdict);
  frame.code = static_cast<uint8_t>(code);
  frame.waits_for = at_fault;
  watch::put(frame.text, text);
  for (auto& peer : peers_) {
    if (peer.socket.open() && !peer.left) peer.socket.send(frame);
  }
  const std::lock_guard lock(mutex_);
  has_verdict_ = true;
}

void Watchdog::obey(const Frame& frame) {
  {
    const std::lock_guard lock(mutex_);
    verdict_ = watch::get(frame.text);
    has_verdict_ = true;
  }
  if (frame.waits_for != no_rank) pause_for_the_one_at_fault();
  finish(frame.code == told_to_stop_code ? told_to_stop_code : 6, "");
}

// The launcher reports the exit code of the rank that ends first.
void Watchdog::pause_for_the_one_at_fault() {
  for (const auto begun = Clock::now(); seconds_since(begun) < grace_seconds && !stop_;) {
    signalfd_siginfo info;
    if (read(signals_, &info, sizeof info) > 0) return;
    sleep_for(0.02);
  }
}

void Watchdog::finish(int code, const std::string& line) {
  if (ended_) return;
  std::vector<Watched*> watched;
  for (const auto begun = Clock::now();; sleep_for(0.02)) {
    // A rank whose own thread has failed is ended by that, with a code of its own.
    if (stop_) return;
    const std::lock_guard lock(mutex_);
    if (failing_ && seconds_since(begun) < own_end_seconds) continue;
    finishing_ = true;
    watched = watched_;
    break;
  }
  if (!line.empty()) ending_.say(line);
  if (!watched.empty()) {
    // An abort may itself wait for a broken device.
    auto done = std::make_shared<std::atomic<bool>>(false);
    std::thread([watched, done] {
      for (auto* one : watched) one->abort();
      *done = true;
    }).detach();
    for (const auto begun = Clock::now(); seconds_since(begun) < abort_seconds && !*done;) sleep_for(0.01);
  }
  ending_.end(code);
  ended_ = true;
}

}  // namespace furlong
