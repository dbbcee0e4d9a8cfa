#pragma once
// The two hash tables of a vocabulary: pieces of text -> id, and pairs of ids -> (rank, id). Both are open-addressed,
// at most half full, built once and then read by any number of threads.

#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "tokenizer/pages.h"

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
    const unsigned bits = 8 * static_cast<unsigned>(size);
    const uint64_t below = (uint64_t{1} << (bits & 63)) - 1;
    const uint64_t whole = uint64_t{0} - (bits >> 6);  // all ones from 8 bytes on
    lo &= below | whole;
    hi &= below & whole;
  } else {
    std::memcpy(&lo, p, size < 8 ? size : 8);
    if (size > 8) std::memcpy(&hi, p + 8, size - 8);
  }
  return {lo, hi | static_cast<uint64_t>(size) << 56};
}

/// Any text in one word; equal hashes are compared by their bytes.
uint64_t hash_text(std::string_view text) noexcept;

constexpr uint32_t kNoId = 0xFFFFFFFFu;

template <class T>
using Table = std::vector<T, PageAllocator<T>>;

/// Text -> id. Texts of up to 11 bytes, nearly all that occur, are four to a cache line. Texts are views of the
/// vocabulary's own storage, which outlives the table. An entry may be marked as a word: one that a whole piece
/// becomes.
class WordTable {
 public:
  static constexpr size_t kTinyBytes = 11;
  static constexpr uint32_t kWord = 0x80000000u;

  /// `sizes`: the lengths of the texts to come.
  void reserve(const std::vector<uint32_t>& sizes);
  /// Returns false when the text is there already.
  bool insert(std::string_view text, uint32_t id);
  /// Marks the entry of a text that is there.
  void mark_word(std::string_view text) noexcept;

  /// The id of a text, or kNoId.
  uint32_t find(std::string_view text, size_t readable) const noexcept {
    const uint32_t entry = find_entry(text, readable);
    return entry == kNoId ? kNoId : entry & ~kWord;
  }
  /// The id of a text that is marked as a word, or kNoId.
  uint32_t find_word(std::string_view text, size_t readable) const noexcept {
    return word_of(find_entry(text, readable));
  }
  /// The same for a text of at most kTinyBytes, by its key, in two steps, so that the cache misses of many overlap.
  size_t prefetch_tiny(const ShortKey& key) const noexcept {
    const size_t home = key.hash() & tiny_mask_;
    __builtin_prefetch(&tiny_[home]);
    return home;
  }
  uint32_t find_tiny_word(const ShortKey& key, size_t home) const noexcept { return word_of(find_tiny(key, home)); }

 private:
  struct TinySlot {
    uint64_t lo = 0;
    uint32_t hi = 0;  // three more bytes, and the length
    uint32_t entry = kNoId;
  };
  struct ShortSlot {
    ShortKey key{0, 0};
    uint32_t entry = kNoId;
  };
  struct LongSlot {
    std::string_view text;
    uint64_t hash = 0;
    uint32_t entry = kNoId;
  };

  static uint32_t word_of(uint32_t entry) noexcept {
    return entry != kNoId && (entry & kWord) ? entry & ~kWord : kNoId;
  }
  static uint32_t tiny_hi(const ShortKey& key) noexcept {
    return static_cast<uint32_t>(key.hi) | static_cast<uint32_t>(key.hi >> 32);
  }
  /// Where the probe after slot `at` of a search that began at `home` looks: the rest of the cache line first.
  size_t next_tiny(size_t at, size_t home) const noexcept {
    const size_t next = (at & ~size_t{3}) | ((at + 1) & 3);
    return ((next ^ home) & 3) != 0 ? next : (next + 4) & tiny_mask_;
  }
  uint32_t find_tiny(const ShortKey& key, size_t home) const noexcept {
    const uint32_t hi = tiny_hi(key);
    for (size_t i = home;; i = next_tiny(i, home)) {
      const TinySlot& slot = tiny_[i];
      if (slot.lo == key.lo && slot.hi == hi) return slot.entry;
      if (slot.entry == kNoId) return kNoId;
    }
  }
  uint32_t find_entry(std::string_view text, size_t readable) const noexcept {
    if (text.size() <= kShortKeyBytes) {
      const ShortKey key = short_key(text.data(), text.size(), readable);
      return text.size() <= kTinyBytes ? find_tiny(key, key.hash() & tiny_mask_) : find_short(key);
    }
    return find_long(text);
  }
  uint32_t find_short(const ShortKey& key) const noexcept;
  uint32_t find_long(std::string_view text) const noexcept;

  Table<TinySlot> tiny_;
  Table<ShortSlot> short_;
  Table<LongSlot> long_;
  size_t tiny_mask_ = 0, short_mask_ = 0, long_mask_ = 0;
};

/// What a pair of ids becomes, and when: the lowest rank is merged first. rank kNoId: the pair isn't merged.
struct Merge {
  uint32_t rank = kNoId;
  uint32_t id = kNoId;
};

/// Pair -> (rank, id). Merging is a chain of look-ups that wait for one another, so what a look-up touches is small: a
/// slot is a rule's number (24 bits) and 8 bits of the pair's hash, and most pairs that have no rule end there.
class PairTable {
 public:
  static constexpr size_t kMaxRules = (size_t{1} << 24) - 1;

  void reserve(size_t pairs);
  /// A second rule for a pair replaces the first. At most kMaxRules insertions.
  void insert(uint32_t left, uint32_t right, Merge merge);

  Merge find(uint32_t left, uint32_t right) const noexcept {
    const uint64_t hash = hash_pair(left, right);
    const uint32_t mark = static_cast<uint32_t>(hash >> 56) << 24;
    for (size_t i = hash & mask_;; i = (i + 1) & mask_) {
      const uint32_t slot = slots_[i];
      if (slot == kFree) return {};
      if ((slot ^ mark) >> 24) continue;
      const Rule& rule = rules_[slot & kMaxRules];
      if (rule.left == left && rule.right == right) return rule.merge;
    }
  }

 private:
  static constexpr uint32_t kFree = kNoId;
  struct Rule {
    uint32_t left, right;
    Merge merge;
  };
  static uint64_t hash_pair(uint32_t left, uint32_t right) noexcept {
    return mix((static_cast<uint64_t>(left) << 32 | right) ^ 0xD6E8FEB86659FD93u, 0x9E3779B97F4A7C15u);
  }

  Table<uint32_t> slots_;
  Table<Rule> rules_;
  size_t mask_ = 0;
};

}  // namespace llmcore
