#include "tokenizer/chat_formats.h"

namespace furlong {
namespace {

// After a line that sets `newer`.
constexpr const char* turns = R"({%- if tools %}
    {{- raise_exception('the built-in formats have no tools; leave --chat-template out, or name a file with a template') }}
{%- endif %}
{%- macro text_of(m) %}{{ m.content|trim if newer else m.content }}{% endmacro %}
{%- set query = namespace(at=messages|length - 1, found=false) %}
{%- for m in messages[::-1] %}
    {%- set text = text_of(m) %}
    {%- set answers = text.startswith('<tool_response>') and text.endswith('</tool_response>') %}
    {%- if m.role == 'user' and not answers and not query.found %}
        {%- set query.at = loop.revindex0 %}
        {%- set query.found = true %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set text = text_of(m) %}
    {%- if m.role == 'assistant' %}
        {%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}
        {%- if m.reasoning_content is not string and '</think>' in text %}
            {%- set thought = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set text = text.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- set thinks = loop.index0 > query.at and (newer or loop.last or thought) %}
        {%- if thinks %}
            {%- set thought = thought|trim if newer else thought.strip('\n') %}
            {%- set text = '<think>\n' ~ thought ~ '\n</think>\n\n' ~ (text if newer else text.lstrip('\n')) %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' ~ text ~ '<|im_end|>\n' }}
    {%- elif m.role == 'tool' %}
        {%- set opens = not newer if loop.first else loop.previtem.role != 'tool' %}
        {{- ('<|im_start|>user' if opens else '') ~ '\n<tool_response>\n' ~ text ~ '\n</tool_response>' }}
        {{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' }}
    {%- elif m.role == 'system' and newer and not loop.first %}
        {{- raise_exception('message ' ~ loop.index0 ~ ': a system message must be the first one in this format') }}
    {%- elif m.role in ['system', 'user'] %}
        {{- '<|im_start|>' ~ m.role ~ '\n' ~ text ~ '<|im_end|>\n' }}
    {%- else %}
        {{- raise_exception('message ' ~ loop.index0 ~ ': unknown role "' ~ m.role ~ '"; known are system, user, assistant and tool') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {%- set closed = enable_thinking is defined and enable_thinking is false %}
    {{- '<|im_start|>assistant\n' ~ ('<think>\n\n</think>\n\n' if closed else '<think>\n' if newer else '') }}
{%- endif %})";

}  // namespace

std::string chat_format(std::string_view name) {
  if (name != "qwen3" && name != "qwen3.5") return "";
  return std::string("{%- set newer = ") + (name == "qwen3" ? "false" : "true") + " %}" + turns;
}

}  // namespace furlong
