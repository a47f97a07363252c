#include "base/host_memory.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

namespace furlong {
namespace {

constexpr uint64_t mib = uint64_t{1} << 20;

TEST(HostMemory, ReadsWhatTheMachineHas) {
  EXPECT_EQ(available_in_meminfo("MemTotal:  100 kB\nMemFree: 7 kB\nMemAvailable:   2048 kB\n"), 2 * mib);
  EXPECT_FALSE(available_in_meminfo("MemTotal: 100 kB\n"));
  EXPECT_FALSE(available_in_meminfo("MemAvailable: many kB\n"));
}

TEST(HostMemory, AGroupLeavesItsLimitLessWhatItHolds) {
  EXPECT_EQ(room_of_group("1000\n", "300\n", "anon 1\ninactive_file 100\n"), 800u);
  EXPECT_EQ(room_of_group("1000", "300", ""), 700u);
  EXPECT_EQ(room_of_group("1000", "1300", "inactive_file 100"), 0u);
  EXPECT_EQ(room_of_group("1000", "300", "inactive_file 5000"), 1000u);  // never more than what it holds
  EXPECT_FALSE(room_of_group("max\n", "300\n", ""));
  EXPECT_FALSE(room_of_group("9223372036854771712", "300", ""));  // version 1: no limit
  EXPECT_FALSE(room_of_group("", "", ""));
}

// A /proc and a /sys of one's own.
struct Machine {
  std::filesystem::path root = std::filesystem::temp_directory_path() / "furlong-host-memory";
  Machine() { std::filesystem::remove_all(root); }
  ~Machine() { std::filesystem::remove_all(root); }
  void write(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories((root / path).parent_path());
    std::ofstream(root / path) << text;
  }
};

TEST(HostMemory, TheTightestLimitOnTheWayUpCounts) {
  const Machine m;
  m.write("proc/meminfo", "MemAvailable: 1048576 kB\n");
  m.write("proc/self/cgroup", "0::/jobs/run\n");
  EXPECT_EQ(available_host_memory(m.root.string()), 1024 * mib);
  m.write("sys/fs/cgroup/jobs/run/memory.max", "max\n");
  m.write("sys/fs/cgroup/jobs/run/memory.current", "1\n");
  m.write("sys/fs/cgroup/jobs/memory.max", std::to_string(512 * mib));
  m.write("sys/fs/cgroup/jobs/memory.current", std::to_string(112 * mib));
  EXPECT_EQ(available_host_memory(m.root.string()), 400 * mib);
  m.write("sys/fs/cgroup/memory.max", std::to_string(300 * mib));
  m.write("sys/fs/cgroup/memory.current", std::to_string(200 * mib));
  EXPECT_EQ(available_host_memory(m.root.string()), 100 * mib);
}

TEST(HostMemory, TheFirstVersionOfGroups) {
  const Machine m;
  m.write("proc/meminfo", "MemAvailable: 1048576 kB\n");
  m.write("proc/self/cgroup", "4:cpu:/x\n3:memory:/box\n");
  m.write("sys/fs/cgroup/memory/box/memory.limit_in_bytes", std::to_string(64 * mib));
  m.write("sys/fs/cgroup/memory/box/memory.usage_in_bytes", std::to_string(16 * mib));
  EXPECT_EQ(available_host_memory(m.root.string()), 48 * mib);
}

TEST(HostMemory, HereThereIsSome) { EXPECT_GT(available_host_memory(), 16 * mib); }

}  // namespace
}  // namespace furlong
