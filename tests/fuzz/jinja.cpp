#include <string>

#include "base/error.h"
#include "targets.h"
#include "tokenizer/jinja.h"

namespace furlong::fuzz {
namespace {

constexpr const char* variables = R"({"messages": [{"role": "system", "content": " Be brief. "},
  {"role": "user", "content": "Hi é"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes",
  "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, 2.5, null, true]}}}]}, {"role": "tool", "content": "7"}],
  "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": {"b": "c"}}}}],
  "bos_token": "<s>", "add_generation_prompt": true, "n": 7, "f": 2.5, "z": null, "xs": ["b", "a", "C"]})";

}  // namespace

// The input is a template, rendered over a fixed conversation with small limits.
void render_template(Bytes bytes) {
  try {
    const JinjaLimits limits{.steps = 20'000, .output_bytes = 1 << 16};
    (void)JinjaTemplate::parse(text_of(bytes), "fuzz", limits).render(variables, "fuzz", 0);
  } catch (const Error&) {
  }
}

}  // namespace furlong::fuzz
