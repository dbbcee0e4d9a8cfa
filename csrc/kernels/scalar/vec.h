#pragma once
// Sixteen virtual lanes as plain arrays: the portable leaf, and the meaning of every operation of the other vec.h
// files. It is compiled for the platform's baseline. Where the baseline has no fused multiply-add, fma is emulated
// exactly.

#include <stdint.h>

namespace {

struct F32x16 {
  float v[16];
};
struct I32x16 {
  int32_t v[16];
};
struct Mask16 {
  bool v[16];
};
struct U8x64 {
  uint8_t v[64];
};
struct S8x4 {
  int8_t v[4];
};
struct I16x32 {
  int16_t v[32];
};
struct S16x2 {
  int16_t v[2];
};

#define LLMCORE_LANES for (int i = 0; i < 16; ++i)

inline uint32_t bits_of(float x) {
  uint32_t u;
  __builtin_memcpy(&u, &x, 4);
  return u;
}
inline float float_of(uint32_t u) {
  float x;
  __builtin_memcpy(&x, &u, 4);
  return x;
}

// Exact a * b + c with one rounding. The product is exact in double; the sum is rounded to odd (Boldo and Melquiond,
// "Emulation of FMA and correctly rounded sums", 2008), which makes the final rounding to float the right one.
inline float fma1(float a, float b, float c) {
#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  const double p = static_cast<double>(a) * static_cast<double>(b);
  const double d = static_cast<double>(c);
  double s = p + d;
  const double t = s - p;
  const double error = (p - (s - t)) + (d - t);
  uint64_t u;
  __builtin_memcpy(&u, &s, 8);
  const bool finite = (u & 0x7ff0000000000000u) != 0x7ff0000000000000u;
  if (finite && error != 0.0 && !(u & 1)) {
    u = (error > 0.0) == (s > 0.0) ? u + 1 : u - 1;
    __builtin_memcpy(&s, &u, 8);
  }
  return static_cast<float>(s);
#endif
}

#define LLMCORE_INLINE inline

inline F32x16 set1(float x) {
  F32x16 r;
  LLMCORE_LANES r.v[i] = x;
  return r;
}
inline F32x16 load(const float* p) {
  F32x16 r;
  __builtin_memcpy(r.v, p, 64);
  return r;
}
inline void store(float* p, F32x16 a) { __builtin_memcpy(p, a.v, 64); }

#define LLMCORE_BINARY(name, expression)   \
  inline F32x16 name(F32x16 a, F32x16 b) { \
    F32x16 r;                              \
    LLMCORE_LANES r.v[i] = expression;     \
    return r;                              \
  }
LLMCORE_BINARY(add, a.v[i] + b.v[i])
LLMCORE_BINARY(sub, a.v[i] - b.v[i])
LLMCORE_BINARY(mul, a.v[i] * b.v[i])
LLMCORE_BINARY(div, a.v[i] / b.v[i])
LLMCORE_BINARY(max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])  // b where either is NaN, as maxps
LLMCORE_BINARY(min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
#undef LLMCORE_BINARY

inline F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  F32x16 r;
  LLMCORE_LANES r.v[i] = fma1(a.v[i], b.v[i], c.v[i]);
  return r;
}
inline F32x16 abs(F32x16 a) {
  F32x16 r;
  LLMCORE_LANES r.v[i] = float_of(bits_of(a.v[i]) & 0x7fffffffu);
  return r;
}
inline F32x16 neg(F32x16 a) {
  F32x16 r;
  LLMCORE_LANES r.v[i] = float_of(bits_of(a.v[i]) ^ 0x80000000u);
  return r;
}

inline float first_lane(F32x16 a) { return a.v[0]; }
// Lane i becomes lane i ^ n.
template <int n>
inline F32x16 swapped(F32x16 a) {
  F32x16 r;
  LLMCORE_LANES r.v[i] = a.v[i ^ n];
  return r;
}

