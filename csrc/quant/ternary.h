#pragma once
// ternary: code = t + 1, t in {-1, 0, 1}; w ~ scale * t, a scale per row (float32) or per group of 32, 64 or 128 k
// (float16). The scale is the mean magnitude of the weights above half the mean (BitNet b1.58's rounding, section 2,
// with the least-squares scale for it); codes are the nearest to it. Weights that are ternary already are kept exactly.
//   line: quant/lines.h, 2 bits, code 3 unused.   bits per weight: 2 + 32/K, or 2 + 16/group.

#include "quant/lines.h"

namespace llmcore {

struct Ternary {
  static constexpr const char* kName = "ternary";
  static constexpr int kBits = 2;
  static constexpr int kZero = 1;
  static constexpr int kMinCode = 0;
  static constexpr int kMaxCode = 2;
  static float choose_scale(const float* w, int64_t n) {
    double mean = 0;
    for (int64_t i = 0; i < n; ++i) mean += __builtin_fabsf(w[i]);
    const float threshold = static_cast<float>(mean / static_cast<double>(n)) * 0.5f;
    double sum = 0;
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) {
      if (__builtin_fabsf(w[i]) > threshold) {
        sum += __builtin_fabsf(w[i]);
        ++count;
      }
    }
    return count ? static_cast<float>(sum / static_cast<double>(count)) : 0.0f;
  }
};

}  // namespace llmcore
