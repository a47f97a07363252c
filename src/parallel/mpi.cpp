#include "parallel/mpi.h"

#include "base/error.h"

#ifndef FURLONG_MPI
namespace furlong {

bool mpi_built() { return false; }

std::unique_ptr<World> mpi_world(const MpiOptions& options) {
  if (options.ranks <= 1) return solo_world();
  fail(Exit::usage,
       "{} ranks were started, and this program was built without MPI: build it with -DFURLONG_MPI=ON (Debian: "
       "libopenmpi-dev), or start one",
       options.ranks);
}

}  // namespace furlong
#else

#define OMPI_SKIP_MPICXX 1
#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "tensor/copy.h"

namespace furlong {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int tensor_tag = 1;
// Bytes of a rank that travel in the first round of gather_bytes.
constexpr size_t slot_bytes = 256;
constexpr size_t most_gathered = size_t{1} << 30;
// A wait that takes longer than this is told to the watchdog.
constexpr double worth_telling = 0.05;
// Broken MPI most often means that another rank is gone, whom the watchdog names within moments.
constexpr auto watchdog_patience = std::chrono::seconds(5);

double seconds_since(Clock::time_point from) { return std::chrono::duration<double>(Clock::now() - from).count(); }

// Memory that a message is sent from or received into: page-locked where its tensor lies on a GPU.
class Staging {
 public:
  Staging() = default;
  Staging(size_t bytes, Device device) : device_(device) {
    data_ = device == Device::cuda ? cuda::allocate_pinned(bytes) : std::malloc(bytes);
    if (data_ == nullptr) fail(Exit::resources, "{} bytes for a message to another rank could not be had", bytes);
  }
  ~Staging() {
    if (device_ == Device::cuda)
      cuda::release_pinned(data_);
    else
      std::free(data_);
  }
  Staging(Staging&& other) noexcept : data_(std::exchange(other.data_, nullptr)), device_(other.device_) {}
  Staging& operator=(Staging&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(device_, other.device_);
    return *this;
  }
  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_ = nullptr;
  Device device_ = Device::cpu;
};

// MPI as all groups of a process share it. Calls come from the thread of the exchanges and, while messages are on their
// way out, from a thread that keeps them moving; one at a time (MPI_THREAD_SERIALIZED), because a lock of our own costs
// less than those of MPI_THREAD_MULTIPLE. The watchdog does not use MPI: it must work when MPI hangs.
class Link {
 public:
  explicit Link(const MpiOptions& options) : options_(options) {}
  ~Link() { stop_sender(); }

  const MpiOptions& options() const { return options_; }
  std::unique_ptr<Watchdog> watchdog;
  bool crowded = false;  // more ranks than cores on this host

  // One call of MPI.
  template <class F>
  void call(const char* what, F&& f) {
    int status;
    {
      const std::lock_guard lock(mutex_);
      status = f();
    }
    if (status != MPI_SUCCESS) broken(what, status);
  }

  // Waits for requests; `rank`: of the world, or watch::any_rank.
  void wait(std::vector<MPI_Request>& requests, int rank) {
    const auto begun = Clock::now();
    bool told = false;
    for (int tries = 0;; tries++) {
      int done = 0;
      call("MPI_Testall",
           [&] { return MPI_Testall(static_cast<int>(requests.size()), requests.data(), &done, MPI_STATUSES_IGNORE); });
      if (done != 0) break;
      back_off(tries);
      if (tries % 64 != 0) continue;
      const double waited = seconds_since(begun);
      if (!told && waited > worth_telling && watchdog) {
        watchdog->waits_for(rank);
        told = true;
      }
      if (waited > options_.timeout_seconds) overdue(rank, waited);
    }
    if (told) watchdog->waits_for(watch::no_rank);
    requests.clear();
  }

  // Keeps a message moving until it has gone, beside whatever this process does.
  void send_behind(Staging memory, std::vector<MPI_Request> requests) {
    const std::lock_guard lock(mutex_);
    outgoing_.push_back({std::move(memory), std::move(requests)});
    if (!sender_.joinable()) sender_ = std::thread([this] { keep_sending(); });
    more_.notify_one();
  }

  // Waits until every message has gone.
  void flush() {
    const auto begun = Clock::now();
    for (int tries = 0;; tries++) {
      {
        const std::lock_guard lock(mutex_);
        if (outgoing_.empty()) return;
      }
      back_off(tries + 1000);
      if (seconds_since(begun) > options_.timeout_seconds) overdue(watch::any_rank, seconds_since(begun));
    }
  }

