#include "checkpoint/dcp_metadata.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "base/error.h"
#include "checkpoint/pickle.h"
#include "checkpoint/torch_archive.h"

namespace furlong {
namespace {

using pickle::Graph;
using pickle::Kind;
using pickle::Ref;

constexpr std::string_view metadata_module = "torch.distributed.checkpoint.metadata";
constexpr std::string_view storage_module = "torch.distributed.checkpoint.filesystem";
constexpr std::string_view old_module = "torch.distributed._shard.sharded_tensor.metadata";
constexpr size_t max_box_rank = 8;
// Fields of one object. No class has as many; a hostile file may share one large dict among many objects.
constexpr size_t max_fields = 32;

std::string shown_key(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 120)) out += static_cast<unsigned char>(c) < 0x20 || c == 0x7f ? '?' : c;
  return out + (text.size() > 120 ? "..." : "");
}

class Parser {
 public:
  Parser(const Graph& g, const std::string& where) : g_(g), where_(where) {}

  DcpMetadata run() {
    const Ref state = state_of(g_.root(), metadata_module, "Metadata");
    read_tensors(field(state, "state_dict_metadata", Kind::dict));
    read_storage(field(state, "storage_data", Kind::dict));
    check_chunks();
    check_slices();
    return std::move(out_);
  }

 private:
  template <class... Args>
  [[noreturn]] void bad(fmt::format_string<Args...> format, Args&&... args) const {
    fail(Exit::input, "{}: not an index of torch_dist, or a damaged one: {}", where_,
         fmt::format(format, std::forward<Args>(args)...));
  }

  bool is_class(Ref r, std::string_view module, std::string_view name) const {
    return g_.kind(r) == Kind::object && g_.is_global(g_.callable(r), module, name);
  }

  std::string class_of(Ref r) const {
    if (g_.kind(r) != Kind::object || g_.kind(g_.callable(r)) != Kind::global) return name_of(g_.kind(r));
    return shown_key(g_.module(g_.callable(r))) + "." + shown_key(g_.name(g_.callable(r)));
  }

  // The dict of fields of an object of this class; slots beside it are not used by any.
  Ref state_of(Ref r, std::string_view module, std::string_view name) const {
    if (!is_class(r, module, name)) bad("{} where {} is wanted", class_of(r), name);
    Ref state = g_.state(r);
    if (g_.kind(state) == Kind::tuple && g_.items(state).size() == 2) state = g_.items(state)[0];
    if (g_.kind(state) != Kind::dict || g_.items(state).size() > 2 * max_fields) bad("a {} without its fields", name);
    return state;
  }

  Ref field(Ref state, const char* name, Kind kind) const {
    const Ref* found = g_.find(state, name);
    if (found == nullptr) bad("{} is missing", name);
    if (g_.kind(*found) != kind) bad("{} is {}", name, name_of(g_.kind(*found)));
    return *found;
  }

  uint64_t count(Ref state, const char* name) const {
    const int64_t value = g_.integer(field(state, name, Kind::integer));
    if (value < 0) bad("{} is {}", name, value);
    return static_cast<uint64_t>(value);
  }

  std::vector<int64_t> extents(Ref r) const {
    if (is_class(r, "torch", "Size")) {
      if (g_.items(g_.arguments(r)).size() != 1) bad("a torch.Size of several values");
      r = g_.items(g_.arguments(r))[0];
    }
    if (g_.kind(r) != Kind::tuple && g_.kind(r) != Kind::list) bad("a size that is {}", name_of(g_.kind(r)));
    if (g_.items(r).size() > max_box_rank) bad("a size of rank {}", g_.items(r).size());
    std::vector<int64_t> out;
    for (const Ref item : g_.items(r)) {
      if (g_.kind(item) != Kind::integer || g_.integer(item) < 0) bad("a size that is no whole number");
      out.push_back(g_.integer(item));
    }
    return out;
  }

  std::string dtype_of(Ref properties) const {
    const bool known = is_class(properties, metadata_module, "TensorProperties") ||
                       is_class(properties, old_module, "TensorProperties");
    if (!known) bad("{} where TensorProperties is wanted", class_of(properties));
    Ref dtype = g_.state(properties);
    if (g_.kind(dtype) == Kind::dict && g_.items(dtype).size() <= 2 * max_fields) {
      const Ref* found = g_.find(dtype, "dtype");
      if (found == nullptr) bad("a tensor without a dtype");
      dtype = *found;
    } else if (g_.kind(dtype) == Kind::tuple && !g_.items(dtype).empty()) {
      dtype = g_.items(dtype)[0];
    }
    if (g_.kind(dtype) != Kind::global || g_.module(dtype) != "torch" || g_.name(dtype).size() > 40)
      bad("a tensor without a dtype");
    return file_dtype_of_torch(g_.name(dtype)).value_or(std::string(g_.name(dtype)));
  }

