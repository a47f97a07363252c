#include "data/trajectory.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/append.h"
#include "base/check.h"
#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "data/json_row.h"
#include "data/jsonl.h"

namespace furlong {
namespace {

constexpr const char* format_name = "furlong.trajectory";
constexpr int format_version = 1;
constexpr int64_t no_limit = std::numeric_limits<int64_t>::max();
constexpr const char* status_names[] = {"completed", "truncated", "aborted", "failed"};
constexpr std::string_view known_keys[] = {"tokens",      "response_length", "loss_mask",      "reward",
                                           "group_index", "index",           "status",         "rollout_log_probs",
                                           "log_probs",   "ref_log_probs",   "weight_version", "response",
                                           "label",       "spec_accepted",   "spec_drafted",   "spec_verify_steps"};

// ---- reading ----

const Json& list_of(const JsonRow& row, const std::string& key, const Json& value, int64_t length) {
  if (!value.is_array()) row.wrong(key, value, "a list of numbers");
  if (length >= 0 && static_cast<int64_t>(value.size()) != length) {
    fail(Exit::input, "{}: \"{}\" has {} entries; expected response_length = {}", row.where(), key, value.size(),
         length);
  }
  return value;
}

// The integers of a list, each in [0, high].
template <class T>
std::vector<T> integers(const JsonRow& row, const std::string& key, const Json& value, int64_t length, uint64_t high) {
  std::vector<T> out;
  out.reserve(list_of(row, key, value, length).size());
  for (const Json& item : value) {
    if (!item.is_number_unsigned() || item.get<uint64_t>() > high) {
      fail(Exit::input, "{}: \"{}\"[{}] is {}; expected an integer from 0 to {}", row.where(), key, out.size(),
           item.is_number() ? item.dump() : json_kind(item), high);
    }
    out.push_back(static_cast<T>(item.get<uint64_t>()));
  }
  return out;
}

std::optional<std::vector<float>> floats(const JsonRow& row, const std::string& key, int64_t length) {
  const Json* value = row.find(key);
  if (value == nullptr || value->is_null()) return {};
  std::vector<float> out;
  out.reserve(list_of(row, key, *value, length).size());
  for (const Json& item : *value) {
    const float x = item.is_number() ? item.get<float>() : 0;
    if (!item.is_number() || !std::isfinite(x)) {
      fail(Exit::input, "{}: \"{}\"[{}] is {}; expected a finite 32-bit float", row.where(), key, out.size(),
           item.is_number() ? item.dump() : json_kind(item));
    }
    out.push_back(x);
  }
  return out;
}

std::optional<std::string> text_of(const JsonRow& row, const std::string& key) {
  const Json* value = row.find(key);
  if (value == nullptr || value->is_null()) return {};
  if (!value->is_string()) row.wrong(key, *value, "a string");
  return value->get<std::string>();
}

Trajectory::Status read_status(const JsonRow& row) {
  const Json* value = row.find("status");
  if (value == nullptr) return Trajectory::Status::completed;
  if (value->is_string()) {
    for (size_t i = 0; i < std::size(status_names); i++) {
      if (value->get_ref<const std::string&>() == status_names[i]) return static_cast<Trajectory::Status>(i);
    }
  }
  fail(Exit::input, "{}: \"status\" is {}; expected \"completed\", \"truncated\", \"aborted\" or \"failed\"",
       row.where(), row.raw("status"));
}

std::optional<double> read_reward(const JsonRow& row) {
  const Json& value = row.at("reward");
  if (value.is_null()) return {};
  if (!value.is_number()) row.wrong("reward", value, "a number, or null for an unscored sample");
  return value.get<double>();
}

int64_t integer_or(const JsonRow& row, const std::string& key, int64_t low, int64_t fallback) {
  return row.find(key) == nullptr ? fallback : row.integer(key, low, no_limit);
}

std::string other_keys(const JsonRow& row, bool prompt_is_text) {
  std::string out;
  for (const auto& member : row.members()) {
    if (std::find(std::begin(known_keys), std::end(known_keys), member.key) != std::end(known_keys)) continue;
    if (member.key == "prompt" && prompt_is_text) continue;
    out += out.empty() ? "{" : ",";
    append_json_string(out, member.key);
    out += ':';
    out += member.raw;
  }
  return out.empty() ? out : out + "}";
}

Trajectory read_row(const JsonRow& row) {
  Trajectory t;
  t.tokens = integers<int32_t>(row, "tokens", row.at("tokens"), -1, std::numeric_limits<int32_t>::max());
  if (t.tokens.empty()) fail(Exit::input, "{}: \"tokens\" is empty", row.where());
  const auto most = std::min<int64_t>(static_cast<int64_t>(t.tokens.size()) - 1, std::numeric_limits<int32_t>::max());
  // At least one prompt token, so that the first response token has something to follow.
  const int64_t n = row.integer("response_length", 0, most);
  t.response_length = static_cast<int32_t>(n);
  const Json* mask = row.find("loss_mask");
  t.loss_mask = mask == nullptr || mask->is_null() ? std::vector<uint8_t>(static_cast<size_t>(n), 1)
                                                   : integers<uint8_t>(row, "loss_mask", *mask, n, 1);
  t.reward = read_reward(row);
  t.group_index = row.integer("group_index", 0, no_limit);
  t.index = row.integer("index", 0, no_limit);
  t.rollout_log_probs = floats(row, "rollout_log_probs", n).value_or(std::vector<float>{});
  t.log_probs = floats(row, "log_probs", n);
  t.ref_log_probs = floats(row, "ref_log_probs", n);
  t.status = read_status(row);
  t.weight_version = integer_or(row, "weight_version", 0, 0);
  t.response_text = text_of(row, "response");
  if (row.find("label") != nullptr) t.label = row.label("label");
  t.spec_accepted = integer_or(row, "spec_accepted", 0, 0);
  t.spec_drafted = integer_or(row, "spec_drafted", 0, 0);
  t.spec_verify_steps = integer_or(row, "spec_verify_steps", 0, 0);
  // Other programs keep a message list under "prompt"; that is carried along like any unknown key.
  const Json* prompt = row.find("prompt");
  const bool prompt_is_text = prompt != nullptr && prompt->is_string();
  if (prompt_is_text) t.prompt_text = prompt->get<std::string>();
  t.extra_json = other_keys(row, prompt_is_text);
  return t;
}

// Whether the row is the header; refuses a header of another format or version.
bool is_header(const JsonRow& row) {
  if (row.find("format") == nullptr || row.find("tokens") != nullptr) return false;
  const Json& format = row.at("format");
  if (format != format_name) {
    fail(Exit::input, "{}: \"format\" is {}; expected \"{}\"", row.where(), row.raw("format"), format_name);
  }
  if (row.at("version") != format_version) {
    fail(Exit::input,
         "{}: trajectory format version {} is not known (this program reads version {}); use the program "
         "that wrote it, or a newer one",
         row.where(), row.raw("version"), format_version);
  }
  return true;
}

// ---- writing ----

template <class T>
void append_number(std::string& out, T value) {
  char text[40];
  const auto result = std::to_chars(text, text + sizeof text, value);
  out.append(text, static_cast<size_t>(result.ptr - text));
}

// The shortest digits that a reader gets the same float from, also when it reads a double first, as JSON readers do.
void append_float(std::string& out, float value) {
  if (value == 0 && std::signbit(value)) {
    out += "-0.0";  // readers take -0 for the integer 0
    return;
  }
  char text[40];
  char* const end = std::to_chars(text, text + sizeof text, value).ptr;
  double read = 0;
  std::from_chars(text, end, read);
  if (static_cast<float>(read) != value) return append_number(out, static_cast<double>(value));
  out.append(text, static_cast<size_t>(end - text));
}

template <class T>
void append_integers(std::string& out, const char* key, const std::vector<T>& values) {
  out += fmt::format(",\"{}\":[", key);
  for (size_t i = 0; i < values.size(); i++) {
    if (i > 0) out += ',';
    append_number(out, static_cast<int64_t>(values[i]));
  }
  out += ']';
}

void append_floats(std::string& out, const Trajectory& t, const char* key, const std::vector<float>& values) {
  CHECK(static_cast<int64_t>(values.size()) == t.response_length, "{} has {} entries for {} response tokens", key,
        values.size(), t.response_length);
  out += fmt::format(",\"{}\":[", key);
  for (size_t i = 0; i < values.size(); i++) {
    if (!std::isfinite(values[i])) {
      fail(Exit::numerics, "sample {} of group {}: {}[{}] is {}", t.index, t.group_index, key, i, values[i]);
    }
    if (i > 0) out += ',';
    append_float(out, values[i]);
  }
  out += ']';
}

void append_texts(std::string& out, const Trajectory& t) {
  const std::pair<const char*, const std::optional<std::string>*> texts[] = {{"prompt", &t.prompt_text},
                                                                             {"response", &t.response_text}};
  for (const auto& [key, text] : texts) {
    if (!*text) continue;
    out += fmt::format(",\"{}\":", key);
    append_json_string(out, **text);
  }
  if (!t.label) return;
  out += ",\"label\":";
  append_json_label(out, *t.label);
}

}  // namespace

const char* status_name(Trajectory::Status status) { return status_names[static_cast<size_t>(status)]; }

std::vector<Trajectory> read_trajectories(const std::string& spec) {
  const InputSpec input = parse_input_spec(spec);
  JsonlReader reader(input.path);
  std::vector<Trajectory> all;
  while (reader.next()) {
    std::optional<JsonRow> row;
    try {
      row.emplace(reader.text(), reader.name(), reader.line());
    } catch (const Error& error) {
      if (reader.terminated()) throw;
      log::warn("{}: the last line is torn and is dropped ({})", reader.where(), error.what());
      break;
    }
    if (reader.row() == 0 && is_header(*row)) continue;
    all.push_back(read_row(*row));
  }
  const auto [first, last] = input.slice.resolve(static_cast<int64_t>(all.size()));
  all.erase(all.begin() + last, all.end());
  all.erase(all.begin(), all.begin() + first);
  return all;
}

std::string trajectory_header() {
  return fmt::format("{{\"format\":\"{}\",\"version\":{}}}", format_name, format_version);
}

std::string trajectory_row(const Trajectory& t) {
  CHECK(t.response_length >= 0 && t.prompt_length() > 0, "{} tokens, {} of them response", t.tokens.size(),
        t.response_length);
  CHECK(static_cast<int64_t>(t.loss_mask.size()) == t.response_length, "{} mask entries for {} response tokens",
        t.loss_mask.size(), t.response_length);
  std::string out = fmt::format("{{\"group_index\":{},\"index\":{},\"status\":\"{}\",\"weight_version\":{},\"reward\":",
                                t.group_index, t.index, status_name(t.status), t.weight_version);
  if (t.reward && std::isfinite(*t.reward)) {
    append_number(out, *t.reward);
  } else {
    out += "null";
  }
  if (t.spec_verify_steps > 0 || t.spec_drafted > 0) {
    out += fmt::format(",\"spec_accepted\":{},\"spec_drafted\":{},\"spec_verify_steps\":{}", t.spec_accepted,
                       t.spec_drafted, t.spec_verify_steps);
  }
  append_texts(out, t);
  out += fmt::format(",\"response_length\":{}", t.response_length);
  append_integers(out, "tokens", t.tokens);
  append_integers(out, "loss_mask", t.loss_mask);
  if (!t.rollout_log_probs.empty()) append_floats(out, t, "rollout_log_probs", t.rollout_log_probs);
  if (t.log_probs) append_floats(out, t, "log_probs", *t.log_probs);
  if (t.ref_log_probs) append_floats(out, t, "ref_log_probs", *t.ref_log_probs);
  if (t.extra_json.empty()) return out + "}";
  // The other keys' object without its opening brace.
  return out + "," + t.extra_json.substr(1);
}

Trajectory parse_trajectory(std::string_view row, const std::string& where) { return read_row(JsonRow(row, where, 1)); }

void write_trajectories(const std::string& path, std::span<const Trajectory> trajectories) {
  FileWriter file(path);
  const auto write = [&](const std::string& line) { file.write((line + "\n").data(), line.size() + 1); };
  write(trajectory_header());
  for (const Trajectory& trajectory : trajectories) write(trajectory_row(trajectory));
  file.commit();
}

TrajectoryWriter::TrajectoryWriter(const std::string& path) : file_(std::make_unique<LineAppender>(path)) {
  if (file_->torn_bytes() > 0) log::warn("{}: a torn last line of {} bytes was cut off", path, file_->torn_bytes());
  if (file_->bytes() == 0) file_->add(trajectory_header());
}

TrajectoryWriter::~TrajectoryWriter() = default;

void TrajectoryWriter::add(const Trajectory& trajectory) {
  CHECK(file_ != nullptr, "add after close");
  file_->add(trajectory_row(trajectory));
}

void TrajectoryWriter::close() {
  CHECK(file_ != nullptr, "closed twice");
  file_->sync();
  file_.reset();
}

}  // namespace furlong
