// Kernels over one row: every table gives the scalar table's bits between guard pages, on ordinary values and on hard
// ones.

#include <cfloat>
#include <cmath>
#include <functional>

#include "cases.h"
#include "guarded.h"
#include "random.h"

using namespace llmcore;
using namespace llmcore::test;

namespace {

enum class Kind { kOrdinary, kZero, kSubnormal, kHuge, kWide, kInfinity, kNan };
constexpr Kind kKinds[] = {Kind::kOrdinary, Kind::kZero,     Kind::kSubnormal, Kind::kHuge,
                           Kind::kWide,     Kind::kInfinity, Kind::kNan};
const char* const kKindNames[] = {"ordinary", "zero", "subnormal", "huge", "of all magnitudes", "infinite", "NaN"};

std::vector<float> row(Kind kind, int64_t n, uint64_t seed) {
  Random random(seed);
  std::vector<float> x = random.units(n, 4.0f);
  for (float& v : x) {
    switch (kind) {
      case Kind::kOrdinary:
        break;
      case Kind::kZero:
        v = random.bits() % 2 ? 0.0f : -0.0f;
        break;
      case Kind::kSubnormal:
        v *= 1e-39f;
        break;
      case Kind::kHuge:
        v *= 8e37f;
        break;
      case Kind::kWide:
        v = std::ldexp(v, static_cast<int>(random.integer(-140, 120)));
        break;
      case Kind::kInfinity:
        v = random.integer(0, 7) ? v : v > 0 ? INFINITY : -INFINITY;
        break;
      case Kind::kNan:
        v = random.integer(0, 7) ? v : NAN;
        break;
    }
  }
  if (kind == Kind::kInfinity) x[static_cast<size_t>(n / 2)] = INFINITY;
  if (kind == Kind::kNan) x[static_cast<size_t>(n / 2)] = NAN;
  return x;
}

// Runs `kernel(table, x, y)` over lengths and kinds of values: x is the input, y the output of n elements. y starts as
// a copy of `initial(n)` if given.
using RowKernel = std::function<void(const KernelTable&, const float* x, float* y, int64_t n)>;

void compare_rows(const char* name, const RowKernel& kernel) {
  NOTE(name);
  int64_t index = 0;
  for (const int64_t n : kLengths) {
    for (const Kind kind : kKinds) {
      if (left_out(index++)) continue;
      NOTE(std::to_string(n) + " values, " + kKindNames[static_cast<int>(kind)]);
      const Edge edge = index % 2 ? Edge::kFront : Edge::kBack;
      Guarded<float> x(row(kind, n, static_cast<uint64_t>(n)), edge);
      const std::vector<float> start = row(Kind::kOrdinary, n, 5);
      Guarded<float> expected(start, edge);
      kernel(scalar_table(), x.data(), expected.data(), n);
      for (const KernelTable* table : other_tables()) {
        NOTE(table->name);
        Guarded<float> y(start, edge);
        kernel(*table, x.data(), y.data(), n);
        CHECK(same_bits(y.data(), expected.data(), n));
      }
    }
  }
}

using Gate = void (*KernelTable::*)(const float*, const float*, float*, int64_t) noexcept;
struct NamedGate {
  const char* name;
  Gate gate;
};
constexpr NamedGate kGates[] = {{"silu", &KernelTable::silu},
                                {"gelu_tanh", &KernelTable::gelu_tanh},
                                {"gelu", &KernelTable::gelu},
                                {"relu", &KernelTable::relu},
                                {"relu2", &KernelTable::relu2}};

// Largest error in units in the last place of the exact result, over normal results.
double ulps(float got, long double exact) {
  int exponent;
  std::frexp(static_cast<double>(exact), &exponent);
  return static_cast<double>(std::fabs(got - exact) / std::ldexp(1.0L, exponent - 24));
}

}  // namespace

TEST(rows, activations_have_the_scalar_bits) {
  for (const NamedGate& g : kGates) {
    compare_rows(g.name, [&](const KernelTable& table, const float* x, float* y, int64_t n) {
      (table.*g.gate)(x, nullptr, y, n);
    });
  }
}

