#pragma once
// Extremes of a group of weights. Eight running values, so that the loop is not one chain of comparisons.

#include <cstdint>

namespace llmcore {

struct Range {
  float lowest = 0, highest = 0;  // 0 counts as one of the weights
};

inline Range range(const float* w, int64_t n) {
  float low[8] = {}, high[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) {
      low[j] = w[i + j] < low[j] ? w[i + j] : low[j];
      high[j] = w[i + j] > high[j] ? w[i + j] : high[j];
    }
  }
  for (; i < n; ++i) {
    low[0] = w[i] < low[0] ? w[i] : low[0];
    high[0] = w[i] > high[0] ? w[i] : high[0];
  }
  Range r;
  for (int j = 0; j < 8; ++j) {
    r.lowest = low[j] < r.lowest ? low[j] : r.lowest;
    r.highest = high[j] > r.highest ? high[j] : r.highest;
  }
  return r;
}

}  // namespace llmcore
