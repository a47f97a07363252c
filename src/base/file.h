// Files: whole reads, mapped reads, and writes that are complete or absent (temporary name, fsync, rename).
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace furlong {

// The whole file as bytes. Throws Error(Exit::input) naming the path and the system's reason.
std::string read_file(const std::string& path);

// Writes `path` so that it either holds all of `content` or is as before: path.tmp, fsync, rename, fsync of the folder.
// Throws Error(Exit::resources) with the system's reason (a full disk, no permission); no temporary file stays behind.
void write_file_atomic(const std::string& path, std::string_view content);

// Flushes a folder's entries to disk. Throws Error(Exit::resources).
void sync_directory(const std::string& path);

// Creates a folder and its parents. Throws Error(Exit::resources).
void make_directories(const std::string& path);

// A file mapped for reading.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);  // throws Error(Exit::input)
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  std::span<const uint8_t> bytes() const { return {data_, size_}; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Hints to the system about mapped bytes, of which only some will be read: fetch no more than is asked for; fetch these
// now. Nothing depends on them but time and traffic.
void fetch_only_what_is_read(std::span<const uint8_t> mapped);
void fetch_soon(std::span<const uint8_t> mapped);

// Sequential writer to path.tmp; commit() makes it durable and gives it its name. Destroyed uncommitted, it removes
// the temporary file. Every failure is Error(Exit::resources).
class FileWriter {
 public:
  explicit FileWriter(std::string path);
  ~FileWriter();
  FileWriter(const FileWriter&) = delete;
  FileWriter& operator=(const FileWriter&) = delete;
  void write(const void* data, size_t bytes);
  uint64_t written() const { return written_; }
  void commit();

 private:
  void flush();
  std::string path_;
  int fd_ = -1;
  uint64_t written_ = 0;
  std::vector<uint8_t> buffer_;
};

}  // namespace furlong