TEST(rows, gated_activations_have_the_scalar_bits) {
  for (const NamedGate& g : kGates) {
    compare_rows(g.name, [&](const KernelTable& table, const float* x, float* y, int64_t n) {
      Guarded<float> up(row(Kind::kOrdinary, n, 8), Edge::kBack);
      (table.*g.gate)(x, up.data(), y, n);
    });
  }
}

TEST(rows, an_activation_in_place_is_the_same) {
  for (const NamedGate& g : kGates) {
    NOTE(g.name);
    for (const std::string& isa : available_isas()) {
      std::vector<float> x = row(Kind::kOrdinary, 37, 3), y(37);
      (kernels_named(isa).*g.gate)(x.data(), nullptr, y.data(), 37);
      (kernels_named(isa).*g.gate)(x.data(), nullptr, x.data(), 37);
      CHECK(same_bits(x.data(), y.data(), 37));
    }
  }
}

TEST(rows, norms_have_the_scalar_bits) {
  const auto with_weights =
      [](const std::function<void(const KernelTable&, const float*, float*, int64_t, float*, float*)>& f) {
        return [f](const KernelTable& table, const float* x, float* y, int64_t n) {
          Guarded<float> weight(row(Kind::kOrdinary, n, 8), Edge::kBack), bias(row(Kind::kOrdinary, n, 9), Edge::kBack);
          f(table, x, y, n, weight.data(), bias.data());
        };
      };
  compare_rows("rms_norm", with_weights([](const KernelTable& t, const float* x, float* y, int64_t n, float* w,
                                           float*) { t.rms_norm(x, w, 1e-5f, y, n); }));
  compare_rows("layer_norm", with_weights([](const KernelTable& t, const float* x, float* y, int64_t n, float* w,
                                             float* b) { t.layer_norm(x, w, b, 1e-5f, y, n); }));
  compare_rows("layer_norm without bias",
               with_weights([](const KernelTable& t, const float* x, float* y, int64_t n, float* w, float*) {
                 t.layer_norm(x, w, nullptr, 1e-5f, y, n);
               }));
}

TEST(rows, softmax_and_its_statistics_have_the_scalar_bits) {
  compare_rows("softmax", [](const KernelTable& t, const float* x, float* y, int64_t n) { t.softmax(x, y, n); });
  compare_rows("softmax_statistics", [](const KernelTable& t, const float* x, float* y, int64_t n) {
    float maximum, sum;
    t.softmax_statistics(x, 0.7f, n, &maximum, &sum);
    y[0] = n % 2 ? maximum : sum;
  });
}

TEST(rows, add_scale_softcap_and_exp_have_the_scalar_bits) {
  compare_rows("softcap", [](const KernelTable& t, const float* x, float* y, int64_t n) {
    std::memcpy(y, x, static_cast<size_t>(n) * sizeof(float));
    t.softcap(y, 1.75f, n);
  });
  compare_rows("add", [](const KernelTable& t, const float* x, float* y, int64_t n) { t.add(x, y, n); });
  compare_rows("scale", [](const KernelTable& t, const float* x, float* y, int64_t n) {
    std::memcpy(y, x, static_cast<size_t>(n) * sizeof(float));
    t.scale(y, 0.3f, n);
  });
  compare_rows("exp", [](const KernelTable& t, const float* x, float* y, int64_t n) { t.exp(x, y, n); });
}

TEST(rows, rope_has_the_scalar_bits) {
  compare_rows("rope", [](const KernelTable& t, const float* x, float* y, int64_t n) {
    const int64_t half = n / 2;
    if (half == 0) return;
    std::memcpy(y, x, static_cast<size_t>(2 * half) * sizeof(float));
    Guarded<float> cosines(row(Kind::kOrdinary, half, 6), Edge::kBack),
        sines(row(Kind::kOrdinary, half, 7), Edge::kBack);
    t.rope(y, cosines.data(), sines.data(), half);
  });
  compare_rows("interleaved rope", [](const KernelTable& t, const float* x, float* y, int64_t n) {
    const int64_t half = n / 2;
    if (half == 0) return;
    std::memcpy(y, x, static_cast<size_t>(2 * half) * sizeof(float));
    Guarded<float> cosines(row(Kind::kOrdinary, half, 6), Edge::kBack),
        sines(row(Kind::kOrdinary, half, 7), Edge::kBack);
    t.rope_interleaved(y, cosines.data(), sines.data(), half);
  });
}