  void stop_sender() {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    more_.notify_all();
    if (sender_.joinable()) sender_.join();
  }

  void back_off(int tries) const {
    const int spins = crowded ? 0 : 2000;
    if (tries < spins) return;
    if (tries < spins + 20) {
      sched_yield();
    } else {
      usleep(tries < spins + 200 ? 20 : 200);
    }
  }

 private:
  struct Outgoing {
    Staging memory;
    std::vector<MPI_Request> requests;
  };

  void keep_sending() {
    std::unique_lock lock(mutex_);
    for (int tries = 0; !stop_;) {
      if (outgoing_.empty()) {
        more_.wait(lock, [&] { return stop_ || !outgoing_.empty(); });
        tries = 0;
        continue;
      }
      for (auto it = outgoing_.begin(); it != outgoing_.end();) {
        int done = 0;
        // A send that fails has a receiver that fails too, or is gone; both are told of elsewhere.
        if (MPI_Testall(static_cast<int>(it->requests.size()), it->requests.data(), &done, MPI_STATUSES_IGNORE) !=
            MPI_SUCCESS)
          done = 1;
        it = done != 0 ? outgoing_.erase(it) : it + 1;
      }
      lock.unlock();
      usleep(tries++ < 100 ? 20 : 200);
      lock.lock();
    }
  }

  [[noreturn]] void broken(const char* what, int status) {
    if (watchdog) std::this_thread::sleep_for(watchdog_patience);
    char words[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(status, words, &length);
    fail(Exit::lost, "{}: {}. Another rank may be lost.", what, std::string_view(words, static_cast<size_t>(length)));
  }

  [[noreturn]] void overdue(int rank, double seconds) {
    if (watchdog) watchdog->stuck(rank, seconds);
    if (rank < 0) fail(Exit::lost, "waited {:.0f} s for the other ranks", seconds);
    fail(Exit::lost, "waited {:.0f} s for rank {}", seconds, rank);
  }

  MpiOptions options_;
  std::mutex mutex_;  // around MPI, and guards the next ones
  std::condition_variable more_;
  std::deque<Outgoing> outgoing_;
  bool stop_ = false;
  std::thread sender_;
};

class MpiGroup : public Group {
 public:
  MpiGroup(Link& link, MPI_Comm comm, std::vector<int> ranks, int rank)
      : Group(rank, static_cast<int>(ranks.size())), link_(link), comm_(comm), ranks_(std::move(ranks)) {}
  // The communicator ends with MPI: freeing it is a collective call, and groups go when an error unwinds the stack too.

  void exchange(Stream& stream, std::span<const Tensor> to, std::span<const Tensor> from) override {
    CHECK(std::ssize(to) == size() && std::ssize(from) == size(), "an exchange of {} and {} tensors among {} ranks",
          to.size(), from.size(), size());
    if (stream.is_dry()) return;
    std::vector<Staging> landing(to.size());
    std::vector<std::vector<MPI_Request> > arriving(to.size());
    for (int i = 1; i < size(); i++) {
      const auto r = static_cast<size_t>((rank() + i) % size());
      if (to[r].numel() == 0) continue;
      CHECK(to[r].contiguous(), "{} is not contiguous", to[r].describe());
      char* memory = static_cast<char*>(to[r].data());
      if (to[r].device() == Device::cuda) {
        landing[r] = Staging(to[r].bytes(), Device::cuda);
        memory = landing[r].data();
      }
      arriving[r] = start("MPI_Irecv", to[r].bytes(), [&](size_t at, int bytes, MPI_Request* request) {
        return MPI_Irecv(memory + at, bytes, MPI_BYTE, static_cast<int>(r), tensor_tag, comm_, request);
      });
    }
    for (int i = 1; i < size(); i++)
      send(stream, (rank() + i) % size(), from[static_cast<size_t>((rank() + i) % size())]);
    const auto me = static_cast<size_t>(rank());
    if (to[me].numel() != 0 && to[me].data() != from[me].data()) copy(stream, flat(to[me]), flat(from[me]));
    for (int i = 1; i < size(); i++) {
      const auto r = static_cast<size_t>((rank() + i) % size());
      if (arriving[r].empty()) continue;
      link_.wait(arriving[r], ranks_[r]);
      if (to[r].device() == Device::cuda) copy(stream, flat(to[r]), flat(to[r]).placed(landing[r].data(), Device::cpu));
    }
    if (link_.watchdog) link_.watchdog->exchanged();
  }