inline I32x16 set1_i32(int32_t x) {
  I32x16 r;
  LLMCORE_LANES r.v[i] = x;
  return r;
}
inline I32x16 add(I32x16 a, I32x16 b) {
  I32x16 r;
  LLMCORE_LANES r.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) + static_cast<uint32_t>(b.v[i]));
  return r;
}
inline I32x16 sub(I32x16 a, I32x16 b) {
  I32x16 r;
  LLMCORE_LANES r.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) - static_cast<uint32_t>(b.v[i]));
  return r;
}
template <int n>
inline I32x16 shift_left(I32x16 a) {
  I32x16 r;
  LLMCORE_LANES r.v[i] = static_cast<int32_t>(static_cast<uint32_t>(a.v[i]) << n);
  return r;
}
template <int n>
inline I32x16 shift_right_arithmetic(I32x16 a) {
  I32x16 r;
  LLMCORE_LANES r.v[i] = a.v[i] >> n;
  return r;
}
inline F32x16 as_float(I32x16 a) {
  F32x16 r;
  __builtin_memcpy(r.v, a.v, 64);
  return r;
}
inline I32x16 as_int(F32x16 a) {
  I32x16 r;
  __builtin_memcpy(&r, &a, 64);
  return r;
}
inline F32x16 to_float(I32x16 a) {
  F32x16 r;
  LLMCORE_LANES r.v[i] = static_cast<float>(a.v[i]);
  return r;
}
// Round to nearest even; |a| must be below 2^22 (the caller has clamped it; NaN gives some integer).
inline I32x16 to_int(F32x16 a) {
  I32x16 r;
  LLMCORE_LANES r.v[i] = static_cast<int32_t>(bits_of(a.v[i] + 12582912.0f)) - 0x4b400000;
  return r;
}
inline void store(int32_t* p, I32x16 a) { __builtin_memcpy(p, a.v, 64); }
// Lanes must be within [-128, 127].
inline void store_i8(int8_t* p, I32x16 a) { LLMCORE_LANES p[i] = static_cast<int8_t>(a.v[i]); }

// Of the lowest 16 bits of each lane the lowest n, and what is above them; digits are within [-128, 127].
template <int n>
inline void store_digits(int8_t* high, int8_t* low, const I32x16 (&a)[4]) {
  for (int j = 0; j < 4; ++j) {
    LLMCORE_LANES high[16 * j + i] = static_cast<int8_t>(a[j].v[i] >> n);
    LLMCORE_LANES low[16 * j + i] = static_cast<int8_t>(a[j].v[i] & ((1 << n) - 1));
  }
}

// The lowest 16 bits of each lane.
inline void store_i16(int16_t* p, I32x16 a) { LLMCORE_LANES p[i] = static_cast<int16_t>(a.v[i]); }

inline Mask16 less(F32x16 a, F32x16 b) {
  Mask16 r;
  LLMCORE_LANES r.v[i] = a.v[i] < b.v[i];
  return r;
}
inline Mask16 is_nan(F32x16 a) {
  Mask16 r;
  LLMCORE_LANES r.v[i] = a.v[i] != a.v[i];
  return r;
}
// Lanes begin <= i < end.
inline Mask16 lanes(int begin, int end) {
  Mask16 r;
  LLMCORE_LANES r.v[i] = i >= begin && i < end;
  return r;
}
inline F32x16 select(Mask16 m, F32x16 a, F32x16 b) {
  F32x16 r;
  LLMCORE_LANES r.v[i] = m.v[i] ? a.v[i] : b.v[i];
  return r;
}

