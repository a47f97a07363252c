// The rollout on several ranks: the tokens of one.
#include <atomic>

#include "parallel/threads.h"
#include "rollout/fixture.h"

namespace furlong {
namespace {

ModelConfig wide_toy() {
  ModelConfig c = toy_model(61).config;
  c.num_layers = 4;
  c.full_attention = {false, true, false, true};
  c.num_heads = 8;
  c.num_kv_heads = 2;
  c.linear_num_key_heads = 4;
  c.linear_num_value_heads = 8;
  c.linear_key_head_dim = c.linear_value_head_dim = 8;
  c.num_experts = 8;
  return c;
}

// The numbers that a rank holds of a whole model.
Weights part_of(const Weights& whole, const ModelConfig& c, const MeshRank& rank) {
  Weights part(c, whole.dtype(), {.rank = rank});
  for (size_t i = 0; i < part.specs().size(); i++) {
    const Tensor& to = part.tensors()[i];
    if (!to.defined()) continue;
    const auto* from = whole.tensors()[i].as<float>();
    for_each_run(part.specs()[i],
                 [&](int64_t first, int64_t full, int64_t n) { std::copy_n(from + full, n, to.as<float>() + first); });
  }
  return part;
}

struct Layout {
  ParallelSizes sizes;
  int ranks;
};

std::vector<Request> work(const ModelConfig& c) {
  Numbers numbers(7);
  std::vector<Request> requests;
  for (int64_t i = 0; i < 5; i++) {
    const int64_t length = std::vector<int64_t>{3, 70, 1, 129, 20}[static_cast<size_t>(i)];
    requests.push_back({.prompt = random_tokens(numbers, length, c.vocab_size),
                        .samples = 1 + i % 3,
                        .params = {.temperature = i == 4 ? 0.0 : 1.0},
                        .max_new_tokens = 6 + 11 * i,
                        .stop_ids = {5},
                        .seed = 3,
                        .group_index = i});
  }
  // Two begin alike.
  std::copy_n(requests[3].prompt.begin(), 64, requests[1].prompt.begin());
  return requests;
}

class EngineRanks : public ::testing::TestWithParam<Layout> {};

TEST_P(EngineRanks, DrawWhatOneRankDraws) {
  const ModelConfig c = wide_toy();
  TestModel whole{c, Weights(c, DType::f32)};
  init_weights(whole.weights, c, 5, 0.3);
  const auto requests = work(c);
  EngineOptions roomy{.max_running = 8, .page = 16, .max_tokens = 256}, drafted = roomy, tight = roomy;
  drafted.drafts = tight.drafts = 2;
  // Samples are preempted, and drafts made where at most two run.
  tight.max_pages = 17;
  tight.margin = 0;
  tight.step_costs = {.sequences = {2, 3}, .plain = {1, 1}, .drafted = {1, 9}};
  for (const EngineOptions& options : {roomy, drafted, tight}) {
    const bool same_drafts = !options.step_costs.defined();
    const auto alone = generate(whole, same_drafts ? options : drafted, requests);
    std::atomic<int64_t> preempted = 0, shared = 0;
    run_ranks(GetParam().ranks, [&](World& world) {
      const Mesh mesh(world, GetParam().sizes);
      ThreadPool threads(1);
      const Weights mine = part_of(whole.weights, c, mesh.place());
      Engine engine(c, mine, options, threads, {}, mesh);
      // Data parallel ranks share the requests; one of many may have none.
      std::vector<Request> own;
      std::vector<size_t> numbers;
      for (size_t i = 0; i < requests.size(); i++) {
        if (static_cast<int64_t>(i) % mesh.place().data_size != mesh.place().data) continue;
        own.push_back(requests[i]);
        numbers.push_back(i);
      }
      std::vector<Completion> expected;
      for (const auto& done : alone) {
        if (std::find(numbers.begin(), numbers.end(), done.request) != numbers.end()) expected.push_back(done);
      }
      auto found = engine.generate(own);
      ASSERT_EQ(found.size(), expected.size());
      for (size_t i = 0; i < found.size(); i++) {
        EXPECT_EQ(numbers[found[i].request], expected[i].request);
        EXPECT_EQ(found[i].tokens, expected[i].tokens)
            << "request " << expected[i].request << " drafts " << options.drafts;
        EXPECT_TRUE(!same_drafts || found[i].accepted == expected[i].accepted);
        ASSERT_EQ(found[i].log_probs.size(), expected[i].log_probs.size());
        // Partial sums over tensor (or expert-tensor) parallel ranks round otherwise; without them the bits are those
        // of one rank.
        const bool exact = GetParam().sizes.tensor * GetParam().sizes.expert_tensor == 1;
        for (size_t t = 0; t < found[i].log_probs.size(); t++) {
          if (exact) {
            EXPECT_EQ(found[i].log_probs[t], expected[i].log_probs[t]);
          } else {
            EXPECT_NEAR(found[i].log_probs[t], expected[i].log_probs[t], 1e-4);
          }
        }
      }
      EXPECT_EQ(engine.memory().free_slots(), engine.memory().options().slots - 1);
      preempted += engine.stats().preemptions;
      shared += engine.stats().shared_rows;
    });
    // Both of those prompts are one data parallel rank's where there are one or two.
    const auto& s = GetParam().sizes;
    EXPECT_TRUE(2 * s.tensor * s.context * s.pipeline < GetParam().ranks || shared >= 64);
    EXPECT_TRUE(same_drafts || s.tensor * s.context * s.pipeline < GetParam().ranks || preempted > 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, EngineRanks,
                         ::testing::Values(Layout{{}, 2}, Layout{{}, 8}, Layout{{.tensor = 2}, 2},
                                           Layout{{.context = 2}, 2}, Layout{{.context = 4}, 4},
                                           Layout{{.pipeline = 2}, 2}, Layout{{.expert = 8}, 8},
                                           Layout{{.expert = 2, .expert_tensor = 2}, 4},
                                           Layout{{.tensor = 2, .context = 2, .expert = 8}, 8},
                                           Layout{{.tensor = 2, .pipeline = 2, .expert = 2}, 8},
                                           Layout{{.pipeline = 2, .context = 2, .expert = 4}, 8}),
                         [](const auto& info) {
                           const auto& s = info.param.sizes;
                           return fmt::format("{}ranks_tp{}pp{}cp{}ep{}etp{}", info.param.ranks, s.tensor, s.pipeline,
                                              s.context, s.expert, s.expert_tensor);
                         });

}  // namespace
}  // namespace furlong
