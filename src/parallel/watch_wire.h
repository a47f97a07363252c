// What the ranks' watchdogs say to each other over TCP: frames of one fixed size, so that there is nothing to parse and
// nothing whose size a stranger could choose. Ranks of one run are of one build and one byte order.
#pragma once
#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

namespace furlong::watch {

using Clock = std::chrono::steady_clock;

enum class Kind : uint8_t {
  hello = 1,    // the first frame of a connection: text holds the run's secret (a rank's half, then rank 0's)
  alive = 2,    // every second, both ways
  stuck = 3,    // to rank 0: a wait of this rank has run out
  failed = 4,   // to rank 0: this rank ends with an error (code, text)
  verdict = 5,  // from rank 0: why all end
  bye = 6,      // this rank ends as it should
};

struct Frame {
  static constexpr uint32_t right_magic = 0x57525546;  // "FURW"
  static constexpr uint16_t right_version = 1;

  uint32_t magic = right_magic;
  uint16_t version = right_version;
  Kind kind = Kind::alive;
  uint8_t code = 0;        // of failed and verdict: the exit code of the rank at fault
  int32_t rank = 0;        // the sender
  int32_t waits_for = -1;  // a rank, any_rank or no_rank
  uint32_t in_phase = 0;   // seconds
  uint32_t waited = 0;     // seconds
  uint64_t exchanges = 0;  // done so far
  char host[64] = {};
  char phase[64] = {};
  char text[352] = {};
};
static_assert(sizeof(Frame) == 512 && std::is_trivially_copyable_v<Frame>);

constexpr int no_rank = -1, any_rank = -2;

// Fills a field of a frame, cut to its size; reads it back.
template <size_t n>
void put(char (&field)[n], std::string_view text) {
  const size_t used = std::min(n - 1, text.size());
  std::copy_n(text.data(), used, field);
  std::fill(field + used, field + n, '\0');
}
template <size_t n>
std::string get(const char (&field)[n]) {
  return {field, std::find(field, field + n, '\0')};
}

// Where rank 0 listens and the run's secret. Travels to the other ranks by MPI, as bytes.
struct Card {
  static constexpr size_t half_secret = 16, most_addresses = 16;
  uint16_t port = 0;
  uint16_t addresses = 0;
  uint32_t address[most_addresses] = {};  // IPv4, in network order
  char secret[2 * half_secret] = {};      // the first half is a rank's to show, the second rank 0's answer
};

// A socket with an owner, in non-blocking mode.
class Socket {
 public:
  Socket() = default;
  explicit Socket(int fd) : fd_(fd) {}
  ~Socket() { close(); }
  Socket(Socket&& other) noexcept : fd_(std::exchange(other.fd_, -1)), in_(other.in_), got_(other.got_) {}
  Socket& operator=(Socket&& other) noexcept;
  Socket(const Socket&) = delete;
  Socket& operator=(const Socket&) = delete;

  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  void close();

  // Sends a frame whole, or nothing (false) when the peer is gone or has long read nothing.
  bool send(const Frame&);
  // The next frame that has come whole, if any. Sets `ended` when the connection is over or speaks another language.
  std::optional<Frame> receive(bool& ended);

 private:
  int fd_ = -1;
  std::array<char, sizeof(Frame)> in_{};
  size_t got_ = 0;
};

// Rank 0's listening socket, on the loopback when all ranks are on one host, and its card. Throws
// Error(Exit::resources).
Socket listen_for_ranks(bool one_host, Card& card);
// A new connection, if one is waiting.
Socket accept_one(const Socket& listening);
// Connects to rank 0 and shows the first half of the secret; returns when the second half has come back. Throws
// Error(Exit::lost) when that fails until the deadline.
Socket connect_to_first(const Card& card, Frame hello, Clock::time_point deadline);

// Compares in a time that does not depend on the bytes.
bool same_secret(const char* a, const char* b, size_t bytes);

}  // namespace furlong::watch
