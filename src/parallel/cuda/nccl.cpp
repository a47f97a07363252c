#include "parallel/nccl.h"

#include <nccl.h>

#include <atomic>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "parallel/watchdog.h"
#include "tensor/copy.h"
#include "tensor/cuda/queue.h"

namespace furlong {
namespace {

using Clock = std::chrono::steady_clock;

void check(ncclResult_t status, const char* what, ncclComm_t comm = nullptr) {
  if (status == ncclSuccess || status == ncclInProgress) return;
  fail(Exit::lost, "NCCL error in {}: {} ({}). NCCL_DEBUG=WARN in the environment says more.", what,
       ncclGetErrorString(status), ncclGetLastError(comm));
}

bool is_recording(cudaStream_t stream) {
  cudaStreamCaptureStatus status;
  cuda::check(cudaStreamIsCapturing(stream, &status), "cudaStreamIsCapturing");
  return status != cudaStreamCaptureStatusNone;
}

// How long exchanges take on the device. Used by the thread that does them.
class ExchangeClock {
 public:
  ~ExchangeClock() {
    for (const auto* pairs : {&open_, &spare_}) {
      for (const Pair& pair : *pairs) {
        cudaEventDestroy(pair.begin);
        cudaEventDestroy(pair.end);
      }
    }
  }

  void begin(cudaStream_t stream) {
    if (open_.size() >= most_open) settle();
    if (spare_.empty()) {
      Pair pair;
      cuda::check(cudaEventCreate(&pair.begin), "cudaEventCreate");
      cuda::check(cudaEventCreate(&pair.end), "cudaEventCreate");
      spare_.push_back(pair);
    }
    open_.push_back(spare_.back());
    spare_.pop_back();
    cuda::check(cudaEventRecord(open_.back().begin, stream), "cudaEventRecord");
  }
  void end(cudaStream_t stream) { cuda::check(cudaEventRecord(open_.back().end, stream), "cudaEventRecord"); }

  double seconds() {
    settle();
    return milliseconds_ / 1e3;
  }

 private:
  struct Pair {
    cudaEvent_t begin = nullptr, end = nullptr;
  };
  static constexpr size_t most_open = 4096;

  void settle() {
    for (const Pair& pair : open_) {
      float t = 0;
      cuda::check(cudaEventSynchronize(pair.end), "cudaEventSynchronize");
      cuda::check(cudaEventElapsedTime(&t, pair.begin, pair.end), "cudaEventElapsedTime");
      milliseconds_ += static_cast<double>(t);
      spare_.push_back(pair);
    }
    open_.clear();
  }

  std::vector<Pair> open_, spare_;
  double milliseconds_ = 0;
};

// One communicator and the watch over it.
class Communicator : public Watched {
 public:
  Communicator(Group& host, Watchdog* watchdog, double timeout_seconds)
      : watchdog_(watchdog), timeout_(timeout_seconds) {
    ncclUniqueId id{};
    if (host.rank() == 0) check(ncclGetUniqueId(&id), "ncclGetUniqueId");
    const auto ids = host.gather_bytes({id.internal, host.rank() == 0 ? sizeof id.internal : 0});
    CHECK(ids[0].size() == sizeof id.internal, "an id of {} bytes", ids[0].size());
    std::memcpy(id.internal, ids[0].data(), sizeof id.internal);
    check(ncclCommInitRank(&comm_, host.size(), id, host.rank()), "ncclCommInitRank");
    if (watchdog_ != nullptr) watchdog_->add(this);
  }

  ~Communicator() override {
    if (watchdog_ != nullptr) watchdog_->remove(this);
    const std::lock_guard lock(mutex_);
    if (aborted_) return;
    // An orderly end waits for the other ranks, which an error may have stopped.
    if (std::uncaught_exceptions() > 0) {
      ncclCommAbort(comm_);
    } else {
      ncclCommDestroy(comm_);
    }
  }

  // Does not return when the watchdog has let go of the communicator: the process is ending.
  ncclComm_t get() {
    for (; aborted_; std::this_thread::sleep_for(std::chrono::seconds(1))) continue;
    return comm_;
  }

  // What was given to the stream must be through within the timeout. A part of a graph is not seen.
  void issued(cudaStream_t stream) {
    if (watchdog_ == nullptr) return;
    watchdog_->exchanged();
    if (is_recording(stream)) return;
    const std::lock_guard lock(mutex_);
    Mark& mark = oldest_.open ? newest_ : oldest_;
    cuda::check(cudaEventRecord(mark.event.event, stream), "cudaEventRecord");
    mark.open = true;
    mark.at = Clock::now();
  }

  std::string trouble() override {
    const std::lock_guard lock(mutex_);
    if (aborted_) return "";
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    if (asked != ncclSuccess) state = asked;
    if (state != ncclSuccess && state != ncclInProgress)
      return fmt::format("NCCL: {} ({})", ncclGetErrorString(state), ncclGetLastError(comm_));
    while (oldest_.open && cudaEventQuery(oldest_.event.event) != cudaErrorNotReady) {
      oldest_.open = false;
      if (newest_.open) swap(oldest_, newest_);
    }
    const double waited = std::chrono::duration<double>(Clock::now() - oldest_.at).count();
    if (!oldest_.open || waited < timeout_) return "";
    return fmt::format("an exchange between GPUs has not ended for {:.0f} s", waited);
  }

