#pragma once
// The list of weight formats. A new one is a header beside this and a line in each list below; it works everywhere
// through the generic path, and fast kernels replace entries of the kernel table later.

#include <string>

#include "quant/float4.h"
#include "quant/int4.h"
#include "quant/int8.h"
#include "quant/iq_levels.h"
#include "quant/nf4.h"
#include "quant/small_int.h"
#include "quant/ternary.h"
#include "quant/ternary_dense.h"

namespace llmcore {

/// The values are the indices of the kernel table (kernels/table.h, WeightFormat).
enum class Format : int {
  kF32,
  kBF16,
  kF16,
  kInt8,
  kInt4,
  kTernary,
  kNf4,
  kTernaryDense,
  kInt2,
  kInt3,
  kInt5,
  kInt6,
  kIq4,
  kFp4,
  kIq2,
  kIq3,
  kIq3S
};

/// Calls visitor.template operator()<Codec>() for the codec of an integer format.
template <class Visitor>
auto visit_codec(Format format, Visitor&& visitor) {
  switch (format) {
    case Format::kInt4:
      return visitor.template operator()<Int4>();
    case Format::kTernary:
      return visitor.template operator()<Ternary>();
    case Format::kNf4:
      return visitor.template operator()<Nf4>();
    case Format::kTernaryDense:
      return visitor.template operator()<TernaryDense>();
    case Format::kInt2:
      return visitor.template operator()<Int2>();
    case Format::kInt3:
      return visitor.template operator()<Int3>();
    case Format::kInt5:
      return visitor.template operator()<Int5>();
    case Format::kInt6:
      return visitor.template operator()<Int6>();
    case Format::kIq4:
      return visitor.template operator()<Iq4>();
    case Format::kFp4:
      return visitor.template operator()<Fp4>();
    case Format::kIq2:
      return visitor.template operator()<Iq2>();
    case Format::kIq3:
      return visitor.template operator()<Iq3>();
    case Format::kIq3S:
      return visitor.template operator()<Iq3S>();
    default:
      return visitor.template operator()<Int8>();
  }
}

template <class Codec>
constexpr bool kHasLevels = requires { Codec::level(0u); };

/// What a code stands for, in scales of factor_of<Codec>().
template <class Codec>
constexpr int value_of(unsigned code) {
  if constexpr (kHasLevels<Codec>) return Codec::level(code);
  return static_cast<int>(code) - Codec::kZero;
}

/// A power of two that all scales of groups are multiplied by.
template <class Codec>
constexpr float factor_of() {
  if constexpr (requires { Codec::kFactor; }) return Codec::kFactor;
  return 1.0f;
}

inline bool is_integer(Format f) { return f >= Format::kInt8; }
/// Whether codes are integers from 0 to 2^bits - 1, so that any of them can stand for 0.
inline bool has_zero_points(Format f) {
  return f == Format::kInt8 || f == Format::kInt4 || (f >= Format::kInt2 && f <= Format::kInt6);
}
const char* format_name(Format format);
/// Throws ArgumentError naming the formats there are.
Format format_from_name(const std::string& name);
/// Bytes of a panel's codes, 16 rows of K_padded, scales not counted.
int64_t panel_bytes(Format format, int64_t K_padded);

}  // namespace llmcore
