#include "kernels/select.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>

#include "base/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

extern "C" {
extern const llmcore::KernelTable llmcore_kernels_scalar;
#if defined(__x86_64__)
extern const llmcore::KernelTable llmcore_kernels_avx2;
extern const llmcore::KernelTable llmcore_kernels_avx_vnni;
extern const llmcore::KernelTable llmcore_kernels_avx512;
extern const llmcore::WindowKernel llmcore_kernels_avx512_windows[llmcore::kNumWindowPatterns];
#elif defined(__aarch64__)
extern const llmcore::KernelTable llmcore_kernels_neon;
extern const llmcore::KernelTable llmcore_kernels_neon_dotprod;
extern const llmcore::KernelTable llmcore_kernels_neon_i8mm;
#endif
}

namespace llmcore {
namespace {

#if defined(__x86_64__)
// With its windows of text, which are compiled apart.
const KernelTable kAvx512 = [] {
  KernelTable table = llmcore_kernels_avx512;
  std::copy(std::begin(llmcore_kernels_avx512_windows), std::end(llmcore_kernels_avx512_windows), table.window);
  return table;
}();
#endif

struct Isa {
  const KernelTable* table;
  bool (*supported)();
};

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx_vnni() {  // not every compiler's __builtin_cpu_supports knows it
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
#elif defined(__aarch64__)
bool has_dotprod() {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kDotProduct) != 0;
#else
  return true;  // every Arm Mac has it
#endif
}
bool has_i8mm() {
#if defined(__linux__)
  constexpr unsigned long kInt8MatrixProducts = 1ul << 13;  // HWCAP2_I8MM
  return has_dotprod() && (getauxval(AT_HWCAP2) & kInt8MatrixProducts) != 0;
#elif defined(__APPLE__)
  int found = 0;
  size_t size = sizeof found;
  return sysctlbyname("hw.optional.arm.FEAT_I8MM", &found, &size, nullptr, 0) == 0 && found != 0;
#else
  return false;
#endif
}
#endif

// Best first. A row here and one in CMakeLists.txt add an ISA.
const Isa kIsas[] = {
#if defined(__x86_64__)
    {&kAvx512, has_avx512},
    {&llmcore_kernels_avx_vnni, has_avx_vnni},
    {&llmcore_kernels_avx2, has_avx2},
#elif defined(__aarch64__)
    {&llmcore_kernels_neon_i8mm, has_i8mm},
    {&llmcore_kernels_neon_dotprod, has_dotprod},
    {&llmcore_kernels_neon, [] { return true; }},
#endif
    {&llmcore_kernels_scalar, [] { return true; }},
};

const KernelTable& select() {
  const char* wanted = std::getenv("LLMCORE_ISA");
  if (wanted && *wanted) return kernels_named(wanted);
  for (const Isa& isa : kIsas) {
    if (isa.supported()) return *isa.table;
  }
  return llmcore_kernels_scalar;
}

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : kIsas) {
    if (isa.supported()) names.emplace_back(isa.table->name);
  }
  return names;
}

const KernelTable& kernels_named(const std::string& name) {
  std::string known;
  for (const Isa& isa : kIsas) {
    if (!isa.supported()) continue;
    if (name == isa.table->name) return *isa.table;
    known += (known.empty() ? "" : ", ") + std::string(isa.table->name);
  }
  throw ArgumentError("LLMCORE_ISA must be one of " + known + " on this CPU, got '" + name.substr(0, 40) + "'");
}

const KernelTable& kernels() {
  static const KernelTable& table = select();
  return table;
}

}  // namespace llmcore
