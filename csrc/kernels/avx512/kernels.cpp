#include "kernels/avx512/vec.h"

#include "kernels/avx512/gathers.h"

#include "kernels/generic/kernels.h"

extern "C" {
extern const llmcore::KernelTable llmcore_kernels_avx512;
const llmcore::KernelTable llmcore_kernels_avx512 = make_kernel_table("avx512");
}
