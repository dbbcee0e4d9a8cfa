// The codecs: what goes in comes out within the bound that each format's header states.

#include <cmath>

#include "base/error.h"
#include "check.h"
#include "quant/half.h"
#include "quant/matrix.h"
#include "random.h"

using namespace llmcore;
using namespace llmcore::test;

namespace {

constexpr Format kIntegers[] = {Format::kInt8, Format::kInt4, Format::kTernary, Format::kTernaryDense,
                                Format::kInt2, Format::kInt3, Format::kInt5,    Format::kInt6};

bool has_groups(Format format, int64_t group_size) {
  return format != Format::kTernaryDense || group_size == 0 || group_size == TritLines::kGroup;
}

std::string describe(Format format, int64_t group_size) {
  return std::string(format_name(format)) + " in groups of " + std::to_string(group_size);
}

Matrix packed(Format format, int64_t N, int64_t K, int64_t group_size, const std::vector<float>& w) {
  ThreadPool pool(2);
  Matrix m(format, N, K, group_size);
  m.set_rows(0, N, w.data(), Element::kF32, false, pool);
  return m;
}

std::vector<float> decoded(const Matrix& m) {
  std::vector<float> out(static_cast<size_t>(m.N() * m.K()));
  for (int64_t n = 0; n < m.N(); ++n) m.decode_row(n, out.data() + n * m.K());
  return out;
}

// Extreme codes of a format, around zero.
std::pair<int, int> code_range(Format format) {
  return visit_codec(format, []<class Codec>() { return std::pair(-Codec::kZero, Codec::kMaxCode - Codec::kZero); });
}

}  // namespace

TEST(quant, float_formats_keep_what_they_can_hold) {
  for (const int64_t N : {1, 15, 16, 17, 40}) {
    for (const int64_t K : {1, 7, 33}) {
      const std::vector<float> w = Random(static_cast<uint64_t>(N * K)).units(N * K);
      std::vector<float> half = w, bfloat = w;
      for (float& x : half) x = half_to_float(float_to_half(x));
      for (float& x : bfloat) x = bfloat_to_float(float_to_bfloat(x));
      CHECK(decoded(packed(Format::kF32, N, K, 0, w)) == w);
      CHECK(decoded(packed(Format::kF16, N, K, 0, w)) == half);
      CHECK(decoded(packed(Format::kBF16, N, K, 0, w)) == bfloat);
    }
  }
}

TEST(quant, integer_formats_are_within_their_bound) {
  for (const Format format : kIntegers) {
    if (format == Format::kTernary || format == Format::kTernaryDense)
      continue;  // its error is bounded by the weights, not by the scale
    for (const int64_t group_size : {0, 16, 32, 64, 128}) {
      for (const int64_t K : {1, 31, 32, 100, 257}) {
        NOTE(describe(format, group_size) + ", K " + std::to_string(K));
        const std::vector<float> w = Random(static_cast<uint64_t>(K)).units(19 * K, 0.3f);
        const Matrix m = packed(format, 19, K, group_size, w);
        const std::vector<float> got = decoded(m);
        std::vector<int8_t> codes(static_cast<size_t>(K));
        std::vector<float> scales(static_cast<size_t>(m.groups()));
        for (int64_t n = 0; n < 19; ++n) {
          m.read_codes(n, codes.data(), scales.data());
          for (int64_t k = 0; k < K; ++k) {
            const float scale = std::fabs(scales[static_cast<size_t>(group_size ? k / group_size : 0)]);
            const float error = std::fabs(got[static_cast<size_t>(n * K + k)] - w[static_cast<size_t>(n * K + k)]);
            // Half a step, or a whole one at the end that the maximum's sign leaves short; the rounding of a
            // float16 scale, 2^-11 of it, times the largest code.
            const bool last = format != Format::kInt8 && codes[static_cast<size_t>(k)] == code_range(format).second;
            const float step = last ? 1.0f : 0.5f;
            CHECK(error <= scale * (step + (group_size ? 0.07f : 1e-4f)));
          }
        }
      }
    }
  }
}

