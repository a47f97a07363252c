// The expected answer of a prompt, with the JSON kind it had in the data (a grader may care: "0" is not 0).
#pragma once
#include <string>

namespace furlong {

struct LabelValue {
  enum class Kind { none, string, integer, floating, boolean, other };
  Kind kind = Kind::none;
  std::string text;   // a string's content; otherwise the JSON text as it stood in the file, "" for none
  double number = 0;  // integer and floating: the value; boolean: 0 or 1

  bool operator==(const LabelValue&) const = default;
};

}  // namespace furlong
