#include "monitor/tensorboard.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"

namespace furlong {
namespace {

constexpr std::string_view file_prefix = "events.out.tfevents.", file_suffix = ".furlong";
constexpr size_t frame_head = 12, frame_tail = 4;

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

uint32_t masked_crc(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xa282ead8u; }

template <class T>
void append_little_endian(std::string& out, T value) {
  for (size_t i = 0; i < sizeof value; i++) out += static_cast<char>(value >> (8 * i) & 0xff);
}

template <class T>
T little_endian(std::string_view bytes) {
  T value = 0;
  for (size_t i = 0; i < sizeof value; i++) value |= static_cast<T>(static_cast<unsigned char>(bytes[i])) << (8 * i);
  return value;
}

// Protocol buffers: a field is its key (number and wire type) and its value.
enum class Wire : uint32_t { varint = 0, bits64 = 1, bytes = 2, bits32 = 5 };

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += static_cast<char>((value & 0x7f) | 0x80);
  out += static_cast<char>(value);
}
void append_key(std::string& out, uint32_t field, Wire wire) {
  append_varint(out, field << 3 | static_cast<uint32_t>(wire));
}
void append_integer(std::string& out, uint32_t field, int64_t value) {
  append_key(out, field, Wire::varint);
  append_varint(out, static_cast<uint64_t>(value));
}
void append_message(std::string& out, uint32_t field, std::string_view value) {
  append_key(out, field, Wire::bytes);
  append_varint(out, value.size());
  out += value;
}

// An event up to its content. A step of 0 is left out, as protocol buffers do with defaults.
std::string event_head(double time, int64_t step) {
  std::string out;
  append_key(out, 1, Wire::bits64);
  append_little_endian(out, std::bit_cast<uint64_t>(time));
  if (step != 0) append_integer(out, 2, step);
  return out;
}

// Reads a varint and takes it off the front; false at the end of the text.
bool take_varint(std::string_view& text, uint64_t& value) {
  value = 0;
  for (uint32_t shift = 0; shift < 64; shift += 7) {
    if (text.empty()) return false;
    const auto byte = static_cast<unsigned char>(text.front());
    text.remove_prefix(1);
    value |= static_cast<uint64_t>(byte & 0x7f) << shift;
    if ((byte & 0x80) == 0) return true;
  }
  return false;
}

// The step of an event, 0 without one; -1 when this is no message.
int64_t step_of(std::string_view event) {
  int64_t step = 0;
  while (!event.empty()) {
    uint64_t key = 0, value = 0;
    if (!take_varint(event, key)) return -1;
    size_t skipped = 0;
    switch (static_cast<Wire>(key & 7)) {
      case Wire::varint:
        if (!take_varint(event, value)) return -1;
        if (key >> 3 == 2) step = static_cast<int64_t>(value);
        break;
      case Wire::bits64: skipped = 8; break;
      case Wire::bytes:
        if (!take_varint(event, value)) return -1;
        skipped = value;
        break;
      case Wire::bits32: skipped = 4; break;
      default: return -1;
    }
    if (skipped > event.size()) return -1;
    event.remove_prefix(skipped);
  }
  return step;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static const auto table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; i++) {
      uint32_t c = i;
      for (int bit = 0; bit < 8; bit++) c = (c & 1) != 0 ? c >> 1 ^ 0x82f63b78u : c >> 1;
      t[i] = c;
    }
    return t;
  }();
  uint32_t crc = ~0u;
  for (const char c : bytes) crc = table[(crc ^ static_cast<unsigned char>(c)) & 0xff] ^ crc >> 8;
  return ~crc;
}

std::string tfrecord(std::string_view payload) {
  std::string out;
  append_little_endian(out, static_cast<uint64_t>(payload.size()));
  append_little_endian(out, masked_crc(out));
  out += payload;
  append_little_endian(out, masked_crc(payload));
  return out;
}

std::string version_event(double wall_time) {
  std::string out = event_head(wall_time, 0);
  append_message(out, 3, "brain.Event:2");
  return out;
}

