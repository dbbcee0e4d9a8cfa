#pragma once
// Byte-pair encoding of one piece of text. Whatever form a vocabulary had (merge list, ranks of concatenations, scores
// of concatenations), it is one pair -> (rank, id) table here, and pieces are merged lowest rank first, leftmost first
// among equals: by scanning an array when the piece is short, in parts that are joined when it is long, and with a heap
// (O(n log n)) where parts don't pay.

#include <array>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/character_starts.h"
#include "tokenizer/merger.h"
#include "tokenizer/piece_cache.h"
#include "tokenizer/scan.h"
#include "tokenizer/tables.h"

namespace llmcore {

enum class TokenKind : uint8_t {
  kGap = 0,     // no token has this id
  kNormal = 1,  // takes part in merging
  kByte = 2,    // stands for one byte that no normal token covers
  kAdded = 3,   // matched as a whole before encoding, never made by merging
  kUnused = 4,  // can be decoded, never encoded
};

/// A vocabulary as flat arrays. `text` holds what each id decodes to.
struct BpeSpec {
  std::vector<char> text;
  std::vector<uint32_t> text_ends;  // by id
  std::vector<uint8_t> kinds;       // TokenKind by id
  std::vector<uint32_t> byte_ids;   // 256, kNoId where a byte has no token
  bool characters = false;          // symbols begin as characters (SentencePiece) instead of bytes
  bool whole_words = false;         // a piece that is a token is that token (tiktoken, ignore_merges)
  uint32_t unk_id = kNoId;          // a character with neither token nor byte tokens
  bool fuse_unk = true;             // a run of unknown characters is one unk_id
  std::vector<uint32_t> merges;     // explicit rules as left, right, result; the rank is the position
  std::vector<uint32_t> ranks;      // or, by id: a concatenation that is this token has this rank (kNoId: never)
};

/// Working memory of one encoding thread, and its cache of pieces (bounded: then an entry evicts another).
struct EncodeState {
  /// A short piece, most often one word, and its ids. Two share a cache line, and whatever is asked for again is in
  /// the first of the two: of a third, the one that wasn't asked for goes, and branches are foreseen. There are few
  /// lines at first, which the nearer caches hold and a short text soon has made, and in between fewer than at last:
  /// to make them takes longer than a short text has use for.
  static constexpr size_t kFirstLines = 8192, kMoreLines = 32768, kMostLines = 65536;
  static constexpr size_t kIds = 4, kWideIds = 12;
  static constexpr size_t kSpare = 16;  // ids that are copied at a time, however many count
  static constexpr uint64_t kCountBits = uint64_t{0xF} << 60;
  struct Slot {
    uint64_t lo, hi;  // the key, with the number of ids in kCountBits
    std::array<uint32_t, kIds> ids;

    bool holds(const ShortKey& key) const noexcept { return ((lo ^ key.lo) | (hi ^ key.hi) << 4) == 0; }
    uint32_t count() const noexcept { return static_cast<uint32_t>(hi >> 60); }
    ShortKey key() const noexcept { return {lo, hi & ~kCountBits}; }
  };
  /// Two slots, or one whose ids go on where the second would be. Those are never taken for a key: the byte that would
  /// be its length is 0.
  struct alignas(64) Line {
    Slot slots[2];

    bool wide() const noexcept { return slots[0].count() > kIds && slots[0].count() <= kWideIds; }
    /// Of one of the slots.
    char* ids_of(const Slot& slot) noexcept {
      return static_cast<char*>(static_cast<void*>(&slots[&slot - slots])) + offsetof(Slot, ids);
    }
    // Not inlined, lest every look into a slot load it whole.
    [[gnu::noinline]] void swap() noexcept { std::swap(slots[0], slots[1]); }
  };
  /// Numbers of ids of a slot that has none: of a miss of this batch (ids[0] says which), or too many for it.
  static constexpr uint64_t kPending = 0, kElsewhere = 15;
  /// In place of the key of a longer piece: no slot holds it.
  static constexpr ShortKey kNoKey{~uint64_t{0}, 0};

