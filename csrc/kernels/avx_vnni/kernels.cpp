#define LLMCORE_AVX_VNNI
#include "kernels/avx2/vec.h"

#include "kernels/generic/kernels.h"

extern "C" {
extern const llmcore::KernelTable llmcore_kernels_avx_vnni;
const llmcore::KernelTable llmcore_kernels_avx_vnni = make_kernel_table("avx_vnni");
}
