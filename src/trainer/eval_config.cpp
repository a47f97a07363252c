#include "trainer/eval_config.h"

#include <fmt/ranges.h>

#include <cmath>
#include <limits>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/text.h"
#include "base/yaml.h"

namespace furlong {
namespace {

// What one mapping of the file gives; `where` names it in errors.
class SpecReader {
 public:
  SpecReader(const Json& map, std::string where) : map_(map), where_(std::move(where)) {
    if (!map.is_object()) fail(Exit::input, "{}: expected a mapping of settings", where_);
  }

  void text(const char* key, std::string& out) {
    const Json* v = take(key);
    if (v == nullptr) return;
    if (!v->is_string()) wrong(key, "text");
    out = v->get<std::string>();
  }
  void integer(const char* key, int64_t& out, int64_t low) {
    const Json* v = take(key);
    if (v == nullptr) return;
    if (!v->is_number_integer() || v->get<int64_t>() < low) wrong(key, fmt::format("an integer of {} or more", low));
    out = v->get<int64_t>();
  }
  void real(const char* key, double& out, double low, double high) {
    const Json* v = take(key);
    if (v == nullptr) return;
    if (!v->is_number() || v->get<double>() < low || v->get<double>() > high) {
      wrong(key, fmt::format("a number from {} to {}", low, high));
    }
    out = v->get<double>();
  }
  void texts(const char* key, Texts& out) {
    const Json* v = take(key);
    if (v == nullptr) return;
    out.clear();
    for (const Json& item : v->is_array() ? *v : Json::array({*v})) {
      if (!item.is_string() || item.get_ref<const std::string&>().empty()) wrong(key, "texts");
      out.push_back(item);
    }
  }
  void integers(const char* key, Integers& out) {
    const Json* v = take(key);
    if (v == nullptr) return;
    out.clear();
    for (const Json& item : v->is_array() ? *v : Json::array({*v})) {
      if (!item.is_number_integer() || item.get<int64_t>() < 0) wrong(key, "token ids");
      out.push_back(item);
    }
  }
  const Json* take(const char* key) {
    known_.insert(key);
    const auto it = map_.find(key);
    return it == map_.end() || it->is_null() ? nullptr : &*it;
  }
  [[noreturn]] void wrong(const char* key, const std::string& expected) const {
    fail(Exit::input, "{}: {} is {}; expected {}", where_, key, printable(map_[key].dump()), expected);
  }
  void nothing_else() const {
    for (const auto& [key, value] : map_.items()) {
      if (known_.contains(key)) continue;
      const auto near = nearest_names(key, {known_.begin(), known_.end()});
      fail(
          Exit::input, "{}: {} means nothing here; {}", where_, printable(key),
          near.empty() ? fmt::format("what does: {}", fmt::join(known_, ", ")) : "did you mean " + join_or(near) + "?");
    }
  }

