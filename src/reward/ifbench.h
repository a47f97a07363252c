// --rm-type ifbench: 1 where a response follows every instruction of its row, else 0 (the strict verdict).
#pragma once
#include <memory>
#include <string>

#include "reward/scorer.h"

namespace furlong::grader::ifbench {

// `nltk_data`: the folder that NLTK's downloader fills; "": none, and instructions about sentences, stop words or verbs
// are refused. Throws Error(Exit::input) where what it holds cannot be read.
std::unique_ptr<Scorer> make_ifbench(const std::string& nltk_data);

}  // namespace furlong::grader::ifbench
