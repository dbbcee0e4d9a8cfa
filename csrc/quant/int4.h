#pragma once
// int4: code = round(w / scale) + 8 in [0, 15]; w ~ scale * (code - 8), a scale (float16) per group of 16 to 128 k,
// or per row (float32). The element of largest magnitude becomes exactly -8, so the scale's sign is free and all 16
// levels are used (as ggml's Q4_0): a smaller error than the symmetric -7..7.
//   line: quant/lines.h, 4 bits.   bits per weight: 4 + 16/group; with double quantisation 4 + 10/group, and with
//   minima 4 + 20/group, which hold ggml's Q4_K exactly. |w - decoded| <= |scale| / 2, but |scale| for elements of the
//   other sign within |scale| / 2 of the maximum.

#include "quant/lines.h"
#include "quant/range.h"

namespace llmcore {

struct Int4 {
  static constexpr const char* kName = "int4";
  using Layout = Lines<4>;
  static constexpr int kZero = 8;
  static constexpr int kMinCode = 0;
  static constexpr int kMaxCode = 15;
  static float choose_scale(const Range& r, const float* /*w*/, int64_t /*n*/) {
    return (r.highest > -r.lowest ? r.highest : r.lowest) / -8.0f;
  }
};

}  // namespace llmcore