std::string restart_event(double wall_time, int64_t step) {
  std::string log, out = event_head(wall_time, step);
  append_integer(log, 1, 1);  // SessionLog.START
  append_message(out, 7, log);
  return out;
}

std::string scalars_event(double wall_time, int64_t step, std::span<const std::pair<std::string, double>> values) {
  std::string summary, out = event_head(wall_time, step);
  for (const auto& [name, number] : values) {
    std::string value;
    append_message(value, 1, name);
    append_key(value, 2, Wire::bits32);
    append_little_endian(value, std::bit_cast<uint32_t>(static_cast<float>(number)));
    append_message(summary, 1, value);
  }
  append_message(out, 5, summary);
  return out;
}

std::string events_before(std::string_view file, int64_t next_step) {
  std::string kept;
  while (file.size() >= frame_head + frame_tail) {
    const auto length = little_endian<uint64_t>(file);
    if (little_endian<uint32_t>(file.substr(8)) != masked_crc(file.substr(0, 8))) break;
    if (length > file.size() - frame_head - frame_tail) break;
    const std::string_view record = file.substr(0, frame_head + length + frame_tail);
    const std::string_view payload = record.substr(frame_head, length);
    if (little_endian<uint32_t>(record.substr(frame_head + length)) != masked_crc(payload)) break;
    const int64_t step = step_of(payload);
    // The version stands at step 0 and belongs to the file.
    if (step >= 0 && (step < next_step || kept.empty())) kept += record;
    file.remove_prefix(record.size());
  }
  return kept;
}

EventWriter::EventWriter(std::string folder, int64_t next_step) : folder_(std::move(folder)) {
  path_ = fmt::format("{}/{}{:010}{}", folder_, file_prefix, next_step, file_suffix);
  try {
    make_directories(folder_);
    clean(next_step);
    fd_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd_ < 0) fail(Exit::resources, "cannot write {}: {}", path_, std::strerror(errno));
  } catch (const Error& error) {
    warn_once(error.what());
    return;
  } catch (const std::filesystem::filesystem_error& error) {
    warn_once(error.what());
    return;
  }
  const double now = wall_time();
  add(tfrecord(version_event(now)) + (next_step > 0 ? tfrecord(restart_event(now, next_step)) : ""));
}

EventWriter::~EventWriter() {
  if (fd_ >= 0) close(fd_);
}

void EventWriter::clean(int64_t next_step) {
  for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(file_prefix) || !name.ends_with(file_suffix)) continue;
    const std::string first = name.substr(file_prefix.size(), name.size() - file_prefix.size() - file_suffix.size());
    if (first >= fmt::format("{:010}", next_step)) {
      std::filesystem::remove(entry.path());
      continue;
    }
    const std::string text = read_file(entry.path().string()), kept = events_before(text, next_step);
    if (kept.size() != text.size()) write_file_atomic(entry.path().string(), kept);
  }
}

void EventWriter::warn_once(const std::string& why) {
  if (warned_) return;
  warned_ = true;
  log::warn("TensorBoard events could not be written, the run goes on: {}", why);
}

void EventWriter::add(const std::string& records) {
  for (size_t done = 0; done < records.size();) {
    const ssize_t n = ::write(fd_, records.data() + done, records.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      warn_once(fmt::format("cannot write {}: {}", path_, std::strerror(errno)));
      // A torn record would end the file for its readers.
      if (ftruncate(fd_, bytes_) != 0 || lseek(fd_, bytes_, SEEK_SET) < 0) {
        close(fd_);
        fd_ = -1;
      }
      return;
    }
    done += static_cast<size_t>(n);
  }
  bytes_ += static_cast<int64_t>(records.size());
}

void EventWriter::write(int64_t step, std::span<const std::pair<std::string, double>> values) {
  if (fd_ >= 0 && !values.empty()) add(tfrecord(scalars_event(wall_time(), step, values)));
}

void EventWriter::sync() {
  if (fd_ >= 0 && fdatasync(fd_) != 0) warn_once(fmt::format("cannot sync {}: {}", path_, std::strerror(errno)));
}

}  // namespace furlong
