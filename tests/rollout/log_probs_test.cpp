// The engine's log-probs are those of a forward over the finished sequence, bit for bit.
#include "model/model.h"
#include "rl/loss_head.h"
#include "rollout/fixture.h"

namespace furlong {
namespace {

// log-probs of tokens[prompt...] under the model, one sequence alone in its batch.
std::vector<float> forward_log_probs(const TestModel& m, const std::vector<int32_t>& tokens, size_t prompt,
                                     double temperature) {
  ThreadPool threads(1);
  BatchBuilder builder;
  builder.add(tokens.data(), static_cast<int64_t>(tokens.size()));
  const Batch batch = builder.batch();
  std::vector<HeadRow> rows;
  for (size_t t = prompt; t < tokens.size(); t++) rows.push_back({static_cast<int32_t>(t) - 1, tokens[t]});
  std::vector<double> log_probs(rows.size());
  const auto body = [&](Exec exec) {
    const Tensor hidden = model_forward(exec, m.config, m.weights, batch, nullptr);
    score_rows(exec, m.weights, hidden, rows, {.temperature = temperature}, log_probs, {});
  };
  Arena measure = Arena::measuring();
  Stream dry = Stream::dry(threads), stream(threads);
  body({dry, measure});
  Arena arena(measure.high_mark());
  body({stream, arena});
  return {log_probs.begin(), log_probs.end()};
}

class LogProbs : public testing::TestWithParam<DType> {};

TEST_P(LogProbs, EqualThoseOfTheForwardOverTheSequence) {
  const TestModel& m = tiny_model(GetParam());
  Numbers numbers(21);
  std::vector<Request> requests;
  const SampleParams kinds[] = {{.temperature = 0}, {.temperature = 1}, {.temperature = 0.6, .top_k = 8, .top_p = 0.8}};
  for (int64_t i = 0; i < 24; i++) {
    requests.push_back({.prompt = random_tokens(numbers, numbers.between(1, 150), 512),
                        .samples = 2,
                        .params = kinds[i % 3],
                        .max_new_tokens = 30,
                        .group_index = i});
  }
  const EngineOptions options{.max_running = 13, .drafts = 2, .page = 16, .max_tokens = 180, .prefill_budget = 128};
  for (const auto& c : generate(m, options, requests)) {
    const Request& r = requests[c.request];
    std::vector<int32_t> tokens = r.prompt;
    tokens.insert(tokens.end(), c.tokens.begin(), c.tokens.end());
    const double temperature = r.params.temperature == 0 ? 1 : r.params.temperature;
    EXPECT_EQ(c.log_probs, forward_log_probs(m, tokens, r.prompt.size(), temperature))
        << "request " << c.request << " of " << r.prompt.size() << " tokens";
  }
}

INSTANTIATE_TEST_SUITE_P(Types, LogProbs, testing::Values(DType::f32, DType::bf16),
                         [](const auto& info) { return name_of(info.param); });

}  // namespace
}  // namespace furlong
