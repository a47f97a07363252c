#include "reward/python_number.h"

#include <charconv>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "reward/text.h"

namespace furlong {

namespace {

using namespace grader;

// The digits, signs and letters of a number as ASCII; empty if it holds anything else.
std::optional<std::string> to_ascii(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = code_point(text, at);
    at += c.bytes;
    if (c.value < 0x80) {
      out.push_back(static_cast<char>(c.value));
    } else if (const int digit = decimal_value(c.value); digit >= 0) {
      out.push_back(static_cast<char>('0' + digit));
    } else {
      return std::nullopt;
    }
  }
  return out;
}

// Takes a run of digits with single underscores between them off the front; returns how many digits it had, or -1
// where an underscore is out of place. The digits are appended to `out`.
int take_digits(std::string_view& text, std::string& out) {
  int count = 0;
  bool underscore = false;
  while (!text.empty() && (is_ascii_digit(text[0]) || text[0] == '_')) {
    if (text[0] == '_') {
      if (count == 0 || underscore) return -1;
      underscore = true;
    } else {
      out.push_back(text[0]);
      underscore = false;
      ++count;
    }
    text.remove_prefix(1);
  }
  return underscore ? -1 : count;
}

// The value of sign-less "digits[.digits][e[+-]digits]".
double decimal_to_double(const std::string& digits) {
  double value = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (error != std::errc::result_out_of_range) return value;
  // Out of range either way: the place of the first digit that is not zero tells which.
  const std::size_t e = digits.find('e');
  const std::string_view mantissa = std::string_view(digits).substr(0, e);
  std::size_t point = mantissa.find('.');
  if (point == std::string_view::npos) point = mantissa.size();
  const std::size_t first = mantissa.find_first_of("123456789");
  if (first == std::string_view::npos) return 0;
  if (e != std::string::npos && e + 1 < digits.size()) {
    const bool negative = digits[e + 1] == '-';
    const std::size_t nonzero = digits.find_first_of("123456789", e + 1);
    const std::size_t length = nonzero == std::string::npos ? 0 : digits.size() - nonzero;
    if (length > 9) return negative ? 0 : std::numeric_limits<double>::infinity();
    long exponent = 0;
    if (length > 0) std::from_chars(digits.data() + nonzero, digits.data() + digits.size(), exponent);
    const long place = static_cast<long>(point) - static_cast<long>(first);
    return place + (negative ? -exponent : exponent) > 0 ? std::numeric_limits<double>::infinity() : 0;
  }
  return first < point ? std::numeric_limits<double>::infinity() : 0;
}

}  // namespace

std::optional<double> python_float(std::string_view text) {
  const auto ascii = to_ascii(strip(text));
  if (!ascii || ascii->empty()) return std::nullopt;
  std::string_view rest = *ascii;
  bool negative = false;
  if (rest[0] == '+' || rest[0] == '-') {
    negative = rest[0] == '-';
    rest.remove_prefix(1);
  }
  const std::string word = rest.size() <= 8 ? lower(rest) : std::string();
  const double sign = negative ? -1.0 : 1.0;
  if (word == "inf" || word == "infinity") return sign * std::numeric_limits<double>::infinity();
  if (word == "nan") return std::copysign(std::numeric_limits<double>::quiet_NaN(), sign);
  std::string digits;
  const int whole = take_digits(rest, digits);
  if (whole < 0) return std::nullopt;
  int fraction = 0;
  if (!rest.empty() && rest[0] == '.') {
    rest.remove_prefix(1);
    digits.push_back('.');
    fraction = take_digits(rest, digits);
    if (fraction < 0) return std::nullopt;
  }
  if (whole == 0 && fraction == 0) return std::nullopt;
  if (!rest.empty() && (rest[0] == 'e' || rest[0] == 'E')) {
    rest.remove_prefix(1);
    digits.push_back('e');
    if (!rest.empty() && (rest[0] == '+' || rest[0] == '-')) {
      if (rest[0] == '-') digits.push_back('-');
      rest.remove_prefix(1);
    }
    if (take_digits(rest, digits) <= 0) return std::nullopt;
  }
  if (!rest.empty()) return std::nullopt;
  return sign * decimal_to_double(digits);
}

bool is_canonical_integer(std::string_view text) {
  const bool negative = text.starts_with('-');
  const std::string_view digits = negative ? text.substr(1) : text;
  if (digits.empty() || digits.size() > 4300) return false;
  if (digits.find_first_not_of("0123456789") != std::string_view::npos) return false;
  return digits[0] != '0' || (digits.size() == 1 && !negative);
}

std::string integral_text(double value) {
  CHECK(std::isfinite(value), "integral_text({})", value);
  const std::string text = fmt::format("{:.0f}", std::trunc(value));
  return text == "-0" ? "0" : text;
}

std::string python_float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  if (value == 0) return std::signbit(value) ? "-0.0" : "0.0";
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
  const std::string_view shortest(buffer, static_cast<std::size_t>(end - buffer));  // d[.ddd]e+XX
  const std::size_t e = shortest.find('e');
  int exponent = 0;
  const char* exponent_text = buffer + e + (shortest[e + 1] == '+' ? 2 : 1);
  std::from_chars(exponent_text, end, exponent);
  if (exponent < -4 || exponent >= 16) return std::string(shortest);
  std::string out;
  std::string digits;
  for (const char c : shortest.substr(0, e)) {
    if (c == '-') out.push_back('-');
    if (is_ascii_digit(c)) digits.push_back(c);
  }
  const auto count = static_cast<int>(digits.size());
  if (exponent < 0) return out + "0." + std::string(static_cast<std::size_t>(-exponent - 1), '0') + digits;
  if (count <= exponent + 1)
    return out + digits + std::string(static_cast<std::size_t>(exponent + 1 - count), '0') + ".0";
  const auto whole = static_cast<std::size_t>(exponent) + 1;
  return out + digits.substr(0, whole) + "." + digits.substr(whole);
}

}  // namespace furlong
