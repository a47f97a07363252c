#include "reward/bigint.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "base/check.h"

namespace furlong::grader {

BigInt::BigInt(std::int64_t value) : negative_(value < 0) {
  std::uint64_t magnitude = negative_ ? ~static_cast<std::uint64_t>(value) + 1 : static_cast<std::uint64_t>(value);
  for (; magnitude != 0; magnitude >>= 32) limbs_.push_back(static_cast<std::uint32_t>(magnitude));
}

BigInt BigInt::from_limbs(std::vector<std::uint32_t> limbs, bool negative) {
  while (!limbs.empty() && limbs.back() == 0) limbs.pop_back();
  if (limbs.size() > max_limbs) throw Undecided{};
  BigInt out;
  out.negative_ = negative && !limbs.empty();
  out.limbs_ = std::move(limbs);
  return out;
}

BigInt BigInt::from_digits(std::string_view digits, Budget& budget) {
  if (digits.size() > 9 * max_limbs) throw Undecided{};
  std::vector<std::uint32_t> limbs;
  for (const char digit : digits) {
    budget.spend(1 + limbs.size());
    std::uint64_t carry = static_cast<std::uint64_t>(digit - '0');
    for (auto& limb : limbs) {
      carry += static_cast<std::uint64_t>(limb) * 10;
      limb = static_cast<std::uint32_t>(carry);
      carry >>= 32;
    }
    if (carry != 0) limbs.push_back(static_cast<std::uint32_t>(carry));
  }
  return from_limbs(std::move(limbs), false);
}

std::size_t BigInt::bits() const {
  return limbs_.empty() ? 0 : 32 * limbs_.size() - static_cast<std::size_t>(std::countl_zero(limbs_.back()));
}

BigInt BigInt::negated() const {
  BigInt out = *this;
  out.negative_ = !negative_ && !limbs_.empty();
  return out;
}

BigInt BigInt::magnitude() const {
  BigInt out = *this;
  out.negative_ = false;
  return out;
}

bool BigInt::fits_int64() const { return bits() <= 63; }

std::int64_t BigInt::to_int64() const {
  CHECK(fits_int64());
  std::uint64_t magnitude = 0;
  for (std::size_t i = limbs_.size(); i-- > 0;) magnitude = (magnitude << 32) | limbs_[i];
  const auto value = static_cast<std::int64_t>(magnitude);
  return negative_ ? -value : value;
}

std::string BigInt::key() const {
  std::string out = negative_ ? "-" : "";
  for (const auto limb : limbs_) out += fmt::format("{:x}.", limb);
  return out;
}

int BigInt::compare_magnitude(const BigInt& a, const BigInt& b) {
  if (a.limbs_.size() != b.limbs_.size()) return a.limbs_.size() < b.limbs_.size() ? -1 : 1;
  for (std::size_t i = a.limbs_.size(); i-- > 0;)
    if (a.limbs_[i] != b.limbs_[i]) return a.limbs_[i] < b.limbs_[i] ? -1 : 1;
  return 0;
}

int BigInt::compare(const BigInt& a, const BigInt& b) {
  if (a.negative_ != b.negative_) return a.negative_ ? -1 : 1;
  return a.negative_ ? -compare_magnitude(a, b) : compare_magnitude(a, b);
}

BigInt BigInt::add(const BigInt& a, const BigInt& b, Budget& budget) {
  budget.spend(1 + std::max(a.size(), b.size()));
  std::vector<std::uint32_t> limbs;
  limbs.reserve(std::max(a.size(), b.size()) + 1);
  if (a.negative_ == b.negative_) {
    std::uint64_t carry = 0;
    for (std::size_t i = 0; i < std::max(a.size(), b.size()) || carry != 0; ++i) {
      carry += (i < a.size() ? a.limbs_[i] : 0ull) + (i < b.size() ? b.limbs_[i] : 0ull);
      limbs.push_back(static_cast<std::uint32_t>(carry));
      carry >>= 32;
    }
    return from_limbs(std::move(limbs), a.negative_);
  }
  const bool a_larger = compare_magnitude(a, b) >= 0;
  const BigInt& large = a_larger ? a : b;
  const BigInt& small = a_larger ? b : a;
  std::int64_t borrow = 0;
  for (std::size_t i = 0; i < large.size(); ++i) {
    borrow += static_cast<std::int64_t>(large.limbs_[i]) - (i < small.size() ? small.limbs_[i] : 0u);
    limbs.push_back(static_cast<std::uint32_t>(borrow));
    borrow >>= 32;  // arithmetic: -1 where a limb was borrowed
  }
  return from_limbs(std::move(limbs), large.negative_);
}

BigInt BigInt::multiply(const BigInt& a, const BigInt& b, Budget& budget) {
  budget.spend(1 + a.size() * b.size());
  if (a.size() + b.size() > max_limbs + 1) throw Undecided{};
  std::vector<std::uint32_t> limbs(a.size() + b.size(), 0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::uint64_t carry = 0;
    for (std::size_t j = 0; j < b.size(); ++j) {
      carry += static_cast<std::uint64_t>(a.limbs_[i]) * b.limbs_[j] + limbs[i + j];
      limbs[i + j] = static_cast<std::uint32_t>(carry);
      carry >>= 32;
    }
    limbs[i + b.size()] = static_cast<std::uint32_t>(carry);
  }
  return from_limbs(std::move(limbs), a.negative_ != b.negative_);
}

BigInt BigInt::shift_left(const BigInt& a, std::size_t bits, Budget& budget) {
  const std::size_t whole = bits / 32, part = bits % 32;
  if (a.size() + whole > max_limbs) throw Undecided{};
  budget.spend(1 + a.size() + whole);
  std::vector<std::uint32_t> limbs(whole, 0);
  std::uint64_t carry = 0;
  for (const auto limb : a.limbs_) {
    carry |= static_cast<std::uint64_t>(limb) << part;
    limbs.push_back(static_cast<std::uint32_t>(carry));
    carry >>= 32;
  }
  limbs.push_back(static_cast<std::uint32_t>(carry));
  return from_limbs(std::move(limbs), a.negative_);
}

// Knuth, The Art of Computer Programming, volume 2, algorithm 4.3.1 D.
void BigInt::divide(const BigInt& a, const BigInt& b, BigInt& quotient, BigInt& remainder, Budget& budget) {
  CHECK(!b.is_zero(), "division by zero");
  budget.spend(1 + (a.size() + 1) * b.size());
  if (compare_magnitude(a, b) < 0) {
    remainder = a;
    quotient = BigInt();
    return;
  }
  const bool quotient_negative = a.negative_ != b.negative_, remainder_negative = a.negative_;
  const int shift = std::countl_zero(b.limbs_.back());
  const std::size_t n = b.size(), m = a.size() - n;
  std::vector<std::uint32_t> u(a.size() + 1), v(n), q(m + 1);
  for (std::size_t i = 0; i <= a.size(); ++i) {
    const std::uint64_t high = i < a.size() ? a.limbs_[i] : 0, low = i > 0 ? a.limbs_[i - 1] : 0;
    u[i] = static_cast<std::uint32_t>((((high << 32) | low) << shift) >> 32);
  }
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t low = i > 0 ? b.limbs_[i - 1] : 0;
    v[i] = static_cast<std::uint32_t>((((static_cast<std::uint64_t>(b.limbs_[i]) << 32) | low) << shift) >> 32);
  }
  for (std::size_t j = m + 1; j-- > 0;) {
    const std::uint64_t top = (static_cast<std::uint64_t>(u[j + n]) << 32) | u[j + n - 1];
    std::uint64_t guess = top / v[n - 1], rest = top % v[n - 1];
    while (guess >> 32 || (n > 1 && guess * v[n - 2] > ((rest << 32) | u[j + n - 2]))) {
      --guess;
      rest += v[n - 1];
      if (rest >> 32) break;
    }
    std::int64_t borrow = 0;
    std::uint64_t carry = 0;
    for (std::size_t i = 0; i < n; ++i) {
      carry += guess * v[i];
      borrow += static_cast<std::int64_t>(u[i + j]) - static_cast<std::int64_t>(carry & 0xFFFFFFFFu);
      u[i + j] = static_cast<std::uint32_t>(borrow);
      borrow >>= 32;
      carry >>= 32;
    }
    borrow += static_cast<std::int64_t>(u[j + n]) - static_cast<std::int64_t>(carry);
    u[j + n] = static_cast<std::uint32_t>(borrow);
    if (borrow < 0) {
      --guess;
      std::uint64_t back = 0;
      for (std::size_t i = 0; i < n; ++i) {
        back += static_cast<std::uint64_t>(u[i + j]) + v[i];
        u[i + j] = static_cast<std::uint32_t>(back);
        back >>= 32;
      }
      u[j + n] += static_cast<std::uint32_t>(back);
    }
    q[j] = static_cast<std::uint32_t>(guess);
  }
  std::vector<std::uint32_t> r(n);
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t pair = (static_cast<std::uint64_t>(u[i + 1]) << 32) | u[i];
    r[i] = static_cast<std::uint32_t>(pair >> shift);
  }
  quotient = from_limbs(std::move(q), quotient_negative);
  remainder = from_limbs(std::move(r), remainder_negative);
}

