#include "parallel/agree.h"

#include <charconv>
#include <exception>

#include "base/check.h"
#include "base/error.h"

namespace furlong {

void all_or_none(Group& group, const std::function<void()>& body) {
  if (group.size() == 1) return body();
  std::string said;  // exit code and message
  std::exception_ptr own;
  try {
    body();
  } catch (const Error& e) {
    own = std::current_exception();
    said = fmt::format("{} {}", static_cast<int>(e.code()), e.what());
  } catch (const std::exception& e) {
    own = std::current_exception();
    said = fmt::format("{} {}", static_cast<int>(Exit::bug), e.what());
  }
  const auto all = group.gather_bytes(said);
  for (int r = 0; r < group.size(); r++) {
    const std::string& text = all[static_cast<size_t>(r)];
    if (text.empty()) continue;
    if (r == group.rank()) std::rethrow_exception(own);
    const size_t space = text.find(' ');
    int code = 0;
    std::from_chars(text.data(), text.data() + space, code);
    throw Error(static_cast<Exit>(code), text.substr(space + 1));
  }
}

std::string from_first(Group& group, const std::string& text) {
  if (group.size() == 1) return text;
  return group.gather_bytes(group.rank() == 0 ? text : std::string())[0];
}

}  // namespace furlong
