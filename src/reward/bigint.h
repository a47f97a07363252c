// Exact integers and fractions for the symbolic comparison, with a bound on size and on work: whatever would exceed
// either throws Undecided instead of running on.
#pragma once
#include <compare>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace furlong::grader {

struct Undecided {};

// The work that one comparison may still spend, in limb operations (some nanoseconds each).
class Budget {
 public:
  explicit Budget(std::uint64_t steps) : left_(steps) {}
  void spend(std::uint64_t steps) {
    if (steps > left_) {
      left_ = 0;
      throw Undecided{};
    }
    left_ -= steps;
    spent_ += steps;
  }
  std::uint64_t spent() const { return spent_; }

 private:
  std::uint64_t left_, spent_ = 0;
};

class BigInt {
 public:
  static constexpr std::size_t max_limbs = 512;  // of 32 bits

  BigInt() = default;
  BigInt(std::int64_t value);
  static BigInt from_digits(std::string_view digits, Budget& budget);  // ASCII decimal digits

  bool is_zero() const { return limbs_.empty(); }
  bool is_one() const { return !negative_ && limbs_.size() == 1 && limbs_[0] == 1; }
  bool negative() const { return negative_; }
  bool odd() const { return !limbs_.empty() && (limbs_[0] & 1); }
  std::size_t size() const { return limbs_.size(); }
  std::size_t bits() const;
  BigInt negated() const;
  BigInt magnitude() const;
  bool fits_int64() const;
  std::int64_t to_int64() const;  // fits_int64() holds
  std::string key() const;        // one text for one value

  // The sign of a - b.
  static int compare(const BigInt& a, const BigInt& b);
  static BigInt add(const BigInt& a, const BigInt& b, Budget& budget);
  static BigInt multiply(const BigInt& a, const BigInt& b, Budget& budget);
  // Quotient towards zero and remainder with the sign of a; b is not zero.
  static void divide(const BigInt& a, const BigInt& b, BigInt& quotient, BigInt& remainder, Budget& budget);
  static BigInt gcd(BigInt a, BigInt b, Budget& budget);
  static BigInt shift_left(const BigInt& a, std::size_t bits, Budget& budget);
  // Remainder of the magnitude by a small divisor.
  std::uint32_t mod_small(std::uint32_t divisor) const;
  // The integral square root of a number that is not negative.
  static BigInt square_root(const BigInt& a, Budget& budget);

  bool operator==(const BigInt&) const = default;

 private:
  static BigInt from_limbs(std::vector<std::uint32_t> limbs, bool negative);
  static int compare_magnitude(const BigInt& a, const BigInt& b);

  std::vector<std::uint32_t> limbs_;  // least first, no leading zeros
  bool negative_ = false;
};

// A fraction in lowest terms with a positive denominator.
class Rational {
 public:
  Rational() : denominator_(1) {}
  Rational(std::int64_t value) : numerator_(value), denominator_(1) {}
  Rational(BigInt numerator, BigInt denominator, Budget& budget);  // denominator not zero

  static Rational from_double(double value, Budget& budget);  // exactly; Undecided for infinities and NaN

  const BigInt& numerator() const { return numerator_; }
  const BigInt& denominator() const { return denominator_; }
  bool is_zero() const { return numerator_.is_zero(); }
  bool is_one() const { return numerator_.is_one() && denominator_.is_one(); }
  bool is_integer() const { return denominator_.is_one(); }
  bool negative() const { return numerator_.negative(); }
  Rational negated() const;
  Rational inverse() const;                // not zero
  double to_double(Budget& budget) const;  // correctly rounded
  std::string key() const { return numerator_.key() + "/" + denominator_.key(); }

  static Rational add(const Rational& a, const Rational& b, Budget& budget);
  static Rational multiply(const Rational& a, const Rational& b, Budget& budget);

  bool operator==(const Rational&) const = default;

 private:
  BigInt numerator_, denominator_;
};

}  // namespace furlong::grader
