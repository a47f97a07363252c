#include "targets.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>

namespace furlong::fuzz {

std::string& data_folder() {
  static std::string folder = FURLONG_TEST_DATA;
  return folder;
}

const std::vector<Target>& targets() {
  static const std::vector<Target> list = {{"safetensors", read_safetensors},
                                           {"index", read_index},
                                           {"manifest", read_manifest_file},
                                           {"config", read_config, 1024},  // a list of layers by their number
                                           {"tokenizer", read_tokenizer, 1024},
                                           {"jsonl", read_jsonl},
                                           {"prompts", read_prompts},
                                           {"trajectory", read_trajectory},
                                           {"bpe", encode_text},
                                           {"chat", render_conversation, 4096},
                                           {"grader", grade, 4096},
                                           {"json", read_json},
                                           {"torch", read_torch, 1 << 16},  // an archive's numbers may be packed
                                           {"jinja", render_template, 4096},
                                           {"http", read_http},
                                           {"openai", read_openai, 1024},
                                           {"toml", read_toml},
                                           {"cli", read_words, 1024}};
  return list;
}

const Target* find_target(std::string_view name) {
  const auto& list = targets();
  const auto found = std::find_if(list.begin(), list.end(), [&](const Target& t) { return t.name == name; });
  return found == list.end() ? nullptr : &*found;
}

const std::string& scratch_folder() {
  static const std::string& path = *[] {  // never destroyed: the exit handler reads it
    char name[] = "/dev/shm/furlong-fuzz-XXXXXX";
    if (mkdtemp(name) == nullptr) std::abort();
    std::atexit([] { std::system(("rm -rf " + scratch_folder()).c_str()); });
    return new std::string(name);
  }();
  return path;
}

void put_file(const std::string& name, Bytes bytes) {
  std::ofstream(scratch_folder() + "/" + name, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), std::ssize(bytes));
}

void wrong(const char* what) {
  std::fprintf(stderr, "wrong: %s\n", what);
  std::abort();
}

}  // namespace furlong::fuzz
