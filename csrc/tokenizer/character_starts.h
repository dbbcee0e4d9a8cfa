#pragma once
// Characters beyond ASCII begin a merge as what their bytes merge to, where it is certain that this comes first: two of
// three merges of a Chinese text are within its characters.
//
// It is certain when every merge inside of the character has a lower rank than any rule that could join one of its
// symbols, unfinished or finished, to its neighbours. Then nothing is joined to the character before it is finished,
// and nothing that can be joined to it once it is comes before what it had to wait for: the other merges keep their
// order. A rule that could come first most often ends in a first byte ("o" and the lead of all Cyrillic letters), so it
// concerns the character only after a certain other one.

#include <array>
#include <cstdint>

#include "tokenizer/tables.h"
#include "tokenizer/unicode.h"

namespace llmcore {

/// By code point below U+10000: up to three symbols.
class CharacterStarts {
 public:
  static constexpr uint32_t kCodes = 0x10000;
  /// Symbols that `write` writes to, however many count.
  static constexpr size_t kWritten = 3;
  /// Before the first character of a piece.
  static constexpr uint32_t kNothing = 0x1FFFFF;

  /// True for a first byte whose character the table may have.
  static bool leads(uint8_t byte) noexcept { return byte >= 0xC2 && byte < 0xF0; }

  /// What `write` takes for a character of two or three bytes that begins as their symbols.
  static uint64_t as_bytes(const std::array<uint32_t, 256>& symbols, const uint8_t* p, size_t len) noexcept {
    const uint64_t first = symbols[p[0]], second = symbols[p[1]], last = symbols[p[len - 1]];
    return first | second << kIdBits | last << 2 * kIdBits | static_cast<uint64_t>(len) << kCountBit;
  }
  /// The first symbols of the character of two or three bytes with this code, or their ids, and how many they are: none
  /// if it isn't in the table. `before` is the code point of the character before it, after some of which it begins as
  /// its `bytes`, or as none if these are 0; which those are can't be foreseen, so there is no branch on it.
  template <class Start>
  size_t write(uint32_t code, uint32_t before, uint64_t bytes, Start* out) const noexcept {
    const size_t bit = bit_of(before, code);
    const uint64_t joined = joined_[bit / 64] >> bit % 64 & 1;
    const uint64_t apart = entries_[code], entry = apart ^ ((apart ^ bytes) & -joined);
    const size_t count = entry >> kCountBit & 3;
    const uint32_t size = code < 0x800 ? 2 : 3;
    const uint32_t first = count == 1 ? size : count == 2 ? 1 + static_cast<uint32_t>(entry >> kLongFirstBit) : 1;
    set_start(out[0], static_cast<uint32_t>(entry & kIdMask), first);
    set_start(out[1], static_cast<uint32_t>(entry >> kIdBits & kIdMask), count == 2 ? size - first : 1);
    set_start(out[2], static_cast<uint32_t>(entry >> 2 * kIdBits & kIdMask), 1);
    return count;
  }

  /// `symbols` cover the character.
  void set(uint32_t code, const Symbol* symbols, size_t count) noexcept {
    uint64_t entry = static_cast<uint64_t>(count) << kCountBit;
    for (size_t i = 0; i < count; ++i) entry |= static_cast<uint64_t>(symbols[i].id) << i * kIdBits;
    if (count == 2 && symbols[0].len == 2) entry |= uint64_t{1} << kLongFirstBit;
    entries_[code] = entry;
  }
  /// After `before`, characters that differ from `code` at most in their last byte begin as bytes.
  void join(uint32_t before, uint32_t code) noexcept {
    const size_t bit = bit_of(before, code);
    joined_[bit / 64] |= uint64_t{1} << bit % 64;
  }

  template <class Archive>
  void save(Archive& out) const {
    out.put(entries_);
    out.put(joined_);
  }
  /// False when it isn't what `save` wrote.
  template <class Archive>
  bool load(Archive& in) {
    in.get(entries_);
    in.get(joined_);
    return entries_.size() == kCodes && joined_.size() == kJoinedBits / 64;
  }

 private:
  static constexpr unsigned kIdBits = 20, kCountBit = 60, kLongFirstBit = 62;
  static constexpr uint64_t kIdMask = (uint64_t{1} << kIdBits) - 1;
  static constexpr size_t kJoinedBits = 65536;
  static_assert(PairTable::kMaxIds <= kIdMask + 1);

  /// Two pairs may share a bit: then one begins as bytes without need.
  static size_t bit_of(uint32_t before, uint32_t code) noexcept {
    return (before * 0x9E3779B1u + (code >> 6) * 0x85EBCA77u) >> 16;
  }

  Table<uint64_t> entries_ = Table<uint64_t>(kCodes);
  Table<uint64_t> joined_ = Table<uint64_t>(kJoinedBits / 64);
};

}  // namespace llmcore
