#pragma once
#include <string>

namespace furlong {

// What `furlong --version` prints: version, compiler, instruction sets and libraries.
std::string version_text();

}  // namespace furlong
