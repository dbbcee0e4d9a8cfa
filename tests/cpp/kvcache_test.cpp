#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "base/error.h"
#include "check.h"
#include "kvcache/page_pool.h"
#include "kvcache/prefix_cache.h"
#include "random.h"

using namespace llmcore;
using namespace llmcore::test;

TEST(kvcache, a_pool_gives_each_page_once_and_then_none) {
  PagePool pool(5);
  std::set<int32_t> pages;
  for (int i = 0; i < 5; ++i) pages.insert(pool.take());
  CHECK(pages == (std::set<int32_t>{0, 1, 2, 3, 4}));
  CHECK_EQ(pool.take(), -1);
  CHECK_EQ(pool.free(), 0);
  for (const int32_t page : pages) pool.release(page);
  CHECK_EQ(pool.free(), pool.total());
}

TEST(kvcache, a_shared_page_is_free_after_its_last_holder) {
  PagePool pool(2);
  const int32_t page = pool.take();
  pool.share(page);
  pool.release(page);
  CHECK_EQ(pool.free(), 1);
  pool.release(page);
  CHECK_EQ(pool.free(), 2);
}

TEST(kvcache, releasing_or_sharing_a_free_page_is_a_typed_error) {
  PagePool pool(2);
  CHECK_THROWS(BusyError, pool.release(0));
  CHECK_THROWS(BusyError, pool.share(1));
  CHECK_EQ(pool.free(), 2);
}

TEST(kvcache, a_pool_without_pages_is_refused) {
  CHECK_THROWS(ArgumentError, PagePool(0));
  CHECK_THROWS(ArgumentError, PagePool(int64_t{1} << 31));
}

TEST(kvcache, a_million_random_operations_agree_with_a_model) {
  constexpr int64_t kPages = 37;
  PagePool pool(kPages);
  std::map<int32_t, int> holders;  // the model: how many hold each page that is not free
  std::vector<int32_t> held;       // a page as often as it is held
  Random random(5);
  const int64_t operations = quick() ? 20'000 : 1'000'000;
  for (int64_t i = 0; i < operations && failures_of_test() == 0; ++i) {
    const int64_t what = random.integer(0, 9);
    if (what < 4) {
      const int32_t page = pool.take();
      const bool full = static_cast<int64_t>(holders.size()) == kPages;
      CHECK_EQ(page == -1, full);
      if (full) continue;
      CHECK(page >= 0 && page < kPages && !holders.contains(page));
      holders[page] = 1;
      held.push_back(page);
    } else if (!held.empty()) {
      const size_t at = static_cast<size_t>(random.integer(0, static_cast<int64_t>(held.size()) - 1));
      const int32_t page = held[at];
      if (what < 6) {
        pool.share(page);
        ++holders[page];
        held.push_back(page);
      } else {
        pool.release(page);
        if (--holders[page] == 0) holders.erase(page);
        held[at] = held.back();
        held.pop_back();
      }
    }
    CHECK_EQ(pool.free(), kPages - static_cast<int64_t>(holders.size()));
  }
  for (const int32_t page : held) pool.release(page);
  CHECK_EQ(pool.free(), kPages);
}

/// Pages of some sequences of few different tokens, full and not, against a list of what each page holds: a start that
/// is found is a start, the longest there is, and of the same tenant.
TEST(kvcache, a_shared_page_may_follow_another_entry_than_before) {
  PagePool pool(3);
  PrefixCache cache(pool);
  const CacheSalt salt;
  const std::vector<int32_t> first(kPageTokens, 1), second(kPageTokens, 2);
  const int32_t page = cache.take();
  pool.share(page);
  const int64_t before = cache.insert(7, salt, second.data(), page);
  const int32_t parent = cache.take();
  const int64_t serial = cache.insert(0, salt, first.data(), parent);  // what came before, entered anew
  const int64_t after = cache.insert(serial, salt, second.data(), page);
  CHECK(after > before);
  CHECK_EQ(cache.find(7, salt, second.data()), -1);
  CHECK_EQ(cache.find(serial, salt, second.data()), page);
  CHECK_EQ(cache.find_start(serial, salt, second.data(), 3).page, page);
  for (const int32_t held : {page, page, parent}) pool.release(held);
  for (int i = 0; i < 3; ++i) CHECK(cache.take() >= 0);
  CHECK_EQ(cache.find(serial, salt, second.data()), -1);
}

TEST(kvcache, starts_of_pages_agree_with_a_model) {
  Random random(4);
  PagePool pool(12);
  PrefixCache cache(pool);
  struct Known {
    int64_t parent = 0;
    CacheSalt salt;
    std::vector<int32_t> tokens;
  };
  std::vector<std::optional<Known>> known(12);
  int64_t found = 0;
  for (int i = 0; i < (quick() ? 20'000 : 300'000); ++i) {
    const CacheSalt salt{static_cast<uint64_t>(random.integer(0, 1)), 0};
    std::vector<int32_t> tokens;
    for (int64_t n = random.integer(0, 1) ? kPageTokens : random.integer(1, kPageTokens); n > 0; --n) {
      tokens.push_back(random.integer(0, 9) == 0);
    }
    const auto count = static_cast<int64_t>(tokens.size());
    int64_t parent = 0;
    const auto other = static_cast<int32_t>(random.integer(0, 11));
    if (known[other] && random.integer(0, 1)) parent = cache.serial(other);
    int64_t longest = 0;
    for (const auto& one : known) {
      if (!one || one->parent != parent || !(one->salt == salt)) continue;
      const auto part = std::mismatch(tokens.begin(), tokens.end(), one->tokens.begin(), one->tokens.end());
      longest = std::max<int64_t>(longest, part.first - tokens.begin());
    }
    const PrefixCache::Start start = cache.find_start(parent, salt, tokens.data(), count);
    CHECK_EQ(start.tokens, longest);
    CHECK_EQ(start.page >= 0, longest > 0);
    found += longest > 0;
    if (start.page >= 0) {
      const auto& one = known[start.page];
      CHECK(one && one->parent == parent && one->salt == salt);
      CHECK(std::equal(tokens.begin(), tokens.begin() + longest, one->tokens.begin()));
    }
    const int32_t page = cache.take();
    CHECK(page >= 0);
    known[page].reset();
    if (count == kPageTokens) {
      cache.insert(parent, salt, tokens.data(), page);
    } else {
      cache.insert_start(parent, salt, tokens.data(), count, page);
    }
    if (pool.kept(page)) known[page] = Known{parent, salt, tokens};
    pool.release(page);
    CHECK_EQ(pool.free(), pool.total());
  }
  CHECK(found > 1000);
}
