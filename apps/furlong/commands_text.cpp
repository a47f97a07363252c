// tokenize and grade: the tokenizer and the rewards alone.
#include "base/error.h"
#include "furlong/commands.h"
#include "furlong/rows.h"
#include "reward/judge.h"
#include "tokenizer/chat.h"
#include "tokenizer/tokenizer.h"
#include "trainer/rollout.h"

namespace furlong {
namespace {

std::string text_field(const OrderedJson& row, const char* key, const std::string& where) {
  if (!row.contains(key) || !row[key].is_string()) fail(Exit::input, "{}: the row needs \"{}\", a text", where, key);
  return row[key];
}

std::optional<bool> optional_flag(const OrderedJson& row, const char* key, const std::string& where) {
  if (!row.contains(key) || row[key].is_null()) return std::nullopt;
  if (!row[key].is_boolean()) fail(Exit::input, "{}: \"{}\" must be true or false", where, key);
  return row[key].get<bool>();
}

LabelValue label_value(const OrderedJson& value) {
  using Kind = LabelValue::Kind;
  if (value.is_null()) return {};
  if (value.is_string()) return {Kind::string, value, 0};
  if (value.is_boolean()) return {Kind::boolean, value.dump(), value.get<bool>() ? 1.0 : 0.0};
  if (value.is_number_integer()) return {Kind::integer, value.dump(), value.get<double>()};
  if (value.is_number_float()) return {Kind::floating, value.dump(), value.get<double>()};
  return {Kind::other, value.dump(), 0};
}

constexpr size_t most_under_way = 4096;

}  // namespace

int run_tokenize(const Settings& settings) {
  const std::string source = settings.tokenizer.empty() ? settings.hf_checkpoint : settings.tokenizer;
  if (source.empty())
    fail(Exit::usage, "--tokenizer FILE|DIR is needed: a tokenizer.json or the folder of a checkpoint");
  RowWriter out(settings.output);
  if (settings.chat) {
    const ChatTemplate chat =
        settings.chat_template.empty() ? chat_template_of(source) : named_chat_template(settings.chat_template, source);
    read_rows(settings.input, [&](const OrderedJson& row, const std::string& where) {
      ChatValues values{.enable_thinking = optional_flag(row, "enable_thinking", where),
                        .tools = tools_of(row, where),
                        .values = settings.apply_chat_template_kwargs};
      const bool prompts = optional_flag(row, "add_generation_prompt", where).value_or(false);
      out.write({{"text", render_chat(chat, messages_of(row, where), prompts, values)}});
    });
    out.close();
    return 0;
  }
  const Tokenizer tokenizer = Tokenizer::load(source);
  read_rows(settings.input, [&](const OrderedJson& row, const std::string& where) {
    if (!settings.decode) {
      out.write({{"ids", tokenizer.encode(text_field(row, "text", where))}});
      return;
    }
    if (!row.contains("ids") || !row["ids"].is_array())
      fail(Exit::input, "{}: the row needs \"ids\", a list of token ids", where);
    std::vector<int32_t> ids;
    for (const OrderedJson& id : row["ids"]) {
      if (!id.is_number_integer() || id.get<int64_t>() < 0 || id.get<int64_t>() >= tokenizer.vocab_size()) {
        fail(Exit::input, "{}: ids holds {}, the tokenizer has ids from 0 to {}", where, id.dump(),
             tokenizer.vocab_size() - 1);
      }
      ids.push_back(id.get<int32_t>());
    }
    out.write({{"text", tokenizer.decode(ids)}});
  });
  out.close();
  return 0;
}

int run_grade(const Settings& settings) {
  Judge judge(judge_options(settings, ""));
  RowWriter out(settings.output);
  // Many at a time, so that services and commands are asked side by side.
  std::vector<uint64_t> tickets;
  const auto write_out = [&] {
    for (const uint64_t ticket : tickets) {
      const Score score = judge.wait(ticket)[0];
      OrderedJson result = {{"reward", nullptr}};
      if (!score.reward) {
        result["error"] = score.error;
      } else if (score.acc && settings.reward_key.empty()) {
        result["reward"] = {{"score", *score.reward}, {"acc", *score.acc}, {"pred", score.pred}};
      } else {
        result["reward"] = *score.reward;
      }
      out.write(result);
    }
    tickets.clear();
  };
  read_rows(settings.input, [&](const OrderedJson& row, const std::string& where) {
    RewardQuery query{.response = text_field(row, "response", where), .reward_key = settings.reward_key};
    if (row.contains("prompt")) query.prompt = row["prompt"].dump();
    if (row.contains("label")) query.label = label_value(row["label"]);
    if (row.contains("metadata") && row["metadata"].is_object()) query.metadata = row["metadata"].dump();
    judge.check(query.metadata, where);
    tickets.push_back(judge.submit({query}));
    if (tickets.size() >= most_under_way) write_out();
  });
  write_out();
  out.close();
  return 0;
}

}  // namespace furlong
