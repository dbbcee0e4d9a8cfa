// The project's own exp, log, sine, cosine and fused multiply-add, against the compiler's library in wider arithmetic.

#include "base/elementary.h"

#include <cfloat>
#include <cmath>

#include "check.h"
#include "kernels/scalar/vec.h"
#include "random.h"

using namespace llmcore;
using namespace llmcore::test;

namespace {

int64_t cases() { return quick() ? 2'000 : 200'000; }

double uniform(Random& random, double low, double high) {
  const double u = static_cast<double>(random.bits()) * 0x1p-32 + static_cast<double>(random.bits()) * 0x1p-64;
  return low + (high - low) * u;
}

// fma1 against the library's fma, of which glibc's is exact with or without the instruction.
void check_fma(float a, float b, float c) {
  const float got = fma1(a, b, c), expected = std::fma(a, b, c);
  if (bits_of(got) == bits_of(expected) || (std::isnan(got) && std::isnan(expected))) return;
  NOTE("bits " + std::to_string(bits_of(a)) + ", " + std::to_string(bits_of(b)) + ", " + std::to_string(bits_of(c)));
  CHECK_EQ(bits_of(got), bits_of(expected));
}

constexpr float kHard[] = {0.0f,   -0.0f,         1.0f,           -1.0f,         1.5f,          FLT_MIN,     -FLT_MIN,
                           1e-45f, -1e-45f,       2.9e-39f,       FLT_MAX,       -FLT_MAX,      INFINITY,    -INFINITY,
                           NAN,    FLT_EPSILON,   1.0000001f,     0.99999994f,   16777216.0f,   16777215.0f, 8388608.5f,
                           3e38f,  1.7014118e38f, 1.0842022e-19f, 5.9604645e-8f, 1.1754942e-38f};

}  // namespace

TEST(elementary, exp_has_a_relative_error_below_1e_15) {
  Random random(1);
  for (int64_t i = 0; i < cases(); ++i) {
    const double x = i % 2 ? uniform(random, -700, 700) : uniform(random, -1, 1);
    const long double exact = std::exp(static_cast<long double>(x));
    CHECK(std::fabs(exact_exp(x) - exact) <= 1e-15L * exact);
  }
}

TEST(elementary, exp_at_the_ends_of_its_range) {
  CHECK_EQ(exact_exp(0.0), 1.0);
  CHECK_EQ(exact_exp(-0.0), 1.0);
  CHECK_EQ(exact_exp(710.0), HUGE_VAL);
  CHECK_EQ(exact_exp(-INFINITY), 0.0);
  CHECK_EQ(exact_exp(-746.0), 0.0);
  CHECK(std::isnan(exact_exp(NAN)));
}

TEST(elementary, log_is_right_where_it_says_so) {
  Random random(2);
  for (int64_t i = 0; i < cases(); ++i) {
    const double x = i % 3 == 0   ? std::ldexp(uniform(random, 1, 2), static_cast<int>(random.integer(-1022, 1022)))
                     : i % 3 == 1 ? uniform(random, 0.5, 2)
                                  : 1 + uniform(random, -1e-6, 1e-6);
    const long double exact = std::log(static_cast<long double>(x));
    CHECK(std::fabs(exact_log(x) - exact) <= std::max(1e-15L * std::fabs(exact), 1e-16L));
  }
}

TEST(elementary, log_at_the_ends_of_its_range) {
  CHECK_EQ(exact_log(1.0), 0.0);
  CHECK_EQ(exact_log(0.0), -HUGE_VAL);
  CHECK_EQ(exact_log(INFINITY), HUGE_VAL);
  CHECK(std::isnan(exact_log(-1.0)));
  CHECK(std::isnan(exact_log(NAN)));
}

TEST(elementary, sine_and_cosine_are_right_where_they_say_so) {
  Random random(3);
  for (int64_t i = 0; i < cases(); ++i) {
    const double bound = i % 3 == 0 ? 8 : i % 3 == 1 ? 131072 : 1073741823;
    const double x = uniform(random, -bound, bound);
    double sine, cosine;
    exact_sincos(x, &sine, &cosine);
    const long double allowed = 1e-15L;
    CHECK(std::fabs(sine - std::sin(static_cast<long double>(x))) <= allowed);
    CHECK(std::fabs(cosine - std::cos(static_cast<long double>(x))) <= allowed);
  }
}

TEST(elementary, fma_of_hard_values) {
  for (const float a : kHard) {
    for (const float b : kHard) {
      for (const float c : kHard) check_fma(a, b, c);
    }
  }
}

TEST(elementary, fma_of_random_bits) {
  Random random(4);
  for (int64_t i = 0; i < 5 * cases(); ++i) {
    check_fma(float_of(random.bits()), float_of(random.bits()), float_of(random.bits()));
  }
}

// c near -a b, to the last place and beside it, so that almost everything cancels.
TEST(elementary, fma_of_cancelling_terms) {
  Random random(5);
  for (int64_t i = 0; i < cases(); ++i) {
    const float a = random.unit(), b = random.unit();
    const float product = a * b;
    for (const int32_t away : {-1, 0, 1, 2}) {
      check_fma(a, b, float_of(bits_of(-product) + static_cast<uint32_t>(away)));
    }
  }
}

// Products far below the last place of c: what rounds twice goes wrong where c + a b lies beside a tie.
TEST(elementary, fma_beside_ties) {
  Random random(6);
  for (int64_t i = 0; i < cases(); ++i) {
    // The exact product of two 12-bit numbers is half a unit of c's last place; a third adds or takes a little.
    const float c = static_cast<float>(random.integer(1 << 23, (1 << 24) - 1));
    const float scale = std::ldexp(1.0f, static_cast<int>(random.integer(-100, 60)));
    check_fma(0.5f, scale, c * scale);
    check_fma(std::nextafter(0.5f, static_cast<float>(random.integer(0, 1))), scale, c * scale);
    check_fma(-0.5f, scale, c * scale);
    check_fma(std::ldexp(random.unit(), -40), scale, (c + 0.5f) * scale);
    check_fma(1.0f + 0x1p-12f, (0.5f + 0x1p-13f) * scale, c * scale);
  }
}

// Results below 2^-126 have fewer bits, and are rounded to those at once.
TEST(elementary, fma_with_subnormal_results) {
  Random random(7);
  for (int64_t i = 0; i < cases(); ++i) {
    const float a = std::ldexp(random.unit(), static_cast<int>(random.integer(-80, -50)));
    const float b = std::ldexp(random.unit(), static_cast<int>(random.integer(-80, -60)));
    check_fma(a, b, std::ldexp(random.unit(), static_cast<int>(random.integer(-149, -120))));
    check_fma(a, b, 0.0f);
    check_fma(a, b, 1e-45f);
  }
}

TEST(elementary, fma_near_overflow) {
  Random random(8);
  for (int64_t i = 0; i < cases(); ++i) {
    const float a = std::ldexp(1 + std::fabs(random.unit()), 64), b = std::ldexp(1 + std::fabs(random.unit()), 62);
    check_fma(a, b, random.unit() * FLT_MAX);
    check_fma(FLT_MAX, 1.0f, std::ldexp(random.unit(), 104));
  }
}
