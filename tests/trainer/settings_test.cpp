#include "trainer/settings.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/file.h"
#include "base/text.h"
#include "reward/scorer.h"
#include "trainer/session.h"

namespace furlong {
namespace {

using From = RawValue::From;

RawValue raw(From from, Texts words) {
  RawValue value;
  value.from = from;
  value.words = std::move(words);
  return value;
}

std::string set(Settings& settings, const char* name, Texts words, Command command = Command::train) {
  const Field* field = find_field(name, command);
  EXPECT_NE(field, nullptr) << name;
  return set_value(settings, *field, raw(From::words, std::move(words)), "command line");
}

// Settings of a train command with nothing wrong.
Settings good() {
  Settings s;
  s.hf_checkpoint = "model";
  s.prompt_data = "prompts.jsonl";
  s.num_rollout = 1;
  s.rollout_batch_size = 4;
  s.n_samples_per_prompt = 2;
  s.rollout_max_response_len = 16;
  return s;
}

std::string conflicts(Settings s, Command command = Command::train) {
  std::string out;
  for (const auto& complaint : find_conflicts(s, command)) out += complaint + "\n";
  return out;
}

// A value that the field takes.
std::string right_word(const Field& field) {
  if (field.kind == Kind::flag) return "true";
  if (!field.choices.empty()) return field.choices[0];
  if (!field.allowed.empty() && field.kind != Kind::integers) return field.allowed[0];
  if (field.kind == Kind::json) return "{\"a\": 1}";
  if (field.kind == Kind::real)
    return format_real(field.above_min ? (field.min + std::min(field.max, field.min + 2)) / 2 : field.min);
  if (field.kind == Kind::integer || field.kind == Kind::integers)
    return fmt::format("{}", static_cast<int64_t>(field.min));
  return "text";
}

TEST(SettingsTable, NamesAreUniqueWithinACommandAndHaveHelp) {
  for (const Command command : all_commands()) {
    std::set<std::string> names;
    for (const auto& field : fields()) {
      if (!field.takes(command)) continue;
      EXPECT_TRUE(names.insert(field.name).second) << name_of(command) << " " << field.name;
      EXPECT_EQ(find_field(field.flag(), command), &field) << field.name;
    }
    EXPECT_EQ(command_named(name_of(command)), command);
  }
  for (const auto& field : fields()) {
    EXPECT_TRUE(!field.help.empty() || field.kind == Kind::words) << field.name;
    EXPECT_EQ(field.name.find('-'), std::string::npos) << field.name;
    EXPECT_NE(field.commands, 0u) << field.name;
  }
}

TEST(SettingsTable, EveryNumberHasALeastValueAndItsDefaultIsInRange) {
  for (const auto& field : fields()) {
    if (field.kind == Kind::integer || field.kind == Kind::real) {
      EXPECT_GT(field.min, -1e300) << field.name;
    }
    const std::string standard = format_value(Settings(), field);
    if (standard.empty() || standard[0] == '"' || standard[0] == '[') continue;
    Settings s;
    EXPECT_EQ(set_value(s, field, raw(From::words, {standard}), "x"), "") << field.name;
  }
}

TEST(SettingsTable, EveryFieldTakesARightValueAndWritesItBack) {
  for (const auto& field : fields()) {
    Settings s;
    ASSERT_EQ(set_value(s, field, raw(From::words, {right_word(field)}), "here"), "") << field.name;
    EXPECT_EQ(s.given[field.name], "here");
    if (field.kind == Kind::words) continue;
    EXPECT_NE(format_value(s, field), "") << field.name;
    // Nothing but this field has changed.
    for (const auto& other : fields()) {
      if (other.member == field.member) continue;
      EXPECT_EQ(format_value(s, other), format_value(Settings(), other)) << field.name << " set " << other.name;
    }
  }
}

TEST(SettingsTable, EveryFieldRefusesTheWrongType) {
  for (const auto& field : fields()) {
    if (field.kind == Kind::words) continue;
    Settings s;
    std::vector<RawValue> wrong;
    RawValue reals = raw(From::list, {"1.5"}), texts = raw(From::list, {"a"});
    texts.texts_only = true;
    switch (field.kind) {
      case Kind::flag:
        wrong = {raw(From::text, {"true"}), raw(From::integer, {"1"}), raw(From::words, {"yes"}),
                 raw(From::words, {"true", "true"})};
        break;
      case Kind::integer:
        wrong = {raw(From::text, {"1"}),   raw(From::real, {"1.0"}), raw(From::words, {"1.5"}),
                 raw(From::words, {"x"}),  raw(From::words, {}),     raw(From::words, {"1", "2"}),
                 raw(From::flag, {"true"})};
        break;
      case Kind::real:
        wrong = {raw(From::text, {"0.5"}),  raw(From::words, {"x"}), raw(From::words, {"nan"}),
                 raw(From::words, {"inf"}), raw(From::words, {}),    raw(From::flag, {"true"})};
        break;
      case Kind::integers:
        wrong = {texts, reals, raw(From::words, {"1", "x"}), raw(From::words, {}), raw(From::text, {"1"})};
        break;
      case Kind::texts:
        wrong = {reals, raw(From::integer, {"1"}), raw(From::words, {}), raw(From::words, {"a", ""})};
        break;
      case Kind::json:
        wrong = {raw(From::integer, {"1"}), raw(From::words, {"[1]"}), raw(From::words, {"{"}), raw(From::words, {})};
        break;
      default:
        wrong = {raw(From::integer, {"1"}), raw(From::flag, {"true"}), raw(From::words, {}), raw(From::words, {""}),
                 texts};
        break;
    }
    for (const auto& value : wrong) {
      const std::string complaint = set_value(s, field, value, "recipe.toml:3");
      EXPECT_EQ(complaint.rfind("recipe.toml:3: " + field.name, 0), 0u) << complaint;
      EXPECT_TRUE(complaint.find("needs ") != std::string::npos ||
                  complaint.find("takes no value") != std::string::npos)
          << complaint;
    }
    EXPECT_EQ(format_value(s, field), format_value(Settings(), field))
        << field.name << " was changed by a refused value";
    EXPECT_TRUE(s.given.empty()) << field.name;
  }
}

TEST(SettingsTable, EveryRangeAndChoiceIsHeld) {
  for (const auto& field : fields()) {
    Texts wrong;
    const bool whole = field.kind == Kind::integer || field.kind == Kind::integers;
    if (whole || field.kind == Kind::real) {
      wrong.push_back(whole ? fmt::format("{}", static_cast<int64_t>(field.min) - 1)
                            : format_real(field.above_min ? field.min : field.min - 1e-3));
      if (field.max < 1e300)
        wrong.push_back(whole ? fmt::format("{}", static_cast<int64_t>(field.max) + 1)
                              : format_real(field.below_max ? field.max : field.max * 1.01));
    } else if (!field.choices.empty()) {
      wrong = {"other", field.choices[0] + " ", ""};
    } else if (field.kind == Kind::words && !field.allowed.empty()) {
      wrong = {"0.1"};
    }
    for (const auto& word : wrong) {
      Settings s;
      EXPECT_NE(set_value(s, field, raw(From::words, {word}), "command line"), "") << field.name << " " << word;
    }
  }
}

TEST(SettingsTable, ComplaintsSayWhatIsNeeded) {
  Settings s;
  EXPECT_EQ(set(s, "--eps-clip", {"abc"}), "--eps-clip abc: needs a number >= 0 and < 1");
  EXPECT_EQ(set(s, "recompute_granularity", {"selective"}), "--recompute-granularity selective: needs none or full");
  EXPECT_EQ(set(s, "num_rollout", {}), "--num-rollout: needs an integer >= 0, got nothing");
  EXPECT_EQ(set(s, "attention_dropout", {"0.1"}), "--attention-dropout 0.1: not offered; only 0 (there is none here)");
  EXPECT_EQ(set(s, "attention_dropout", {"0.00"}), "");
  EXPECT_EQ(set(s, "input_key", {"a\x1b[2J"}), "");  // kept as it is; only messages are made printable
  EXPECT_EQ(set(s, "lr", {"\x1b[2J"}), "--lr \\x1b[2J: needs a number >= 0 and <= 1000");
}

TEST(SettingsTable, SglangNamesAreRolloutNames) {
  EXPECT_EQ(find_field("--sglang-speculative-num-steps", Command::train)->name, "rollout_speculative_num_steps");
  EXPECT_EQ(find_field("sglang_cuda_graph_bs", Command::train)->name, "rollout_cuda_graph_bs");
  EXPECT_EQ(find_field("--sglang-mamba-scheduler-strategy", Command::train)->name, "rollout_mamba_scheduler_strategy");
  EXPECT_EQ(find_field("--sglang-nothing", Command::train), nullptr);
}

TEST(SettingsTable, UnknownNamesAreAnswered) {
  EXPECT_EQ(unknown_name("--rollout-batch-szie", Command::train),
            "no such setting; did you mean --rollout-batch-size?");
  EXPECT_EQ(unknown_name("n_sample_per_prompt", Command::train),
            "no such setting; did you mean --n-samples-per-prompt?");
  EXPECT_EQ(unknown_name("--max-new-tokens", Command::grade),
            "`furlong grade` has no such setting, `furlong generate` has");
  EXPECT_EQ(unknown_name("--use-opd", Command::train).rfind("not a setting here: ", 0), 0u);
  EXPECT_EQ(unknown_name("--qqqqqqqqqq", Command::init), "no such setting; `furlong init --help` lists them");
  // Every single slip in a flag's name leads back to it.
  for (const auto& field : fields()) {
    if (!field.takes(Command::train) || field.name.size() < 6) continue;
    std::string slip = field.name;
    std::swap(slip[2], slip[3]);
    if (slip == field.name || find_field(slip, Command::train) != nullptr) continue;
    EXPECT_NE(unknown_name(slip, Command::train).find(field.flag()), std::string::npos) << slip;
  }
}

TEST(SettingsTable, RewardRulesAreThoseOfTheRewardRoom) {
  const Field* field = find_field("rm_type", Command::grade);
  for (const auto& name : scorer_names()) {
    EXPECT_NE(std::string(field->help).find(name), std::string::npos) << name;
    for (const std::string& rule : {name, "boxed_" + name}) {
      Settings s = good();
      s.rm_type = rule;
      EXPECT_EQ(conflicts(s), "") << rule;
    }
  }
}

TEST(SettingsConflicts, NoneInAGoodCommand) { EXPECT_EQ(conflicts(good()), ""); }

struct ConflictCase {
  const char* name;
  void (*spoil)(Settings&);
  const char* complaint;
};

class SettingsConflict : public testing::TestWithParam<ConflictCase> {};

TEST_P(SettingsConflict, IsFound) {
  Settings s = good();
  GetParam().spoil(s);
  const std::string found = conflicts(s);
  EXPECT_NE(found.find(GetParam().complaint), std::string::npos) << found;
  EXPECT_EQ(std::count(found.begin(), found.end(), '\n'), 1) << found;
}

INSTANTIATE_TEST_SUITE_P(
    All, SettingsConflict,
    testing::Values(
        ConflictCase{"Identity", [](Settings& s) { s.global_batch_size = 4, s.num_steps_per_rollout = 1; },
                     "= 8 samples a rollout, but --global-batch-size 4 x --num-steps-per-rollout 1"},
        ConflictCase{"Remainder", [](Settings& s) { s.global_batch_size = 3; },
                     "which --global-batch-size 3 does not divide"},
        ConflictCase{"BatchTooLarge", [](Settings& s) { s.global_batch_size = 16; }, "use at most 8"},
        ConflictCase{"Steps", [](Settings& s) { s.num_steps_per_rollout = 3; },
                     "which --num-steps-per-rollout 3 does not divide"},
        ConflictCase{"GroupOfOne", [](Settings& s) { s.n_samples_per_prompt = 1; },
                     "a group of one always has advantage 0"},
        ConflictCase{"KlTwice", [](Settings& s) { s.kl_coef = 0.1, s.kl_loss_coef = 0.1, s.use_kl_loss = true; },
                     "exclude each other"},
        ConflictCase{"KlCoef", [](Settings& s) { s.kl_coef = 0.1; }, "--kl-coef 0.1: it changes nothing under grpo"},
        ConflictCase{"Whitening", [](Settings& s) { s.advantage_estimator = "reinforce_plus_plus"; },
                     "--advantage-estimator reinforce_plus_plus needs --normalize-advantages"},
        ConflictCase{"RmType", [](Settings& s) { s.rm_type = "deepscalar"; }, "did you mean deepscaler?"},
        ConflictCase{"Ifbench", [](Settings& s) { s.rm_type = "ifbench", s.nltk_data = "/no"; }, "/no: there is no such folder"},
        ConflictCase{"Gamma", [](Settings& s) { s.gamma = 0.9; }, "--gamma 0.9 has no meaning with"},
        ConflictCase{"Lambda", [](Settings& s) { s.lambd = 0.9; }, "--lambd 0.9 needs --advantage-estimator ppo"},
        ConflictCase{"CriticRate", [](Settings& s) { s.critic_lr = 1e-5; },
                     "--critic-lr needs --advantage-estimator ppo"},
        ConflictCase{"ValueClip", [](Settings& s) { s.value_clip = 0.5; },
                     "--value-clip needs --advantage-estimator ppo"},
        ConflictCase{"PpoPenalty", [](Settings& s) { s.advantage_estimator = "ppo", s.kl_coef = 0.1; },
                     "the critic would learn returns without it"},
        ConflictCase{"BaselineStd",
                     [](Settings& s) {
                       s.advantage_estimator = "reinforce_plus_plus_baseline";
                       s.normalize_advantages = s.disable_grpo_std_normalization = true;
                     },
                     "--disable-grpo-std-normalization has no meaning with --advantage-estimator"},
        ConflictCase{"RefUpdate", [](Settings& s) { s.ref_update_interval = 2; },
                     "--ref-update-interval 2: there is no reference to update"},
        ConflictCase{"TisOfRollout", [](Settings& s) { s.use_tis = s.use_rollout_logprobs = true; },
                     "--use-tis and --use-rollout-logprobs exclude each other"},
        ConflictCase{"TisBounds",
                     [](Settings& s) {
                       s.use_tis = true;
                       s.tis_clip_low = 3;
                     },
                     "--tis-clip-low 3 is above --tis-clip 2"},
        ConflictCase{"TisFunction",
                     [](Settings& s) {
                       s.use_tis = true;
                       s.custom_tis_function_path = "mis.py:my_weights";
                     },
                     "the functions there are, are vanilla_tis_function, icepop_function and compute_mis_weights"},
        ConflictCase{"TisAlone", [](Settings& s) { s.custom_tis_function_path = "icepop_function"; },
                     "need --use-tis"},
        ConflictCase{"KlPenaltyPass",
                     [](Settings& s) {
                       s.advantage_estimator = "reinforce_plus_plus";
                       s.normalize_advantages = s.skip_actor_forward_only = true;
                       s.kl_coef = 0.1;
                     },
                     "the penalty needs that pass"},
        ConflictCase{"KlLossOff", [](Settings& s) { s.kl_loss_coef = 0.1; }, "--kl-loss-coef 0.1 needs --use-kl-loss"},
        ConflictCase{"UnbiasedOff", [](Settings& s) { s.use_unbiased_kl = true; },
                     "--use-unbiased-kl needs --use-kl-loss"},
        ConflictCase{"SkipForward", [](Settings& s) { s.skip_actor_forward_only = true, s.global_batch_size = 4; },
                     "needs one optimizer step a rollout, not 2"},
        ConflictCase{"OldTwice", [](Settings& s) { s.skip_actor_forward_only = s.use_rollout_logprobs = true; },
                     "leave one out"},
        ConflictCase{"Normalization",
                     [](Settings& s) { s.disable_rewards_normalization = s.disable_grpo_std_normalization = true; },
                     "has no meaning with"},
        ConflictCase{"Dynamic", [](Settings& s) { s.use_dynamic_batch_size = true; }, "needs --max-tokens-per-gpu"},
        ConflictCase{"NotDynamic", [](Settings& s) { s.max_tokens_per_gpu = 10; }, "without --use-dynamic-batch-size"},
        ConflictCase{"Chunk", [](Settings& s) { s.log_probs_chunk_size = 0; }, "--log-probs-chunk-size 0"},
        ConflictCase{"Recompute", [](Settings& s) { s.recompute_num_layers = 1; }, "need --recompute-granularity full"},
        ConflictCase{"NoLength", [](Settings& s) { s.num_rollout.reset(); }, "needs --num-rollout"},
        ConflictCase{"NoModel", [](Settings& s) { s.hf_checkpoint.clear(); }, "needs --hf-checkpoint"},
        ConflictCase{"NoPrompts", [](Settings& s) { s.prompt_data.clear(); }, "needs --prompt-data"},
        ConflictCase{"NoBatch", [](Settings& s) { s.rollout_batch_size.reset(); }, "needs --rollout-batch-size"},
        ConflictCase{"NoResponse", [](Settings& s) { s.rollout_max_response_len.reset(); },
                     "needs --rollout-max-response-len"},
        ConflictCase{"NoRoom", [](Settings& s) { s.rollout_max_context_len = 16; }, "leaves no room for a prompt"},
        ConflictCase{"Halves", [](Settings& s) { s.debug_rollout_only = true, s.load_debug_rollout_data = "f"; },
                     "exclude each other"},
        ConflictCase{"TrainOnly", [](Settings& s) { s.debug_train_only = true; }, "needs --load-debug-rollout-data"},
        ConflictCase{"SameFile", [](Settings& s) { s.load_debug_rollout_data = s.save_debug_rollout_data = "f"; },
                     "name the same file f"},
        ConflictCase{"MinLr", [](Settings& s) { s.min_lr = 1e-7; }, "--min-lr 1e-07 has no meaning"},
        ConflictCase{"MinAboveLr", [](Settings& s) { s.lr_decay_style = "linear", s.min_lr = 2 * s.lr; },
                     "is above --lr"},
        ConflictCase{"DecayIters", [](Settings& s) { s.lr_decay_iters = 10; }, "--lr-decay-iters 10 has no meaning"},
        ConflictCase{"AllWarmup", [](Settings& s) { s.lr_decay_style = "cosine", s.lr_warmup_iters = *s.num_rollout; },
                     "leaves nothing of it to --lr-decay-style cosine"},
        ConflictCase{"AllWarmupOfIters",
                     [](Settings& s) { s.lr_decay_style = "linear", s.lr_warmup_iters = s.lr_decay_iters.emplace(3); },
                     "--lr-decay-iters 3: --lr-warmup-iters 3 leaves nothing"},
        ConflictCase{"WarmupTwice", [](Settings& s) { s.lr_warmup_iters = 1, s.lr_warmup_fraction = 0.1; },
                     "--lr-warmup-iters 1 and --lr-warmup-fraction 0.1: leave one out"},
        ConflictCase{"RootOfNothing", [](Settings& s) { s.lr_decay_style = "inverse-square-root"; },
                     "inverse-square-root needs --lr-warmup-iters"},
        ConflictCase{"Wsd", [](Settings& s) { s.lr_decay_style = "WSD"; }, "WSD needs --lr-wsd-decay-iters"},
        ConflictCase{"WsdTooLong",
                     [](Settings& s) { s.lr_decay_style = "WSD", s.lr_wsd_decay_iters = 9, s.lr_decay_iters = 8; },
                     "--lr-decay-iters 8: --lr-wsd-decay-iters 9 is more"},
        ConflictCase{"NotWsd", [](Settings& s) { s.lr_decay_style = "linear", s.lr_wsd_decay_iters = 1; },
                     "--lr-wsd-decay-iters 1 needs --lr-decay-style WSD"},
        ConflictCase{"WarmupInit", [](Settings& s) { s.lr_warmup_init = 1e-7; }, "without --lr-warmup-iters"},
        ConflictCase{"EvalPairs", [](Settings& s) { s.eval_prompt_data = {"aime"}, s.eval_interval = 1; },
                     "needs pairs of a name and a file"},
        ConflictCase{"EvalTwice",
                     [](Settings& s) {
                       s.eval_prompt_data = {"a", "f", "a", "g"}, s.eval_interval = 1;
                     },
                     "two sets are called a"},
        ConflictCase{"EvalTwoWays",
                     [](Settings& s) {
                       s.eval_prompt_data = {"a", "f"}, s.eval_config = "e", s.eval_interval = 1;
                     },
                     "--eval-prompt-data and --eval-config exclude each other"},
        ConflictCase{"RemoteWithoutUrl", [](Settings& s) { s.rm_type = "remote_rm"; },
                     "--rm-type remote_rm needs --rm-url"},
        ConflictCase{"CommandAndRule", [](Settings& s) { s.rm_type = "math", s.custom_rm_command = "c"; },
                     "--custom-rm-command scores everything; leave --rm-type out"},
        ConflictCase{"GroupsOfARule", [](Settings& s) { s.group_rm = true; },
                     "--group-rm needs --custom-rm-command or --rm-url"},
        ConflictCase{"GroupsInBatches",
                     [](Settings& s) {
                       s.rm_type = "remote_rm", s.rm_url = "http://h/";
                       s.group_rm = true, s.rm_batch_size = 2;
                     },
                     "--group-rm and --rm-batch-size exclude each other"},
        ConflictCase{"OverSamplingTooLittle", [](Settings& s) { s.over_sampling_batch_size = 1; },
                     "--over-sampling-batch-size 1 is less than --rollout-batch-size"},
        ConflictCase{"PartialOfNothing", [](Settings& s) { s.partial_rollout = true; },
                     "without it nothing is under way at the end"},
        ConflictCase{"MaskOfNothing", [](Settings& s) { s.mask_offpolicy_in_partial_rollout = true; },
                     "--mask-offpolicy-in-partial-rollout needs --partial-rollout"},
        ConflictCase{"ClockWithOverSampling",
                     [](Settings& s) {
                       s.over_sampling_batch_size = 10000;
                       s.rollout_speculative_cost_model = "measured";
                     },
                     "which groups end first would follow the clock"},
        ConflictCase{"TwoEnvironments",
                     [](Settings& s) { s.custom_generate_command = "c", s.custom_generate_url = "http://h/"; },
                     "--custom-generate-command and --custom-generate-url exclude each other"},
        ConflictCase{"PartialConversations",
                     [](Settings& s) {
                       s.custom_generate_command = "c", s.partial_rollout = true, s.over_sampling_batch_size = 10000;
                     },
                     "--partial-rollout and conversations"},
        ConflictCase{"RoutesOfParts",
                     [](Settings& s) {
                       s.use_rollout_routing_replay = true, s.partial_rollout = true,
                       s.over_sampling_batch_size = 10000;
                     },
                     "leave --partial-rollout out"},
        ConflictCase{"EvalNothing", [](Settings& s) { s.eval_interval = 1; },
                     "--eval-interval needs --eval-prompt-data"},
        ConflictCase{"EvalNever",
                     [](Settings& s) {
                       s.eval_prompt_data = {"a", "f"};
                     },
                     "would never be read"},
        ConflictCase{"TopK", [](Settings& s) { s.rollout_top_k = 0; }, "--rollout-top-k 0"},
        ConflictCase{"Draft", [](Settings& s) { s.rollout_speculative_num_steps = 2; },
                     "need --rollout-speculative-algorithm EAGLE"},
        ConflictCase{"DraftRows",
                     [](Settings& s) {
                       s.rollout_speculative_algorithm = "EAGLE", s.rollout_speculative_num_steps = 2,
                       s.rollout_speculative_num_draft_tokens = 4;
                     },
                     "2 drafted tokens are verified in 3 rows"},
        ConflictCase{"Kwargs", [](Settings& s) { s.apply_chat_template_kwargs = "{}"; },
                     "without --apply-chat-template"},
        ConflictCase{
            "KwargsName",
            [](Settings& s) { s.apply_chat_template = true, s.apply_chat_template_kwargs = R"({"tools": []})"; },
            "tools comes from the rows"},
        ConflictCase{"KwargsType",
                     [](Settings& s) {
                       s.apply_chat_template = true, s.apply_chat_template_kwargs = R"({"enable_thinking": 1})";
                     },
                     "enable_thinking needs true or false"},
        ConflictCase{"Overwrite", [](Settings& s) { s.save_hf = "model"; }, "would overwrite --hf-checkpoint"},
        ConflictCase{
            "Branches",
            [](Settings& s) { s.rollout_speculative_algorithm = "EAGLE", s.rollout_speculative_eagle_topk = 2; },
            "--rollout-speculative-eagle-topk 2: not in this build; use 1"},
        ConflictCase{"ExactGpu", [](Settings& s) { s.true_on_policy = true, s.device = "cuda", s.dtype = "fp32"; },
                     "--true-on-policy: on a GPU"},
        ConflictCase{"ExactParts", [](Settings& s) { s.true_on_policy = true, s.tensor_model_parallel_size = 2; },
                     "join the vocabulary's parts in different orders"},
        ConflictCase{"Overlap", [](Settings& s) { s.overlap_cpu_optimizer_d2h_h2d = true; },
                     "--overlap-cpu-optimizer-d2h-h2d needs --optimizer-cpu-offload"},
        ConflictCase{"Moments", [](Settings& s) { s.exp_avg_sq_dtype = "bf16"; },
                     "--exp-avg-sq-dtype bf16 needs --use-precision-aware-optimizer"},
        ConflictCase{"Masters",
                     [](Settings& s) { s.use_precision_aware_optimizer = true, s.main_params_dtype = "bf16"; },
                     "--main-params-dtype bf16 with --dtype fp32"}),
    [](const auto& info) { return info.param.name; });

// The dtype that a GPU is made for is its default; what is given stays, and so does what was filled in.
TEST(SettingsDefaults, DtypeFollowsTheDevice) {
  for (const std::string device : {"cpu", "cuda"}) {
    Settings s = good();
    s.device = device;
    EXPECT_EQ(compute_dtype(s), device == "cuda" ? DType::bf16 : DType::f32);
    validate(s, Command::train);
    EXPECT_EQ(s.dtype, device == "cuda" ? "bf16" : "fp32");
    EXPECT_EQ(compute_dtype(s), device == "cuda" ? DType::bf16 : DType::f32);
    s.dtype = device == "cuda" ? "fp32" : "bf16";
    validate(s, Command::train);
    EXPECT_EQ(compute_dtype(s), device == "cuda" ? DType::f32 : DType::bf16);
  }
}

TEST(SettingsConflicts, ComeAllAtOnceAsOneError) {
  Settings s = good();
  s.kl_loss_coef = 1;
  s.rollout_speculative_algorithm = "EAGLE", s.rollout_speculative_eagle_topk = 2;
  s.hf_checkpoint.clear();
  try {
    validate(s, Command::train);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Exit::usage);
    EXPECT_EQ(std::string(e.what()).rfind("3 problems with the settings:\n  --rollout-speculative-eagle-topk", 0), 0u)
        << e.what();
  }
}

TEST(SettingsConflicts, OfTheOtherCommands) {
  Settings s;
  EXPECT_EQ(conflicts(s, Command::generate),
            "`furlong generate` needs --hf-checkpoint (the model's folder)\n`furlong generate` needs --input (a jsonl "
            "file, or - for standard input)\n");
  EXPECT_NE(conflicts(s, Command::grade).find("needs --rm-type"), std::string::npos);
  EXPECT_NE(conflicts(s, Command::init).find("needs --preset"), std::string::npos);
  EXPECT_NE(conflicts(s, Command::tokenize).find("needs one of --tokenizer"), std::string::npos);
  EXPECT_NE(conflicts(s, Command::eval).find("needs --eval-max-response-len"), std::string::npos);
  s.hf_checkpoint = s.save = "a";
  EXPECT_EQ(conflicts(s, Command::convert), "--save names the checkpoint itself, a\n");
  s.hf_checkpoint.clear();
  s.input = "-", s.tokenizer = "t", s.decode = s.chat = true;
  EXPECT_EQ(conflicts(s, Command::tokenize), "--decode and --chat exclude each other\n");
}

TEST(SettingsDerived, ValuesAreFilledInOnceAndForAll) {
  Settings s = good();
  s.rollout_max_context_len = 100;
  s.rollout_speculative_algorithm = "EAGLE";
  s.recompute_granularity = "full";
  s.eval_interval = 5;
  s.eval_prompt_data = {"a", "f"};
  s.rollout_temperature = 0.5;
  s.label_key = "label";
  validate(s, Command::train);
  EXPECT_EQ(s.global_batch_size, 8);
  EXPECT_EQ(s.num_steps_per_rollout, 1);
  EXPECT_EQ(s.eps_clip_high, 0.2);
  EXPECT_EQ(s.rollout_max_prompt_len, 99);
  EXPECT_EQ(s.rollout_speculative_num_steps, 2);
  EXPECT_EQ(s.rollout_speculative_num_draft_tokens, 3);
  EXPECT_EQ(s.recompute_method, "uniform");
  EXPECT_EQ(s.recompute_num_layers, 1);
  EXPECT_EQ(s.eval_max_response_len, 16);
  EXPECT_EQ(s.eval_temperature, 0.5);
  EXPECT_EQ(s.eval_label_key, "label");
  EXPECT_EQ(s.run_dir, "runs/train");
  EXPECT_EQ(s.save, "runs/train/checkpoints");
  Settings again = s;
  validate(again, Command::train);
  EXPECT_TRUE(differences(s, again, Command::train).empty());

  Settings steps = good();
  steps.num_steps_per_rollout = 4;
  validate(steps, Command::train);
  EXPECT_EQ(steps.global_batch_size, 2);
  Settings samples = good();
  samples.global_batch_size = 4;
  validate(samples, Command::train);
  EXPECT_EQ(samples.num_steps_per_rollout, 2);
  Settings file = good();
  file.prompt_data.clear();
  file.rollout_max_response_len.reset();
  file.load_debug_rollout_data = "f";
  validate(file, Command::train);
  EXPECT_TRUE(file.debug_train_only);
}

TEST(SettingsDerived, DifferencesAreNamed) {
  Settings s = good(), other = good();
  other.eps_clip = 0.3;
  other.save_interval = 2;
  EXPECT_EQ(differences(s, other, Command::train), (Texts{"save_interval: not given -> 2", "eps_clip: 0.2 -> 0.3"}));
}

std::string inspect_conflicts(Settings& s) {
  std::string all;
  for (const auto& conflict : find_conflicts(s, Command::inspect)) all += conflict + "\n";
  return all;
}

TEST(SettingsInspect, ARolloutNeedsItsRunAndFiltersNeedARollout) {
  Settings s;
  s.rollout = 3;
  EXPECT_NE(inspect_conflicts(s).find("--run-dir"), std::string::npos);
  s.run_dir = "run";
  EXPECT_EQ(find_conflicts(s, Command::inspect), Texts());
  s.plan = true;
  EXPECT_NE(inspect_conflicts(s).find("--plan and --rollout"), std::string::npos);
  s.plan = false;
  s.rollout = -1;
  s.load_debug_rollout_data = "t.jsonl";
  EXPECT_NE(inspect_conflicts(s).find("--rollout -1"), std::string::npos);
  s = Settings();
  s.hf_checkpoint = "model";
  s.contains = "x";
  EXPECT_NE(inspect_conflicts(s).find("need --rollout"), std::string::npos);
}

TEST(SettingsWarning, NamesEveryFlagWithoutEffectAndNoValue) {
  Settings s;
  EXPECT_EQ(no_effect_warning(s, Command::train), "");
  EXPECT_EQ(set(s, "colocate", {}), "");
  EXPECT_EQ(set(s, "hidden_size", {"2048"}), "");
  EXPECT_EQ(set(s, "wandb_key", {"secret"}), "");
  EXPECT_EQ(set(s, "num_layers", {"40"}), "");
  const std::string line = no_effect_warning(s, Command::train);
  EXPECT_EQ(
      line,
      "without effect here: --colocate (training and rollout always share one engine and one copy of the weights); "
      "--num-layers, --hidden-size (the checkpoint's config.json decides); --wandb-key (metrics go to the run "
      "directory)");
  EXPECT_EQ(to_toml(s, Command::train).find("secret"), std::string::npos);
}

TEST(SettingsDocs, AreCurrent) {
  EXPECT_EQ(read_file(FURLONG_TEST_DATA "/../../docs/flags.md"), flags_markdown())
      << "run `furlong --dump-flags-md > docs/flags.md`";
}

TEST(SettingsDocs, HelpNamesEveryFlagOnLinesOfThePage) {
  for (const Command command : all_commands()) {
    const std::string help = help_text(command);
    for (const auto& field : fields()) {
      if (!field.takes(command) || field.topic == Topic::no_effect) continue;
      EXPECT_NE(help.find("  " + field.flag()), std::string::npos);
    }
    for (size_t begin = 0, end; begin < help.size(); begin = end + 1) {
      end = help.find('\n', begin);
      EXPECT_LE(end - begin, 120u) << help.substr(begin, end - begin);
    }
  }
}

}  // namespace
}  // namespace furlong
