// Small runs of the whole trainer on a model that answers by itself now and then.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "checkpoint/hf.h"
#include "checkpoint/safetensors.h"
#include "trainer/trainer.h"

namespace furlong {

namespace fs = std::filesystem;

inline const std::string tiny_folder = FURLONG_TEST_DATA "/tiny";

// A folder of its own, removed at the end.
class Folder {
 public:
  Folder() {
    std::string name = (fs::temp_directory_path() / "furlong-trainer-XXXXXX").string();
    path_ = mkdtemp(name.data()) != nullptr ? name : "";
  }
  ~Folder() { fs::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

inline void scale(const Tensor& t, float factor) {
  float* x = t.as<float>();
  for (int64_t i = 0; i < t.numel(); i++) x[i] *= factor;
}

// The tiny checkpoint made to write "</think>\boxed{D}<|im_end|>" most of the time, D one of 2 to 5: the next token
// depends on the current one, and the layers add a little of everything.
inline Weights answering_weights(const ModelConfig& config) {
  Weights w = load_hf(tiny_folder, config, DType::f32);
  constexpr float quiet = 0.05f;
  const auto hush = [](LayerWeights& layer) {
    scale(layer.full_attention ? layer.attention.o : layer.delta.out, quiet);
    scale(layer.moe.down, quiet);
    scale(layer.moe.shared_down, quiet);
  };
  for (auto& layer : w.layers) hush(layer);
  scale(w.final_norm, 0);
  scale(w.lm_head, quiet);
  const int64_t h = config.hidden_size;
  constexpr float strength = 13;
  const auto follow = [&](int32_t from, int32_t to) {
    const float* x = w.embed.at(from).as<float>();
    float squares = 0;
    for (int64_t i = 0; i < h; i++) squares += x[i] * x[i];
    const float r = strength / std::sqrt(squares * static_cast<float>(h));
    for (int64_t i = 0; i < h; i++) w.lm_head.at(to).as<float>()[i] += r * x[i];
  };
  // "\n" ends the prompt; then </think> \ b o x ed {, a digit, } and the end of the turn.
  const std::vector<int32_t> before = {198, 500, 59, 65, 78, 87, 293, 90};
  for (size_t i = 0; i + 1 < before.size(); i++) follow(before[i], before[i + 1]);
  for (int32_t digit = 17; digit <= 20; digit++) {
    follow(90, digit);
    follow(digit, 92);
  }
  follow(92, 498);
  // The MTP head sees the next token's embedding, so it drafts well.
  MtpWeights& mtp = w.mtp.front();
  hush(mtp.layer);
  scale(mtp.fc, quiet);
  for (const Tensor& norm : {mtp.norm_embedding, mtp.norm_hidden, mtp.norm}) scale(norm, 0);
  for (int64_t i = 0; i < h; i++) mtp.fc.at(i).as<float>()[i] += 1;
  return w;
}

// The model and the prompts of these tests, made once.
struct Playground {
  Folder folder;
  std::string model = folder / "model", prompts = folder / "prompts.jsonl", chats = folder / "chats.jsonl";

  Playground() {
    log::set_level(log::Level::error);
    const ModelConfig config = read_model_config(tiny_folder);
    save_hf({.source_dir = tiny_folder, .output_dir = model, .config_text = {}, .dtype = HfDtype::f32},
            answering_weights(config));
    std::ofstream p(prompts), c(chats);
    for (int a = 1; a <= 3; a++) {
      for (int b = 1; b <= 2; b++) {
        p << fmt::format("{{\"prompt\":[{{\"role\":\"user\",\"content\":\"What is {} + {}?\"}}],\"label\":\"{}\"}}\n",
                         a, b, a + b);
        c << fmt::format(
            "{{\"prompt\":[{{\"role\":\"user\",\"content\":\"What is {} + {}?\"}},"
            "{{\"role\":\"assistant\",\"content\":\"It is {}.\"}}]}}\n",
            a, b, a + b);
      }
    }
  }
};

inline const Playground& playground() {
  static const Playground p;
  return p;
}

// Two prompts of four samples a rollout, EAGLE drafts and MTP training.
inline Settings small_run(const std::string& run_dir, int64_t rollouts) {
  Settings s;
  s.hf_checkpoint = playground().model;
  s.prompt_data = playground().prompts;
  s.input_key = "prompt";
  s.label_key = "label";
  s.chat_template = "qwen3.5";
  s.rm_type = "deepscaler";
  s.rollout_shuffle = true;
  s.num_rollout = rollouts;
  s.rollout_batch_size = 4;
  s.n_samples_per_prompt = 4;
  s.rollout_max_response_len = 14;
  s.rollout_speculative_algorithm = "EAGLE";
  s.enable_mtp_training = true;
  s.mtp_num_layers = 1;
  s.use_dynamic_batch_size = true;
  s.max_tokens_per_gpu = 256;
  s.balance_data = true;
  s.eps_clip_high = 0.28;
  s.lr = 1e-3;
  s.weight_decay = 0.1;
  s.threads = 1;
  s.run_dir = run_dir;
  return s;
}

inline void run(Settings s) {
  validate(s, Command::train);
  train(s, false);
}

// The message of the Error that the run ends with.
inline std::string refusal(Exit code, const Settings& s) {
  try {
    run(s);
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), static_cast<int>(code)) << e.what();
    return e.what();
  }
  ADD_FAILURE() << "the run was not refused";
  return "";
}

using Row = std::map<std::string, double>;

// metrics.jsonl; what depends on the clock is left out unless asked for. A null is read as NaN.
inline std::vector<Row> metrics_of(const std::string& run_dir, bool perf = false) {
  std::vector<Row> rows;
  std::ifstream in(run_dir + "/metrics.jsonl");
  for (std::string line; std::getline(in, line);) {
    Row row;
    const Json json = parse_json(line, "metrics");
    for (const auto& [key, value] : json.items()) {
      if (perf || !key.starts_with("perf/")) row[key] = value.is_null() ? std::nan("") : value.get<double>();
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

inline double figure(const std::vector<Row>& rows, size_t step, const std::string& name) {
  EXPECT_LT(step, rows.size());
  if (step >= rows.size()) return std::nan("");
  const auto found = rows[step].find(name);
  EXPECT_NE(found, rows[step].end()) << name << " in step " << step;
  return found == rows[step].end() ? std::nan("") : found->second;
}

// Every file of a folder that ends so, by name.
inline std::map<std::string, std::string> files_of(const std::string& folder, const std::string& ending) {
  std::map<std::string, std::string> out;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(ending)) out[name] = read_file(entry.path().string());
  }
  EXPECT_FALSE(out.empty()) << folder;
  return out;
}

inline bool same_files(const std::string& a, const std::string& b, const std::string& ending = ".safetensors") {
  return files_of(a, ending) == files_of(b, ending);
}

inline std::vector<float> floats_of(const std::string& bytes) {
  std::vector<float> out(bytes.size() / sizeof(float));
  std::memcpy(out.data(), bytes.data(), out.size() * sizeof(float));
  return out;
}

// The bytes of each tensor of a checkpoint folder whose name begins (or does not begin) with "mtp.".
inline std::map<std::string, std::string> tensors_of(const std::string& folder, bool mtp) {
  std::map<std::string, std::string> out;
  const SafetensorsDirectory directory(folder);
  for (const auto& file : directory.files()) {
    for (const auto& entry : file.entries()) {
      if (entry.name.starts_with("mtp.") != mtp) continue;
      out[entry.name] = {reinterpret_cast<const char*>(entry.bytes.data()), entry.bytes.size()};
    }
  }
  EXPECT_FALSE(out.empty()) << folder;
  return out;
}

}  // namespace furlong
