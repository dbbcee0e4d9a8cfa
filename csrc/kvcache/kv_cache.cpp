#include "kvcache/kv_cache.h"

#include "base/checked.h"

namespace llmcore {

KvCache::KvCache(Backend& backend, const KvLayout& layout, int64_t layers)
    : layout_(layout), memory_(backend.allocate(checked_mul(layout.layer_bytes(), layers))), pool_(layout.pages) {}

}  // namespace llmcore
