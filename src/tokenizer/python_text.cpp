#include "tokenizer/python_text.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace furlong::python {
namespace {

constexpr uint32_t sharp_s = 0xDF;

uint32_t decode(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  switch (first_bytes(text)) {
    case 2: return (byte(0) & 0x1Fu) << 6 | (byte(1) & 0x3Fu);
    case 3: return (byte(0) & 0x0Fu) << 12 | (byte(1) & 0x3Fu) << 6 | (byte(2) & 0x3Fu);
    case 4: return (byte(0) & 0x07u) << 18 | (byte(1) & 0x3Fu) << 12 | (byte(2) & 0x3Fu) << 6 | (byte(3) & 0x3Fu);
    default: return byte(0);
  }
}

size_t last_bytes(std::string_view text) {
  size_t n = 1;
  while (n < text.size() && n < 4 && (static_cast<unsigned char>(text[text.size() - n]) & 0xC0) == 0x80) n++;
  return n;
}

utf8proc_category_t category(uint32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

template <class Drop>
std::string_view strip_if(std::string_view text, Side side, Drop&& drop) {
  while (side != Side::right && !text.empty() && drop(decode(text))) text.remove_prefix(first_bytes(text));
  while (side != Side::left && !text.empty()) {
    const size_t n = last_bytes(text);
    if (!drop(decode(text.substr(text.size() - n)))) break;
    text.remove_suffix(n);
  }
  return text;
}

void append_upper(std::string& out, uint32_t c) {
  if (c == sharp_s) {
    out += "SS";
  } else {
    append_character(out, static_cast<uint32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))));
  }
}

void append_title(std::string& out, uint32_t c) {
  if (c == sharp_s) {
    out += "Ss";
  } else {
    append_character(out, static_cast<uint32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c))));
  }
}