TEST(quant, codes_and_scales_come_back_exactly) {
  for (const Format format : kIntegers) {
    const auto [lowest, highest] = code_range(format);
    for (const int64_t group_size : {0, 32, 128}) {
      if (!has_groups(format, group_size)) continue;
      for (const int64_t K : {1, 16, 37, 160, 384, 800}) {
        NOTE(describe(format, group_size) + ", K " + std::to_string(K));
        constexpr int64_t N = 18;
        Random random(static_cast<uint64_t>(K));
        Matrix m(format, N, K, group_size);
        std::vector<int8_t> codes(static_cast<size_t>(N * K)), row(static_cast<size_t>(K));
        std::vector<float> scales(static_cast<size_t>(N * m.groups())), row_scales(static_cast<size_t>(m.groups()));
        for (int8_t& c : codes) c = static_cast<int8_t>(random.integer(lowest, highest));
        for (float& s : scales) s = half_to_float(float_to_half(random.unit()));
        m.set_codes(0, N, codes.data(), scales.data());
        const std::vector<float> values = decoded(m);
        for (int64_t n = 0; n < N; ++n) {
          m.read_codes(n, row.data(), row_scales.data());
          CHECK(std::equal(row.begin(), row.end(), codes.begin() + n * K));
          CHECK(std::equal(row_scales.begin(), row_scales.end(), scales.begin() + n * m.groups()));
          for (int64_t k = 0; k < K; ++k) {
            const float scale = row_scales[static_cast<size_t>(group_size ? k / group_size : 0)];
            CHECK_EQ(values[static_cast<size_t>(n * K + k)], scale * static_cast<float>(row[static_cast<size_t>(k)]));
          }
        }
      }
    }
  }
}

TEST(quant, packing_again_what_was_unpacked_changes_nothing) {
  for (const Format format : kIntegers) {
    for (const int64_t group_size : {0, 64}) {
      if (!has_groups(format, group_size)) continue;
      NOTE(describe(format, group_size));
      const Matrix once = packed(format, 20, 130, group_size, Random(8).units(20 * 130));
      const std::vector<float> values = decoded(once);
      CHECK(decoded(packed(format, 20, 130, group_size, values)) == values);
    }
  }
}

TEST(quant, ternary_weights_are_kept_exactly) {
  Random random(6);
  for (const float magnitude : {0.375f, 0.1f, 0.0123456789f, 3e-5f, 7.77f}) {
    for (const int64_t K : {1, 96, 5000}) {
      NOTE(std::to_string(magnitude) + ", K " + std::to_string(K));
      std::vector<float> w(static_cast<size_t>(17 * K)), half = w;
      for (size_t i = 0; i < w.size(); ++i) {
        w[i] = static_cast<float>(random.integer(-1, 1)) * magnitude;
        half[i] = half_to_float(float_to_half(w[i]));
      }
      CHECK(decoded(packed(Format::kTernary, 17, K, 0, w)) == w);
      CHECK(decoded(packed(Format::kTernary, 17, K, 32, half)) == half);
    }
  }
}

TEST(quant, a_row_of_zeros_stays_zero) {
  for (const Format format : kIntegers) {
    for (const int64_t group_size : {0, 32}) {
      if (!has_groups(format, group_size)) continue;
      NOTE(describe(format, group_size));
      const std::vector<float> zeros(3 * 40, 0.0f);
      CHECK(decoded(packed(format, 3, 40, group_size, zeros)) == zeros);
    }
  }
}

TEST(quant, a_weight_that_is_not_finite_shows_in_its_group_alone) {
  for (const Format format : kIntegers) {
    if (!has_groups(format, 32)) continue;
    for (const float bad : {NAN, INFINITY}) {
      NOTE(describe(format, 32));
      std::vector<float> w = Random(4).units(2 * 96);
      w[40] = bad;  // row 0, the second of three groups
      const std::vector<float> got = decoded(packed(format, 2, 96, 32, w));
      for (size_t i = 0; i < got.size(); ++i) CHECK_EQ(std::isnan(got[i]), i >= 32 && i < 64);
    }
  }
}

TEST(quant, every_element_type_and_a_transposed_source_give_the_same_codes) {
  constexpr int64_t N = 21, K = 50;
  std::vector<float> w = Random(3).units(N * K), transposed(N * K);
  for (float& x : w) x = static_cast<float>(static_cast<int>(x * 128)) / 128;  // exact in every type
  std::vector<uint16_t> half, bfloat;
  for (const float x : w) {
    half.push_back(float_to_half(x));
    bfloat.push_back(float_to_bfloat(x));
  }
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t k = 0; k < K; ++k) transposed[static_cast<size_t>(k * N + n)] = w[static_cast<size_t>(n * K + k)];
  }
  ThreadPool pool(2);
  for (const Format format : {Format::kF32, Format::kInt8, Format::kInt4, Format::kTernary}) {
    NOTE(format_name(format));
    const std::vector<float> expected = decoded(packed(format, N, K, 0, w));
    const auto from = [&](const void* values, Element element, bool turned) {
      Matrix m(format, N, K, 0);
      m.set_rows(0, N, values, element, turned, pool);
      return decoded(m);
    };
    CHECK(from(half.data(), Element::kF16, false) == expected);
    CHECK(from(bfloat.data(), Element::kBF16, false) == expected);
    CHECK(from(transposed.data(), Element::kF32, true) == expected);
  }
}

