#pragma once
// Extremes and sums of a group of weights. Eight running values, so that a loop is not one chain of operations.

#include <cstdint>

namespace llmcore {

struct Range {
  float lowest = 0, highest = 0;  // 0 counts as one of the weights, NaN doesn't
  float poison = 0;               // NaN as soon as a weight is not finite, else 0
};

inline Range range(const float* w, int64_t n) {
  float low[8] = {}, high[8] = {}, poison[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int j = 0; j < 8; ++j) {
      poison[j] += w[i + j] * 0.0f;
      low[j] = w[i + j] < low[j] ? w[i + j] : low[j];
      high[j] = w[i + j] > high[j] ? w[i + j] : high[j];
    }
  }
  for (; i < n; ++i) {
    poison[0] += w[i] * 0.0f;
    low[0] = w[i] < low[0] ? w[i] : low[0];
    high[0] = w[i] > high[0] ? w[i] : high[0];
  }
  Range r;
  for (int j = 0; j < 8; ++j) {
    r.lowest = low[j] < r.lowest ? low[j] : r.lowest;
    r.highest = high[j] > r.highest ? high[j] : r.highest;
    r.poison += poison[j];
  }
  return r;
}

struct Above {
  double sum = 0;
  int64_t count = 0;
};

/// Sum and number of the magnitudes above `threshold`.
inline Above above(const float* w, int64_t n, float threshold) {
  constexpr int64_t kBlock = 1024;  // float sums stay short
  Above total;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    float sum[8] = {};
    int32_t count[8] = {};
    int64_t i = begin;
    for (; i + 8 <= end; i += 8) {
      for (int j = 0; j < 8; ++j) {
        const float magnitude = __builtin_fabsf(w[i + j]);
        sum[j] += magnitude > threshold ? magnitude : 0.0f;
        count[j] += magnitude > threshold ? 1 : 0;
      }
    }
    for (; i < end; ++i) {
      const float magnitude = __builtin_fabsf(w[i]);
      sum[0] += magnitude > threshold ? magnitude : 0.0f;
      count[0] += magnitude > threshold ? 1 : 0;
    }
    for (int j = 0; j < 8; ++j) {
      total.sum += static_cast<double>(sum[j]);
      total.count += count[j];
    }
  }
  return total;
}

}  // namespace llmcore
