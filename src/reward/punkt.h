// Sentences of English as NLTK's sent_tokenize cuts them: the method of Kiss and Strunk, "Unsupervised Multilingual
// Sentence Boundary Detection" (2006), with the four tables of NLTK's punkt_tab model.
#pragma once
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "reward/unicode_text.h"

namespace furlong::grader::ifbench {

// Where a word was seen in the training text, with which case of its first letter (bits of ortho_context.tab).
enum WordContext : unsigned {
  begins_upper = 1 << 1,
  within_upper = 1 << 2,
  unknown_upper = 1 << 3,
  begins_lower = 1 << 4,
  within_lower = 1 << 5,
  unknown_lower = 1 << 6,
};

struct PunktModel {
  std::unordered_set<Text> abbreviations;      // in lower case, without their last period
  std::unordered_set<Text> sentence_starters;  // words that often begin a sentence, in lower case
  std::unordered_set<Text> collocations;       // word, tab, word: no sentence ends between them
  std::unordered_map<Text, unsigned> contexts;
};

// Reads abbrev_types.txt, sent_starters.txt, collocations.tab and ortho_context.tab of a folder. Throws
// Error(Exit::input) naming the file and line that is wrong.
PunktModel read_punkt_model(const std::string& folder);

// The sentences of `text` in their order, views of it; none for a blank text. Time grows with the text's length.
std::vector<View> sentences_of(View text, const PunktModel& model);

}  // namespace furlong::grader::ifbench