TEST(quant, rows_set_in_parts_are_the_rows_set_at_once) {
  constexpr int64_t N = 37, K = 70;
  const std::vector<float> w = Random(2).units(N * K);
  ThreadPool pool(1);
  for (const Format format : {Format::kF16, Format::kInt8, Format::kInt4, Format::kTernary}) {
    NOTE(format_name(format));
    Matrix m(format, N, K, 0);
    for (int64_t first = 0; first < N; first += 5) {
      m.set_rows(first, std::min<int64_t>(5, N - first), w.data() + first * K, Element::kF32, false, pool);
    }
    CHECK(decoded(m) == decoded(packed(format, N, K, 0, w)));
  }
}

TEST(quant, a_matrix_takes_the_bytes_it_said_it_would) {
  for (const Format format : {Format::kF32, Format::kBF16, Format::kInt8, Format::kInt4, Format::kTernary}) {
    for (const int64_t K : {1, 100, 512}) {
      CHECK_EQ(Matrix(format, 33, K, 0).nbytes(), matrix_bytes(format, 33, K, 0));
      if (!is_integer(format)) continue;
      CHECK_EQ(Matrix(format, 33, K, 64).nbytes(), matrix_bytes(format, 33, K, 64));
      for (const Element scales : {Element::kF32, Element::kF16, Element::kInt8}) {
        for (const bool zero_points : {false, true}) {
          if (zero_points && format != Format::kInt4) continue;
          CHECK_EQ(Matrix(format, 33, K, 64, scales, zero_points).nbytes(),
                   matrix_bytes(format, 33, K, 64, zero_points, scales));
        }
      }
    }
  }
}

// Half a step, and what the rounding of scale and minimum to multiples of their units does to the largest code.
TEST(quant, double_quantisation_is_within_its_bound) {
  ThreadPool pool(1);
  for (const Format format : {Format::kInt8, Format::kInt4}) {
    for (const bool minima : {false, true}) {
      if (minima && format == Format::kInt8) continue;
      for (const bool search : {false, true}) {
        NOTE(std::string(format_name(format)) + (minima ? ", minima" : "") + (search ? ", searched" : ""));
        constexpr int64_t N = 19, K = 600, kGroup = 32;
        std::vector<float> w = Random(5).units(N * K, 0.3f);
        for (int64_t i = 0; i < N * K; ++i) w[static_cast<size_t>(i)] *= 1.0f + static_cast<float>(i / kGroup % 3);
        Matrix m(format, N, K, kGroup, Element::kInt8, minima);
        m.set_rows(0, N, w.data(), Element::kF32, false, pool, search);
        const std::vector<float> got = decoded(m);
        std::vector<int8_t> codes(static_cast<size_t>(K));
        std::vector<float> scales(static_cast<size_t>(m.groups())), zeros(scales), minimum(scales);
        const double most = format == Format::kInt8 ? 127 : minima ? 15 : 8;
        double squares = 0, plain = 0;
        for (int64_t n = 0; n < N; ++n) {
          m.read_codes(n, codes.data(), scales.data(), zeros.data(), minimum.data());
          for (int64_t k = 0; k < K; ++k) {
            const size_t g = static_cast<size_t>(k / kGroup), i = static_cast<size_t>(n * K + k);
            const double exact =
                (codes[static_cast<size_t>(k)] - static_cast<double>(zeros[g])) * scales[g] - minimum[g];
            CHECK(std::fabs(got[i] - exact) <= 1e-6);
            const double step = std::fabs(static_cast<double>(scales[g])),
                         unit = 1.0 / most / 127;  // of weights below 1
            const double bound = step * (most == 8 ? 1.0 : 0.5) + (most / 2 + 1) * unit * 1.01;
            if (!search) CHECK(std::fabs(got[i] - w[i]) <= bound);
            squares += (got[i] - w[i]) * (got[i] - w[i]);
          }
        }
        Matrix half(format, N, K, kGroup, Element::kF16, minima);
        half.set_rows(0, N, w.data(), Element::kF32, false, pool, search);
        const std::vector<float> other = decoded(half);
        for (size_t i = 0; i < w.size(); ++i) plain += (other[i] - w[i]) * (other[i] - w[i]);
        CHECK(squares <= plain * (format == Format::kInt8 ? 1.15 : 1.06));  // of what float16 scales leave
      }
    }
  }
}

