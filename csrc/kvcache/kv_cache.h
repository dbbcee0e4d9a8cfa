#pragma once
// The memory of the KV cache: for each layer all key pages, then all value pages (ops/attention.h), in a backend's
// memory.

#include <cstdint>
#include <memory>

#include "backend/backend.h"
#include "kvcache/page_pool.h"
#include "kvcache/prefix_cache.h"

namespace llmcore {

class KvCache {
 public:
  KvCache(Backend& backend, const KvLayout& layout, int64_t layers);
  const KvLayout& layout() const { return layout_; }
  uint8_t* keys(int64_t layer) { return memory_->data() + layer * layout_.layer_bytes(); }
  uint8_t* values(int64_t layer) { return keys(layer) + layout_.pages * layout_.key_page_bytes(); }
  int64_t nbytes() const { return memory_->size(); }
  PagePool& pool() { return pool_; }
  const PagePool& pool() const { return pool_; }
  PrefixCache& prefixes() { return prefixes_; }
  /// Copies a page's keys and values of all layers.
  void copy_page(int32_t from, int32_t to);
  /// Bytes of a page's keys and values of all layers, as they go to host memory and come from it: by layer, keys first.
  int64_t page_bytes() const { return layers_ * (layout_.key_page_bytes() + layout_.value_page_bytes()); }
  void read_page(int32_t page, uint8_t* out);
  void write_page(int32_t page, const uint8_t* data);

 private:
  Backend& backend_;
  KvLayout layout_;
  int64_t layers_;
  std::unique_ptr<DeviceBuffer> memory_;
  PagePool pool_;
  PrefixCache prefixes_;
};

/// Pages that `tokens` tokens of one sequence fill.
constexpr int64_t pages_for(int64_t tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace llmcore
