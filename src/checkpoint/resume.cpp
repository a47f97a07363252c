#include "checkpoint/resume.h"

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "checkpoint/digest.h"
#include "checkpoint/folder.h"
#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/shards.h"
#include "checkpoint/values.h"
#include "parallel/agree.h"
#include "tensor/copy.h"

namespace furlong {
namespace {

namespace fs = std::filesystem;

constexpr const char* shard_key = "shard ";  // of a file's metadata, before a tensor's name: text_of(its Shard)

void remove_stale(const std::string& directory) {
  std::vector<fs::path> stale;
  std::error_code code;
  for (const auto& entry : fs::directory_iterator(directory, code)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(checkpoint_prefix) && name.find(".tmp-") != std::string::npos) stale.push_back(entry.path());
  }
  for (const auto& path : stale) {
    log::info("removing {}, left by a save that was cut off", path.string());
    fs::remove_all(path, code);
  }
}

// A rank's file of a set.
std::string file_of(const NamedWeights& set, int rank, int ranks) {
  return ranks == 1 ? set.name + ".safetensors"
                    : fmt::format("{}.{:05}-of-{:05}.safetensors", set.name, rank + 1, ranks);
}

// Whether a file is one of a set's, whatever the number of ranks that wrote it.
bool is_of_set(const std::string& file, const NamedWeights& set) {
  return file.starts_with(set.name + ".") && file.ends_with(".safetensors");
}

void check_sets(const std::vector<NamedWeights>& sets, const Mesh& mesh) {
  const auto plain = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '-'; };
  std::set<std::string> names;
  for (const auto& set : sets) {
    CHECK(!set.name.empty() && std::all_of(set.name.begin(), set.name.end(), plain), "set \"{}\"", set.name);
    CHECK(names.insert(set.name).second, "set {} twice", set.name);
    CHECK(set.weights != nullptr, "set {}", set.name);
    CHECK(set.weights->rank().ranks() == mesh.place().ranks() || mesh.is_alone(), "set {} of {} ranks among {}",
          set.name, set.weights->rank().ranks(), mesh.place().ranks());
  }
}

// Ranks on other hosts must see what rank 0 made or found.
void require_seen(const std::string& path, const Group& ranks) {
  std::error_code code;
  if (fs::is_directory(path, code)) return;
  fail(Exit::resources,
       "{}: rank 0 has this folder, rank {} does not see it. Checkpoints of a run on several hosts must lie on a file "
       "system that all of them share (--save, --load).",
       path, ranks.rank());
}

// --- saving ---

// The numbers of a tensor that this rank gives.
Tensor given(const TensorSpec& spec, const Tensor& t, const Shard& share) {
  CHECK(t.contiguous(), "{} {}", spec.name, t.describe());
  const size_t at = spec.owned ? 0 : static_cast<size_t>(share.own.begin) * size_of(t.dtype());
  return {static_cast<uint8_t*>(t.data()) + at, t.dtype(), {share.own.size()}, t.device()};
}

uint64_t bytes_to_write(const std::vector<NamedWeights>& sets) {
  uint64_t bytes = 0;
  for (const auto& set : sets) {
    const auto shares = shares_of(*set.weights);
    for (size_t i = 0; i < shares.size(); i++) {
      if (shares[i].own.size() == 0) continue;
      // What a tensor takes in a header and the manifest is less than this.
      constexpr uint64_t words = 512;
      bytes += words + static_cast<uint64_t>(shares[i].own.size()) * size_of(set.weights->tensors()[i].dtype());
    }
  }
  return bytes;
}

// How many numbers of a tensor were written, and how many there are.
struct Count {
  int64_t written = 0, all = 0;
};
using Counts = std::map<std::string, Count>;  // by set and tensor

