#pragma once
// Which pages hold the keys and values of which tokens. A page's content depends on all tokens before it, so an entry
// names its page's tokens and the entry before; a walk from the start compares every token, and the hash only finds the
// candidates. Entries are never reused while something may refer to them: each has a serial number of its own. The last
// page of a sequence need not be full; what goes on from the middle of a page copies it.

#include <cstdint>
#include <vector>

#include "base/buffer.h"
#include "kernels/table.h"
#include "kvcache/page_pool.h"

namespace llmcore {

/// Whose entries a request may see: requests with different salts never share a page.
struct CacheSalt {
  uint64_t low = 0, high = 0;
  bool operator==(const CacheSalt&) const = default;
};

class PrefixCache {
 public:
  explicit PrefixCache(PagePool& pool);

  /// The page that follows entry `parent` (0: the start) with these kPageTokens tokens; -1: none. It stays the pool's.
  int32_t find(int64_t parent, const CacheSalt& salt, const int32_t* tokens) const;
  /// Enters a held page that is complete, and returns its serial; that of an equal entry if there is one already.
  int64_t insert(int64_t parent, const CacheSalt& salt, const int32_t* tokens, int32_t page);
  int64_t serial(int32_t page) const { return entries_[page].serial; }
  /// The page that follows entry `parent` and begins with the most of `count` tokens, and how many these are; {-1, 0}
  /// when none begins with the first. Of many pages some are looked at, the latest.
  struct Start {
    int32_t page;
    int64_t tokens;
  };
  Start find_start(int64_t parent, const CacheSalt& salt, const int32_t* tokens, int64_t count) const;
  /// Enters a held page of which the first `count` tokens are there, fewer than kPageTokens, unless another has them.
  void insert_start(int64_t parent, const CacheSalt& salt, const int32_t* tokens, int64_t count, int32_t page);
  /// A page of the pool, its entry forgotten; -1: none is free.
  int32_t take();

 private:
  struct Entry {
    int64_t serial = 0;  // 0: none
    int64_t parent = 0;
    uint64_t hash = 0;
    CacheSalt salt;
    int32_t next = -1, next_sibling = -1;  // of the buckets
    int32_t count = 0;                     // of tokens
    int32_t tokens[kPageTokens] = {};
  };
  static constexpr int kCandidates = 64;
  static uint64_t hash(int64_t parent, const CacheSalt& salt, const int32_t* tokens, int64_t count);
  int32_t& bucket(uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }
  int32_t& siblings(int64_t parent, const CacheSalt& salt) {
    return siblings_[hash(parent, salt, nullptr, 0) & (siblings_.size() - 1)];
  }
  int32_t find(uint64_t hash, int64_t parent, const CacheSalt& salt, const int32_t* tokens) const;
  void enter(int64_t parent, const CacheSalt& salt, const int32_t* tokens, int64_t count, int32_t page);
  void forget(int32_t page);

  PagePool& pool_;
  std::vector<Entry> entries_;     // by page
  std::vector<int32_t> buckets_;   // of full pages, by all that they are found by: a power of two of them
  std::vector<int32_t> siblings_;  // of all pages, by what they follow
  int64_t last_serial_ = 0;
};

}  // namespace llmcore
