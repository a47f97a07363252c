#include "base/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <thread>

#include "base/error.h"

extern char** environ;

namespace furlong {
namespace {

constexpr size_t read_bytes = 1 << 16;
constexpr int status_polls = 200;  // of 1 ms

struct Pipe {
  int ends[2] = {-1, -1};
  Pipe() {
    if (pipe2(ends, O_CLOEXEC) != 0) fail(Exit::resources, "cannot make a pipe: {}", std::strerror(errno));
  }
  ~Pipe() {
    for (const int fd : ends) {
      if (fd >= 0) close(fd);
    }
  }
  int take(int i) {
    const int fd = ends[i];
    ends[i] = -1;
    return fd;
  }
};

// What a child begins with: its own group, the pipes, no blocked signals.
struct SpawnPlan {
  posix_spawn_file_actions_t files;
  posix_spawnattr_t attributes;
  SpawnPlan() {
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attributes);
  }
  ~SpawnPlan() {
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attributes);
  }
};

void set_nonblocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

std::string ending_of(int status) {
  if (WIFSIGNALED(status)) return fmt::format("signal {}", WTERMSIG(status));
  return fmt::format("exit status {}", WEXITSTATUS(status));
}

}  // namespace

void block_sigpipe() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

Subprocess::Subprocess(const std::string& command, const std::string& stderr_path) {
  Pipe input, output;
  SpawnPlan plan;
  posix_spawn_file_actions_adddup2(&plan.files, input.ends[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&plan.files, output.ends[1], STDOUT_FILENO);
  if (!stderr_path.empty())
    posix_spawn_file_actions_addopen(&plan.files, STDERR_FILENO, stderr_path.c_str(), O_WRONLY | O_CREAT | O_APPEND,
                                     0644);
  sigset_t none, usual;
  sigemptyset(&none);
  sigemptyset(&usual);
  sigaddset(&usual, SIGPIPE);
  posix_spawnattr_setflags(&plan.attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  posix_spawnattr_setpgroup(&plan.attributes, 0);
  posix_spawnattr_setsigmask(&plan.attributes, &none);
  posix_spawnattr_setsigdefault(&plan.attributes, &usual);
  std::string shell = "sh", flag = "-c", text = command;
  char* arguments[] = {shell.data(), flag.data(), text.data(), nullptr};
  const int error = posix_spawn(&pid_, "/bin/sh", &plan.files, &plan.attributes, arguments, environ);
  if (error != 0) {
    pid_ = -1;
    fail(Exit::resources, "cannot start `{}`{}: {}", command,
         stderr_path.empty() ? "" : fmt::format(" (its standard error goes to {})", stderr_path), std::strerror(error));
  }
  in_ = input.take(1);
  out_ = output.take(0);
  set_nonblocking(in_);
  set_nonblocking(out_);
}

Subprocess::~Subprocess() { end(); }

bool Subprocess::has_spoken() const {
  if (!pending_.empty() || closed_) return true;
  pollfd p{out_, POLLIN, 0};
  return poll(&p, 1, 0) != 0;
}

void Subprocess::kill_group() const {
  if (pid_ >= 0) kill(-pid_, SIGKILL);
}

std::string Subprocess::end() {
  if (pid_ < 0) return ending_;
  close(in_);
  close(out_);
  // One that has ended by itself is not reaped yet, so the group's number is still its own. It closes its side a little
  // before its status is there.
  bool ended = false;
  for (int i = 0; i < (closed_ ? status_polls : 1) && !ended; i++) {
    if (i > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    siginfo_t info{};
    ended = waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
  }
  kill_group();
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  ending_ = ended ? ending_of(status) : "killed";
  pid_ = -1;
  return ending_;
}

bool Subprocess::wait_for(int fd, short events, Time deadline) const {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
    if (left <= 0) return false;
    pollfd p{fd, events, 0};
    const int n = poll(&p, 1, static_cast<int>(std::min<int64_t>(left, 1 << 30)));
    if (n > 0) return true;
  }
}

Subprocess::Outcome Subprocess::write_line(std::string_view line, Time deadline) {
  if (pid_ < 0) return Outcome::closed;
  const auto put = [&](std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = write(in_, bytes.data(), bytes.size());
      if (n > 0) {
        bytes.remove_prefix(static_cast<size_t>(n));
      } else if (errno == EAGAIN) {
        if (!wait_for(in_, POLLOUT, deadline)) return Outcome::late;
      } else if (errno != EINTR) {
        closed_ = true;
        return Outcome::closed;
      }
    }
    return Outcome::done;
  };
  const Outcome outcome = put(line);
  return outcome == Outcome::done ? put("\n") : outcome;
}

Subprocess::Outcome Subprocess::read_line(std::string& line, Time deadline, size_t limit) {
  if (pid_ < 0) return Outcome::closed;
  for (;;) {
    const size_t end = pending_.find('\n', searched_);
    if (end != std::string::npos && end <= limit) {
      line = pending_.substr(0, end);
      pending_.erase(0, end + 1);
      searched_ = 0;
      return Outcome::done;
    }
    searched_ = pending_.size();
    if (pending_.size() > limit) return Outcome::too_long;
    // Asked every time, also where there is always more to read.
    if (!wait_for(out_, POLLIN, deadline)) return Outcome::late;
    const size_t had = pending_.size();
    pending_.resize(had + read_bytes);
    const ssize_t n = read(out_, pending_.data() + had, read_bytes);
    const int error = errno;
    pending_.resize(had + static_cast<size_t>(std::max<ssize_t>(n, 0)));
    if (n < 0 && (error == EAGAIN || error == EINTR)) continue;
    closed_ = n <= 0;
    if (closed_) return Outcome::closed;
  }
}

}  // namespace furlong
