#include "base/yaml.h"

#include "base/error.h"
#include "base/text.h"

#ifdef FURLONG_YAML
#include <yaml.h>
#endif

namespace furlong {

#ifdef FURLONG_YAML
namespace {

constexpr int deepest_level = 32;

class YamlReader {
 public:
  YamlReader(std::string_view text, std::string where) : where_(std::move(where)) {
    if (yaml_parser_initialize(&parser_) == 0) fail(Exit::resources, "{}: no memory to read it", where_);
    yaml_parser_set_input_string(&parser_, reinterpret_cast<const unsigned char*>(text.data()), text.size());
  }
  ~YamlReader() {
    yaml_event_delete(&event_);
    yaml_parser_delete(&parser_);
  }

  Json document() {
    next();  // the stream's start
    next();
    if (event_.type == YAML_STREAM_END_EVENT) return {};
    next();
    Json json = value(0);
    next();  // the document's end
    next();
    if (event_.type != YAML_STREAM_END_EVENT) refuse("a second document; expected one");
    return json;
  }

 private:
  [[noreturn]] void refuse(const std::string& why) const {
    fail(Exit::input, "{}:{}:{}: {}", where_, event_.start_mark.line + 1, event_.start_mark.column + 1, why);
  }

  void next() {
    yaml_event_delete(&event_);
    event_ = {};
    if (yaml_parser_parse(&parser_, &event_) != 0) return;
    const auto& mark = parser_.problem_mark;
    fail(Exit::input, "{}:{}:{}: not valid YAML: {}", where_, mark.line + 1, mark.column + 1,
         parser_.problem != nullptr ? parser_.problem : "unreadable");
  }

  // The value that begins with the present event; that event becomes its last.
  Json value(int level) {
    if (level > deepest_level) refuse(fmt::format("nested deeper than {} levels", deepest_level));
    switch (event_.type) {
      case YAML_SCALAR_EVENT: return scalar();
      case YAML_SEQUENCE_START_EVENT: {
        if (event_.data.sequence_start.tag != nullptr) refuse("a tag, which is not read");
        Json list = Json::array();
        for (next(); event_.type != YAML_SEQUENCE_END_EVENT; next()) list.push_back(value(level + 1));
        return list;
      }
      case YAML_MAPPING_START_EVENT: return mapping(level);
      case YAML_ALIAS_EVENT: refuse("an alias (*name), which is not read; write the value out");
      default: break;
    }
    refuse("no value");
  }

  Json mapping(int level) {
    if (event_.data.mapping_start.tag != nullptr) refuse("a tag, which is not read");
    Json map = Json::object();
    for (next(); event_.type != YAML_MAPPING_END_EVENT; next()) {
      if (event_.type != YAML_SCALAR_EVENT) refuse("a key that is no text");
      const std::string key = text();
      if (map.contains(key)) refuse(fmt::format("the key {} occurs twice", printable(key)));
      next();
      map[key] = value(level + 1);
    }
    return map;
  }

  std::string text() const {
    return {reinterpret_cast<const char*>(event_.data.scalar.value), event_.data.scalar.length};
  }

  Json scalar() const {
    if (event_.data.scalar.tag != nullptr) refuse("a tag, which is not read");
    std::string word = text();
    if (event_.data.scalar.style != YAML_PLAIN_SCALAR_STYLE) return word;
    if (word.empty() || word == "~" || word == "null" || word == "Null" || word == "NULL") return nullptr;
    if (word == "true" || word == "True" || word == "TRUE") return true;
    if (word == "false" || word == "False" || word == "FALSE") return false;
    if (const auto integer = parse_integer(word)) return *integer;
    if (const auto real = parse_real(word)) return *real;
    return word;
  }

  std::string where_;
  yaml_parser_t parser_{};
  yaml_event_t event_{};
};

}  // namespace

Json parse_yaml(std::string_view text, const std::string& where) { return YamlReader(text, where).document(); }

#else

Json parse_yaml(std::string_view text, const std::string& where) {
  try {
    return parse_json(text, where);
  } catch (const Error& e) {
    fail(e.code(), "{}. This build reads JSON alone (Debian: libyaml-dev for YAML)", e.what());
  }
}

#endif

}  // namespace furlong
