#include "parallel/on_ranks.h"
#include "parallel/threads.h"

namespace furlong::test {

void on_ranks(const std::function<void(World&)>& body) { run_ranks(test_ranks, body); }

}  // namespace furlong::test
