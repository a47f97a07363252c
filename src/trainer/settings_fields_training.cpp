// Rows of the table of settings: what and how a run learns, its ranks, and the settings of the tools.
#include "trainer/settings_row.h"

namespace furlong::setting {
namespace {

void add_mtp(Table& t) {
  const auto mtp = [](auto... a) { return Row(Topic::mtp, a...); };
  t.insert(
      t.end(),
      {
          mtp("enable_mtp_training", &Settings::enable_mtp_training, T | S,
              "train the MTP head on the sampled tokens, apart from the model")
              .differs("the mask follows the target token (miles is off by one); without the flag MTP weights stay as "
                       "they are"),
          mtp("mtp_num_layers", &Settings::mtp_num_layers, T | S | V,
              "MTP layers; the checkpoint's config.json decides. convert: 0 leaves the MTP head out of torch_dist")
              .from(0)
              .to(1)
              .differs("optional"),
          mtp("mtp_loss_scaling_factor", &Settings::mtp_loss_scaling_factor, T | S, "weight of the MTP loss")
              .from(0)
              .to(1e6)
              .differs("a mean over the whole step's targets; miles averages per micro-batch and rank"),
      });
}

void add_optimizer(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::optimizer, a...); };
  t.insert(t.end(),
           {
               row("optimizer", &Settings::optimizer, T | S, "AdamW: decoupled weight decay")
                   .choices({"adam"})
                   .differs("sgd and muon are not offered"),
               row("lr", &Settings::lr, T | S, "learning rate").from(0).to(1e3),
               row("min_lr", &Settings::min_lr, T | S, "learning rate at the end of a decay").from(0).to(1e3),
               row("lr_decay_style", &Settings::lr_decay_style, T | S, "course of the learning rate after the warm-up")
                   .choices({"constant", "linear", "cosine", "inverse-square-root", "WSD"})
                   .differs("the default is constant, not linear; inverse-square-root needs a warm-up"),
               row("lr_decay_iters", &Settings::lr_decay_iters, T | S,
                   "step at which the rate has come down to --min-lr, warm-up counted in; default: the run's last")
                   .unit("optimizer steps")
                   .from(1),
               row("lr_wsd_decay_style", &Settings::lr_wsd_decay_style, T | S, "course of a WSD schedule's last steps")
                   .choices({"exponential", "linear", "cosine", "minus_sqrt"}),
               row("lr_wsd_decay_iters", &Settings::lr_wsd_decay_iters, T | S,
                   "the last of --lr-decay-iters, in which a WSD schedule comes down")
                   .unit("optimizer steps")
                   .from(1),
               row("lr_warmup_iters", &Settings::lr_warmup_iters, T | S, "steps of linear warm-up")
                   .unit("optimizer steps")
                   .from(0),
               row("lr_warmup_fraction", &Settings::lr_warmup_fraction, T | S,
                   "in place of --lr-warmup-iters: the part of --lr-decay-iters that is warm-up")
                   .from(0)
                   .below(1),
               row("lr_warmup_init", &Settings::lr_warmup_init, T | S, "learning rate at the start of the warm-up")
                   .from(0)
                   .to(1e3),
               row("weight_decay", &Settings::weight_decay, T | S, "decay of tensors of two or more dimensions")
                   .from(0)
                   .to(1e3),
               row("adam_beta1", &Settings::adam_beta1, T | S, "decay of the first moment").from(0).below(1),
               row("adam_beta2", &Settings::adam_beta2, T | S, "decay of the second moment").from(0).below(1),
               row("adam_eps", &Settings::adam_eps, T | S, "added to the root of the second moment").above(0).to(1),
               row("clip_grad", &Settings::clip_grad, T | S, "largest norm of the whole gradient; 0: no clipping")
                   .from(0)
                   .to(1e12),
               row("optimizer_cpu_offload", &Settings::optimizer_cpu_offload, T | S,
                   "with --device cuda: masters, moments and update in page-locked host memory, to the same bits"),
               row("optimizer_offload_fraction", &Settings::optimizer_offload_fraction, T | S,
                   "part of all numbers whose tensors are offloaded, in order")
                   .from(0)
                   .to(1),
               row("overlap_cpu_optimizer_d2h_h2d", &Settings::overlap_cpu_optimizer_d2h_h2d, T | S,
                   "send gradients to the host layer by layer during the last backward"),
               row("use_precision_aware_optimizer", &Settings::use_precision_aware_optimizer, T | S,
                   "let the next four say what the optimizer keeps in which dtype"),
               row("main_grads_dtype", &Settings::main_grads_dtype, T | S,
                   "gradients summed over micro-batches; each micro-batch computes its own in fp32")
                   .choices({"fp32", "bf16"}),
               row("main_params_dtype", &Settings::main_params_dtype, T | S,
                   "masters of bf16 weights; bf16: the weights are their own masters")
                   .choices({"fp32", "bf16"})
                   .differs("bf16 in place of fp16"),
           });
  for (const auto& [name, member, help] :
       {std::tuple("exp_avg_dtype", &Settings::exp_avg_dtype, "first moments"),
        std::tuple("exp_avg_sq_dtype", &Settings::exp_avg_sq_dtype, "second moments")}) {
    t.push_back(row(name, member, T | S, help).choices({"fp32", "bf16"}).differs("no fp16 or fp8"));
  }
}

