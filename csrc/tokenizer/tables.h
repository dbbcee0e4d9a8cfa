#pragma once
// The two hash tables of a vocabulary: pieces of text -> id, open-addressed, and pairs of ids -> rule, each in the one
// slot it can be in. Built once and then read by any number of threads.

#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "kernels/pairs.h"
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

/// The bits of a key that texts of each size up to kShortKeyBytes have.
constexpr std::array<ShortKey, kShortKeyBytes + 1> kKeyBits = [] {
  std::array<ShortKey, kShortKeyBytes + 1> bits{};
  for (size_t i = 0; i < 8 * kShortKeyBytes; ++i) {
    const uint64_t bit = uint64_t{1} << i % 64;
    for (size_t size = i / 8 + 1; size <= kShortKeyBytes; ++size) (i < 64 ? bits[size].lo : bits[size].hi) |= bit;
  }
  return bits;
}();

/// `readable`: bytes that may be read from `p`, at least `size`; 16 of them save a copy byte by byte. Of a longer text
/// the key is anything.
inline ShortKey short_key(const char* p, size_t size, size_t readable) noexcept {
  const uint64_t size_byte = static_cast<uint64_t>(size) << 56;
  if (readable >= 16) [[likely]] {
    uint64_t lo, hi;
    std::memcpy(&lo, p, 8);
    std::memcpy(&hi, p + 8, 8);
    const ShortKey& kept = kKeyBits[size % kKeyBits.size()];
    return {lo & kept.lo, (hi & kept.hi) | size_byte};
  }
  uint64_t lo = 0, hi = 0;
  std::memcpy(&lo, p, size < 8 ? size : 8);
  if (size > 8) std::memcpy(&hi, p + 8, size - 8);
  return {lo, hi | size_byte};
}

/// Any text in one word; equal hashes are compared by their bytes.
uint64_t hash_text(std::string_view text) noexcept;

constexpr uint32_t kNoId = 0xFFFFFFFFu;

/// One symbol of an encoded piece: its id, and how many bytes of the piece it covers.
struct Symbol {
  uint32_t id;
  uint32_t len;
};
inline uint32_t id_of(uint32_t id) noexcept { return id; }
inline uint32_t id_of(const Symbol& symbol) noexcept { return symbol.id; }
/// What a merge begins with are symbols, or ids where nobody asks for lengths.
inline void set_start(uint32_t& start, uint32_t id, size_t /*len*/) noexcept { start = id; }
inline void set_start(Symbol& start, uint32_t id, size_t len) noexcept { start = {id, static_cast<uint32_t>(len)}; }
inline void lengthen_start(uint32_t& /*start*/, size_t /*len*/) noexcept {}
inline void lengthen_start(Symbol& start, size_t len) noexcept { start.len += static_cast<uint32_t>(len); }

template <class T>
using Table = std::vector<T, PageAllocator<T>>;

/// Text -> id. Texts of up to 11 bytes, nearly all that occur, are four to a cache line. Texts are views of the
/// vocabulary's own storage, which outlives the table. An entry may be marked as a word: one that a whole piece
/// becomes.
class WordTable {
 public:
  static constexpr size_t kTinyBytes = 11;
  static constexpr uint32_t kWord = 0x80000000u;

