// Every op with operands of many shapes. Where an op has a backward, one case runs both.
#pragma once
#include "support.h"

namespace furlong::test {

// Ops on rows: norms, rope, swiglu, embedding, log-probs, elementwise ones, AdamW.
std::vector<OpCase> row_cases();
// Matrix products and the movement of rows to experts.
std::vector<OpCase> expert_cases();
// Ops along sequences: attention, convolution, delta rule.
std::vector<OpCase> sequence_cases();

std::vector<OpCase> all_cases();

// An op that stands for several, and these one after the other over the same operands: no bit may differ.
struct Fused {
  OpCase together;
  decltype(OpCase::run) apart;
};
std::vector<Fused> fused_cases();

}  // namespace furlong::test