void add_parallel(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::parallel, a...); };
  t.insert(t.end(), {
                        row("nproc", &Settings::nproc, model_commands | V,
                            "processes on this host, which mpirun starts; with mpirun or srun of your own leave it out")
                            .unit("ranks")
                            .from(1)
                            .to(1024)
                            .differs("not in miles"),
                        row("distributed_timeout_minutes", &Settings::distributed_timeout_minutes, model_commands,
                            "how long a rank waits for another before the run ends with that one's name")
                            .unit("minutes")
                            .from(1)
                            .to(1e6)
                            .differs("a rank that dies or hangs is noticed within half a minute in any case"),
                    });
  for (const auto& [name, member, help] : {
           std::tuple("tensor_model_parallel_size", &Settings::tensor_model_parallel_size,
                      "ranks that split a layer's matrices"),
           std::tuple("pipeline_model_parallel_size", &Settings::pipeline_model_parallel_size,
                      "ranks that split the layers"),
           std::tuple("context_parallel_size", &Settings::context_parallel_size, "ranks that split a sequence"),
           std::tuple("expert_model_parallel_size", &Settings::expert_model_parallel_size,
                      "ranks that split the experts"),
           std::tuple("expert_tensor_parallel_size", &Settings::expert_tensor_parallel_size,
                      "ranks that split an expert's matrices"),
       }) {
    t.push_back(row(name, member, T | S, help).unit("ranks").from(1).to(1 << 16));
  }
  t.insert(
      t.end(),
      {
          row("sequence_parallel", &Settings::sequence_parallel, T | S,
              "split activations between tensor parallel ranks")
              .differs("always done where there are any, with or without the flag"),
          row("moe_token_dispatcher_type", &Settings::moe_token_dispatcher_type, T | S,
              "how tokens reach experts on other ranks")
              .choices({"alltoall", "allgather", "flex"})
              .differs(
                  "flex is not DeepEP: every row goes to all ranks of its experts' group, without asking the host; "
                  "allgather is the same"),
      });
}

void add_server(Table& t) {
  const auto row = [](auto... a) { return Row(Topic::serve, a...); };
  t.insert(
      t.end(),
      {
          row("host", &Settings::host, Z, "address to listen on; one beyond this machine needs a key")
              .unit("name or number")
              .differs("not in miles, as the rest of these"),
          row("port", &Settings::port, Z, "port to listen on; 0: any that is free, which is printed").from(0).to(65535),
          row("api_key_file", &Settings::api_key_file, Z,
              "file whose first line is the key that every request must bring")
              .unit("path"),
          row("api_key", &Settings::api_key, Z,
              "the key itself, at least 16 bytes; other users of the machine can read it in the list of processes"),
          row("served_model_name", &Settings::served_model_name, Z,
              "the model's name in the API; default: --hf-checkpoint"),
          row("max_queued_requests", &Settings::max_queued_requests, Z,
              "requests that may wait for the engine; more are answered with status 429")
              .unit("requests")
              .from(1)
              .to(1 << 20),
          row("stuck_seconds", &Settings::stuck_seconds, Z,
              "how long a step may take before /health says that it is stuck")
              .unit("s")
              .above(0)
              .to(1e6),
          row("drain_seconds", &Settings::drain_seconds, Z, "how long requests may go on after SIGTERM or Ctrl-C")
              .unit("s")
              .from(0)
              .to(1e6),
      });
}

