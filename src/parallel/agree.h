// What ranks do together or not at all.
#pragma once
#include <functional>
#include <string>

#include "parallel/group.h"

namespace furlong {

// Runs `body` on every rank of the group. When it throws on some, all throw once every rank has ended its own: the
// Error of the first such rank. The body may communicate only if it throws on all ranks alike from then on.
void all_or_none(Group& group, const std::function<void()>& body);

// Rank 0's text, on every rank.
std::string from_first(Group& group, const std::string& text);

}  // namespace furlong
