// Zip archives as torch.save writes them: stored entries, zip64 where needed. Only the central directory is trusted,
// and every entry is held against its local header. Format: PKWARE APPNOTE 6.3.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace furlong {

// A range of bytes that is read piecewise: part of a file, or memory.
struct ByteWindow {
  uint64_t size = 0;
  // Fills `to` from `offset`; the range lies within the window. Throws Error(Exit::input) when it cannot be read.
  std::function<void(uint64_t offset, std::span<uint8_t> to)> read;
};
ByteWindow window_of(std::span<const uint8_t> bytes);

struct ZipEntry {
  std::string name;
  uint64_t offset = 0;  // of its bytes in the window
  uint64_t size = 0;
  uint32_t crc = 0;  // 0: unknown
};

// The entries by offset. Throws Error(Exit::input) unless the window is exactly one archive: an end record without
// comment at its end, the directory just before it, unique names, stored and unencrypted entries whose local headers
// name them alike, byte ranges disjoint and inside.
std::vector<ZipEntry> read_zip(const ByteWindow& window, const std::string& where);

const ZipEntry* find_entry(const std::vector<ZipEntry>& entries, const std::string& name);

// The bytes of an entry of at most `limit` bytes, held against its checksum.
std::vector<uint8_t> read_entry(const ByteWindow& window, const ZipEntry& entry, uint64_t limit,
                                const std::string& where);

uint32_t crc32_of(std::span<const uint8_t> bytes, uint32_t crc = 0);

// Builds an archive front to back for output that cannot seek: add() the small entries; begin() and end() around bytes
// that the caller writes itself. Entries and the archive stay below 4 GiB.
class ZipBuilder {
 public:
  explicit ZipBuilder(std::string folder) : folder_(std::move(folder)) {}
  // Each returns the bytes to write next. Payloads begin on multiples of 64, as torch.load's mappings expect.
  std::string add(const std::string& name, const std::string& content);
  std::string begin(const std::string& name);
  std::string end(uint64_t size, uint32_t crc);
  std::string finish();
  uint64_t written() const { return written_; }

 private:
  struct Record {
    std::string name;
    uint64_t header = 0, size = 0;
    uint32_t crc = 0;
  };
  std::string folder_;
  std::vector<Record> records_;
  uint64_t written_ = 0;
};

}  // namespace furlong
