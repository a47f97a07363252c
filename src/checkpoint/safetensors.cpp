#include "checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"

namespace furlong {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian and read in place");

constexpr uint64_t max_header = 100'000'000;
constexpr uint64_t max_integer = uint64_t{1} << 53;
constexpr size_t max_rank = 64;

std::string printable(const std::string& name) {
  std::string out;
  for (const char c : name) {
    if (out.size() >= 120) return out + "...";
    out += static_cast<unsigned char>(c) < 0x20 ? '?' : c;
  }
  return out;
}

uint64_t read_integer(const Json& value, const std::string& where, const std::string& tensor, const char* key) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > max_integer) {
    fail(Exit::input, "{}: tensor {}: {} must hold whole numbers from 0 to 2^53", where, printable(tensor), key);
  }
  return value.get<uint64_t>();
}

const Json& member(const Json& object, const char* key, const std::string& where, const std::string& tensor) {
  const auto it = object.find(key);
  if (it == object.end()) fail(Exit::input, "{}: tensor {} has no {} in the header", where, printable(tensor), key);
  return *it;
}

struct ByteRange {
  uint64_t begin, end;
};

// One entry of the header, its size held against dtype and shape; its bytes are taken from `data`.
TensorEntry read_entry(const std::string& name, const Json& value, std::span<const uint8_t> data,
                       const std::string& where, ByteRange& range) {
  const std::string shown = printable(name);
  if (!value.is_object()) fail(Exit::input, "{}: the header's entry {} must be an object", where, shown);
  if (value.size() > 3)
    fail(Exit::input, "{}: tensor {} has keys other than dtype, shape and data_offsets", where, shown);
  TensorEntry entry;
  entry.name = name;
  const Json& dtype = member(value, "dtype", where, name);
  if (!dtype.is_string()) fail(Exit::input, "{}: tensor {}: dtype must be a string", where, shown);
  entry.dtype = dtype.get<std::string>();
  const Json& shape = member(value, "shape", where, name);
  if (!shape.is_array() || shape.size() > max_rank) {
    fail(Exit::input, "{}: tensor {}: shape must be a list of at most {} numbers", where, shown, max_rank);
  }
  uint64_t numel = 1;
  for (const auto& d : shape) {
    const uint64_t extent = read_integer(d, where, name, "shape");
    // Nor may the extents before a zero multiply to more than TensorEntry::numel can hold.
    constexpr uint64_t most = std::numeric_limits<int64_t>::max();
    if (extent > most || __builtin_mul_overflow(numel, extent, &numel) || numel > most)
      fail(Exit::input, "{}: tensor {}: its size overflows", where, shown);
    entry.shape.push_back(static_cast<int64_t>(extent));
  }
  const Json& offsets = member(value, "data_offsets", where, name);
  if (!offsets.is_array() || offsets.size() != 2) {
    fail(Exit::input, "{}: tensor {}: data_offsets must be [begin, end]", where, shown);
  }
  range = {read_integer(offsets[0], where, name, "data_offsets"),
           read_integer(offsets[1], where, name, "data_offsets")};
  if (range.begin > range.end || range.end > data.size()) {
    fail(Exit::input,
         "{}: tensor {}: its bytes [{}, {}) are not within the {} data bytes of the file; is the file truncated?",
         where, shown, range.begin, range.end, data.size());
  }
  entry.bytes = data.subspan(range.begin, range.end - range.begin);
  const int bits = bits_of_file_dtype(entry.dtype);
  uint64_t total = 0;
  // Of a dtype that is not known here, a number takes a bit at least.
  const bool fits = bits == 0 ? numel / 8 <= entry.bytes.size()
                              : !__builtin_mul_overflow(numel, static_cast<uint64_t>(bits), &total) && total % 8 == 0 &&
                                    total / 8 == entry.bytes.size();
  if (!fits) {
    fail(Exit::input, "{}: tensor {}: {} needs a number of bytes other than the {} it has", where, shown,
         entry.describe(), entry.bytes.size());
  }
  return entry;
}

std::map<std::string, std::string> read_metadata(const Json& value, const std::string& where) {
  if (!value.is_object()) fail(Exit::input, "{}: __metadata__ must be an object", where);
  std::map<std::string, std::string> metadata;
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) fail(Exit::input, "{}: __metadata__ value {} must be a string", where, printable(key));
    metadata[key] = text.get<std::string>();
  }
  return metadata;
}

std::string_view header_text(std::span<const uint8_t> bytes, const std::string& where) {
  if (bytes.size() < 8) fail(Exit::input, "{}: {} bytes are too few for a safetensors file", where, bytes.size());
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), 8);
  if (length == 0 || length > max_header || length > bytes.size() - 8) {
    fail(Exit::input,
         "{}: the header length {} is not within the file ({} bytes); it is truncated or no safetensors file", where,
         length, bytes.size());
  }
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + 8, length);
  if (text.front() != '{') fail(Exit::input, "{}: the header does not begin with {{", where);
  // A JSON reader may take NUL for the end of its input and leave what follows unread.
  if (text.find('\0') != std::string_view::npos) fail(Exit::input, "{}: the header holds a NUL byte", where);
  return text;
}

}  // namespace

int64_t TensorEntry::numel() const {
  int64_t n = 1;
  for (const int64_t d : shape) n *= d;
  return n;
}

std::string TensorEntry::describe() const {
  std::string text = printable(dtype) + "[";
  for (size_t i = 0; i < shape.size(); i++) text += fmt::format("{}{}", i > 0 ? "," : "", shape[i]);
  return text + "]";
}

