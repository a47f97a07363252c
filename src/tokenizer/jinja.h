// The chat templates of checkpoints: an interpreter of the part of Jinja that they use, with what transformers adds to
// it and the limits that untrusted text needs. It reads nothing but its variables, and the clock where a template asks
// for the date.
#pragma once
#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace furlong {

struct JinjaLimits {
  int64_t steps = 10'000'000;       // one for each operation, and for every 128 bytes it handles
  int64_t output_bytes = 64 << 20;  // of the text, and of any other on the way
  int64_t template_bytes = 1 << 20;
};

// What one pass of a loop over the messages wrote.
struct JinjaSpan {
  size_t message, begin, end;  // bytes of the text
};

struct JinjaText {
  std::string text;
  std::vector<JinjaSpan> spans;  // in order; none is empty
};

class JinjaTemplate {
 public:
  // `name` stands in errors. Throws Error(Exit::input) with name:line: a syntax error, or what is not supported
  // (inheritance, imports, recursive loops).
  static JinjaTemplate parse(std::string_view source, std::string name, const JinjaLimits& limits = {});

  // The text for these variables, a JSON object; `where` names it in errors. Throws Error(Exit::input) with name:line:
  // what the template itself refuses (raise_exception), the use of an undefined value, a wrong type, a limit.
  JinjaText render(std::string_view variables, const std::string& where, std::time_t now = std::time(nullptr)) const;

  const std::string& name() const;

 private:
  struct Tree;
  std::shared_ptr<const Tree> tree_;
};

}  // namespace furlong