  static constexpr size_t kLanes = 16;
  static constexpr size_t kLaneSymbols = 64;
  /// A piece that is being merged while others are, so that their cache misses overlap.
  struct Lane {
    uint32_t miss;
    Merger<kLaneSymbols> merger;
  };
  /// Pieces of few symbols, which misses they are, and both by the number of symbols.
  struct Short {
    std::vector<MergePiece> pieces, sorted;
    std::vector<uint32_t> misses, sorted_misses;
    std::vector<uint32_t> symbols;
  };
  /// A piece of the batch that isn't in the cache of short ones. Its ids are a stretch of `results`.
  struct Miss {
    uint32_t piece;
    uint32_t at;    // in `staged`
    uint32_t same;  // the miss whose ids it has: itself, or an earlier one of the same text
    uint32_t begin, count;
  };

  EncodeState() { std::memset(lines.get(), 0, kFirstLines * sizeof(Line)); }

  Line& line(uint64_t hash) noexcept { return lines[hash >> 40 & line_mask]; }
  /// More lines, if many of the slots are taken: an eighth at first, then a quarter. Nothing may be pending.
  void grow();

  decltype(unset_pages<Line>(0)) lines = unset_pages<Line>(kMostLines);  // what isn't used isn't touched
  size_t line_mask = kFirstLines - 1, taken = 0;                         // slots
  PieceCache merged;
  std::array<Lane, kLanes> lanes;
  Short few;
  std::array<ShortKey, kPieceBatch> keys;                                     // of the batch's short pieces
  std::array<uint64_t, kPieceBatch> hashes;                                   // of these keys, or of longer pieces
  std::array<Symbol, PieceCache::kBytes + CharacterStarts::kWritten> starts;  // of a piece, before any merge
  std::array<uint32_t, kWideIds * kPieceBatch + kSpare> staged;               // ids of the pieces that aren't missed
  std::vector<Miss> misses;
  std::vector<uint32_t> words, unmerged;  // of `misses`: what may be in the vocabulary, and what isn't there
  std::vector<uint32_t> results;          // with room for kSpare more
  size_t results_used = 0;
  std::vector<Symbol> symbols;
  std::vector<uint32_t> rules, prev, next;
  std::vector<uint64_t> heap;
  std::vector<Symbol> joined, part, pair, middle;  // of a piece that is merged in parts
  PieceBatch batch;
  std::vector<uint32_t> finer;
};

class Bpe {
 public:
  /// Throws TokenizerError or LimitError when the arrays contradict each other.
  explicit Bpe(BpeSpec spec);
  /// What `save` wrote. Throws TokenizerError when it is damaged.
  explicit Bpe(class ArchiveReader& in);
  void save(class ArchiveWriter& out) const;

  size_t size() const noexcept { return spec_.kinds.size(); }
  TokenKind kind(uint32_t id) const noexcept { return static_cast<TokenKind>(spec_.kinds[id]); }
  std::string_view token(uint32_t id) const noexcept {
    const uint32_t begin = id ? spec_.text_ends[id - 1] : 0;
    return {spec_.text.data() + begin, spec_.text_ends[id] - begin};
  }
  /// The id of a normal token by its text, or kNoId.
  uint32_t find(std::string_view text) const noexcept { return words_.find(text, text.size()); }
  /// True when a token whose text has a character before a space takes part in merging: then text can't be split there.
  bool joins_before_space() const noexcept { return joins_before_space_; }
  /// Merge rules by rank as left, right, result; for a vocabulary of ranks these are the recovered ones.
  const std::vector<uint32_t>& merges() const noexcept { return rules_; }
  bool whole_words() const noexcept { return spec_.whole_words; }
  const std::vector<uint8_t>& kinds() const noexcept { return spec_.kinds; }
  const std::vector<uint32_t>& ranks() const noexcept { return spec_.ranks; }
  const std::vector<uint32_t>& byte_ids() const noexcept { return spec_.byte_ids; }

