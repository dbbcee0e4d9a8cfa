#pragma once
// Picks the kernel table at run time: the best the CPU can run, or the one LLMCORE_ISA names.

#include <string>
#include <vector>

#include "kernels/table.h"

namespace llmcore {

/// The table in use. The first call reads LLMCORE_ISA; throws ArgumentError when it names one this CPU can't run.
const KernelTable& kernels();
/// Names of the tables this CPU can run, best first.
std::vector<std::string> available_isas();
/// The table of that name, whichever is in use. Throws ArgumentError as above.
const KernelTable& kernels_named(const std::string& name);

}  // namespace llmcore