// Writes a rank's file of a set; its record has the checksums taken as it is written.
FileRecord write_set(const std::string& folder, const std::string& file, const NamedWeights& set, Counts& counts) {
  const std::vector<Shard> shares = shares_of(*set.weights);
  std::vector<TensorSource> sources;
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  for (size_t i = 0; i < shares.size(); i++) {
    const TensorSpec& spec = set.weights->specs()[i];
    if (shares[i].own.size() == 0) continue;
    const Tensor part = given(spec, set.weights->tensors()[i], shares[i]);
    const bool whole = shares[i].is_whole();
    if (!whole) metadata[shard_key + spec.name] = text_of(shares[i]);
    counts[set.name + " " + spec.name] = {part.numel(), spec.full_numel()};
    sources.push_back({.name = spec.name,
                       .dtype = file_dtype_of(part.dtype()),
                       .shape = whole ? spec.full_shape : std::vector<int64_t>{part.numel()},
                       .emit = [part](const ByteSink& sink) {
                         const OnHost host(part);
                         sink(host.view().data(), part.bytes());
                       }});
  }
  FileRecord record{.name = file, .bytes = 0, .xxh3 = {}, .tensors = {}};
  Digest all;
  write_safetensors(folder + "/" + file, std::move(sources), metadata,
                    [&](const std::string& tensor, const void* data, size_t n) {
                      all.update(data, n);
                      record.bytes += n;
                      if (!tensor.empty()) record.tensors[tensor] = Digest::of(data, n);  // it arrives in one piece
                    });
  record.xxh3 = all.hex();
  return record;
}

// Every number of a tensor was written once by some rank, or an owner rule is wrong.
void check_counts(Group& ranks, const Counts& own) {
  Json told = Json::object();
  for (const auto& [tensor, count] : own) told[tensor] = {count.written, count.all};
  Counts counts;
  for (const auto& of_rank : ranks.gather_bytes(told.dump())) {
    const Json json = Json::parse(of_rank);
    for (const auto& [tensor, count] : json.items()) {
      counts[tensor].written += count.at(0).get<int64_t>();
      counts[tensor].all = count.at(1).get<int64_t>();
    }
  }
  for (const auto& [tensor, count] : counts) {
    CHECK(count.written == count.all, "{}: {} of {} numbers were given", tensor, count.written, count.all);
  }
}

void remove_old(const std::string& old) {
  // Renamed first, so that a removal that is cut off never leaves a folder that looks complete.
  const std::string doomed = old + ".tmp-old";
  std::error_code code;
  fs::rename(old, doomed, code);
  if (!code) fs::remove_all(doomed, code);
  if (code) log::warn("cannot remove the old checkpoint {}: {}", old, code.message());
}

// The first problem that a rank found, on every rank; empty when none did.
std::string first_problem(Group& ranks, const std::function<void()>& body) {
  std::string problem;
  try {
    body();
  } catch (const std::exception& e) {
    problem = e.what();
  }
  for (const auto& of_rank : ranks.gather_bytes(problem)) {
    if (!of_rank.empty()) return of_rank;
  }
  return "";
}

void prune(const std::string& directory, int64_t iteration, int keep, Group& ranks) {
  std::vector<int64_t> older;
  if (ranks.rank() == 0) {
    older = list_iterations(directory);
    std::erase_if(older, [&](int64_t i) { return i >= iteration; });
    older.erase(older.begin(), older.begin() + std::min(std::ssize(older), std::ptrdiff_t{std::max(keep, 2) - 1}));
  }
  if (from_first(ranks, older.empty() ? "" : "some").empty()) return;
  const std::string path = checkpoint_folder(directory, iteration);
  const std::string wrong =
      first_problem(ranks, [&] { verify_files(path, read_manifest(path), true, ranks.rank(), ranks.size()); });
  if (!wrong.empty()) {
    fail(Exit::resources,
         "{}: the checkpoint just written does not read back: {}. Older checkpoints were kept; check the disk.", path,
         wrong);
  }
  for (const int64_t i : older) remove_old(checkpoint_folder(directory, i));
}

// --- loading ---

// A file of a set, with the manifest's part about it.
struct SetFile {
  SafetensorsFile file;
  const FileRecord* record;
  bool verified;  // by this rank
};

// Numbers [to, to + count) of a tensor here, from number `from` of an entry.
struct Piece {
  const SetFile* file;
  const TensorEntry* entry;
  int64_t from, to, count;
};

