#include "data/prompts.h"

#include "data_room/scratch.h"

namespace furlong {
namespace {

PromptSet load(const std::string& content, PromptOptions options = {}) {
  const Scratch scratch;
  options.path = scratch.file("p.jsonl", content) + options.path;
  return PromptSet(options);
}

TEST(Prompts, ReadsChatAndText) {
  PromptOptions options{.input_key = "prompt", .label_key = "label"};
  const PromptSet set = load(
      R"({"prompt": [{"role": "system", "content": ""}, {"role": "user", "content": "Hi é"}], "label": "0"}

{"prompt": "plain", "label": 7, "metadata": {"rm_type": "math", "n": 1.50}, "tools": [{"x": 1}]}
{"prompt": "plain", "label": null, "metadata": null, "tools": "[ 1 ]"}
)",
      options);
  ASSERT_EQ(set.size(), 3);
  EXPECT_EQ(set[0].messages, (std::vector<ChatMessage>{{"system", ""}, {"user", "Hi é"}}));
  EXPECT_EQ(set[0].label, (LabelValue{LabelValue::Kind::string, "0", 0}));
  EXPECT_EQ(set[0].metadata, "{}");
  EXPECT_TRUE(set[0].is_chat());
  EXPECT_FALSE(set[1].is_chat());
  EXPECT_EQ(set[1].text, "plain");
  EXPECT_EQ(set[1].label, (LabelValue{LabelValue::Kind::integer, "7", 7}));
  EXPECT_EQ(set[1].metadata, R"({"rm_type":"math","n":1.5,"tools":[{"x":1}]})");
  EXPECT_EQ(set[1].line, 3);
  EXPECT_EQ(set[1].row, 1);
  EXPECT_EQ(set[2].label.kind, LabelValue::Kind::none);
  EXPECT_EQ(set[2].tools, "[ 1 ]");
  EXPECT_EQ(set[2].metadata, R"({"tools":[1]})");
  expect_contains(set.where(2), "p.jsonl:4");
}

TEST(Prompts, LabelsKeepTheirKind) {
  using Kind = LabelValue::Kind;
  const struct {
    const char* json;
    LabelValue label;
  } cases[] = {
      {"\"a\\nb\"", {Kind::string, "a\nb", 0}},
      {"0", {Kind::integer, "0", 0}},
      {"-3", {Kind::integer, "-3", -3}},
      {"2.50", {Kind::floating, "2.50", 2.5}},
      {"1e3", {Kind::floating, "1e3", 1000}},
      {"true", {Kind::boolean, "true", 1}},
      {"false", {Kind::boolean, "false", 0}},
      {"[1, \"x\"]", {Kind::other, "[1, \"x\"]", 0}},
      {"{\"a\": 1}", {Kind::other, "{\"a\": 1}", 0}},
      {"null", {}},
      {"18446744073709551616", {Kind::integer, "18446744073709551616", 18446744073709551616.0}},
  };
  for (const auto& c : cases) {
    const PromptSet set = load(fmt::format("{{\"input\":\"x\",\"label\":{}}}", c.json), {.label_key = "label"});
    EXPECT_EQ(set[0].label, c.label) << c.json;
  }
}

TEST(Prompts, ChatTemplateTurnsTextIntoAUserMessage) {
  const PromptSet set = load("{\"input\":\"x\"}", {.apply_chat_template = true});
  EXPECT_EQ(set[0].messages, (std::vector<ChatMessage>{{"user", "x"}}));
  EXPECT_EQ(set[0].text, "");
}

TEST(Prompts, SkipsBadRowsUpToOneInAHundred) {
  const Scratch scratch;
  std::string rows;
  for (int i = 1; i <= 298; i++) rows += fmt::format("{{\"input\":\"row {}\"}}\n", i);
  const std::string bad = "{\"input\":\n", lacking = "{\"text\":\"x\"}\n";
  const auto open = [&](const std::string& content, bool skip) {
    PromptSet set({.path = scratch.file("p.jsonl", content), .skip_bad = skip});
    set.bad().report("p.jsonl", set.size());
    return set;
  };
  const PromptSet set = open(bad + rows + lacking, true);
  EXPECT_EQ(set.size(), 298);
  EXPECT_EQ(set[0].text, "row 1");
  EXPECT_EQ(set[297].line, 299);
  expect_contains(error_of(Exit::input, [&] { open(bad + rows + lacking, false); }), "p.jsonl:1:");

  std::string many;
  for (int i = 0; i < 12; i++) many += lacking;
  const std::string message = error_of(Exit::input, [&] { open(rows + many, true); });
  expect_contains(message, "12 of 310 rows are bad, more than the 1 % that is skipped; the first:");
  expect_contains(message, "p.jsonl:299: no key \"input\"");
  expect_contains(message, "p.jsonl:308:");
  EXPECT_EQ(message.find("p.jsonl:309:"), message.npos) << message;
  expect_contains(error_of(Exit::input, [&] { open(bad, true); }), "1 of 1 rows is bad");
}

TEST(Prompts, RefusesBadRows) {
  const struct {
    const char* row;
    const char* message;
  } cases[] = {
      {R"({"prompt":"x","label":"1"})", "p.jsonl:2: no key \"input\"; the row has: \"label\", \"prompt\""},
      {R"({"input":"x"})", "p.jsonl:2: no key \"label\"; the row has: \"input\""},
      {R"({})", "no key \"input\"; the row has: none"},
      {R"({"input":5,"label":1})", "\"input\" is an integer; expected a string or a list of chat messages"},
      {R"({"input":null,"label":1})", "\"input\" is null"},
      {R"({"input":"","label":1})", "\"input\" is empty"},
      {R"({"input":[],"label":1})", "\"input\" is an empty list"},
      {R"({"input":["hi"],"label":1})", "\"input[0]\" is a string; expected an object"},
      {R"({"input":[{"role":"user"}],"label":1})", "input[0] has no key \"content\""},
      {R"({"input":[{"content":"x"}],"label":1})", "input[0] has no key \"role\""},
      {R"({"input":[{"role":"user","content":[{"type":"image"}]}],"label":1})",
       "\"input[0].content\" is an object; expected parts"},
      {R"({"input":[{"role":7,"content":"x"}],"label":1})", "\"input[0].role\" is an integer"},
      {R"({"input":[{"role":"","content":"x"}],"label":1})", "input[0].role is empty"},
      {R"({"input":[{"role":"assistant","content":null}],"label":1})", "\"input[0].content\" is null"},
      {R"({"input":[{"role":"assistant","tool_calls":[]}],"label":1})", "input[0] has no key \"content\""},
      {R"({"input":"x","label":1,"metadata":[]})", "\"metadata\" is a list; expected an object"},
      {R"({"input":"x","label":1,"tools":{}})", "\"tools\" is an object"},
      {R"({"input":"x","label":1,"tools":"{}"})", "the JSON in \"tools\" is not a list"},
      {R"({"input":"x","label":1,"tools":"[1"})", "\"tools\""},
      {R"({"input":"x","label":1)", "p.jsonl:2:"},
  };
  for (const auto& c : cases) {
    const auto body = [&] { load("{\"input\":\"x\",\"label\":1}\n" + std::string(c.row), {.label_key = "label"}); };
    expect_contains(error_of(Exit::input, body), c.message);
  }
  expect_contains(error_of(Exit::input, [] { load("\n\n"); }), "no prompts");
  expect_contains(error_of(Exit::input, [] { load("{\"input\":\"x\"}", {.path = "@[3:]"}); }), "within the slice");
}

TEST(Prompts, KeepsWhatTheChatTemplateReads) {
  const PromptSet set = load(R"({"input":[{"role":"user","content":"x","name":"n","z":{"b":1,"a":2}},)"
                             R"({"role":"assistant","tool_calls":[{"name":"f"}]},)"
                             R"({"role":"user","content":[{"type":"text","text":"y"}]}]})");
  EXPECT_EQ(set[0].messages, (std::vector<ChatMessage>{{"user", "x", R"({"name":"n","z":{"b":1,"a":2}})"},
                                                       {"assistant", "", R"({"tool_calls":[{"name":"f"}]})"},
                                                       {"user", "", R"({"content":[{"type":"text","text":"y"}]})"}}));
}

TEST(Prompts, KeepFiltersInOrder) {
  PromptSet set = load("{\"input\":\"a\"}\n{\"input\":\"b\"}\n{\"input\":\"c\"}\n", {.path = "@[-3:]"});
  EXPECT_EQ(set.keep(std::vector<uint8_t>{1, 0, 1}), 1);
  ASSERT_EQ(set.size(), 2);
  EXPECT_EQ(set[0].text, "a");
  EXPECT_EQ(set[1].text, "c");
  EXPECT_EQ(set[1].line, 3);
}

// Made with CPython 3.11: random.seed(seed); p = list(range(n)); random.shuffle(p).
TEST(Shuffle, MatchesPython) {
  const struct {
    int64_t n, seed;
    std::vector<int64_t> order;
  } cases[] = {
      {1, 42, {0}},
      {2, 42, {1, 0}},
      {10, 0, {7, 8, 1, 5, 3, 4, 2, 0, 9, 6}},
      {10, 42, {7, 3, 2, 8, 5, 6, 9, 4, 0, 1}},
      {10, 43, {8, 1, 5, 6, 9, 7, 3, 2, 4, 0}},
      {17, -5, {14, 2, 4, 6, 1, 9, 5, 3, 7, 0, 16, 10, 13, 15, 12, 11, 8}},
      {16, 4294967296, {4, 10, 2, 15, 13, 1, 11, 7, 8, 14, 9, 12, 0, 6, 5, 3}},
      {20, 1099511627783, {17, 0, 10, 3, 1, 2, 9, 12, 7, 13, 5, 11, 14, 6, 16, 4, 8, 15, 18, 19}},
      {9, std::numeric_limits<int64_t>::min(), {3, 2, 5, 0, 4, 7, 1, 6, 8}},
      {12, std::numeric_limits<int64_t>::max(), {11, 1, 6, 9, 4, 3, 0, 8, 7, 2, 10, 5}},
  };
  for (const auto& c : cases) EXPECT_EQ(python_shuffle(c.n, c.seed), c.order) << c.n << " " << c.seed;
  EXPECT_TRUE(python_shuffle(0, 1).empty());

  // Longer ones by their FNV-1a digest over whole entries: h = (h ^ p) * 1099511628211 mod 2^64.
  const struct {
    int64_t n, seed;
    uint64_t digest;
  } long_cases[] = {{624, 1, 0xf983adbddcd58f27ull},    {1000, 42, 0xeb21d4ed41dd2e53ull},
                    {17398, 42, 0x16654984ae98409eull}, {17398, 43, 0x1b47b29a233595f4ull},
                    {65536, 7, 0xc1ef1b26662cdc0bull},  {65537, 123456789012, 0xc0a17eb403f4edabull}};
  for (const auto& c : long_cases) {
    uint64_t digest = 1469598103934665603ull;
    for (const int64_t p : python_shuffle(c.n, c.seed)) digest = (digest ^ static_cast<uint64_t>(p)) * 1099511628211ull;
    EXPECT_EQ(digest, c.digest) << c.n << " " << c.seed;
  }
}

TEST(Cursor, WalksEpochs) {
  PromptCursor plain(3, false, 42);
  for (int64_t i = 0; i < 8; i++) {
    EXPECT_EQ(plain.next(4), (PromptCursor::Draw{i % 3, i, 4 * i, i / 3}));
  }
  // Epoch e is Python's shuffle with seed + e of the original order.
  PromptCursor cursor(10, true, 42);
  for (int64_t epoch = 0; epoch < 3; epoch++) {
    const auto order = python_shuffle(10, 42 + epoch);
    for (int64_t i = 0; i < 10; i++) {
      EXPECT_EQ(cursor.next(1),
                (PromptCursor::Draw{order[static_cast<size_t>(i)], epoch * 10 + i, epoch * 10 + i, epoch}));
    }
    EXPECT_EQ(cursor.state().epoch, epoch);  // the epoch turns only with the next draw
    EXPECT_EQ(cursor.state().offset, 10);
  }
}

TEST(Cursor, RestoresExactlyAnywhere) {
  for (const bool shuffle : {false, true}) {
    for (int64_t stop = 0; stop <= 23; stop++) {
      PromptCursor whole(7, shuffle, 5), first(7, shuffle, 5), second(7, shuffle, 5);
      for (int64_t i = 0; i < stop; i++) {
        whole.next(2);
        first.next(2);
      }
      second.restore(first.state());
      for (int64_t i = 0; i < 20; i++) EXPECT_EQ(whole.next(2), second.next(2));
    }
  }
}

TEST(Cursor, RefusesAnothersState) {
  PromptCursor cursor(7, true, 5);
  const PromptCursorState bad[] = {{.prompts = 8}, {.offset = 8},       {.epoch = -1},
                                   {.offset = -1}, {.group_index = -1}, {.index = -1}};
  for (const auto& state : bad) error_of(Exit::input, [&] { cursor.restore(state); });
  EXPECT_EQ(cursor.state(), (PromptCursorState{.prompts = 7}));
  cursor.restore({.offset = 7});
  EXPECT_EQ(cursor.next(1).epoch, 1);
}

}  // namespace
}  // namespace furlong
