// Folders that are complete or absent, and the room they need.
#pragma once
#include <cstdint>
#include <string>

namespace furlong {

// A new folder `final_path`.tmp-<nonce>, removed with its content when destroyed before commit.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& final_path);  // Error(Exit::resources)
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }
  // Makes the folder durable under its final name; a folder that has the name already is exchanged and then removed.
  void commit();

 private:
  std::string final_path_, path_;
};

// Removes the folders that a TemporaryFolder of this path has left where the process ended before it. Only for those
// who know that nobody else is writing there.
void remove_left_folders(const std::string& final_path);

// Makes a folder durable under another name of the same file system; a folder that has the name already is exchanged
// and then removed. Throws Error(Exit::resources).
void replace_folder(const std::string& path, const std::string& final_path);

// Throws Error(Exit::resources) unless the file system of `path` (or of its nearest existing parent) has room for
// `bytes` and a little more.
void check_free_space(const std::string& path, uint64_t bytes, const std::string& what);

// A path without trailing slashes, so that a suffix can be appended.
std::string without_trailing_slash(std::string path);

// The folder a path lies in; "." for a bare name.
std::string parent_folder(const std::string& path);

}  // namespace furlong
