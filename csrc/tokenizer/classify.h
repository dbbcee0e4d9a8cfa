#pragma once
// Classes of 64 bytes at once, one bit per byte. ASCII is classified by vector comparisons (SSE2, NEON, or a table on
// other machines); characters beyond are looked up one by one, and their class covers all of their bytes.

#include <bit>
#include <cstdint>

#include "tokenizer/unicode.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace llmcore {

/// Bit i speaks of byte i. `high`: bytes of characters beyond ASCII.
struct ByteClasses {
  uint64_t letter = 0, upper = 0, number = 0, space = 0, newline = 0, blank = 0, apostrophe = 0, slash = 0, high = 0;
};

#if defined(__SSE2__)

inline ByteClasses classify_ascii(const uint8_t* p) noexcept {
  ByteClasses c;
  for (int i = 0; i < 64; i += 16) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i));
    const auto is = [&](char v) { return _mm_cmpeq_epi8(x, _mm_set1_epi8(v)); };
    // Bytes of y from 0 to n - 1, compared as unsigned through the minimum.
    const auto below = [](__m128i y, char n) {
      return _mm_cmpeq_epi8(_mm_min_epu8(y, _mm_set1_epi8(static_cast<char>(n - 1))), y);
    };
    const auto bits = [&](__m128i m) {
      return static_cast<uint64_t>(static_cast<uint32_t>(_mm_movemask_epi8(m))) << i;
    };
    const auto minus = [&](__m128i y, char v) { return _mm_sub_epi8(y, _mm_set1_epi8(v)); };
    const __m128i folded = _mm_or_si128(x, _mm_set1_epi8(0x20));
    const __m128i blank = is(' ');
    c.letter |= bits(below(minus(folded, 'a'), 26));
    c.upper |= bits(below(minus(x, 'A'), 26));
    c.number |= bits(below(minus(x, '0'), 10));
    c.space |= bits(_mm_or_si128(blank, below(minus(x, 9), 5)));
    c.newline |= bits(_mm_or_si128(is('\n'), is('\r')));
    c.blank |= bits(blank);
    c.apostrophe |= bits(is('\''));
    c.slash |= bits(is('/'));
    c.high |= bits(x);
  }
  return c;
}

inline uint64_t equal_bytes(const uint8_t* p, char value) noexcept {
  uint64_t found = 0;
  for (int i = 0; i < 64; i += 16) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + i));
    const int bits = _mm_movemask_epi8(_mm_cmpeq_epi8(x, _mm_set1_epi8(value)));
    found |= static_cast<uint64_t>(static_cast<uint32_t>(bits)) << i;
  }
  return found;
}

#elif defined(__aarch64__) && defined(__ARM_NEON)

/// The highest bit of each byte of four registers, by adding neighbours of weighted bits three times.
inline uint64_t gather_bits(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) noexcept {
  const uint8x16_t weight = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t ab = vpaddq_u8(vandq_u8(a, weight), vandq_u8(b, weight));
  const uint8x16_t cd = vpaddq_u8(vandq_u8(c, weight), vandq_u8(d, weight));
  const uint8x16_t all = vpaddq_u8(ab, cd);
  return vgetq_lane_u64(vreinterpretq_u64_u8(vpaddq_u8(all, all)), 0);
}