std::vector<SetFile> open_set(const std::string& path, const std::vector<FileRecord>& files, const NamedWeights& set,
                              Group& ranks) {
  std::vector<SetFile> found;
  for (size_t i = 0; i < files.size(); i++) {
    if (!is_of_set(files[i].name, set)) continue;
    found.push_back({SafetensorsFile(path + "/" + files[i].name, Reading::parts), &files[i],
                     i % static_cast<size_t>(ranks.size()) == static_cast<size_t>(ranks.rank())});
  }
  if (found.empty()) {
    fail(Exit::input, "{}: it holds no {}; it was saved by a run with other settings (--dtype, --main-params-dtype)",
         path, set.name);
  }
  return found;
}

// What a file has of a tensor.
Shard shard_in(const SetFile& in, const TensorEntry& entry, const TensorSpec& spec, DType dtype) {
  const auto& metadata = in.file.metadata();
  const auto text = metadata.find(shard_key + spec.name);
  Shard shard{.full_shape = entry.shape, .held = {}, .own = {0, entry.numel()}};
  if (text != metadata.end()) shard = shard_from_text(text->second, in.file.path() + ": tensor " + spec.name);
  if (shard.full_shape != spec.full_shape || entry.dtype != file_dtype_of(dtype)) {
    fail(Exit::input,
         "{}: tensor {} is {}[{}], but this run needs {}[{}]; was it saved for another model or with another --dtype, "
         "--exp-avg-dtype or --exp-avg-sq-dtype?",
         in.file.path(), spec.name, entry.dtype, fmt::join(shard.full_shape, ","), name_of(dtype),
         fmt::join(spec.full_shape, ","));
  }
  if (shard.own.size() != entry.numel())
    fail(Exit::input, "{}: tensor {} has {} numbers, its metadata says {}", in.file.path(), spec.name, entry.numel(),
         shard.own.size());
  return shard;
}

// Adds what the shards `mine` and `theirs` have in common; both are sorted by their places in the whole tensor.
void add_common(const std::vector<Run>& mine, const std::vector<Run>& theirs, Piece piece, std::vector<Piece>& pieces) {
  size_t i = 0, j = 0;
  while (i < mine.size() && j < theirs.size()) {
    const Run &a = mine[i], &b = theirs[j];
    const int64_t begin = std::max(a.full_first, b.full_first);
    const int64_t a_end = a.full_first + a.count, b_end = b.full_first + b.count;
    piece.count = std::min(a_end, b_end) - begin;
    if (piece.count > 0) {
      piece.to = a.first + begin - a.full_first;
      piece.from = b.first + begin - b.full_first;
      pieces.push_back(piece);
    }
    (a_end < b_end ? i : j)++;
  }
}

// Where the files have the numbers of a tensor here, in its order. Throws Error(Exit::input) unless each of them is
// there once.
std::vector<Piece> pieces_in(const std::vector<SetFile>& files, const TensorSpec& spec, DType dtype) {
  const std::vector<Run> mine = runs_of(shard_of(spec));
  std::vector<Piece> pieces;
  bool found = false;
  for (const auto& in : files) {
    const TensorEntry* entry = in.file.find(spec.name);
    if (entry == nullptr) continue;
    found = true;
    add_common(mine, runs_of(shard_in(in, *entry, spec, dtype)), {&in, entry, 0, 0, 0}, pieces);
  }
  const std::string& where = files[0].file.path();
  if (!found) fail(Exit::input, "{}: tensor {} is not in it; was it saved for another model?", where, spec.name);
  std::sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.to < b.to; });
  int64_t end = 0;
  for (const Piece& piece : pieces) {
    if (piece.to != end) break;
    end += piece.count;
  }
  int64_t count = 0;
  for (const Piece& piece : pieces) count += piece.count;
  const int64_t numel = shard_of(spec).own.size();
  if (end != numel || count != numel) {
    fail(Exit::input, "{} and its like: of {} numbers of tensor {} they hold {}, the first {} in order", where, numel,
         spec.name, count, end);
  }
  return pieces;
}

