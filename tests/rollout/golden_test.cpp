// Greedy generations against a reference implementation, token for token.
#include "checkpoint/safetensors.h"
#include "rollout/fixture.h"

namespace furlong {
namespace {

std::vector<int32_t> golden(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry* entry = file.find(name);
  EXPECT_NE(entry, nullptr) << name;
  if (entry == nullptr) return {};
  std::vector<int32_t> out;
  for (int64_t i = 0; i < entry->numel(); i++) {
    if (entry->dtype == "I64") {
      int64_t value = 0;
      std::memcpy(&value, entry->bytes.data() + 8 * i, 8);
      out.push_back(static_cast<int32_t>(value));
    } else {
      EXPECT_EQ(entry->dtype, "I32");
      int32_t value = 0;
      std::memcpy(&value, entry->bytes.data() + 4 * i, 4);
      out.push_back(value);
    }
  }
  return out;
}

void expect_golden(const TestModel& m, const std::string& folder, int drafts) {
  const SafetensorsFile file(std::string(FURLONG_TEST_DATA) + "/" + folder + "/golden_generate.safetensors");
  std::vector<Request> requests;
  std::vector<std::vector<int32_t>> expected;
  for (int64_t i = 0; i < 3; i++) {
    expected.push_back(golden(file, fmt::format("greedy{}", i)));
    requests.push_back({.prompt = golden(file, fmt::format("prompt{}", i)),
                        .params = {.temperature = 0},
                        .max_new_tokens = static_cast<int64_t>(expected.back().size()),
                        .group_index = i});
  }
  for (const int64_t budget : {64, 2048}) {
    const EngineOptions options{.max_running = 4, .drafts = drafts, .max_tokens = 128, .prefill_budget = budget};
    const auto together = generate(m, options, requests);
    ASSERT_EQ(together.size(), 3u);
    for (size_t i = 0; i < 3; i++) {
      EXPECT_EQ(together[i].tokens, expected[i]) << "prompt " << i << " of a batch, prefill budget " << budget;
      const auto alone = generate(m, options, {requests[i]});
      ASSERT_EQ(alone.size(), 1u);
      EXPECT_EQ(alone[0].tokens, expected[i]) << "prompt " << i << " alone, prefill budget " << budget;
      EXPECT_EQ(alone[0].log_probs, together[i].log_probs);
    }
  }
}

class Golden : public testing::TestWithParam<int> {};

TEST_P(Golden, GreedyTokensAloneAndTogether) { expect_golden(tiny_model(), "goldens", GetParam()); }
TEST_P(Golden, GreedyTokensOfTheSiblings) {
  for (const char* name : {"dense", "tied", "moe36", "next"}) {
    SCOPED_TRACE(name);
    expect_golden(sibling_model(name), std::string("siblings/") + name, GetParam());
  }
}

INSTANTIATE_TEST_SUITE_P(Drafts, Golden, testing::Values(0, 1, 2, 3));

}  // namespace
}  // namespace furlong
