#pragma once
// Sixteen lanes in two ymm registers. Needs AVX2, FMA and F16C; with LLMCORE_AVX_VNNI dot4 uses vpdpbusd. The meaning
// of each operation is that of scalar/vec.h, bit for bit.

#include <immintrin.h>
#include <stdint.h>

namespace {

#define LLMCORE_INLINE inline __attribute__((always_inline))

struct F32x16 {
  __m256 a, b;
};
struct I32x16 {
  __m256i a, b;
};
struct Mask16 {
  __m256 a, b;
};
struct U8x64 {
  __m256i a, b;
};
struct S8x4 {
  __m256i v;
};
struct I16x32 {
  __m256i a, b;
};
struct S16x2 {
  __m256i v;
};

LLMCORE_INLINE F32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
LLMCORE_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
LLMCORE_INLINE void store(float* p, F32x16 x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
LLMCORE_INLINE F32x16 add(F32x16 x, F32x16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
LLMCORE_INLINE F32x16 sub(F32x16 x, F32x16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
LLMCORE_INLINE F32x16 mul(F32x16 x, F32x16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
LLMCORE_INLINE F32x16 div(F32x16 x, F32x16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
LLMCORE_INLINE F32x16 max(F32x16 x, F32x16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
LLMCORE_INLINE F32x16 min(F32x16 x, F32x16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
LLMCORE_INLINE F32x16 fma(F32x16 x, F32x16 y, F32x16 z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
LLMCORE_INLINE F32x16 abs(F32x16 x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
LLMCORE_INLINE F32x16 neg(F32x16 x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}

LLMCORE_INLINE float first_lane(F32x16 x) { return _mm256_cvtss_f32(x.a); }
template <int n>
LLMCORE_INLINE F32x16 swapped(F32x16 x) {
  if constexpr (n == 8) return {x.b, x.a};
  if constexpr (n == 4) return {_mm256_permute2f128_ps(x.a, x.a, 0x01), _mm256_permute2f128_ps(x.b, x.b, 0x01)};
  constexpr int kOrder = n == 2 ? 0x4e : 0xb1;
  return {_mm256_permute_ps(x.a, kOrder), _mm256_permute_ps(x.b, kOrder)};
}

LLMCORE_INLINE I32x16 set1_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
LLMCORE_INLINE I32x16 add(I32x16 x, I32x16 y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
LLMCORE_INLINE I32x16 sub(I32x16 x, I32x16 y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
template <int n>
LLMCORE_INLINE I32x16 shift_left(I32x16 x) {
  return {_mm256_slli_epi32(x.a, n), _mm256_slli_epi32(x.b, n)};
}
template <int n>
LLMCORE_INLINE I32x16 shift_right_arithmetic(I32x16 x) {
  return {_mm256_srai_epi32(x.a, n), _mm256_srai_epi32(x.b, n)};
}
LLMCORE_INLINE F32x16 as_float(I32x16 x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
LLMCORE_INLINE I32x16 as_int(F32x16 x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
LLMCORE_INLINE F32x16 to_float(I32x16 x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
LLMCORE_INLINE I32x16 to_int(F32x16 x) {
  const F32x16 biased = add(x, set1(12582912.0f));
  return sub(I32x16{_mm256_castps_si256(biased.a), _mm256_castps_si256(biased.b)}, set1_i32(0x4b400000));
}
LLMCORE_INLINE void store(int32_t* p, I32x16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b);
}
LLMCORE_INLINE void store_i8(int8_t* p, I32x16 x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}

// The lowest 16 bits of each lane; of each quarter half of one and half of the other.
LLMCORE_INLINE __m256i mixed_words(I32x16 x) {
  const __m256i lower = _mm256_set1_epi32(0xffff);
  return _mm256_packus_epi32(_mm256_and_si256(x.a, lower), _mm256_and_si256(x.b, lower));
}
LLMCORE_INLINE void store_i16(int16_t* p, I32x16 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(mixed_words(x), 0xd8));
}
template <int n>
LLMCORE_INLINE void store_digits(int8_t* high, int8_t* low, const I32x16 (&x)[4]) {
  const __m256i lowest = _mm256_set1_epi16((1 << n) - 1);
  // Each half has four bytes of each of four halves.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int i = 0; i < 4; i += 2) {
    const __m256i a = mixed_words(x[i]), b = mixed_words(x[i + 1]);
    const __m256i above = _mm256_packs_epi16(_mm256_srai_epi16(a, n), _mm256_srai_epi16(b, n));
    const __m256i below = _mm256_packs_epi16(_mm256_and_si256(a, lowest), _mm256_and_si256(b, lowest));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high + 16 * i), _mm256_permutevar8x32_epi32(above, order));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low + 16 * i), _mm256_permutevar8x32_epi32(below, order));
  }
}

LLMCORE_INLINE Mask16 less(F32x16 x, F32x16 y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
LLMCORE_INLINE Mask16 is_nan(F32x16 x) {
  return {_mm256_cmp_ps(x.a, x.a, _CMP_UNORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_UNORD_Q)};
}
LLMCORE_INLINE Mask16 lanes(int begin, int end) {
  const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i high = _mm256_add_epi32(low, _mm256_set1_epi32(8));
  const __m256i before = _mm256_set1_epi32(begin - 1), after = _mm256_set1_epi32(end);
  const __m256i a = _mm256_and_si256(_mm256_cmpgt_epi32(low, before), _mm256_cmpgt_epi32(after, low));
  const __m256i b = _mm256_and_si256(_mm256_cmpgt_epi32(high, before), _mm256_cmpgt_epi32(after, high));
  return {_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)};
}
LLMCORE_INLINE F32x16 select(Mask16 m, F32x16 x, F32x16 y) {
  return {_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)};
}

LLMCORE_INLINE __m128i load_128(const uint16_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
LLMCORE_INLINE F32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))};
}
LLMCORE_INLINE F32x16 load_bf16(const uint16_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p)), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p + 8)), 16))};
}
LLMCORE_INLINE void store_f16(uint16_t* p, F32x16 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
LLMCORE_INLINE __m256i round_bf16(__m256 x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_blendv_epi8(rounded, quiet, nan);
}
LLMCORE_INLINE void store_bf16(uint16_t* p, F32x16 x) {
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(round_bf16(x.a), round_bf16(x.b)), 0xd8);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
}

