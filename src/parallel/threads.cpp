#include "parallel/threads.h"

#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

// Messages under way between pairs of ranks of a group: key (group, from, to).
struct Mail {
  struct Key {
    std::vector<int> group;
    int from, to, count;   // count: how many groups of these ranks were made before
    bool gathers = false;  // gather_bytes does not wait for tensors that nobody has asked for yet
    auto operator<=>(const Key&) const = default;
  };
  std::mutex mutex;
  std::condition_variable arrived;
  std::map<Key, std::deque<std::string>> boxes;
  std::exception_ptr error;

  void send(const Key& key, std::string bytes) {
    const std::lock_guard lock(mutex);
    boxes[key].push_back(std::move(bytes));
    arrived.notify_all();
  }
  std::string receive(const Key& key) {
    std::unique_lock lock(mutex);
    auto& box = boxes[key];
    arrived.wait(lock, [&] { return error != nullptr || !box.empty(); });
    if (box.empty()) fail(Exit::lost, "another rank of this run ended with an error");
    std::string bytes = std::move(box.front());
    box.pop_front();
    return bytes;
  }
  void end_with(std::exception_ptr e) {
    const std::lock_guard lock(mutex);
    if (error == nullptr) error = std::move(e);
    arrived.notify_all();
  }
};

class ThreadGroup : public Group {
 public:
  ThreadGroup(Mail& mail, std::vector<int> ranks, int rank, int count)
      : Group(rank, static_cast<int>(ranks.size())), mail_(mail), ranks_(std::move(ranks)), count_(count) {}

  void exchange(Stream& stream, std::span<const Tensor> to, std::span<const Tensor> from) override {
    CHECK(std::ssize(to) == size() && std::ssize(from) == size(), "an exchange of {} and {} tensors among {} ranks",
          to.size(), from.size(), size());
    if (stream.is_dry()) return;
    for (int r = 0; r < size(); r++) {
      const Tensor& t = from[static_cast<size_t>(r)];
      if (t.numel() == 0) continue;
      CHECK(t.contiguous(), "{} is not contiguous", t.describe());
      std::string bytes(t.bytes(), '\0');
      copy(stream, flat(t).placed(bytes.data(), Device::cpu), flat(t));
      mail_.send({ranks_, rank(), r, count_}, std::move(bytes));
    }
    for (int r = 0; r < size(); r++) {
      const Tensor& t = to[static_cast<size_t>(r)];
      if (t.numel() == 0) continue;
      CHECK(t.contiguous(), "{} is not contiguous", t.describe());
      std::string bytes = mail_.receive({ranks_, r, rank(), count_});
      CHECK(bytes.size() == t.bytes(), "rank {} sent {} bytes for {}", r, bytes.size(), t.describe());
      copy(stream, flat(t), flat(t).placed(bytes.data(), Device::cpu));
    }
  }

  std::vector<std::string> gather_bytes(std::string_view mine) override {
    for (int r = 0; r < size(); r++) mail_.send({ranks_, rank(), r, count_, true}, std::string(mine));
    std::vector<std::string> all;
    for (int r = 0; r < size(); r++) all.push_back(mail_.receive({ranks_, r, rank(), count_, true}));
    return all;
  }

 private:
  static Tensor flat(const Tensor& t) { return t.reshape({t.numel()}); }

  Mail& mail_;
  std::vector<int> ranks_;
  int count_;
};

class ThreadWorld : public World {
 public:
  ThreadWorld(Mail& mail, int rank, int size) : World(rank, size), mail_(mail) {}
  std::unique_ptr<Group> group(std::span<const int> ranks) override {
    std::vector<int> list(ranks.begin(), ranks.end());
    for (size_t i = 0; i < list.size(); i++) {
      if (list[i] == rank()) {
        const int count = made_[list]++;
        return std::make_unique<ThreadGroup>(mail_, std::move(list), static_cast<int>(i), count);
      }
    }
    CHECK(false, "rank {} makes a group without itself", rank());
    return nullptr;
  }

 private:
  Mail& mail_;
  std::map<std::vector<int>, int> made_;
};

}  // namespace

void run_ranks(int size, const std::function<void(World&)>& body) {
  Mail mail;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; rank++) {
    threads.emplace_back([&, rank] {
      try {
        ThreadWorld world(mail, rank, size);
        body(world);
      } catch (...) {
        mail.end_with(std::current_exception());
      }
    });
  }
  for (auto& thread : threads) thread.join();
  if (mail.error != nullptr) std::rethrow_exception(mail.error);
}

}  // namespace furlong