TEST(rows, quantised_rows_have_the_scalar_bits) {
  int64_t index = 0;
  for (const int64_t n : kLengths) {
    for (const Kind kind : kKinds) {
      for (const int64_t group : {16, 32, 64, 128}) {
        if (left_out(index++)) continue;
        NOTE(std::to_string(n) + " values in groups of " + std::to_string(group) + ", " +
             kKindNames[static_cast<int>(kind)]);
        const Edge edge = index % 2 ? Edge::kFront : Edge::kBack;
        const int64_t padded = (n + 15) / 16 * 16, groups = (padded + group - 1) / group;
        const int64_t stride = index / 4 % 2 ? 1 : 3, last = (groups - 1) * stride + 1;
        Guarded<float> x(row(kind, n, static_cast<uint64_t>(n)), edge);
        const auto quantize = [&](const KernelTable& table, std::vector<float>* scales) {
          Guarded<int8_t> codes(padded, edge);
          Guarded<int32_t> sums(last, edge);
          Guarded<float> scale(last, edge);
          table.quantize_row(x.data(), n, padded, group, codes.data(), scale.data(), sums.data(), stride);
          *scales = scale.values();
          return std::pair(codes.values(), sums.values());
        };
        std::vector<float> expected_scales, scales;
        const auto expected = quantize(scalar_table(), &expected_scales);
        for (const KernelTable* table : other_tables()) {
          NOTE(table->name);
          CHECK(quantize(*table, &scales) == expected);
          CHECK(same_bits(scales.data(), expected_scales.data(), last));
        }
        // Where they go is all that a stride changes.
        std::vector<int8_t> codes(static_cast<size_t>(padded));
        std::vector<float> dense(static_cast<size_t>(groups));
        std::vector<int32_t> sums(static_cast<size_t>(groups));
        scalar_table().quantize_row(x.data(), n, padded, group, codes.data(), dense.data(), sums.data(), 1);
        for (int64_t g = 0; g < groups; ++g) {
          CHECK(same_bits(&dense[static_cast<size_t>(g)], &expected_scales[static_cast<size_t>(g * stride)], 1));
          CHECK(sums[static_cast<size_t>(g)] == expected.second[static_cast<size_t>(g * stride)]);
        }
      }
    }
  }
}

TEST(rows, a_quantised_row_is_within_half_a_step) {
  for (const int64_t n : {1, 33, 300}) {
    const std::vector<float> x = row(Kind::kOrdinary, n, 21);
    const int64_t padded = (n + 15) / 16 * 16, groups = (padded + 63) / 64;
    std::vector<int8_t> codes(static_cast<size_t>(padded));
    std::vector<float> scales(static_cast<size_t>(groups));
    std::vector<int32_t> sums(static_cast<size_t>(groups)), expected_sums(static_cast<size_t>(groups));
    scalar_table().quantize_row(x.data(), n, padded, 64, codes.data(), scales.data(), sums.data(), 1);
    for (int64_t i = 0; i < padded; ++i) {
      const double value = i < n ? x[i] : 0.0, scale = scales[i / 64];
      CHECK(codes[i] != -128);
      CHECK(std::fabs(value - codes[i] * scale) <= scale * (0.5 + 1e-4));
      expected_sums[i / 64] += codes[i];
    }
    CHECK(sums == expected_sums);
  }
}

TEST(rows, a_value_that_is_not_finite_makes_its_groups_scale_nan_and_no_other) {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const int64_t at : {0, 15, 16, 63, 64, 99}) {
      std::vector<float> x = row(Kind::kOrdinary, 100, 4);
      x[static_cast<size_t>(at)] = bad;
      std::vector<int8_t> codes(112);
      std::vector<float> scales(2);
      std::vector<int32_t> sums(2);
      for (const std::string& isa : available_isas()) {
        NOTE(isa);
        kernels_named(isa).quantize_row(x.data(), 100, 112, 64, codes.data(), scales.data(), sums.data(), 1);
        CHECK(std::isnan(scales[static_cast<size_t>(at / 64)]));
        CHECK(std::isfinite(scales[static_cast<size_t>(1 - at / 64)]));
      }
    }
  }
}

