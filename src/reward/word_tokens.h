// Words of English as NLTK's word_tokenize cuts them: the conventions of the Penn Treebank (contractions in two,
// punctuation by itself, "``" and "''" for quotes), on one sentence at a time.
#pragma once
#include <vector>

#include "reward/unicode_text.h"

namespace furlong::grader::ifbench {

// Time grows with the sentence's length.
std::vector<Text> treebank_tokens(View sentence);

}  // namespace furlong::grader::ifbench
