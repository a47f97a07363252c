// SGLang's /generate as an RL loop uses it.
#include "fixture.h"

namespace furlong {
namespace {

using Sglang = ServerTest;

TEST_F(Sglang, IdsAndLogProbs) {
  start();
  engine.script = {64, 65, stop_id};
  const Json a = generate({{"input_ids", {1, 2, 3}},
                           {"sampling_params", {{"max_new_tokens", 9}, {"temperature", 0.5}, {"sampling_seed", 3}}},
                           {"return_logprob", true},
                           {"top_logprobs_num", 2},
                           {"rid", "mine"}})
                     .json();
  EXPECT_EQ(a.at("text"), "ab");
  EXPECT_EQ(a.at("output_ids"), Json({64, 65, stop_id}));
  const Json& meta = a.at("meta_info");
  EXPECT_EQ(meta.at("id"), "mine");
  EXPECT_EQ(meta.at("prompt_tokens"), 3);
  EXPECT_EQ(meta.at("completion_tokens"), 3);
  EXPECT_EQ(meta.at("finish_reason"), Json({{"type", "stop"}, {"matched", stop_id}}));
  const Json wanted = Json::parse("[[-0.5, 64, null], [-1.0, 65, null], [-1.5, 498, null]]");
  EXPECT_EQ(meta.at("output_token_logprobs"), wanted);
  EXPECT_EQ(meta.at("output_top_logprobs").size(), 3u);
  EXPECT_EQ(meta.at("output_top_logprobs")[0], Json::parse("[[-0.25, 97, null], [-0.5, 98, null]]"));
  EXPECT_EQ(engine.seen()[0].seed, 3u);
  EXPECT_EQ(engine.seen()[0].params.temperature, 0.5);
}

TEST_F(Sglang, FinishReasons) {
  start();
  const auto finish = [&](const Json& params) {
    return generate({{"text", "x"}, {"sampling_params", params}}).json().at("meta_info").at("finish_reason");
  };
  EXPECT_EQ(finish({{"max_new_tokens", 3}}), Json({{"type", "length"}, {"length", 3}}));
  EXPECT_EQ(finish({{"stop", "cd"}}), Json({{"type", "stop"}, {"matched", "cd"}}));
}

TEST_F(Sglang, BatchesAndSamples) {
  start();
  const Json one = generate({{"text", "x"}, {"sampling_params", {{"max_new_tokens", 2}, {"n", 2}}}}).json();
  ASSERT_EQ(one.size(), 2u);
  EXPECT_EQ(one[1].at("text"), "bc");
  const Json batch =
      generate({{"input_ids", Json::array({{1}, {2, 3}})}, {"sampling_params", {{"max_new_tokens", 1}}}}).json();
  ASSERT_EQ(batch.size(), 2u);
  EXPECT_EQ(batch[1].at("meta_info").at("prompt_tokens"), 2);
  EXPECT_EQ(generate({{"text", {"x"}}, {"sampling_params", {{"max_new_tokens", 1}}}}).json().size(), 1u);
}

TEST_F(Sglang, StreamsAllThereIs) {
  start();
  const Answer a = generate({{"text", "x"},
                             {"sampling_params", {{"max_new_tokens", 3}}},
                             {"stream", true},
                             {"return_logprob", true},
                             {"return_text_in_logprobs", true}});
  const auto list = events(a.body);
  ASSERT_GE(list.size(), 1u);
  const Json& last = list.back();
  EXPECT_EQ(last.at("text"), "abc");
  EXPECT_EQ(last.at("meta_info").at("output_token_logprobs")[2], Json({-1.5, 66, "c"}));
  EXPECT_EQ(last.at("meta_info").at("finish_reason").at("type"), "length");
  for (size_t i = 0; i + 1 < list.size(); i++) EXPECT_EQ(list[i].at("meta_info").at("finish_reason"), nullptr);
}

TEST_F(Sglang, Refusals) {
  start();
  const Json cases[] = {Json::object(),
                        {{"text", "x"}, {"input_ids", {1}}},
                        {{"text", 1}},
                        {{"text", Json::array()}},
                        {{"input_ids", "x"}},
                        {{"input_ids", {512}}},
                        {{"input_ids", {1, "x"}}},
                        {{"text", "x"}, {"sampling_params", {1}}},
                        {{"text", "x"}, {"sampling_params", {{"max_new_tokens", 0}}}},
                        {{"text", "x"}, {"sampling_params", {{"regex", "a+"}}}},
                        {{"text", "x"}, {"sampling_params", {{"max_tokens", 1}}}},
                        {{"text", "x"}, {"logprob_start_len", 0}},
                        {{"text", "x"}, {"rid", 5}}};
  for (const Json& body : cases) EXPECT_EQ(generate(body).status, 400) << body;
}

}  // namespace
}  // namespace furlong
