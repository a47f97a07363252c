#include "checkpoint/resume.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "checkpoint/digest.h"
#include "checkpoint/folder.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/values.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

namespace fs = std::filesystem;

constexpr const char* prefix = "iter_";
constexpr const char* manifest_name = "manifest.json";
constexpr const char* state_name = "state.json";
constexpr const char* format_name = "furlong.checkpoint";
constexpr int format_version = 1;

std::string folder_of(const std::string& directory, int64_t iteration) {
  return fmt::format("{}/{}{:07}", directory, prefix, iteration);
}

std::optional<int64_t> iteration_of(const std::string& name) {
  const std::string digits = name.substr(std::min(name.size(), std::strlen(prefix)));
  int64_t iteration = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), iteration);
  const bool whole = error == std::errc() && end == digits.data() + digits.size() && iteration >= 0;
  // Only the very name that a save gives, so that iter_7 and iter_0000007 cannot both stand for 7.
  return whole && name == fmt::format("{}{:07}", prefix, iteration) ? std::optional(iteration) : std::nullopt;
}

// The iterations of which a folder exists, newest first.
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

void remove_stale(const std::string& directory) {
  std::vector<fs::path> stale;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(directory, code)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(prefix) && name.find(".tmp-") != std::string::npos) stale.push_back(entry.path());
  }
  for (const auto& path : stale) {
    log::info("removing {}, left by a save that was cut off", path.string());
    fs::remove_all(path, code);
  }
}

std::string file_of(const NamedWeights& set) { return set.name + ".safetensors"; }

void check_set_name(const NamedWeights& set) {
  const auto plain = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-'; };
  CHECK(!set.name.empty() && std::all_of(set.name.begin(), set.name.end(), plain), "set \"{}\"", set.name);
  CHECK(set.weights != nullptr, "set {}", set.name);
}

// The manifest's part about one file, with the checksums taken as the file is written.
Json write_set(const std::string& folder, const NamedWeights& set) {
  std::vector<TensorSource> sources;
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& t) {
        if (!t.defined()) return;
        CHECK(t.contiguous(), "{} {}", spec.name, t.describe());
        sources.push_back({.name = spec.name,
                           .dtype = file_dtype_of(t.dtype()),
                           .shape = spec.shape,
                           .emit = [t](const ByteSink& sink) {
                             const OnHost host(t);
                             if (t.bytes() > 0) sink(host.view().data(), t.bytes());
                           }});
      },
      *set.weights);
  Digest whole;
  uint64_t bytes = 0;
  Json tensors = Json::object();
  write_safetensors(folder + "/" + file_of(set), std::move(sources), {{"format", "pt"}},
                    [&](const std::string& tensor, const void* data, size_t n) {
                      whole.update(data, n);
                      bytes += n;
                      if (!tensor.empty()) tensors[tensor] = Digest::of(data, n);  // a tensor arrives in one piece
                    });
  return {{"bytes", bytes}, {"xxh3", whole.hex()}, {"tensors", std::move(tensors)}};
}

std::string manifest_text(const Json& body) {
  const std::string text = body.dump();
  return Json{{"body", body}, {"xxh3", Digest::of(text.data(), text.size())}}.dump(1) + "\n";
}

// The manifest's body, its own checksum held against it.
Json read_manifest(const std::string& path) {
  const std::string where = path + "/" + manifest_name;
  const Json manifest = read_json_file(where);
  if (!manifest.is_object() || !manifest.contains("body") || !manifest.contains("xxh3") || manifest.size() != 2) {
    fail(Exit::input, "{}: not a checkpoint's manifest", where);
  }
  const std::string text = manifest["body"].dump();
  if (manifest["xxh3"] != Digest::of(text.data(), text.size()))
    fail(Exit::input, "{}: its own checksum does not match", where);
  const Json& body = manifest["body"];
  if (!body.is_object() || body.value("format", Json()) != format_name ||
      body.value("version", Json()) != format_version) {
    fail(Exit::input, "{}: another format or version than {} {}", where, format_name, format_version);
  }
  if (iteration_of(fs::path(path).filename().string()) != body.at("iteration").get<int64_t>()) {
    fail(Exit::input, "{}: it belongs to iteration {}", where, body.at("iteration").get<int64_t>());
  }
  return body;
}

// The first tensor whose checksum differs, for the message.
std::string differing_tensor(const std::string& path, const Json& record) {
  if (!record.contains("tensors")) return "its content differs";
  const SafetensorsFile file(path);
  for (const auto& entry : file.entries()) {
    if (record["tensors"].value(entry.name, "") != Digest::of(entry.bytes.data(), entry.bytes.size()))
      return "tensor " + entry.name + " differs";
  }
  return "its header differs";
}

void verify_file(const std::string& path, const Json& record, bool checksums) {
  const MappedFile file(path);
  const auto bytes = record.at("bytes").get<uint64_t>();
  if (file.bytes().size() != bytes)
    fail(Exit::input, "{}: it has {} bytes, the manifest says {}", path, file.bytes().size(), bytes);
  if (!checksums) return;
  const std::string digest = Digest::of(file.bytes().data(), file.bytes().size());
  if (record.at("xxh3") != digest) {
    fail(Exit::input, "{}: its checksum is {}, the manifest says {}: {}", path, digest,
         record.at("xxh3").get<std::string>(), differing_tensor(path, record));
  }
}

