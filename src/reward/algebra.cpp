#include "reward/algebra.h"

#include <cmath>
#include <numeric>
#include <optional>

#include "base/check.h"

namespace furlong::grader {

namespace {

constexpr std::size_t max_terms = 2000;
constexpr std::int64_t max_expanded_power = 64;
constexpr std::int64_t max_exponent = std::int64_t{1} << 31;
constexpr std::uint32_t trial_divisors = 2000;

std::int64_t floor_div(std::int64_t a, std::int64_t b) { return a / b - (a % b != 0 && (a % b < 0) != (b < 0)); }

Exponent make_exponent(std::int64_t numerator, std::int64_t denominator) {
  const std::int64_t common = std::gcd(numerator, denominator);
  const Exponent out{numerator / common, denominator / common};
  if (std::abs(out.numerator) > max_exponent || out.denominator > max_exponent) throw Undecided{};
  return out;
}

}  // namespace

Exponent Algebra::add(Exponent a, Exponent b) {
  return make_exponent(a.numerator * b.denominator + b.numerator * a.denominator, a.denominator * b.denominator);
}

Exponent Algebra::multiply(Exponent a, Exponent b) {
  const Exponent left = make_exponent(a.numerator, b.denominator), right = make_exponent(b.numerator, a.denominator);
  return make_exponent(left.numerator * right.numerator, left.denominator * right.denominator);
}

bool Algebra::make_exact(Coefficient& a, Coefficient& b) {
  if (a.is_rounded == b.is_rounded) return !a.is_rounded;
  Coefficient& rounded = a.is_rounded ? a : b;
  Coefficient& exact = a.is_rounded ? b : a;
  if (exact.is_wide) {
    rounded = {Rational::from_double(rounded.rounded, budget_), 0, false, true};
    return true;
  }
  exact = {Rational(), exact.exact.to_double(budget_), true};
  return false;
}

Coefficient Algebra::add(Coefficient a, Coefficient b) {
  if (!make_exact(a, b)) return {Rational(), a.rounded + b.rounded, true};
  return {Rational::add(a.exact, b.exact, budget_), 0, false, a.is_wide || b.is_wide};
}

Coefficient Algebra::multiply(Coefficient a, Coefficient b) {
  if (!make_exact(a, b)) return {Rational(), a.rounded * b.rounded, true};
  return {Rational::multiply(a.exact, b.exact, budget_), 0, false, a.is_wide || b.is_wide};
}

Rational Algebra::integer_power(const Rational& base, std::int64_t exponent) {
  const std::size_t bits = std::max(base.numerator().bits(), base.denominator().bits());
  if (bits > 1 && static_cast<std::uint64_t>(std::abs(exponent)) * (bits - 1) > 32 * BigInt::max_limbs)
    throw Undecided{};
  if (exponent < 0 && base.is_zero()) throw Undecided{};
  Rational square = exponent < 0 ? base.inverse() : base, out(1);
  for (std::int64_t left = std::abs(exponent); left > 0; left >>= 1) {
    if (left & 1) out = Rational::multiply(out, square, budget_);
    if (left > 1) square = Rational::multiply(square, square, budget_);
  }
  return out;
}

AtomId Algebra::atom(const std::string& key, Atom value) {
  budget_.spend(1 + key.size() / 4);
  const auto [place, added] = ids_.try_emplace(key, static_cast<AtomId>(atoms_.size()));
  if (added) atoms_.push_back(std::move(value));
  return place->second;
}

AtomId Algebra::prime_atom(const BigInt& value) {
  return atom("p" + value.key(), {Atom::prime, value, {}, !value.negative()});
}

std::string Algebra::key(const Sum& a) {
  std::string out;
  for (const auto& [monomial, coefficient] : a) {
    out += coefficient.is_rounded ? fmt::format("~{:a}", coefficient.rounded) : coefficient.exact.key();
    for (const auto& [id, exponent] : monomial)
      out += fmt::format(" {}^{}/{}", id, exponent.numerator, exponent.denominator);
    out += ';';
    budget_.spend(8 + 8 * monomial.size());
  }
  return out;
}

bool Algebra::is_one(const Sum& a) const {
  return a.size() == 1 && a.begin()->first.empty() && !a.begin()->second.is_rounded && a.begin()->second.exact.is_one();
}

bool Algebra::constant(const Fraction& a, Rational& value) const {
  if (!is_one(a.denominator) || a.numerator.size() > 1) return false;
  if (a.numerator.empty()) {
    value = Rational();
    return true;
  }
  const auto& [monomial, coefficient] = *a.numerator.begin();
  if (!monomial.empty() || coefficient.is_rounded) return false;
  value = coefficient.exact;
  return true;
}

void Algebra::add_term(Sum& sum, Monomial monomial, Coefficient coefficient) {
  budget_.spend(8 + 2 * monomial.size());
  if (coefficient.is_zero()) return;
  const auto [place, added] = sum.try_emplace(std::move(monomial), coefficient);
  if (!added) {
    place->second = add(place->second, coefficient);
    if (place->second.is_zero()) sum.erase(place);
  } else if (sum.size() > max_terms) {
    throw Undecided{};
  }
}

Sum Algebra::add(Sum a, const Sum& b) {
  budget_.spend(4 * a.size());
  for (const auto& [monomial, coefficient] : b) add_term(a, monomial, coefficient);
  return a;
}

void Algebra::settle(Monomial& monomial, Coefficient& coefficient) {
  std::erase_if(monomial, [&](auto& power) {
    auto& [id, exponent] = power;
    if (atoms_[id].kind == Atom::prime) {
      const std::int64_t whole = floor_div(exponent.numerator, exponent.denominator);
      if (whole != 0) {
        const Rational value(atoms_[id].prime_value, BigInt(1), budget_);
        coefficient = multiply(coefficient, {integer_power(value, whole)});
        exponent.numerator -= whole * exponent.denominator;
      }
    }
    return exponent.numerator == 0;
  });
}

Sum Algebra::multiply(const Sum& a, const Sum& b) {
  Sum out;
  for (const auto& [left, x] : a) {
    for (const auto& [right, y] : b) {
      budget_.spend(8 + 2 * (left.size() + right.size()));
      Monomial product;
      auto l = left.begin(), r = right.begin();
      while (l != left.end() || r != right.end()) {
        if (r == right.end() || (l != left.end() && l->first < r->first)) {
          product.push_back(*l++);
        } else if (l == left.end() || r->first < l->first) {
          product.push_back(*r++);
        } else {
          product.emplace_back(l->first, add(l->second, r->second));
          ++l, ++r;
        }
      }
      Coefficient coefficient = multiply(x, y);
      settle(product, coefficient);
      add_term(out, std::move(product), std::move(coefficient));
    }
  }
  return out;
}

Fraction Algebra::from_monomial(Monomial monomial, Coefficient coefficient) {
  budget_.spend(16);
  settle(monomial, coefficient);
  Fraction out{{}, one()};
  add_term(out.numerator, std::move(monomial), std::move(coefficient));
  return out;
}

Fraction Algebra::number(const Rational& value) { return from_monomial({}, {value}); }
Fraction Algebra::decimal(double value) { return from_monomial({}, {Rational(), value, true}); }

Fraction Algebra::wide_decimal(const Rational& value) { return from_monomial({}, {value, 0, false, true}); }

Fraction Algebra::letter(const std::string& name) {
  return from_monomial({{atom("s" + name, {Atom::letter, {}, {}, false}), {1, 1}}}, {Rational(1)});
}

Fraction Algebra::pi() { return from_monomial({{atom("pi", {Atom::pi, {}, {}, true}), {1, 1}}}, {Rational(1)}); }

Fraction Algebra::imaginary_unit() { return from_monomial({{prime_atom(BigInt(-1)), {1, 2}}}, {Rational(1)}); }

Fraction Algebra::add(const Fraction& a, const Fraction& b) {
  const bool common = is_one(a.denominator) ? is_one(b.denominator) : key(a.denominator) == key(b.denominator);
  if (common) return {add(a.numerator, b.numerator), a.denominator};
  return {add(multiply(a.numerator, b.denominator), multiply(b.numerator, a.denominator)),
          multiply(a.denominator, b.denominator)};
}

Fraction Algebra::negate(const Fraction& a) { return multiply(number(Rational(-1)), a); }

Fraction Algebra::multiply(const Fraction& a, const Fraction& b) {
  return {multiply(a.numerator, b.numerator), multiply(a.denominator, b.denominator)};
}

Fraction Algebra::invert(const Fraction& a) {
  if (is_zero(a)) throw Undecided{};
  if (a.numerator.size() > 1) return {a.denominator, a.numerator};
  const auto& [monomial, coefficient] = *a.numerator.begin();
  Monomial inverse = monomial;
  for (auto& [id, exponent] : inverse) exponent.numerator = -exponent.numerator;
  const Coefficient value = coefficient.is_rounded ? Coefficient{Rational(), 1 / coefficient.rounded, true}
                                                   : Coefficient{coefficient.exact.inverse()};
  Fraction out = from_monomial(std::move(inverse), value);
  out.numerator = multiply(out.numerator, a.denominator);
  return out;
}

Fraction Algebra::opaque_power(const Fraction& base, Exponent exponent) {
  const AtomId id = atom("r" + key(base), {Atom::sum, {}, base, false});
  return from_monomial({{id, exponent}}, {Rational(1)});
}

Fraction Algebra::integer_power(const Fraction& base, std::int64_t exponent) {
  if (exponent < 0) return integer_power(invert(base), -exponent);
  if (base.numerator.size() == 1 && is_one(base.denominator)) {
    Monomial monomial = base.numerator.begin()->first;
    Coefficient coefficient = base.numerator.begin()->second;
    for (auto& [id, e] : monomial) e = multiply(e, {exponent, 1});
    if (coefficient.is_rounded) {
      coefficient.rounded = std::pow(coefficient.rounded, static_cast<double>(exponent));
    } else {
      coefficient.exact = integer_power(coefficient.exact, exponent);
    }
    return from_monomial(std::move(monomial), std::move(coefficient));
  }
  if (exponent > max_expanded_power) return opaque_power(base, {exponent, 1});
  Fraction out = number(Rational(1));
  for (std::int64_t i = 0; i < exponent; ++i) out = multiply(out, base);
  return out;
}

std::vector<std::pair<BigInt, std::int64_t>> Algebra::factor(BigInt value) {
  std::vector<std::pair<BigInt, std::int64_t>> factors;
  BigInt quotient, remainder;
  for (std::uint32_t p = 2; p <= trial_divisors && !value.is_one(); p += p == 2 ? 1 : 2) {
    budget_.spend(value.size());
    std::int64_t count = 0;
    while (value.mod_small(p) == 0) {
      BigInt::divide(value, BigInt(p), quotient, remainder, budget_);
      value = quotient;
      ++count;
    }
    if (count > 0) factors.emplace_back(BigInt(p), count);
  }
  if (value.is_one()) return factors;
  // What is left is a prime, or stands as one atom; only squares are seen through.
  std::int64_t count = 1;
  for (BigInt half = BigInt::square_root(value, budget_); BigInt::multiply(half, half, budget_) == value;
       half = BigInt::square_root(value, budget_)) {
    value = half;
    count *= 2;
  }
  factors.emplace_back(value, count);
  return factors;
}

Fraction Algebra::single_root(const Monomial& monomial, const Coefficient& coefficient, Exponent exponent) {
  if (coefficient.is_rounded) {
    if (!monomial.empty() || coefficient.rounded < 0) throw Undecided{};
    const bool half = exponent == Exponent{1, 2};
    const double e = static_cast<double>(exponent.numerator) / static_cast<double>(exponent.denominator);
    return decimal(half ? std::sqrt(coefficient.rounded) : std::pow(coefficient.rounded, e));
  }
  Fraction out = number(Rational(1));
  const auto raise = [&](const BigInt& value, int sign) {
    for (const auto& [prime, count] : factor(value))
      out = multiply(out, from_monomial({{prime_atom(prime), multiply(exponent, {sign * count, 1})}}, {Rational(1)}));
  };
  raise(coefficient.exact.numerator().magnitude(), 1);
  raise(coefficient.exact.denominator(), -1);
  Monomial rest;
  for (const auto& [id, e] : monomial) {
    if (atoms_[id].positive) {
      out = multiply(out, from_monomial({{id, multiply(e, exponent)}}, {Rational(1)}));
    } else {
      rest.emplace_back(id, e);
    }
  }
  const bool negative = coefficient.exact.negative();
  if (rest.empty()) {
    if (negative) out = multiply(out, from_monomial({{prime_atom(BigInt(-1)), exponent}}, {Rational(1)}));
    return out;
  }
  const Exponent inner = rest[0].second;
  const bool within = inner.numerator <= inner.denominator && inner.numerator > -inner.denominator;
  if (rest.size() == 1 && !negative && within) {  // (x^a)^b = x^(ab) holds for -1 < a <= 1 only
    rest[0].second = multiply(inner, exponent);
    return multiply(out, from_monomial(std::move(rest), {Rational(1)}));
  }
  return multiply(out, opaque_power(from_monomial(std::move(rest), {Rational(negative ? -1 : 1)}), exponent));
}

Rational Algebra::content(const Sum& a) {
  BigInt top, bottom(1), remainder;
  for (const auto& [monomial, coefficient] : a) {
    if (coefficient.is_rounded) throw Undecided{};
    top = BigInt::gcd(top, coefficient.exact.numerator(), budget_);
    const BigInt& denominator = coefficient.exact.denominator();
    BigInt part;
    BigInt::divide(denominator, BigInt::gcd(bottom, denominator, budget_), part, remainder, budget_);
    bottom = BigInt::multiply(bottom, part, budget_);
  }
  return Rational(top, bottom, budget_);
}

// sqrt(a + b sqrt(c)) = sqrt((a + d) / 2) +- sqrt((a - d) / 2) with d^2 = a^2 - b^2 c, where d is rational.
bool Algebra::denest(const Sum& base, Fraction& result) {
  if (base.size() != 2 || !base.begin()->first.empty()) return false;
  const Coefficient& a = base.begin()->second;
  const auto& [monomial, b] = *std::next(base.begin());
  Rational square(1);
  for (const auto& [id, exponent] : monomial) {
    if (atoms_[id].kind != Atom::prime || !atoms_[id].positive || exponent != Exponent{1, 2}) return false;
    square = Rational::multiply(square, Rational(atoms_[id].prime_value, BigInt(1), budget_), budget_);
  }
  if (a.is_rounded || b.is_rounded || a.exact.negative()) return false;
  square = Rational::multiply(square, Rational::multiply(b.exact, b.exact, budget_), budget_).negated();
  square = Rational::add(Rational::multiply(a.exact, a.exact, budget_), square, budget_);
  if (square.negative()) return false;
  const BigInt top = BigInt::square_root(square.numerator(), budget_);
  const BigInt bottom = BigInt::square_root(square.denominator(), budget_);
  const Rational d(top, bottom, budget_);
  if (Rational::multiply(d, d, budget_) != square) return false;
  const Rational half(BigInt(1), BigInt(2), budget_);
  const auto part = [&](const Rational& sign) {
    return square_root(number(Rational::multiply(Rational::add(a.exact, sign, budget_), half, budget_)));
  };
  const Fraction second = part(d.negated());
  result = add(part(d), b.exact.negative() ? negate(second) : second);
  return true;
}

Fraction Algebra::root(const Sum& base, Exponent exponent) {
  if (base.size() == 1) return single_root(base.begin()->first, base.begin()->second, exponent);
  const Rational common = content(base);
  const Sum primitive = multiply(base, {{Monomial{}, Coefficient{common.inverse()}}});
  const Fraction outside = single_root({}, {common}, exponent);
  Fraction inside;
  if (exponent.denominator == 2 && denest(primitive, inside)) {
    inside = integer_power(inside, exponent.numerator);
  } else {
    inside = opaque_power({primitive, one()}, exponent);
  }
  return multiply(outside, inside);
}

Fraction Algebra::power(const Fraction& base, Exponent exponent) {
  if (exponent.is_integer()) return integer_power(base, exponent.numerator);
  if (base.numerator.empty()) {
    if (exponent.numerator < 0) throw Undecided{};
    return base;
  }
  if (is_one(base.denominator)) return root(base.numerator, exponent);
  return opaque_power(base, exponent);
}

Fraction Algebra::symbolic_power(const Fraction& base, const Sum& exponent) {
  if (base.numerator.size() != 1 || !is_one(base.denominator)) throw Undecided{};
  Fraction out = number(Rational(1));
  const auto raise = [&](AtomId id, Exponent inner) {
    for (const auto& [monomial, coefficient] : exponent) {
      if (coefficient.is_rounded) throw Undecided{};
      if (!coefficient.exact.numerator().fits_int64() || !coefficient.exact.denominator().fits_int64())
        throw Undecided{};
      const Exponent outer = multiply(
          make_exponent(coefficient.exact.numerator().to_int64(), coefficient.exact.denominator().to_int64()), inner);
      if (monomial.empty()) {
        out = multiply(out, power(from_monomial({{id, {1, 1}}}, {Rational(1)}), outer));
        continue;
      }
      if (!outer.is_integer() && !atoms_[id].positive) throw Undecided{};
      const AtomId raised = atom(fmt::format("^{}:", id) + key({{monomial, Coefficient{Rational(1)}}}),
                                 {Atom::other, {}, {}, atoms_[id].positive});
      out = multiply(out, from_monomial({{raised, outer}}, {Rational(1)}));
    }
  };
  const auto& [monomial, coefficient] = *base.numerator.begin();
  if (coefficient.is_rounded) throw Undecided{};
  if (coefficient.exact.negative()) raise(prime_atom(BigInt(-1)), {1, 1});
  for (const auto& [prime, count] : factor(coefficient.exact.numerator().magnitude()))
    raise(prime_atom(prime), {count, 1});
  for (const auto& [prime, count] : factor(coefficient.exact.denominator())) raise(prime_atom(prime), {-count, 1});
  for (const auto& [id, e] : monomial) raise(id, e);
  return out;
}

Fraction Algebra::power(const Fraction& base, const Fraction& exponent) {
  Rational value;
  if (!constant(exponent, value)) {
    if (!is_one(exponent.denominator)) throw Undecided{};
    const bool number = exponent.numerator.size() == 1 && exponent.numerator.begin()->first.empty();
    Rational positive;
    if (number && constant(base, positive) && !positive.is_zero() && !positive.negative())
      return decimal(std::pow(positive.to_double(budget_), exponent.numerator.begin()->second.rounded));
    if (number || base.numerator.empty()) throw Undecided{};
    return symbolic_power(base, exponent.numerator);
  }
  if (!value.numerator().fits_int64() || !value.denominator().fits_int64()) throw Undecided{};
  return power(base, make_exponent(value.numerator().to_int64(), value.denominator().to_int64()));
}

Fraction Algebra::logarithm(const Fraction& a) {
  if (is_zero(a)) throw Undecided{};
  Fraction out{{}, one()};
  const auto take = [&](const BigInt& prime, Exponent exponent) {
    const AtomId id = atom("l" + prime.key(), {Atom::other, {}, {}, true});
    const Rational factor(BigInt(exponent.numerator), BigInt(exponent.denominator), budget_);
    add_term(out.numerator, {{id, {1, 1}}}, {factor});
  };
  const auto opaque = [&] {
    return from_monomial({{atom("l" + key(a), {Atom::other, {}, {}, false}), {1, 1}}}, {Rational(1)});
  };
  if (a.numerator.size() != 1 || !is_one(a.denominator)) return opaque();
  const auto& [monomial, coefficient] = *a.numerator.begin();
  if (coefficient.is_rounded) throw Undecided{};
  if (coefficient.exact.negative()) return opaque();
  for (const auto& [id, exponent] : monomial)
    if (atoms_[id].kind != Atom::prime || !atoms_[id].positive) return opaque();
  for (const auto& [id, exponent] : monomial) take(atoms_[id].prime_value, exponent);
  for (const auto& [prime, count] : factor(coefficient.exact.numerator())) take(prime, {count, 1});
  for (const auto& [prime, count] : factor(coefficient.exact.denominator())) take(prime, {-count, 1});
  return out;
}

Fraction Algebra::factorial(const Fraction& a, int step) {
  Rational value;
  if (!constant(a, value)) {
    const AtomId id = atom(fmt::format("!{}", step) + key(a), {Atom::other, {}, {}, false});
    return from_monomial({{id, {1, 1}}}, {Rational(1)});
  }
  if (!value.is_integer() || value.negative() || !value.numerator().fits_int64()) throw Undecided{};
  const std::int64_t n = value.numerator().to_int64();
  if (n > 2000) throw Undecided{};
  BigInt product(1);
  for (std::int64_t i = n; i > 1; i -= step) product = BigInt::multiply(product, BigInt(i), budget_);
  return number(Rational(product, BigInt(1), budget_));
}

Fraction Algebra::floor_divide(const Fraction& a, const Fraction& b) {
  Rational x, y;
  if (!constant(a, x) || !constant(b, y) || y.is_zero()) throw Undecided{};
  const Rational exact = Rational::multiply(x, y.inverse(), budget_);
  BigInt quotient, remainder;
  BigInt::divide(exact.numerator(), exact.denominator(), quotient, remainder, budget_);
  if (remainder.negative()) quotient = BigInt::add(quotient, BigInt(-1), budget_);
  return number(Rational(quotient, BigInt(1), budget_));
}

// Multiplies out whole powers of sums that stand under roots. A common power is divided off first.
Sum Algebra::expand_roots(const Sum& a) {
  for (AtomId id = 0; id < atoms_.size(); ++id) {
    if (atoms_[id].kind != Atom::sum) continue;
    std::optional<std::int64_t> lowest;
    bool any = false;
    for (const auto& [monomial, coefficient] : a) {
      Exponent exponent;
      for (const auto& [other, e] : monomial)
        if (other == id) exponent = e;
      const std::int64_t whole = floor_div(exponent.numerator, exponent.denominator);
      lowest = lowest ? std::min(*lowest, whole) : whole;
      any |= whole != 0;
    }
    if (!any) continue;
    const Fraction base = atoms_[id].base;
    if (!is_one(base.denominator)) throw Undecided{};
    Sum out;
    for (const auto& [monomial, coefficient] : a) {
      Monomial rest;
      Exponent exponent;
      for (const auto& [other, e] : monomial) {
        if (other == id) {
          exponent = e;
        } else {
          rest.emplace_back(other, e);
        }
      }
      const std::int64_t whole = floor_div(exponent.numerator, exponent.denominator);
      exponent.numerator -= whole * exponent.denominator;
      if (whole - *lowest > max_expanded_power) throw Undecided{};
      Sum term{{rest, coefficient}};
      if (exponent.numerator != 0) term = multiply(term, {{Monomial{{id, exponent}}, Coefficient{Rational(1)}}});
      for (std::int64_t i = *lowest; i < whole; ++i) term = multiply(term, base.numerator);
      out = add(out, term);
    }
    return out;
  }
  return a;
}

bool Algebra::is_zero(const Fraction& a) {
  Sum current = a.numerator;
  // Every round removes the whole powers of one root; a base may hold further roots.
  for (int round = 0; round < 16; ++round) {
    if (current.empty()) return true;
    Sum next = expand_roots(current);
    if (key(next) == key(current)) return false;
    current = std::move(next);
  }
  throw Undecided{};
}

}  // namespace furlong::grader
