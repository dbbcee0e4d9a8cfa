#include "kvcache/prefix_cache.h"

#include <algorithm>
#include <bit>

namespace llmcore {

PrefixCache::PrefixCache(PagePool& pool)
    : pool_(pool),
      entries_(static_cast<size_t>(pool.total())),
      buckets_(std::bit_ceil(static_cast<size_t>(pool.total()) * 2), -1),
      siblings_(buckets_) {}

// A 64-bit mix per word (the finaliser of MurmurHash3, public domain). Only the speed depends on it.
uint64_t PrefixCache::hash(int64_t parent, const CacheSalt& salt, const int32_t* tokens, int64_t count) {
  uint64_t h = salt.low;
  const auto mix = [&h](uint64_t word) {
    h ^= word;
    h = (h ^ (h >> 33)) * 0xff51afd7ed558ccdULL;
    h = (h ^ (h >> 33)) * 0xc4ceb9fe1a85ec53ULL;
    h ^= h >> 33;
  };
  mix(salt.high);
  mix(static_cast<uint64_t>(parent));
  for (int64_t i = 0; i < count; ++i) mix(static_cast<uint32_t>(tokens[i]));
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
  return find(hash(parent, salt, tokens, kPageTokens), parent, salt, tokens);
}

PrefixCache::Start PrefixCache::find_start(int64_t parent, const CacheSalt& salt, const int32_t* tokens,
                                           int64_t count) const {
  Start best{-1, 0};
  const uint64_t bucket = hash(parent, salt, nullptr, 0) & (siblings_.size() - 1);
  int looked_at = 0;
  for (int32_t page = siblings_[bucket]; page >= 0 && looked_at < kCandidates; page = entries_[page].next_sibling) {
    const Entry& e = entries_[page];
    ++looked_at;
    if (e.parent != parent || !(e.salt == salt)) continue;
    int64_t equal = 0;
    while (equal < std::min<int64_t>(count, e.count) && tokens[equal] == e.tokens[equal]) ++equal;
    if (equal > best.tokens) best = {page, equal};
  }
  return best;
}

void PrefixCache::enter(int64_t parent, const CacheSalt& salt, const int32_t* tokens, int64_t count, int32_t page) {
  // A page that sequences share is entered once by each of them. If what came before it was forgotten and entered anew
  // in the meantime, it follows that from now on.
  if (entries_[page].serial != 0) forget(page);
  pool_.keep(page);
  Entry& e = entries_[page];
  int32_t& sibling = siblings(parent, salt);
  e = {++last_serial_, parent, 0, salt, -1, sibling, static_cast<int32_t>(count), {}};
  std::copy(tokens, tokens + count, e.tokens);
  sibling = page;
}

int64_t PrefixCache::insert(int64_t parent, const CacheSalt& salt, const int32_t* tokens, int32_t page) {
  const uint64_t h = hash(parent, salt, tokens, kPageTokens);
  if (const int32_t equal = find(h, parent, salt, tokens); equal >= 0) return entries_[equal].serial;
  enter(parent, salt, tokens, kPageTokens, page);
  Entry& e = entries_[page];
  e.hash = h;
  e.next = bucket(h);
  bucket(h) = page;
  return e.serial;
}

void PrefixCache::insert_start(int64_t parent, const CacheSalt& salt, const int32_t* tokens, int64_t count,
                               int32_t page) {
  if (find_start(parent, salt, tokens, count).tokens < count) enter(parent, salt, tokens, count, page);
}

int32_t PrefixCache::take() {
  const int32_t page = pool_.take();
  if (page >= 0 && entries_[page].serial != 0) forget(page);
  return page;
}

void PrefixCache::forget(int32_t page) {
  const auto unlink = [&](int32_t* link, int32_t Entry::* next) {
    while (*link != page) link = &(entries_[*link].*next);
    *link = entries_[page].*next;
  };
  const Entry& e = entries_[page];
  if (e.count == kPageTokens) unlink(&bucket(e.hash), &Entry::next);
  unlink(&siblings(e.parent, e.salt), &Entry::next_sibling);
  entries_[page] = {};
}

}  // namespace llmcore
