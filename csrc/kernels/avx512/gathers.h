#pragma once
// What merging (generic/merge.h) needs of an ISA beyond its vec.h: look-ups of sixteen lanes at once. avx512_twin.cpp
// does without, as SIMDe has none of these.

#include <immintrin.h>
#include <stdint.h>

#define LLMCORE_MERGE

namespace {

LLMCORE_INLINE I32x16 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
LLMCORE_INLINE I32x16 mul(I32x16 a, I32x16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
LLMCORE_INLINE I32x16 min(I32x16 a, I32x16 b) { return {_mm512_min_epi32(a.v, b.v)}; }
LLMCORE_INLINE I32x16 bit_and(I32x16 a, I32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
LLMCORE_INLINE I32x16 bit_or(I32x16 a, I32x16 b) { return {_mm512_or_si512(a.v, b.v)}; }
LLMCORE_INLINE I32x16 shift_right(I32x16 a, int n) { return {_mm512_srl_epi32(a.v, _mm_cvtsi32_si128(n))}; }
LLMCORE_INLINE I32x16 select(Mask16 m, I32x16 a, I32x16 b) { return {_mm512_mask_blend_epi32(m.v, b.v, a.v)}; }

LLMCORE_INLINE Mask16 equal(I32x16 a, I32x16 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
LLMCORE_INLINE Mask16 unequal(I32x16 a, I32x16 b) { return {_mm512_cmpneq_epi32_mask(a.v, b.v)}; }
LLMCORE_INLINE Mask16 no_lanes() { return {0}; }
LLMCORE_INLINE Mask16 both_of(Mask16 a, Mask16 b) { return {static_cast<__mmask16>(a.v & b.v)}; }
LLMCORE_INLINE Mask16 either_of(Mask16 a, Mask16 b) { return {static_cast<__mmask16>(a.v | b.v)}; }
LLMCORE_INLINE Mask16 one_without(Mask16 a, Mask16 b) { return {static_cast<__mmask16>(a.v & ~b.v)}; }
LLMCORE_INLINE int count_of(Mask16 m) { return __builtin_popcount(m.v); }
LLMCORE_INLINE void store(uint16_t* p, Mask16 m) { *p = m.v; }
LLMCORE_INLINE Mask16 load_mask(const uint16_t* p) { return {*p}; }

/// The first n elements, or sixteen if there are as many; `fill` after that, where nothing is read.
LLMCORE_INLINE I32x16 load_some(const uint32_t* p, int n, I32x16 fill) {
  return {_mm512_mask_loadu_epi32(fill.v, lanes(0, n).v, p)};
}
/// p[index] in the lanes that are set, 0 in others, which read nothing.
LLMCORE_INLINE I32x16 gather(const uint32_t* p, I32x16 index, Mask16 m) {
  return {_mm512_mask_i32gather_epi32(_mm512_setzero_si512(), m.v, index.v, p, 4)};
}
LLMCORE_INLINE void gather(const uint64_t* p, I32x16 index, Mask16 m, I32x16& low, I32x16& high) {
  const __m512i zero = _mm512_setzero_si512();
  const __m512i a =
      _mm512_mask_i32gather_epi64(zero, static_cast<__mmask8>(m.v), _mm512_castsi512_si256(index.v), p, 8);
  const __m512i b =
      _mm512_mask_i32gather_epi64(zero, static_cast<__mmask8>(m.v >> 8), _mm512_extracti64x4_epi64(index.v, 1), p, 8);
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  low = {_mm512_permutex2var_epi32(a, even, b)};
  high = {_mm512_permutex2var_epi32(a, _mm512_add_epi32(even, _mm512_set1_epi32(1)), b)};
}

/// The lanes of `a` that are set, eight at most, and from lane 8 on those of b; `fill` between and after them.
LLMCORE_INLINE I32x16 pack(Mask16 m, I32x16 a, I32x16 b, I32x16 fill) {
  const __m512i low = _mm512_mask_compress_epi32(fill.v, m.v, a.v), high = _mm512_mask_compress_epi32(fill.v, m.v, b.v);
  return {_mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1)};
}
/// The other way around; lanes that aren't set are whatever is fast.
LLMCORE_INLINE void unpack(Mask16 m, I32x16 packed, I32x16& a, I32x16& b) {
  a = {_mm512_maskz_expand_epi32(m.v, packed.v)};
  b = {_mm512_maskz_expand_epi32(m.v, _mm512_castsi256_si512(_mm512_extracti64x4_epi64(packed.v, 1)))};
}

/// Lane j of row i becomes lane i of row j.
LLMCORE_INLINE void transpose(I32x16 (&rows)[16]) {
  __m512i a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_epi32(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_epi32(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
    b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
    b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
    b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
  }
  // Quarter q of b[4 k + j] is lanes 4 k to 4 k + 3 of the new row 4 q + j.
  for (int j = 0; j < 4; ++j) {
    const __m512i low = _mm512_shuffle_i32x4(b[j], b[4 + j], 0x88), high = _mm512_shuffle_i32x4(b[j], b[4 + j], 0xdd);
    const __m512i low_too = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0x88);
    const __m512i high_too = _mm512_shuffle_i32x4(b[8 + j], b[12 + j], 0xdd);
    rows[j].v = _mm512_shuffle_i32x4(low, low_too, 0x88);
    rows[4 + j].v = _mm512_shuffle_i32x4(high, high_too, 0x88);
    rows[8 + j].v = _mm512_shuffle_i32x4(low, low_too, 0xdd);
    rows[12 + j].v = _mm512_shuffle_i32x4(high, high_too, 0xdd);
  }
}

}  // namespace
