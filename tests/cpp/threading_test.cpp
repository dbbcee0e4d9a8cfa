#include <atomic>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "cpp/check.h"
#include "threading/pool.h"

namespace llmcore::test {

TEST(every_index_is_visited_once) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 15, 16, 17, 1000}) {
      std::vector<int> visits(static_cast<size_t>(count), 0);
      pool.parallel_for(count, 16, [&](int64_t begin, int64_t end, int) {
        CHECK(begin % 16 == 0);
        for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
      });
      CHECK(std::accumulate(visits.begin(), visits.end(), int64_t{0}) == count);
      for (const int v : visits) CHECK(v == 1);
    }
  }
}

TEST(a_workers_exception_reaches_the_caller_and_the_pool_lives_on) {
  ThreadPool pool(3);
  for (int round = 0; round < 20; ++round) {
    CHECK_THROWS(pool.run([](int thread, int) {
      if (thread == 2) throw std::out_of_range("worker");
    }),
                 std::out_of_range);
    std::atomic<int> calls{0};
    pool.run([&](int, int) { ++calls; });
    CHECK(calls == pool.size());
  }
}

}  // namespace llmcore::test
