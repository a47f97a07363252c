#include "reward/nltk_data.h"

#include <algorithm>
#include <charconv>
#include <filesystem>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "reward/text.h"

namespace furlong::grader::ifbench {
namespace {

namespace fs = std::filesystem;

// The word that stands for another in features.
Text normalized(View word) {
  if (word.size() > 1 && word[0] != U'-' && contains(word, U"-")) return U"!HYPHEN";
  const bool digits = std::all_of(word.begin(), word.end(), is_digit);
  if (digits && word.size() == 4) return U"!YEAR";
  if (is_digit(word[0])) return U"!DIGITS";
  return lower(word);
}

std::string suffix(View word) { return encode(word.substr(word.size() - std::min<std::size_t>(word.size(), 3))); }

TaggerModel read_tagger(const std::string& prefix) {
  TaggerModel model;
  const auto wrong = [](const std::string& path) { fail(Exit::input, "{}: not what NLTK's tagger writes", path); };
  std::string path = prefix + "classes.json";
  const Json tags = read_json_file(path);
  if (!tags.is_array() || tags.empty()) wrong(path);
  for (const Json& tag : tags) {
    if (!tag.is_string()) wrong(path);
    model.tags.push_back(tag);
  }
  std::sort(model.tags.begin(), model.tags.end());
  path = prefix + "tagdict.json";
  const Json known = read_json_file(path);
  if (!known.is_object()) wrong(path);
  for (const auto& [word, tag] : known.items()) {
    if (!tag.is_string()) wrong(path);
    model.known[word] = tag;
  }
  path = prefix + "weights.json";
  const Json weights = read_json_file(path);
  if (!weights.is_object()) wrong(path);
  for (const auto& [feature, of_tags] : weights.items()) {
    if (!of_tags.is_object()) wrong(path);
    auto& list = model.weights[feature];
    for (const auto& [tag, weight] : of_tags.items()) {
      const auto at = std::lower_bound(model.tags.begin(), model.tags.end(), tag);
      if (!weight.is_number() || at == model.tags.end() || *at != tag) wrong(path);
      list.emplace_back(static_cast<int>(at - model.tags.begin()), weight.get<double>());
    }
  }
  return model;
}

}  // namespace

std::string first_tag(const std::vector<Text>& words, const TaggerModel& model) {
  const std::string word = encode(words[0]);
  if (const auto known = model.known.find(word); known != model.known.end()) return known->second;
  const auto context = [&words](std::size_t i) {
    return i < words.size() ? normalized(words[i]) : i == words.size() ? Text(U"-END-") : Text(U"-END2-");
  };
  const std::string here = encode(context(0)), next = encode(context(1));
  // In the order in which the reference adds them up.
  const std::string features[] = {"bias",
                                  "i suffix " + suffix(words[0]),
                                  "i pref1 " + encode(View(words[0]).substr(0, 1)),
                                  "i-1 tag -START-",
                                  "i-2 tag -START2-",
                                  "i tag+i-2 tag -START- -START2-",
                                  "i word " + here,
                                  "i-1 tag+i word -START- " + here,
                                  "i-1 word -START2-",
                                  "i-1 suffix T2-",
                                  "i-2 word -START-",
                                  "i+1 word " + next,
                                  "i+1 suffix " + suffix(context(1)),
                                  "i+2 word " + encode(context(2))};
  std::vector<double> scores(model.tags.size());
  for (const std::string& feature : features) {
    const auto found = model.weights.find(feature);
    if (found == model.weights.end()) continue;
    for (const auto& [tag, weight] : found->second) scores[static_cast<std::size_t>(tag)] += weight;
  }
  // Of equals the last in the alphabet.
  std::size_t best = 0;
  for (std::size_t i = 1; i < scores.size(); ++i) {
    if (scores[i] >= scores[best]) best = i;
  }
  return model.tags[best];
}

NltkData read_nltk_data(const std::string& folder) {
  if (!fs::is_directory(folder))
    fail(Exit::input, "{}: there is no such folder; NLTK's downloader makes one (python -m nltk.downloader)", folder);
  NltkData data;
  const std::string punkt = folder + "/tokenizers/punkt_tab/english";
  if (fs::is_directory(punkt)) data.punkt = read_punkt_model(punkt);
  const std::string words = folder + "/corpora/stopwords/english";
  if (fs::exists(words)) {
    data.stop_words.emplace();
    const std::string text = read_file(words);
    for (const std::string_view line : split(text, "\n")) {
      if (const auto word = strip(line); !word.empty()) data.stop_words->insert(decode(word));
    }
  }
  if (const std::string path = folder + "/syllapy/data.csv"; fs::exists(path)) {
    data.syllables.emplace();
    const std::string text = read_file(path);
    std::size_t number = 0;
    for (const std::string_view row : split(text, "\n")) {
      ++number;
      const std::string_view line = strip(row);
      if (line.empty()) continue;
      const std::size_t comma = std::min(line.find(','), line.size());
      int count = 0;
      const char* const end = line.data() + line.size();
      const auto read = std::from_chars(std::min(line.data() + comma + 1, end), end, count);
      if (comma == 0 || read.ec != std::errc() || read.ptr != end || count < 0 || count > 100)
        fail(Exit::input, "{}:{}: a word, a comma and its number of syllables are wanted", path, number);
      (*data.syllables)[decode(line.substr(0, comma))] = count;
    }
  }
  const std::string tagger = folder + "/taggers/averaged_perceptron_tagger_eng";
  if (fs::is_directory(tagger)) data.tagger = read_tagger(tagger + "/averaged_perceptron_tagger_eng.");
  return data;
}

}  // namespace furlong::grader::ifbench