// What ggml's Q4_K holds: 6-bit multiples of float16 units, codes and minima from 0 up.
TEST(quant, double_quantised_codes_come_back_exactly) {
  constexpr int64_t N = 18, K = 520, kGroup = 32;
  Matrix m(Format::kInt4, N, K, kGroup, Element::kInt8, true);
  Random random(8);
  const int64_t groups = m.groups(), units = (groups + 7) / 8;
  std::vector<float> scale_units(static_cast<size_t>(N * units)), minimum_units(scale_units);
  for (float& u : scale_units) u = half_to_float(float_to_half(random.unit()));
  for (float& u : minimum_units) u = half_to_float(float_to_half(random.unit()));
  std::vector<int8_t> codes(static_cast<size_t>(N * K)), row(static_cast<size_t>(K));
  std::vector<float> scales(static_cast<size_t>(N * groups)), minima(scales);
  for (int8_t& c : codes) c = static_cast<int8_t>(random.integer(-8, 7));
  for (int64_t i = 0; i < N * groups; ++i) {
    const size_t u = static_cast<size_t>(i / groups * units + i % groups / 8);
    scales[static_cast<size_t>(i)] = scale_units[u] * static_cast<float>(random.integer(0, 63));
    minima[static_cast<size_t>(i)] = minimum_units[u] * static_cast<float>(random.integer(0, 63));
  }
  m.set_units(0, N, scale_units.data(), minimum_units.data());
  m.set_codes(0, N, codes.data(), scales.data(), minima.data());
  std::vector<float> row_scales(static_cast<size_t>(groups)), zeros(row_scales), row_minima(row_scales);
  const std::vector<float> values = decoded(m);
  for (int64_t n = 0; n < N; ++n) {
    m.read_codes(n, row.data(), row_scales.data(), zeros.data(), row_minima.data());
    CHECK(std::equal(row.begin(), row.end(), codes.begin() + n * K));
    CHECK(std::equal(row_scales.begin(), row_scales.end(), scales.begin() + n * groups));
    CHECK(std::equal(row_minima.begin(), row_minima.end(), minima.begin() + n * groups));
    for (int64_t k = 0; k < K; ++k) {
      const size_t g = static_cast<size_t>(k / kGroup);
      CHECK_EQ(values[static_cast<size_t>(n * K + k)],
               row_scales[g] * static_cast<float>(row[static_cast<size_t>(k)] + 8) - row_minima[g]);
    }
  }
  const float off[] = {0.3f};
  Matrix small(Format::kInt4, 1, 2, kGroup, Element::kInt8, false);
  const int8_t two[] = {1, 2};
  CHECK_THROWS(QuantError, small.set_units(0, 1, off));
  const float unit[] = {0.25f};
  small.set_units(0, 1, unit);
  CHECK_THROWS(QuantError, small.set_codes(0, 1, two, off));
  CHECK_THROWS(ArgumentError, Matrix(Format::kInt4, 1, 2, 0, Element::kInt8));
  CHECK_THROWS(ArgumentError, Matrix(Format::kInt8, 1, 2, 32, Element::kF16, false, true));
}

TEST(quant, what_a_format_cannot_hold_is_a_typed_error) {
  Matrix m(Format::kInt4, 1, 2, 32);
  const float exact = 0.5f, inexact = 0.1f;
  const int8_t good[] = {7, -8}, bad[] = {8, 0};
  m.set_codes(0, 1, good, &exact);
  CHECK_THROWS(QuantError, m.set_codes(0, 1, bad, &exact));
  CHECK_THROWS(QuantError, m.set_codes(0, 1, good, &inexact));
  CHECK_THROWS(ArgumentError, m.set_codes(1, 1, good, &exact));
}

TEST(quant, impossible_shapes_are_typed_errors) {
  CHECK_THROWS(ArgumentError, Matrix(Format::kInt8, 0, 1, 0));
  CHECK_THROWS(ArgumentError, Matrix(Format::kInt8, 1, -1, 0));
  CHECK_THROWS(ArgumentError, Matrix(Format::kInt8, 1, 1, 48));
  CHECK_THROWS(ArgumentError, Matrix(Format::kF32, 1, 1, 32));
  CHECK_THROWS(LimitError, Matrix(Format::kInt8, 1, (int64_t{1} << 24) + 1, 0));
  CHECK_THROWS(ArgumentError, format_from_name("int7"));
}
