// init and convert: checkpoints out of nothing, and from one packing or dtype to another.
#include <filesystem>
#include <numeric>

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"
#include "base/text.h"
#include "checkpoint/hf.h"
#include "checkpoint/init.h"
#include "checkpoint/stored.h"
#include "checkpoint/torch_dist.h"
#include "furlong/commands.h"
#include "furlong/presets.h"
#include "parallel/agree.h"
#include "tokenizer/tokenizer.h"

namespace furlong {
namespace {

constexpr double initializer_range = 0.02;

HfDtype parse_hf_dtype(const std::string& name) {
  if (name == "bf16") return HfDtype::bf16;
  if (name == "fp32") return HfDtype::f32;
  return HfDtype::source;
}

ExpertPacking parse_packing(const std::string& name) {
  if (name == "fused") return ExpertPacking::fused;
  if (name == "per-expert") return ExpertPacking::per_expert;
  return ExpertPacking::source;
}

// The preset's tokenizer gives way to the one at `path`.
void take_tokenizer(Preset& preset, const std::string& path) {
  const Tokenizer tokenizer = Tokenizer::load(path);
  if (tokenizer.vocab_size() > preset.config.vocab_size) {
    fail(Exit::usage, "--tokenizer {}: {} tokens, but this preset's model has {}", path, tokenizer.vocab_size(),
         preset.config.vocab_size);
  }
  preset.files.clear();
  if (!std::filesystem::is_directory(path)) {
    preset.files.emplace_back("tokenizer.json", read_file(path));
    return;
  }
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja",
                           "vocab.json", "merges.txt"}) {
    const std::string file = path + "/" + name;
    if (std::filesystem::exists(file)) preset.files.emplace_back(name, read_file(file));
  }
}

}  // namespace

int run_init(const Settings& settings) {
  if (settings.save.empty()) fail(Exit::usage, "--save DIR is needed: where the new checkpoint goes");
  Preset preset = make_preset(settings.preset.empty() ? "tiny" : settings.preset, settings.num_layers);
  if (!settings.tokenizer.empty()) take_tokenizer(preset, settings.tokenizer);
  const DType dtype = settings.dtype == "bf16" ? DType::bf16 : DType::f32;
  if (settings.config_only) {
    make_directories(settings.save);
    write_file_atomic(settings.save + "/config.json", config_json(preset.config));
    for (const auto& [name, text] : preset.files) write_file_atomic(settings.save + "/" + name, text);
    log::info("{}: {} layers, no weights", settings.save, preset.config.num_layers);
    return 0;
  }
  ThreadPool threads(static_cast<int>(settings.threads));
  Weights weights(preset.config, dtype);
  init_weights(weights, preset.config, static_cast<uint64_t>(settings.seed), initializer_range, &threads);
  save_hf({.source_dir = {},
           .output_dir = settings.save,
           .config_text = config_json(preset.config),
           .dtype = parse_hf_dtype(settings.save_hf_dtype)},
          weights);
  for (const auto& [name, text] : preset.files) write_file_atomic(settings.save + "/" + name, text);
  int64_t parameters = 0;
  for (const auto& spec : weights.specs()) parameters += spec.numel();
  log::info("{}: {} layers, {} parameters, {}", settings.save, preset.config.num_layers, parameters,
            human_bytes(weights.bytes()));
  return 0;
}

namespace {

ModelConfig config_to_convert(const Settings& settings) {
  ModelConfig config = read_model_config(settings.hf_checkpoint);
  if (!settings.mtp_num_layers) return config;
  if (*settings.mtp_num_layers > config.mtp_num_layers) {
    fail(Exit::usage, "--mtp-num-layers {}: {}/config.json has {} (mtp_num_hidden_layers)", *settings.mtp_num_layers,
         settings.hf_checkpoint, config.mtp_num_layers);
  }
  config.mtp_num_layers = *settings.mtp_num_layers;
  return config;
}

SaveHfOptions save_options(const Settings& settings) {
  return {.source_dir = settings.hf_checkpoint,
          .output_dir = settings.save,
          .config_text = {},
          .dtype = parse_hf_dtype(settings.save_hf_dtype),
          .experts = parse_packing(settings.expert_packing)};
}

}  // namespace

int run_convert(const Settings& settings, World& world) {
  const ModelConfig config = config_to_convert(settings);
  std::vector<int> all(static_cast<size_t>(world.size()));
  std::iota(all.begin(), all.end(), 0);
  const auto ranks = world.group(all);
  if (world.size() > 1 && settings.convert_workers > 1) {
    fail(Exit::usage, "--convert-workers {} with {} processes: each process is one worker; leave one of the two out",
         settings.convert_workers, world.size());
  }
  if (settings.to == "torch_dist") {
    ToTorchDistOptions options;
    options.output_dir = settings.save;
    options.dtype = parse_hf_dtype(settings.save_hf_dtype);
    if (world.size() == 1) {
      write_torch_dist(stored_hf(settings.hf_checkpoint, config), config, options,
                       static_cast<int>(settings.convert_workers));
    } else {
      all_or_none(*ranks, [&] {
        write_torch_dist_part(stored_hf(settings.hf_checkpoint, config), config, options, {world.rank(), world.size()});
      });
    }
  } else if (settings.from == "torch_dist") {
    save_hf(save_options(settings), stored_torch_dist(settings.load, config), read_model_config(settings.hf_checkpoint),
            *ranks);
  } else {
    save_hf(save_options(settings), stored_hf(settings.hf_checkpoint, config), config, *ranks);
  }
  if (world.rank() == 0) log::info("{} written", settings.save);
  return 0;
}

}  // namespace furlong
