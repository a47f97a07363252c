#include <filesystem>
#include <sstream>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "checkpoint/manifest.h"
#include "checkpoint/safetensors.h"
#include "data/jsonl.h"
#include "data/prompts.h"
#include "data/trajectory.h"
#include "model/config.h"
#include "targets.h"
#include "tokenizer/tokenizer.h"

namespace furlong::fuzz {

void read_safetensors(Bytes bytes) {
  try {
    const SafetensorsContent content = parse_safetensors(bytes, "fuzz");
    size_t used = 0;
    for (const TensorEntry& entry : content.entries) {
      // Within the input, one after the other.
      if (entry.bytes.size() > 0 &&
          (entry.bytes.data() < bytes.data() || entry.bytes.data() + entry.bytes.size() > bytes.data() + bytes.size()))
        wrong("a tensor outside the file");
      used += entry.bytes.size();
      if (entry.numel() < 0) wrong("a negative count");
    }
    if (used > bytes.size()) wrong("more bytes than there are");
  } catch (const Error&) {
  }
}

// The index of a folder that has one file with one tensor, t.
void read_index(Bytes bytes) {
  static const bool once = [] {
    const std::string header = R"({"t":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})";
    const uint64_t n = header.size();
    const std::string file = std::string(reinterpret_cast<const char*>(&n), 8) + header + "ab";
    put_file("a.safetensors", {reinterpret_cast<const uint8_t*>(file.data()), file.size()});
    return true;
  }();
  (void)once;
  put_file(index_file_name, bytes);
  try {
    const SafetensorsDirectory folder(scratch_folder());
    if (folder.size() != 1 || folder.file_of("t") != "a.safetensors") wrong("an index that is not the folder's");
  } catch (const Error&) {
  }
}

void read_manifest_file(Bytes bytes) {
  std::filesystem::create_directory(scratch_folder() + "/iter_0000001");
  put_file("iter_0000001/manifest.json", bytes);
  try {
    for (const FileRecord& file : read_manifest(scratch_folder() + "/iter_0000001")) {
      if (file.name.find('/') != file.name.npos) wrong("a file beyond the folder");
    }
  } catch (const Error&) {
  }
  try {
    (void)records_from_text(std::string(text_of(bytes)), "fuzz");
  } catch (const Error&) {
  }
}

void read_config(Bytes bytes) {
  try {
    (void)parse_model_config(std::string(text_of(bytes)), "fuzz");
  } catch (const Error&) {
  }
}

void read_tokenizer(Bytes bytes) {
  try {
    const Tokenizer tokenizer = Tokenizer::parse(text_of(bytes), "fuzz");
    (void)tokenizer.decode(tokenizer.encode("Say 12+7 = 19, d\xc3\xa9j\xc3\xa0 vu <|im_end|>\n\n  x"));
  } catch (const Error&) {
  }
}

void read_jsonl(Bytes bytes) {
  std::istringstream in{std::string(text_of(bytes))};
  const RowSlice slice = bytes.empty() || bytes[0] % 4 != 0 ? RowSlice{} : RowSlice{-2, {}};
  JsonlReader reader(in, "fuzz", slice);
  for (;;) {
    try {
      if (!reader.next()) return;
      (void)parse_json_line(reader.text(), reader.name(), reader.line());
    } catch (const Error&) {
    }
  }
}

void read_prompts(Bytes bytes) {
  put_file("prompts.jsonl", bytes);
  for (const bool chat : {false, true}) {
    try {
      PromptSet set({.path = scratch_folder() + "/prompts.jsonl",
                     .input_key = "prompt",
                     .label_key = chat ? "label" : "",
                     .apply_chat_template = chat,
                     .skip_bad = chat});
      set.bad().report("fuzz", set.size());
      if (set.size() < 1) wrong("a set without prompts");
    } catch (const Error&) {
    }
  }
}

void read_trajectory(Bytes bytes) {
  put_file("trajectories.jsonl", bytes);
  try {
    for (const Trajectory& t : read_trajectories(scratch_folder() + "/trajectories.jsonl")) {
      const Trajectory again = parse_trajectory(trajectory_row(t), "fuzz");
      if (again.tokens != t.tokens || again.loss_mask != t.loss_mask || again.reward != t.reward)
        wrong("a trajectory that reads back as another");
    }
  } catch (const Error&) {
  }
}

}  // namespace furlong::fuzz