  void read_tensors(Ref dict) {
    const auto pairs = g_.items(dict);
    size_t chunks_in_all = 0;
    for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
      if (g_.kind(pairs[i]) != Kind::string) bad("a key that is {}", name_of(g_.kind(pairs[i])));
      const std::string_view key = g_.text(pairs[i]);
      if (is_class(pairs[i + 1], metadata_module, "BytesStorageMetadata")) {
        out_.bytes_items.emplace_back(key);
        continue;
      }
      const Ref state = state_of(pairs[i + 1], metadata_module, "TensorStorageMetadata");
      DcpTensor tensor{.key = std::string(key)};
      tensor.dtype = dtype_of(field(state, "properties", Kind::object));
      tensor.shape = extents(field_of_any_kind(state, "size"));
      if (!checked_numel(tensor.shape)) bad("the size of {} overflows", shown_key(key));
      const auto chunks = g_.items(field(state, "chunks", Kind::list));
      // One list may be shared by many tensors; no honest file has more boxes than values.
      chunks_in_all += chunks.size();
      if (chunks_in_all > g_.size()) bad("more boxes than the file can describe");
      for (const Ref chunk : chunks) {
        const Ref box = state_of(chunk, metadata_module, "ChunkStorageMetadata");
        tensor.chunks.push_back(
            {.offsets = extents(field_of_any_kind(box, "offsets")), .sizes = extents(field_of_any_kind(box, "sizes"))});
      }
      out_.tensors.push_back(std::move(tensor));
    }
    std::sort(out_.tensors.begin(), out_.tensors.end(), [](const auto& a, const auto& b) { return a.key < b.key; });
    std::sort(out_.bytes_items.begin(), out_.bytes_items.end());
    for (size_t i = 1; i < out_.tensors.size(); i++) {
      if (out_.tensors[i].key == out_.tensors[i - 1].key) bad("{} is there twice", shown_key(out_.tensors[i].key));
    }
    for (auto& tensor : out_.tensors) {
      std::sort(tensor.chunks.begin(), tensor.chunks.end(),
                [](const auto& a, const auto& b) { return a.offsets < b.offsets; });
    }
  }

  Ref field_of_any_kind(Ref state, const char* name) const {
    const Ref* found = g_.find(state, name);
    if (found == nullptr) bad("{} is missing", name);
    return *found;
  }

  uint32_t file_number(Ref path) {
    if (g_.kind(path) != Kind::string) bad("a file name that is {}", name_of(g_.kind(path)));
    const std::string_view name = g_.text(path);
    const auto it = file_numbers_.find(name);
    if (it != file_numbers_.end()) return it->second;
    if (name.size() > 255) bad("a file name of {} bytes", name.size());
    check_plain_file_name(std::string(name), where_);
    const auto number = static_cast<uint32_t>(out_.files.size());
    out_.files.emplace_back(name);
    file_numbers_[name] = number;
    return number;
  }

  DcpChunk* chunk_at(std::string_view key, const std::vector<int64_t>& offsets) {
    const auto tensor = std::lower_bound(out_.tensors.begin(), out_.tensors.end(), key,
                                         [](const auto& t, std::string_view k) { return t.key < k; });
    if (tensor == out_.tensors.end() || tensor->key != key) return nullptr;
    const auto chunk = std::lower_bound(tensor->chunks.begin(), tensor->chunks.end(), offsets,
                                        [](const auto& c, const auto& o) { return c.offsets < o; });
    return chunk == tensor->chunks.end() || chunk->offsets != offsets ? nullptr : &*chunk;
  }

  void read_storage(Ref dict) {
    const auto pairs = g_.items(dict);
    for (size_t i = 0; i + 1 < pairs.size(); i += 2) {
      const Ref index = state_of(pairs[i], metadata_module, "MetadataIndex");
      const Ref info = state_of(pairs[i + 1], storage_module, "_StorageInfo");
      const std::string_view key = g_.text(field(index, "fqn", Kind::string));
      if (const Ref* transforms = g_.find(info, "transform_descriptors"); transforms != nullptr) {
        const Kind kind = g_.kind(*transforms);
        const bool none =
            kind == Kind::none || ((kind == Kind::list || kind == Kind::tuple) && g_.items(*transforms).empty());
        if (!none) bad("{} is stored transformed (compressed), which is not read", shown_key(key));
      }
      Slice slice{file_number(field(info, "relative_path", Kind::string)), count(info, "offset"),
                  count(info, "length")};
      if (slice.length > UINT64_MAX - slice.offset) bad("an archive whose place overflows");
      slices_.push_back(slice);
      const Ref* offset = g_.find(index, "offset");
      if (offset == nullptr || g_.kind(*offset) == Kind::none) {
        if (!std::binary_search(out_.bytes_items.begin(), out_.bytes_items.end(), key)) {
          bad("{} has an archive, but no entry", shown_key(key));
        }
        continue;
      }
      DcpChunk* chunk = chunk_at(key, extents(*offset));
      if (chunk == nullptr) bad("{} has an archive for a box that it has not", shown_key(key));
      if (chunk->length != 0) bad("{} has two archives for one box", shown_key(key));
      chunk->file = slice.file;
      chunk->offset = slice.offset;
      chunk->length = slice.length;
      if (slice.length == 0) bad("{} has an empty archive", shown_key(key));
    }
  }

  void check_chunks() {
    for (const auto& tensor : out_.tensors) {
      unsigned __int128 covered = 0;
      for (const auto& chunk : tensor.chunks) {
        const bool ranks = chunk.offsets.size() == tensor.shape.size() && chunk.sizes.size() == tensor.shape.size();
        for (size_t d = 0; ranks && d < tensor.shape.size(); d++) {
          if (chunk.sizes[d] > tensor.shape[d] || chunk.offsets[d] > tensor.shape[d] - chunk.sizes[d])
            bad("a box of {} reaches out of it", shown_key(tensor.key));
        }
        if (!ranks) bad("a box of {} has another rank", shown_key(tensor.key));
        if (chunk.length == 0) bad("a box of {} has no archive", shown_key(tensor.key));
        covered += static_cast<unsigned __int128>(*checked_numel(chunk.sizes));
      }
      // Boxes inside that cover as much as the whole and do not overlap cover it all.
      if (covered != static_cast<unsigned __int128>(*checked_numel(tensor.shape)))
        bad("the boxes of {} do not make it up", shown_key(tensor.key));
      check_disjoint(tensor);
    }
  }

  static bool overlap(const DcpChunk& a, const DcpChunk& b) {
    for (size_t d = 0; d < a.offsets.size(); d++) {
      if (a.offsets[d] + a.sizes[d] <= b.offsets[d] || b.offsets[d] + b.sizes[d] <= a.offsets[d]) return false;
    }
    return true;
  }

  void check_disjoint(const DcpTensor& tensor) {
    if (tensor.chunks.size() < 2 || *checked_numel(tensor.shape) == 0) return;
    // A sweep along the axis with the most cuts; only boxes open at the same time are compared.
    size_t axis = 0, most = 0;
    for (size_t d = 0; d < tensor.shape.size(); d++) {
      std::vector<int64_t> cuts;
      for (const auto& chunk : tensor.chunks) cuts.push_back(chunk.offsets[d]);
      std::sort(cuts.begin(), cuts.end());
      const auto distinct = static_cast<size_t>(std::unique(cuts.begin(), cuts.end()) - cuts.begin());
      if (distinct > most) {
        most = distinct;
        axis = d;
      }
    }
    std::vector<const DcpChunk*> order;
    for (const auto& chunk : tensor.chunks) {
      if (*checked_numel(chunk.sizes) > 0) order.push_back(&chunk);
    }
    std::sort(order.begin(), order.end(),
              [&](const auto* a, const auto* b) { return a->offsets[axis] < b->offsets[axis]; });
    std::vector<const DcpChunk*> open;
    for (const DcpChunk* chunk : order) {
      std::erase_if(open, [&](const auto* o) { return o->offsets[axis] + o->sizes[axis] <= chunk->offsets[axis]; });
      if (open.size() > comparisons_) bad("the boxes of {} are too many to check", shown_key(tensor.key));
      comparisons_ -= open.size();
      for (const DcpChunk* other : open) {
        if (overlap(*chunk, *other)) bad("two boxes of {} overlap", shown_key(tensor.key));
      }
      open.push_back(chunk);
    }
  }

  void check_slices() {
    std::sort(slices_.begin(), slices_.end());
    for (size_t i = 1; i < slices_.size(); i++) {
      const Slice &a = slices_[i - 1], &b = slices_[i];
      if (a.file == b.file && a.offset + a.length > b.offset) {
        bad("two archives in {} overlap at byte {}", shown_key(out_.files[a.file]), b.offset);
      }
    }
  }

  struct Slice {
    uint32_t file;
    uint64_t offset, length;
    auto operator<=>(const Slice&) const = default;
  };

  const Graph& g_;
  const std::string& where_;
  DcpMetadata out_;
  std::unordered_map<std::string_view, uint32_t> file_numbers_;
  std::vector<Slice> slices_;
  size_t comparisons_ = 100'000'000;
};