BigInt BigInt::gcd(BigInt a, BigInt b, Budget& budget) {
  a.negative_ = b.negative_ = false;
  BigInt quotient, remainder;
  while (!b.is_zero()) {
    divide(a, b, quotient, remainder, budget);
    a = std::move(b);
    b = std::move(remainder);
  }
  return a;
}

std::uint32_t BigInt::mod_small(std::uint32_t divisor) const {
  std::uint64_t rest = 0;
  for (std::size_t i = limbs_.size(); i-- > 0;) rest = ((rest << 32) | limbs_[i]) % divisor;
  return static_cast<std::uint32_t>(rest);
}

BigInt BigInt::square_root(const BigInt& a, Budget& budget) {
  if (a.is_zero()) return a;
  BigInt root = shift_left(BigInt(1), (a.bits() + 1) / 2, budget);  // Newton's method from above
  while (true) {
    BigInt quotient, remainder, half;
    divide(a, root, quotient, remainder, budget);
    divide(add(root, quotient, budget), BigInt(2), half, remainder, budget);
    if (compare(half, root) >= 0) return root;
    root = std::move(half);
  }
}

Rational::Rational(BigInt numerator, BigInt denominator, Budget& budget) {
  CHECK(!denominator.is_zero(), "fraction with a zero denominator");
  const BigInt common = BigInt::gcd(numerator, denominator, budget);
  BigInt remainder;
  if (common.is_one()) {
    numerator_ = std::move(numerator);
    denominator_ = std::move(denominator);
  } else {
    BigInt::divide(numerator, common, numerator_, remainder, budget);
    BigInt::divide(denominator, common, denominator_, remainder, budget);
  }
  if (denominator_.negative()) {
    numerator_ = numerator_.negated();
    denominator_ = denominator_.negated();
  }
}

