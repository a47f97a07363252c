#include "checkpoint/zip.h"

// libzip and its kind read whole files, tolerate what an attacker needs (comments, overlaps, names that differ) and
// copy every entry; what is wanted here is a strict view of a window. Only the checksum comes from a library.
#include <zlib.h>

#include <algorithm>
#include <cstring>
#include <unordered_set>

#include "base/check.h"
#include "base/error.h"

namespace furlong {
namespace {

constexpr uint32_t local_signature = 0x04034b50, central_signature = 0x02014b50, end_signature = 0x06054b50,
                   end64_signature = 0x06064b50, locator64_signature = 0x07064b50, descriptor_signature = 0x08074b50;
constexpr uint64_t local_bytes = 30, central_bytes = 46, end_bytes = 22, end64_bytes = 56, locator64_bytes = 20;
constexpr uint64_t max_directory = 64 << 20;
constexpr uint64_t payload_alignment = 64;

uint64_t little(const uint8_t* p, int bytes) {
  uint64_t value = 0;
  std::memcpy(&value, p, static_cast<size_t>(bytes));
  return value;
}

struct Directory {
  uint64_t offset = 0, size = 0, entries = 0;
};

class ZipReader {
 public:
  ZipReader(const ByteWindow& window, const std::string& where) : window_(window), where_(where) {}

  std::vector<ZipEntry> run() {
    const Directory directory = find_directory();
    read_directory(directory);
    std::sort(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) { return a.offset < b.offset; });
    std::unordered_set<std::string> names;
    for (const auto& entry : entries_) {
      if (!names.insert(entry.name).second) bad("two entries of one name");
    }
    uint64_t end = 0;
    // By the place of their headers: an entry takes its header and its bytes.
    std::sort(taken_.begin(), taken_.end());
    for (const auto& [from, to] : taken_) {
      if (from < end) bad("entries overlap");
      end = to;
    }
    if (end > directory.offset) bad("an entry reaches into the directory");
    return std::move(entries_);
  }

 private:
  template <class... Args>
  [[noreturn]] void bad(fmt::format_string<Args...> format, Args&&... args) const {
    fail(Exit::input, "{}: not an archive of torch.save, or a damaged one: {}", where_,
         fmt::format(format, std::forward<Args>(args)...));
  }

  Directory find_directory() const {
    if (window_.size < end_bytes) bad("{} bytes are too few", window_.size);
    uint8_t tail[end_bytes + locator64_bytes] = {};
    const uint64_t n = std::min<uint64_t>(window_.size, sizeof tail);
    window_.read(window_.size - n, {tail + sizeof tail - n, n});
    const uint8_t* end = tail + locator64_bytes;
    if (little(end, 4) != end_signature || little(end + 20, 2) != 0) bad("no end record at its end");
    if (little(end + 4, 2) != 0 || little(end + 6, 2) != 0) bad("it spans several disks");
    Directory d{little(end + 16, 4), little(end + 12, 4), little(end + 10, 2)};
    if (little(end + 8, 2) != d.entries) bad("the end record contradicts itself");
    uint64_t directory_end = window_.size - end_bytes;
    if (n == sizeof tail && little(tail, 4) == locator64_signature) {
      directory_end = read_end64(tail, d);
    } else if (d.offset == UINT32_MAX || d.size == UINT32_MAX || d.entries == UINT16_MAX) {
      bad("its zip64 end record is missing");
    }
    if (d.size > directory_end || d.offset != directory_end - d.size) bad("the directory is not where it should be");
    if (d.size > max_directory) bad("a directory of {} bytes", d.size);
    if (d.entries > d.size / central_bytes) bad("{} entries in a directory of {} bytes", d.entries, d.size);
    return d;
  }

  // Takes the zip64 figures; each must agree with the short one unless that is saturated. Returns where the zip64 end
  // record begins.
  uint64_t read_end64(const uint8_t* locator, Directory& d) const {
    const uint64_t at = little(locator + 8, 8);
    if (little(locator + 4, 4) != 0 || little(locator + 16, 4) > 1) bad("it spans several disks");
    const uint64_t before = window_.size - end_bytes - locator64_bytes;
    if (before < end64_bytes || at != before - end64_bytes) bad("the zip64 end record is not where it should be");
    uint8_t record[end64_bytes];
    window_.read(at, record);
    if (little(record, 4) != end64_signature || little(record + 4, 8) != end64_bytes - 12) bad("a damaged zip64 end");
    if (little(record + 16, 4) != 0 || little(record + 20, 4) != 0) bad("it spans several disks");
    const Directory wide{little(record + 48, 8), little(record + 40, 8), little(record + 32, 8)};
    if (little(record + 24, 8) != wide.entries) bad("the zip64 end record contradicts itself");
    const auto differ = [](uint64_t narrow, uint64_t full, uint64_t saturated) {
      return narrow != full && narrow != saturated;
    };
    if (differ(d.offset, wide.offset, UINT32_MAX) || differ(d.size, wide.size, UINT32_MAX) ||
        differ(d.entries, wide.entries, UINT16_MAX)) {
      bad("the two end records contradict each other");
    }
    d = wide;
    return at;
  }

