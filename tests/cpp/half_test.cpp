// float16 and bfloat16, against a reference that searches instead of shifting bits.

#include "quant/half.h"

#include <algorithm>
#include <cmath>

#include "cases.h"
#include "quant/matrix.h"
#include "random.h"

using namespace llmcore;
using namespace llmcore::test;

namespace {

// The value of a finite float16 of sign 0, in double.
double half_value(int bits) {
  const int exponent = bits >> 10, mantissa = bits & 0x3ff;
  return exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
}
// bits + 0x7c00 is where infinity would lie if the exponents went on.
const std::vector<double>& half_values() {
  static const std::vector<double> values = [] {
    std::vector<double> v;
    for (int bits = 0; bits <= 0x7c00; ++bits) v.push_back(half_value(bits));
    return v;
  }();
  return values;
}

// The nearest float16, ties to even, by search.
uint16_t nearest_half(float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(x));
  const std::vector<double>& values = half_values();
  const auto above = std::lower_bound(values.begin(), values.end(), magnitude);
  if (above == values.end()) return static_cast<uint16_t>(sign | 0x7c00);
  const int high = static_cast<int>(above - values.begin());
  if (*above == magnitude || high == 0) return static_cast<uint16_t>(sign | high);
  const double to_low = magnitude - values[static_cast<size_t>(high - 1)], to_high = *above - magnitude;
  const bool up = to_high < to_low || (to_high == to_low && high % 2 == 0);
  return static_cast<uint16_t>(sign | (up ? high : high - 1));
}

// Each boundary between two halves, and the floats beside it.
std::vector<float> boundaries() {
  std::vector<float> all;
  for (int bits = 0; bits < 0x7c00; ++bits) {
    const float middle = static_cast<float>((half_value(bits) + half_value(bits + 1)) / 2);  // exact: 12 bits
    for (const float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)}) {
      all.push_back(x);
      all.push_back(-x);
    }
  }
  for (const float x : {65519.996f, 65520.0f, 65536.0f, 1e9f, 3.4028235e38f, INFINITY, 1e-45f, 2.9e-8f, 0.0f}) {
    all.push_back(x);
    all.push_back(-x);
  }
  return all;
}

bool is_nan_half(int bits) { return (bits & 0x7fff) > 0x7c00; }

}  // namespace

TEST(half, every_float16_has_its_value) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float x = half_to_float(static_cast<uint16_t>(bits));
    if (is_nan_half(bits)) {
      CHECK(std::isnan(x));
    } else if ((bits & 0x7fff) == 0x7c00) {
      CHECK_EQ(x, bits & 0x8000 ? -INFINITY : INFINITY);
    } else {
      CHECK_EQ(x, (bits & 0x8000 ? -1.0 : 1.0) * half_value(bits & 0x7fff));
      CHECK_EQ(std::signbit(x), (bits & 0x8000) != 0);
    }
  }
}

TEST(half, every_float16_survives_float32) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const uint16_t back = float_to_half(half_to_float(static_cast<uint16_t>(bits)));
    if (is_nan_half(bits)) {
      CHECK(is_nan_half(back));
    } else {
      CHECK_EQ(back, bits);
    }
  }
}

TEST(half, every_bfloat16_survives_float32) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const float x = bfloat_to_float(static_cast<uint16_t>(bits));
    CHECK_EQ(float_bits(x), static_cast<uint32_t>(bits) << 16);
    const uint16_t back = float_to_bfloat(x);
    if (std::isnan(x)) {
      CHECK(std::isnan(bfloat_to_float(back)));
    } else {
      CHECK_EQ(back, bits);
    }
  }
}

TEST(half, every_boundary_of_float16_rounds_to_even) {
  for (const float x : boundaries()) {
    NOTE(std::to_string(float_bits(x)));
    CHECK_EQ(float_to_half(x), nearest_half(x));
  }
}

TEST(half, random_floats_round_to_the_nearest_float16) {
  Random random(1);
  for (int64_t i = 0; i < (quick() ? 20'000 : 1'000'000); ++i) {
    // Half of them anywhere, half within the range of float16.
    const uint32_t bits = random.bits();
    const float x = i % 2 ? bits_float(bits) : std::ldexp(random.unit(), static_cast<int>(bits % 42) - 25);
    if (std::isnan(x)) {
      CHECK(is_nan_half(float_to_half(x)));
    } else if (float_to_half(x) != nearest_half(x)) {
      NOTE(std::to_string(float_bits(x)));
      CHECK_EQ(float_to_half(x), nearest_half(x));
    }
  }
}

TEST(half, random_floats_round_to_the_nearest_bfloat16) {
  Random random(2);
  for (int64_t i = 0; i < (quick() ? 20'000 : 500'000); ++i) {
    // Every fourth is a tie.
    const uint32_t bits = i % 4 ? random.bits() : (random.bits() & 0xffff0000u) | 0x8000u;
    const float x = bits_float(bits);
    const uint16_t got = float_to_bfloat(x);
    if (std::isnan(x)) {
      CHECK(std::isnan(bfloat_to_float(got)));
      continue;
    }
    const uint16_t low = static_cast<uint16_t>(bits >> 16);
    const uint32_t rest = bits & 0xffff;
    const bool up = rest > 0x8000 || (rest == 0x8000 && low % 2);
    CHECK_EQ(got, static_cast<uint16_t>(low + up));
  }
}

// The kernels' own conversions, through the entries that use them.

TEST(half, kernels_round_as_the_reference) {
  std::vector<float> x = boundaries();
  Random random(3);
  for (int64_t i = 0; i < 40'000; ++i) x.push_back(bits_float(random.bits()));
  x.resize(x.size() / 16 * 16);
  std::vector<uint16_t> page(16 * 16);
  for (const std::string& isa : available_isas()) {
    NOTE(isa);
    for (const KvType type : {kKvF16, kKvBF16}) {
      for (size_t i = 0; i < x.size(); i += 16) {
        kernels_named(isa).store_value[type](x.data() + i, 16, 0, reinterpret_cast<uint8_t*>(page.data()));
        for (size_t j = 0; j < 16; ++j) {
          if (std::isnan(x[i + j])) {
            CHECK(type == kKvF16 ? is_nan_half(page[j]) : std::isnan(bfloat_to_float(page[j])));
          } else {
            CHECK_EQ(page[j], type == kKvF16 ? float_to_half(x[i + j]) : float_to_bfloat(x[i + j]));
          }
        }
      }
    }
  }
}

TEST(half, kernels_read_every_float16_and_bfloat16) {
  std::vector<uint16_t> bits(0x10000);
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = static_cast<uint16_t>(i);
  const float one = 1.0f;
  std::vector<float> y(bits.size());
  for (const Format format : {Format::kF16, Format::kBF16}) {
    for (const std::string& isa : available_isas()) {
      NOTE(std::string(format_name(format)) + " on " + isa);
      MatmulArgs a{};  // K 1 and x 1: y is w. A panel of one k is sixteen elements in order.
      a.codes = reinterpret_cast<const uint8_t*>(bits.data());
      a.panel_bytes = 32;
      a.K = a.M = 1;
      a.N = a.y_stride = 0x10000;
      a.xf = &one;
      a.xf_stride = 1;
      a.y = y.data();
      a.panel_end = 0x1000;
      kernels_named(isa).matmul[static_cast<int>(format)](a);
      for (size_t i = 0; i < bits.size(); ++i) {
        const float expected = format == Format::kF16 ? half_to_float(bits[i]) : bfloat_to_float(bits[i]);
        CHECK(y[i] == expected || (std::isnan(y[i]) && std::isnan(expected)));
      }
    }
  }
}
