// Event files as TensorBoard reads them: a step's numbers as scalars. Losing them never stops a run.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace furlong {

// CRC-32C (Castagnoli), as TFRecord takes it; its check value for "123456789" is 0xe3069283.
uint32_t crc32c(std::string_view bytes);

// A record of a TFRecord file: length (8 bytes, little-endian), masked CRC of these, payload, masked CRC of the
// payload.
std::string tfrecord(std::string_view payload);

// tensorflow.Event messages (event.proto, summary.proto). wall_time: seconds since 1970.
std::string version_event(double wall_time);                // the first of a file
std::string restart_event(double wall_time, int64_t step);  // what a reader knows of this and later steps is void
std::string scalars_event(double wall_time, int64_t step, std::span<const std::pair<std::string, double>> values);

// The records of an event file that are whole and belong to steps before `next_step`, as they stand there.
std::string events_before(std::string_view file, int64_t next_step);

// Writes to a new file of `folder`, named after the step it begins with. Events of `next_step` and later steps are
// taken out of the folder's earlier files of this kind, and with them what a crash has torn; next_step = 0 starts over.
// Every failure is one warning in all, and no exception.
class EventWriter {
 public:
  EventWriter(std::string folder, int64_t next_step);
  ~EventWriter();
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;

  // Names are tags ("train/loss": TensorBoard groups by what stands before the slash); values become floats.
  void write(int64_t step, std::span<const std::pair<std::string, double>> values);
  void sync();

 private:
  void clean(int64_t next_step);
  void add(const std::string& records);
  void warn_once(const std::string& why);
  std::string folder_, path_;
  int fd_ = -1;
  int64_t bytes_ = 0;
  bool warned_ = false;
};

}  // namespace furlong