TEST(rows, queries_of_int12_are_words_whose_magnitudes_have_a_limit) {
  for (const int64_t n : {1, 16, 33, 64, 300}) {
    const int64_t padded = (n + 15) / 16 * 16;
    for (const Kind kind : kKinds) {
      NOTE(std::to_string(n) + " values, " + kKindNames[static_cast<int>(kind)]);
      Guarded<float> x(row(kind, n, 22), Edge::kBack);
      const auto quantize = [&](const KernelTable& table, float* scale) {
        Guarded<int16_t> words(padded, Edge::kBack);
        table.quantize_words(x.data(), n, padded, words.data(), scale);
        return words.values();
      };
      float scale;
      const std::vector<int16_t> words = quantize(scalar_table(), &scale);
      for (const KernelTable* table : other_tables()) {
        NOTE(table->name);
        float other;
        CHECK(quantize(*table, &other) == words);
        CHECK(same_bits(&other, &scale, 1));
      }
      int64_t sum = 0;
      for (int64_t i = 0; i < padded; ++i) {
        const double value = i < n ? x.data()[i] : 0.0, word = words[static_cast<size_t>(i)];
        sum += std::abs(words[static_cast<size_t>(i)]);
        CHECK(!std::isfinite(scale) || std::fabs(value - word * scale) <= scale * (0.5 + 0.01) + 1e-30);
      }
      CHECK(sum <= kMaxWordSum);
    }
  }
}

TEST(rows, exp_is_within_its_documented_error) {
  const KernelTable& table = kernels();
  double worst = 0;
  const int64_t steps = quick() ? 20'000 : 1'000'000;
  std::vector<float> x(16), y(16);
  for (int64_t i = 0; i < steps; ++i) {
    x[static_cast<size_t>(i % 16)] =
        static_cast<float>(-87.0 + 175.0 * static_cast<double>(i) / static_cast<double>(steps));
    if (i % 16 != 15) continue;
    table.exp(x.data(), y.data(), 16);
    for (size_t j = 0; j < 16; ++j) worst = std::max(worst, ulps(y[j], std::exp(static_cast<long double>(x[j]))));
  }
  NOTE("worst " + std::to_string(worst) + " ulp");
  CHECK(worst < 1.5);
}

TEST(rows, exp_at_the_ends_of_its_range) {
  const std::vector<float> x = {0.0f, -0.0f, -104.0f, -200.0f, -INFINITY, 89.0f, 1000.0f, INFINITY, NAN, 88.72283f};
  std::vector<float> y(x.size());
  for (const std::string& isa : available_isas()) {
    NOTE(isa);
    kernels_named(isa).exp(x.data(), y.data(), static_cast<int64_t>(x.size()));
    CHECK_EQ(y[0], 1.0f);
    CHECK_EQ(y[1], 1.0f);
    CHECK(y[2] <= FLT_TRUE_MIN && y[2] >= 0.0f);
    CHECK(y[3] <= FLT_TRUE_MIN && y[4] <= FLT_TRUE_MIN);
    CHECK_EQ(y[5], INFINITY);
    CHECK_EQ(y[6], INFINITY);
    CHECK_EQ(y[7], INFINITY);
    CHECK(std::isnan(y[8]));
    CHECK(std::isfinite(y[9]) && y[9] > 3.4e38f);
  }
}

TEST(rows, activations_are_right) {
  const auto logistic = [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
  const std::vector<float> x = row(Kind::kOrdinary, 300, 12);
  std::vector<float> y(300);
  const std::function<double(double)> exact[] = {
      [&](double v) { return v * logistic(v); },
      [](double v) { return 0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v))); },
      [](double v) { return 0.5 * v * std::erfc(-v / std::sqrt(2.0)); }, [](double v) { return v < 0 ? 0.0 : v; },
      [](double v) { return v < 0 ? 0.0 : v * v; }};
  for (size_t i = 0; i < 5; ++i) {
    NOTE(kGates[i].name);
    (scalar_table().*kGates[i].gate)(x.data(), nullptr, y.data(), 300);
    for (size_t j = 0; j < 300; ++j) CHECK(std::fabs(y[j] - exact[i](x[j])) <= 2e-6 * (std::fabs(x[j]) + 1e-3));
  }
}
