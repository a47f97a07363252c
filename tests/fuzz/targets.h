// What reads bytes of others, one function each. Every input must end in a value or in an Error of the user's; whatever
// else a target finds wrong, it aborts at.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace furlong::fuzz {

using Bytes = std::span<const uint8_t>;

struct Target {
  const char* name;
  void (*run)(Bytes);
  size_t allocation_per_byte = 64;  // no one allocation may take more bytes than this an input's byte, and a MiB
};

const std::vector<Target>& targets();
// Null: there is none of this name.
const Target* find_target(std::string_view name);

inline std::string_view text_of(Bytes bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }
// A folder in memory, removed with the process.
const std::string& scratch_folder();
void put_file(const std::string& name, Bytes bytes);
// Where the tests' files lie: in the source tree, unless a program says otherwise before it runs a target.
std::string& data_folder();
[[noreturn]] void wrong(const char* what);

void read_torch(Bytes);        // torch.cpp
void render_template(Bytes);   // jinja.cpp
void read_safetensors(Bytes);  // files.cpp
void read_index(Bytes);
void read_manifest_file(Bytes);
void read_config(Bytes);
void read_tokenizer(Bytes);
void read_jsonl(Bytes);
void read_prompts(Bytes);
void read_trajectory(Bytes);
void encode_text(Bytes);  // texts.cpp
void render_conversation(Bytes);
void grade(Bytes);
void read_json(Bytes);
void read_http(Bytes);  // requests.cpp
void read_openai(Bytes);
void read_toml(Bytes);
void read_words(Bytes);

}  // namespace furlong::fuzz
