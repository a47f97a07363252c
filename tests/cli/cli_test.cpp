#include "furlong/cli.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <sstream>

#include "base/error.h"
#include "base/file.h"

namespace furlong {
namespace {

namespace fs = std::filesystem;
const std::string root = FURLONG_TEST_DATA "/../..";

Texts split(const std::string& line) {
  std::istringstream in(line);
  return {std::istream_iterator<std::string>(in), {}};
}

Invocation parse(const std::string& line) { return parse_command_line(split(line)); }

std::string complaint(const Texts& words) {
  try {
    parse_command_line(words);
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::usage);
    return e.what();
  }
  return "";
}
std::string complaint(const std::string& line) { return complaint(split(line)); }

// A recipe in a file that is gone after the test.
class Recipe {
 public:
  explicit Recipe(const std::string& text) {
    const auto* info = testing::UnitTest::GetInstance()->current_test_info();
    path = (fs::path(testing::TempDir()) / fmt::format("furlong_{}_{}.toml", info->name(), getpid())).string();
    write_file_atomic(path, text);
  }
  ~Recipe() { fs::remove(path); }
  std::string path;
};

const std::string train =
    "train --hf-checkpoint model --prompt-data p.jsonl --num-rollout 3 --rollout-batch-size 4 --n-samples-per-prompt 2 "
    "--rollout-max-response-len 16 ";

TEST(CommandLine, Actions) {
  using Action = Invocation::Action;
  EXPECT_EQ(parse("--version").action, Action::version);
  EXPECT_EQ(parse("--help").action, Action::help);
  EXPECT_EQ(parse("help").action, Action::help);
  EXPECT_EQ(parse("--dump-flags-md").action, Action::dump_flags);
  EXPECT_EQ(parse("help score").command, Command::score);
  EXPECT_EQ(parse("train --lr --help").action, Action::command_help);
  EXPECT_EQ(parse("grade -h").command, Command::grade);
  EXPECT_EQ(parse(train).action, Action::run);
}

TEST(CommandLine, UnknownCommands) {
  EXPECT_EQ(complaint("trian"), "no command `trian`; did you mean train?");
  EXPECT_EQ(complaint("xyzzy"), "no command `xyzzy`; `furlong --help` lists them");
  EXPECT_NE(complaint(""), "");
}

TEST(CommandLine, WaysOfWritingAFlag) {
  const Settings s =
      parse(train +
            "--lr=1e-3 --rollout_top_k -1 --balance-data --rollout-stop-token-ids 1 2 3 --rollout-stop a b "
            "--sglang-speculative-algorithm EAGLE --sglang-speculative-num-steps 4 --load -")
          .settings;
  EXPECT_EQ(s.lr, 1e-3);
  EXPECT_EQ(s.rollout_top_k, -1);
  EXPECT_TRUE(s.balance_data);
  EXPECT_EQ(s.rollout_stop_token_ids, (Integers{1, 2, 3}));
  EXPECT_EQ(s.rollout_stop, (Texts{"a", "b"}));
  EXPECT_EQ(s.rollout_speculative_num_steps, 4);
  EXPECT_EQ(s.load, "-");
  EXPECT_EQ(parse(train + "--lr 1 --lr 2").settings.lr, 2);  // the last one counts
  EXPECT_FALSE(parse(train + "--balance-data --no-balance-data").settings.balance_data);
  EXPECT_FALSE(parse(train + "--balance-data=false").settings.balance_data);
  Texts words = split(train);
  words.insert(words.end(), {"--input-key=--odd key", "--apply-chat-template", "--apply-chat-template-kwargs",
                             R"({"enable_thinking": false})"});
  EXPECT_EQ(parse_command_line(words).settings.input_key, "--odd key");
}

TEST(CommandLine, ComplaintsComeAllAtOnce) {
  EXPECT_EQ(complaint(train + "--lr x --rollout-bach-size 8 --eps-clip -1 --colocate yes --kl-coef 0.1"),
            "5 problems with the settings:\n"
            "  unexpected word `yes` after --colocate\n"
            "  --lr x: needs a number >= 0 and <= 1000\n"
            "  --rollout-bach-size: no such setting; did you mean --rollout-batch-size?\n"
            "  --eps-clip -1: needs a number >= 0 and < 1\n"
            "  --kl-coef 0.1: it changes nothing under grpo; use --use-kl-loss --kl-loss-coef 0.1");
}

TEST(CommandLine, WhatFollowsFromARefusedValueIsNotAComplaint) {
  // Without these values the settings are incomplete, but that is not said as well.
  EXPECT_EQ(
      complaint(
          "train --hf-checkpoint m --prompt-data p --num-rollouts 3 --rollout-batch-size x --n-samples-per-prompt 2 "
          "--rollout-max-response-len 1.5"),
      "3 problems with the settings:\n"
      "  --num-rollouts: no such setting; did you mean --num-rollout?\n"
      "  --rollout-batch-size x: needs an integer >= 1 and <= 16777216\n"
      "  --rollout-max-response-len 1.5: needs an integer >= 1");
}

TEST(CommandLine, MissingValues) {
  EXPECT_EQ(complaint(train + "--lr --balance-data"), "--lr: needs a number >= 0 and <= 1000, got nothing");
  EXPECT_EQ(complaint(train + "--config"), "--config: needs the name of a recipe file");
}

TEST(CommandLine, CommandLineWinsOverRecipeOverDefault) {
  const Recipe recipe("[optimizer]\nlr = 0.5\nadam-beta2 = 0.98\nbalance_data = true\n");
  const Settings s = parse(train + "--lr 0.25 --no-balance-data --config " + recipe.path).settings;
  EXPECT_EQ(s.lr, 0.25);  // although the recipe is named later
  EXPECT_EQ(s.adam_beta2, 0.98);
  EXPECT_EQ(s.adam_beta1, 0.9);
  EXPECT_FALSE(s.balance_data);
  EXPECT_EQ(s.given.at("lr"), "command line");
  EXPECT_EQ(s.given.at("adam_beta2"), recipe.path + ":3");
}

TEST(CommandLine, ComplaintsAboutARecipeNameItsLines) {
  const Recipe recipe("lr = \"1\"\n[a]\nrollout_batch_szie = 4\nsglang_ep_size = 1\nrollout_ep_size = 1\n");
  EXPECT_EQ(complaint(train + "--config " + recipe.path),
            fmt::format("3 problems with the settings:\n"
                        "  {0}:1: lr 1: needs a number >= 0 and <= 1000\n"
                        "  {0}:3: rollout_batch_szie: no such setting; did you mean --rollout-batch-size?\n"
                        "  {0}:5: rollout_ep_size is set before under another of its names",
                        recipe.path));
}

TEST(CommandLine, RecipesThatCannotBeRead) {
  EXPECT_THROW(parse(train + "--config no/such.toml"), Error);
  const Recipe broken("lr = \n");
  EXPECT_EQ(complaint(train + "--config " + broken.path).rfind(broken.path + ":1:6: expected a value", 0), 0u);
  const Recipe large(std::string(2 << 20, '#'));
  EXPECT_NE(complaint(train + "--config " + large.path).find("this is no recipe"), std::string::npos);
}

TEST(CommandLine, ResolvedSettingsReadBack) {
  Texts words = split(
      train +
      "--sglang-speculative-algorithm EAGLE --use-kl-loss --kl-loss-coef 0.05 --rollout-stop-token-ids 7 8 "
      "--eval-interval 2 --eval-prompt-data a f.jsonl --recompute-granularity full --apply-chat-template --colocate "
      "--rollout-stop");
  words.push_back("odd \"text\"\\\n\t\x01");
  words.insert(words.end(), {"--apply-chat-template-kwargs", R"({"enable_thinking": false})"});
  const Invocation first = parse_command_line(words);
  const Recipe recipe(to_toml(first.settings, Command::train));
  const Invocation second = parse("train --config " + recipe.path);
  EXPECT_EQ(differences(first.settings, second.settings, Command::train), Texts());
  EXPECT_EQ(first.warning, second.warning);
  for (const std::string line :
       {"sft --hf-checkpoint m --prompt-data p --num-epoch 1 --rollout-batch-size 3", "grade --input - --rm-type dapo",
        "init --preset tiny --save d --num-layers 4", "score --input a --hf-checkpoint m"}) {
    const Invocation plain = parse(line);
    const Recipe again(to_toml(plain.settings, plain.command));
    EXPECT_EQ(
        differences(plain.settings, parse(fmt::format("{} --config {}", name_of(plain.command), again.path)).settings,
                    plain.command),
        Texts());
  }
}

TEST(Recipes, TinyIsReady) {
  const Invocation tiny = parse("train --config " + root + "/recipes/tiny.toml");
  EXPECT_EQ(tiny.warning, "");
  EXPECT_EQ(tiny.settings.rollout_speculative_num_draft_tokens, 3);
}

TEST(Recipes, TheLargeOneIsAccepted) {
  const std::string path = root + "/recipes/qwen3.5-35b-a3b-mtp.toml";
  const Invocation large = parse("train --config " + path);
  EXPECT_EQ(large.settings.expert_model_parallel_size, 8);
  EXPECT_EQ(large.settings.moe_token_dispatcher_type, "flex");
  EXPECT_EQ(large.settings.global_batch_size, 256);
  EXPECT_NE(large.warning.find("--rollout-ep-size"), std::string::npos);
}

// The argument groups of miles' launcher for this model as they stand in a shell script.
TEST(Recipes, ALaunchLineOfMilesParses) {
  const Invocation pasted = parse(
      "train --hf-checkpoint /m/Qwen3.5-35B-A3B --ref-load /m/Qwen3.5-35B-A3B_torch_dist --load /o/c --save /o/c "
      "--save-interval 20 "
      "--prompt-data /d/dapo-math-17k.jsonl --input-key prompt --label-key label --apply-chat-template "
      "--rollout-shuffle --rm-type deepscaler "
      "--num-rollout 3000 --rollout-batch-size 32 --n-samples-per-prompt 8 --rollout-max-response-len 16384 "
      "--rollout-temperature 1 "
      "--global-batch-size 256 --balance-data "
      "--eval-interval 20 --eval-prompt-data aime /d/aime-2024.jsonl --n-samples-per-eval-prompt 16 "
      "--eval-max-response-len 16384 --eval-top-p 1 "
      "--tensor-model-parallel-size 1 --pipeline-model-parallel-size 1 --context-parallel-size 1 "
      "--sequence-parallel --expert-model-parallel-size 8 "
      "--expert-tensor-parallel-size 1 --recompute-granularity full --recompute-method uniform --recompute-num-layers "
      "1 "
      "--use-dynamic-batch-size --max-tokens-per-gpu 8192 --log-probs-chunk-size 4096 "
      "--advantage-estimator grpo --use-kl-loss --kl-loss-coef 0.00 --kl-loss-type low_var_kl --entropy-coef 0.00 "
      "--eps-clip 0.2 --eps-clip-high 0.28 "
      "--optimizer adam --lr 1e-6 --lr-decay-style constant --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98 "
      "--rollout-num-gpus-per-engine 8 --sglang-ep-size 8 --sglang-mem-fraction-static 0.7 "
      "--sglang-max-running-requests 512 --sglang-speculative-algorithm EAGLE "
      "--sglang-speculative-num-steps 2 "
      "--sglang-speculative-eagle-topk 1 --sglang-speculative-num-draft-tokens 3 --sglang-mamba-scheduler-strategy "
      "extra_buffer "
      "--enable-mtp-training --mtp-num-layers 1 --mtp-loss-scaling-factor 0.2 "
      "--use-wandb --wandb-project miles-x --wandb-group g --wandb-key 'secret' --disable-wandb-random-suffix "
      "--attention-dropout 0.0 --hidden-dropout 0.0 --accumulate-allreduce-grads-in-fp32 --attention-softmax-in-fp32 "
      "--attention-backend flash "
      "--actor-num-nodes 1 --actor-num-gpus-per-node 8 --num-gpus-per-node 8 --colocate "
      "--spec plugins.models.qwen3_5 get_qwen3_5_spec --disable-bias-linear --qk-layernorm --group-query-attention "
      "--num-attention-heads 16 "
      "--num-query-groups 2 --kv-channels 256 --num-layers 40 --hidden-size 2048 --ffn-hidden-size 512 --normalization "
      "RMSNorm --apply-layernorm-1p "
      "--position-embedding-type rope --norm-epsilon 1e-6 --rotary-percent 0.25 --swiglu "
      "--untie-embeddings-and-output-weights --vocab-size 248320 "
      "--rotary-base 10000000 --moe-ffn-hidden-size 512 --moe-shared-expert-intermediate-size 512 "
      "--moe-router-score-function softmax "
      "--moe-token-dispatcher-type flex --moe-router-topk 8 --moe-layer-freq [1]*40 --num-experts 256 "
      "--moe-grouped-gemm "
      "--moe-token-drop-policy probs --moe-router-dtype fp32 --moe-permute-fusion --moe-aux-loss-coeff 0 "
      "--attention-output-gate "
      "--moe-shared-expert-gate --mtp-num-layers 1");
  EXPECT_EQ(pasted.settings.num_steps_per_rollout, 1);
  EXPECT_EQ(pasted.settings.rollout_mem_fraction_static, 0.7);
  EXPECT_EQ(pasted.warning.find('\n'), std::string::npos);
  EXPECT_EQ(pasted.warning.find("secret"), std::string::npos);
  for (const char* flag : {"--colocate", "--num-layers", "--spec", "--wandb-key", "--attention-backend",
                           "--moe-aux-loss-coeff", "--rollout-mamba-scheduler-strategy"}) {
    EXPECT_NE(pasted.warning.find(flag), std::string::npos) << flag;
  }
}

}  // namespace
}  // namespace furlong