void verify_or_throw(const std::string& path, bool checksums) {
  const Json body = read_manifest(path);
  try {
    for (const auto& [name, record] : body.at("files").items()) {
      check_plain_file_name(name, path + "/" + manifest_name);
      verify_file(path + "/" + name, record, checksums);
    }
  } catch (const Json::exception& e) {
    fail(Exit::input, "{}/{}: {}", path, manifest_name, e.what());
  }
}

void fill_set(const std::string& path, const NamedWeights& set) {
  const std::string where = path + "/" + file_of(set);
  std::error_code code;
  if (!fs::exists(where, code)) {
    fail(Exit::input, "{}: it holds no {}; it was saved by a run with other settings (--dtype, --main-params-dtype)",
         path, set.name);
  }
  const SafetensorsFile file(where);
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& t) {
        if (!t.defined()) return;
        const TensorEntry* entry = file.find(spec.name);
        if (entry == nullptr)
          fail(Exit::input, "{}: tensor {} is not in it; was it saved for another model?", where, spec.name);
        if (entry->shape != spec.shape || entry->dtype != file_dtype_of(t.dtype())) {
          fail(Exit::input,
               "{}: tensor {} is {}, but this run needs {}; was it saved for another model or with another --dtype, "
               "--exp-avg-dtype or --exp-avg-sq-dtype?",
               where, spec.name, entry->describe(), t.describe());
        }
        write_numbers(t, 0, t.numel(), entry->bytes.data());
      },
      *set.weights);
}

void prune(const std::string& directory, int64_t iteration, int keep) {
  std::vector<int64_t> older;
  for (const int64_t i : list_iterations(directory)) {
    if (i < iteration) older.push_back(i);
  }
  const auto kept = static_cast<size_t>(std::max(keep, 2) - 1);
  if (older.size() <= kept) return;
  const std::string path = folder_of(directory, iteration);
  if (const std::string wrong = verify_checkpoint(path); !wrong.empty()) {
    fail(Exit::resources,
         "{}: the checkpoint just written does not read back: {}. Older checkpoints were kept; check the disk.", path,
         wrong);
  }
  for (size_t i = kept; i < older.size(); i++) {
    // Renamed first, so that a removal that is cut off never leaves a folder that looks complete.
    const std::string old = folder_of(directory, older[i]), doomed = old + ".tmp-old";
    std::error_code code;
    fs::rename(old, doomed, code);
    if (!code) fs::remove_all(doomed, code);
    if (code) log::warn("cannot remove the old checkpoint {}: {}", old, code.message());
  }
}

}  // namespace

void save_checkpoint(const std::string& directory, int64_t iteration, const std::vector<NamedWeights>& sets,
                     const std::string& state, const SaveCheckpointOptions& options) {
  CHECK(iteration >= 0, "iteration {}", iteration);
  uint64_t bytes = state.size();
  for (const auto& set : sets) {
    check_set_name(set);
    for (const auto& t : set.weights->tensors()) bytes += t.bytes();
  }
  make_directories(directory);
  sync_directory(parent_folder(without_trailing_slash(directory)));
  remove_stale(directory);
  check_free_space(directory, bytes, fmt::format("the checkpoint of iteration {}", iteration));
  TemporaryFolder folder(folder_of(directory, iteration));
  Json files = Json::object();
  for (const auto& set : sets) {
    CHECK(!files.contains(file_of(set)), "set {} twice", set.name);
    files[file_of(set)] = write_set(folder.path(), set);
  }
  write_file_atomic(folder.path() + "/" + state_name, state);
  files[state_name] = {{"bytes", state.size()}, {"xxh3", Digest::of(state.data(), state.size())}};
  const Json body = {{"format", format_name}, {"version", format_version}, {"iteration", iteration}, {"files", files}};
  write_file_atomic(folder.path() + "/" + manifest_name, manifest_text(body));
  folder.commit();
  write_file_atomic(directory + "/latest_checkpointed_iteration.txt", std::to_string(iteration) + "\n");
  prune(directory, iteration, options.keep);
}

std::string verify_checkpoint(const std::string& path, bool checksums) {
  try {
    verify_or_throw(path, checksums);
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

std::optional<LoadedCheckpoint> load_latest(const std::string& directory, const std::vector<NamedWeights>& sets,
                                            const LoadCheckpointOptions& options) {
  for (const auto& set : sets) check_set_name(set);
  const auto iterations = list_iterations(directory);
  std::string wrong;
  for (const int64_t iteration : iterations) {
    const std::string path = folder_of(directory, iteration);
    if (const std::string why = verify_checkpoint(path, options.checksums); !why.empty()) {
      log::warn("skipping the checkpoint {}: {}", path, why);
      wrong += "\n  " + why;
      continue;
    }
    for (const auto& set : sets) fill_set(path, set);
    return LoadedCheckpoint{iteration, path, read_file(path + "/" + state_name)};
  }
  if (iterations.empty()) return std::nullopt;
  fail(Exit::input,
       "{}: no checkpoint of this folder is intact:{}\n  Restore one from a copy, or give another folder to start "
       "afresh.",
       directory, wrong);
}

}  // namespace furlong
