#pragma once
// Elementary functions in double, from + - * / and bit operations alone: libm differs between systems, and the forward
// pass and the sampler must not. Used outside the kernels, where a few hundred calls a token are made.

#include <cstdint>
#include <cstring>
#include <limits>

namespace llmcore {

/// e^x; relative error below 1e-15 for |x| < 700.
inline double exact_exp(double x) {
  if (x != x) return x;
  if (x > 709.7) return std::numeric_limits<double>::infinity();
  if (x < -745.0) return 0.0;
  const double magic = 6755399441055744.0;  // 1.5 * 2^52
  const double n = (x * 1.4426950408889634074 + magic) - magic;
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.0;  // Taylor, |r| <= 0.347: the term of degree 14 is below 1e-17
  for (int k = 14; k >= 1; --k) p = 1.0 + p * r / k;
  const int64_t e = static_cast<int64_t>(n);
  const int64_t half = e / 2;
  const auto power_of_two = [](int64_t k) {
    const uint64_t bits = static_cast<uint64_t>(k + 1023) << 52;
    double d;
    std::memcpy(&d, &bits, 8);
    return d;
  };
  return p * power_of_two(half) * power_of_two(e - half);
}

/// ln x for normal x > 0; relative error below 1e-15 away from 1, absolute 1e-16 near it. ln 0 is -infinity.
inline double exact_log(double x) {
  if (x != x || x < 0) return std::numeric_limits<double>::quiet_NaN();
  if (x == 0) return -std::numeric_limits<double>::infinity();
  if (x == std::numeric_limits<double>::infinity()) return x;
  uint64_t bits;
  std::memcpy(&bits, &x, 8);
  int64_t e = static_cast<int64_t>(bits >> 52) - 1023;
  bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
  double m;
  std::memcpy(&m, &bits, 8);
  if (m > 1.4142135623730951) {
    m *= 0.5;
    ++e;
  }
  const double z = (m - 1.0) / (m + 1.0), z2 = z * z;  // ln m = 2 artanh z, |z| <= 0.172
  double s = 0.0;
  for (int k = 23; k >= 1; k -= 2) s = s * z2 + 1.0 / k;
  return static_cast<double>(e) * 6.93147180559945286227e-01 + 2.0 * z * s;
}

/// sin and cos of x for |x| < 2^30; absolute error below 1e-15.
inline void exact_sincos(double x, double* sine, double* cosine) {
  const double magic = 6755399441055744.0;
  const double n = (x * 0.63661977236758134308 + magic) - magic;  // multiples of pi / 2
  const double coarse = 6755399441055744.0 * 4096;
  const double high = (n + coarse) - coarse;         // a multiple of 2^12, so that its product and the rest's are exact
  double r = x - high * 1.57079632673412561417e+00;  // pi / 2 in three parts of 33 bits
  r -= (n - high) * 1.57079632673412561417e+00;
  r -= n * 6.07710050630396597660e-11;
  r -= n * 2.02226624879595063154e-21;
  const double r2 = r * r;
  double s = 1.0, c = 1.0;
  for (int k = 20; k >= 2; k -= 2) {
    c = 1.0 - c * r2 / (k * (k - 1));
    s = 1.0 - s * r2 / (k * (k + 1));
  }
  s *= r;
  switch (static_cast<int64_t>(n) & 3) {
    case 0:
      *sine = s;
      *cosine = c;
      break;
    case 1:
      *sine = c;
      *cosine = -s;
      break;
    case 2:
      *sine = -s;
      *cosine = -c;
      break;
    default:
      *sine = -c;
      *cosine = s;
      break;
  }
}

}  // namespace llmcore