inline ByteClasses classify_ascii(const uint8_t* p) noexcept {
  const uint8x16_t x[4] = {vld1q_u8(p), vld1q_u8(p + 16), vld1q_u8(p + 32), vld1q_u8(p + 48)};
  const auto each = [&](auto test) { return gather_bits(test(x[0]), test(x[1]), test(x[2]), test(x[3])); };
  const auto is = [&](uint8_t v) { return each([v](uint8x16_t y) { return vceqq_u8(y, vdupq_n_u8(v)); }); };
  const auto within = [](uint8x16_t y, uint8_t first, uint8_t count) {
    return vcltq_u8(vsubq_u8(y, vdupq_n_u8(first)), vdupq_n_u8(count));
  };
  ByteClasses c;
  c.letter = each([&](uint8x16_t y) { return within(vorrq_u8(y, vdupq_n_u8(0x20)), 'a', 26); });
  c.upper = each([&](uint8x16_t y) { return within(y, 'A', 26); });
  c.number = each([&](uint8x16_t y) { return within(y, '0', 10); });
  c.newline = is('\n') | is('\r');
  c.blank = is(' ');
  c.space = c.blank | each([&](uint8x16_t y) { return within(y, 9, 5); });
  c.apostrophe = is('\'');
  c.slash = is('/');
  c.high = each([](uint8x16_t y) { return vcgeq_u8(y, vdupq_n_u8(0x80)); });
  return c;
}

inline uint64_t equal_bytes(const uint8_t* p, char value) noexcept {
  const uint8x16_t v = vdupq_n_u8(static_cast<uint8_t>(value));
  return gather_bits(vceqq_u8(vld1q_u8(p), v), vceqq_u8(vld1q_u8(p + 16), v), vceqq_u8(vld1q_u8(p + 32), v),
                     vceqq_u8(vld1q_u8(p + 48), v));
}

#else

inline ByteClasses classify_ascii(const uint8_t* p) noexcept {
  ByteClasses c;
  for (int i = 0; i < 64; ++i) {
    const uint64_t bit = uint64_t{1} << i;
    if (p[i] >= 0x80) {
      c.high |= bit;
      continue;
    }
    const uint8_t cls = kClassBlocks[p[i]];
    if (cls & kLetter) c.letter |= bit;
    if (cls & kUpper) c.upper |= bit;
    if (cls & kNumber) c.number |= bit;
    if (cls & kSpace) c.space |= bit;
    if (cls & kNewline) c.newline |= bit;
    if (p[i] == ' ') c.blank |= bit;
    if (p[i] == '\'') c.apostrophe |= bit;
    if (p[i] == '/') c.slash |= bit;
  }
  return c;
}

inline uint64_t equal_bytes(const uint8_t* p, char value) noexcept {
  uint64_t found = 0;
  for (int i = 0; i < 64; ++i) found |= uint64_t{p[i] == static_cast<uint8_t>(value)} << i;
  return found;
}

#endif

/// What 64 bytes of text are. `first`: first bytes of characters; `other`: neither letter, number nor space;
/// `caseless`: letters with neither case; `mark`: \p{M}. Only the lowest `valid` bits count: a last, incomplete
/// character is left out.
struct Window {
  ByteClasses c;
  uint64_t first, other, lower = 0, caseless = 0, mark = 0, valid;
};

inline Window classify(const uint8_t* p) noexcept {
  Window w{classify_ascii(p), ~uint64_t{0}, 0, 0, 0, 0, ~uint64_t{0}};
  w.lower = w.c.letter & ~w.c.upper;
  for (uint64_t rest = w.c.high; rest != 0;) {
    const int at = std::countr_zero(rest);
    const Char one = char_at(p + at);
    if (at + one.len > 64) {
      w.valid = (uint64_t{1} << at) - 1;
      break;
    }
    const uint64_t bits = ((uint64_t{1} << one.len) - 1) << at;
    const auto where = [&](uint8_t mask) { return one.cls & mask ? bits : 0; };
    w.c.letter |= where(kLetter);
    w.c.upper |= where(kUpper);
    w.lower |= where(kLower);
    w.c.number |= where(kNumber);
    w.c.space |= where(kSpace);
    w.mark |= where(kMark);
    w.first &= ~bits | uint64_t{1} << at;
    rest &= ~bits;
  }
  w.caseless = w.c.letter & ~w.c.upper & ~w.lower;
  w.other = ~(w.c.letter | w.c.number | w.c.space);
  return w;
}

}  // namespace llmcore
