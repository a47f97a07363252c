// Overlap of words between an answer and its label (the F1 of SQuAD's evaluation).
#pragma once
#include <string_view>

namespace furlong::grader {

// 2pr / (p + r) of precision and recall over the words of both texts, counted as often as they occur, after lower case
// and without ASCII punctuation and the articles a, an and the. Where one text is yes, no or noanswer and the other is
// not the same: 0.
double word_f1(std::string_view answer, std::string_view truth);

}  // namespace furlong::grader