  void abort() noexcept override {
    {
      const std::lock_guard lock(mutex_);
      if (aborted_.exchange(true)) return;
    }
    ncclCommAbort(comm_);
  }

 private:
  struct Mark {
    cuda::Event event;
    bool open = false;
    Clock::time_point at;
    friend void swap(Mark& a, Mark& b) {
      std::swap(a.event.event, b.event.event);
      std::swap(a.open, b.open);
      std::swap(a.at, b.at);
    }
  };

  Watchdog* watchdog_;
  double timeout_;
  ncclComm_t comm_ = nullptr;
  std::mutex mutex_;
  // Events of two exchanges under way: the first not seen to end, and the last, which moves on.
  Mark oldest_, newest_;
  std::atomic<bool> aborted_{false};
};

class NcclGroup : public Group {
 public:
  NcclGroup(std::unique_ptr<Group> host, std::shared_ptr<Communicator> communicator,
            std::shared_ptr<ExchangeClock> clock, bool even_alone)
      : Group(host->rank(), host->size()),
        host_(std::move(host)),
        communicator_(std::move(communicator)),
        clock_(std::move(clock)),
        even_alone_(even_alone) {}

  void exchange(Stream& stream, std::span<const Tensor> to, std::span<const Tensor> from) override {
    if (stream.device() != Device::cuda) {
      host_->exchange(stream, to, from);
      return;
    }
    CHECK(std::ssize(to) == size() && std::ssize(from) == size(), "an exchange of {} and {} tensors among {} ranks",
          to.size(), from.size(), size());
    if (stream.is_dry()) return;
    const auto me = static_cast<size_t>(rank());
    if (!even_alone_ && to[me].numel() != 0 && to[me].data() != from[me].data())
      copy(stream, flat(to[me]), flat(from[me]));
    if (communicator_ == nullptr) return;
    const cudaStream_t queue = stream.queue().stream;
    const ncclComm_t comm = communicator_->get();
    const bool timed = !is_recording(queue);
    if (timed) clock_->begin(queue);
    check(ncclGroupStart(), "ncclGroupStart", comm);
    for (int r = 0; r < size(); r++) {
      if (r == rank() && !even_alone_) continue;
      const Tensor &out = from[static_cast<size_t>(r)], &in = to[static_cast<size_t>(r)];
      if (out.numel() != 0) check(ncclSend(checked(out), out.bytes(), ncclInt8, r, comm, queue), "ncclSend", comm);
      if (in.numel() != 0) check(ncclRecv(checked(in), in.bytes(), ncclInt8, r, comm, queue), "ncclRecv", comm);
    }
    check(ncclGroupEnd(), "ncclGroupEnd", comm);
    if (timed) clock_->end(queue);
    stream.queue().last_op = "exchange";
    communicator_->issued(queue);
  }

  std::vector<std::string> gather_bytes(std::string_view mine) override { return host_->gather_bytes(mine); }
  double exchange_seconds() override { return clock_->seconds(); }

 private:
  static Tensor flat(const Tensor& t) { return t.reshape({t.numel()}); }
  static void* checked(const Tensor& t) {
    CHECK(t.contiguous() && t.device() == Device::cuda, "{} is not contiguous device memory", t.describe());
    return t.data();
  }

  std::unique_ptr<Group> host_;
  std::shared_ptr<Communicator> communicator_;  // null for one rank alone
  std::shared_ptr<ExchangeClock> clock_;
  bool even_alone_;
};

class NcclWorld : public World {
 public:
  NcclWorld(std::unique_ptr<World> host, const NcclOptions& options)
      : World(host->rank(), host->size(), host->local_rank(), host->local_size()),
        host_(std::move(host)),
        options_(options) {}

  std::unique_ptr<Group> group(std::span<const int> ranks) override {
    auto host = host_->group(ranks);
    std::shared_ptr<Communicator> communicator;
    if (host->size() > 1 || options_.even_alone) {
      // Groups of the same ranks share one: a communicator takes hundreds of MiB of device memory.
      auto& known = communicators_[{ranks.begin(), ranks.end()}];
      communicator = known.lock();
      if (communicator == nullptr) {
        communicator = std::make_shared<Communicator>(*host, host_->watchdog(), options_.timeout_seconds);
        known = communicator;
      }
    }
    return std::make_unique<NcclGroup>(std::move(host), std::move(communicator), clock_, options_.even_alone);
  }

  int cores() const override { return host_->cores(); }
  void phase(std::string_view what) override { host_->phase(what); }
  bool end_with(int code, std::string_view message) noexcept override { return host_->end_with(code, message); }
  Watchdog* watchdog() override { return host_->watchdog(); }

 private:
  std::unique_ptr<World> host_;
  NcclOptions options_;
  std::shared_ptr<ExchangeClock> clock_ = std::make_shared<ExchangeClock>();
  std::map<std::vector<int>, std::weak_ptr<Communicator>> communicators_;
};

}  // namespace

bool nccl_built() { return true; }

std::unique_ptr<World> nccl_world(std::unique_ptr<World> host, const NcclOptions& options) {
  if (host->size() == 1 && !options.even_alone) return host;
  return std::make_unique<NcclWorld>(std::move(host), options);
}

}  // namespace furlong
