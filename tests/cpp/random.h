#pragma once
// Random numbers that are the same on every machine, for test operands.

#include <cstdint>
#include <vector>

#include "sampling/philox.h"

namespace llmcore::test {

class Random {
 public:
  explicit Random(uint64_t seed) : seed_(seed) {}
  uint32_t bits() {
    if (left_ == 0) {
      words_ = philox(seed_, counter_++, 0);
      left_ = 4;
    }
    return words_[--left_];
  }
  /// Uniform in [low, high], both included.
  int64_t integer(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(bits() % static_cast<uint64_t>(high - low + 1));
  }
  /// Uniform in [-1, 1), a multiple of 2^-23.
  float unit() { return static_cast<float>(static_cast<int32_t>(bits()) >> 8) * 0x1p-23f; }
  std::vector<float> units(int64_t n, float factor = 1.0f) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = unit() * factor;
    return values;
  }

 private:
  uint64_t seed_, counter_ = 0;
  std::array<uint32_t, 4> words_{};
  int left_ = 0;
};

}  // namespace llmcore::test
