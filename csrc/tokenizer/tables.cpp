#include "tokenizer/tables.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "tokenizer/archive.h"

namespace llmcore {

uint64_t hash_text(std::string_view text) noexcept {
  const auto word = [](const char* p) {
    uint64_t value;
    std::memcpy(&value, p, 8);
    return value;
  };
  const auto half = [](const char* p) {
    uint32_t value;
    std::memcpy(&value, p, 4);
    return uint64_t{value};
  };
  const auto byte = [](const char* p) { return uint64_t{static_cast<uint8_t>(*p)}; };
  const char* const p = text.data();
  const size_t n = text.size();
  uint64_t h = mix(n ^ 0x9E3779B97F4A7C15u, 0xD6E8FEB86659FD93u);
  for (size_t at = 0; at + 8 < n; at += 8) h = mix(h ^ word(p + at), 0xA0761D6478BD642Fu);
  // The end, with bytes before it once more where there are any.
  uint64_t tail = 0;
  if (n >= 8) {
    tail = word(p + n - 8);
  } else if (n >= 4) {
    tail = half(p) << 32 | half(p + n - 4);
  } else if (n > 0) {
    tail = byte(p) << 16 | byte(p + n / 2) << 8 | byte(p + n - 1);
  }
  return mix(h ^ tail, 0xE7037ED1A0B428DBu);
}

void WordTable::reserve(const std::vector<uint32_t>& sizes, const char* storage) {
  storage_ = storage;
  size_t tiny = 0, medium = 0;
  for (const uint32_t size : sizes) {
    tiny += size <= kTinyBytes;
    medium += size > kTinyBytes && size <= kShortKeyBytes;
  }
  const auto slots = [](size_t texts) { return std::bit_ceil(2 * texts + 2); };
  tiny_.assign(std::max<size_t>(4, std::bit_ceil(tiny + tiny / 4 + 1)), {});
  short_.assign(slots(medium), {});
  long_.assign(slots(sizes.size() - tiny - medium), {});
  tiny_mask_ = tiny_.size() - 1;
  short_mask_ = short_.size() - 1;
  long_mask_ = long_.size() - 1;
}

bool WordTable::insert(std::string_view text, uint32_t id) {
  if (text.size() > kShortKeyBytes) {
    const uint64_t hash = hash_text(text);
    size_t i = hash & long_mask_;
    for (; long_[i].entry != kNoId; i = (i + 1) & long_mask_) {
      if (long_[i].hash == hash && text_of(long_[i]) == text) return false;
    }
    long_[i] = {hash, static_cast<uint32_t>(text.data() - storage_), static_cast<uint32_t>(text.size()), id};
    return true;
  }
  const ShortKey key = short_key(text.data(), text.size(), text.size());
  if (text.size() > kTinyBytes) {
    size_t i = key.hash() & short_mask_;
    for (; short_[i].entry != kNoId; i = (i + 1) & short_mask_) {
      if (short_[i].key == key) return false;
    }
    short_[i] = {key, id};
    return true;
  }
  const uint32_t hi = tiny_hi(key);
  const size_t home = key.hash() & tiny_mask_;
  size_t i = home;
  for (; tiny_[i].entry != kNoId; i = next_tiny(i, home)) {
    if (tiny_[i].lo == key.lo && tiny_[i].hi == hi) return false;
  }
  tiny_[i] = {key.lo, hi, id};
  return true;
}

void WordTable::mark_word(std::string_view text) noexcept {
  if (text.size() > kShortKeyBytes) {
    const uint64_t hash = hash_text(text);
    size_t i = hash & long_mask_;
    while (long_[i].hash != hash || text_of(long_[i]) != text) i = (i + 1) & long_mask_;
    long_[i].entry |= kWord;
    return;
  }
  const ShortKey key = short_key(text.data(), text.size(), text.size());
  if (text.size() > kTinyBytes) {
    size_t i = key.hash() & short_mask_;
    while (short_[i].key != key) i = (i + 1) & short_mask_;
    short_[i].entry |= kWord;
    return;
  }
  const size_t home = key.hash() & tiny_mask_;
  size_t i = home;
  while (tiny_[i].lo != key.lo || tiny_[i].hi != tiny_hi(key)) i = next_tiny(i, home);
  tiny_[i].entry |= kWord;
}

uint32_t WordTable::find_short(const ShortKey& key, uint64_t hash) const noexcept {
  for (size_t i = hash & short_mask_;; i = (i + 1) & short_mask_) {
    const ShortSlot& slot = short_[i];
    if (slot.key == key || slot.entry == kNoId) return slot.entry;
  }
}

uint32_t WordTable::find_long(std::string_view text, uint64_t hash) const noexcept {
  for (size_t i = hash & long_mask_;; i = (i + 1) & long_mask_) {
    const LongSlot& slot = long_[i];
    if (slot.entry == kNoId) return kNoId;
    if (slot.hash == hash && text_of(slot) == text) return slot.entry;
  }
}

void WordTable::save(ArchiveWriter& out) const {
  out.put(tiny_);
  out.put(short_);
  out.put(long_);
}

void WordTable::load(ArchiveReader& in, std::string_view storage) {
  in.get(tiny_);
  in.get(short_);
  in.get(long_);
  const auto fits = [&](const LongSlot& s) { return s.begin <= storage.size() && s.size <= storage.size() - s.begin; };
  const bool sizes =
      std::has_single_bit(tiny_.size()) && std::has_single_bit(short_.size()) && std::has_single_bit(long_.size());
  if (!sizes || tiny_.size() < 4 || !std::all_of(long_.begin(), long_.end(), fits)) {
    throw TokenizerError("tokenizer: a damaged archive");
  }
  storage_ = storage.data();
  tiny_mask_ = tiny_.size() - 1;
  short_mask_ = short_.size() - 1;
  long_mask_ = long_.size() - 1;
}

void PairTable::save(ArchiveWriter& out) const {
  out.put(slots_);
  out.put(results_);
  out.put(ranks_);
}

void PairTable::load(ArchiveReader& in) {
  in.get(slots_);
  in.get(results_);
  in.get(ranks_);
  if (!std::has_single_bit(slots_.size()) || slots_.size() < kGroup || results_.size() != ranks_.size()) {
    throw TokenizerError("tokenizer: a damaged archive");
  }
  mask_ = slots_.size() - kGroup;
  by_rank_ = std::adjacent_find(ranks_.begin(), ranks_.end()) == ranks_.end();
}

void PairTable::reserve(size_t pairs) {
  slots_.assign(std::max(kGroup, std::bit_ceil(2 * pairs + 2)), kFree);
  mask_ = slots_.size() - kGroup;
  results_.reserve(pairs);
  ranks_.reserve(pairs);
}

void PairTable::insert(uint32_t left, uint32_t right, uint32_t rank, uint32_t id) {
  const uint64_t key = key_of(left, right);
  size_t i = home_of(key);
  while (slots_[i] != kFree && slots_[i] >> 24 != key) i = (i + 1) & (slots_.size() - 1);
  slots_[i] = key << 24 | results_.size();
  results_.push_back(id);
  ranks_.push_back(rank);
}

void PairTable::sort() {
  std::vector<uint32_t> by_rank(results_.size()), number(results_.size());
  std::iota(by_rank.begin(), by_rank.end(), 0u);
  const auto less = [&](uint32_t a, uint32_t b) { return ranks_[a] < ranks_[b]; };
  if (!std::is_sorted(ranks_.begin(), ranks_.end())) std::stable_sort(by_rank.begin(), by_rank.end(), less);
  Table<uint32_t> results(results_.size()), ranks(results_.size());
  for (uint32_t i = 0; i < by_rank.size(); ++i) {
    results[i] = results_[by_rank[i]];
    ranks[i] = ranks_[by_rank[i]];
    number[by_rank[i]] = i;
  }
  for (uint64_t& slot : slots_) {
    if (slot != kFree) slot = (slot & ~uint64_t{kNoRule}) | number[slot & kNoRule];
  }
  results_.swap(results);
  ranks_.swap(ranks);
  by_rank_ = std::adjacent_find(ranks_.begin(), ranks_.end()) == ranks_.end();
}

}  // namespace llmcore
