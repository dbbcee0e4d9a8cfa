#include "kernels/neon/vec.h"

#include "kernels/generic/kernels.h"

extern "C" {
extern const llmcore::KernelTable llmcore_kernels_neon;
const llmcore::KernelTable llmcore_kernels_neon = make_kernel_table("neon");
}
