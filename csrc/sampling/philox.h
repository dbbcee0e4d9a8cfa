#pragma once
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): a counter-based generator. The
// stream belongs to the request: key = seed, counter = (position, sequence), so that neither the batch nor the order of
// sampling can show.

#include <array>
#include <cstdint>

namespace llmcore {

inline std::array<uint32_t, 4> philox(uint64_t seed, uint64_t position, uint64_t sequence) {
  std::array<uint32_t, 4> c = {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                               static_cast<uint32_t>(sequence), static_cast<uint32_t>(sequence >> 32)};
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(p1),
         static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

/// Uniform in [0, 1), a multiple of 2^-53. `which` 0 or 1: two independent numbers of one position.
inline double philox_uniform(uint64_t seed, uint64_t position, uint64_t sequence, int which = 0) {
  const auto r = philox(seed, position, sequence);
  const uint64_t bits = (static_cast<uint64_t>(r[2 * which]) << 21) ^ (r[2 * which + 1] >> 11);
  return static_cast<double>(bits & ((uint64_t{1} << 53) - 1)) * 0x1p-53;
}

}  // namespace llmcore