  void read_directory(const Directory& d) {
    std::vector<uint8_t> bytes(d.size);
    if (d.size > 0) window_.read(d.offset, bytes);
    uint64_t at = 0;
    for (uint64_t i = 0; i < d.entries; i++) {
      if (bytes.size() - at < central_bytes || little(&bytes[at], 4) != central_signature) bad("a damaged directory");
      at += read_record(std::span(bytes).subspan(at), d.offset);
    }
    if (at != bytes.size()) bad("bytes follow the last entry of the directory");
  }

  // One record of the directory; returns its length.
  uint64_t read_record(std::span<const uint8_t> r, uint64_t directory) {
    const uint64_t flags = little(&r[8], 2), method = little(&r[10], 2), packed = little(&r[20], 4);
    const uint64_t name_length = little(&r[28], 2), extra_length = little(&r[30], 2), comment = little(&r[32], 2);
    const uint64_t length = central_bytes + name_length + extra_length + comment;
    if (length > r.size()) bad("a damaged directory");
    ZipEntry entry{.name = {reinterpret_cast<const char*>(r.data()) + central_bytes, name_length},
                   .size = little(&r[24], 4),
                   .crc = static_cast<uint32_t>(little(&r[16], 4))};
    if (entry.name.empty() || entry.name.find('\0') != std::string::npos) bad("an entry without a proper name");
    if ((flags & 0x2041) != 0) bad("an encrypted entry");
    if (method != 0) bad("a compressed entry");
    uint64_t header = little(&r[42], 4), stored = packed;
    const std::span<const uint8_t> extra = r.subspan(central_bytes + name_length, extra_length);
    widen(extra, {&entry.size, &stored, &header});
    if (stored != entry.size) bad("a stored entry of two sizes");
    locate(entry, header, directory);
    entries_.push_back(std::move(entry));
    return length;
  }

  // Takes the numbers that did not fit 32 bits from the zip64 extra field, in its order.
  void widen(std::span<const uint8_t> extra, std::initializer_list<uint64_t*> numbers) const {
    while (extra.size() >= 4) {
      const uint64_t id = little(extra.data(), 2), length = little(&extra[2], 2);
      if (length > extra.size() - 4) bad("a damaged extra field");
      auto field = extra.subspan(4, length);
      extra = extra.subspan(4 + length);
      if (id != 1) continue;
      for (uint64_t* number : numbers) {
        if (*number != UINT32_MAX) continue;
        if (field.size() < 8) bad("a damaged zip64 field");
        *number = little(field.data(), 8);
        field = field.subspan(8);
      }
      return;
    }
  }

  void locate(ZipEntry& entry, uint64_t header, uint64_t directory) {
    if (header > directory || directory - header < local_bytes) bad("an entry outside of the archive");
    const uint64_t room = directory - header;
    std::vector<uint8_t> local(std::min(room, local_bytes + entry.name.size()));
    window_.read(header, local);
    const uint64_t name_length = little(&local[26], 2), extra_length = little(&local[28], 2);
    if (little(local.data(), 4) != local_signature || name_length != entry.name.size() ||
        local.size() != local_bytes + name_length ||
        std::memcmp(&local[local_bytes], entry.name.data(), name_length) != 0) {
      bad("an entry that its local header names otherwise");
    }
    const uint64_t flags = little(&local[6], 2), size = little(&local[22], 4);
    if ((flags & 0x2041) != 0 || little(&local[8], 2) != 0) bad("a compressed or encrypted entry");
    const bool later = (flags & 8) != 0 && size == 0;
    if (!later && size != entry.size && size != UINT32_MAX) bad("an entry of two sizes");
    const uint64_t front = local_bytes + name_length + extra_length;
    if (front > room || entry.size > room - front) bad("an entry that reaches out of the archive");
    entry.offset = header + front;
    taken_.emplace_back(header, entry.offset + entry.size);
  }