void add_tools(Table& t) {
  const auto debug = [](auto... a) { return Row(Topic::debugging, a...); };
  const auto file = [](auto... a) { return Row(Topic::files, a...); };
  const auto gen = [](auto... a) { return Row(Topic::generate, a...); };
  const auto tok = [](auto... a) { return Row(Topic::tokenize, a...); };
  const auto conv = [](auto... a) { return Row(Topic::convert, a...); };
  const auto bench = [](auto... a) { return Row(Topic::bench, a...); };
  t.insert(
      t.end(),
      {
          debug("debug_rollout_only", &Settings::debug_rollout_only, T, "roll out and score, train nothing"),
          debug("debug_train_only", &Settings::debug_train_only, T, "train on a trajectory file, roll out nothing"),
          debug("save_debug_rollout_data", &Settings::save_debug_rollout_data, T,
                "write the trajectories here; {rollout_id} stands for the number")
              .unit("file")
              .differs("jsonl, not a pickle"),
          debug("load_debug_rollout_data", &Settings::load_debug_rollout_data, T,
                "train on these trajectories; implies --debug-train-only")
              .unit("file")
              .differs("jsonl, not a pickle"),
          debug("dump_grads", &Settings::dump_grads, T | S,
                "write each step's gradients, before clipping, as safetensors under the Hugging Face names")
              .unit("folder")
              .differs("not in miles"),
          file("input", &Settings::input, G | L | K | R, "jsonl to read; - is standard input")
              .unit("file")
              .differs("not in miles"),
          file("output", &Settings::output, G | L | K | R, "jsonl to write; - is standard output")
              .unit("file")
              .differs("not in miles"),
          gen("max_new_tokens", &Settings::max_new_tokens, G, "most tokens of a completion").unit("tokens").from(1),
          gen("temperature", &Settings::temperature, G, "0: the likeliest token").from(0).to(100),
          gen("top_p", &Settings::top_p, G, "keep the likeliest tokens of this total probability").above(0).to(1),
          gen("top_k", &Settings::top_k, G, "keep the k likeliest tokens; -1: all").from(-1),
          gen("ignore_eos", &Settings::ignore_eos, T | E | G, "go on after the checkpoint's stop tokens"),
          tok("tokenizer", &Settings::tokenizer, K | I,
              "tokenizer.json or its folder; init: default is one token a byte")
              .unit("path"),
          tok("decode", &Settings::decode, K, "ids to text"),
          tok("chat", &Settings::chat, K, "messages to the text of a prompt"),
          conv("preset", &Settings::preset, I | X | B,
               "shape of the new checkpoint; inspect: the model, where no checkpoint is there; bench: default is mini")
              .choices({"tiny", "tiny-dense", "tiny-tied", "small", "0.8b", "4b", "9b", "27b", "35b-a3b", "80b-a3b",
                        "mini", "slice"}),
          conv("num_layers", &Settings::num_layers, I | B, "layers, in place of the preset's")
              .unit("layers")
              .from(1)
              .to(1024),
          conv("config_only", &Settings::config_only, I, "no weights: for --random-init"),
          conv("from", &Settings::from, V,
               "layout of the checkpoint to read: hf (--hf-checkpoint), or Megatron's torch_dist (--load; config, "
               "tokenizer, packing and dtypes are those of --hf-checkpoint)")
              .choices({"hf", "torch_dist"}),
          conv("to", &Settings::to, V, "layout to write").choices({"hf", "torch_dist"}),
          conv("convert_workers", &Settings::convert_workers, V,
               "threads that write a torch_dist checkpoint together, each its own files")
              .from(1)
              .to(256),
          conv("expert_packing", &Settings::expert_packing, I | V,
               "experts fused in one tensor or one by one; source: as in the source (init: as released)")
              .choices({"source", "fused", "per-expert"}),
          bench("bench_figures", &Settings::bench_figures, B, "what to measure: train, decode, prefill")
              .choices({"train", "decode", "prefill"})
              .differs("not in miles"),
          bench("bench_clock", &Settings::bench_clock, B,
                "seconds on the wall, or of the processor (for a machine that others use; with --threads 1)")
              .choices({"wall", "processor"})
              .differs("not in miles"),
      });
}

}  // namespace

void add_training(Table& t) {
  add_algorithm(t);
  add_mtp(t);
  add_optimizer(t);
  add_parallel(t);
  add_tools(t);
  add_server(t);
}

}  // namespace furlong::setting
