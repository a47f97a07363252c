#include "checkpoint/folder.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"

namespace furlong {
namespace fs = std::filesystem;

TemporaryFolder::TemporaryFolder(const std::string& final_path) : final_path_(without_trailing_slash(final_path)) {
  make_directories(parent_folder(final_path_));
  for (int attempt = 0;; attempt++) {
    path_ = fmt::format("{}.tmp-{}-{}", final_path_, getpid(), attempt);
    if (mkdir(path_.c_str(), 0777) == 0) return;
    if (errno != EEXIST || attempt > 10000)
      fail(Exit::resources, "cannot create the folder {}: {}", path_, std::strerror(errno));
  }
}

TemporaryFolder::~TemporaryFolder() {
  if (path_.empty()) return;
  std::error_code code;
  fs::remove_all(path_, code);
}

void TemporaryFolder::commit() {
  replace_folder(path_, final_path_);
  path_.clear();
}

void remove_left_folders(const std::string& final_path) {
  const fs::path whole = without_trailing_slash(final_path);
  const std::string begin = whole.filename().string() + ".tmp-";
  std::vector<fs::path> left;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(parent_folder(whole), code)) {
    if (entry.path().filename().string().starts_with(begin)) left.push_back(entry.path());
  }
  for (const auto& path : left) fs::remove_all(path, code);
}

void replace_folder(const std::string& path, const std::string& final_path) {
  sync_directory(path);
  std::error_code code;
  const bool occupied = fs::exists(final_path, code) && !fs::is_empty(final_path, code);
  std::string old;
  if (!occupied) {
    if (rename(path.c_str(), final_path.c_str()) != 0) {
      fail(Exit::resources, "cannot rename {} to {}: {}", path, final_path, std::strerror(errno));
    }
  } else if (renameat2(AT_FDCWD, path.c_str(), AT_FDCWD, final_path.c_str(), RENAME_EXCHANGE) == 0) {
    old = path;
  } else {
    // A file system without exchange: the old folder steps aside first.
    old = path + "-old";
    const bool moved = rename(final_path.c_str(), old.c_str()) == 0;
    if (!moved || rename(path.c_str(), final_path.c_str()) != 0) {
      const std::string why = std::strerror(errno);
      if (moved) rename(old.c_str(), final_path.c_str());
      fail(Exit::resources, "cannot replace {}: {}", final_path, why);
    }
  }
  sync_directory(parent_folder(final_path));
  if (!old.empty()) fs::remove_all(old, code);
}

void check_free_space(const std::string& path, uint64_t bytes, const std::string& what) {
  constexpr uint64_t slack = 1 << 20;
  fs::path probe = fs::absolute(path);
  std::error_code code;
  while (!fs::exists(probe, code) && probe.has_parent_path() && probe != probe.parent_path())
    probe = probe.parent_path();
  const auto space = fs::space(probe, code);
  if (code || space.available >= bytes + slack) return;
  const double gib = 1 << 30;
  fail(Exit::resources,
       "{}: {} needs {:.3f} GiB, but {:.3f} GiB are free. Free some space or choose another folder; nothing was "
       "written.",
       path, what, static_cast<double>(bytes) / gib, static_cast<double>(space.available) / gib);
}

std::string without_trailing_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string parent_folder(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

}  // namespace furlong
