#include "checkpoint/torch_archive.h"

#include <algorithm>
#include <array>
#include <limits>

#include "base/check.h"
#include "base/error.h"
#include "base/text.h"

namespace furlong {
namespace {

using pickle::Graph;
using pickle::Kind;
using pickle::Ref;

constexpr uint64_t max_tensor_pickle = 1 << 20;
constexpr size_t max_tensor_rank = 8;

struct TorchType {
  const char *file, *dtype, *storage;
};
constexpr std::array<TorchType, 10> torch_types = {{{"BF16", "bfloat16", "BFloat16Storage"},
                                                    {"F16", "float16", "HalfStorage"},
                                                    {"F32", "float32", "FloatStorage"},
                                                    {"F64", "float64", "DoubleStorage"},
                                                    {"I64", "int64", "LongStorage"},
                                                    {"I32", "int32", "IntStorage"},
                                                    {"I16", "int16", "ShortStorage"},
                                                    {"I8", "int8", "CharStorage"},
                                                    {"U8", "uint8", "ByteStorage"},
                                                    {"BOOL", "bool", "BoolStorage"}}};

const TorchType* type_of_storage(std::string_view storage) {
  const auto* it =
      std::find_if(torch_types.begin(), torch_types.end(), [&](const auto& t) { return t.storage == storage; });
  return it == torch_types.end() ? nullptr : it;
}

void check_tensor_global(const std::string& where, std::string_view module, std::string_view name) {
  const bool known =
      (module == "torch._utils" &&
       (name == "_rebuild_tensor_v2" || name == "_rebuild_tensor_v3" || name == "_rebuild_parameter")) ||
      (module == "collections" && name == "OrderedDict") ||
      (module == "torch" && (name == "Size" || name == "UntypedStorage" || type_of_storage(name) != nullptr ||
                             file_dtype_of_torch(name).has_value())) ||
      (module == "torch.storage" && name == "UntypedStorage");
  if (known) return;
  std::string shown;
  for (const char c : std::string(module.substr(0, 80)) + "." + std::string(name.substr(0, 80)))
    shown += static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f ? '?' : c;
  fail(Exit::input,
       "{}: a tensor that names {}, which no tensor needs. Nothing was run, but other programs might: do not trust "
       "where this file came from.",
       where, shown);
}

// Reads a tensor's description out of its pickle.
class Description {
 public:
  Description(const Graph& g, const std::string& where) : g_(g), where_(where) {}

  struct View {
    const TorchType* type = nullptr;
    std::string key;
    int64_t numel = 0, offset = 0;
    std::vector<int64_t> size, stride;
  };

  View read() const {
    Ref tensor = g_.root();
    if (is_call(tensor, "torch._utils", "_rebuild_parameter")) tensor = argument(tensor, 0, 3);
    View view;
    Ref dtype = 0;
    if (is_call(tensor, "torch._utils", "_rebuild_tensor_v2")) {
      read_storage(argument(tensor, 0, 6), view, std::nullopt);
    } else if (is_call(tensor, "torch._utils", "_rebuild_tensor_v3")) {
      dtype = argument(tensor, 6, 7);
      if (g_.kind(dtype) != Kind::global || g_.module(dtype) != "torch") bad("its dtype is none");
      read_storage(argument(tensor, 0, 7), view, g_.name(dtype));
    } else {
      bad("it does not hold one tensor");
    }
    view.offset = whole(argument(tensor, 1, 6));
    view.size = extents(argument(tensor, 2, 6));
    view.stride = extents(argument(tensor, 3, 6));
    if (view.stride.size() != view.size.size()) bad("size and stride of different ranks");
    return view;
  }

 private:
  template <class... Args>
  [[noreturn]] void bad(fmt::format_string<Args...> format, Args&&... args) const {
    fail(Exit::input, "{}: the tensor's description is damaged: {}", where_,
         fmt::format(format, std::forward<Args>(args)...));
  }

  bool is_call(Ref r, std::string_view module, std::string_view name) const {
    return g_.kind(r) == Kind::object && g_.is_global(g_.callable(r), module, name);
  }

  Ref argument(Ref call, size_t i, size_t at_least) const {
    const auto arguments = g_.items(g_.arguments(call));
    if (arguments.size() < at_least) bad("a call of {} arguments", arguments.size());
    return arguments[i];
  }

