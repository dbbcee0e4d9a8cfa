#pragma once
// Byte-pair encoding of one piece of text. Whatever form a vocabulary had (merge list, ranks of concatenations, scores
// of concatenations), it is one pair -> (rank, id) table here, and pieces are merged lowest rank first, leftmost first
// among equals: by scanning an array when the piece is short, in parts that are joined when it is long, and with a heap
// (O(n log n)) where parts don't pay.

#include <array>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <string_view>
#include <vector>

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

/// One symbol of an encoded piece: its id, and how many bytes of the piece it covers.
struct Symbol {
  uint32_t id;
  uint32_t len;
};

/// Working memory of one encoding thread, and its cache of merged pieces (fixed in size: an entry evicts another).
struct EncodeState {
  static constexpr size_t kCacheSlots = 8192;
  static constexpr size_t kCacheIds = 11;
  struct CacheSlot {
    ShortKey key;
    uint32_t count;
    std::array<uint32_t, kCacheIds> ids;
  };
  static constexpr size_t kLongSlots = 4096;
  static constexpr size_t kLongBytes = 64;
  static constexpr size_t kLongIds = 13;
  struct LongSlot {
    uint64_t hash;
    uint8_t size, count;
    std::array<char, kLongBytes> text;
    std::array<uint32_t, kLongIds> ids;
  };
  // All zeros is an empty slot; pages that no piece falls into are never touched.
  template <class T>
  struct Zeroed {
    explicit Zeroed(size_t n) : data(static_cast<T*>(std::calloc(n, sizeof(T)))) {
      if (!data) throw std::bad_alloc();
    }
    Zeroed(const Zeroed&) = delete;
    Zeroed& operator=(const Zeroed&) = delete;
    ~Zeroed() { std::free(data); }
    T* data;
  };

  CacheSlot& slot(const ShortKey& key) noexcept { return cache.data[key.hash() >> 32 & (kCacheSlots - 1)]; }

  Zeroed<CacheSlot> cache{kCacheSlots};
  Zeroed<LongSlot> long_cache{kLongSlots};
  std::vector<Symbol> symbols;
  std::vector<Merge> next_merge;
  std::vector<uint32_t> prev, next;
  std::vector<uint64_t> heap;
  std::vector<Symbol> joined, part, pair;  // of a piece that is merged in parts
  PieceBatch batch;
};

class Bpe {
 public:
  /// Throws TokenizerError or LimitError when the arrays contradict each other.
  explicit Bpe(BpeSpec spec);

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

  /// Appends the ids of the pieces of `text` that end at `ends`; text may be read up to `readable_end`.
  void encode_pieces(const char* text, const std::vector<uint32_t>& ends, const char* readable_end, EncodeState& state,
                     std::vector<uint32_t>& ids) const;
  /// The symbols of one piece, with lengths, in state.symbols.
  void encode_symbols(std::string_view piece, EncodeState& state) const;

 private:
  void check() const;
  void index_tokens();
  void add_explicit_merges();
  void recover_merges();
  void index_byte_pairs();
  void classify_words();
  void start_symbols(std::string_view piece, std::vector<Symbol>& symbols) const;
  void start_characters(std::string_view piece, std::vector<Symbol>& symbols) const;
  void encode_rare(std::string_view piece, size_t readable, EncodeState& state, std::vector<uint32_t>& ids) const;
  void merge(std::string_view piece, EncodeState& state) const;
  void merge_few(std::string_view piece, std::vector<Symbol>& symbols) const;
  void merge_heap(EncodeState& state) const;
  bool merge_parts(std::string_view piece, EncodeState& state) const;
  bool encode_part(std::string_view part, EncodeState& state, std::vector<Symbol>& symbols) const;
  bool stay_apart(std::string_view piece, size_t at, Symbol left, Symbol right, EncodeState& state) const;

  BpeSpec spec_;
  WordTable words_;  // every normal token; marked is one whose text, as a piece, encodes to the token itself
  PairTable pairs_;
  // What two bytes become that are symbols side by side at first: most pairs need no hash.
  std::vector<Merge> byte_pairs_;
  std::array<uint32_t, 256>
      byte_symbols_{};  // the symbol that a byte (of ASCII, if symbols are characters) is at first
  std::vector<uint32_t> rules_;
  bool joins_before_space_ = false;
  bool bytes_merge_ = false;  // a rule names a byte, though symbols are characters
};

}  // namespace llmcore
