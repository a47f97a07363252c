#include "tokenizer/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace furlong {
namespace {

constexpr std::string_view replacement = "\xEF\xBF\xBD";

enum class Form { whole, broken, cut };

struct Sequence {
  Form form = Form::whole;
  size_t length = 0;  // bytes of the character, or of the maximal subpart
};

// The sequence that begins at bytes[at]. The second byte's range depends on the first (Unicode table 3-7).
Sequence sequence_at(std::string_view bytes, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned first = byte(at);
  if (first < 0x80) return {Form::whole, 1};
  if (first < 0xC2 || first > 0xF4) return {Form::broken, 1};
  const size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  const unsigned low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const unsigned high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; i++) {
    if (at + i >= bytes.size()) return {Form::cut, i};
    const unsigned next = byte(at + i);
    if (next < (i == 1 ? low : 0x80) || next > (i == 1 ? high : 0xBF)) return {Form::broken, i};
  }
  return {Form::whole, length};
}

// Characters below U+0300 are in NFC whatever their neighbours, as long as those are below it too.
bool below_combining(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0xCC; });
}

constexpr auto nfc_options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE);

// Ranges with every character that Unicode 10 to 17 gave a combining class or a canonical composition, and otherwise
// only characters that have neither.
bool is_later_than_unicode_9(utf8proc_int32_t c) {
  constexpr utf8proc_int32_t ranges[][2] = {
      {0x07FD, 0x07FD},   {0x0897, 0x08D3},   {0x09FE, 0x09FE},   {0x0C3C, 0x0C3C},   {0x0D3B, 0x0D3C},
      {0x0EBA, 0x0EBA},   {0x1715, 0x1715},   {0x1ABF, 0x1AFF},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},
      {0x105C0, 0x105FF}, {0x10D24, 0x10F85}, {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x11380, 0x113FF},
      {0x1145E, 0x1145E}, {0x11839, 0x11A99}, {0x11D42, 0x1613F}, {0x16D40, 0x16FF1}, {0x1E08F, 0x1E6FF}};
  return std::any_of(std::begin(ranges), std::end(ranges), [c](auto& range) { return c >= range[0] && c <= range[1]; });
}

// Orders and composes decomposed characters, appends them to `out` and empties `points`.
void append_composed(std::string& out, std::vector<utf8proc_int32_t>& points) {
  // Canonical ordering is done here with a sort: the library's own is quadratic in the length of a run of marks.
  const auto rank = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (size_t i = 0; i < points.size();) {
    size_t end = i;
    while (end < points.size() && rank(points[end]) != 0) end++;
    if (end - i > 1) {
      std::stable_sort(points.begin() + static_cast<ptrdiff_t>(i), points.begin() + static_cast<ptrdiff_t>(end),
                       [&](auto a, auto b) { return rank(a) < rank(b); });
    }
    i = end + 1;
  }
  const auto count = utf8proc_normalize_utf32(points.data(), static_cast<utf8proc_ssize_t>(points.size()), nfc_options);
  CHECK(count >= 0, "utf8proc: {}", utf8proc_errmsg(count));
  for (utf8proc_ssize_t i = 0; i < count; i++) {
    utf8proc_uint8_t buffer[4];
    const auto length = utf8proc_encode_char(points[static_cast<size_t>(i)], buffer);
    out.append(reinterpret_cast<const char*>(buffer), static_cast<size_t>(length));
  }
  points.clear();
}

bool is_space(utf8proc_int32_t c) {
  if (c <= 0x20) return c == 0x20 || (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x1F);
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

// Bytes of the white space at the front (0 if none). Ill-formed bytes are no white space.
size_t space_at(std::string_view text) {
  if (text.empty() || sequence_at(text, 0).form != Form::whole) return 0;
  utf8proc_int32_t c = 0;
  const auto length = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                       static_cast<utf8proc_ssize_t>(text.size()), &c);
  return length > 0 && is_space(c) ? static_cast<size_t>(length) : 0;
}

}  // namespace

bool is_valid_utf8(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size();) {
    const Sequence sequence = sequence_at(bytes, i);
    if (sequence.form != Form::whole) return false;
    i += sequence.length;
  }
  return true;
}

size_t append_utf8(std::string& out, std::string_view bytes) {
  size_t i = 0;
  while (i < bytes.size()) {
    const Sequence sequence = sequence_at(bytes, i);
    if (sequence.form == Form::cut) break;
    out += sequence.form == Form::whole ? bytes.substr(i, sequence.length) : replacement;
    i += sequence.length;
  }
  return i;
}

std::string repair_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  if (append_utf8(out, bytes) < bytes.size()) out += replacement;
  return out;
}

std::string nfc(std::string_view text) {
  constexpr size_t enough_points = 4096;
  std::string out;
  if (below_combining(text)) return out = text;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> points;
  for (size_t i = 0; i < text.size();) {
    utf8proc_int32_t c = 0, parts[32];
    const auto length = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + i,
                                         static_cast<utf8proc_ssize_t>(text.size() - i), &c);
    CHECK(length > 0, "nfc of ill-formed UTF-8 at byte {}", i);
    if (is_later_than_unicode_9(c)) {
      append_composed(out, points);
      out += text.substr(i, static_cast<size_t>(length));
    } else {
      // No character below U+0300 has to do with those before it: here a long text may be cut.
      if (c < 0x300 && points.size() > enough_points) append_composed(out, points);
      const auto count = utf8proc_decompose_char(c, parts, 32, nfc_options, nullptr);
      CHECK(count > 0 && count <= 32, "U+{:04X} decomposes into {} characters", c, count);
      points.insert(points.end(), parts, parts + count);
    }
    i += static_cast<size_t>(length);
  }
  append_composed(out, points);
  return out;
}

std::string_view trim_unicode(std::string_view text) {
  while (const size_t n = space_at(text)) text.remove_prefix(n);
  for (;;) {
    size_t start = text.size();
    while (start > 0 && text.size() - start < 4) {
      start--;
      if ((static_cast<unsigned char>(text[start]) & 0xC0) != 0x80) break;
    }
    const size_t n = start < text.size() ? space_at(text.substr(start)) : 0;
    if (n == 0 || start + n != text.size()) return text;
    text.remove_suffix(n);
  }
}

}  // namespace furlong
