#include "kvcache/kv_cache.h"

#include "base/checked.h"

namespace llmcore {

KvCache::KvCache(Backend& backend, const KvLayout& layout, int64_t layers)
    : backend_(backend),
      layout_(layout),
      layers_(layers),
      memory_(backend.allocate(checked_mul(layout.layer_bytes(), layers))),
      pool_(layout.pages),
      prefixes_(pool_) {}

void KvCache::copy_page(int32_t from, int32_t to) {
  const int64_t key_bytes = layout_.key_page_bytes(), value_bytes = layout_.value_page_bytes();
  for (int64_t layer = 0; layer < layers_; ++layer) {
    backend_.copy(keys(layer) + from * key_bytes, key_bytes, keys(layer) + to * key_bytes);
    backend_.copy(values(layer) + from * value_bytes, value_bytes, values(layer) + to * value_bytes);
  }
}

void KvCache::read_page(int32_t page, uint8_t* out) {
  const int64_t key_bytes = layout_.key_page_bytes(), value_bytes = layout_.value_page_bytes();
  for (int64_t layer = 0; layer < layers_; ++layer) {
    backend_.download(keys(layer) + page * key_bytes, key_bytes, out);
    backend_.download(values(layer) + page * value_bytes, value_bytes, out + key_bytes);
    out += key_bytes + value_bytes;
  }
}

void KvCache::write_page(int32_t page, const uint8_t* data) {
  const int64_t key_bytes = layout_.key_page_bytes(), value_bytes = layout_.value_page_bytes();
  for (int64_t layer = 0; layer < layers_; ++layer) {
    backend_.upload(data, key_bytes, keys(layer) + page * key_bytes);
    backend_.upload(data + key_bytes, value_bytes, values(layer) + page * value_bytes);
    data += key_bytes + value_bytes;
  }
}

}  // namespace llmcore
