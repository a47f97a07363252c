// Fuzz target of chat templates: the input is a template, rendered over a fixed conversation with small limits. Every
// input must end in a text or in an Error of the user's.
#include <string>

#include "base/error.h"
#include "tokenizer/jinja.h"

namespace {

using namespace furlong;

constexpr const char* variables = R"({"messages": [{"role": "system", "content": " Be brief. "},
  {"role": "user", "content": "Hi é"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes",
  "tool_calls": [{"function": {"name": "f", "arguments": {"x": [1, 2.5, null, true]}}}]}, {"role": "tool", "content": "7"}],
  "tools": [{"type": "function", "function": {"name": "f", "parameters": {"a": {"b": "c"}}}}],
  "bos_token": "<s>", "add_generation_prompt": true, "n": 7, "f": 2.5, "z": null, "xs": ["b", "a", "C"]})";

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const JinjaLimits limits{.steps = 20'000, .output_bytes = 1 << 16};
    (void)JinjaTemplate::parse({reinterpret_cast<const char*>(data), size}, "fuzz", limits)
        .render(variables, "fuzz", 0);
  } catch (const Error&) {
  }
  return 0;
}
