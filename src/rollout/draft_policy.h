// Whether drafts pay: at some numbers of sequences a step that verifies them takes longer than they save. Tokens are
// the same either way.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace furlong {

// Seconds of a step by the number of sequences that decode; as measured, one entry per number, rising.
struct StepCosts {
  std::vector<int64_t> sequences;
  std::vector<double> plain;    // one row each; the head reads it later
  std::vector<double> drafted;  // drafts are verified and new ones made
  bool defined() const { return !sequences.empty(); }
  // drafted over plain: the tokens that a verification must accept on average. Linear in between, constant beyond.
  double ratio(int64_t n) const;
};

class DraftPolicy {
 public:
  // Without costs drafts always pay. drafts: of a verification.
  explicit DraftPolicy(int64_t drafts = 0, StepCosts costs = {});

  // Asked once a step: whether the next one, of so many sequences, should have drafts. Where they do not pay, they are
  // tried for a few steps now and then, since acceptance changes as the head learns.
  bool pays(int64_t sequences);
  // What a step's verifications have emitted.
  void record(int64_t verifications, int64_t emitted);

  const StepCosts& costs() const { return costs_; }
  // Of the last few thousand verifications.
  double accept_length() const { return emitted_ / verifications_; }
  // A line for people, empty without costs.
  std::string text() const;

 private:
  int64_t drafts_;
  StepCosts costs_;
  double verifications_, emitted_;
  int64_t left_out_ = 0;  // steps since drafts paid or were last tried
  int64_t pause_;         // of those, before they are tried again
};

}  // namespace furlong