class Emitter {
 public:
  explicit Emitter(const DcpMetadata& metadata) : metadata_(metadata) {}

  std::string run(const std::string& save_id) {
    object(metadata_module, "Metadata");
    p_.text("state_dict_metadata");
    p_.op(P::empty_dict);
    p_.op(P::mark);
    for (const auto& tensor : metadata_.tensors) emit_tensor(tensor);
    p_.op(P::set_items);
    p_.text("planner_data");
    p_.op(P::empty_dict);
    p_.text("storage_data");
    p_.op(P::empty_dict);
    p_.op(P::mark);
    for (const auto& tensor : metadata_.tensors) {
      for (size_t i = 0; i < tensor.chunks.size(); i++) emit_storage(tensor, i);
    }
    p_.op(P::set_items);
    p_.text("storage_meta");
    object(metadata_module, "StorageMeta");
    p_.text("checkpoint_id");
    p_.none();
    p_.text("save_id");
    p_.text(save_id);
    p_.text("load_id");
    p_.none();
    p_.text("modules");
    p_.op(P::empty_list);
    close();
    close();
    return p_.finish();
  }

 private:
  using P = pickle::Writer;

  // Opens an object and its dict of fields; close() ends both.
  void object(std::string_view module, const char* name) {
    p_.global(std::string(module), name);
    p_.op(P::empty_tuple);
    p_.op(P::new_object);
    p_.op(P::empty_dict);
    p_.op(P::mark);
  }
  void close() {
    p_.op(P::set_items);
    p_.op(P::build);
  }

