// What to evaluate on: sets of prompts, each with settings of its own.
#pragma once
#include <string>
#include <vector>

#include "trainer/settings.h"

namespace furlong {

// One set, with every setting that it does not give taken from the file's defaults, then --eval-*, then --rollout-*.
struct EvalSpec {
  std::string name, path;
  std::string input_key, label_key, tool_key, metadata_key;
  std::string metadata_overrides = "{}";  // a JSON object that is merged into every row's metadata; holds rm_type
  int64_t samples = 1;
  double temperature = 1, top_p = 1;
  int64_t top_k = -1;
  int64_t max_response = 0;  // tokens
  Texts stop;
  Integers stop_token_ids;
};

// The sets of --eval-prompt-data or --eval-config. Throws Error(Exit::input) or Error(Exit::usage) naming the file and
// the key: unknown keys, wrong types, a set without name or path, two of one name, no sets.
std::vector<EvalSpec> eval_specs(const Settings& settings);

}  // namespace furlong
