// UTF-8 checking and repair, NFC, and the Unicode white space of chat templates.
#pragma once
#include <string>
#include <string_view>

namespace furlong {

// True if every byte belongs to a well-formed UTF-8 character (no surrogates, nothing above U+10FFFF).
bool is_valid_utf8(std::string_view bytes);

// Appends `bytes` to `out` as well-formed UTF-8: each maximal subpart of an ill-formed sequence becomes one U+FFFD
// (Unicode standard, section 3.9, "U+FFFD substitution of maximal subparts"). A sequence that the end of `bytes` cuts
// short, and that more bytes could still complete, is left alone. Returns how many bytes were used up.
size_t append_utf8(std::string& out, std::string_view bytes);

// All of `bytes` as well-formed UTF-8; a cut-short sequence at the end becomes one U+FFFD too.
std::string repair_utf8(std::string_view bytes);

// Normalization form C of well-formed UTF-8, by Unicode 9.0: that is the version of the tokenizers library, whose ids
// count. Characters that came later are left as and where they stand.
std::string nfc(std::string_view text);

// Without leading and trailing white space as Python's str.strip() and Jinja's trim see it: the White_Space property
// and the separators U+001C to U+001F.
std::string_view trim_unicode(std::string_view text);

}  // namespace furlong
