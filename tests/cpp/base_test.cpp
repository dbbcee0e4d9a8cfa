#include <cstdint>
#include <limits>
#include <utility>

#include "base/buffer.h"
#include "base/checked.h"
#include "base/error.h"
#include "base/float_environment.h"
#include "check.h"

using namespace llmcore;

TEST(base, checked_arithmetic_refuses_overflow) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  CHECK_EQ(checked_mul(1 << 20, 1 << 20), int64_t{1} << 40);
  CHECK_EQ(checked_add(kMax - 1, 1), kMax);
  CHECK_THROWS(LimitError, checked_mul(kMax, 2));
  CHECK_THROWS(LimitError, checked_mul(-kMax, 2));
  CHECK_THROWS(LimitError, checked_add(kMax, 1));
}

TEST(base, rounding_up_reaches_the_next_multiple) {
  CHECK_EQ(ceil_div(0, 16), 0);
  CHECK_EQ(ceil_div(17, 16), 2);
  CHECK_EQ(round_up(16, 16), 16);
  CHECK_EQ(round_up(17, 16), 32);
}

TEST(base, a_buffer_is_zero_aligned_and_accounted) {
  const int64_t before = allocated_bytes();
  for (const int64_t bytes : {int64_t{1}, int64_t{63}, int64_t{64}, int64_t{5} << 20}) {
    Buffer buffer(bytes);
    CHECK_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    CHECK_EQ(allocated_bytes() - before, bytes);
    int64_t set = 0;
    for (int64_t i = 0; i < bytes; ++i) set += buffer.data()[i] != 0;
    CHECK_EQ(set, 0);
  }
  CHECK_EQ(allocated_bytes(), before);
}

TEST(base, a_moved_buffer_is_freed_once) {
  const int64_t before = allocated_bytes();
  {
    Buffer first(100), second(200);
    first = std::move(second);
    const Buffer third(std::move(first));
    CHECK_EQ(third.size(), 200);
  }
  CHECK_EQ(allocated_bytes(), before);
}

TEST(base, an_impossible_buffer_is_a_typed_error) {
  CHECK_THROWS(ArgumentError, Buffer(-1));
  CHECK_THROWS(OutOfMemoryError, Buffer(std::numeric_limits<int64_t>::max()));
}

TEST(base, subnormals_survive_whatever_the_caller_set) {
  volatile float tiny = 1e-40f, half = 0.5f;
#if defined(__x86_64__)
  const unsigned saved = _mm_getcsr();
  _mm_setcsr(saved | 0x8040);  // flush to zero, denormals are zero
  const bool flushed = tiny * half == 0.0f;
  {
    const FloatEnvironment ours;
    CHECK(tiny * half > 0.0f);
  }
  const bool restored = tiny * half == 0.0f;
  _mm_setcsr(saved);
  CHECK(flushed);
  CHECK(restored);
#else
  const FloatEnvironment ours;
  CHECK(tiny * half > 0.0f);
#endif
}