  /// Appends the ids of the pieces of `text` that end at `ends`; text may be read up to `readable_end`.
  void encode_pieces(const char* text, const std::vector<uint32_t>& ends, const char* readable_end, EncodeState& state,
                     std::vector<uint32_t>& ids) const;
  /// Cuts pieces at every place that no token's text spans, if that can be told from the two bytes there: merging can't
  /// cross it. Only where a vocabulary has no words that merging doesn't reach.
  void refine(const char* text, std::vector<uint32_t>& ends, std::vector<uint32_t>& finer) const;
  /// Whether `refine` does anything. If so, and if nothing else cuts text, `cut` finds the first pieces of it at once.
  bool refines() const noexcept { return refines_; }
  void cut(std::string_view text, std::vector<uint32_t>& ends) const;
  /// The symbols of one piece, with lengths, in state.symbols; merges are left out with the probability `dropout`.
  void encode_with_dropout(std::string_view piece, double dropout, std::mt19937_64& random, EncodeState& state) const;
  /// The symbols of one piece, with lengths, in state.symbols.
  void encode_symbols(std::string_view piece, EncodeState& state) const;

 private:
  void check() const;
  void index_tokens();
  PairRules explicit_merges();
  PairRules recovered_merges();
  void index_byte_pairs();
  void find_unknowns();
  void index_characters();
  void index_merged_characters();
  void classify_words();
  void start(std::string_view piece, std::vector<Symbol>& symbols) const;
  template <class Start>
  size_t start_symbols(std::string_view piece, Start* starts) const;
  uint32_t start_byte(uint8_t byte) const;
  template <class Start>
  size_t start_characters(std::string_view piece, Start* starts) const;
  void encode_block(const char* text, const uint32_t* ends, size_t n, size_t begin, const char* readable_end,
                    EncodeState& state, std::vector<uint32_t>& ids) const;
  void find_neighbours();
  void add_miss(size_t i, size_t at, EncodeState& state) const;
  void find_misses(const char* text, const uint32_t* ends, size_t first, EncodeState& state) const;
  void merge_misses(const char* text, const uint32_t* ends, size_t first, EncodeState& state) const;
  void merge_short_misses(const char* text, const uint32_t* ends, size_t first, EncodeState& state) const;
  static void keep(EncodeState& state, const EncodeState::Miss& miss, std::string_view piece);
  static uint32_t* place_ids(EncodeState& state, EncodeState::Miss& miss, size_t most);
  static void settle(EncodeState& state, EncodeState::Miss& miss, size_t count);
  static void settle(EncodeState& state, EncodeState::Miss& miss, const std::vector<Symbol>& symbols);
  void merge(std::string_view piece, EncodeState& state) const;
  template <class Pairs>
  void merge_whole(const Pairs& pairs, std::string_view piece, EncodeState& state) const;
  template <class Pairs>
  void merge_few(const Pairs& pairs, std::string_view piece, std::vector<Symbol>& symbols) const;
  bool merge_runs(std::vector<Symbol>& symbols) const;
  template <class Pairs>
  void merge_heap(const Pairs& pairs, EncodeState& state) const;
  bool merge_parts(std::string_view piece, EncodeState& state) const;
  bool encode_part(std::string_view part, EncodeState& state, std::vector<Symbol>& symbols) const;
  bool stay_apart(std::string_view piece, size_t at, Symbol left, Symbol right, EncodeState& state) const;

  BpeSpec spec_;
  WordTable words_;  // every normal token; marked is one whose text, as a piece, encodes to the token itself
  PairTable pairs_;
  // What two bytes become that are symbols side by side at first: most pairs need no hash.
  BytePairs byte_pairs_;
  CharacterStarts character_starts_;
  std::array<uint32_t, 256>
      byte_symbols_{};  // the symbol that a byte (of ASCII, if symbols are characters) is at first
  std::vector<uint32_t> rules_;
  bool joins_before_space_ = false;
  bool refines_ = false;
  std::vector<uint8_t> neighbours_;  // by (byte << 8 | next byte): some token's text has the two side by side
  bool unknowns_ = false;            // some text has a symbol that is the unknown token
  bool odd_lengths_ = false;         // a byte has a token whose text is something else
  bool bytes_merge_ = false;         // a rule names a byte, though symbols are characters
  bool ascii_known_ = false;         // every byte of ASCII begins as a symbol of its own
  bool others_known_ = false;        // and every other byte
};

}  // namespace llmcore
