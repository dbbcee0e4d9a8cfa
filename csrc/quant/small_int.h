#pragma once
// int2, int3, int5 and int6: code = round(w / scale) + 2^(bits - 1); w ~ scale * (code - 2^(bits - 1)), a scale per
// group of 16 to 128 k (float16) or per row (float32). The element of largest magnitude becomes exactly -2^(bits - 1),
// as in int4. With double quantisation, and minima for 2 and 5 bits, they hold ggml's Q2_K, Q3_K, Q5_K and Q6_K.
//   line: quant/lines.h for 2 bits, quant/six_bits.h for 6, else quant/planes.h.   bits per weight: bits + 16/group.
//   |w - decoded| <= |scale| / 2, but |scale| for elements of the other sign within |scale| / 2 of the maximum.

#include "quant/planes.h"
#include "quant/range.h"
#include "quant/six_bits.h"

namespace llmcore {

template <int bits>
struct SmallInt {
  static constexpr int kZero = 1 << (bits - 1);
  static constexpr int kMinCode = 0;
  static constexpr int kMaxCode = (1 << bits) - 1;
  static float choose_scale(const Range& r, const float* /*w*/, int64_t /*n*/) {
    return (r.highest > -r.lowest ? r.highest : r.lowest) / static_cast<float>(-kZero);
  }
};

struct Int2 : SmallInt<2> {
  static constexpr const char* kName = "int2";
  using Layout = Lines<2>;
};
struct Int3 : SmallInt<3> {
  static constexpr const char* kName = "int3";
  using Layout = Planes<2, 1>;
};
struct Int5 : SmallInt<5> {
  static constexpr const char* kName = "int5";
  using Layout = Planes<4, 1>;
};
struct Int6 : SmallInt<6> {
  static constexpr const char* kName = "int6";
  using Layout = SixBits;
};

}  // namespace llmcore
