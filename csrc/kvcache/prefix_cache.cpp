#include "kvcache/prefix_cache.h"

#include <algorithm>
#include <bit>

namespace llmcore {

PrefixCache::PrefixCache(PagePool& pool)
    : pool_(pool),
      entries_(static_cast<size_t>(pool.total())),
      buckets_(std::bit_ceil(static_cast<size_t>(pool.total()) * 2), -1) {}

// A 64-bit mix per word (the finaliser of MurmurHash3, public domain). Only the speed depends on it.
uint64_t PrefixCache::hash(int64_t parent, const CacheSalt& salt, const int32_t* tokens) {
  uint64_t h = salt.low;
  const auto mix = [&h](uint64_t word) {
    h ^= word;
    h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdULL;
    h = (h ^ (h >> 33)) * 0xc4ceb9fe1a85ec53ULL;
    h ^= h >> 33;
  };
  mix(salt.high);
  mix(static_cast<uint64_t>(parent));
  for (int64_t i = 0; i < kPageTokens; ++i) mix(static_cast<uint32_t>(tokens[i]));
  return h;
}

int32_t PrefixCache::find(uint64_t hash, int64_t parent, const CacheSalt& salt, const int32_t* tokens) const {
  for (int32_t page = buckets_[hash & (buckets_.size() - 1)]; page >= 0; page = entries_[page].next) {
    const Entry& e = entries_[page];
    if (e.hash == hash && e.parent == parent && e.salt == salt && std::equal(tokens, tokens + kPageTokens, e.tokens)) {
      return page;
    }
  }
  return -1;
}

int32_t PrefixCache::find(int64_t parent, const CacheSalt& salt, const int32_t* tokens) const {
  return find(hash(parent, salt, tokens), parent, salt, tokens);
}

int64_t PrefixCache::insert(int64_t parent, const CacheSalt& salt, const int32_t* tokens, int32_t page) {
  const uint64_t h = hash(parent, salt, tokens);
  if (const int32_t equal = find(h, parent, salt, tokens); equal >= 0) return entries_[equal].serial;
  pool_.keep(page);
  Entry& e = entries_[page];
  int32_t& bucket = buckets_[h & (buckets_.size() - 1)];
  e = {++last_serial_, parent, h, salt, bucket, {}};
  std::copy(tokens, tokens + kPageTokens, e.tokens);
  bucket = page;
  return e.serial;
}

int32_t PrefixCache::take() {
  const int32_t page = pool_.take();
  if (page < 0 || entries_[page].serial == 0) return page;
  int32_t* link = &buckets_[entries_[page].hash & (buckets_.size() - 1)];
  while (*link != page) link = &entries_[*link].next;
  *link = entries_[page].next;
  entries_[page] = {};
  return page;
}

}  // namespace llmcore
