#include "checkpoint/manifest.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/digest.h"
#include "checkpoint/safetensors.h"

namespace furlong {
namespace {

namespace fs = std::filesystem;

constexpr const char* manifest_name = "manifest.json";
constexpr const char* format_name = "furlong.checkpoint";
// 1: every set is one file of whole tensors. 2: a set may be several files, a tensor's numbers spread over them.
constexpr int format_version = 2;

// The first tensor whose checksum differs, for the message.
std::string differing_tensor(const std::string& path, const FileRecord& record) {
  if (record.tensors.empty()) return "its content differs";
  try {
    const SafetensorsFile file(path);
    for (const auto& entry : file.entries()) {
      const auto known = record.tensors.find(entry.name);
      if (known == record.tensors.end() || known->second != Digest::of(entry.bytes.data(), entry.bytes.size()))
        return "tensor " + entry.name + " differs";
    }
  } catch (const Error&) {
    // A header that cannot be read any more.
  }
  return "its header differs";
}

void verify_file(const std::string& path, const FileRecord& record, bool checksums) {
  const MappedFile file(path);
  if (file.bytes().size() != record.bytes)
    fail(Exit::input, "{}: it has {} bytes, the manifest says {}", path, file.bytes().size(), record.bytes);
  if (!checksums) return;
  const std::string digest = Digest::of(file.bytes().data(), file.bytes().size());
  if (record.xxh3 != digest) {
    fail(Exit::input, "{}: its checksum is {}, the manifest says {}: {}", path, digest, record.xxh3,
         differing_tensor(path, record));
  }
}

Json json_of(const std::vector<FileRecord>& files) {
  Json json = Json::object();
  for (const auto& file : files) {
    json[file.name] = {{"bytes", file.bytes}, {"xxh3", file.xxh3}};
    if (!file.tensors.empty()) json[file.name]["tensors"] = file.tensors;
  }
  return json;
}

std::vector<FileRecord> records_of(const Json& json, const std::string& where) {
  std::vector<FileRecord> files;
  for (const auto& [name, record] : json.items()) {
    check_plain_file_name(name, where);
    files.push_back({name, record.at("bytes").get<uint64_t>(), record.at("xxh3").get<std::string>(), {}});
    if (record.contains("tensors")) record["tensors"].get_to(files.back().tensors);
  }
  return files;
}

}  // namespace

std::string checkpoint_folder(const std::string& directory, int64_t iteration) {
  return fmt::format("{}/{}{:07}", directory, checkpoint_prefix, iteration);
}

std::optional<int64_t> iteration_of(const std::string& name) {
  const std::string digits = name.substr(std::min(name.size(), std::strlen(checkpoint_prefix)));
  int64_t iteration = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), iteration);
  const bool whole = error == std::errc() && end == digits.data() + digits.size() && iteration >= 0;
  // Only the very name that a save gives, so that iter_7 and iter_0000007 cannot both stand for 7.
  return whole && name == fmt::format("{}{:07}", checkpoint_prefix, iteration) ? std::optional(iteration)
                                                                               : std::nullopt;
}

std::vector<int64_t> list_iterations(const std::string& directory) {
  std::vector<int64_t> found;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(directory, code)) {
    const auto iteration = iteration_of(entry.path().filename().string());
    if (iteration && entry.is_directory(code)) found.push_back(*iteration);
  }
  std::sort(found.rbegin(), found.rend());
  return found;
}

std::string text_of(const std::vector<FileRecord>& files) { return json_of(files).dump(); }

std::vector<FileRecord> records_from_text(const std::string& text, const std::string& where) {
  try {
    return records_of(parse_json(text, where), where);
  } catch (const Json::exception& e) {
    fail(Exit::input, "{}: {}", where, e.what());
  }
}

void write_manifest(const std::string& folder, int64_t iteration, const std::vector<FileRecord>& files) {
  const Json body = {
      {"format", format_name}, {"version", format_version}, {"iteration", iteration}, {"files", json_of(files)}};
  const std::string text = body.dump();
  write_file_atomic(folder + "/" + manifest_name,
                    Json{{"body", body}, {"xxh3", Digest::of(text.data(), text.size())}}.dump(1) + "\n");
}

std::vector<FileRecord> read_manifest(const std::string& path) {
  const std::string where = path + "/" + manifest_name;
  const Json manifest = read_json_file(where);
  if (!manifest.is_object() || !manifest.contains("body") || !manifest.contains("xxh3") || manifest.size() != 2) {
    fail(Exit::input, "{}: not a checkpoint's manifest", where);
  }
  const Json& body = manifest["body"];
  const std::string text = body.dump();
  if (manifest["xxh3"] != Digest::of(text.data(), text.size()))
    fail(Exit::input, "{}: its own checksum does not match", where);
  try {
    const Json& version = body.at("version");
    if (body.at("format") != format_name || !version.is_number_integer() || version < 1 || version > format_version) {
      fail(Exit::input, "{}: another format or version than {} 1 to {}", where, format_name, format_version);
    }
    if (iteration_of(fs::path(path).filename().string()) != body.at("iteration").get<int64_t>()) {
      fail(Exit::input, "{}: it belongs to iteration {}", where, body.at("iteration").get<int64_t>());
    }
    return records_of(body.at("files"), where);
  } catch (const Json::exception& e) {
    fail(Exit::input, "{}: {}", where, e.what());
  }
}

void verify_files(const std::string& path, const std::vector<FileRecord>& files, bool checksums, int part, int of) {
  for (auto i = static_cast<size_t>(part); i < files.size(); i += static_cast<size_t>(of)) {
    verify_file(path + "/" + files[i].name, files[i], checksums);
  }
}

}  // namespace furlong
