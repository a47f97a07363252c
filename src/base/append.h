// An append-only file of JSON lines that survives being cut short: a line counts once its newline is written, and a
// torn last line (a crash, a full disk) is removed before the next one is added.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>

namespace furlong {

class LineAppender {
 public:
  // Opens or creates the file. A last line without its newline is kept (and ended) if it is a whole JSON value, else
  // cut off. Throws Error(Exit::resources) with the system's reason.
  explicit LineAppender(const std::string& path);
  ~LineAppender();
  LineAppender(const LineAppender&) = delete;
  LineAppender& operator=(const LineAppender&) = delete;

  // Adds `line` and a newline; `line` holds no newline. When it cannot be written whole, what was written of it is cut
  // off again and Error(Exit::resources) thrown.
  void add(std::string_view line);
  // Puts all lines on the disk. Throws Error(Exit::resources).
  void sync();

  uint64_t bytes() const { return bytes_; }            // length of the file
  uint64_t torn_bytes() const { return torn_bytes_; }  // removed on opening

 private:
  void mend();
  std::string path_;
  int fd_ = -1;
  uint64_t bytes_ = 0;
  uint64_t torn_bytes_ = 0;
};

}  // namespace furlong
