// The AVX-VNNI kernels with their one instruction written out in AVX2, so that their bits can be compared on machines
// without it. No part of the package.

#include <immintrin.h>

namespace {

// acc + the sums of four products of unsigned and signed bytes, which never saturate.
inline __m256i twin_dpbusd(__m256i acc, __m256i w, __m256i x) {
  const __m256i ones = _mm256_set1_epi16(1), low_byte = _mm256_set1_epi16(0xff);
  const __m256i even = _mm256_and_si256(w, low_byte), odd = _mm256_srli_epi16(w, 8);
  const __m256i x_even = _mm256_srai_epi16(_mm256_slli_epi16(x, 8), 8), x_odd = _mm256_srai_epi16(x, 8);
  const __m256i first = _mm256_mullo_epi16(even, x_even), second = _mm256_mullo_epi16(odd, x_odd);  // |.| <= 32,640
  return _mm256_add_epi32(acc, _mm256_add_epi32(_mm256_madd_epi16(first, ones), _mm256_madd_epi16(second, ones)));
}

}  // namespace

#define LLMCORE_TEST_TWIN
#define LLMCORE_AVX_VNNI
#include "kernels/avx2/vec.h"

#include "kernels/generic/kernels.h"

extern "C" {
extern const llmcore::KernelTable llmcore_kernels_avx_vnni_twin;
const llmcore::KernelTable llmcore_kernels_avx_vnni_twin = make_kernel_table("avx_vnni_twin");
}
