#include "monitor/metrics.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "base/append.h"
#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "monitor/table.h"
#include "monitor/tensorboard.h"

namespace furlong {
namespace {

struct OldRows {
  std::string kept;
  int64_t later = 0;    // rows of next_step and later steps
  int64_t damaged = 0;  // lines that are no JSON, a torn last one too
  std::string damage;   // what is wrong with the first of them
};

// The rows of a metrics file that come before `next_step`. Rows without a step are kept; a line that is no JSON is not.
OldRows rows_before(const std::string& text, const std::string& path, int64_t next_step) {
  OldRows rows;
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t newline = text.find('\n', begin);
    const size_t end = newline == text.npos ? text.size() : newline;
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    number++;
    try {
      const Json row = parse_json_line(line, path, number);
      const auto step = row.is_object() ? row.find("step") : row.end();
      const bool stepped = row.is_object() && step != row.end() && step->is_number_integer();
      if (stepped && step->get<int64_t>() >= next_step) {
        rows.later++;
      } else {
        rows.kept += line + "\n";
      }
    } catch (const Error& error) {
      if (rows.damaged++ == 0) rows.damage = error.what();
    }
  }
  return rows;
}

void append_double(std::string& out, double value) {
  char text[40];
  const auto result = std::to_chars(text, text + sizeof text, value);
  out.append(text, static_cast<size_t>(result.ptr - text));
}

std::string quoted(const std::string& name) { return Json(name).dump(-1, ' ', false, Json::error_handler_t::replace); }

// A count in at most 6 columns.
std::string short_count(int64_t n) {
  return n < 0 || n > 999999 ? short_number(static_cast<double>(n)) : fmt::format("{}", n);
}

// "1.2e-4": scientific without the exponent's padding, in at most 6 columns.
std::string scientific(double value) {
  const double size = std::fabs(value);
  const bool narrow = value < 0 || size < 9.95e-10 || size >= 9.95e99;
  const std::string text = fmt::format("{:.{}e}", value, narrow ? 0 : 1);
  const size_t e = text.find('e');
  const bool negative = text[e + 1] == '-';
  const size_t digits = text.find_first_not_of('0', e + 2);
  return text.substr(0, e + 1) + (negative ? "-" : "") + text.substr(digits);
}

// A share as "62%"; small ones with their digits.
std::string percent(double share) {
  const double value = 100 * share;
  return (value >= 9.5 && value < 999.5 ? fmt::format("{:.0f}", value) : short_number(value)) + "%";
}

}  // namespace

MetricsWriter::MetricsWriter(std::string path, int64_t next_step, const std::string& events)
    : path_(std::move(path)), next_step_(next_step) {
  open();
  if (!events.empty()) events_ = std::make_unique<EventWriter>(events, next_step);
}

MetricsWriter::~MetricsWriter() = default;

void MetricsWriter::warn_once(const std::string& why) {
  if (warned_) return;
  warned_ = true;
  log::warn("metrics could not be written, the run goes on: {}", why);
}

void MetricsWriter::open() {
  try {
    std::error_code code;
    if (std::filesystem::exists(path_, code)) {
      const OldRows rows = rows_before(read_file(path_), path_, next_step_);
      if (rows.later + rows.damaged > 0) write_file_atomic(path_, rows.kept);
      if (rows.later > 0) log::info("{}: {} rows of step {} and later dropped", path_, rows.later, next_step_);
      if (rows.damaged > 0) log::warn("{} damaged rows dropped, the first at {}", rows.damaged, rows.damage);
    }
    file_ = std::make_unique<LineAppender>(path_);
  } catch (const Error& error) {
    warn_once(error.what());
  }
}

void MetricsWriter::write(int64_t step, std::span<const std::pair<std::string, double>> values) {
  std::string row = fmt::format("{{\"step\":{}", step);
  for (const auto& [name, value] : values) {
    row += ',';
    row += quoted(name);
    row += ':';
    if (std::isfinite(value)) {
      append_double(row, value);
      continue;
    }
    row += "null";
    if (not_finite_.insert(name).second) log::warn("step {}: {} is {}; written as null", step, name, value);
  }
  row += '}';
  if (events_) events_->write(step, values);
  if (file_ == nullptr) return;
  try {
    file_->add(row);
  } catch (const Error& error) {
    warn_once(error.what());
  }
}

