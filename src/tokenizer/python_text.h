// Text as Python's str handles it, on well-formed UTF-8: positions and lengths count characters (code points), white
// space is Unicode's. Letter case follows the simple mappings (one character to one), but for sharp s, whose capitals
// are two.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace furlong::python {

int64_t length(std::string_view text);  // in characters
// Bytes of the first character; 0 for an empty text.
size_t first_bytes(std::string_view text);
std::vector<uint32_t> characters(std::string_view text);
void append_character(std::string& out, uint32_t character);
// Characters begin, begin + step, ... (count of them), each within the text.
std::string pick(std::string_view text, int64_t begin, int64_t step, int64_t count);

bool is_space(uint32_t character);
bool is_letter(uint32_t character);
bool is_digit(uint32_t character);
bool is_upper(uint32_t character);
bool is_lower(uint32_t character);

enum class Side { left, right, both };
// Without the white space at its ends, or without the characters of `set`.
std::string_view strip(std::string_view text, Side side);
std::string_view strip(std::string_view text, Side side, std::string_view set);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string title(std::string_view text);       // every run of letters begins with a capital
std::string capitalize(std::string_view text);  // the first character alone

// At white space, at most `most` times (below 0: without limit); empty pieces are left out.
std::vector<std::string_view> split(std::string_view text, int64_t most, bool from_right);
// At a separator, which is not empty.
std::vector<std::string_view> split(std::string_view text, std::string_view separator, int64_t most, bool from_right);
std::vector<std::string_view> lines(std::string_view text, bool keep_ends);
std::string replace(std::string_view text, std::string_view from, std::string_view to, int64_t most);

std::string repr(std::string_view text);  // with quotes, as repr() writes it
std::string repr(double number);          // the shortest that reads back: 0.1, 1e-05, 1e+16, inf

// A JSON string as json.dumps writes it.
std::string json_string(std::string_view text, bool ascii);

}  // namespace furlong::python
