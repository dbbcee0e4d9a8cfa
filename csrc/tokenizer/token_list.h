#pragma once
// The tokens of a vocabulary file as it spells them, by text and in the file's order.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/tables.h"

namespace llmcore {

class TokenList {
 public:
  struct Token {
    uint32_t begin, size;  // in the text of all
    uint32_t id;
  };

  /// All texts together must be below 4 GiB.
  void add(std::string_view text, uint32_t id);
  /// To be called after the last was added and before any is looked for. False if a text is there twice.
  bool index();

  size_t size() const noexcept { return tokens_.size(); }
  std::span<const Token> tokens() const noexcept { return tokens_; }
  std::string_view text() const noexcept { return text_; }
  std::string_view text_of(const Token& token) const noexcept { return text().substr(token.begin, token.size); }

  /// The id of a text, or kNoId; `hash` is its hash_text.
  uint32_t find(std::string_view text, uint64_t hash) const noexcept;
  uint32_t find(std::string_view text) const noexcept { return find(text, hash_text(text)); }
  /// Asks memory for where a text of this hash is looked up.
  void prefetch(uint64_t hash) const noexcept { __builtin_prefetch(&slots_[home_of(hash)]); }

 private:
  struct Slot {
    uint32_t tag = 0, token = kNoId;
  };
  size_t home_of(uint64_t hash) const noexcept { return hash >> 32 & (slots_.size() - 1); }
  size_t slot_of(std::string_view text, uint64_t hash) const noexcept;

  std::string text_;
  std::vector<Token> tokens_;
  std::vector<Slot> slots_;
};

/// A token beside the vocabulary, or in place of one of it.
struct AddedText {
  uint32_t id;
  std::string_view text;
};

/// What tokens stand for, by id.
struct SpelledTokens {
  std::string text;              // of all
  std::vector<uint32_t> ends;    // of each in it
  std::vector<uint8_t> kinds;    // a TokenKind each
  std::vector<uint32_t> others;  // tokens of the list that are empty or hold a character that stands for no byte
};

/// `byte_of[c]` is the byte that the character c stands for, above 255 where there is none. The others stand as they
/// are spelled and are never encoded. All ids must be below `size`.
SpelledTokens spell_bytes(const TokenList& list, std::span<const uint16_t> byte_of, std::span<const AddedText> added,
                          size_t size);

}  // namespace llmcore
