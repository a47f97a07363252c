#include "tokenizer/jinja.h"

#include <random>

#include "fixtures.h"

namespace furlong {
namespace {

// golden_jinja.json: what transformers 5.24 with Jinja 3.1.6 makes of small templates, compiled as for
// apply_chat_template and rendered over "variables", and of conversations (with tools, calls, thinking, content in
// parts) rendered by "templates" in the style of several families. "text" is null where it raises.
TEST(Jinja, RendersAsTransformersDoes) {
  const std::string file = read_file(data_path("golden_jinja.json"));
  const OrderedJson goldens = parse_ordered_json(file, "golden_jinja.json");
  int refused = 0;
  for (const OrderedJson& row : goldens["cases"]) {
    const std::string name = row["name"];
    const std::string source =
        row.contains("of") ? goldens["templates"][row["of"].get<std::string>()] : row["template"];
    const std::string variables = (row.contains("of") ? row["variables"] : goldens["variables"]).dump();
    std::string text;
    try {
      text = JinjaTemplate::parse(source, name).render(variables, name).text;
    } catch (const Error& e) {
      EXPECT_TRUE(row["text"].is_null()) << source << "\n" << e.what();
      EXPECT_EQ(std::string(e.what()).find(name + ":"), 0u) << e.what();
      EXPECT_EQ(e.code(), Exit::input);
      refused++;
      continue;
    }
    EXPECT_EQ(Json(text), row["text"]) << name << "\n" << source;
  }
  EXPECT_GT(goldens["cases"].size(), 400u);
  EXPECT_GT(refused, 50);
}

std::string render(const std::string& source, const std::string& variables = "{}", const JinjaLimits& limits = {}) {
  return JinjaTemplate::parse(source, "t", limits).render(variables, "v").text;
}

TEST(Jinja, ErrorsNameTheLine) {
  const std::pair<const char*, std::vector<std::string>> cases[] = {
      {"a\n{% if x %}\n{{ 1 +\n}}", {"t:4", "}}"}},
      {"a\n\n{{ x.y }}", {"t:3", "`x` is undefined"}},
      {"{% set q = {} %}\n{{ q.a.b }}", {"t:2", "attribute `a`"}},
      {"\n{% for m in [1] %}\n{{ raise_exception('roles must ' ~ 'alternate') }}{% endfor %}",
       {"t:3", "roles must alternate"}},
      {"{% macro m(x) %}\n\n{{ x + 1 }}{% endmacro %}\n{{ m('a') }}", {"t:3", "str"}},
      {"{{ 'a'\n|nope }}", {"t:2", "no filter `nope`"}},
      {"{% if true %}\n{% for x in [] %}\n", {"t:2", "endfor"}},
      {"x\n{% include 'a' %}", {"t:2", "include"}},
      {"{% set n = namespace() %}{% for i in [1] %}{% macro m() %}{% endmacro %}{% set n.m = [m] %}{% endfor %}",
       {"t:1", "macro"}},
      {"{% for x in [] recursive %}{% endfor %}", {"t:1", "recursive"}},
      {"{{ [namespace()] }}", {"t:1", "namespace"}},
      {"{{ 9223372036854775807 + 1 }}", {"t:1", "64 bits"}},
      {"{{ 99999999999999999999 }}", {"t:1", "64 bits"}},
      {"\xff", {"t", "UTF-8"}}};
  for (const auto& [source, pieces] : cases) expect_error(Exit::input, pieces, [&] { (void)render(source); });
  expect_error(Exit::input, {"v", "object"}, [] { (void)render("a", "[]"); });
  expect_error(Exit::input, {"v", "18446744073709551615"}, [] { (void)render("a", R"({"n": 18446744073709551615})"); });
}

TEST(Jinja, RangesFollowPython) {
  const std::pair<const char*, const char*> cases[] = {
      {"{{ range(0)|list }}", "[]"},
      {"{{ range(3)|list }}", "[0, 1, 2]"},
      {"{{ range(2, 9, 3)|list }}", "[2, 5, 8]"},
      {"{{ range(9, 0, -4)|list }}", "[9, 5, 1]"},
      {"{{ range(0, 9, -1)|list }}", "[]"},
      {"{{ range(9223372036854775806, 9223372036854775807, 9223372036854775807)|list }}", "[9223372036854775806]"},
      {"{{ range(-9223372036854775807, 9223372036854775807, 9223372036854775807)|list }}",
       "[-9223372036854775807, 0]"}};
  for (const auto& [source, text] : cases) EXPECT_EQ(render(source), text) << source;
}

// Templates that would never end, or fill the memory or the stack.
TEST(Jinja, StopsAtItsLimits) {
  const std::pair<std::string, const char*> cases[] = {
      {"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "steps"},
      {"{% set n = namespace(s='x') %}{% for a in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "MiB"},
      {"{% set n = namespace(l=[1]) %}{% for a in range(99) %}{% set n.l = n.l + n.l %}{% endfor %}", "steps"},
      {"{% set n = namespace(l=[1]) %}{% for a in range(999) %}{% set n.l = [n.l] %}{% endfor %}", "deeply"},
      {"{% set n = namespace(l=[1]) %}{% for a in range(60) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}",
       "large"},
      {"{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}", "MiB"},
      {"{{ 'x' * 9999999999 }}", "large"},
      {"{{ [1] * 9999999999 }}", "large"},
      {"{{ 'a'.replace('', 'b' * 999999)|length }}{{ ('a' * 99999).replace('', 'b' * 99999) }}", "steps"},
      {"{{ ('a' * 999999)|join('b' * 999) }}", "steps"},
      {"{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "deeply"},
      {"{% macro f(x) %}{{ f(x) }}{% endmacro %}{% macro g() %}{{ f(1) }}{{ g() }}{% endmacro %}{{ g() }}", "deeply"},
      {"{{ range(999999999) }}", "range"},
      {"{{ " + std::string(100000, '(') + "1" + std::string(100000, ')') + "}}", "deeply"},
      {"{{ " + std::string(100000, '[') + "1" + std::string(100000, ']') + "}}", "deeply"},
      {"{{ " + std::string(100000, '-') + "1 }}", "deeply"},
      {"{{ a" + std::string(100000, '.') + "1 }}", "expected a name"},
      {"{{ a" +
           [] {
             std::string s;
             for (int i = 0; i < 9999; i++) s += ".b";
             return s;
           }() +
           " }}",
       "deeply"},
      {"{{ 1" +
           [] {
             std::string s;
             for (int i = 0; i < 9999; i++) s += "+1";
             return s;
           }() +
           " }}",
       "deeply"},
      {[] {
         std::string s;
         for (int i = 0; i < 9999; i++) s += "{% if 1 %}";
         return s;
       }(),
       "deeply"},
      {"{{ not" +
           [] {
             std::string s;
             for (int i = 0; i < 9999; i++) s += " not";
             return s;
           }() +
           " 1 }}",
       "deeply"}};
  for (const auto& [source, piece] : cases) {
    SCOPED_TRACE(source.substr(0, 60));
    expect_error(Exit::input, {"t:1", piece},
                 [&] { (void)render(source, "{}", {.steps = 1'000'000, .output_bytes = 4 << 20}); });
  }
  expect_error(Exit::input, {"more than 100 steps"},
               [] { (void)render("{% for a in range(200) %}{% endfor %}", "{}", {.steps = 100}); });
  expect_error(Exit::input, {"11 bytes"}, [] { (void)render("01234567890", "{}", {.template_bytes = 10}); });
}

// Long conversations stay far from the limits.
TEST(Jinja, RendersLongConversations) {
  OrderedJson messages = OrderedJson::array();
  for (int i = 0; i < 2000; i++)
    messages.push_back({{"role", i % 2 ? "assistant" : "user"}, {"content", std::string(4000, 'x')}});
  const std::string text = render(
      "{% for m in messages[::-1] %}{% if (messages|length - 1) - loop.index0 == 5 and m.role == 'user' %}!{% endif "
      "%}{% endfor %}"
      "{% for m in messages %}{% set c = m.content.split('</think>')[-1].strip() %}{{ m.role ~ '\\n' ~ c }}{% endfor "
      "%}",
      OrderedJson{{"messages", messages}}.dump());
  EXPECT_GT(text.size(), 8'000'000u);
}

TEST(Jinja, TellsWhereTheMessagesAre) {
  const std::string variables = R"({"messages": [{"role": "s"}, {"role": "u"}, {"role": "a"}]})";
  const JinjaText chat =
      JinjaTemplate::parse(
          "{{ messages[0].role }}{% for m in messages %}{% set n = m %}{% endfor %}"
          "{% for m in messages[1:] %}<{{ m.role }}{% for q in messages %}{% endfor %}>{% endfor %}!",
          "t")
          .render(variables, "v");
  EXPECT_EQ(chat.text, "s<u><a>!");
  ASSERT_EQ(chat.spans.size(), 2u);
  EXPECT_EQ(chat.spans[0].message, 1u);
  EXPECT_EQ(chat.text.substr(chat.spans[0].begin, chat.spans[0].end - chat.spans[0].begin), "<u>");
  EXPECT_EQ(chat.spans[1].message, 2u);
  EXPECT_EQ(chat.text.substr(chat.spans[1].begin, chat.spans[1].end - chat.spans[1].begin), "<a>");
}

TEST(Jinja, TellsTheDate) {
  const std::time_t noon = 1'700'000'000 - 1'700'000'000 % 86400 + 43200;  // 14 November 2023, on most of the earth
  const auto text = JinjaTemplate::parse("{{ strftime_now('%d %b %Y') }}", "t").render("{}", "v", noon).text;
  EXPECT_EQ(text, "14 Nov 2023");
}

// The fuzz target's property over mutated goldens: pieces of templates cut, doubled, swapped for others or for bytes.
TEST(Jinja, TextOrErrorForMutatedTemplates) {
  const OrderedJson goldens = parse_ordered_json(read_file(data_path("golden_jinja.json")), "golden_jinja.json");
  std::vector<std::string> sources;
  for (const auto& [name, source] : goldens["templates"].items()) sources.push_back(source);
  for (const OrderedJson& row : goldens["cases"]) {
    if (row.contains("template")) sources.push_back(row["template"]);
  }
  const std::string variables = goldens["variables"].dump();
  std::mt19937 random(7);
  const auto below = [&](size_t n) { return random() % std::max<size_t>(1, n); };
  int rendered = 0, refused = 0;
  for (int i = 0; i < 20000; i++) {
    std::string source = sources[below(sources.size())];
    for (size_t edits = 1 + below(3); edits > 0; edits--) {
      const std::string& other = sources[below(sources.size())];
      const size_t at = below(source.size() + 1), from = below(other.size() + 1);
      if (below(3) == 0) source.erase(at, below(8));
      if (below(3) == 0) source.insert(at, other.substr(from, below(24)));
      if (below(3) == 0) source.insert(at, 1, "{}%#-'\"()[]|.,:=~*/\n\xc3"[below(22)]);
      if (below(6) == 0) source.insert(at, source.substr(below(at + 1), below(16)));
    }
    try {
      (void)render(source, variables, {.steps = 20'000, .output_bytes = 1 << 16});
      rendered++;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Exit::input);
      EXPECT_EQ(std::string(e.what()).find("t:"), 0u) << e.what();
      refused++;
    }
  }
  EXPECT_GT(rendered, 2000);
  EXPECT_GT(refused, 2000);
}

}  // namespace
}  // namespace furlong
