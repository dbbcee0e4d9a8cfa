#include <cstdint>
#include <limits>

#include "base/buffer.h"
#include "base/checked.h"
#include "base/error.h"
#include "cpp/check.h"

namespace llmcore::test {

TEST(checked_arithmetic_refuses_overflow) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  CHECK(checked_mul(1 << 20, 1 << 20) == int64_t{1} << 40);
  CHECK(checked_add(kMax - 1, 1) == kMax);
  CHECK_THROWS(checked_mul(kMax, 2), LimitError);
  CHECK_THROWS(checked_add(kMax, 1), LimitError);
}

TEST(rounding_up_reaches_the_next_multiple) {
  CHECK(ceil_div(0, 16) == 0);
  CHECK(ceil_div(17, 16) == 2);
  CHECK(round_up(16, 16) == 16);
  CHECK(round_up(17, 16) == 32);
}

}  // namespace llmcore::test
