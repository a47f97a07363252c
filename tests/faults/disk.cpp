// The C library's calls, by way of their system calls; the program's own definitions come before the library's.
#include "disk.h"

#include <fcntl.h>
#include <linux/limits.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <string_view>

namespace furlong {
namespace {

struct {
  std::string folder;  // empty: all calls work
  int call = -1, calls = 0;
  DiskFault fault = DiskFault::full;
} disk;

std::string path_of(int fd) {
  std::array<char, PATH_MAX> path{};
  const std::string link = "/proc/self/fd/" + std::to_string(fd);
  const ssize_t n = readlink(link.c_str(), path.data(), path.size());
  return {path.data(), n > 0 ? static_cast<size_t>(n) : 0};
}

// Whether this call fails, with errno set. `half`: does half of the call's work.
template <class Half>
bool fails(std::string_view path, Half&& half) {
  if (disk.folder.empty() || !path.starts_with(disk.folder)) return false;
  const int call = disk.calls++;
  if (disk.call < 0 || call < disk.call) return false;
  switch (disk.fault) {
    case DiskFault::full: errno = ENOSPC; return true;
    case DiskFault::io: errno = EIO; return call == disk.call;
    case DiskFault::torn: half(); [[fallthrough]];
    case DiskFault::ends: _exit(9);
  }
  return false;
}

bool fails(std::string_view path) {
  return fails(path, [] {});
}

}  // namespace

void fail_disk(const std::string& folder, int call, DiskFault fault) {
  disk.call = call;
  disk.calls = 0;
  disk.fault = fault;
  disk.folder = folder;
}

int mend_disk() {
  disk.folder.clear();
  return disk.calls;
}

}  // namespace furlong

using furlong::fails;
using furlong::path_of;

extern "C" {

ssize_t write(int fd, const void* data, size_t bytes) {
  if (!furlong::disk.folder.empty() && fails(path_of(fd), [&] { syscall(SYS_write, fd, data, bytes / 2); })) {
    return -1;
  }
  return syscall(SYS_write, fd, data, bytes);
}

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  if ((flags & O_CREAT) != 0 && fails(path)) return -1;
  return static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

int fsync(int fd) {
  return !furlong::disk.folder.empty() && fails(path_of(fd)) ? -1 : static_cast<int>(syscall(SYS_fsync, fd));
}

int fdatasync(int fd) {
  return !furlong::disk.folder.empty() && fails(path_of(fd)) ? -1 : static_cast<int>(syscall(SYS_fdatasync, fd));
}

int mkdir(const char* path, mode_t mode) noexcept {
  return fails(path) ? -1 : static_cast<int>(syscall(SYS_mkdir, path, mode));
}

int rename(const char* from, const char* to) noexcept {
  return fails(to) ? -1 : static_cast<int>(syscall(SYS_rename, from, to));
}

int renameat2(int from_folder, const char* from, int to_folder, const char* to, unsigned flags) noexcept {
  return fails(to) ? -1 : static_cast<int>(syscall(SYS_renameat2, from_folder, from, to_folder, to, flags));
}

int ftruncate(int fd, off_t size) noexcept {
  return !furlong::disk.folder.empty() && fails(path_of(fd)) ? -1 : static_cast<int>(syscall(SYS_ftruncate, fd, size));
}
}
