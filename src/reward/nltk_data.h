// What NLTK's downloader has put into a folder (its "nltk_data"), for rules that need its sentences, stop words or
// parts of speech: python -m nltk.downloader punkt_tab stopwords averaged_perceptron_tagger_eng
#pragma once
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "reward/punkt.h"

namespace furlong::grader::ifbench {

// The averaged perceptron of NLTK's pos_tag (Collins 2002), as far as a text's first word needs it.
struct TaggerModel {
  std::unordered_map<std::string, std::vector<std::pair<int, double>>> weights;  // of a feature: tag, weight
  std::unordered_map<std::string, std::string> known;                            // words that have one tag only
  std::vector<std::string> tags;                                                 // in alphabetical order
};

// The Penn Treebank tag of the first word; `words` is not empty.
std::string first_tag(const std::vector<Text>& words, const TaggerModel& model);

// Parts are empty that the folder lacks.
struct NltkData {
  std::optional<PunktModel> punkt;                         // tokenizers/punkt_tab/english
  std::optional<std::unordered_set<Text>> stop_words;      // corpora/stopwords/english
  std::optional<std::unordered_map<Text, int>> syllables;  // syllapy/data.csv, of the package syllapy: word,count
  std::optional<TaggerModel> tagger;                       // taggers/averaged_perceptron_tagger_eng
};

// Throws Error(Exit::input) for a folder that is none, a file that cannot be read, a line that is wrong.
NltkData read_nltk_data(const std::string& folder);

}  // namespace furlong::grader::ifbench