inline float from_f16(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t magnitude = h & 0x7fff;
  if (magnitude >= 0x7c00) {  // infinity, or NaN made quiet
    const uint32_t quiet = magnitude > 0x7c00 ? 0x00400000u : 0u;
    return float_of(sign | 0x7f800000u | quiet | ((magnitude & 0x3ff) << 13));
  }
  if (magnitude >= 0x0400) return float_of(sign | ((magnitude << 13) + 0x38000000u));
  const float value = static_cast<float>(magnitude) * 0x1p-24f;  // exact
  return float_of(bits_of(value) | sign);
}
inline uint16_t to_f16(float x) {
  const uint32_t u = bits_of(x);
  const uint32_t sign = (u >> 16) & 0x8000;
  const uint32_t magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00);
  if (magnitude < 0x38800000u) {  // subnormal half: adding 0.5 puts its unit, 2^-24, at the last place of a float
    const float shifted = float_of(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (bits_of(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}
inline uint16_t to_bf16(float x) {
  const uint32_t u = bits_of(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40);
  return static_cast<uint16_t>((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

inline F32x16 load_f16(const uint16_t* p) {
  F32x16 r;
  LLMCORE_LANES r.v[i] = from_f16(p[i]);
  return r;
}
inline F32x16 load_bf16(const uint16_t* p) {
  F32x16 r;
  LLMCORE_LANES r.v[i] = float_of(static_cast<uint32_t>(p[i]) << 16);
  return r;
}
inline void store_f16(uint16_t* p, F32x16 a) { LLMCORE_LANES p[i] = to_f16(a.v[i]); }
inline void store_bf16(uint16_t* p, F32x16 a) { LLMCORE_LANES p[i] = to_bf16(a.v[i]); }

inline I32x16 load_i8(const int8_t* p) {
  I32x16 r;
  LLMCORE_LANES r.v[i] = p[i];
  return r;
}

inline U8x64 load_u8(const uint8_t* p) {
  U8x64 r;
  __builtin_memcpy(r.v, p, 64);
  return r;
}
inline void store_u8(uint8_t* p, U8x64 a) { __builtin_memcpy(p, a.v, 64); }
// One bit per byte, bit i for byte i: its highest bit; whether it is `value`; whether it is in [first, first + count).
inline uint64_t high_bits(U8x64 a) {
  uint64_t bits = 0;
  for (int i = 0; i < 8; ++i) {
    uint64_t word;
    __builtin_memcpy(&word, a.v + 8 * i, 8);
    bits |= ((word & 0x8080808080808080u) * 0x0002040810204081u >> 56) << 8 * i;
  }
  return bits;
}
inline uint64_t bits_equal(U8x64 a, uint8_t value) {
  for (int i = 0; i < 64; ++i) a.v[i] = a.v[i] == value ? 0xFF : 0;
  return high_bits(a);
}
inline uint64_t bits_within(U8x64 a, uint8_t first, uint8_t count) {
  for (int i = 0; i < 64; ++i) a.v[i] = static_cast<uint8_t>(a.v[i] - first) < count ? 0xFF : 0;
  return high_bits(a);
}
// Whether bit number `bit` is set.
template <int bit>
inline uint64_t bits_set(U8x64 a) {
  for (int i = 0; i < 64; ++i) a.v[i] = static_cast<uint8_t>(a.v[i] << (7 - bit));
  return high_bits(a);
}
// offset + the number of each bit that is set, in order. Up to 64 numbers are written, whatever counts; returns the end
// of those that do.
inline uint32_t* put_positions(uint64_t bits, uint32_t offset, uint32_t* out) {
  for (; bits != 0; bits &= bits - 1) *out++ = offset + static_cast<uint32_t>(__builtin_ctzll(bits));
  return out;
}
// (byte >> shift) & mask, for each byte.
template <int shift, int mask>
inline U8x64 extract(U8x64 a) {
  U8x64 r;
  for (int i = 0; i < 64; ++i) r.v[i] = static_cast<uint8_t>((a.v[i] >> shift) & mask);
  return r;
}
// a | ((b << left) & mask), for each byte; a negative `left` shifts to the right.
template <int left, int mask>
inline U8x64 insert(U8x64 a, U8x64 b) {
  U8x64 r;
  for (int i = 0; i < 64; ++i) {
    const int shifted = left >= 0 ? b.v[i] << (left >= 0 ? left : 0) : b.v[i] >> (left < 0 ? -left : 0);
    r.v[i] = static_cast<uint8_t>(a.v[i] | (shifted & mask));
  }
  return r;
}
// table[byte], for each byte, all of which are below 16.
inline U8x64 look_up(U8x64 a, const uint8_t* table) {
  U8x64 r;
  for (int i = 0; i < 64; ++i) r.v[i] = table[a.v[i]];
  return r;
}
// The same with bit `bit` of `bits` as the fifth bit of each index.
template <int bit>
inline U8x64 look_up(U8x64 a, U8x64 bits, const uint8_t* table) {
  U8x64 r;
  for (int i = 0; i < 64; ++i) r.v[i] = table[a.v[i] + ((bits.v[i] >> bit & 1) << 4)];
  return r;
}
inline S8x4 load_s8x4(const int8_t* p) {
  S8x4 r;
  __builtin_memcpy(r.v, p, 4);
  return r;
}
// What dot4 takes off each code before multiplying: an ISA without unsigned-by-signed products centres 8-bit codes.
template <int kMaxCode>
constexpr int dot4_zero() {
  return 0;
}
// acc[i] += sum over j < 4 of (w[4 i + j] - dot4_zero) * x[j]: codes up to kMaxCode times activations in [-127, 127].
template <int kMaxCode>
inline I32x16 dot4(I32x16 acc, U8x64 w, S8x4 x) {
  LLMCORE_LANES {
    int32_t s = acc.v[i];
    for (int j = 0; j < 4; ++j) s += static_cast<int32_t>(w.v[4 * i + j]) * x.v[j];
    acc.v[i] = s;
  }
  return acc;
}
inline I16x32 load_i16(const uint8_t* p) {
  I16x32 r;
  __builtin_memcpy(r.v, p, 64);
  return r;
}
template <int n>
inline I16x32 shift_left(I16x32 a) {
  for (int i = 0; i < 32; ++i) a.v[i] = static_cast<int16_t>(static_cast<uint16_t>(a.v[i]) << n);
  return a;
}
template <int n>
inline I16x32 shift_right_arithmetic(I16x32 a) {
  for (int i = 0; i < 32; ++i) a.v[i] = static_cast<int16_t>(a.v[i] >> n);
  return a;
}
// a | (b & mask)
template <int mask>
inline I16x32 insert(I16x32 a, I16x32 b) {
  for (int i = 0; i < 32; ++i) a.v[i] = static_cast<int16_t>(a.v[i] | (b.v[i] & mask));
  return a;
}
inline S16x2 load_s16x2(const int16_t* p) { return {{p[0], p[1]}}; }
// acc[i] += w[2 i] * x[0] + w[2 i + 1] * x[1]
inline I32x16 dot2(I32x16 acc, I16x32 w, S16x2 x) {
  LLMCORE_LANES {
    const uint32_t even = static_cast<uint32_t>(w.v[2 * i] * x.v[0]);
    const uint32_t odd = static_cast<uint32_t>(w.v[2 * i + 1] * x.v[1]);
    acc.v[i] = static_cast<int32_t>(static_cast<uint32_t>(acc.v[i]) + even + odd);
  }
  return acc;
}
inline void prefetch(const void*) {}

#undef LLMCORE_LANES

// Register tile of the matrix products: activation rows x panels of 16 weight rows.
constexpr int kTileRows = 2;
constexpr int kTilePanels = 1;
constexpr int kVectorPanels = 1;
constexpr int kAttentionRows = 1;
constexpr int kAttentionManyRows = 1;  // the same where a head has more than twice as many
constexpr int kAttentionSums = 1;      // of 16 outputs, at once
constexpr int kExp2Together = 1;       // vectors of 16 whose steps take turns

}  // namespace