void append_lower(std::string& out, uint32_t c) {
  append_character(out, static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
}

bool is_printable(uint32_t c) {
  if (c == ' ') return true;
  const auto kind = category(c);
  return kind != UTF8PROC_CATEGORY_CN && (kind < UTF8PROC_CATEGORY_ZS || kind > UTF8PROC_CATEGORY_CO);
}

bool ends_line(uint32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

}  // namespace

size_t first_bytes(std::string_view text) {
  if (text.empty()) return 0;
  const auto first = static_cast<unsigned char>(text[0]);
  const size_t n = first < 0xC0 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  return std::min(n, text.size());
}

int64_t length(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

std::vector<uint32_t> characters(std::string_view text) {
  std::vector<uint32_t> out;
  for (; !text.empty(); text.remove_prefix(first_bytes(text))) out.push_back(decode(text));
  return out;
}

void append_character(std::string& out, uint32_t c) {
  utf8proc_uint8_t bytes[4];
  const auto n = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(n));
}

std::string pick(std::string_view text, int64_t begin, int64_t step, int64_t count) {
  std::vector<size_t> starts;
  for (size_t at = 0; at < text.size(); at += first_bytes(text.substr(at))) starts.push_back(at);
  std::string out;
  for (int64_t i = 0; i < count; i++) {
    const size_t at = starts[static_cast<size_t>(begin + i * step)];
    out += text.substr(at, first_bytes(text.substr(at)));
  }
  return out;
}

bool is_space(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || (c >= 0x1C && c <= 0x20) || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_letter(uint32_t c) { return category(c) >= UTF8PROC_CATEGORY_LU && category(c) <= UTF8PROC_CATEGORY_LO; }
bool is_digit(uint32_t c) { return category(c) == UTF8PROC_CATEGORY_ND; }
bool is_upper(uint32_t c) { return category(c) == UTF8PROC_CATEGORY_LU; }
bool is_lower(uint32_t c) { return category(c) == UTF8PROC_CATEGORY_LL; }

std::string_view strip(std::string_view text, Side side) { return strip_if(text, side, is_space); }
std::string_view strip(std::string_view text, Side side, std::string_view set) {
  const std::vector<uint32_t> dropped = characters(set);
  return strip_if(text, side,
                  [&](uint32_t c) { return std::find(dropped.begin(), dropped.end(), c) != dropped.end(); });
}

std::string upper(std::string_view text) {
  std::string out;
  for (const uint32_t c : characters(text)) append_upper(out, c);
  return out;
}

std::string lower(std::string_view text) {
  std::string out;
  for (const uint32_t c : characters(text)) append_lower(out, c);
  return out;
}

std::string title(std::string_view text) {
  std::string out;
  bool inside = false;
  for (const uint32_t c : characters(text)) {
    inside ? append_lower(out, c) : append_title(out, c);
    inside = is_upper(c) || is_lower(c) || category(c) == UTF8PROC_CATEGORY_LT;
  }
  return out;
}

std::string capitalize(std::string_view text) {
  const size_t n = first_bytes(text);
  std::string out;
  if (n > 0) append_title(out, decode(text));
  return out + lower(text.substr(n));
}

std::vector<std::string_view> split(std::string_view text, int64_t most, bool from_right) {
  std::vector<std::string_view> out;
  const Side side = from_right ? Side::right : Side::left;
  for (text = strip(text, side); !text.empty(); text = strip(text, side)) {
    if (most >= 0 && std::ssize(out) == most) {
      out.push_back(text);
      break;
    }
    size_t n = 0;  // bytes of the piece
    while (n < text.size()) {
      const std::string_view rest = from_right ? text.substr(0, text.size() - n) : text.substr(n);
      const size_t bytes = from_right ? last_bytes(rest) : first_bytes(rest);
      if (is_space(decode(from_right ? rest.substr(rest.size() - bytes) : rest))) break;
      n += bytes;
    }
    out.push_back(from_right ? text.substr(text.size() - n) : text.substr(0, n));
    text = from_right ? text.substr(0, text.size() - n) : text.substr(n);
  }
  if (from_right) std::reverse(out.begin(), out.end());
  return out;
}

std::vector<std::string_view> split(std::string_view text, std::string_view separator, int64_t most, bool from_right) {
  std::vector<std::string_view> out;
  while (most < 0 || std::ssize(out) < most) {
    const size_t at = from_right ? text.rfind(separator) : text.find(separator);
    if (at == std::string_view::npos) break;
    const auto before = text.substr(0, at), after = text.substr(at + separator.size());
    out.push_back(from_right ? after : before);
    text = from_right ? before : after;
  }
  out.push_back(text);
  if (from_right) std::reverse(out.begin(), out.end());
  return out;
}

std::vector<std::string_view> lines(std::string_view text, bool keep_ends) {
  std::vector<std::string_view> out;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t n = first_bytes(text.substr(at));
    const bool ends = ends_line(decode(text.substr(at)));
    const size_t line_end = at;
    at += n;
    if (!ends) continue;
    if (text[line_end] == '\r' && at < text.size() && text[at] == '\n') at++;
    out.push_back(text.substr(begin, (keep_ends ? at : line_end) - begin));
    begin = at;
  }
  if (begin < text.size()) out.push_back(text.substr(begin));
  return out;
}

std::string replace(std::string_view text, std::string_view from, std::string_view to, int64_t most) {
  std::string out;
  int64_t done = 0;
  if (from.empty()) {  // before every character and at the end
    for (; most < 0 || done < most; done++) {
      out += to;
      if (text.empty()) return out;
      const size_t n = first_bytes(text);
      out += text.substr(0, n);
      text.remove_prefix(n);
    }
    return out.append(text);
  }
  for (; most < 0 || done < most; done++) {
    const size_t at = text.find(from);
    if (at == std::string_view::npos) break;
    out.append(text.substr(0, at)).append(to);
    text.remove_prefix(at + from.size());
  }
  return out.append(text);
}

std::string repr(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos,
             has_double = text.find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  std::string out(1, quote);
  for (const uint32_t c : characters(text)) {
    if (c == static_cast<unsigned char>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n' || c == '\r' || c == '\t') {
      out += c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t";
    } else if (is_printable(c)) {
      append_character(out, c);
    } else if (c < 0x100) {
      out += fmt::format("\\x{:02x}", c);
    } else {
      out += c < 0x10000 ? fmt::format("\\u{:04x}", c) : fmt::format("\\U{:08x}", c);
    }
  }
  return out + quote;
}

std::string repr(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  return format_real(number);
}

std::string json_string(std::string_view text, bool ascii) {
  std::string out = "\"";
  for (size_t at = 0; at < text.size();) {
    const size_t n = first_bytes(text.substr(at));
    const uint32_t c = decode(text.substr(at));
    if (c == '"' || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c < 0x20) {
      switch (c) {
        case '\n': out += "\\n"; break;
        case '\r': out += "\\r"; break;
        case '\t': out += "\\t"; break;
        case '\b': out += "\\b"; break;
        case '\f': out += "\\f"; break;
        default: out += fmt::format("\\u{:04x}", c);
      }
    } else if (!ascii || c < 0x7F) {
      out += text.substr(at, n);
    } else if (c < 0x10000) {
      out += fmt::format("\\u{:04x}", c);
    } else {
      out += fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((c - 0x10000) >> 10), 0xDC00 + (c & 0x3FF));
    }
    at += n;
  }
  return out + '"';
}

}  // namespace furlong::python
