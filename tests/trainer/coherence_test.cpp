// Weights that know no language are refused before the first rollout.
#include "trainer/coherence.h"

#include "checkpoint/init.h"
#include "fixture.h"

namespace furlong {
namespace {

// A run whose longest prompt leaves room for the text.
Settings long_run(const Folder& folder, const std::string& model) {
  Settings s = small_run(folder / "run", 1);
  s.hf_checkpoint = model;
  s.prompt_data = folder / "long.jsonl";
  std::string content;
  for (int i = 0; i < 90; i++) content += fmt::format("{} ", i);
  std::ofstream(s.prompt_data) << fmt::format(
      "{{\"prompt\":[{{\"role\":\"user\",\"content\":\"{}\"}}],\"label\":\"1\"}}\n", content);
  s.rollout_batch_size = 1;
  s.max_tokens_per_gpu = 512;
  s.save = s.save_hf = "none";
  return s;
}

// The tiny model with its weights changed, as a folder.
template <class F>
std::string changed(const Folder& folder, const std::string& from, F&& change) {
  const ModelConfig config = read_model_config(tiny_folder);
  Weights w = load_hf(from, config, DType::f32);
  change(w);
  const std::string to = folder / "changed";
  save_hf({.source_dir = tiny_folder, .output_dir = to, .config_text = {}, .dtype = HfDtype::f32}, w);
  return to;
}

TEST(Coherence, KnowingNothingCostsWhatGuessingDoes) {
  const Folder folder;
  Settings s = long_run(folder, changed(folder, tiny_folder, [](Weights& w) { scale(w.lm_head, 0); }));
  s.max_text_loss = 6.2;
  const std::string message = refusal(Exit::input, s);
  EXPECT_NE(message.find("6.24 nats a token, more than 6.20 (--max-text-loss); guessing costs 6.24"), message.npos)
      << message;
  EXPECT_FALSE(fs::exists(folder / "run/metrics.jsonl") && fs::file_size(folder / "run/metrics.jsonl") > 0);
  s.max_text_loss = 6.3;
  run(s);
}

TEST(Coherence, WeightsThatLearntTheTextPassAndRefusedAreTheSameGarbled) {
  const Folder folder;
  Settings learns = small_run(folder / "sft", 60);
  learns.prompt_data = folder / "text.jsonl";
  std::ofstream(learns.prompt_data)
      << Json{{"prompt", {{{"role", "user"}, {"content", "Say"}}, {{"role", "assistant"}, {"content", plain_text}}}}}
      << "\n";
  learns.hf_checkpoint = tiny_folder;
  learns.label_key.clear();
  learns.rollout_batch_size = 1;
  learns.max_tokens_per_gpu = 2048;
  learns.lr = 1e-2;
  learns.save = "none";
  learns.save_hf = folder / "learnt";
  validate(learns, Command::sft);
  supervised(learns, false);

  Settings s = long_run(folder, learns.save_hf);
  s.max_text_loss = 3;
  run(s);
  fs::remove_all(s.run_dir);
  // As if rows of the embedding had been put in another order.
  s.hf_checkpoint = changed(folder, learns.save_hf, [](Weights& w) {
    const int64_t rows = w.embed.dim(0), h = w.embed.dim(1);
    float* x = w.embed.as<float>();
    for (int64_t i = 0; i < rows / 2; i++) std::swap_ranges(x + i * h, x + (i + 1) * h, x + (rows - 1 - i) * h);
  });
  EXPECT_NE(refusal(Exit::input, s).find("nats a token"), std::string::npos);
}

TEST(Coherence, LimitIsHalfOfGuessingUnlessGiven) {
  Session session;
  session.config.vocab_size = 248320;
  Settings s;
  EXPECT_NEAR(text_loss_limit(session, s).value_or(0), 6.211, 1e-3);
  s.max_text_loss = 4;
  EXPECT_EQ(text_loss_limit(session, s), 4);
  s.max_text_loss = 0;
  EXPECT_EQ(text_loss_limit(session, s), std::nullopt);
  s.max_text_loss = 4;
  s.random_init = true;
  EXPECT_EQ(text_loss_limit(session, s), std::nullopt);
}

// Without a limit given, a model of a real vocabulary is refused where a small one is warned of.
TEST(Coherence, RandomWeightsOfARealVocabularyAreRefused) {
  const Folder folder;
  Json json = read_json_file(tiny_folder + "/config.json");
  (json.contains("text_config") ? json["text_config"] : json)["vocab_size"] = 32768;
  const std::string model = folder / "model";
  fs::create_directory(model);
  std::ofstream(model + "/config.json") << json;
  const ModelConfig config = read_model_config(model);
  Weights w(config, DType::f32);
  init_weights(w, config, 1, 0.02);
  save_hf({.source_dir = {}, .output_dir = folder / "whole", .config_text = json.dump(), .dtype = HfDtype::f32}, w);
  fs::copy(tiny_folder + "/tokenizer.json", folder / "whole");
  Settings s = long_run(folder, folder / "whole");
  const std::string message = refusal(Exit::input, s);
  EXPECT_NE(message.find("more than 5.20; guessing costs 10.40"), message.npos) << message;
  run(long_run(folder, playground().model));  // 512 tokens
}

}  // namespace
}  // namespace furlong