  int64_t whole(Ref r) const {
    if (g_.kind(r) != Kind::integer || g_.integer(r) < 0) bad("{} where a size is wanted", name_of(g_.kind(r)));
    return g_.integer(r);
  }

  std::vector<int64_t> extents(Ref r) const {
    if (is_call(r, "torch", "Size")) r = argument(r, 0, 1);
    if (g_.kind(r) != Kind::tuple || g_.items(r).size() > max_tensor_rank) bad("a size that is no short tuple");
    std::vector<int64_t> out;
    for (const Ref item : g_.items(r)) out.push_back(whole(item));
    return out;
  }

  void read_storage(Ref r, View& view, std::optional<std::string_view> dtype) const {
    if (g_.kind(r) != Kind::persistent || g_.kind(g_.persistent(r)) != Kind::tuple) bad("its storage is none");
    const auto parts = g_.items(g_.persistent(r));
    if (parts.size() < 5 || !g_.is_text(parts[0], "storage") || g_.kind(parts[1]) != Kind::global ||
        g_.kind(parts[2]) != Kind::string) {
      bad("its storage is none");
    }
    view.numel = whole(parts[4]);
    const std::string_view storage = g_.name(parts[1]);
    if (dtype) {
      const auto file = file_dtype_of_torch(*dtype);
      for (const auto& t : torch_types) {
        if (file && *file == t.file) view.type = &t;
      }
      if (storage != "UntypedStorage" || view.type == nullptr) bad("a storage of an unknown kind");
      view.numel /= bits_of_file_dtype(view.type->file) / 8;
    } else {
      view.type = type_of_storage(storage);
      if (view.type == nullptr) bad("a storage of an unknown kind");
    }
    const std::string_view key = g_.text(parts[2]);
    const bool plain = !key.empty() && key.size() <= 20 && std::all_of(key.begin(), key.end(), [](char c) {
      return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
    });
    if (!plain) bad("a storage without a proper key");
    view.key = key;
  }

