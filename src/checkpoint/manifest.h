// The manifest of a training checkpoint, and the files that it vouches for.
#pragma once
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace furlong {

inline constexpr const char* checkpoint_prefix = "iter_";
inline constexpr const char* checkpoint_state_name = "state.json";

std::string checkpoint_folder(const std::string& directory, int64_t iteration);
// The iteration that a folder's name stands for; nullopt when it is no checkpoint's.
std::optional<int64_t> iteration_of(const std::string& name);
// The iterations of which a folder exists, newest first.
std::vector<int64_t> list_iterations(const std::string& directory);

// What the manifest says of a file.
struct FileRecord {
  std::string name;
  uint64_t bytes = 0;
  std::string xxh3;                            // of all bytes
  std::map<std::string, std::string> tensors;  // checksums by name; empty for other files than safetensors
};

// Records as JSON text, for other ranks and the manifest, and back. Throws Error(Exit::input) naming `where`.
std::string text_of(const std::vector<FileRecord>& files);
std::vector<FileRecord> records_from_text(const std::string& text, const std::string& where);

void write_manifest(const std::string& folder, int64_t iteration, const std::vector<FileRecord>& files);
// The files of a checkpoint, if its manifest is sound: its own checksum, format, version and iteration are right.
// Throws Error(Exit::input).
std::vector<FileRecord> read_manifest(const std::string& path);

// Holds every `of`-th file from `part` on against its record: the length, and with `checksums` the content. Throws
// Error(Exit::input) naming file and mismatch.
void verify_files(const std::string& path, const std::vector<FileRecord>& files, bool checksums, int part = 0,
                  int of = 1);

}  // namespace furlong
