#pragma once
// The two hash tables of a vocabulary: pieces of text -> id, and pairs of ids -> (rank, id). Both are open-addressed,
// at most half full, built once and then read by any number of threads.

#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace llmcore {

inline uint64_t mix(uint64_t a, uint64_t b) noexcept {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

/// A text of at most 15 bytes in two words, its length in the top byte: equal keys are equal texts.
struct ShortKey {
  uint64_t lo, hi;
  bool operator==(const ShortKey&) const = default;
  uint64_t hash() const noexcept { return mix(lo ^ 0x9E3779B97F4A7C15u, hi ^ 0xD6E8FEB86659FD93u); }
};
constexpr size_t kShortKeyBytes = 15;

/// `readable`: bytes that may be read from `p`, at least `size`; 16 of them save a copy byte by byte.
inline ShortKey short_key(const char* p, size_t size, size_t readable) noexcept {
  uint64_t lo = 0, hi = 0;
  if (readable >= 16) {
    std::memcpy(&lo, p, 8);
    std::memcpy(&hi, p + 8, 8);
    if (size < 8) {
      lo &= (uint64_t{1} << (8 * size)) - 1;
      hi = 0;
    } else {
      hi &= (uint64_t{1} << (8 * (size - 8))) - 1;
    }
  } else {
    std::memcpy(&lo, p, size < 8 ? size : 8);
    if (size > 8) std::memcpy(&hi, p + 8, size - 8);
  }
  return {lo, hi | static_cast<uint64_t>(size) << 56};
}

/// Any text in one word; equal hashes are compared by their bytes.
uint64_t hash_text(std::string_view text) noexcept;

constexpr uint32_t kNoId = 0xFFFFFFFFu;

/// Text -> id. Texts are views of the vocabulary's own storage, which outlives the table.
class WordTable {
 public:
  void reserve(size_t words);
  /// Returns false when the text is there already.
  bool insert(std::string_view text, uint32_t id);

  uint32_t find(std::string_view text, size_t readable) const noexcept {
    return text.size() <= kShortKeyBytes ? find_short(short_key(text.data(), text.size(), readable)) : find_long(text);
  }
  uint32_t find_short(const ShortKey& key) const noexcept {
    for (size_t i = key.hash() & short_mask_;; i = (i + 1) & short_mask_) {
      const ShortSlot& slot = short_[i];
      if (slot.key == key) return slot.id;
      if (slot.id == kNoId) return kNoId;
    }
  }
  uint32_t find_long(std::string_view text) const noexcept;

 private:
  struct ShortSlot {
    ShortKey key{0, 0};
    uint32_t id = kNoId;
  };
  struct LongSlot {
    std::string_view text;
    uint64_t hash = 0;
    uint32_t id = kNoId;
  };
  std::vector<ShortSlot> short_;
  std::vector<LongSlot> long_;
  size_t short_mask_ = 0, long_mask_ = 0;
};

/// What a pair of ids becomes, and when: the lowest rank is merged first. rank kNoId: the pair isn't merged.
struct Merge {
  uint32_t rank = kNoId;
  uint32_t id = kNoId;
};

class PairTable {
 public:
  void reserve(size_t pairs);
  /// A second rule for a pair replaces the first.
  void insert(uint32_t left, uint32_t right, Merge merge);

  Merge find(uint32_t left, uint32_t right) const noexcept {
    const uint64_t key = static_cast<uint64_t>(left) << 32 | right;
    for (size_t i = mix(key, 0x9E3779B97F4A7C15u) & mask_;; i = (i + 1) & mask_) {
      const Slot& slot = slots_[i];
      if (slot.key == key) return slot.merge;
      if (slot.merge.rank == kNoId) return {};
    }
  }

 private:
  struct Slot {
    uint64_t key = ~uint64_t{0};
    Merge merge;
  };
  std::vector<Slot> slots_;
  size_t mask_ = 0;
};

}  // namespace llmcore
