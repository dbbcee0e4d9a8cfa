// The AVX-512 kernels with every intrinsic written out in AVX2, by SIMDe and, where it has none, by GNU vectors here:
// so their bits can be compared on machines without AVX-512. Slow, and no part of the package.

#include <immintrin.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

namespace {

using Floats __attribute__((vector_size(64))) = float;
using Ints __attribute__((vector_size(64))) = int32_t;
using Bytes __attribute__((vector_size(16))) = uint8_t;
using SignedBytes __attribute__((vector_size(16))) = int8_t;
using Words __attribute__((vector_size(32))) = uint16_t;

template <class To, class From>
inline To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}
template <class Narrow>
inline __m512i widen(Narrow x) {
  return bits<__m512i>(__builtin_convertvector(x, Ints));
}
inline __m512 two_halves(__m256 low, __m256 high) {
  const __m256 halves[2] = {low, high};
  __m512 whole;
  __builtin_memcpy(&whole, halves, sizeof whole);
  return whole;
}

inline __m512 twin_cvtepi32_ps(__m512i x) { return bits<__m512>(__builtin_convertvector(bits<Ints>(x), Floats)); }
inline __m128i twin_cvtepi32_epi8(__m512i x) { return bits<__m128i>(__builtin_convertvector(bits<Ints>(x), Bytes)); }
inline __m256i twin_cvtepi32_epi16(__m512i x) { return bits<__m256i>(__builtin_convertvector(bits<Ints>(x), Words)); }
inline __m512i twin_cvtepi8_epi32(__m128i x) { return widen(bits<SignedBytes>(x)); }
inline __m512i twin_cvtepu8_epi32(__m128i x) { return widen(bits<Bytes>(x)); }
inline __m512i twin_cvtepu16_epi32(__m256i x) { return widen(bits<Words>(x)); }
inline __m512i twin_srai_epi32(__m512i x, unsigned n) { return bits<__m512i>(bits<Ints>(x) >> static_cast<int>(n)); }
inline __m512 twin_cvtph_ps(__m256i x) {
  __m128i halves[2];
  __builtin_memcpy(halves, &x, sizeof x);
  return two_halves(_mm256_cvtph_ps(halves[0]), _mm256_cvtph_ps(halves[1]));
}
template <int rounding>
inline __m256i twin_cvtps_ph(__m512 x) {
  __m256 floats[2];
  __builtin_memcpy(floats, &x, sizeof x);
  const __m128i halves[2] = {_mm256_cvtps_ph(floats[0], rounding), _mm256_cvtps_ph(floats[1], rounding)};
  __m256i whole;
  __builtin_memcpy(&whole, halves, sizeof whole);
  return whole;
}

}  // namespace

// Macros, for the compiler's own headers have functions of these names, which need AVX-512.
#define _mm512_cvtepi32_ps twin_cvtepi32_ps
#define _mm512_cvtepi32_epi8 twin_cvtepi32_epi8
#define _mm512_cvtepi32_epi16 twin_cvtepi32_epi16
#define _mm512_cvtepi8_epi32 twin_cvtepi8_epi32
#define _mm512_cvtepu8_epi32 twin_cvtepu8_epi32
#define _mm512_cvtepu16_epi32 twin_cvtepu16_epi32
#define _mm512_cvtph_ps twin_cvtph_ps
#undef _mm512_shuffle_f32x4
#define _mm512_shuffle_f32x4(a, b, lanes) simde_mm512_shuffle_f32x4(a, b, lanes)
#undef _mm512_srai_epi32
#define _mm512_srai_epi32 twin_srai_epi32
#undef _mm512_cvtps_ph
#define _mm512_cvtps_ph(x, rounding) twin_cvtps_ph<rounding>(x)

#define LLMCORE_TEST_TWIN
#include "kernels/avx512/vec.h"

#include "kernels/generic/kernels.h"

extern "C" {
extern const llmcore::KernelTable llmcore_kernels_avx512_twin;
const llmcore::KernelTable llmcore_kernels_avx512_twin = make_kernel_table("avx512_twin");
}
