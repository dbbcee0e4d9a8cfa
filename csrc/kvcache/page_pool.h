#pragma once
// Accounts for the pages of the KV cache: which are free, how many sequences hold each of the others, and which held by
// nobody are kept for the prefix cache until a page is wanted, the longest unused first. Host memory only; the pages
// themselves are in kv_cache.h. Never grows after construction.

#include <cstdint>
#include <vector>

namespace llmcore {

class PagePool {
 public:
  explicit PagePool(int64_t pages);
  int64_t total() const { return static_cast<int64_t>(holders_.size()); }
  /// Pages that take() can give: those held by nobody, kept ones included.
  int64_t free() const { return static_cast<int64_t>(free_.size()) + idle_; }
  int64_t holders(int32_t page) const { return holders_.at(page); }
  /// A page held once, or -1 when none is free. A page that was kept is not any more.
  int32_t take();
  /// One more holder of a held or kept page. Throws BusyError.
  void share(int32_t page);
  /// One holder less; with the last the page is free again. Throws BusyError when nobody held it.
  void release(int32_t page);
  /// Marks a held page: without holders it stays as it is until take() has no other. Throws BusyError.
  void keep(int32_t page);
  bool kept(int32_t page) const { return kept_.at(page) != 0; }

 private:
  void unlink(int32_t page);

  std::vector<int32_t> holders_;
  std::vector<int32_t> free_;  // a stack
  std::vector<uint8_t> kept_;
  // Kept pages without holders, a ring through the element behind the last page: the longest unused comes first.
  std::vector<int32_t> next_, previous_;
  int64_t idle_ = 0;
};

}  // namespace llmcore