Rational Rational::from_double(double value, Budget& budget) {
  if (!std::isfinite(value)) throw Undecided{};
  int exponent = 0;
  const auto mantissa = static_cast<std::int64_t>(std::ldexp(std::frexp(value, &exponent), 53));
  exponent -= 53;
  const BigInt power = BigInt::shift_left(BigInt(1), static_cast<std::size_t>(std::abs(exponent)), budget);
  if (exponent < 0) return Rational(BigInt(mantissa), power, budget);
  return Rational(BigInt::multiply(BigInt(mantissa), power, budget), BigInt(1), budget);
}

Rational Rational::negated() const {
  Rational out = *this;
  out.numerator_ = numerator_.negated();
  return out;
}

Rational Rational::inverse() const {
  Rational out;
  out.numerator_ = numerator_.negative() ? denominator_.negated() : denominator_;
  out.denominator_ = numerator_.magnitude();
  return out;
}

double Rational::to_double(Budget& budget) const {
  if (is_zero()) return 0;
  // A quotient of 55 to 57 bits, its last bit raised when there is a rest, rounds as the exact value does.
  const long shift = 56 - (static_cast<long>(numerator_.bits()) - static_cast<long>(denominator_.bits()));
  BigInt top = numerator_.magnitude(), bottom = denominator_, quotient, remainder;
  (shift >= 0 ? top : bottom) =
      BigInt::shift_left(shift >= 0 ? top : bottom, static_cast<std::size_t>(std::abs(shift)), budget);
  BigInt::divide(top, bottom, quotient, remainder, budget);
  const auto bits = static_cast<std::uint64_t>(quotient.to_int64()) | (remainder.is_zero() ? 0 : 1);
  const double value = std::ldexp(static_cast<double>(bits), static_cast<int>(-shift));
  return negative() ? -value : value;
}

Rational Rational::add(const Rational& a, const Rational& b, Budget& budget) {
  return Rational(BigInt::add(BigInt::multiply(a.numerator_, b.denominator_, budget),
                              BigInt::multiply(b.numerator_, a.denominator_, budget), budget),
                  BigInt::multiply(a.denominator_, b.denominator_, budget), budget);
}

Rational Rational::multiply(const Rational& a, const Rational& b, Budget& budget) {
  return Rational(BigInt::multiply(a.numerator_, b.numerator_, budget),
                  BigInt::multiply(a.denominator_, b.denominator_, budget), budget);
}

}  // namespace furlong::grader
