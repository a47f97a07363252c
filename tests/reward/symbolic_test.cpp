#include "reward/symbolic.h"

#include <gtest/gtest.h>

#include "reward/bigint.h"

namespace furlong::grader {
namespace {

TEST(Symbolic, Equal) {
  const char* const cases[][2] = {
      {"1/2", "0.5"},
      {"sqrt(8)", "2sqrt(2)"},
      {"1/sqrt(2)", "sqrt(2)/2"},
      {"(x+1)**2", "x^2+2x+1"},
      {"sqrt(50)/5", "sqrt(2)"},
      {"1/(1+sqrt(2))", "sqrt(2)-1"},
      {"(x**2-1)/(x-1)", "x+1"},
      {"x/y", "(x*x)/(x*y)"},
      {"2pi", "pi*2"},
      {"x(x+1)", "x^2+x"},
      {"x2", "2x"},
      {"2**(1/3)*4**(1/3)", "2"},
      {"5!", "120.0"},
      {"6!!", "48"},
      {"2**n*2", "2**(n+1)"},
      {"4**n", "2**(2n)"},
      {"ln(4)", "2ln(2)"},
      {"ln(1)", "0.0"},
      {"sqrt(3+2sqrt(2))", "1+sqrt(2)"},
      {"sqrt(2+sqrt(3))", "(sqrt(6)+sqrt(2))/2"},
      {"sqrt(6-2sqrt(5))", "sqrt(5)-1"},
      {"sqrt(4x+4)", "2sqrt(x+1)"},
      {"sqrt(x+1)*sqrt(x+1)", "x+1"},
      {"sqrt(x)**2", "x"},
      {"sqrt(-4)", "2sqrt(-1)"},
      {"2j", "2*sqrt(-1)"},
      {"(x+1)**100", "(1+x)**100"},
      {"--x", "x"},
      {"7//2", "3"},
      {"-7//2", "-4"},
      {"0x1f", "31"},
      {"1e3x", "1000x"},
      {"0.1+0.1", "0.2"},
      {"x!", "x!"},
      {"θ+1", "1+θ"},
      {"x**1000000000*x", "x**1000000001"},
      {"sqrt(12345678987654321)", "111111111"},
      {"sqrt(2/3)", "sqrt(6)/3"},
      {"011", "0"},
      {"1/3-1/3", "0"},
      {"xy**2", "y**2*x"},
      {"1/2x", "x/2"},
      {"mu", "mu*1"},
      {"27**(1/3)+.5", "3.5"},
  };
  for (const auto& [truth, answer] : cases) {
    EXPECT_TRUE(symbolic_equal(truth, answer)) << truth << " = " << answer;
    EXPECT_TRUE(symbolic_equal(answer, truth)) << answer << " = " << truth;
  }
}

TEST(Symbolic, NotEqualOrNotDecided) {
  const char* const cases[][2] = {
      {"1", "2"},
      {"sqrt(x**2)", "x"},
      {"sqrt(xy)", "sqrt(x)sqrt(y)"},
      {"x", "y"},
      {"0.1+0.2", "0.3"},
      {"0.333", "1/3"},
      {"0.3333333333333333", "1/3"},
      {"1.4142135623730951", "sqrt(2)"},
      {"pi", "3.14159265358979"},
      {"xpi", "x*p*i"},
      {"x+y+z", "z+y+x"},
      {"mu", "m*u"},
      {"1/0", "1/0"},
      {"0**-1", "1"},
      {"x=1", "x=1"},
      {"x<1", "x<1"},
      {"(1,2)", "(1,2)"},
      {"x)+(1", "x+1+"},
      {"", "0"},
      {"x^10", "x^10"},
      {"2^(3)", "8"},
      {"2^3^1", "8"},
      {"+", "+"},
      {"sqrt", "sqrt"},
      {"re", "re"},
      {"nan", "nan"},
      {"!", "!"},
      {"3!!!!", "3!!!!"},
      {"(-8)**(1/3)", "-2"},
      {"½", "½"},
      {"x²", "x²"},
      {"x'", "x'"},
      {"as", "as"},
      {"1..2", "1.."},
      {"((x+1)**2)**(1/2)", "x+1"},
      {"1/(sqrt(2)**2-2)", "1/(sqrt(2)**2-2)"},
  };
  for (const auto& [truth, answer] : cases) EXPECT_FALSE(symbolic_equal(truth, answer)) << truth << " = " << answer;
}

TEST(Symbolic, UnbalancedBracketsReadAsOneText) {
  // The difference is put together as text first: (1)+(2)-(3).
  EXPECT_TRUE(symbolic_equal("1)+(2", "3"));
}

TEST(BigInt, DivisionUndoesMultiplication) {
  Budget budget(100'000'000);
  std::uint64_t state = 88172645463325252u;
  const auto random = [&](int limbs) {
    BigInt out;
    for (int i = 0; i < limbs; ++i) {
      state ^= state << 13, state ^= state >> 7, state ^= state << 17;
      // Limbs of all ones and zeros are where a long division goes wrong.
      const std::int64_t limb = state % 4 == 0   ? 0xFFFFFFFF
                                : state % 4 == 1 ? 0
                                                 : static_cast<std::int64_t>(state >> 32);
      out = BigInt::add(BigInt::shift_left(out, 32, budget), BigInt(limb), budget);
    }
    return state % 3 == 0 ? out.negated() : out;
  };
  for (int round = 0; round < 3000; ++round) {
    const BigInt a = random(1 + round % 9), b = random(1 + round % 5);
    if (b.is_zero()) continue;
    BigInt quotient, remainder;
    BigInt::divide(a, b, quotient, remainder, budget);
    EXPECT_EQ(BigInt::add(BigInt::multiply(quotient, b, budget), remainder, budget), a);
    EXPECT_LT(BigInt::compare(remainder.magnitude(), b.magnitude()), 0);
    EXPECT_TRUE(remainder.is_zero() || remainder.negative() == a.negative());
    const BigInt square = BigInt::multiply(a, a, budget);
    EXPECT_EQ(BigInt::square_root(square, budget), a.magnitude());
    if (a.is_zero()) continue;
    EXPECT_EQ(BigInt::square_root(BigInt::add(square, BigInt(-1), budget), budget),
              BigInt::add(a.magnitude(), BigInt(-1), budget));
  }
}

TEST(Rational, RoundsToTheNearestDouble) {
  Budget budget(100'000'000);
  const auto value = [&](std::int64_t a, std::int64_t b) {
    return Rational(BigInt(a), BigInt(b), budget).to_double(budget);
  };
  for (std::int64_t a = -50; a < 50; ++a)
    for (std::int64_t b = 1; b < 50; ++b) EXPECT_EQ(value(a, b), static_cast<double>(a) / static_cast<double>(b));
  EXPECT_EQ(value((std::int64_t{1} << 53) + 1, 1), 9007199254740992.0);
  EXPECT_EQ(value((std::int64_t{1} << 53) + 3, 1), 9007199254740996.0);
  EXPECT_EQ(value(9007199254740993, 1000), 9007199254740.993);
}

}  // namespace
}  // namespace furlong::grader
