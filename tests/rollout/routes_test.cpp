// Routes recorded while sampling are those of one forward pass over the whole sequence, however it was sampled.
#include "fixture.h"
#include "model/model.h"

namespace furlong {
namespace {

RouteRows routes_of_sequence(const TestModel& m, const std::vector<int32_t>& tokens) {
  const auto rows = static_cast<int64_t>(tokens.size());
  const int64_t layers = m.config.num_layers, k = m.config.experts_per_token;
  std::vector<int32_t> ids(static_cast<size_t>(layers * rows * k));
  std::vector<float> weights(ids.size());
  BatchBuilder builder;
  builder.add(tokens.data(), rows);
  Batch batch = builder.batch();
  batch.routes = {.ids = Tensor(ids.data(), DType::i32, {layers * rows, k}),
                  .weights = Tensor(weights.data(), DType::f32, {layers * rows, k})};
  ThreadPool pool(1);
  Stream stream(pool);
  Arena arena(size_t{64} << 20);
  Exec exec{stream, arena};
  (void)model_forward(exec, m.config, m.weights, batch, nullptr);
  RouteRows out{.width = layers * k, .ids = {}, .weights = {}};
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t l = 0; l < layers; l++) {
      for (int64_t i = (l * rows + r) * k; i < (l * rows + r + 1) * k; i++) {
        out.ids.push_back(static_cast<uint16_t>(ids[static_cast<size_t>(i)]));
        out.weights.push_back(weights[static_cast<size_t>(i)]);
      }
    }
  }
  return out;
}

struct Way {
  std::string name;
  EngineOptions options;
};

class RecordedRoutes : public testing::TestWithParam<Way> {};

TEST_P(RecordedRoutes, AreThoseOfTheWholeSequence) {
  const TestModel& m = tiny_model();
  Numbers numbers(3);
  std::vector<Request> requests;
  for (const int64_t length : {5, 70, 33, 64}) {
    requests.push_back({.prompt = random_tokens(numbers, length, m.config.vocab_size),
                        .samples = 3,
                        .params = {},
                        .max_new_tokens = 20 + length % 7,
                        .seed = 9,
                        .group_index = length,
                        .routes = length != 33});
  }
  requests[3].prompt[0] = requests[1].prompt[0];
  EngineOptions options = GetParam().options;
  options.max_tokens = 100;
  options.prefill_budget = 64;
  options.record_routes = true;
  ThreadPool pool(1);
  Engine engine(m.config, m.weights, options, pool);
  const auto done = engine.generate(requests);
  EXPECT_EQ(engine.stats().preemptions > 0, options.max_pages > 0);
  ASSERT_EQ(done.size(), 12u);
  EngineOptions without = options;
  without.record_routes = false;
  expect_same(done, generate(m, without, requests), "recording changes nothing");
  for (const Completion& c : done) {
    const Request& request = requests[c.request];
    ASSERT_NE(c.routes.prompt, nullptr);
    if (!request.routes) {
      EXPECT_EQ(c.routes.rows(), 0);
      continue;
    }
    std::vector<int32_t> tokens = request.prompt;
    tokens.insert(tokens.end(), c.tokens.begin(), c.tokens.end() - 1);
    const RouteRows want = routes_of_sequence(m, tokens);
    ASSERT_EQ(c.routes.rows(), want.rows());
    EXPECT_EQ(c.routes.prompt->rows(), std::ssize(request.prompt));
    for (int64_t r = 0; r < want.rows(); r++) {
      for (int64_t i = 0; i < want.width; i++) {
        const auto at = static_cast<size_t>(r * want.width + i);
        ASSERT_EQ(c.routes.ids(r)[i], want.ids[at]) << "row " << r << " choice " << i;
        ASSERT_EQ(c.routes.weights(r)[i], want.weights[at]) << "row " << r << " choice " << i;
      }
    }
    // Recorded once for the samples of a prompt.
    if (options.max_pages == 0 && c.sample > 0) {
      EXPECT_EQ(c.routes.prompt, (&c - 1)->routes.prompt);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, RecordedRoutes,
    testing::Values(Way{"Plain", {.max_running = 8}}, Way{"Drafts", {.max_running = 8, .drafts = 2}},
                    Way{"OneByOne", {.max_running = 1, .drafts = 1}},
                    Way{"Preempted", {.max_running = 8, .drafts = 2, .page = 8, .margin = 0, .max_pages = 40}}),
    [](const auto& way) { return way.param.name; });

}  // namespace
}  // namespace furlong
