#pragma once
// nf4: code = the nearest of 16 levels, which lie where a normal distribution has equal shares (NormalFloat, QLoRA,
// T. Dettmers and others, 2023, appendix E), kept as 127ths; w ~ scale * level, a scale (float16) per group of 32, 64
// or 128 k, or per row (float32). The scale is the largest magnitude / 127.
//   line: quant/lines.h, 4 bits, the level's number.   bits per weight: 4 + 16/group.
//   |w - decoded| <= 20 scale, half of the widest gap and the rounding of the levels.

#include "quant/lines.h"
#include "quant/range.h"

namespace llmcore {

struct Nf4 {
  static constexpr const char* kName = "nf4";
  using Layout = Lines<4>;
  static constexpr int kZero = 7;
  static constexpr int kMinCode = 0;
  static constexpr int kMaxCode = 15;
  static constexpr int kLevels[16] = {-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127};
  static constexpr int level(unsigned code) { return kLevels[code]; }
  static float choose_scale(const Range& r, const float* /*w*/, int64_t /*n*/) {
    return (r.highest > -r.lowest ? r.highest : -r.lowest) / 127.0f;
  }
};

}  // namespace llmcore
