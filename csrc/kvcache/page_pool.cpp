#include "kvcache/page_pool.h"

#include <string>

#include "base/error.h"

namespace llmcore {

PagePool::PagePool(int64_t pages) {
  check_argument(pages >= 1 && pages < (int64_t{1} << 31) - 1,
                 "page pool: pages must be within [1, 2^31 - 1), got " + std::to_string(pages));
  holders_.resize(static_cast<size_t>(pages), 0);
  kept_.resize(static_cast<size_t>(pages), 0);
  next_.resize(static_cast<size_t>(pages) + 1, static_cast<int32_t>(pages));
  previous_ = next_;
  free_.reserve(static_cast<size_t>(pages));
  for (int64_t i = pages; i > 0; --i) free_.push_back(static_cast<int32_t>(i - 1));
}

void PagePool::unlink(int32_t page) {
  next_[previous_[page]] = next_[page];
  previous_[next_[page]] = previous_[page];
  --idle_;
}

int32_t PagePool::take() {
  int32_t page = -1;
  if (!free_.empty()) {
    page = free_.back();
    free_.pop_back();
  } else if (idle_ > 0) {
    page = next_.back();
    unlink(page);
    kept_[page] = 0;
  }
  if (page >= 0) holders_[page] = 1;
  return page;
}

void PagePool::share(int32_t page) {
  if (holders_.at(page) == 0) {
    if (!kept_[page]) throw BusyError("page pool: page " + std::to_string(page) + " is free and can't be shared");
    unlink(page);
  }
  ++holders_[page];
}

void PagePool::release(int32_t page) {
  if (holders_.at(page) == 0) throw BusyError("page pool: page " + std::to_string(page) + " was released twice");
  if (--holders_[page] != 0) return;
  if (!kept_[page]) return free_.push_back(page);
  const int32_t end = static_cast<int32_t>(total());
  next_[page] = end;
  previous_[page] = previous_[end];
  next_[previous_[end]] = page;
  previous_[end] = page;
  ++idle_;
}

void PagePool::keep(int32_t page) {
  if (holders_.at(page) == 0) throw BusyError("page pool: page " + std::to_string(page) + " is free and can't be kept");
  kept_[page] = 1;
}

}  // namespace llmcore
