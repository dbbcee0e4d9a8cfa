#include "tokenizer/tables.h"

#include <bit>

namespace llmcore {

uint64_t hash_text(std::string_view text) noexcept {
  uint64_t h = mix(text.size() ^ 0x9E3779B97F4A7C15u, 0xD6E8FEB86659FD93u);
  const char* p = text.data();
  size_t n = text.size();
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    h = mix(h ^ word, 0xA0761D6478BD642Fu);
  }
  uint64_t tail = 0;
  std::memcpy(&tail, p, n);
  return mix(h ^ tail, 0xE7037ED1A0B428DBu);
}

void WordTable::reserve(size_t words) {
  const size_t slots = std::bit_ceil(2 * words + 2);
  short_.assign(slots, {});
  long_.assign(slots, {});
  short_mask_ = long_mask_ = slots - 1;
}

bool WordTable::insert(std::string_view text, uint32_t id) {
  if (text.size() <= kShortKeyBytes) {
    const ShortKey key = short_key(text.data(), text.size(), text.size());
    size_t i = key.hash() & short_mask_;
    for (; short_[i].id != kNoId; i = (i + 1) & short_mask_) {
      if (short_[i].key == key) return false;
    }
    short_[i] = {key, id};
    return true;
  }
  const uint64_t hash = hash_text(text);
  size_t i = hash & long_mask_;
  for (; long_[i].id != kNoId; i = (i + 1) & long_mask_) {
    if (long_[i].hash == hash && long_[i].text == text) return false;
  }
  long_[i] = {text, hash, id};
  return true;
}

uint32_t WordTable::find_long(std::string_view text) const noexcept {
  const uint64_t hash = hash_text(text);
  for (size_t i = hash & long_mask_;; i = (i + 1) & long_mask_) {
    const LongSlot& slot = long_[i];
    if (slot.id == kNoId) return kNoId;
    if (slot.hash == hash && slot.text == text) return slot.id;
  }
}

void PairTable::reserve(size_t pairs) {
  const size_t slots = std::bit_ceil(2 * pairs + 2);
  slots_.assign(slots, {});
  mask_ = slots - 1;
}

void PairTable::insert(uint32_t left, uint32_t right, Merge merge) {
  const uint64_t key = static_cast<uint64_t>(left) << 32 | right;
  size_t i = mix(key, 0x9E3779B97F4A7C15u) & mask_;
  while (slots_[i].merge.rank != kNoId && slots_[i].key != key) i = (i + 1) & mask_;
  slots_[i] = {key, merge};
}

}  // namespace llmcore
