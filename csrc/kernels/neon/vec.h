#pragma once
// Sixteen lanes in four q registers. Baseline Armv8.0; with LLMCORE_NEON_DOTPROD (Armv8.2) dot4 uses sdot,
// with LLMCORE_NEON_I8MM (Armv8.6) usdot, and tiles of rows usmmla. The meaning
// of each operation is that of scalar/vec.h, bit for bit.

#include <arm_neon.h>
#include <stdint.h>

namespace {

#define LLMCORE_INLINE inline __attribute__((always_inline))

struct F32x16 {
  float32x4_t v[4];
};
struct I32x16 {
  int32x4_t v[4];
};
struct Mask16 {
  uint32x4_t v[4];
};
struct U8x64 {
  uint8x16_t v[4];
};
struct S8x4 {
  int8x16_t v;
};
struct I16x32 {
  int16x8_t v[4];
};
struct S16x2 {
  int16x8_t v;
};

#define LLMCORE_QUADS _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i)

LLMCORE_INLINE F32x16 set1(float x) {
  const float32x4_t q = vdupq_n_f32(x);
  return {{q, q, q, q}};
}
LLMCORE_INLINE F32x16 load(const float* p) {
  return {{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
LLMCORE_INLINE void store(float* p, F32x16 a) { LLMCORE_QUADS vst1q_f32(p + 4 * i, a.v[i]); }

#define LLMCORE_BINARY(Type, name, expression) \
  LLMCORE_INLINE Type name(Type a, Type b) {   \
    Type r;                                    \
    LLMCORE_QUADS r.v[i] = expression;         \
    return r;                                  \
  }
LLMCORE_BINARY(F32x16, add, vaddq_f32(a.v[i], b.v[i]))
LLMCORE_BINARY(F32x16, sub, vsubq_f32(a.v[i], b.v[i]))
LLMCORE_BINARY(F32x16, mul, vmulq_f32(a.v[i], b.v[i]))
LLMCORE_BINARY(F32x16, div, vdivq_f32(a.v[i], b.v[i]))
// Compare and select, for fmax and fmin treat NaN and signed zeros otherwise than maxps and minps.
LLMCORE_BINARY(F32x16, max, vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]))
LLMCORE_BINARY(F32x16, min, vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]))
LLMCORE_BINARY(I32x16, add, vaddq_s32(a.v[i], b.v[i]))
LLMCORE_BINARY(I32x16, sub, vsubq_s32(a.v[i], b.v[i]))
#undef LLMCORE_BINARY

LLMCORE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  LLMCORE_QUADS c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]);
  return c;
}
LLMCORE_INLINE F32x16 abs(F32x16 a) {
  LLMCORE_QUADS a.v[i] = vabsq_f32(a.v[i]);
  return a;
}
LLMCORE_INLINE F32x16 neg(F32x16 a) {
  LLMCORE_QUADS a.v[i] = vnegq_f32(a.v[i]);
  return a;
}

LLMCORE_INLINE float first_lane(F32x16 a) { return vgetq_lane_f32(a.v[0], 0); }
template <int n>
LLMCORE_INLINE F32x16 swapped(F32x16 a) {
  if constexpr (n >= 4) return {{a.v[n / 4], a.v[1 ^ n / 4], a.v[2 ^ n / 4], a.v[3 ^ n / 4]}};
  LLMCORE_QUADS a.v[i] = n == 2 ? vextq_f32(a.v[i], a.v[i], 2) : vrev64q_f32(a.v[i]);
  return a;
}

