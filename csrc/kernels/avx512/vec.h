#pragma once
// Sixteen lanes in one zmm register. Needs AVX-512 F, BW, VL, DQ and VNNI. The meaning of each operation is that of
// scalar/vec.h, bit for bit.

#include <immintrin.h>
#include <stdint.h>

namespace {

#define LLMCORE_INLINE inline __attribute__((always_inline))

// The windows of text are in avx512_windows/kernels.cpp, which says why.
#define LLMCORE_NO_WINDOWS

struct F32x16 {
  __m512 v;
};
struct I32x16 {
  __m512i v;
};
struct Mask16 {
  __mmask16 v;
};
struct U8x64 {
  __m512i v;
};
struct S8x4 {
  __m512i v;
};
struct I16x32 {
  __m512i v;
};
struct S16x2 {
  __m512i v;
};

LLMCORE_INLINE F32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
LLMCORE_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
LLMCORE_INLINE void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
LLMCORE_INLINE F32x16 add(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
LLMCORE_INLINE F32x16 sub(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
LLMCORE_INLINE F32x16 mul(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
LLMCORE_INLINE F32x16 div(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
LLMCORE_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
LLMCORE_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
LLMCORE_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
LLMCORE_INLINE F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
LLMCORE_INLINE F32x16 neg(F32x16 a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }

LLMCORE_INLINE float first_lane(F32x16 a) { return _mm_cvtss_f32(_mm512_castps512_ps128(a.v)); }
template <int n>
LLMCORE_INLINE F32x16 swapped(F32x16 a) {
  if constexpr (n >= 4) return {_mm512_shuffle_f32x4(a.v, a.v, n == 8 ? 0x4e : 0xb1)};
  return {_mm512_shuffle_ps(a.v, a.v, n == 2 ? 0x4e : 0xb1)};
}

LLMCORE_INLINE I32x16 set1_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
LLMCORE_INLINE I32x16 add(I32x16 a, I32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
LLMCORE_INLINE I32x16 sub(I32x16 a, I32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
template <int n>
LLMCORE_INLINE I32x16 shift_left(I32x16 a) {
  return {_mm512_slli_epi32(a.v, n)};
}
template <int n>
LLMCORE_INLINE I32x16 shift_right_arithmetic(I32x16 a) {
  return {_mm512_srai_epi32(a.v, n)};
}
LLMCORE_INLINE F32x16 as_float(I32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
LLMCORE_INLINE I32x16 as_int(F32x16 a) { return {_mm512_castps_si512(a.v)}; }
LLMCORE_INLINE F32x16 to_float(I32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
LLMCORE_INLINE I32x16 to_int(F32x16 a) {
  const __m512i biased = _mm512_castps_si512(_mm512_add_ps(a.v, _mm512_set1_ps(12582912.0f)));
  return {_mm512_sub_epi32(biased, _mm512_set1_epi32(0x4b400000))};
}
LLMCORE_INLINE void store(int32_t* p, I32x16 a) { _mm512_storeu_si512(p, a.v); }
LLMCORE_INLINE void store_i8(int8_t* p, I32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}
template <int n>
LLMCORE_INLINE void store_digits(int8_t* high, int8_t* low, const I32x16 (&a)[4]) {
  // Of each quarter half of one and half of another.
  const __m512i words = _mm512_set_epi16(62, 60, 58, 56, 54, 52, 50, 48, 30, 28, 26, 24, 22, 20, 18, 16,  //
                                         46, 44, 42, 40, 38, 36, 34, 32, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i x = _mm512_permutex2var_epi16(a[0].v, words, a[1].v);
  const __m512i y = _mm512_permutex2var_epi16(a[2].v, words, a[3].v);
  const __m512i lowest = _mm512_set1_epi16((1 << n) - 1);
  const __m512i order = _mm512_setr_epi64(0, 4, 2, 6, 1, 5, 3, 7);
  const __m512i above = _mm512_packs_epi16(_mm512_srai_epi16(x, n), _mm512_srai_epi16(y, n));
  const __m512i below = _mm512_packs_epi16(_mm512_and_si512(x, lowest), _mm512_and_si512(y, lowest));
  _mm512_storeu_si512(high, _mm512_permutexvar_epi64(order, above));
  _mm512_storeu_si512(low, _mm512_permutexvar_epi64(order, below));
}

LLMCORE_INLINE void store_i16(int16_t* p, I32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(a.v));
}

LLMCORE_INLINE Mask16 less(F32x16 a, F32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
LLMCORE_INLINE Mask16 is_nan(F32x16 a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
LLMCORE_INLINE Mask16 lanes(int begin, int end) {
  const uint32_t below_end = end >= 16 ? 0xffffu : (1u << (end < 0 ? 0 : end)) - 1u;
  const uint32_t below_begin = begin >= 16 ? 0xffffu : (1u << (begin < 0 ? 0 : begin)) - 1u;
  return {static_cast<__mmask16>(below_end & ~below_begin)};
}
LLMCORE_INLINE F32x16 select(Mask16 m, F32x16 a, F32x16 b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }

LLMCORE_INLINE F32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
LLMCORE_INLINE F32x16 load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
LLMCORE_INLINE void store_f16(uint16_t* p, F32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
// By hand, for vcvtneps2bf16 flushes subnormals.
LLMCORE_INLINE void store_bf16(uint16_t* p, F32x16 a) {
  const __m512i u = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
  const __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(0x40));
  const __m512i r = _mm512_mask_blend_epi32(is_nan(a).v, rounded, quiet);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
}

LLMCORE_INLINE I32x16 load_i8(const int8_t* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

LLMCORE_INLINE U8x64 load_u8(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
LLMCORE_INLINE void store_u8(uint8_t* p, U8x64 a) { _mm512_storeu_si512(p, a.v); }
template <int shift, int mask>
LLMCORE_INLINE U8x64 extract(U8x64 a) {
  const __m512i shifted = shift ? _mm512_srli_epi16(a.v, shift) : a.v;
  return {mask == 0xff ? shifted : _mm512_and_si512(shifted, _mm512_set1_epi8(static_cast<char>(mask)))};
}
template <int left, int mask>
LLMCORE_INLINE U8x64 insert(U8x64 a, U8x64 b) {
  const __m512i shifted =
      left > 0 ? _mm512_slli_epi16(b.v, left > 0 ? left : 0) : _mm512_srli_epi16(b.v, left < 0 ? -left : 0);
  return {_mm512_ternarylogic_epi32(a.v, shifted, _mm512_set1_epi8(static_cast<char>(mask)), 0xf8)};  // a | (b & c)
}
LLMCORE_INLINE U8x64 look_up(U8x64 a, const uint8_t* table) {
  const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm512_shuffle_epi8(all, a.v)};
}
template <int bit>
LLMCORE_INLINE U8x64 look_up(U8x64 a, U8x64 bits, const uint8_t* table) {
  const __m512i high = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table + 16)));
  const __mmask64 set = _mm512_test_epi8_mask(bits.v, _mm512_set1_epi8(static_cast<char>(1 << bit)));
  return {_mm512_mask_shuffle_epi8(look_up(a, table).v, set, high, a.v)};
}
LLMCORE_INLINE S8x4 load_s8x4(const int8_t* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return {_mm512_set1_epi32(x)};
}
template <int kMaxCode>
constexpr int dot4_zero() {
  return 0;
}
// Written in assembly because gcc 12 spills the accumulators of the intrinsic in unrolled loops.
template <int kMaxCode>
LLMCORE_INLINE I32x16 dot4(I32x16 acc, U8x64 w, S8x4 x) {
#ifdef LLMCORE_TEST_TWIN  // tests/cpp/avx512_twin.cpp
  acc.v = _mm512_dpbusd_epi32(acc.v, w.v, x.v);
#else
  __asm__("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(w.v), "v"(x.v));
#endif
  return acc;
}
LLMCORE_INLINE I16x32 load_i16(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
template <int n>
LLMCORE_INLINE I16x32 shift_left(I16x32 a) {
  return {_mm512_slli_epi16(a.v, n)};
}
template <int n>
LLMCORE_INLINE I16x32 shift_right_arithmetic(I16x32 a) {
  return {_mm512_srai_epi16(a.v, n)};
}
template <int mask>
LLMCORE_INLINE I16x32 insert(I16x32 a, I16x32 b) {
  return {_mm512_ternarylogic_epi32(a.v, b.v, _mm512_set1_epi16(static_cast<int16_t>(mask)), 0xf8)};  // a | (b & c)
}
LLMCORE_INLINE S16x2 load_s16x2(const int16_t* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return {_mm512_set1_epi32(x)};
}
// In assembly for the same reason as dot4.
LLMCORE_INLINE I32x16 dot2(I32x16 acc, I16x32 w, S16x2 x) {
#ifdef LLMCORE_TEST_TWIN
  acc.v = _mm512_dpwssd_epi32(acc.v, w.v, x.v);
#else
  __asm__("vpdpwssd %2, %1, %0" : "+v"(acc.v) : "v"(w.v), "v"(x.v));
#endif
  return acc;
}
LLMCORE_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

constexpr int kTileRows = 6;
constexpr int kTilePanels = 4;
constexpr int kVectorPanels = 4;
constexpr int kAttentionRows = 8;
constexpr int kAttentionManyRows = 6;
constexpr int kAttentionSums = 24;
constexpr int kExp2Together = 8;

}  // namespace
