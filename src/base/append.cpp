#include "base/append.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "base/check.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"

namespace furlong {
namespace {

// The bytes after the last newline of a file of `size` bytes.
std::string last_line(int fd, uint64_t size, const std::string& path) {
  constexpr uint64_t block = 1 << 16;
  std::string tail;
  for (uint64_t end = size; end > 0;) {
    const uint64_t begin = end > block ? end - block : 0;
    std::string part(end - begin, '\0');
    for (size_t done = 0; done < part.size();) {
      const ssize_t n = pread(fd, part.data() + done, part.size() - done, static_cast<off_t>(begin + done));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0)
        fail(Exit::resources, "cannot read the end of {}: {}", path, n < 0 ? std::strerror(errno) : "it shrank");
      done += static_cast<size_t>(n);
    }
    const size_t newline = part.rfind('\n');
    if (newline != part.npos) return part.substr(newline + 1) + tail;
    tail = part + tail;
    end = begin;
  }
  return tail;
}

bool is_whole_json(const std::string& text) {
  try {
    parse_json(text, "last line");
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

LineAppender::LineAppender(const std::string& path) : path_(path) {
  fd_ = open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd_ < 0) fail(Exit::resources, "cannot write {}: {}", path, std::strerror(errno));
  try {
    mend();
  } catch (...) {
    close(fd_);
    throw;
  }
}

void LineAppender::mend() {
  struct stat info {};
  if (fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) {
    fail(Exit::resources, "cannot append to {}: it is not a regular file", path_);
  }
  bytes_ = static_cast<uint64_t>(info.st_size);
  const std::string tail = last_line(fd_, bytes_, path_);
  if (tail.empty()) return;
  if (is_whole_json(tail)) return add("");
  if (ftruncate(fd_, static_cast<off_t>(bytes_ - tail.size())) != 0) {
    fail(Exit::resources, "cannot cut the torn last line off {}: {}", path_, std::strerror(errno));
  }
  bytes_ -= tail.size();
  torn_bytes_ = tail.size();
}

LineAppender::~LineAppender() {
  if (fd_ >= 0) close(fd_);
}

void LineAppender::add(std::string_view line) {
  CHECK(line.find('\n') == line.npos, "a line with a newline in it");
  std::string text(line);
  text += '\n';
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::write(fd_, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const std::string why = std::strerror(errno);
      const bool restored = done == 0 || ftruncate(fd_, static_cast<off_t>(bytes_)) == 0;
      fail(Exit::resources, "cannot append to {}: {}{}", path_, why, restored ? "" : "; its last line is now torn");
    }
    done += static_cast<size_t>(n);
  }
  bytes_ += text.size();
}

void LineAppender::sync() {
  if (fdatasync(fd_) != 0) fail(Exit::resources, "cannot sync {}: {}", path_, std::strerror(errno));
  const std::string parent = std::filesystem::path(path_).parent_path().string();
  sync_directory(parent.empty() ? "." : parent);
}

}  // namespace furlong