LLMCORE_INLINE I32x16 set1_i32(int32_t x) {
  const int32x4_t q = vdupq_n_s32(x);
  return {{q, q, q, q}};
}
template <int n>
LLMCORE_INLINE I32x16 shift_left(I32x16 a) {
  LLMCORE_QUADS a.v[i] = vshlq_n_s32(a.v[i], n);
  return a;
}
template <int n>
LLMCORE_INLINE I32x16 shift_right_arithmetic(I32x16 a) {
  LLMCORE_QUADS a.v[i] = vshrq_n_s32(a.v[i], n);
  return a;
}
LLMCORE_INLINE F32x16 as_float(I32x16 a) {
  F32x16 r;
  LLMCORE_QUADS r.v[i] = vreinterpretq_f32_s32(a.v[i]);
  return r;
}
LLMCORE_INLINE I32x16 as_int(F32x16 a) {
  I32x16 r;
  LLMCORE_QUADS r.v[i] = vreinterpretq_s32_f32(a.v[i]);
  return r;
}
LLMCORE_INLINE F32x16 to_float(I32x16 a) {
  F32x16 r;
  LLMCORE_QUADS r.v[i] = vcvtq_f32_s32(a.v[i]);
  return r;
}
LLMCORE_INLINE I32x16 to_int(F32x16 a) {
  I32x16 r;
  LLMCORE_QUADS {
    const int32x4_t biased = vreinterpretq_s32_f32(vaddq_f32(a.v[i], vdupq_n_f32(12582912.0f)));
    r.v[i] = vsubq_s32(biased, vdupq_n_s32(0x4b400000));
  }
  return r;
}
LLMCORE_INLINE void store(int32_t* p, I32x16 a) { LLMCORE_QUADS vst1q_s32(p + 4 * i, a.v[i]); }
LLMCORE_INLINE void store_i8(int8_t* p, I32x16 a) {
  const int16x8_t low = vcombine_s16(vmovn_s32(a.v[0]), vmovn_s32(a.v[1]));
  const int16x8_t high = vcombine_s16(vmovn_s32(a.v[2]), vmovn_s32(a.v[3]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}

template <int n>
LLMCORE_INLINE void store_digits(int8_t* high, int8_t* low, const I32x16 (&a)[4]) {
  const int16x8_t lowest = vdupq_n_s16((1 << n) - 1);
  for (int i = 0; i < 4; ++i) {
    const int16x8_t x = vcombine_s16(vmovn_s32(a[i].v[0]), vmovn_s32(a[i].v[1]));
    const int16x8_t y = vcombine_s16(vmovn_s32(a[i].v[2]), vmovn_s32(a[i].v[3]));
    vst1q_s8(high + 16 * i, vcombine_s8(vshrn_n_s16(x, n), vshrn_n_s16(y, n)));
    vst1q_s8(low + 16 * i, vcombine_s8(vmovn_s16(vandq_s16(x, lowest)), vmovn_s16(vandq_s16(y, lowest))));
  }
}

LLMCORE_INLINE void store_i16(int16_t* p, I32x16 a) { LLMCORE_QUADS vst1_s16(p + 4 * i, vmovn_s32(a.v[i])); }

LLMCORE_INLINE Mask16 less(F32x16 a, F32x16 b) {
  Mask16 r;
  LLMCORE_QUADS r.v[i] = vcltq_f32(a.v[i], b.v[i]);
  return r;
}
LLMCORE_INLINE Mask16 is_nan(F32x16 a) {
  Mask16 r;
  LLMCORE_QUADS r.v[i] = vmvnq_u32(vceqq_f32(a.v[i], a.v[i]));
  return r;
}
LLMCORE_INLINE Mask16 lanes(int begin, int end) {
  static const int32_t kIndex[4] = {0, 1, 2, 3};
  Mask16 r;
  LLMCORE_QUADS {
    const int32x4_t index = vaddq_s32(vld1q_s32(kIndex), vdupq_n_s32(4 * i));
    r.v[i] = vandq_u32(vcgeq_s32(index, vdupq_n_s32(begin)), vcltq_s32(index, vdupq_n_s32(end)));
  }
  return r;
}
LLMCORE_INLINE F32x16 select(Mask16 m, F32x16 a, F32x16 b) {
  F32x16 r;
  LLMCORE_QUADS r.v[i] = vbslq_f32(m.v[i], a.v[i], b.v[i]);
  return r;
}

LLMCORE_INLINE F32x16 load_f16(const uint16_t* p) {
  F32x16 r;
  LLMCORE_QUADS r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
  return r;
}
LLMCORE_INLINE F32x16 load_bf16(const uint16_t* p) {
  F32x16 r;
  LLMCORE_QUADS r.v[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
  return r;
}
LLMCORE_INLINE void store_f16(uint16_t* p, F32x16 a) {
  LLMCORE_QUADS vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}
LLMCORE_INLINE void store_bf16(uint16_t* p, F32x16 a) {
  LLMCORE_QUADS {
    const uint32x4_t u = vreinterpretq_u32_f32(a.v[i]);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vshrq_n_u32(vaddq_u32(u, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
    const uint32x4_t quiet = vorrq_u32(vshrq_n_u32(u, 16), vdupq_n_u32(0x40));
    const uint32x4_t number = vceqq_f32(a.v[i], a.v[i]);
    vst1_u16(p + 4 * i, vmovn_u32(vbslq_u32(number, rounded, quiet)));
  }
}

LLMCORE_INLINE I32x16 load_i8(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
  return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
           vmovl_s16(vget_high_s16(high))}};
}

LLMCORE_INLINE U8x64 load_u8(const uint8_t* p) {
  return {{vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)}};
}
LLMCORE_INLINE void store_u8(uint8_t* p, U8x64 a) { LLMCORE_QUADS vst1q_u8(p + 16 * i, a.v[i]); }
// By adding neighbours of weighted bits three times.
LLMCORE_INLINE uint64_t high_bits(U8x64 a) {
  const uint8x16_t weight = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  LLMCORE_QUADS a.v[i] = vandq_u8(vcltzq_s8(vreinterpretq_s8_u8(a.v[i])), weight);
  const uint8x16_t all = vpaddq_u8(vpaddq_u8(a.v[0], a.v[1]), vpaddq_u8(a.v[2], a.v[3]));
  return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(all, all)), 0);
}
LLMCORE_INLINE uint64_t bits_equal(U8x64 a, uint8_t value) {
  LLMCORE_QUADS a.v[i] = vceqq_u8(a.v[i], vdupq_n_u8(value));
  return high_bits(a);
}
LLMCORE_INLINE uint64_t bits_within(U8x64 a, uint8_t first, uint8_t count) {
  LLMCORE_QUADS a.v[i] = vcltq_u8(vsubq_u8(a.v[i], vdupq_n_u8(first)), vdupq_n_u8(count));
  return high_bits(a);
}
template <int bit>
LLMCORE_INLINE uint64_t bits_set(U8x64 a) {
  LLMCORE_QUADS a.v[i] = vshlq_n_u8(a.v[i], 7 - bit);
  return high_bits(a);
}
LLMCORE_INLINE uint32_t* put_positions(uint64_t bits, uint32_t offset, uint32_t* out) {
  for (; bits != 0; bits &= bits - 1) *out++ = offset + static_cast<uint32_t>(__builtin_ctzll(bits));
  return out;
}
template <int shift, int mask>
LLMCORE_INLINE U8x64 extract(U8x64 a) {
  LLMCORE_QUADS {
    uint8x16_t q = a.v[i];
    if constexpr (shift != 0) q = vshrq_n_u8(q, shift);
    if constexpr ((mask & (0xff >> shift)) != (0xff >> shift)) q = vandq_u8(q, vdupq_n_u8(mask));
    a.v[i] = q;
  }
  return a;
}
template <int left, int mask>
LLMCORE_INLINE U8x64 insert(U8x64 a, U8x64 b) {
  LLMCORE_QUADS {
    uint8x16_t shifted = b.v[i];
    if constexpr (left > 0) shifted = vshlq_n_u8(shifted, left > 0 ? left : 0);
    if constexpr (left < 0) shifted = vshrq_n_u8(shifted, left < 0 ? -left : 1);
    a.v[i] = vorrq_u8(a.v[i], vandq_u8(shifted, vdupq_n_u8(mask)));
  }
  return a;
}
LLMCORE_INLINE U8x64 look_up(U8x64 a, const uint8_t* table) {
  const uint8x16_t all = vld1q_u8(table);
  LLMCORE_QUADS a.v[i] = vqtbl1q_u8(all, a.v[i]);
  return a;
}
template <int bit>
LLMCORE_INLINE U8x64 look_up(U8x64 a, U8x64 bits, const uint8_t* table) {
  const uint8x16x2_t all = {{vld1q_u8(table), vld1q_u8(table + 16)}};
  LLMCORE_QUADS {
    const uint8x16_t set = vandq_u8(bits.v[i], vdupq_n_u8(1 << bit));
    const uint8x16_t high = bit > 4 ? vshrq_n_u8(set, bit > 4 ? bit - 4 : 1) : vshlq_n_u8(set, bit > 4 ? 0 : 4 - bit);
    a.v[i] = vqtbl2q_u8(all, vorrq_u8(a.v[i], high));
  }
  return a;
}
LLMCORE_INLINE S8x4 load_s8x4(const int8_t* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return {vreinterpretq_s8_s32(vdupq_n_s32(x))};
}