 private:
  const Json& map_;
  std::string where_;
  std::set<std::string> known_;
};

EvalSpec spec_of(const Settings& s) {
  const auto first = [](const std::string& a, const std::string& b) { return a.empty() ? b : a; };
  return {.name = {},
          .path = {},
          .input_key = first(s.eval_input_key, s.input_key),
          .label_key = first(s.eval_label_key, s.label_key),
          .tool_key = s.tool_key,
          .metadata_key = s.metadata_key,
          .samples = s.n_samples_per_eval_prompt,
          .temperature = s.eval_temperature.value_or(s.rollout_temperature),
          .top_p = s.eval_top_p.value_or(s.rollout_top_p),
          .top_k = s.eval_top_k.value_or(s.rollout_top_k),
          .max_response = s.eval_max_response_len.value_or(s.rollout_max_response_len.value_or(0)),
          .stop = s.rollout_stop,
          .stop_token_ids = s.rollout_stop_token_ids};
}

// What defaults and sets may both give.
void read_common(SpecReader& in, EvalSpec& spec) {
  in.text("input_key", spec.input_key);
  in.text("label_key", spec.label_key);
  in.text("tool_key", spec.tool_key);
  in.text("metadata_key", spec.metadata_key);
  in.integer("n_samples_per_eval_prompt", spec.samples, 1);
  in.real("temperature", spec.temperature, 0, 100);
  in.real("top_p", spec.top_p, 0, 1);
  in.integer("top_k", spec.top_k, -1);
  in.integer("max_response_len", spec.max_response, 1);
  if (spec.top_k == 0) in.wrong("top_k", "-1 (all tokens), or 1 and more");
  if (spec.top_p == 0) in.wrong("top_p", "more than 0");
}

EvalSpec read_set(const Json& map, EvalSpec spec, const std::string& where, const std::string& key) {
  SpecReader in(map, where);
  spec.name = key;
  in.text("name", spec.name);
  in.text("path", spec.path);
  read_common(in, spec);
  in.texts("stop", spec.stop);
  in.integers("stop_token_ids", spec.stop_token_ids);
  std::string rm_type;
  in.text("rm_type", rm_type);
  Json overrides = Json::object();
  if (!rm_type.empty()) overrides["rm_type"] = rm_type;
  if (const Json* given = in.take("metadata_overrides")) {
    if (!given->is_object()) in.wrong("metadata_overrides", "a mapping");
    overrides.update(*given);
  }
  spec.metadata_overrides = overrides.dump();
  for (const char* later : {"custom_generate_function_path", "min_new_tokens"}) {
    if (in.take(later) != nullptr) fail(Exit::input, "{}: {} is not in this build; leave it out", where, later);
  }
  in.nothing_else();
  return spec;
}

std::vector<EvalSpec> read_config(const Settings& s) {
  const std::string& path = s.eval_config;
  Json json = parse_yaml(read_file(path), path);
  if (!json.is_object() || !json.contains("eval")) fail(Exit::input, "{}: expected a mapping with the key eval", path);
  const Json& eval = json["eval"];
  SpecReader in(eval, path + ": eval");
  EvalSpec defaults = spec_of(s);
  if (const Json* given = in.take("defaults")) {
    SpecReader reader(*given, path + ": eval.defaults");
    read_common(reader, defaults);
    reader.nothing_else();
  }
  std::vector<EvalSpec> specs;
  const Json* sets = in.take("datasets");
  in.nothing_else();
  if (sets == nullptr || !(sets->is_array() || sets->is_object()) || sets->empty()) {
    fail(Exit::input, "{}: eval.datasets must be a list of sets, or a mapping of them by name", path);
  }
  if (sets->is_object()) {
    for (const auto& [name, set] : sets->items()) {
      specs.push_back(read_set(set, defaults, fmt::format("{}: eval.datasets.{}", path, printable(name)), name));
    }
  } else {
    for (size_t i = 0; i < sets->size(); i++) {
      specs.push_back(read_set((*sets)[i], defaults, fmt::format("{}: eval.datasets[{}]", path, i), ""));
    }
  }
  return specs;
}

}  // namespace

std::vector<EvalSpec> eval_specs(const Settings& s) {
  std::vector<EvalSpec> specs;
  if (!s.eval_config.empty()) specs = read_config(s);
  for (size_t i = 0; i + 1 < s.eval_prompt_data.size(); i += 2) {
    specs.push_back(spec_of(s));
    specs.back().name = s.eval_prompt_data[i];
    specs.back().path = s.eval_prompt_data[i + 1];
  }
  const std::string where = s.eval_config.empty() ? "--eval-prompt-data" : s.eval_config;
  std::set<std::string> names;
  for (const EvalSpec& spec : specs) {
    if (spec.name.empty() || spec.path.empty()) fail(Exit::input, "{}: every set needs a name and a path", where);
    if (!names.insert(spec.name).second) fail(Exit::input, "{}: two sets are called {}", where, printable(spec.name));
    if (spec.max_response <= 0) {
      fail(Exit::usage, "--eval-max-response-len N (or max_response_len of the set {}) is needed",
           printable(spec.name));
    }
  }
  return specs;
}

}  // namespace furlong
