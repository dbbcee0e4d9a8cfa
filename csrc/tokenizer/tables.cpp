#include "tokenizer/tables.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <numeric>
#include <span>
#include <utility>

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
  filter_.assign(std::bit_ceil(8 * sizes.size() + 64) / 64, 0);
  filter_mask_ = 64 * filter_.size() - 1;
}

bool WordTable::insert(std::string_view text, uint32_t id, bool word) {
  const uint32_t entry = id | (word ? kWord : 0);
  if (text.size() > kShortKeyBytes) {
    const uint64_t hash = hash_text(text);
    if (word) add_to_filter(hash);
    size_t i = hash & long_mask_;
    for (; long_[i].entry != kNoId; i = (i + 1) & long_mask_) {
      if (long_[i].hash == hash && text_of(long_[i]) == text) return false;
    }
    long_[i] = {hash, static_cast<uint32_t>(text.data() - storage_), static_cast<uint32_t>(text.size()), entry};
    return true;
  }
  const ShortKey key = short_key(text.data(), text.size(), text.size());
  if (word) add_to_filter(key.hash());
  if (text.size() > kTinyBytes) {
    size_t i = key.hash() & short_mask_;
    for (; short_[i].entry != kNoId; i = (i + 1) & short_mask_) {
      if (short_[i].key == key) return false;
    }
    short_[i] = {key, entry};
    return true;
  }
  const uint32_t hi = tiny_hi(key);
  const size_t home = key.hash() & tiny_mask_;
  size_t i = home;
  for (; tiny_[i].entry != kNoId; i = next_tiny(i, home)) {
    if (tiny_[i].lo == key.lo && tiny_[i].hi == hi) return false;
  }
  tiny_[i] = {key.lo, hi, entry};
  return true;
}

void WordTable::mark_word(std::string_view text) noexcept {
  if (text.size() > kShortKeyBytes) {
    const uint64_t hash = hash_text(text);
    add_to_filter(hash);
    size_t i = hash & long_mask_;
    while (long_[i].hash != hash || text_of(long_[i]) != text) i = (i + 1) & long_mask_;
    long_[i].entry |= kWord;
    return;
  }
  const ShortKey key = short_key(text.data(), text.size(), text.size());
  add_to_filter(key.hash());
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
  out.put(filter_);
}

void WordTable::load(ArchiveReader& in, std::string_view storage) {
  in.get(tiny_);
  in.get(short_);
  in.get(long_);
  in.get(filter_);
  const auto fits = [&](const LongSlot& s) { return s.begin <= storage.size() && s.size <= storage.size() - s.begin; };
  const bool sizes = std::has_single_bit(tiny_.size()) && std::has_single_bit(short_.size()) &&
                     std::has_single_bit(long_.size()) && std::has_single_bit(filter_.size());
  if (!sizes || tiny_.size() < 4 || !std::all_of(long_.begin(), long_.end(), fits)) {
    throw TokenizerError("tokenizer: a damaged archive");
  }
  storage_ = storage.data();
  tiny_mask_ = tiny_.size() - 1;
  short_mask_ = short_.size() - 1;
  long_mask_ = long_.size() - 1;
  filter_mask_ = 64 * filter_.size() - 1;
}

PairRules::PairRules(size_t pairs) : slots_(std::bit_ceil(2 * pairs + 2), kFree), mask_(slots_.size() - 1) {
  results_.reserve(pairs);
  ranks_.reserve(pairs);
}

void PairRules::insert(uint32_t left, uint32_t right, uint32_t rank, uint32_t id) {
  const uint64_t key = key_of(left, right);
  size_t i = home_of(key);
  while (slots_[i] != kFree && slots_[i] >> 24 != key) i = (i + 1) & mask_;
  slots_[i] = key << 24 | results_.size();
  results_.push_back(id);
  ranks_.push_back(rank);
}

PairTable::PairTable(const PairRules& rules) {
  std::vector<uint32_t> by_rank(rules.results_.size()), numbers(rules.results_.size());
  std::iota(by_rank.begin(), by_rank.end(), 0u);
  const auto less = [&](uint32_t a, uint32_t b) { return rules.ranks_[a] < rules.ranks_[b]; };
  if (!std::is_sorted(rules.ranks_.begin(), rules.ranks_.end())) std::stable_sort(by_rank.begin(), by_rank.end(), less);
  for (const uint32_t rule : by_rank) {
    results_.push_back(rules.results_[rule]);
    ranks_.push_back(rules.ranks_[rule]);
  }
  const bool ids_in_order =
      std::adjacent_find(results_.begin(), results_.end(), std::greater_equal<>()) == results_.end();
  if (std::adjacent_find(ranks_.begin(), ranks_.end()) == ranks_.end()) ranks_.clear();
  const bool direct = ids_in_order && ranks_.empty();
  for (uint32_t i = 0; i < by_rank.size(); ++i) numbers[by_rank[i]] = direct ? results_[i] : i;
  if (direct) results_.clear();
  std::vector<uint64_t> entries;
  entries.reserve(rules.results_.size());
  for (const uint64_t slot : rules.slots_) {
    if (slot != PairRules::kFree) entries.push_back((slot & ~uint64_t{kNoRule}) | numbers[slot & kNoRule]);
  }
  place(entries);
}