template <int kMaxCode>
constexpr int dot4_zero() {
#if defined(LLMCORE_NEON_I8MM)
  return 0;
#else
  return kMaxCode > 127 ? 128 : 0;
#endif
}
template <int kMaxCode>
LLMCORE_INLINE I32x16 dot4(I32x16 acc, U8x64 w, S8x4 x) {
  LLMCORE_QUADS {
    uint8x16_t codes = w.v[i];
#if defined(LLMCORE_NEON_I8MM)
    acc.v[i] = vusdotq_s32(acc.v[i], codes, x.v);
    continue;
#endif
    if constexpr (dot4_zero<kMaxCode>() != 0) codes = veorq_u8(codes, vdupq_n_u8(0x80));
    const int8x16_t s = vreinterpretq_s8_u8(codes);
#if defined(LLMCORE_NEON_DOTPROD)
    acc.v[i] = vdotq_s32(acc.v[i], s, x.v);
#else
    const int16x8_t low = vmull_s8(vget_low_s8(s), vget_low_s8(x.v));
    const int16x8_t high = vmull_s8(vget_high_s8(s), vget_high_s8(x.v));
    acc.v[i] = vaddq_s32(acc.v[i], vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
  }
  return acc;
}
#if defined(LLMCORE_NEON_I8MM)
#define LLMCORE_ROW_PAIRS
// Sums of two rows of activations, a and b: vector 2 i holds a and b of weight row 4 i, a and b of row 4 i + 1.
struct I32x16x2 {
  int32x4_t v[8];
};
LLMCORE_INLINE I32x16x2 paired(I32x16 a, I32x16 b) {
  I32x16x2 r;
  LLMCORE_QUADS {
    r.v[2 * i] = vzip1q_s32(a.v[i], b.v[i]);
    r.v[2 * i + 1] = vzip2q_s32(a.v[i], b.v[i]);
  }
  return r;
}
LLMCORE_INLINE I32x16 first_of(const I32x16x2& p) {
  I32x16 r;
  LLMCORE_QUADS r.v[i] = vuzp1q_s32(p.v[2 * i], p.v[2 * i + 1]);
  return r;
}
LLMCORE_INLINE I32x16 second_of(const I32x16x2& p) {
  I32x16 r;
  LLMCORE_QUADS r.v[i] = vuzp2q_s32(p.v[2 * i], p.v[2 * i + 1]);
  return r;
}
struct S8x8x2 {
  int8x16_t v;
};
LLMCORE_INLINE S8x8x2 load_s8x8x2(const int8_t* a, const int8_t* b) { return {vcombine_s8(vld1_s8(a), vld1_s8(b))}; }
// acc += codes of eight k, four in `low` and four in `high`, times two rows of activations.
LLMCORE_INLINE I32x16x2 dot8(I32x16x2 acc, U8x64 low, U8x64 high, S8x8x2 x) {
  LLMCORE_QUADS {
    const uint32x4_t l = vreinterpretq_u32_u8(low.v[i]), h = vreinterpretq_u32_u8(high.v[i]);
    acc.v[2 * i] = vusmmlaq_s32(acc.v[2 * i], vreinterpretq_u8_u32(vzip1q_u32(l, h)), x.v);
    acc.v[2 * i + 1] = vusmmlaq_s32(acc.v[2 * i + 1], vreinterpretq_u8_u32(vzip2q_u32(l, h)), x.v);
  }
  return acc;
}
#endif
LLMCORE_INLINE I16x32 load_i16(const uint8_t* p) {
  I16x32 r;
  LLMCORE_QUADS r.v[i] = vreinterpretq_s16_u8(vld1q_u8(p + 16 * i));
  return r;
}
template <int n>
LLMCORE_INLINE I16x32 shift_left(I16x32 a) {
  LLMCORE_QUADS a.v[i] = vshlq_n_s16(a.v[i], n);
  return a;
}
template <int n>
LLMCORE_INLINE I16x32 shift_right_arithmetic(I16x32 a) {
  LLMCORE_QUADS a.v[i] = vshrq_n_s16(a.v[i], n);
  return a;
}
template <int mask>
LLMCORE_INLINE I16x32 insert(I16x32 a, I16x32 b) {
  LLMCORE_QUADS a.v[i] = vorrq_s16(a.v[i], vandq_s16(b.v[i], vdupq_n_s16(static_cast<int16_t>(mask))));
  return a;
}
LLMCORE_INLINE S16x2 load_s16x2(const int16_t* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return {vreinterpretq_s16_s32(vdupq_n_s32(x))};
}
// Even words and odd ones apart, which rows of x share.
LLMCORE_INLINE I32x16 dot2(I32x16 acc, I16x32 w, S16x2 x) {
  _Pragma("GCC unroll 2") for (int i = 0; i < 4; i += 2) {
    const int16x8_t even = vuzp1q_s16(w.v[i], w.v[i + 1]), odd = vuzp2q_s16(w.v[i], w.v[i + 1]);
    acc.v[i] = vmlal_laneq_s16(acc.v[i], vget_low_s16(even), x.v, 0);
    acc.v[i + 1] = vmlal_high_laneq_s16(acc.v[i + 1], even, x.v, 0);
    acc.v[i] = vmlal_laneq_s16(acc.v[i], vget_low_s16(odd), x.v, 1);
    acc.v[i + 1] = vmlal_high_laneq_s16(acc.v[i + 1], odd, x.v, 1);
  }
  return acc;
}
LLMCORE_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

#undef LLMCORE_QUADS

constexpr int kTileRows = 4;
constexpr int kTilePanels = 1;
constexpr int kVectorPanels = 2;
constexpr int kAttentionRows = 4;
constexpr int kAttentionManyRows = 4;
constexpr int kAttentionSums = 4;
constexpr int kExp2Together = 2;

}  // namespace
