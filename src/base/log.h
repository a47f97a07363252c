// One log for the program: lines to stderr and, once a run directory is known, to its log.txt as well.
#pragma once
#include <fmt/format.h>

#include <string>
#include <string_view>

namespace furlong::log {

enum class Level { debug, info, warn, error };

void write(Level level, std::string_view message);
// Also write every line to this file (appended). Fails with Exit::resources when it cannot be opened.
void open_file(const std::string& path);
void set_level(Level level);
// Stands before every line: which rank of several it is.
void set_prefix(const std::string& prefix);
// Colour on the terminal; on by default where stderr is one.
void set_color(bool on);

template <class... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::debug, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::info, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void warn(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::warn, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  write(Level::error, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace furlong::log
