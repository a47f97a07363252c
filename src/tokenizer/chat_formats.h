// Formats that can be named where a checkpoint brings no template.
#pragma once
#include <string>
#include <string_view>

namespace furlong {

// The Jinja text of "qwen3" or "qwen3.5"; empty for other names.
//   qwen3:   hybrid thinking: an assistant's reasoning is kept after the last user turn that is not a
//            "<tool_response>", and there where it is not empty or the turn is the last.
//   qwen3.5: trims every content, keeps all reasoning after that turn, opens "<think>" in the generation prompt, and
//            has the system message first or not at all.
std::string chat_format(std::string_view name);

}  // namespace furlong
