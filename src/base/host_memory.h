// How much memory of the host this process may still take.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace furlong {

// MemAvailable of the text of /proc/meminfo, in bytes.
std::optional<uint64_t> available_in_meminfo(std::string_view text);

// What a control group leaves: limit - used + what of it is page cache that can be dropped (inactive_file of
// memory.stat). "max" is no limit: nothing.
std::optional<uint64_t> room_of_group(std::string_view limit, std::string_view used, std::string_view stat);

// The least of what the machine has available and what the control groups of this process leave (version 2 and 1).
// `root` stands before /proc and /sys, for tests.
uint64_t available_host_memory(const std::string& root = "");

}  // namespace furlong
