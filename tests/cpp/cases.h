#pragma once
// The one table of shapes that the kernel tests run over: around the sixteen lanes, the groups of 32, 64 and 128, the
// blocks of 128 floats and the register tiles.

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "kernels/select.h"

extern "C" {
extern const llmcore::KernelTable llmcore_kernels_avx512_twin, llmcore_kernels_avx_vnni_twin;
}

namespace llmcore::test {

struct Shape {
  int64_t N, K;
};

inline std::string to_string(const Shape& s) { return "N " + std::to_string(s.N) + ", K " + std::to_string(s.K); }

/// Weight matrices [N, K].
constexpr Shape kMatrices[] = {{1, 1},    {1, 300},  {2, 16},   {15, 31},   {16, 32},  {17, 33},  {31, 63},  {33, 64},
                               {48, 127}, {49, 128}, {63, 129}, {64, 200},  {65, 256}, {70, 257}, {100, 48}, {130, 1},
                               {1, 128},  {16, 512}, {80, 96},  {129, 160}, {35, 385}, {33, 1100}};
/// Rows of activations.
constexpr int64_t kRows[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 97};
/// Lengths of a row.
constexpr int64_t kLengths[] = {1,  2,  3,  7,  8,  15,  16,  17,  20,  31,  32,
                                33, 47, 63, 64, 65, 100, 127, 128, 129, 256, 300};

/// The tables beside the scalar one that this CPU can run, and the twins (*_twin.cpp) of those it can't. Each must give
/// the scalar table's bits.
inline std::vector<const KernelTable*> other_tables() {
  std::vector<const KernelTable*> tables;
  for (const std::string& name : available_isas()) {
    if (name != "scalar") tables.push_back(&kernels_named(name));
  }
  [[maybe_unused]] const auto add_twin = [&](const char* name, const KernelTable& twin) {
    const auto isas = available_isas();
    const auto has = [&](const char* isa) { return std::find(isas.begin(), isas.end(), isa) != isas.end(); };
    if (has("avx2") && !has(name)) tables.push_back(&twin);
  };
#ifdef LLMCORE_AVX_VNNI_TWIN
  add_twin("avx_vnni", llmcore_kernels_avx_vnni_twin);
#endif
#ifdef LLMCORE_AVX512_TWIN
  add_twin("avx512", llmcore_kernels_avx512_twin);
#endif
  return tables;
}
inline const KernelTable& scalar_table() { return kernels_named("scalar"); }

/// For --quick: leaves out all but each `step`-th case.
inline bool left_out(int64_t index, int64_t step = 5) { return quick() && index % step != 0; }

}  // namespace llmcore::test
