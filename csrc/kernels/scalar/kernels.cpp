#include "kernels/scalar/vec.h"

#include "kernels/generic/kernels.h"

extern "C" {
extern const llmcore::KernelTable llmcore_kernels_scalar;
const llmcore::KernelTable llmcore_kernels_scalar = make_kernel_table("scalar");
}