// Calls f(tensor, pieces) for every tensor of a set that this rank needs.
template <class F>
void for_each_needed(const std::vector<SetFile>& files, const NamedWeights& set, F&& f) {
  for_each_tensor(
      [&](const TensorSpec& spec, const Tensor& t) {
        if (t.numel() > 0) f(t, pieces_in(files, spec, t.dtype()));
      },
      *set.weights);
}

// Holds the tensors that this rank reads of files that another one verifies against their checksums. Returns what is
// wrong.
std::string damage_in(const std::vector<SetFile>& files, const NamedWeights& set) {
  std::string wrong;
  for_each_needed(files, set, [&](const Tensor&, const std::vector<Piece>& pieces) {
    std::set<const TensorEntry*> seen;
    for (const Piece& piece : pieces) {
      if (piece.file->verified || !seen.insert(piece.entry).second || !wrong.empty()) continue;
      const TensorEntry& entry = *piece.entry;
      fetch_soon(entry.bytes);
      const auto& known = piece.file->record->tensors;
      const auto digest = known.find(entry.name);
      if (digest == known.end() || digest->second != Digest::of(entry.bytes.data(), entry.bytes.size()))
        wrong = fmt::format("{}: tensor {} differs", piece.file->file.path(), entry.name);
    }
  });
  return wrong;
}

// Has what will be copied fetched: of an entry of which much is wanted all in between, too.
void fetch(const std::vector<Piece>& pieces, size_t width) {
  struct Wanted {
    int64_t begin, end, count;
  };
  std::map<const TensorEntry*, Wanted> wanted;
  for (const Piece& piece : pieces) {
    Wanted& w = wanted.try_emplace(piece.entry, Wanted{piece.from, piece.from, 0}).first->second;
    w = {std::min(w.begin, piece.from), std::max(w.end, piece.from + piece.count), w.count + piece.count};
  }
  const auto ask = [&](const TensorEntry& entry, int64_t begin, int64_t count) {
    fetch_soon(entry.bytes.subspan(static_cast<size_t>(begin) * width, static_cast<size_t>(count) * width));
  };
  const auto much = [](const Wanted& w) { return 4 * w.count >= w.end - w.begin; };
  for (const auto& [entry, w] : wanted) {
    if (much(w)) ask(*entry, w.begin, w.end - w.begin);
  }
  for (const Piece& piece : pieces) {
    if (!much(wanted.at(piece.entry))) ask(*piece.entry, piece.from, piece.count);
  }
}

void fill_set(const std::vector<SetFile>& files, const NamedWeights& set) {
  for_each_needed(files, set, [&](const Tensor& t, const std::vector<Piece>& pieces) {
    CHECK(t.contiguous(), "{}", t.describe());
    const size_t width = size_of(t.dtype());
    fetch(pieces, width);
    const bool direct = t.device() == Device::cpu;
    std::vector<uint8_t> staged(direct ? 0 : t.bytes());
    auto* to = direct ? static_cast<uint8_t*>(t.data()) : staged.data();
    for (const Piece& piece : pieces) {
      std::memcpy(to + static_cast<size_t>(piece.to) * width,
                  piece.entry->bytes.data() + static_cast<size_t>(piece.from) * width,
                  static_cast<size_t>(piece.count) * width);
    }
    if (!direct) write_numbers(t, 0, t.numel(), staged.data());
  });
}

// Fills the sets from one checkpoint, or returns what is wrong with it, on all ranks alike.
std::string load_one(const std::string& path, const std::vector<NamedWeights>& sets, bool checksums, Group& ranks) {
  std::vector<FileRecord> files;
  std::string wrong = first_problem(ranks, [&] {
    if (ranks.rank() == 0) files = read_manifest(path);
  });
  if (!wrong.empty()) return wrong;
  // All go by the manifest that rank 0 read.
  if (ranks.size() > 1) files = records_from_text(from_first(ranks, text_of(files)), path);
  all_or_none(ranks, [&] { require_seen(path, ranks); });
  wrong = first_problem(ranks, [&] { verify_files(path, files, checksums, ranks.rank(), ranks.size()); });
  if (!wrong.empty()) return wrong;
  std::vector<std::vector<SetFile>> opened;
  all_or_none(ranks, [&] {
    for (const auto& set : sets) {
      opened.push_back(open_set(path, files, set, ranks));
      if (checksums && wrong.empty()) wrong = damage_in(opened.back(), set);
    }
  });
  wrong = first_problem(ranks, [&] {
    if (!wrong.empty()) fail(Exit::input, "{}", wrong);
  });
  if (!wrong.empty()) return wrong;
  all_or_none(ranks, [&] {
    for (size_t i = 0; i < sets.size(); i++) fill_set(opened[i], sets[i]);
  });
  return "";
}

}  // namespace

