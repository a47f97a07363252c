// Numbers as Python's float(), int() and str() read and write them.
#pragma once
#include <optional>
#include <string>
#include <string_view>

namespace furlong {

// float(text): white space around it, a sign, decimal digits of any script, single underscores between digits, a
// point, an exponent; inf, infinity and nan in any case. Empty where Python raises ValueError. Too large a number is an
// infinity, too small a one is zero.
std::optional<double> python_float(std::string_view text);

// Whether text is written just as Python writes an int (an optional minus, no leading zeros, not "-0") and is short
// enough (4300 digits) for int() to read it.
bool is_canonical_integer(std::string_view text);

// str(int(value)): every digit of the integral part. The value must be finite.
std::string integral_text(double value);

// repr(value): the shortest digits that give the value back, in exponent form below 1e-4 and from 1e16 on.
std::string python_float_text(double value);

}  // namespace furlong
