#include "base/host_memory.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/text.h"

namespace furlong {
namespace {

std::string trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\n"), end = text.find_last_not_of(" \t\n");
  return begin == std::string_view::npos ? "" : std::string(text.substr(begin, end - begin + 1));
}

std::optional<uint64_t> number(std::string_view text) {
  const auto value = parse_integer(trimmed(text));
  return value && *value >= 0 ? std::optional<uint64_t>(static_cast<uint64_t>(*value)) : std::nullopt;
}

// The number after a key at the start of a line.
std::optional<uint64_t> entry(std::string_view text, const std::string& key) {
  std::istringstream lines{std::string(text)};
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string name, value;
    words >> name >> value;
    if (name == key) return number(value);
  }
  return std::nullopt;
}

// The text of a file of /proc or /sys; empty when it cannot be read.
std::string text_of(const std::string& path) {
  std::ifstream in(path);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}

// The group of this process: the path after "0::" (version 2) or after "memory:" (version 1).
std::string group_of(const std::string& root, const std::string& controller) {
  std::istringstream lines(text_of(root + "/proc/self/cgroup"));
  for (std::string line; std::getline(lines, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    if (line.substr(first + 1, second - first - 1) == controller) return line.substr(second + 1);
  }
  return "/";
}

struct Names {
  const char *controller, *mount, *limit, *used;
};

}  // namespace

std::optional<uint64_t> available_in_meminfo(std::string_view text) {
  const auto kib = entry(text, "MemAvailable:");
  return kib ? std::optional<uint64_t>(*kib * 1024) : std::nullopt;
}

std::optional<uint64_t> room_of_group(std::string_view limit, std::string_view used, std::string_view stat) {
  const auto most = number(limit), now = number(used);
  // Version 1 writes "no limit" as a number near 2^63.
  if (!most || !now || *most > uint64_t{1} << 60) return std::nullopt;
  const uint64_t cache = std::min(*now, entry(stat, "inactive_file").value_or(0));
  const uint64_t held = *now - cache;
  return *most > held ? *most - held : 0;
}

uint64_t available_host_memory(const std::string& root) {
  uint64_t least =
      available_in_meminfo(text_of(root + "/proc/meminfo"))
          .value_or(static_cast<uint64_t>(sysconf(_SC_AVPHYS_PAGES)) * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)));
  const Names versions[] = {{"", "/sys/fs/cgroup", "memory.max", "memory.current"},
                            {"memory", "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"}};
  for (const Names& v : versions) {
    // A group's limit holds for the groups in it.
    for (std::filesystem::path group = group_of(root, v.controller);; group = group.parent_path()) {
      const std::string folder = root + v.mount + group.string() + (group == "/" ? "" : "/");
      const auto room =
          room_of_group(text_of(folder + v.limit), text_of(folder + v.used), text_of(folder + "memory.stat"));
      if (room) least = std::min(least, *room);
      if (group == group.parent_path()) break;
    }
  }
  return least;
}

}  // namespace furlong
