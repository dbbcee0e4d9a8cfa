// Each instruction set that this CPU has gives the scalar kernels' bits, for every length around the lanes' sixteen.

#include <cmath>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "cpp/check.h"
#include "kernels/select.h"
#include "ops/matmul.h"
#include "quant/matrix.h"

namespace llmcore::test {
namespace {

constexpr int64_t kLengths[] = {1, 2, 15, 16, 17, 31, 33, 64, 100, 257};
constexpr float kPoison = 12345.0f;  // what lies behind a kernel's output and must still lie there afterwards

/// Runs `compute(table, n, out)` on scalar and every other table, and compares the n outputs and what lies behind.
void compare(const char* what, const std::function<void(const KernelTable&, int64_t, float*)>& compute) {
  for (const int64_t n : kLengths) {
    std::vector<float> expected(static_cast<size_t>(n) + 4, kPoison);
    compute(kernels_named("scalar"), n, expected.data());
    for (const std::string& isa : available_isas()) {
      std::vector<float> got(static_cast<size_t>(n) + 4, kPoison);
      compute(kernels_named(isa), n, got.data());
      CHECK_SAID(same_bits(expected, got), std::string(what) + " on " + isa + ", n = " + std::to_string(n));
      CHECK_SAID(got.back() == kPoison, std::string(what) + " on " + isa + " writes behind its output");
    }
  }
}

using Gate = void (*KernelTable::*)(const float*, const float*, float*, int64_t) noexcept;

}  // namespace

TEST(activations_have_the_scalar_bits) {
  const std::vector<float> x = Numbers(1).take(300, 12.0f), up = Numbers(2).take(300, 2.0f);
  for (const Gate gate :
       {&KernelTable::silu, &KernelTable::gelu_tanh, &KernelTable::gelu, &KernelTable::relu, &KernelTable::relu2}) {
    compare("gated activation",
            [&](const KernelTable& t, int64_t n, float* y) { (t.*gate)(x.data(), up.data(), y, n); });
    compare("activation", [&](const KernelTable& t, int64_t n, float* y) { (t.*gate)(x.data(), nullptr, y, n); });
  }
}

TEST(norms_have_the_scalar_bits) {
  const std::vector<float> x = Numbers(3).take(300, 3.0f), w = Numbers(4).take(300), b = Numbers(5).take(300);
  compare("rms_norm", [&](const KernelTable& t, int64_t n, float* y) { t.rms_norm(x.data(), w.data(), 1e-5f, y, n); });
  compare("layer_norm",
          [&](const KernelTable& t, int64_t n, float* y) { t.layer_norm(x.data(), w.data(), b.data(), 1e-5f, y, n); });
}

TEST(softmax_and_exp_have_the_scalar_bits) {
  const std::vector<float> x = Numbers(6).take(300, 90.0f);
  compare("softmax", [&](const KernelTable& t, int64_t n, float* y) { t.softmax(x.data(), y, n); });
  compare("exp", [&](const KernelTable& t, int64_t n, float* y) { t.exp(x.data(), y, n); });
  compare("softmax_statistics", [&](const KernelTable& t, int64_t n, float* y) {
    float maximum = 0, sum = 0;
    t.softmax_statistics(x.data(), 0.7f, n, &maximum, &sum);
    y[0] = maximum;
    if (n > 1) y[1] = sum;
  });
}

TEST(exp_is_within_two_ulp_of_the_library) {
  const std::vector<float> x = Numbers(7).take(257, 80.0f);
  std::vector<float> y(257);
  kernels().exp(x.data(), y.data(), 257);
  for (size_t i = 0; i < y.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    CHECK_SAID(std::fabs(y[i] - exact) <= exact * 2.4e-7, "exp of " + std::to_string(x[i]));
  }
}

TEST(elementwise_kernels_have_the_scalar_bits) {
  const std::vector<float> x = Numbers(8).take(300);
  compare("add", [&](const KernelTable& t, int64_t n, float* y) { t.add(x.data(), y, n); });
  compare("scale", [&](const KernelTable& t, int64_t n, float* y) { t.scale(y, 0.3f, n); });
}

TEST(rope_has_the_scalar_bits) {
  const std::vector<float> x = Numbers(9).take(300), c = Numbers(10).take(300), s = Numbers(11).take(300);
  compare("rope", [&](const KernelTable& t, int64_t n, float* y) {
    const int64_t half = n / 2;
    std::memcpy(y, x.data(), static_cast<size_t>(2 * half) * sizeof(float));
    if (half > 0) t.rope(y, c.data(), s.data(), half);
  });
}

TEST(quantised_rows_have_the_scalar_bits) {
  std::vector<float> x = Numbers(12).take(300, 5.0f);
  x[3] = 0.0f;
  for (const int64_t n : kLengths) {
    const int64_t group = 64, padded = (n + group - 1) / group * group, groups = padded / group;
    const auto quantise = [&](const KernelTable& t) {
      std::vector<int8_t> codes(static_cast<size_t>(padded), 99);
      std::vector<float> scales(static_cast<size_t>(groups));
      std::vector<int32_t> sums(static_cast<size_t>(groups));
      t.quantize_row(x.data(), n, padded, group, codes.data(), scales.data(), sums.data());
      Digest digest;
      digest.add(codes);
      digest.add(scales);
      digest.add(sums);
      return digest.value();
    };
    for (const std::string& isa : available_isas()) {
      CHECK_SAID(quantise(kernels_named(isa)) == quantise(kernels_named("scalar")),
                 "quantize_row on " + isa + ", n = " + std::to_string(n));
    }
  }
}

TEST(matrix_products_have_the_scalar_bits) {
  ThreadPool pool(1);
  for (const Format format :
       {Format::kF32, Format::kBF16, Format::kF16, Format::kInt8, Format::kInt4, Format::kTernary}) {
    for (const int64_t group_size : {0, 32, 128}) {
      if (group_size != 0 && !is_integer(format)) continue;
      for (const int64_t K : {1, 31, 64, 200}) {
        const int64_t M = 5, N = 37;
        const std::vector<float> x = Numbers(13).take(M * K), w = Numbers(14).take(N * K), bias = Numbers(15).take(N);
        Matrix packed(format, N, K, group_size);
        packed.set_rows(0, N, w.data(), Element::kF32, false, pool);
        const auto product = [&](const KernelTable& table) {
          const Context context{table, pool};
          MatmulWorkspace workspace(context, M, K);
          std::vector<float> y(static_cast<size_t>(M * N));
          matmul(context, workspace, x.data(), M, K, packed, bias.data(), y.data(), N);
          return y;
        };
        const std::vector<float> expected = product(kernels_named("scalar"));
        for (const std::string& isa : available_isas()) {
          CHECK_SAID(same_bits(product(kernels_named(isa)), expected),
                     std::string(format_name(format)) + " on " + isa + ", K = " + std::to_string(K));
        }
      }
    }
  }
}

}  // namespace llmcore::test
