#include "server/fields.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/text.h"
#include "server/api_error.h"

namespace furlong {
namespace {

constexpr double least_log_prob = -9999;

// What a body's values and names take in memory is many times what they take in the body; and while it is parsed, a
// text takes six times its bytes as they stand there, and anything else between two marks of the syntax three times.
constexpr int64_t most_values = 500'000, most_names = 20'000;
constexpr size_t most_text_bytes = 4 << 20, most_plain_bytes = 4 << 20;

void check_counts(std::string_view json) {
  int64_t commas = 0, colons = 0;
  size_t text_bytes = 0, plain_bytes = 0;
  for (size_t i = 0; i < json.size(); i++) {
    commas += json[i] == ',';
    colons += json[i] == ':';
    plain_bytes = std::string_view(",:[]{}\"").find(json[i]) == std::string_view::npos ? plain_bytes + 1 : 0;
    if (plain_bytes > most_plain_bytes) {
      refuse("", "the body has blanks or a number of more than {} bytes", most_plain_bytes);
    }
    if (json[i] != '"') continue;
    const size_t begin = i++;
    while (i < json.size() && json[i] != '"') i += json[i] == '\\' ? 2 : 1;
    text_bytes += std::min(i, json.size()) - begin;
  }
  if (text_bytes > most_text_bytes) {
    throw ApiError(
        400, "context_length_exceeded", "",
        fmt::format("the texts of the body take {} bytes of it; at most {} are taken", text_bytes, most_text_bytes));
  }
  if (commas < most_values && colons <= most_names) return;
  refuse("", "the body has more than {} values or {} names", most_values, most_names);
}

[[noreturn]] void wrong_type(const std::string& path, const char* wanted, const Json& value) {
  refuse(path, "{} must be {}, not {}", path, wanted,
         printable(value.dump(-1, ' ', true, Json::error_handler_t::replace), 40));
}

}  // namespace

Json parse_body(const std::string& body) {
  check_counts(body);
  try {
    Json json = parse_json(body, "body");
    if (json.is_object()) return json;
  } catch (const Error& error) {
    throw ApiError(400, "", "", error.what());
  }
  throw ApiError(400, "", "", "the body must be a JSON object");
}

Fields::Fields(const Json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {}

const Json* Fields::find(const std::string& name) {
  known_.insert(name);
  const auto found = object_.find(name);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

std::optional<bool> Fields::flag(const std::string& name) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) wrong_type(path(name), "true or false", *value);
  return value->get<bool>();
}

std::optional<int64_t> Fields::integer(const std::string& name, int64_t least, int64_t most) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer()) wrong_type(path(name), "an integer", *value);
  const bool huge = value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(INT64_MAX);
  const int64_t number = huge ? INT64_MAX : value->get<int64_t>();
  if (number < least || number > most || huge) {
    refuse(path(name), "{} must be from {} to {}, not {}", path(name), least, most, value->dump());
  }
  return number;
}

std::optional<double> Fields::real(const std::string& name, double least, double most) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number()) wrong_type(path(name), "a number", *value);
  const auto number = value->get<double>();
  if (!(number >= least && number <= most)) {
    refuse(path(name), "{} must be from {} to {}, not {}", path(name), least, most, value->dump());
  }
  return number;
}

std::optional<std::string> Fields::text(const std::string& name, size_t most_bytes) {
  const Json* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) wrong_type(path(name), "a text", *value);
  auto text = value->get<std::string>();
  if (text.size() > most_bytes) refuse(path(name), "{} may have at most {} bytes", path(name), most_bytes);
  return text;
}

std::vector<std::string> Fields::texts(const std::string& name, size_t most, size_t most_bytes) {
  const Json* value = find(name);
  if (value == nullptr) return {};
  if (!value->is_string() && !value->is_array()) wrong_type(path(name), "a text or a list of texts", *value);
  if (value->is_array() && value->size() > most) refuse(path(name), "{} may list at most {} texts", path(name), most);
  std::vector<std::string> out;
  for (const Json& item : value->is_array() ? *value : Json::array({*value})) {
    if (!item.is_string()) wrong_type(path(name), "a text or a list of texts", item);
    out.push_back(item.get<std::string>());
    if (out.back().size() > most_bytes)
      refuse(path(name), "a text of {} may have at most {} bytes", path(name), most_bytes);
  }
  return out;
}

std::vector<int32_t> Fields::ids(const std::string& name, size_t most) {
  const Json* value = find(name);
  if (value == nullptr) return {};
  if (value->is_array() && value->size() > most) refuse(path(name), "{} may list at most {} ids", path(name), most);
  return token_ids(*value, path(name));
}

void Fields::ignore(std::initializer_list<const char*> names) { known_.insert(names.begin(), names.end()); }

void Fields::only(const std::string& name, std::initializer_list<Json> values) {
  const Json* value = find(name);
  if (value == nullptr || std::find(values.begin(), values.end(), *value) != values.end()) return;
  refuse(path(name), "{} is not offered by this server; leave it out", path(name));
}

void Fields::close() const {
  for (const auto& [name, value] : object_.items()) {
    if (known_.count(name) > 0) continue;
    const auto near = nearest_names(name, {known_.begin(), known_.end()}, 1);
    refuse(path(name), "{} is not a field of this request{}", printable(path(name)),
           near.empty() ? "" : fmt::format("; did you mean {}?", near[0]));
  }
}

std::vector<int32_t> token_ids(const Json& value, const std::string& path) {
  if (!value.is_array()) wrong_type(path, "a list of token ids", value);
  std::vector<int32_t> ids;
  ids.reserve(value.size());
  for (const Json& id : value) {
    if (!id.is_number_integer()) wrong_type(path, "a list of token ids", id);
    const bool fits = id.is_number_unsigned() ? id.get<uint64_t>() <= INT32_MAX : id.get<int64_t>() >= 0;
    if (!fits) refuse(path, "{}: {} is not a token id", path, id.dump());
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

void read_sampling(Fields& fields, GenerationCall& call) {
  call.params.temperature = fields.real("temperature", 0, 100).value_or(1);
  call.params.top_p = fields.real("top_p", 0, 1).value_or(1);
  call.params.top_k = fields.integer("top_k", -1, INT32_MAX).value_or(-1);
  call.samples = fields.integer("n", 1, most_samples).value_or(1);
  call.ignore_eos = fields.flag("ignore_eos").value_or(false);
  call.stop_ids = fields.ids("stop_token_ids", most_stop_ids);
  call.text.stops = fields.texts("stop", most_stops, most_stop_bytes);
  for (const std::string& stop : call.text.stops) {
    if (stop.empty()) refuse(fields.path("stop"), "an empty stop text would end every response at once");
  }
  call.text.skip_special = fields.flag("skip_special_tokens").value_or(true);
  fields.only("spaces_between_special_tokens", {true, false});
  fields.only("frequency_penalty", {0});
  fields.only("presence_penalty", {0});
  fields.only("repetition_penalty", {1});
  fields.only("min_p", {0});
}

double finite_log_prob(float value) {
  return std::isfinite(value) ? std::max(static_cast<double>(value), least_log_prob) : least_log_prob;
}

std::string token_text(const ServedModel& model, int32_t id) {
  return model.tokenizer && model.tokenizer->contains(id) ? model.tokenizer->token_text(id) : std::string();
}

std::string dumped(const OrderedJson& json) { return json.dump(-1, ' ', false, OrderedJson::error_handler_t::replace); }

}  // namespace furlong
