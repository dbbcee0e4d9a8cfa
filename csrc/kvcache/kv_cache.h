#pragma once
// The memory of the KV cache: for each layer all key pages, then all value pages (ops/attention.h), in a backend's
// memory.

#include <cstdint>
#include <memory>

#include "backend/backend.h"
#include "kvcache/page_pool.h"

namespace llmcore {

class KvCache {
 public:
  KvCache(Backend& backend, const KvLayout& layout, int64_t layers);
  const KvLayout& layout() const { return layout_; }
  uint8_t* keys(int64_t layer) { return memory_->data() + layer * layout_.layer_bytes(); }
  uint8_t* values(int64_t layer) { return keys(layer) + layout_.pages * layout_.key_page_bytes(); }
  int64_t nbytes() const { return memory_->size(); }
  PagePool& pool() { return pool_; }

 private:
  KvLayout layout_;
  std::unique_ptr<DeviceBuffer> memory_;
  PagePool pool_;
};

/// Pages that `tokens` tokens of one sequence fill.
constexpr int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace llmcore
