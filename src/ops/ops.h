// What the ops can say of themselves.
#pragma once
#include <string>
#include <vector>

namespace furlong::ops {

// The CPU instruction set in use: "avx512", "avx2" or "portable".
std::string isa_name();
// The sets this program was compiled for, best first.
std::vector<std::string> compiled_isas();

}  // namespace furlong::ops
