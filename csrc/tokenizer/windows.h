#pragma once
// Where the pieces in 64 bytes of text begin, by operations on whole words of bits. A window begins at the start of a
// piece. None of the patterns looks behind, so nothing before the window matters, and a scan carries no state from one
// window to the next: the next one begins at the last start that is certain. What lies beyond the window, or is too
// rare to be worth bits (marks in o200k, numbers beyond ASCII), makes the starts after it uncertain; they are left out,
// and where not a single start is left, the scalar scanner takes over.

#include <bit>
#include <cstdint>

#include "tokenizer/classify.h"

namespace llmcore {

inline uint64_t below_bit(int i) noexcept { return (uint64_t{1} << i) - 1; }
inline int highest_bit(uint64_t bits) noexcept { return 63 - std::countl_zero(bits); }

/// Length of a match of '(?:[sdmt]|ll|ve|re) at `p`, or 0. When `fold`, letters match in either case, and U+017F
/// (long s) matches s, as Unicode case folding has it.
inline int contraction(const uint8_t* p, const uint8_t* end, bool fold) noexcept {
  if (end - p < 2 || p[0] != '\'') return 0;
  const auto lower = [fold](uint8_t c) -> uint8_t { return fold && c >= 'A' && c <= 'Z' ? c | 0x20 : c; };
  const uint8_t a = lower(p[1]);
  if (a == 's' || a == 'd' || a == 'm' || a == 't') return 2;
  if (end - p < 3) return 0;
  if (fold && p[1] == 0xC5 && p[2] == 0xBF) return 3;
  const uint8_t b = lower(p[2]);
  return (a == 'l' && b == 'l') || ((a == 'v' || a == 'r') && b == 'e') ? 3 : 0;
}

/// The bits just after those runs of `runs` in which `seeds` has a bit (a seed is a part of its run).
inline uint64_t after_runs(uint64_t runs, uint64_t seeds) noexcept { return (runs + seeds) & ~runs; }

/// First bytes of the characters whose last bytes are `last`.
inline uint64_t first_bytes(const Window& w, uint64_t last) noexcept {
  uint64_t found = last & w.first;
  for (uint64_t rest = last & ~w.first; rest != 0; rest &= rest - 1) {
    found |= uint64_t{1} << highest_bit(w.first & below_bit(std::countr_zero(rest)));
  }
  return found;
}

/// Starts of the pieces \s*[\r\n]+|\s+(?!\S)|\s+ of `spaces`, and of what follows them if it takes a space along. With
/// `newlines` 0, of \s+(?!\S)|\s+ alone. A run that touches the window's end has but its start.
inline uint64_t starts_in_spaces(const Window& w, uint64_t spaces, uint64_t newlines) noexcept {
  uint64_t starts = spaces & ~(spaces << 1);
  // After the last newline of a run, unless more newlines follow the blanks there.
  const uint64_t blanks = spaces & ~newlines;
  uint64_t after_newline = blanks & (newlines & spaces) << 1;
  for (uint64_t rest = after_runs(blanks, after_newline) & newlines; rest != 0; rest &= rest - 1) {
    after_newline &= ~(uint64_t{1} << highest_bit(after_newline & below_bit(std::countr_zero(rest))));
  }
  starts |= after_newline;
  // The last space of a run is left to what follows.
  const uint64_t last = blanks & ~(spaces >> 1) & (w.valid >> 1);
  return starts | first_bytes(w, last);
}

/// Leaves out the starts inside of a run of spaces that touches the window's end.
inline uint64_t certain_before_last_spaces(const Window& w, uint64_t spaces, uint64_t starts) noexcept {
  const uint64_t outside = w.valid & ~spaces;
  if (outside == w.valid || highest_bit(w.valid) == highest_bit(outside)) return starts;
  return outside == 0 ? 0 : starts & (below_bit(highest_bit(outside)) << 2 | 3);
}

/// Adds a start after every third number of a run.
inline uint64_t every_third(uint64_t number, uint64_t starts) noexcept {
  const uint64_t four = number & number << 1 & number << 2 & number << 3;
  uint64_t found = starts;
  for (uint64_t at = starts << 3 & four; at != 0; at = at << 3 & four) found |= at;
  return found;
}

struct Starts {
  uint64_t bits;   // without the window's own start
  bool slow_text;  // the scalar scanner is better for a while
};

inline Starts certain(const Window& w, uint64_t starts, uint64_t hazards) noexcept {
  hazards &= w.valid;
  if (hazards) starts &= below_bit(std::countr_zero(hazards));
  starts &= w.valid & ~uint64_t{1};
  return {starts, hazards != 0};
}

/// GPT-2's pattern (scan.cpp quotes it).
inline Starts gpt2_starts(const uint8_t* p) noexcept {
  const Window w = classify(p);
  const uint64_t letter = w.c.letter & w.valid, number = w.c.number & w.valid, other = w.other & w.valid;
  const uint64_t spaces = w.c.space & w.valid;
  uint64_t starts = (letter & ~(letter << 1)) | (number & ~(number << 1)) | (other & ~(other << 1));
  starts &= ~(w.c.blank << 1);
  starts |= starts_in_spaces(w, spaces, 0);
  starts = certain_before_last_spaces(w, spaces, starts);
  for (uint64_t rest = w.c.apostrophe & (starts | 1); rest != 0; rest &= rest - 1) {
    const int at = std::countr_zero(rest);
    if (at > 60) {
      starts &= below_bit(at) << 1 | 1;
      break;
    }
    if (const int n = contraction(p + at, p + 64, false)) {
      starts &= ~(uint64_t{1} << (at + 1));
      starts |= uint64_t{1} << (at + n);
    }
  }
  return certain(w, starts, 0);
}

/// cl100k, Llama-3 and Qwen2 (they differ in the number of digits, and at the end of a text).
template <int kDigits>
inline Starts cl100k_starts(const uint8_t* p) noexcept {
  const Window w = classify(p);
  const uint64_t letter = w.c.letter & w.valid, number = w.c.number & w.valid, other = w.other & w.valid;
  const uint64_t newline = w.c.newline & w.valid, blank = w.c.blank;
  const uint64_t other_starts = other & ~(other << 1);
  // Newlines right after symbols belong to them.
  const uint64_t taken = newline & ~(newline + (newline & other << 1));
  const uint64_t spaces = w.c.space & w.valid & ~taken;
  uint64_t starts = starts_in_spaces(w, spaces, newline);
  starts |= other_starts & ~(blank << 1);
  // A word takes one character along, if that isn't a number or newline, nor a symbol after another or after a blank.
  const uint64_t kept = (other & w.first & other << 1) | (other_starts & blank << 1);
  starts |= letter & ~(letter << 1) & (number << 1 | newline << 1 | after_runs(other, kept));
  const uint64_t number_starts = number & ~(number << 1);
  starts |= kDigits == 1 ? number & w.first : every_third(number, number_starts);
  starts = certain_before_last_spaces(w, spaces, starts);
  for (uint64_t rest = w.c.apostrophe & other_starts & ~(blank << 1); rest != 0; rest &= rest - 1) {
    const int at = std::countr_zero(rest);
    const int n = contraction(p + at, p + 64, true);
    if (n && at + n < 64) starts |= uint64_t{1} << (at + n);
  }
  return certain(w, starts, kDigits == 1 ? 0 : number & w.c.high);
}

/// o200k without marks: as cl100k, and words begin anew where upper case follows lower case, and keep a contraction.
inline Starts o200k_starts(const uint8_t* p) noexcept {
  const Window w = classify(p);
  const uint64_t letter = w.c.letter & w.valid, number = w.c.number & w.valid, other = w.other & w.valid;
  const uint64_t newline = w.c.newline & w.valid, blank = w.c.blank, upper = w.c.upper;
  const uint64_t other_starts = other & ~(other << 1);
  const uint64_t taken = newline & ~(newline + (newline & other << 1));
  const uint64_t spaces = w.c.space & w.valid & ~taken;
  uint64_t starts = starts_in_spaces(w, spaces, newline);
  starts |= other_starts & ~(blank << 1);
  const uint64_t kept = (other & w.first & other << 1) | (other_starts & blank << 1);
  starts |= letter & ~(letter << 1) & (number << 1 | newline << 1 | after_runs(other, kept));
  starts |= upper & w.lower << 1;
  starts |= every_third(number, number & ~(number << 1));
  starts = certain_before_last_spaces(w, spaces, starts);
  int done = 0;
  for (uint64_t rest = w.c.apostrophe & letter << 1; rest != 0; rest &= rest - 1) {
    const int at = std::countr_zero(rest);
    if (at == done) continue;  // a word keeps but one
    if (at > 60) {
      starts &= below_bit(at);
      break;
    }
    if (const int n = contraction(p + at, p + 64, true)) {
      starts &= ~(uint64_t{3} << at);
      starts |= uint64_t{1} << (at + n);
      done = at + n;
    }
  }
  const uint64_t mixed = (w.caseless & upper << 1) | (upper & w.caseless << 1);
  return certain(w, starts, (number & w.c.high) | w.mark | mixed | (w.c.slash & taken << 1));
}

}  // namespace llmcore
