#include <set>

#include "base/error.h"
#include "cpp/check.h"
#include "kvcache/page_pool.h"

namespace llmcore::test {

TEST(a_pool_gives_each_page_once_and_then_none) {
  PagePool pool(5);
  std::set<int32_t> pages;
  for (int i = 0; i < 5; ++i) pages.insert(pool.take());
  CHECK(pages == (std::set<int32_t>{0, 1, 2, 3, 4}));
  CHECK(pool.take() == -1);
  CHECK(pool.free() == 0);
  for (const int32_t page : pages) pool.release(page);
  CHECK(pool.free() == pool.total());
}

TEST(a_shared_page_is_free_after_its_last_holder) {
  PagePool pool(2);
  const int32_t page = pool.take();
  pool.share(page);
  pool.release(page);
  CHECK(pool.free() == 1);
  pool.release(page);
  CHECK(pool.free() == 2);
  CHECK_THROWS(pool.release(page), BusyError);
}

}  // namespace llmcore::test
