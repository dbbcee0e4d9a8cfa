#pragma once
// Formats of 4 bits whose codes are numbers of levels, as nf4's (quant/nf4.h): w ~ scale * level.
//   iq4: the levels of ggml's IQ4_NL and IQ4_XS; the element of largest magnitude is -127 scales.
//   fp4: twice the numbers of E2M1 (OCP MX; ggml's MXFP4 and NVFP4), -12 to 12; that element is -12 or 12 scales.
//   line: quant/lines.h, 4 bits, the level's number.   bits per weight: 4 + 16/group.

#include "quant/lines.h"
#include "quant/range.h"

namespace llmcore {

struct Iq4 {
  static constexpr const char* kName = "iq4";
  using Layout = Lines<4>;
  static constexpr int kZero = 8;  // the level 1: there is no 0
  static constexpr int kMinCode = 0;
  static constexpr int kMaxCode = 15;
  static constexpr int kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  static constexpr int level(unsigned code) { return kLevels[code]; }
  static float choose_scale(const Range& r, const float* /*w*/, int64_t /*n*/) {
    return (r.highest > -r.lowest ? r.highest : r.lowest) / -127.0f;
  }
};

// In ascending order; ggml's codes are sign and magnitude.
struct Fp4 {
  static constexpr const char* kName = "fp4";
  using Layout = Lines<4>;
  static constexpr int kZero = 7;
  static constexpr int kMinCode = 0;
  static constexpr int kMaxCode = 14;
  static constexpr int kLevels[15] = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12};
  static constexpr int level(unsigned code) { return kLevels[code]; }
  static float choose_scale(const Range& r, const float* /*w*/, int64_t /*n*/) {
    return (r.highest > -r.lowest ? r.highest : -r.lowest) / 12.0f;
  }
};

}  // namespace llmcore
