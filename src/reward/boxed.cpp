#include "reward/boxed.h"

namespace furlong {

std::optional<std::string_view> last_boxed_command(std::string_view text) {
  const std::size_t begin = text.rfind("\\boxed");
  if (begin == std::string_view::npos) return std::nullopt;
  long depth = 0;
  for (std::size_t at = begin; at < text.size(); ++at) {
    if (text[at] == '{') ++depth;
    if (text[at] == '}' && --depth == 0) return text.substr(begin, at + 1 - begin);
  }
  return std::nullopt;
}

std::optional<std::string_view> last_boxed(std::string_view text) {
  constexpr std::string_view open = "\\boxed{";
  const auto command = last_boxed_command(text);
  if (!command || !command->starts_with(open)) return std::nullopt;
  return command->substr(open.size(), command->size() - open.size() - 1);
}

std::optional<std::string_view> after_thought(std::string_view response) {
  constexpr std::string_view think = "</think>";
  constexpr std::string_view marker = "###Response";
  if (const std::size_t at = response.rfind(think); at != std::string_view::npos)
    return response.substr(at + think.size());
  const std::size_t first = response.find(marker);
  if (first == std::string_view::npos) return std::nullopt;
  const std::string_view rest = response.substr(first + marker.size());
  return rest.substr(0, rest.find(marker));
}

}  // namespace furlong
