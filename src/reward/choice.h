// Multiple choice (GPQA): the letter that a response settles on, or the text of the choice.
#pragma once
#include <string>
#include <string_view>

#include "reward/scorer.h"

namespace furlong::grader {

// 1 or 0. The right letter is the label where it is one of the valid letters or an index into them, else `metadata`'s
// (a JSON object) correct_letter, else that of the choice whose text the label is. A response's letter stands in what
// follows its last </think>: after "answer", "option" or "choice", or before "is correct", else the last capital that
// stands alone. Where either is unknown, the response is right if it contains the text of the right choice, of
// metadata's correct_answer or answer_text, or of the label, letters and digits alone compared. metadata's choices (a
// list, or an object's values) and valid_letters say how many there are; by default A to H.
double grade_choice(std::string_view response, const Label& label, std::string_view metadata);

}  // namespace furlong::grader