LLMCORE_INLINE I32x16 load_i8(const int8_t* p) {
  return {_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8)))};
}

LLMCORE_INLINE U8x64 load_u8(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
LLMCORE_INLINE void store_u8(uint8_t* p, U8x64 x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 32), x.b);
}
LLMCORE_INLINE uint64_t high_bits(U8x64 x) {
  return static_cast<uint32_t>(_mm256_movemask_epi8(x.a)) | static_cast<uint64_t>(_mm256_movemask_epi8(x.b)) << 32;
}
LLMCORE_INLINE uint64_t bits_equal(U8x64 x, uint8_t value) {
  const __m256i v = _mm256_set1_epi8(static_cast<char>(value));
  return high_bits({_mm256_cmpeq_epi8(x.a, v), _mm256_cmpeq_epi8(x.b, v)});
}
LLMCORE_INLINE uint64_t bits_within(U8x64 x, uint8_t first, uint8_t count) {
  const __m256i from = _mm256_set1_epi8(static_cast<char>(first)),
                last = _mm256_set1_epi8(static_cast<char>(count - 1));
  const __m256i a = _mm256_sub_epi8(x.a, from), b = _mm256_sub_epi8(x.b, from);
  return high_bits({_mm256_cmpeq_epi8(_mm256_min_epu8(a, last), a), _mm256_cmpeq_epi8(_mm256_min_epu8(b, last), b)});
}
template <int bit>
LLMCORE_INLINE uint64_t bits_set(U8x64 x) {
  return high_bits({_mm256_slli_epi16(x.a, 7 - bit), _mm256_slli_epi16(x.b, 7 - bit)});
}
// Eight at a time, as their number can't be foreseen.
LLMCORE_INLINE uint32_t* put_positions(uint64_t bits, uint32_t offset, uint32_t* out) {
  const int count = __builtin_popcountll(bits);
  for (int done = 0; done < count; done += 8) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      out[done + i] = offset + static_cast<uint32_t>(__builtin_ctzll(bits | uint64_t{1} << 63));
      bits &= bits - 1;
    }
  }
  return out + count;
}
template <int shift, int mask>
LLMCORE_INLINE U8x64 extract(U8x64 x) {
  if constexpr (mask == 0xff) return x;
  const __m256i keep = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_and_si256(shift ? _mm256_srli_epi16(x.a, shift) : x.a, keep),
          _mm256_and_si256(shift ? _mm256_srli_epi16(x.b, shift) : x.b, keep)};
}
template <int left, int mask>
LLMCORE_INLINE __m256i insert_half(__m256i x, __m256i y) {
  const __m256i shifted =
      left > 0 ? _mm256_slli_epi16(y, left > 0 ? left : 0) : _mm256_srli_epi16(y, left < 0 ? -left : 0);
  return _mm256_or_si256(x, _mm256_and_si256(shifted, _mm256_set1_epi8(static_cast<char>(mask))));
}
template <int left, int mask>
LLMCORE_INLINE U8x64 insert(U8x64 x, U8x64 y) {
  return {insert_half<left, mask>(x.a, y.a), insert_half<left, mask>(x.b, y.b)};
}
LLMCORE_INLINE U8x64 look_up(U8x64 x, const uint8_t* table) {
  const __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return {_mm256_shuffle_epi8(both, x.a), _mm256_shuffle_epi8(both, x.b)};
}
template <int bit>
LLMCORE_INLINE U8x64 look_up(U8x64 x, U8x64 bits, const uint8_t* table) {
  const U8x64 low = look_up(x, table), high = look_up(x, table + 16);
  return {_mm256_blendv_epi8(low.a, high.a, _mm256_slli_epi16(bits.a, 7 - bit)),
          _mm256_blendv_epi8(low.b, high.b, _mm256_slli_epi16(bits.b, 7 - bit))};
}
LLMCORE_INLINE S8x4 load_s8x4(const int8_t* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return {_mm256_set1_epi32(x)};
}

