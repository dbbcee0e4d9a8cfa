#pragma once
// Formats of 4 bits, as those of quant/float4.h, for ggml's types whose codes are places in a codebook: w ~ factor *
// scale * level.
//   iq2: the values of IQ2_XXS, IQ2_XS and IQ2_S, 8, 25 and 43 eighths of a scale of either sign, and of IQ1_S and
//   IQ1_M: 0 or 1 of either sign, an eighth more or less.
//   iq3: those of IQ3_XXS, from 2 to 31 halves.   iq3_s: those of IQ3_S, the odd numbers up to 15.
//   line: quant/lines.h, 4 bits, the level's number.   bits per weight: 4 + 16/group.
// Nothing is rounded to them but in tests: iq4 takes the same bits for less error.

#include "quant/lines.h"
#include "quant/range.h"

namespace llmcore {

template <class Codec>
struct OddLevels {  // there is no 0
  using Layout = Lines<4>;
  static constexpr int kMinCode = 0;
  static constexpr int level(unsigned code) { return Codec::kLevels[code]; }
  static float choose_scale(const Range& r, const float* /*w*/, int64_t /*n*/) {
    return (r.highest > -r.lowest ? r.highest : -r.lowest) / static_cast<float>(Codec::kLevels[Codec::kMaxCode]);
  }
};

struct Iq2 : OddLevels<Iq2> {
  static constexpr const char* kName = "iq2";
  static constexpr int kZero = 6, kMaxCode = 11;
  static constexpr float kFactor = 0.125f;
  static constexpr int kLevels[12] = {-43, -25, -9, -8, -7, -1, 1, 7, 8, 9, 25, 43};
};
struct Iq3 : OddLevels<Iq3> {
  static constexpr const char* kName = "iq3";
  static constexpr int kZero = 8, kMaxCode = 15;
  static constexpr float kFactor = 0.5f;
  static constexpr int kLevels[16] = {-31, -26, -22, -18, -14, -10, -6, -2, 2, 6, 10, 14, 18, 22, 26, 31};
};
struct Iq3S : OddLevels<Iq3S> {
  static constexpr const char* kName = "iq3_s";
  static constexpr int kZero = 8, kMaxCode = 15;
  static constexpr int kLevels[16] = {-15, -13, -11, -9, -7, -5, -3, -1, 1, 3, 5, 7, 9, 11, 13, 15};
};

}  // namespace llmcore