  const ByteWindow& window_;
  const std::string& where_;
  std::vector<ZipEntry> entries_;
  std::vector<std::pair<uint64_t, uint64_t>> taken_;
};

void put(std::string& out, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; i++) {
    out += static_cast<char>(value & 0xff);
    value >>= 8;
  }
}

constexpr uint64_t sizes_follow_utf8 = 0x0808;

}  // namespace

ByteWindow window_of(std::span<const uint8_t> bytes) {
  return {bytes.size(), [bytes](uint64_t offset, std::span<uint8_t> to) {
            CHECK(offset <= bytes.size() && to.size() <= bytes.size() - offset, "{} + {}", offset, to.size());
            if (!to.empty()) std::memcpy(to.data(), bytes.data() + offset, to.size());
          }};
}

std::vector<ZipEntry> read_zip(const ByteWindow& window, const std::string& where) {
  return ZipReader(window, where).run();
}

const ZipEntry* find_entry(const std::vector<ZipEntry>& entries, const std::string& name) {
  const auto it = std::find_if(entries.begin(), entries.end(), [&](const auto& e) { return e.name == name; });
  return it == entries.end() ? nullptr : &*it;
}

std::vector<uint8_t> read_entry(const ByteWindow& window, const ZipEntry& entry, uint64_t limit,
                                const std::string& where) {
  if (entry.size > limit) fail(Exit::input, "{}: {} has {} bytes, more than can be", where, entry.name, entry.size);
  std::vector<uint8_t> bytes(entry.size);
  if (!bytes.empty()) window.read(entry.offset, bytes);
  if (entry.crc != 0 && crc32_of(bytes) != entry.crc) {
    fail(Exit::input, "{}: {} does not match its checksum; the file is damaged. Copy it again from its source.", where,
         entry.name);
  }
  return bytes;
}

uint32_t crc32_of(std::span<const uint8_t> bytes, uint32_t crc) {
  return static_cast<uint32_t>(crc32_z(crc, bytes.data(), bytes.size()));
}

std::string ZipBuilder::add(const std::string& name, const std::string& content) {
  const auto* data = reinterpret_cast<const uint8_t*>(content.data());
  std::string out = begin(name) + content;
  return out + end(content.size(), crc32_of({data, content.size()}));
}

std::string ZipBuilder::begin(const std::string& name) {
  Record record{folder_ + "/" + name, written_};
  // The extra field "FB" is PyTorch's own way to align payloads.
  const uint64_t bare = written_ + local_bytes + record.name.size() + 4;
  const uint64_t padding = (payload_alignment - bare % payload_alignment) % payload_alignment;
  std::string out;
  put(out, local_signature, 4);
  put(out, 0, 2);
  put(out, sizes_follow_utf8, 2);
  put(out, 0, 18);
  put(out, record.name.size(), 2);
  put(out, 4 + padding, 2);
  out += record.name + "FB";
  put(out, padding, 2);
  out.append(padding, 'Z');
  records_.push_back(std::move(record));
  written_ += out.size();
  return out;
}

std::string ZipBuilder::end(uint64_t size, uint32_t crc) {
  Record& record = records_.back();
  record.size = size;
  record.crc = crc;
  std::string out;
  put(out, descriptor_signature, 4);
  put(out, crc, 4);
  put(out, size, 4);
  put(out, size, 4);
  written_ += size + out.size();
  CHECK(written_ < UINT32_MAX, "{}", record.name);
  return out;
}

std::string ZipBuilder::finish() {
  std::string out;
  for (const auto& r : records_) {
    put(out, central_signature, 4);
    put(out, 0, 4);
    put(out, sizes_follow_utf8, 2);
    put(out, 0, 6);
    put(out, r.crc, 4);
    put(out, r.size, 4);
    put(out, r.size, 4);
    put(out, r.name.size(), 2);
    put(out, 0, 12);
    put(out, r.header, 4);
    out += r.name;
  }
  const uint64_t directory = out.size();
  put(out, end_signature, 4);
  put(out, 0, 4);
  put(out, records_.size(), 2);
  put(out, records_.size(), 2);
  put(out, directory, 4);
  put(out, written_, 4);
  put(out, 0, 2);
  CHECK(written_ + out.size() < UINT32_MAX, "an archive of {} bytes", written_);
  written_ += out.size();
  return out;
}

}  // namespace furlong
