// tokenize and grade: the tokenizer and the rewards alone.
#include "base/error.h"
#include "furlong/commands.h"
#include "furlong/rows.h"
#include "reward/scorer.h"
#include "tokenizer/chat.h"
#include "tokenizer/tokenizer.h"

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

Label json_label(const OrderedJson& value) {
  if (value.is_null()) return Label::none();
  if (value.is_string()) return Label::string(value);
  if (value.is_boolean()) return Label::boolean(value);
  if (value.is_number_unsigned()) return Label::integer(value.get<uint64_t>());
  if (value.is_number_integer()) return Label::integer(value.get<int64_t>());
  if (value.is_number_float()) return Label::real(value);
  return Label::other();
}

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
  if (settings.rm_type.empty()) fail(Exit::usage, "--rm-type RULE is needed (deepscaler, dapo, math)");
  const auto scorer = make_scorer(settings.rm_type);
  RowWriter out(settings.output);
  read_rows(settings.input, [&](const OrderedJson& row, const std::string& where) {
    const std::string response = text_field(row, "response", where);
    const Score score = scorer->score(response, json_label(row.contains("label") ? row["label"] : OrderedJson()));
    OrderedJson result = {{"reward", nullptr}};
    if (!score.reward) {
      result["error"] = score.error;
    } else if (score.acc) {
      result["reward"] = {{"score", *score.reward}, {"acc", *score.acc}, {"pred", score.pred}};
    } else {
      result["reward"] = *score.reward;
    }
    out.write(result);
  });
  out.close();
  return 0;
}

}  // namespace furlong