  std::vector<std::string> gather_bytes(std::string_view mine) override {
    // A first round with the lengths and, mostly, everything; a second one for what was longer.
    constexpr size_t room = slot_bytes - sizeof(uint64_t);
    std::vector<char> slot(slot_bytes), slots(slot_bytes * static_cast<size_t>(size()));
    const uint64_t length = mine.size();
    std::memcpy(slot.data(), &length, sizeof length);
    std::memcpy(slot.data() + sizeof length, mine.data(), std::min(room, mine.size()));
    collective("MPI_Iallgather", [&](MPI_Request* request) {
      return MPI_Iallgather(slot.data(), slot_bytes, MPI_BYTE, slots.data(), slot_bytes, MPI_BYTE, comm_, request);
    });
    std::vector<std::string> all;
    std::vector<int> counts, places;
    size_t rest = 0;
    for (int r = 0; r < size(); r++) {
      const char* from = slots.data() + slot_bytes * static_cast<size_t>(r);
      uint64_t n = 0;
      std::memcpy(&n, from, sizeof n);
      const size_t here = std::min<size_t>(room, n);
      all.emplace_back(from + sizeof n, here);
      CHECK(n < most_gathered && rest + n < most_gathered, "{} bytes gathered at once", rest + n);
      places.push_back(static_cast<int>(rest));
      counts.push_back(static_cast<int>(n - here));
      rest += n - here;
    }
    if (rest > 0) {
      std::vector<char> more(rest);
      const std::string_view tail = mine.substr(std::min(room, mine.size()));
      collective("MPI_Iallgatherv", [&](MPI_Request* request) {
        return MPI_Iallgatherv(tail.data(), static_cast<int>(tail.size()), MPI_BYTE, more.data(), counts.data(),
                               places.data(), MPI_BYTE, comm_, request);
      });
      for (size_t r = 0; r < all.size(); r++) all[r].append(more.data() + places[r], static_cast<size_t>(counts[r]));
    }
    if (link_.watchdog) link_.watchdog->exchanged();
    return all;
  }

 private:
  static Tensor flat(const Tensor& t) { return t.reshape({t.numel()}); }

  // Starts the messages of `bytes` bytes, in pieces that MPI can count.
  template <class F>
  std::vector<MPI_Request> start(const char* what, size_t bytes, F&& one) {
    std::vector<MPI_Request> requests;
    for (size_t at = 0; at < bytes;) {
      const size_t piece = std::min(bytes - at, link_.options().piece_bytes);
      requests.emplace_back();
      link_.call(what, [&] { return one(at, static_cast<int>(piece), &requests.back()); });
      at += piece;
    }
    return requests;
  }

  // From a copy, so that no send waits for its receiver.
  void send(Stream& stream, int r, const Tensor& t) {
    if (t.numel() == 0) return;
    CHECK(t.contiguous(), "{} is not contiguous", t.describe());
    Staging memory(t.bytes(), t.device());
    copy(stream, flat(t).placed(memory.data(), Device::cpu), flat(t));
    auto requests = start("MPI_Isend", t.bytes(), [&](size_t at, int bytes, MPI_Request* request) {
      return MPI_Isend(memory.data() + at, bytes, MPI_BYTE, r, tensor_tag, comm_, request);
    });
    link_.send_behind(std::move(memory), std::move(requests));
  }

  template <class F>
  void collective(const char* what, F&& begin) {
    std::vector<MPI_Request> requests(1);
    link_.call(what, [&] { return begin(requests.data()); });
    link_.wait(requests, watch::any_rank);
  }

  Link& link_;
  MPI_Comm comm_;
  std::vector<int> ranks_;
};

// What each rank tells the others of its host at the start.
struct Home {
  char host[64];
  cpu_set_t cores;
};

class MpiWorld : public World {
 public:
  MpiWorld(std::unique_ptr<Link> link, int rank, int size, int local_rank, int local_size, int cores)
      : World(rank, size, local_rank, local_size), link_(std::move(link)), cores_(cores) {}

  ~MpiWorld() override {
    if (ended_ || std::uncaught_exceptions() > 0) return;
    try {
      phase("done, waiting for the other ranks");
      std::vector<MPI_Request> requests(1);
      link_->call("MPI_Ibarrier", [&] { return MPI_Ibarrier(MPI_COMM_WORLD, requests.data()); });
      link_->wait(requests, watch::any_rank);
      link_->flush();
      link_->stop_sender();
      link_->watchdog->leave();
      MPI_Finalize();
    } catch (const Error& e) {
      end_with(static_cast<int>(e.code()), e.what());
    }
  }

