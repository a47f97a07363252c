// The commands, one function each. Settings are checked and complete. The return value is the exit code; what goes
// wrong by the user's making is thrown as Error and caught in main.
#pragma once
#include "trainer/settings.h"

namespace furlong {

int run_train(const Settings& settings);
int run_sft(const Settings& settings);
int run_eval(const Settings& settings);
int run_generate(const Settings& settings);
int run_score(const Settings& settings);
int run_tokenize(const Settings& settings);
int run_grade(const Settings& settings);
int run_init(const Settings& settings);
int run_convert(const Settings& settings);
int run_inspect(const Settings& settings);

}  // namespace furlong