int bits_of_file_dtype(std::string_view dtype) {
  static const std::map<std::string_view, int> bits = {
      {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},   {"I8", 8},    {"F8_E5M2", 8},
      {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16}, {"BF16", 16}, {"I32", 32},
      {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},    {"I64", 64}, {"U64", 64}};
  const auto it = bits.find(dtype);
  return it == bits.end() ? 0 : it->second;
}

SafetensorsContent parse_safetensors(std::span<const uint8_t> bytes, const std::string& where) {
  const std::string_view text = header_text(bytes, where);
  const auto data = bytes.subspan(8 + text.size());
  const Json header = parse_json(text, where + ": header");
  if (!header.is_object()) fail(Exit::input, "{}: the header must be an object", where);
  SafetensorsContent content;
  std::vector<std::pair<ByteRange, TensorEntry>> found;
  for (const auto& [name, value] : header.items()) {
    if (name == "__metadata__") {
      content.metadata = read_metadata(value, where);
      continue;
    }
    ByteRange range{};
    TensorEntry entry = read_entry(name, value, data, where, range);
    found.emplace_back(range, std::move(entry));
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first.begin, a.first.end) < std::pair(b.first.begin, b.first.end);
  });
  uint64_t end = 0;
  for (auto& [range, entry] : found) {
    if (range.begin != end) {
      fail(Exit::input, "{}: tensor {} begins at data byte {}, but the one before ends at {}: they {}", where,
           printable(entry.name), range.begin, end, range.begin < end ? "overlap" : "leave a hole");
    }
    end = range.end;
    content.entries.push_back(std::move(entry));
  }
  if (end != data.size()) fail(Exit::input, "{}: {} bytes follow the last tensor", where, data.size() - end);
  return content;
}

SafetensorsFile::SafetensorsFile(const std::string& path, Reading reading) : file_(path) {
  constexpr size_t header = 1 << 16;  // most headers fit; the rest of a longer one comes by pages
  if (reading == Reading::parts) {
    fetch_only_what_is_read(file_.bytes());
    fetch_soon(file_.bytes().first(std::min(header, file_.bytes().size())));
  }
  content_ = parse_safetensors(file_.bytes(), path);
  for (size_t i = 0; i < content_.entries.size(); i++) index_[content_.entries[i].name] = i;
}

const TensorEntry* SafetensorsFile::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &content_.entries[it->second];
}

void check_plain_file_name(const std::string& name, const std::string& where) {
  const bool plain = !name.empty() && name != "." && name.find("..") == std::string::npos &&
                     name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
  if (!plain)
    fail(Exit::input, "{}: \"{}\" is not a plain file name; files must lie in the folder itself", where,
         printable(name));
}

SafetensorsDirectory::SafetensorsDirectory(const std::string& directory, Reading reading)
    : directory_(directory), reading_(reading) {
  namespace fs = std::filesystem;
  const std::string index_path = directory + "/" + index_file_name, single = directory + "/" + single_file_name;
  std::error_code code;
  const bool has_single = fs::exists(single, code);
  if (fs::exists(index_path, code)) {
    read_sharded(index_path);
    const bool listed = std::any_of(files_.begin(), files_.end(), [&](const auto& f) { return f.path() == single; });
    if (has_single && !listed) log::warn("{}: {} is not in the index and is left unread", directory, single_file_name);
  } else if (has_single) {
    add_file(single);
  } else {
    fail(Exit::input, "{}: neither {} nor {} is there; give the folder of a Hugging Face checkpoint in safetensors",
         directory, index_file_name, single_file_name);
  }
}

void SafetensorsDirectory::add_file(const std::string& path) {
  files_.emplace_back(path, reading_);
  const auto& entries = files_.back().entries();
  for (size_t i = 0; i < entries.size(); i++) {
    const auto [it, fresh] = index_.try_emplace(entries[i].name, files_.size() - 1, i);
    if (!fresh) {
      fail(Exit::input, "{}: tensor {} is in {} and in {}", directory_, printable(entries[i].name),
           file_of(entries[i].name), std::filesystem::path(path).filename().string());
    }
  }
}

void SafetensorsDirectory::read_sharded(const std::string& index_path) {
  const Json index = read_json_file(index_path);
  const auto map = index.is_object() ? index.find("weight_map") : index.end();
  if (!index.is_object() || map == index.end() || !map->is_object() || map->empty()) {
    fail(Exit::input, "{}: weight_map must be an object of tensor names and files", index_path);
  }
  std::set<std::string> names;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string())
      fail(Exit::input, "{}: weight_map value of {} must be a string", index_path, printable(tensor));
    check_plain_file_name(file.get_ref<const std::string&>(), index_path);
    names.insert(file.get<std::string>());
  }
  for (const auto& name : names) {
    std::error_code code;
    if (!std::filesystem::exists(directory_ + "/" + name, code)) {
      fail(Exit::input, "{}: it lists the file {}, which is not there; fetch the missing file", index_path,
           printable(name));
    }
    add_file(directory_ + "/" + name);
  }
  for (const auto& [tensor, file] : map->items()) {
    if (find(tensor) == nullptr || file_of(tensor) != file.get_ref<const std::string&>()) {
      fail(Exit::input, "{}: it says that {} is in {}, but it is not there; the files do not belong together",
           index_path, printable(tensor), file.get<std::string>());
    }
  }
  for (const auto& [tensor, place] : index_) {
    if (!map->contains(tensor)) {
      fail(Exit::input, "{}: tensor {} of {} is not listed; the files do not belong together", index_path,
           printable(tensor), files_[place.first].path());
    }
  }
}

const TensorEntry* SafetensorsDirectory::find(const std::string& name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &files_[it->second.first].entries()[it->second.second];
}

std::string SafetensorsDirectory::file_of(const std::string& name) const {
  return std::filesystem::path(files_[index_.at(name).first].path()).filename().string();
}

}  // namespace furlong