  /// `sizes`: the lengths of the texts to come; `storage`: where they begin.
  void reserve(const std::vector<uint32_t>& sizes, const char* storage);
  /// Returns false when the text is there already. `word`: it is marked, too.
  bool insert(std::string_view text, uint32_t id, bool word);
  void save(class ArchiveWriter& out) const;
  /// `storage` is where the texts of the saved table lie now.
  void load(class ArchiveReader& in, std::string_view storage);
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
  // The same in steps, so that the cache misses of many overlap. `hash` is that of the key of a text of at most
  // kShortKeyBytes, and hash_text of a longer one.
  /// Where a search begins, for a prefetch.
  const void* home_of(uint64_t hash, size_t size) const noexcept {
    const void* const tiny = &tiny_[hash & tiny_mask_];
    const void* const medium = &short_[hash & short_mask_];
    const void* const large = &long_[hash & long_mask_];
    return size <= kTinyBytes ? tiny : size <= kShortKeyBytes ? medium : large;
  }
  void prefetch(std::string_view text) const noexcept {
    const bool is_long = text.size() > kShortKeyBytes;
    __builtin_prefetch(
        home_of(is_long ? hash_text(text) : short_key(text.data(), text.size(), text.size()).hash(), text.size()));
  }
  /// False for nine of ten texts that aren't words, as most pieces that a thread sees first: the search itself has
  /// branches that can't be foreseen, and a table that isn't in the near caches.
  bool may_have_word(uint64_t hash) const noexcept {
    const uint64_t bit = filter_bit(hash);
    return filter_[bit / 64] >> bit % 64 & 1;
  }
  void prefetch_filter(uint64_t hash) const noexcept { __builtin_prefetch(&filter_[filter_bit(hash) / 64]); }
  uint32_t find_short_word(const ShortKey& key, uint64_t hash) const noexcept {
    return word_of(key.hi >> 56 <= kTinyBytes ? find_tiny(key, hash & tiny_mask_) : find_short(key, hash));
  }
  uint32_t find_long_word(std::string_view text, uint64_t hash) const noexcept {
    return word_of(find_long(text, hash));
  }

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
    uint64_t hash = 0;
    uint32_t begin = 0, size = 0;  // in the storage
    uint32_t entry = kNoId;
  };
  std::string_view text_of(const LongSlot& slot) const noexcept { return {storage_ + slot.begin, slot.size}; }

  uint64_t filter_bit(uint64_t hash) const noexcept { return hash >> 20 & filter_mask_; }
  void add_to_filter(uint64_t hash) noexcept {
    const uint64_t bit = filter_bit(hash);
    filter_[bit / 64] |= uint64_t{1} << bit % 64;
  }

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
      const uint64_t hash = key.hash();
      return text.size() <= kTinyBytes ? find_tiny(key, hash & tiny_mask_) : find_short(key, hash);
    }
    return find_long(text, hash_text(text));
  }
  uint32_t find_short(const ShortKey& key, uint64_t hash) const noexcept;
  uint32_t find_long(std::string_view text, uint64_t hash) const noexcept;

  Table<TinySlot> tiny_;
  Table<ShortSlot> short_;
  Table<LongSlot> long_;
  Table<uint64_t> filter_ = Table<uint64_t>(1);  // a bit for the hash of each word
  const char* storage_ = nullptr;
  size_t tiny_mask_ = 0, short_mask_ = 0, long_mask_ = 0, filter_mask_ = 63;
};

/// What pairs of ids and their rules are made of: two ids of 20 bits, a rule of 24.
struct PairLimits {
  static constexpr uint32_t kMaxRules = llmcore::kNoRule;
  static constexpr uint32_t kNoRule = llmcore::kNoRule;
  static constexpr uint32_t kMaxIds = llmcore::kNoSymbol;
  /// No id: no rule has it.
  static constexpr uint32_t kNoSymbol = llmcore::kNoSymbol;

  static uint64_t key_of(uint32_t left, uint32_t right) noexcept { return static_cast<uint64_t>(left) << 20 | right; }
};

/// Pair of ids -> the rule that merges it, while rules are still added. Rules are numbered as they come.
class PairRules : public PairLimits {
 public:
  explicit PairRules(size_t pairs);
  /// A second rule for a pair replaces the first. Ids are below kMaxIds, and there are at most as many insertions as
  /// there is room for, which is below kMaxRules.
  void insert(uint32_t left, uint32_t right, uint32_t rank, uint32_t id);

