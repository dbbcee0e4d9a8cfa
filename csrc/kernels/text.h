#pragma once
// Characters of UTF-8 text, their classes, and what the windows of an ISA object (generic/windows.h) are given. ISA
// objects include this file: plain C types only, and functions are static, so that every object has its own copy.

#include <stddef.h>
#include <stdint.h>

namespace llmcore {

/// Unicode classes of a character, a bit each.
enum CharClassBit : int {
  kLetterBit,   // \p{L}
  kNumberBit,   // \p{N}
  kSpaceBit,    // \s (White_Space)
  kUpperBit,    // \p{Lu} \p{Lt}
  kLowerBit,    // \p{Ll}
  kMarkBit,     // \p{M}
  kNewlineBit,  // \r \n
  kSignBit,     // \p{P} \p{S}
};
enum CharClass : uint8_t {
  kLetter = 1 << kLetterBit,
  kNumber = 1 << kNumberBit,
  kSpace = 1 << kSpaceBit,
  kUpper = 1 << kUpperBit,
  kLower = 1 << kLowerBit,
  kMark = 1 << kMarkBit,
  kNewline = 1 << kNewlineBit,
  kSign = 1 << kSignBit,
};

/// The classes of all characters: of character c in blocks[index[c / 128] * 128 + c % 128].
struct ClassTables {
  const uint16_t* index;
  const uint8_t* blocks;

  uint8_t of(uint32_t code) const noexcept { return blocks[index[code >> 7] * 128 + (code & 127)]; }
};

static inline uint32_t utf8_length(uint8_t lead) noexcept {
  return lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

/// The character at `p`. Text is valid UTF-8 (the bindings take it from Python strings), so nothing is checked.
static inline uint32_t decode_utf8(const uint8_t* p) noexcept {
  if (p[0] < 0x80) return p[0];
  if (p[0] < 0xE0) return (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu);
  if (p[0] < 0xF0) return (p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
  return (p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
}

/// What the first two bytes of a character have that others don't, if it has two or three: below kFirstBytes.
constexpr uint32_t kFirstBytes = 0x2000;
static inline uint32_t first_bytes_of_two(const uint8_t* p) noexcept {
  return (static_cast<uint32_t>(p[0]) << 8 | p[1]) & 0x1F3F;
}
static inline uint32_t first_bytes_of_three(const uint8_t* p) noexcept {
  return (static_cast<uint32_t>(p[0]) << 8 | p[1]) & 0x0F3F;
}

/// Length of a match of '(?:[sdmt]|ll|ve|re) at `p`, or 0. When `fold`, letters match in either case, and U+017F
/// (long s) matches s, as Unicode case folding has it.
static inline int contraction(const uint8_t* p, const uint8_t* end, bool fold) noexcept {
  if (end - p < 2 || p[0] != '\'') return 0;
  const auto lower = [fold](uint8_t c) -> uint8_t { return fold && c >= 'A' && c <= 'Z' ? c | 0x20 : c; };
  const uint8_t a = lower(p[1]);
  if (a == 's' || a == 'd' || a == 'm' || a == 't') return 2;
  if (end - p < 3) return 0;
  if (fold && p[1] == 0xC5 && p[2] == 0xBF) return 3;
  const uint8_t b = lower(p[2]);
  return (a == 'l' && b == 'l') || ((a == 'v' || a == 'r') && b == 'e') ? 3 : 0;
}

/// Patterns whose pieces are found 64 bytes at a time. tokenizer/scan.cpp quotes them, and says what is right.
enum WindowPattern : int {
  kWindowGpt2,
  kWindowCl100k,  // and Llama-3: they differ at the end of a text, where there is no window
  kWindowQwen2,
  kWindowO200k,
  kWindowTekken,
  kWindowQwen35,
  kWindowDeepSeek,
  kWindowSpaceRuns,
  kWindowSpaceEach,
  kNumWindowPatterns
};
constexpr ptrdiff_t kWindowBytes = 64;

struct WindowArgs {
  ClassTables classes;
  // By the first two bytes: the classes of characters of two bytes, and in which 64 of classes.blocks are those of
  // three.
  const uint8_t* of_two;
  const uint16_t* of_three;
  const uint8_t* begin;  // ends of pieces are counted from here
  const uint8_t* end;    // of the text
  uint32_t* ends;
  size_t max_ends;
  // From a piece's beginning, and the number of ends there are; both move on as pieces are found.
  const uint8_t* at;
  size_t count;
  // Set to where windows may find something again: beyond `at` when the text has to be looked at one by one.
  const uint8_t* resume;
};
using WindowKernel = void (*)(WindowArgs& args) noexcept;

}  // namespace llmcore