// By hand, for gcc 12 adds several products up before the sum, and spills them all.
LLMCORE_INLINE __m256i add_in_order(__m256i sum, __m256i x) {
  __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(x));
  return sum;
}
#if defined(LLMCORE_AVX_VNNI)
template <int kMaxCode>
constexpr int dot4_zero() {
  return 0;
}
template <int kMaxCode>
LLMCORE_INLINE __m256i dot4_half(__m256i acc, __m256i w, __m256i x) {
#if defined(LLMCORE_TEST_TWIN)  // tests/cpp/avx_vnni_twin.cpp
  return twin_dpbusd(acc, w, x);
#else
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(w), "x"(x));
  return acc;
#endif
}
#else
// maddubs adds two products in 16 bits and saturates. Small codes can't reach that; 8-bit codes are taken as signed,
// and their sign is moved to the activation: |w| * 127 * 2 <= 128 * 127 * 2 = 32,512 < 32,767.
template <int kMaxCode>
constexpr bool fits_maddubs() {
  return kMaxCode * 127 * 2 <= 32767;
}
template <int kMaxCode>
constexpr int dot4_zero() {
  return fits_maddubs<kMaxCode>() ? 0 : 128;
}
template <int kMaxCode>
LLMCORE_INLINE __m256i dot4_half(__m256i acc, __m256i w, __m256i x) {
  __m256i pairs;
  if constexpr (fits_maddubs<kMaxCode>()) {
    pairs = _mm256_maddubs_epi16(w, x);
  } else {
    const __m256i centred = _mm256_xor_si256(w, _mm256_set1_epi8(-128));  // w - 128
    pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(centred), _mm256_sign_epi8(x, centred));
  }
  return add_in_order(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
#endif
template <int kMaxCode>
LLMCORE_INLINE I32x16 dot4(I32x16 acc, U8x64 w, S8x4 x) {
  return {dot4_half<kMaxCode>(acc.a, w.a, x.v), dot4_half<kMaxCode>(acc.b, w.b, x.v)};
}
LLMCORE_INLINE I16x32 load_i16(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
template <int n>
LLMCORE_INLINE I16x32 shift_left(I16x32 x) {
  return {_mm256_slli_epi16(x.a, n), _mm256_slli_epi16(x.b, n)};
}
template <int n>
LLMCORE_INLINE I16x32 shift_right_arithmetic(I16x32 x) {
  return {_mm256_srai_epi16(x.a, n), _mm256_srai_epi16(x.b, n)};
}
template <int mask>
LLMCORE_INLINE I16x32 insert(I16x32 x, I16x32 y) {
  const __m256i keep = _mm256_set1_epi16(static_cast<int16_t>(mask));
  return {_mm256_or_si256(x.a, _mm256_and_si256(y.a, keep)), _mm256_or_si256(x.b, _mm256_and_si256(y.b, keep))};
}
LLMCORE_INLINE S16x2 load_s16x2(const int16_t* p) {
  int32_t x;
  __builtin_memcpy(&x, p, 4);
  return {_mm256_set1_epi32(x)};
}
LLMCORE_INLINE __m256i dot2_half(__m256i acc, __m256i w, __m256i x) {
#if defined(LLMCORE_AVX_VNNI) && !defined(LLMCORE_TEST_TWIN)
  __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(acc) : "x"(w), "x"(x));
  return acc;
#else
  return add_in_order(acc, _mm256_madd_epi16(w, x));
#endif
}
LLMCORE_INLINE I32x16 dot2(I32x16 acc, I16x32 w, S16x2 x) {
  return {dot2_half(acc.a, w.a, x.v), dot2_half(acc.b, w.b, x.v)};
}
LLMCORE_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

#if defined(LLMCORE_AVX_VNNI)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 3;
#endif
constexpr int kTilePanels = 1;
constexpr int kVectorPanels = 2;
constexpr int kAttentionRows = 6;
constexpr int kAttentionManyRows = 6;
constexpr int kAttentionSums = 6;
constexpr int kExp2Together = 1;

}  // namespace