void save_checkpoint(const std::string& directory, int64_t iteration, const std::vector<NamedWeights>& sets,
                     const std::string& state, const SaveCheckpointOptions& options, const Mesh& mesh) {
  CHECK(iteration >= 0, "iteration {}", iteration);
  check_sets(sets, mesh);
  Group& ranks = mesh.world();
  const bool first = ranks.rank() == 0;
  uint64_t bytes = state.size();
  for (const auto& of_rank : ranks.gather_bytes(std::to_string(bytes_to_write(sets)))) bytes += std::stoull(of_rank);
  std::optional<TemporaryFolder> folder;
  all_or_none(ranks, [&] {
    if (!first) return;
    make_directories(directory);
    sync_directory(parent_folder(without_trailing_slash(directory)));
    remove_stale(directory);
    check_free_space(directory, bytes, fmt::format("the checkpoint of iteration {}", iteration));
    folder.emplace(checkpoint_folder(directory, iteration));
  });
  const std::string name = from_first(ranks, first ? fs::path(folder->path()).filename().string() : "");
  const std::string temporary = directory + "/" + name;
  std::vector<FileRecord> files;
  Counts counts;
  all_or_none(ranks, [&] {
    require_seen(temporary, ranks);
    for (const auto& set : sets) {
      files.push_back(write_set(temporary, file_of(set, ranks.rank(), ranks.size()), set, counts));
    }
  });
  check_counts(ranks, counts);
  const auto of_ranks = ranks.gather_bytes(text_of(files));
  all_or_none(ranks, [&] {
    if (!first) return;
    files = {{checkpoint_state_name, state.size(), Digest::of(state.data(), state.size()), {}}};
    for (const auto& text : of_ranks) {
      for (auto& file : records_from_text(text, "a rank's files")) files.push_back(std::move(file));
    }
    write_file_atomic(temporary + "/" + checkpoint_state_name, state);
    write_manifest(temporary, iteration, files);
    folder->commit();
    write_file_atomic(directory + "/latest_checkpointed_iteration.txt", std::to_string(iteration) + "\n");
  });
  prune(directory, iteration, options.keep, ranks);
}

std::string verify_checkpoint(const std::string& path, bool checksums) {
  try {
    verify_files(path, read_manifest(path), checksums);
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

std::optional<LoadedCheckpoint> load_latest(const std::string& directory, const std::vector<NamedWeights>& sets,
                                            const LoadCheckpointOptions& options, const Mesh& mesh) {
  check_sets(sets, mesh);
  Group& ranks = mesh.world();
  const bool first = ranks.rank() == 0;
  const Json iterations = Json::parse(from_first(ranks, Json(list_iterations(directory)).dump()));
  std::string wrong;
  for (const Json& iteration : iterations) {
    const std::string path = checkpoint_folder(directory, iteration.get<int64_t>());
    const std::string why = load_one(path, sets, options.checksums, ranks);
    if (why.empty()) {
      std::string state;
      all_or_none(ranks, [&] {
        if (first) state = read_file(path + "/" + checkpoint_state_name);
      });
      return LoadedCheckpoint{iteration.get<int64_t>(), path, from_first(ranks, state)};
    }
    if (first) log::warn("skipping the checkpoint {}: {}", path, why);
    wrong += "\n  " + why;
  }
  if (iterations.empty()) return std::nullopt;
  fail(Exit::input,
       "{}: no checkpoint of this folder is intact:{}\n  Restore one from a copy, or give another folder to start "
       "afresh.",
       directory, wrong);
}

}  // namespace furlong