/// Slots for all entries: about a quarter of them stays free, or more where that is too few.
void PairTable::place(const std::vector<uint64_t>& entries) {
  size_t slots = std::bit_ceil(std::max<size_t>(2, entries.size() + entries.size() / 4));
  multipliers_.assign(std::bit_ceil(std::max<size_t>(2, entries.size() / 4)), 1);
  for (seed_ = 0xD6E8FEB86659FD93u;; seed_ = mix(seed_, 0xA0761D6478BD642Fu), slots *= 2) {
    slots_.assign(slots, kFree);
    set_hash();
    if (place_buckets(entries)) return;
  }
}

/// Finds each bucket a multiplier, those of the most pairs first. False when one can't be found in many tries.
bool PairTable::place_buckets(const std::vector<uint64_t>& entries) {
  constexpr uint32_t kTries = 1u << 16;
  const auto left = [](uint64_t entry) { return static_cast<uint32_t>(entry >> 44); };
  const auto right = [](uint64_t entry) { return static_cast<uint32_t>(entry >> 24) & kNoSymbol; };
  const auto bucket_of = [&](uint64_t entry) { return hash_.bucket(left(entry), right(entry)); };
  std::vector<uint32_t> begins(multipliers_.size() + 1);
  for (const uint64_t entry : entries) ++begins[bucket_of(entry) + 1];
  std::vector<std::pair<uint32_t, uint32_t>> order;  // size, bucket
  for (uint32_t i = 0; i + 1 < begins.size(); ++i) order.push_back({begins[i + 1], i});
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::partial_sum(begins.begin(), begins.end(), begins.begin());
  std::vector<uint64_t> sorted(entries.size());
  std::vector<uint32_t> next(begins.begin(), begins.end() - 1);
  for (const uint64_t entry : entries) sorted[next[bucket_of(entry)]++] = entry;
  std::vector<bool> taken(slots_.size());
  std::vector<uint32_t> hashes;
  std::vector<size_t> places;
  for (const auto& [count, bucket] : order) {
    const std::span<const uint64_t> own(sorted.data() + begins[bucket], count);
    hashes.clear();
    for (const uint64_t entry : own) hashes.push_back(hash_.place(left(entry), right(entry)));
    uint32_t tries = 0;
    do {
      if (++tries > kTries) return false;
      multipliers_[bucket] = tries * 0x9E3779B2u | 1;
      places.clear();
      for (const uint32_t hash : hashes) {
        const size_t place = hash * multipliers_[bucket] >> hash_.slot_shift;
        if (taken[place]) break;
        taken[place] = true;
        places.push_back(place);
      }
      if (places.size() == count) break;
      for (const size_t place : places) taken[place] = false;
    } while (true);
    for (size_t i = 0; i < count; ++i) slots_[places[i]] = own[i];
  }
  return true;
}

void PairTable::set_hash() {
  const auto factor = [&](uint64_t number) { return static_cast<uint32_t>(mix(seed_, number)) | 1; };
  hash_.left = factor(0x9E3779B97F4A7C15u);
  hash_.left_too = factor(0xA0761D6478BD642Fu);
  hash_.right = factor(0xE7037ED1A0B428DBu);
  hash_.slot_shift = 32 - std::countr_zero(slots_.size());
  hash_.bucket_shift = 32 - std::countr_zero(multipliers_.size());
}

void PairTable::save(ArchiveWriter& out) const {
  out.put(std::array<uint64_t, 1>{seed_});
  out.put(multipliers_);
  out.put(slots_);
  out.put(results_);
  out.put(ranks_);
}

void PairTable::load(ArchiveReader& in) {
  std::vector<uint64_t> seed;
  in.get(seed);
  in.get(multipliers_);
  in.get(slots_);
  in.get(results_);
  in.get(ranks_);
  const auto sized = [](const auto& table) { return table.size() >= 2 && std::has_single_bit(table.size()); };
  const size_t rules = results_.empty() ? kMaxIds : results_.size();
  const auto known = [&](uint64_t slot) { return slot == kFree || (slot & kNoRule) < rules; };
  if (seed.size() != 1 || !sized(multipliers_) || !sized(slots_) || slots_.size() > uint64_t{1} << 31 ||
      (!ranks_.empty() && results_.size() != ranks_.size()) || !std::all_of(slots_.begin(), slots_.end(), known)) {
    throw TokenizerError("tokenizer: a damaged archive");
  }
  seed_ = seed[0];
  set_hash();
}

}  // namespace llmcore