  size_t prefetch(uint32_t left, uint32_t right) const noexcept { return home_of(key_of(left, right)); }
  uint32_t find(uint32_t left, uint32_t right, size_t home) const noexcept {
    const uint64_t key = key_of(left, right);
    for (size_t i = home;; i = (i + 1) & mask_) {
      if (slots_[i] == kFree) return kNoRule;
      if (slots_[i] >> 24 == key) return static_cast<uint32_t>(slots_[i]) & kNoRule;
    }
  }
  uint32_t order(uint32_t rule) const noexcept { return rule == kNoRule ? rule : ranks_[rule]; }
  uint32_t result(uint32_t rule) const noexcept { return results_[rule]; }
  void prefetch_result(uint32_t) const noexcept {}

 private:
  friend class PairTable;
  static constexpr uint64_t kFree = ~uint64_t{0};
  size_t home_of(uint64_t key) const noexcept { return mix(key ^ 0xD6E8FEB86659FD93u, 0x9E3779B97F4A7C15u) & mask_; }

  Table<uint64_t> slots_;
  std::vector<uint32_t> results_, ranks_;  // by rule
  size_t mask_;
};

/// The same when all are there. Rules are numbered in order of rank, so the number says what is merged first unless
/// there are equal ranks; where ids are in that order too, as in most vocabularies, a rule's number is the id it makes.
/// Merging is a chain of look-ups that wait for one another, mostly miss the caches and mostly find nothing, and with
/// many pieces in turn no branch in them can be foreseen. So a pair has but one slot it can be in: its hash says the
/// bucket, whose multiplier spreads all pairs of the bucket over slots of their own ("hash, displace and compress",
/// Belazzougui, Botelho and Dietzfelbinger, 2009).
class PairTable : public PairLimits {
 public:
  PairTable() = default;
  explicit PairTable(const PairRules& rules);
  void save(class ArchiveWriter& out) const;
  void load(class ArchiveReader& in);

  /// A look-up in two steps, so that those of many pieces overlap.
  size_t prefetch(uint32_t left, uint32_t right) const noexcept {
    const size_t slot = slot_of(left, right);
    __builtin_prefetch(&slots_[slot]);
    return slot;
  }
  uint32_t find(uint32_t left, uint32_t right, size_t slot) const noexcept {
    const uint64_t found = slots_[slot];
    const uint32_t other = found >> 24 != key_of(left, right);
    return (static_cast<uint32_t>(found) | (0 - other)) & kNoRule;
  }
  uint32_t find(uint32_t left, uint32_t right) const noexcept { return find(left, right, slot_of(left, right)); }
  /// What comes first: the smaller value.
  uint32_t order(uint32_t rule) const noexcept { return ranks_.empty() || rule == kNoRule ? rule : ranks_[rule]; }
  uint32_t result(uint32_t rule) const noexcept { return results_.empty() ? rule : results_[rule]; }
  /// What kernels read. They take a rule's number for its rank.
  PairSlots view() const noexcept {
    return {hash_, multipliers_.data(), slots_.data(), results_.empty() ? nullptr : results_.data()};
  }
  bool has_equal_ranks() const noexcept { return !ranks_.empty(); }
  void prefetch_result(uint32_t rule) const noexcept {
    if (!results_.empty()) __builtin_prefetch(&results_[rule]);
  }

 private:
  static constexpr uint64_t kFree = ~uint64_t{0};
  size_t slot_of(uint32_t left, uint32_t right) const noexcept {
    return hash_.place(left, right) * multipliers_[hash_.bucket(left, right)] >> hash_.slot_shift;
  }
  void place(const std::vector<uint64_t>& entries);
  bool place_buckets(const std::vector<uint64_t>& entries);
  void set_hash();

  Table<uint64_t> slots_ = Table<uint64_t>(2, kFree);
  Table<uint32_t> multipliers_ = Table<uint32_t>(2, 1);  // odd, by bucket
  Table<uint32_t> results_;                              // by rule; none if it is the rule
  Table<uint32_t> ranks_;                                // by rule; none if no two are equal
  uint64_t seed_ = 0;
  PairHash hash_;
};

}  // namespace llmcore
