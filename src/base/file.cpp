#include "base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "base/error.h"

namespace furlong {
namespace {

constexpr size_t write_buffer_bytes = 1 << 20;

std::string reason() { return std::strerror(errno); }

void advise(std::span<const uint8_t> mapped, int advice) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto first = reinterpret_cast<uintptr_t>(mapped.data());
  const uintptr_t begin = first / page * page;
  if (!mapped.empty()) madvise(reinterpret_cast<void*>(begin), first + mapped.size() - begin, advice);
}

std::string parent_of(const std::string& path) {
  const auto parent = std::filesystem::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace

std::string read_file(const std::string& path) {
  const MappedFile file(path);
  const auto bytes = file.bytes();
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void sync_directory(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) fail(Exit::resources, "cannot open the folder {}: {}", path, reason());
  const int result = fsync(fd);
  const int saved = errno;
  close(fd);
  // Some file systems cannot sync a folder; they say EINVAL.
  if (result != 0 && saved != EINVAL)
    fail(Exit::resources, "cannot sync the folder {}: {}", path, std::strerror(saved));
}

void make_directories(const std::string& path) {
  std::error_code code;
  std::filesystem::create_directories(path, code);
  if (code) fail(Exit::resources, "cannot create the folder {}: {}", path, code.message());
}

void write_file_atomic(const std::string& path, std::string_view content) {
  FileWriter writer(path);
  writer.write(content.data(), content.size());
  writer.commit();
}

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail(Exit::input, "cannot read {}: {}", path, reason());
  struct stat info {};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    fail(Exit::input, "cannot read {}: it is not a regular file", path);
  }
  size_ = static_cast<size_t>(info.st_size);
  if (size_ > 0) {
    void* mapped = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, fd, 0);
    if (mapped == MAP_FAILED) {
      const std::string why = reason();
      close(fd);
      fail(Exit::resources, "cannot map {}: {}", path, why);
    }
    data_ = static_cast<const uint8_t*>(mapped);
  }
  close(fd);
}

void fetch_only_what_is_read(std::span<const uint8_t> mapped) { advise(mapped, MADV_RANDOM); }
void fetch_soon(std::span<const uint8_t> mapped) { advise(mapped, MADV_WILLNEED); }

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<uint8_t*>(data_), size_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

FileWriter::FileWriter(std::string path) : path_(std::move(path)) {
  fd_ = open((path_ + ".tmp").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd_ < 0) fail(Exit::resources, "cannot write {}: {}", path_, reason());
  buffer_.reserve(write_buffer_bytes);
}

FileWriter::~FileWriter() {
  if (fd_ < 0) return;
  close(fd_);
  unlink((path_ + ".tmp").c_str());
}

void FileWriter::write(const void* data, size_t bytes) {
  const auto* p = static_cast<const uint8_t*>(data);
  written_ += bytes;
  while (bytes > 0) {
    const size_t n = std::min(bytes, write_buffer_bytes - buffer_.size());
    buffer_.insert(buffer_.end(), p, p + n);
    p += n;
    bytes -= n;
    if (buffer_.size() == write_buffer_bytes) flush();
  }
}

void FileWriter::flush() {
  size_t done = 0;
  while (done < buffer_.size()) {
    const ssize_t n = ::write(fd_, buffer_.data() + done, buffer_.size() - done);
    if (n < 0) {
      if (errno == EINTR) continue;
      fail(Exit::resources,
           "cannot write {} (at byte {}): {}. Free some space or choose another folder; nothing was replaced.", path_,
           written_ - buffer_.size() + done, reason());
    }
    done += static_cast<size_t>(n);
  }
  buffer_.clear();
}

void FileWriter::commit() {
  flush();
  if (fsync(fd_) != 0) fail(Exit::resources, "cannot sync {}: {}; the file was not replaced.", path_, reason());
  close(fd_);
  fd_ = -1;
  if (rename((path_ + ".tmp").c_str(), path_.c_str()) != 0) {
    const std::string why = reason();
    unlink((path_ + ".tmp").c_str());
    fail(Exit::resources, "cannot rename {0}.tmp to {0}: {1}", path_, why);
  }
  sync_directory(parent_of(path_));
}

}  // namespace furlong
