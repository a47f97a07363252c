// The commands, one function each. Settings are checked and complete. The return value is the exit code; what goes
// wrong by the user's making is thrown as Error and caught in main.
#pragma once
#include "parallel/group.h"
#include "trainer/settings.h"

namespace furlong {

// `world`: the ranks of the run, this process among them.
int run_train(const Settings& settings, World& world);
int run_sft(const Settings& settings, World& world);
int run_eval(const Settings& settings, World& world);
int run_generate(const Settings& settings, World& world);
int run_serve(const Settings& settings);
int run_score(const Settings& settings, World& world);
int run_tokenize(const Settings& settings);
int run_grade(const Settings& settings);
int run_init(const Settings& settings);
int run_convert(const Settings& settings, World& world);
int run_inspect(const Settings& settings);
int run_bench(const Settings& settings);

}  // namespace furlong
