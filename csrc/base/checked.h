#pragma once
// Checked integer arithmetic for every size that comes from outside (law 1).

#include <cstdint>
#include <limits>

#include "base/error.h"

namespace llmcore {

inline int64_t checked_mul(int64_t a, int64_t b) {
  int64_t r;
  if (__builtin_mul_overflow(a, b, &r))
    throw LimitError("size overflow: " + std::to_string(a) + " * " + std::to_string(b));
  return r;
}

inline int64_t checked_add(int64_t a, int64_t b) {
  int64_t r;
  if (__builtin_add_overflow(a, b, &r))
    throw LimitError("size overflow: " + std::to_string(a) + " + " + std::to_string(b));
  return r;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace llmcore
