#include "base/log.h"

#include <spdlog/sinks/basic_file_sink.h>
#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include "base/error.h"

namespace furlong::log {
namespace {

// The one exception to "no mutable namespace-scope state": the process has one log.
std::string& line_prefix() {
  static std::string prefix;
  return prefix;
}

spdlog::logger& logger() {
  static const std::shared_ptr<spdlog::logger> instance = [] {
    auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
    sink->set_pattern("%^%v%$");
    auto made = std::make_shared<spdlog::logger>("furlong", sink);
    made->flush_on(spdlog::level::trace);
    return made;
  }();
  return *instance;
}

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::debug: return spdlog::level::debug;
    case Level::info: return spdlog::level::info;
    case Level::warn: return spdlog::level::warn;
    case Level::error: break;
  }
  return spdlog::level::err;
}

}  // namespace

void write(Level level, std::string_view message) {
  const char* prefix = level == Level::warn ? "warning: " : level == Level::error ? "error: " : "";
  logger().log(to_spdlog(level), "{}{}{}", line_prefix(), prefix, message);
}

void open_file(const std::string& path) {
  try {
    auto sink = std::make_shared<spdlog::sinks::basic_file_sink_mt>(path, /*truncate=*/false);
    sink->set_pattern("%Y-%m-%d %H:%M:%S.%e %l %v");
    logger().sinks().push_back(std::move(sink));
  } catch (const spdlog::spdlog_ex& e) {
    fail(Exit::resources, "cannot open the log file {}: {}. Check that the run directory is writable.", path, e.what());
  }
}

void set_color(bool on) {
  auto& terminal = static_cast<spdlog::sinks::stderr_color_sink_mt&>(*logger().sinks().front());
  terminal.set_color_mode(on ? spdlog::color_mode::automatic : spdlog::color_mode::never);
}

void set_prefix(const std::string& prefix) { line_prefix() = prefix; }

void set_level(Level level) { logger().set_level(to_spdlog(level)); }

}  // namespace furlong::log
