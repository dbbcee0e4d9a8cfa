// The windows of text with 64 bytes in one zmm register. Compiled without AVX-512 BW, whose instructions are written in
// assembly: compilers that know mask registers of 64 bits do in them what windows.h does with words of bits, and that
// is slower than AVX2.

#include <immintrin.h>
#include <stdint.h>

#include "kernels/text.h"

namespace {

#define LLMCORE_INLINE inline __attribute__((always_inline))

struct U8x64 {
  __m512i v;
};

// The meaning of each operation is that of scalar/vec.h.
LLMCORE_INLINE __m512i set1_u8(uint8_t value) { return _mm512_set1_epi32(static_cast<int32_t>(value * 0x01010101u)); }
LLMCORE_INLINE U8x64 load_u8(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
LLMCORE_INLINE uint64_t high_bits(U8x64 a) {
  uint64_t bits;
  __asm__("vpmovb2m %1, %%k1\n\tkmovq %%k1, %0" : "=r"(bits) : "v"(a.v) : "k1");
  return bits;
}
LLMCORE_INLINE uint64_t bits_equal(U8x64 a, uint8_t value) {
  uint64_t bits;
  __asm__("vpcmpeqb %2, %1, %%k1\n\tkmovq %%k1, %0" : "=r"(bits) : "v"(a.v), "v"(set1_u8(value)) : "k1");
  return bits;
}
LLMCORE_INLINE uint64_t bits_within(U8x64 a, uint8_t first, uint8_t count) {
  uint64_t bits;
  __m512i from_first;
  __asm__("vpsubb %3, %2, %1\n\tvpcmpltub %4, %1, %%k1\n\tkmovq %%k1, %0"
          : "=r"(bits), "=&v"(from_first)
          : "v"(a.v), "v"(set1_u8(first)), "v"(set1_u8(count))
          : "k1");
  return bits;
}
template <int bit>
LLMCORE_INLINE uint64_t bits_set(U8x64 a) {
  uint64_t bits;
  __asm__("vptestmb %2, %1, %%k1\n\tkmovq %%k1, %0" : "=r"(bits) : "v"(a.v), "v"(set1_u8(1 << bit)) : "k1");
  return bits;
}
LLMCORE_INLINE uint32_t* put_positions(uint64_t bits, uint32_t offset, uint32_t* out) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _Pragma("GCC unroll 4") for (uint32_t from = 0; from < 64; from += 16) {
    const __mmask16 part = static_cast<__mmask16>(bits >> from);
    const __m512i positions = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int32_t>(offset + from)));
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(part, positions));
    out += __builtin_popcount(part);
  }
  return out;
}

}  // namespace

#include "kernels/generic/windows.h"

extern "C" {
extern const llmcore::WindowKernel llmcore_kernels_avx512_windows[llmcore::kNumWindowPatterns];
const llmcore::WindowKernel llmcore_kernels_avx512_windows[] = LLMCORE_WINDOWS;
}
