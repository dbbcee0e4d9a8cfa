#define LLMCORE_NEON_I8MM
#include "kernels/neon/vec.h"

#include "kernels/generic/kernels.h"

extern "C" {
extern const llmcore::KernelTable llmcore_kernels_neon_i8mm;
const llmcore::KernelTable llmcore_kernels_neon_i8mm = make_kernel_table("neon_i8mm");
}
