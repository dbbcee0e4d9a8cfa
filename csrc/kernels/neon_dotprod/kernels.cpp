#define LLMCORE_NEON_DOTPROD
#include "kernels/neon/vec.h"

#include "kernels/generic/kernels.h"

extern "C" {
extern const llmcore::KernelTable llmcore_kernels_neon_dotprod;
const llmcore::KernelTable llmcore_kernels_neon_dotprod = make_kernel_table("neon_dotprod");
}
