#include "furlong/version.h"

#include <fmt/ranges.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <spdlog/version.h>
#include <utf8proc.h>

#include "base/json.h"
#include "ops/ops.h"

#ifndef FURLONG_VERSION
#define FURLONG_VERSION "0.1.0"
#endif

namespace furlong {

std::string version_text() {
#if defined(__clang__)
  const std::string compiler = "clang " __clang_version__;
#else
  const std::string compiler = "gcc " __VERSION__;
#endif
  const auto dotted = [](int number, int unit) {
    return fmt::format("{}.{}.{}", number / (unit * unit), number / unit % unit, number % unit);
  };
  return fmt::format(
      "furlong {}\n"
      "compiler         {}\n"
      "instruction set  {} (compiled: {})\n"
      "libraries        fmt {}, spdlog {}.{}.{}, PCRE2 {}.{}, utf8proc {}.{}.{}, nlohmann json {}.{}.{}\n",
      FURLONG_VERSION, compiler, ops::isa_name(), fmt::join(ops::compiled_isas(), ", "), dotted(FMT_VERSION, 100),
      SPDLOG_VER_MAJOR, SPDLOG_VER_MINOR, SPDLOG_VER_PATCH, PCRE2_MAJOR, PCRE2_MINOR, UTF8PROC_VERSION_MAJOR,
      UTF8PROC_VERSION_MINOR, UTF8PROC_VERSION_PATCH, NLOHMANN_JSON_VERSION_MAJOR, NLOHMANN_JSON_VERSION_MINOR,
      NLOHMANN_JSON_VERSION_PATCH);
}

}  // namespace furlong
