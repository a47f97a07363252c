// The fields of a request's JSON body, each of the type that is wanted or refused by name. For .cpp files alone.
#pragma once
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "server/generation.h"

namespace furlong {

// A body that is a JSON object, with texts of at most 4 MiB in all. Throws ApiError (400).
Json parse_body(const std::string& body);

// Reads an object field by field; null is as good as absent. Everything throws ApiError (400) naming the field.
class Fields {
 public:
  // prefix: stands before a name in errors ("stream_options.").
  explicit Fields(const Json& object, std::string prefix = "");

  // The value, or null where it is absent or null.
  const Json* find(const std::string& name);
  std::optional<bool> flag(const std::string& name);
  std::optional<int64_t> integer(const std::string& name, int64_t least, int64_t most);
  std::optional<double> real(const std::string& name, double least, double most);
  std::optional<std::string> text(const std::string& name, size_t most_bytes = SIZE_MAX);
  // A text or a list of texts.
  std::vector<std::string> texts(const std::string& name, size_t most, size_t most_bytes);
  std::vector<int32_t> ids(const std::string& name, size_t most);
  // What is accepted but changes nothing.
  void ignore(std::initializer_list<const char*> names);
  // What is only accepted with the value that changes nothing: 0, 1, "" ...
  void only(const std::string& name, std::initializer_list<Json> values);
  // Throws for fields that nobody asked for.
  void close() const;
  std::string path(const std::string& name) const { return prefix_ + name; }

 private:
  const Json& object_;
  std::string prefix_;
  std::set<std::string> known_;
};

// The list of token ids `value`.
std::vector<int32_t> token_ids(const Json& value, const std::string& path);

constexpr size_t most_stops = 16, most_stop_bytes = 1024, most_stop_ids = 64;
constexpr int64_t most_alternatives = 20;

// temperature, top_p, top_k, min_tokens, ignore_eos, stop texts and ids, and what goes with them. They have the same
// names on all routes.
void read_sampling(Fields&, GenerationCall&);

// A number that JSON can hold, for a log-prob.
double finite_log_prob(float value);
std::string token_text(const ServedModel&, int32_t id);
std::string dumped(const OrderedJson&);

}  // namespace furlong
