#pragma once
// ternary: code = t + 1, t in {-1, 0, 1}; w ~ scale * t, a scale per row (float32) or per group of 16 to 128 k
// (float16). The scale is the mean magnitude of the weights above half the mean (BitNet b1.58's rounding, section 2,
// with the least-squares scale for it); codes are the nearest to it. Weights that are ternary already are kept exactly.
//   line: quant/lines.h, 2 bits, code 3 unused.   bits per weight: 2 + 32/K, or 2 + 16/group.

#include "quant/lines.h"
#include "quant/range.h"

namespace llmcore {

struct Ternary {
  static constexpr const char* kName = "ternary";
  using Layout = Lines<2>;
  static constexpr int kZero = 1;
  static constexpr int kMinCode = 0;
  static constexpr int kMaxCode = 2;
  static float choose_scale(const Range& r, const float* w, int64_t n) {
    const float threshold = static_cast<float>(above(w, n, -1.0f).sum / static_cast<double>(n)) * 0.5f;
    const Above a = above(w, n, threshold);
    if (a.count == 0) return 0.0f;
    const float mean = static_cast<float>(a.sum / static_cast<double>(a.count));
    const float top = r.highest > -r.lowest ? r.highest : -r.lowest;
    // The mean of equal magnitudes is that magnitude, whatever its sum was rounded to.
    return __builtin_fabsf(mean - top) <= 1e-4f * top && is_ternary(w, n, top) ? top : mean;
  }

 private:
  static bool is_ternary(const float* w, int64_t n, float magnitude) {
    bool others = false;
    for (int64_t i = 0; i < n; ++i) others |= w[i] != 0.0f && __builtin_fabsf(w[i]) != magnitude;
    return !others;
  }
};

}  // namespace llmcore
