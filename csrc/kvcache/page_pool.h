#pragma once
// Accounts for the pages of the KV cache: which are free, and how many sequences hold each of the others. Host memory
// only; the pages themselves are in kv_cache.h. Never grows after construction.

#include <cstdint>
#include <vector>

namespace llmcore {

class PagePool {
 public:
  explicit PagePool(int64_t pages);
  int64_t total() const { return static_cast<int64_t>(holders_.size()); }
  int64_t free() const { return static_cast<int64_t>(free_.size()); }
  /// A page held once, or -1 when none is free.
  int32_t take();
  /// One more holder of a held page.
  void share(int32_t page);
  /// One holder less; with the last the page is free again. Throws BusyError when nobody held it.
  void release(int32_t page);

 private:
  std::vector<int32_t> holders_;
  std::vector<int32_t> free_;  // a stack
};

}  // namespace llmcore