  std::unique_ptr<Group> group(std::span<const int> ranks) override {
    std::vector<int> list(ranks.begin(), ranks.end());
    const auto me = std::find(list.begin(), list.end(), rank());
    CHECK(me != list.end(), "rank {} makes a group without itself", rank());
    const auto place = static_cast<int>(me - list.begin());
    MPI_Comm comm = MPI_COMM_NULL;
    link_->call("MPI_Comm_create_group", [&] {
      MPI_Group all, some;
      MPI_Comm_group(MPI_COMM_WORLD, &all);
      MPI_Group_incl(all, static_cast<int>(list.size()), list.data(), &some);
      const int status = MPI_Comm_create_group(MPI_COMM_WORLD, some, 0, &comm);
      MPI_Group_free(&some);
      MPI_Group_free(&all);
      return status == MPI_SUCCESS ? MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN) : status;
    });
    return std::make_unique<MpiGroup>(*link_, comm, std::move(list), place);
  }

  int cores() const override { return cores_; }
  void phase(std::string_view what) override { link_->watchdog->phase(what); }
  bool end_with(int code, std::string_view message) noexcept override {
    ended_ = true;
    return link_->watchdog->end_with(code, message);
  }
  Watchdog* watchdog() override { return link_->watchdog.get(); }

 private:
  std::unique_ptr<Link> link_;
  int cores_;
  bool ended_ = false;
};

void check_size(int started, int seen) {
  if (seen == started) return;
  fail(Exit::usage,
       "{} ranks were started, MPI sees {}: the launcher and this program's MPI do not know each other. With srun take "
       "--mpi=pmix (srun --mpi=list shows what there is), or start with mpirun.",
       started, seen);
}

// The hosts of all ranks, the cores that those of this host may use together, and who they are.
struct Neighbours {
  int local_rank = 0, local_size = 0, cores = 1;
  bool one_host = true;
};
Neighbours find_neighbours(const Home& mine, int rank, int size) {
  std::vector<Home> all(static_cast<size_t>(size));
  MPI_Allgather(&mine, sizeof mine, MPI_BYTE, all.data(), sizeof mine, MPI_BYTE, MPI_COMM_WORLD);
  Neighbours found;
  cpu_set_t together;
  CPU_ZERO(&together);
  for (int r = 0; r < size; r++) {
    const Home& other = all[static_cast<size_t>(r)];
    if (std::strncmp(other.host, mine.host, sizeof mine.host) != 0) {
      found.one_host = false;
      continue;
    }
    if (r < rank) found.local_rank++;
    found.local_size++;
    CPU_OR(&together, &together, &other.cores);
  }
  found.cores = std::max(1, CPU_COUNT(&together) / found.local_size);
  return found;
}

}  // namespace

bool mpi_built() { return true; }

std::unique_ptr<World> mpi_world(const MpiOptions& options) {
  if (options.ranks <= 1) return solo_world();
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &term, nullptr);
  // Waits inside MPI give the core to others: there may be more ranks than cores.
  setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
  int level = 0, rank = 0, size = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  check_size(options.ranks, size);
  if (level < MPI_THREAD_SERIALIZED) fail(Exit::usage, "this MPI has no MPI_THREAD_SERIALIZED; use Open MPI or MPICH");
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);

  Home mine{};
  gethostname(mine.host, sizeof mine.host - 1);
  CPU_ZERO(&mine.cores);
  sched_getaffinity(0, sizeof mine.cores, &mine.cores);
  const Neighbours near = find_neighbours(mine, rank, size);

  watch::Card card;
  watch::Socket socket;
  if (rank == 0) socket = watch::listen_for_ranks(near.one_host, card);
  MPI_Bcast(&card, sizeof card, MPI_BYTE, 0, MPI_COMM_WORLD);
  auto link = std::make_unique<Link>(options);
  link->crowded = near.local_size > CPU_COUNT(&mine.cores);
  link->watchdog = std::make_unique<Watchdog>(
      Watchdog::Me{.rank = rank, .size = size, .local_rank = near.local_rank, .host = mine.host}, options.watch, card,
      std::move(socket));
  return std::make_unique<MpiWorld>(std::move(link), rank, size, near.local_rank, near.local_size, near.cores);
}

}  // namespace furlong
#endif
