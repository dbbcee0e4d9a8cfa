#pragma once
// Which pages hold the keys and values of which tokens. A page's content depends on all tokens before it, so an entry
// names its page's tokens and the entry before; a walk from the start compares every token, and the hash only finds the
// candidates. Entries are never reused while something may refer to them: each has a serial number of its own.

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
  /// A page of the pool, its entry forgotten; -1: none is free.
  int32_t take();

 private:
  struct Entry {
    int64_t serial = 0;  // 0: none
    int64_t parent = 0;
    uint64_t hash = 0;
    CacheSalt salt;
    int32_t next = -1;  // of the bucket
    int32_t tokens[kPageTokens] = {};
  };
  static uint64_t hash(int64_t parent, const CacheSalt& salt, const int32_t* tokens);
  int32_t find(uint64_t hash, int64_t parent, const CacheSalt& salt, const int32_t* tokens) const;

  PagePool& pool_;
  std::vector<Entry> entries_;    // by page
  std::vector<int32_t> buckets_;  // a power of two of them
  int64_t last_serial_ = 0;
};

}  // namespace llmcore