  void emit_tensor(const DcpTensor& tensor) {
    p_.text(tensor.key);
    object(metadata_module, "TensorStorageMetadata");
    p_.text("properties");
    p_.global(std::string(metadata_module), "TensorProperties");
    p_.op(P::empty_tuple);
    p_.op(P::new_object);
    p_.op(P::mark);
    p_.global("torch", torch_dtype_of_file(tensor.dtype).value());
    p_.global("torch.serialization", "_get_layout");
    p_.text("torch.strided");
    p_.op(P::tuple1);
    p_.op(P::reduce);
    p_.boolean(false);
    p_.global(std::string(metadata_module), "_MEM_FORMAT_ENCODING");
    p_.integer(0);
    p_.op(P::tuple1);
    p_.op(P::reduce);
    p_.boolean(false);
    p_.op(P::close_tuple);
    p_.op(P::build);
    p_.text("size");
    p_.size(tensor.shape);
    p_.text("chunks");
    p_.op(P::empty_list);
    p_.op(P::mark);
    for (const auto& chunk : tensor.chunks) {
      object(metadata_module, "ChunkStorageMetadata");
      p_.text("offsets");
      p_.size(chunk.offsets);
      p_.text("sizes");
      p_.size(chunk.sizes);
      close();
    }
    p_.op(P::append_all);
    close();
  }

  void emit_storage(const DcpTensor& tensor, size_t i) {
    const DcpChunk& chunk = tensor.chunks[i];
    object(metadata_module, "MetadataIndex");
    p_.text("fqn");
    p_.text(tensor.key);
    p_.text("index");
    p_.integer(static_cast<int64_t>(i));
    p_.text("offset");
    p_.size(chunk.offsets);
    close();
    object(storage_module, "_StorageInfo");
    p_.text("relative_path");
    p_.text(metadata_.files[chunk.file]);
    p_.text("offset");
    p_.integer(static_cast<int64_t>(chunk.offset));
    p_.text("length");
    p_.integer(static_cast<int64_t>(chunk.length));
    close();
  }

  const DcpMetadata& metadata_;
  P p_{4};
};

}  // namespace

const DcpTensor* DcpMetadata::find(std::string_view key) const {
  const auto it = std::lower_bound(tensors.begin(), tensors.end(), key,
                                   [](const auto& t, std::string_view k) { return t.key < k; });
  return it == tensors.end() || it->key != key ? nullptr : &*it;
}

DcpMetadata parse_dcp_metadata(std::span<const uint8_t> bytes, const std::string& where) {
  const Graph graph = pickle::parse(bytes, where);
  return Parser(graph, where).run();
}

std::string emit_dcp_metadata(const DcpMetadata& metadata, const std::string& save_id) {
  return Emitter(metadata).run(save_id);
}

}  // namespace furlong
