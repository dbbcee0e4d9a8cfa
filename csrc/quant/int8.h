#pragma once
// int8: code = round(w / scale) + 128 in [1, 255], symmetric; w ~ scale * (code - 128). One scale per row (float32), or
// per group of 16 to 128 k (float16). Imported checkpoints may use code 0 (-128).
//   line: quant/lines.h, 8 bits.   bits per weight: 8 + 32/K, or 8 + 16/group.
//   |w - decoded| <= scale / 2 (scale as stored, plus its own rounding in groups).

#include "quant/lines.h"
#include "quant/range.h"

namespace llmcore {

struct Int8 {
  static constexpr const char* kName = "int8";
  using Layout = Lines<8>;
  static constexpr int kZero = 128;
  static constexpr int kMinCode = 1;
  static constexpr int kMaxCode = 255;
  static float choose_scale(const Range& r, const float* /*w*/, int64_t /*n*/) {
    return (r.highest > -r.lowest ? r.highest : -r.lowest) / 127.0f;
  }
};

}  // namespace llmcore
