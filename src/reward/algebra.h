// Exact algebra on expressions in letters, pi, roots and powers, kept in a canonical form in which equal expressions of
// the common kinds (rational functions, sums of roots of rationals) have a difference that is zero term by term.
// Everything spends from a Budget and throws Undecided beyond it, and for what this algebra does not know.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "reward/bigint.h"

namespace furlong::grader {

// A small fraction, the exponent of a power.
struct Exponent {
  std::int64_t numerator = 0, denominator = 1;  // lowest terms, denominator > 0
  bool operator==(const Exponent&) const = default;
  auto operator<=>(const Exponent&) const = default;  // an order for maps, not by value
  bool is_integer() const { return denominator == 1; }
};

// A coefficient: exact, or a double once a decimal number took part, as in the reference's arithmetic. A decimal of
// more than 15 digits is `wide`: exact, and taken with doubles exactly.
struct Coefficient {
  Rational exact;
  double rounded = 0;
  bool is_rounded = false;
  bool is_wide = false;
  bool is_zero() const { return is_rounded ? rounded == 0 : exact.is_zero(); }
};

using AtomId = std::uint32_t;
using Monomial = std::vector<std::pair<AtomId, Exponent>>;  // by atom; exponents not zero
using Sum = std::map<Monomial, Coefficient>;                // coefficients not zero

// numerator / denominator; the denominator is not zero, and 1 where it would have a single term.
struct Fraction {
  Sum numerator, denominator;
};

class Algebra {
 public:
  explicit Algebra(Budget& budget) : budget_(budget) {}

  Fraction number(const Rational& value);
  Fraction decimal(double value);
  Fraction wide_decimal(const Rational& value);
  Fraction letter(const std::string& name);
  Fraction pi();
  Fraction imaginary_unit();

  Fraction add(const Fraction& a, const Fraction& b);
  Fraction negate(const Fraction& a);
  Fraction multiply(const Fraction& a, const Fraction& b);
  Fraction invert(const Fraction& a);
  Fraction power(const Fraction& base, const Fraction& exponent);
  Fraction square_root(const Fraction& a) { return power(a, Exponent{1, 2}); }
  Fraction logarithm(const Fraction& a);
  Fraction factorial(const Fraction& a, int step);  // step 1: n!, 2: n!!
  Fraction floor_divide(const Fraction& a, const Fraction& b);

  bool is_zero(const Fraction& a);

 private:
  // What stands for itself in a monomial.
  struct Atom {
    enum Kind { prime, pi, letter, sum, other } kind;  // prime: also -1, and parts too large to factor
    BigInt prime_value;
    Fraction base;  // of a sum under a root
    bool positive = false;
  };

  AtomId atom(const std::string& key, Atom value);
  AtomId prime_atom(const BigInt& value);
  Fraction power(const Fraction& base, Exponent exponent);
  Fraction integer_power(const Fraction& base, std::int64_t exponent);
  Fraction root(const Sum& base, Exponent exponent);
  Fraction single_root(const Monomial& monomial, const Coefficient& coefficient, Exponent exponent);
  Fraction symbolic_power(const Fraction& base, const Sum& exponent);
  bool denest(const Sum& base, Fraction& result);
  Fraction from_monomial(Monomial monomial, Coefficient coefficient);
  Fraction opaque_power(const Fraction& base, Exponent exponent);
  std::vector<std::pair<BigInt, std::int64_t>> factor(BigInt value);  // of a positive integer

  Sum one() { return {{Monomial{}, Coefficient{Rational(1)}}}; }
  bool is_one(const Sum& a) const;
  bool constant(const Fraction& a, Rational& value) const;
  Sum add(Sum a, const Sum& b);
  Sum multiply(const Sum& a, const Sum& b);
  void add_term(Sum& sum, Monomial monomial, Coefficient coefficient);
  // Moves whole powers of primes into the coefficient, so that their exponents lie in [0, 1).
  void settle(Monomial& monomial, Coefficient& coefficient);
  Sum expand_roots(const Sum& a);
  Rational content(const Sum& a);

  // Makes both exact, or both rounded.
  bool make_exact(Coefficient& a, Coefficient& b);
  Coefficient add(Coefficient a, Coefficient b);
  Coefficient multiply(Coefficient a, Coefficient b);
  Rational integer_power(const Rational& base, std::int64_t exponent);
  Exponent add(Exponent a, Exponent b);
  Exponent multiply(Exponent a, Exponent b);
  std::string key(const Sum& a);
  std::string key(const Fraction& a) { return key(a.numerator) + "|" + key(a.denominator); }

  Budget& budget_;
  std::vector<Atom> atoms_;
  std::map<std::string, AtomId> ids_;
};

}  // namespace furlong::grader
