#include "kernels/avx2/vec.h"

#include "kernels/generic/kernels.h"

extern "C" {
extern const llmcore::KernelTable llmcore_kernels_avx2;
const llmcore::KernelTable llmcore_kernels_avx2 = make_kernel_table("avx2");
}
