#include "kvcache/page_pool.h"

#include <string>

#include "base/error.h"

namespace llmcore {

PagePool::PagePool(int64_t pages) {
  check_argument(pages >= 1 && pages < (int64_t{1} << 31),
                 "page pool: pages must be within [1, 2^31), got " + std::to_string(pages));
  holders_.resize(static_cast<size_t>(pages), 0);
  free_.reserve(static_cast<size_t>(pages));
  for (int64_t i = pages; i > 0; --i) free_.push_back(static_cast<int32_t>(i - 1));
}

int32_t PagePool::take() {
  if (free_.empty()) return -1;
  const int32_t page = free_.back();
  free_.pop_back();
  holders_[page] = 1;
  return page;
}

void PagePool::share(int32_t page) {
  if (holders_.at(page) == 0)
    throw BusyError("page pool: page " + std::to_string(page) + " is free and can't be shared");
  ++holders_[page];
}

void PagePool::release(int32_t page) {
  if (holders_.at(page) == 0) throw BusyError("page pool: page " + std::to_string(page) + " was released twice");
  if (--holders_[page] == 0) free_.push_back(page);
}

}  // namespace llmcore
