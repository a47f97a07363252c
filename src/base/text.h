// Text for people: nearest names for a typo, strict numbers, sizes, and untrusted text made fit to print.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace furlong {

// The fewest insertions, deletions, replacements and swaps of neighbours that turn a into b, no place edited twice
// (optimal string alignment), counted in bytes.
size_t edit_distance(std::string_view a, std::string_view b);

// At most `count` of the candidates that `name` may have been meant for, nearest first: within a third of the name's
// length in edits, or containing it (or contained in it) as a whole run of words between '-' or '_'. '-' equals '_'.
std::vector<std::string> nearest_names(std::string_view name, const std::vector<std::string>& candidates,
                                       size_t count = 3);

// "a", "a or b", "a, b or c"; empty for none.
std::string join_or(const std::vector<std::string>& items);

// The whole text as a number, or nothing: no blanks, no trailing text, no overflow. "+5" and "1e3" (for a real) are
// fine; "inf" and "nan" are not numbers here.
std::optional<int64_t> parse_integer(std::string_view text);
std::optional<double> parse_real(std::string_view text);

// The shortest decimal that reads back as the same double and as a real: "0.1", "1.0", "1e-06".
std::string format_real(double value);

std::string human_bytes(uint64_t bytes);    // "512 B", "1.5 KiB", "67.0 GiB"
std::string human_count(double count);      // "999", "34.7 B" (thousand K, million M, billion B, trillion T)
std::string human_seconds(double seconds);  // "0.8 s", "4 min 05 s", "3 h 02 min", "2 d 04 h"

bool valid_utf8(std::string_view text);

// Text of unknown origin on one line: control bytes as \n, \t or \xNN, invalid UTF-8 as \xNN, cut after about `limit`
// bytes with "...".
std::string printable(std::string_view text, size_t limit = 80);

}  // namespace furlong
