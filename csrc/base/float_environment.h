#pragma once
// The floating-point environment of native calls: round to nearest, no flushing of subnormals, whatever the caller set.

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace llmcore {

class FloatEnvironment {
 public:
#if defined(__x86_64__) || defined(_M_X64)
  FloatEnvironment() noexcept : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  FloatEnvironment() noexcept {
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
    const uint64_t ours = 0;
    __asm__ volatile("msr fpcr, %0" : : "r"(ours));
  }
  ~FloatEnvironment() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  uint64_t saved_ = 0;
#else
  FloatEnvironment() noexcept {}
  ~FloatEnvironment() {}

 private:
#endif
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;
};

}  // namespace llmcore