  const Graph& g_;
  const std::string& where_;
};

bool contiguous(const Description::View& view) {
  int64_t expected = 1;
  for (size_t i = view.size.size(); i-- > 0;) {
    if (view.size[i] != 1 && view.stride[i] != expected) return false;
    expected *= view.size[i];
  }
  return true;
}

}  // namespace

std::optional<std::string> file_dtype_of_torch(std::string_view torch_name) {
  for (const auto& t : torch_types) {
    if (t.dtype == torch_name) return t.file;
  }
  return std::nullopt;
}

std::optional<std::string> torch_dtype_of_file(std::string_view file_dtype) {
  for (const auto& t : torch_types) {
    if (t.file == file_dtype) return t.dtype;
  }
  return std::nullopt;
}

std::optional<int64_t> checked_numel(std::span<const int64_t> shape) {
  int64_t n = 1;
  for (const int64_t d : shape) {
    if (d < 0 || __builtin_mul_overflow(n, d, &n)) return std::nullopt;
  }
  if (n > std::numeric_limits<int64_t>::max() / 8) return std::nullopt;
  return n;
}

TorchArchive open_torch_archive(const ByteWindow& window, const std::string& where) {
  uint8_t magic[4] = {};
  if (window.size >= 4) window.read(0, magic);
  if (magic[0] != 'P' || magic[1] != 'K' || magic[2] != 3 || magic[3] != 4) {
    fail(Exit::input, "{}: it does not begin as an archive of torch.save; other formats are not read", where);
  }
  TorchArchive archive{.entries = read_zip(window, where)};
  const ZipEntry* data = nullptr;
  for (const auto& entry : archive.entries) {
    const size_t slash = entry.name.find('/');
    if (slash != std::string::npos && entry.name.substr(slash) == "/data.pkl" && data == nullptr) data = &entry;
  }
  if (data == nullptr) fail(Exit::input, "{}: an archive without data.pkl; torch.save did not write it", where);
  archive.folder = data->name.substr(0, data->name.size() - std::string_view("data.pkl").size());
  for (const auto& entry : archive.entries) {
    if (!entry.name.starts_with(archive.folder))
      fail(Exit::input, "{}: an archive with entries outside of its folder; torch.save did not write it", where);
  }
  const auto text_of = [&](const char* name) -> std::string {
    const ZipEntry* entry = find_entry(archive.entries, archive.folder + name);
    if (entry == nullptr) return "";
    const auto bytes = read_entry(window, *entry, 64, where);
    return {bytes.begin(), bytes.end()};
  };
  if (const std::string order = text_of("byteorder"); !order.empty() && order != "little") {
    fail(Exit::input, "{}: its byte order is not little-endian", where);
  }
  if (find_entry(archive.entries, archive.folder + "version") != nullptr) {
    std::string version = text_of("version");
    if (version.ends_with('\n')) version.pop_back();
    const auto number = parse_integer(version);
    if (!number || *number < 2 || *number > 10) {
      fail(Exit::input, "{}: its version is \"{}\"; 2 to 10 are read", where, printable(version));
    }
  }
  constexpr size_t pickle_limit = size_t{256} << 20;
  archive.pickle = read_entry(window, *data, pickle_limit, where);
  return archive;
}

ArchivedTensor read_archived_tensor(const ByteWindow& window, const std::string& where) {
  const TorchArchive archive = open_torch_archive(window, where);
  if (archive.pickle.size() > max_tensor_pickle) {
    fail(Exit::input, "{}: a tensor's description of {} bytes", where, archive.pickle.size());
  }
  const Graph graph =
      pickle::parse(archive.pickle, where, [&](auto module, auto name) { check_tensor_global(where, module, name); });
  const Description::View view = Description(graph, where).read();
  ArchivedTensor tensor{.dtype = view.type->file, .shape = view.size};
  const auto bad = [&](const std::string& what) { fail(Exit::input, "{}: a damaged tensor: {}", where, what); };
  const auto numel = checked_numel(view.size);
  if (!numel) bad("its size overflows");
  const auto width = static_cast<uint64_t>(bits_of_file_dtype(tensor.dtype) / 8);
  const ZipEntry* entry = find_entry(archive.entries, archive.folder + "data/" + view.key);
  if (entry == nullptr) bad("its bytes are missing");
  if (entry->size % width != 0 || entry->size / width != static_cast<uint64_t>(view.numel)) {
    bad(fmt::format("{} numbers in {} bytes", view.numel, entry->size));
  }
  if (*numel > 0 && !contiguous(view)) bad("it is not contiguous; such views are not read");
  if (*numel > view.numel || view.offset > view.numel - *numel) bad("it reaches out of its storage");
  tensor.offset = entry->offset + static_cast<uint64_t>(view.offset) * width;
  tensor.bytes = static_cast<uint64_t>(*numel) * width;
  if (tensor.bytes == entry->size) tensor.crc = entry->crc;
  return tensor;
}

uint64_t write_archived_tensor(std::string_view dtype, std::span<const int64_t> shape, std::span<const uint8_t> bytes,
                               const ByteSink& sink) {
  const auto* type =
      std::find_if(torch_types.begin(), torch_types.end(), [&](const auto& t) { return t.file == dtype; });
  CHECK(type != torch_types.end(), "dtype {}", dtype);
  const auto numel = checked_numel(shape);
  CHECK(numel && static_cast<uint64_t>(*numel) * static_cast<uint64_t>(bits_of_file_dtype(dtype) / 8) == bytes.size(),
        "{} bytes", bytes.size());
  std::vector<int64_t> stride(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) stride[i - 1] = stride[i] * std::max<int64_t>(shape[i], 1);
  using P = pickle::Writer;
  P p(2);
  p.global("torch._utils", "_rebuild_tensor_v2");
  p.op(P::mark);
  p.op(P::mark);
  p.text("storage");
  p.global("torch", type->storage);
  p.text("0");
  p.text("cpu");
  p.integer(*numel);
  p.op(P::close_tuple);
  p.op(P::persistent_id);
  p.integer(0);
  p.tuple(shape);
  p.tuple(stride);
  p.boolean(false);
  p.global("collections", "OrderedDict");
  p.op(P::empty_tuple);
  p.op(P::reduce);
  p.op(P::close_tuple);
  p.op(P::reduce);
  ZipBuilder zip("archive");
  std::string head = zip.add("data.pkl", p.finish());
  head += zip.add("byteorder", "little");
  head += zip.begin("data/0");
  sink(head.data(), head.size());
  if (!bytes.empty()) sink(bytes.data(), bytes.size());
  std::string tail = zip.end(bytes.size(), crc32_of(bytes));
  tail += zip.add("version", "3\n");
  tail += zip.finish();
  sink(tail.data(), tail.size());
  return zip.written();
}

}  // namespace furlong