void MetricsWriter::sync() {
  if (events_) events_->sync();
  if (file_ == nullptr) return;
  try {
    file_->sync();
  } catch (const Error& error) {
    warn_once(error.what());
  }
}

std::vector<double> newest_values(const std::string& path, const std::string& name, size_t count) {
  std::vector<double> values;
  std::error_code code;
  if (!std::filesystem::exists(path, code)) return values;
  try {
    const std::string text = read_file(path);
    // From the end: a long run has many rows.
    for (size_t end = text.size(); end > 0 && values.size() < count;) {
      const size_t newline = text.rfind('\n', end - 1);
      const size_t begin = newline == text.npos ? 0 : newline + 1;
      const Json row = Json::parse(text.begin() + static_cast<ptrdiff_t>(begin),
                                   text.begin() + static_cast<ptrdiff_t>(end), nullptr, false);
      if (row.is_object() && row.contains(name) && row[name].is_number()) values.push_back(row[name].get<double>());
      end = newline == text.npos ? 0 : newline;
    }
  } catch (const Error& error) {
    log::warn("{}", error.what());
  }
  std::reverse(values.begin(), values.end());
  return values;
}

std::string short_number(double value) {
  if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
  const double size = std::fabs(value);
  if (size < 1e-99) return "0";
  if (size < 0.0009995 || size >= 9.995e14) return scientific(value);
  if (size < 0.9995) return fmt::format("{:.3f}", value);
  constexpr const char* units[] = {"", "k", "M", "G", "T"};
  double scaled = value;
  size_t unit = 0;
  while (std::fabs(scaled) >= 999.5 && unit + 1 < std::size(units)) {
    scaled /= 1000;
    unit++;
  }
  const double left = std::fabs(scaled);
  return fmt::format("{:.{}f}{}", scaled, left < 9.995 ? 2 : left < 99.95 ? 1 : 0, units[unit]);
}

std::string short_duration(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "?";
  if (seconds < 9.995) return fmt::format("{:.2f}s", seconds);
  if (seconds < 99.95) return fmt::format("{:.1f}s", seconds);
  if (seconds >= 86400.0 * 1000) return ">999d";
  const auto s = static_cast<int64_t>(std::llround(seconds));
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  if (s < 86400 * 100) return fmt::format("{}d{:02}h", s / 86400, s / 3600 % 24);
  return fmt::format("{}d", s / 86400);
}

std::string format_step_line(const StepLine& line) {
  std::string out = fmt::format("step {}/{}", short_count(line.step + 1), short_count(line.steps));
  const auto add = [&out](const char* name, const std::optional<double>& value) {
    if (value) out += fmt::format(" {} {}", name, short_number(*value));
  };
  add("reward", line.reward);
  if (line.reward && line.reward_std) out += fmt::format("±{}", short_number(*line.reward_std));
  add("len", line.response_length);
  add("kl", line.kl);
  add("grad", line.grad_norm);
  add("acc", line.accept_length);
  if (line.rollout_seconds) out += fmt::format(" roll {}", short_duration(*line.rollout_seconds));
  if (line.train_seconds) out += fmt::format(" train {}", short_duration(*line.train_seconds));
  const std::string speed =
      line.tokens_per_second ? fmt::format(" {} tok/s", short_number(*line.tokens_per_second)) : "";
  const std::string limit = line.limit_share ? fmt::format(" {} of limit", percent(*line.limit_share)) : "";
  const std::string eta = line.eta_seconds ? fmt::format(" ETA {}", short_duration(*line.eta_seconds)) : "";
  // Numbers have at most 6 columns, so that all but these two always fit.
  for (const std::string& more : {speed + limit, limit}) {
    if (text_columns(out + more + eta) <= 120) return out + more + eta;
  }
  return out + eta;
}

}  // namespace furlong
