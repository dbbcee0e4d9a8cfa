// Where the pieces in 64 bytes of text begin, by operations on whole words of bits. A window begins at the start of a
// piece. None of the patterns looks behind, so nothing before the window matters, and a scan carries no state from one
// window to the next: the next one begins at the last start that is certain. What lies beyond the window, or is too
// rare to be worth bits (marks in o200k, numbers beyond ASCII), makes the starts after it uncertain; they are left out,
// and where not a single start is left, the scalar scanner takes over. Included after an ISA's vec.h.

#include "kernels/text.h"

namespace {

using llmcore::contraction;
using llmcore::kWindowBytes;
using llmcore::WindowArgs;

LLMCORE_INLINE uint64_t below_bit(int i) { return (uint64_t{1} << i) - 1; }
// Of words that aren't 0.
LLMCORE_INLINE int lowest_bit(uint64_t bits) { return __builtin_ctzll(bits); }
LLMCORE_INLINE int highest_bit(uint64_t bits) { return 63 - __builtin_clzll(bits); }

/// What 64 bytes of text are, bit i speaks of byte i; all bytes of a character have its class. `high`: of characters
/// beyond ASCII; `first`: first bytes of characters; `other`: neither letter, number nor space; `caseless`: letters
/// with neither case; `mark`: \p{M}; `sign`: \p{P} and \p{S}; `han`: [\u4e00-\u9fa5\u3040-\u30ff]. Only the lowest
/// `valid` bits count: a last, incomplete character is left out.
struct Window {
  uint64_t letter, upper, number, space, newline, blank, apostrophe, slash, high;
  uint64_t lower, mark, first, caseless, other, sign, han, valid;
};

/// Characters beyond ASCII: looked up one by one.
LLMCORE_INLINE void classify_high(const uint8_t* p, const WindowArgs& a, U8x64 x, Window& w) {
  const uint64_t twos = bits_within(x, 0xC0, 0x20), threes = bits_within(x, 0xE0, 0x10);
  const uint64_t leads = bits_within(x, 0xC0, 0x40), inner = w.high & ~leads;
  if (leads == 0) return;
  uint8_t classes[kWindowBytes] = {};
  for (uint64_t rest = twos; rest != 0; rest &= rest - 1) {
    const int at = lowest_bit(rest);
    classes[at] = a.of_two[llmcore::first_bytes_of_two(p + at)];
  }
  for (uint64_t rest = threes; rest != 0; rest &= rest - 1) {
    const int at = lowest_bit(rest);
    classes[at] = a.classes.blocks[a.of_three[llmcore::first_bytes_of_three(p + at)] * 64u + (p[at + 2] & 0x3Fu)];
  }
  for (uint64_t rest = leads & ~twos & ~threes; rest != 0; rest &= rest - 1) {
    const int at = lowest_bit(rest);
    classes[at] = a.classes.of(llmcore::decode_utf8(p + at));
  }
  const int last = highest_bit(leads);
  if (last + static_cast<int>(llmcore::utf8_length(p[last])) > kWindowBytes) w.valid = below_bit(last);
  const U8x64 c = load_u8(classes);
  const auto whole = [&](uint64_t bits) {
    for (int i = 0; i < 3; ++i) bits |= bits << 1 & inner;
    return bits;
  };
  w.letter |= whole(bits_set<llmcore::kLetterBit>(c));
  w.upper |= whole(bits_set<llmcore::kUpperBit>(c));
  w.lower |= whole(bits_set<llmcore::kLowerBit>(c));
  w.number |= whole(bits_set<llmcore::kNumberBit>(c));
  w.space |= whole(bits_set<llmcore::kSpaceBit>(c));
  w.mark = whole(bits_set<llmcore::kMarkBit>(c));
  w.sign |= whole(bits_set<llmcore::kSignBit>(c));
  w.first = ~inner;
  // By the bytes: of U+3040 to U+30FF, U+4E00 to U+4FFF, U+5000 to U+8FFF, U+9000 to U+9F7F, U+9F80 to U+9FA5.
  const uint64_t e9 = bits_equal(x, 0xE9);
  const uint64_t han = (bits_equal(x, 0xE3) & bits_within(x, 0x81, 3) >> 1) |
                       (bits_equal(x, 0xE4) & bits_within(x, 0xB8, 8) >> 1) | bits_within(x, 0xE5, 4) |
                       (e9 & bits_within(x, 0x80, 0x3E) >> 1) |
                       (e9 & bits_equal(x, 0xBE) >> 1 & bits_within(x, 0x80, 0x26) >> 2);
  w.han = whole(han);
}

LLMCORE_INLINE Window classify(const uint8_t* p, const WindowArgs& a) {
  const U8x64 x = load_u8(p);
  Window w{};
  w.lower = bits_within(x, 'a', 26);
  w.upper = bits_within(x, 'A', 26);
  w.number = bits_within(x, '0', 10);
  w.blank = bits_equal(x, ' ');
  w.space = w.blank | bits_within(x, '\t', 5);
  w.newline = bits_equal(x, '\n') | bits_equal(x, '\r');
  w.apostrophe = bits_equal(x, '\'');
  w.slash = bits_equal(x, '/');
  w.high = high_bits(x);
  w.letter = w.lower | w.upper;
  w.sign = bits_within(x, 0x21, 0x5E) & ~(w.letter | w.number);
  w.first = w.valid = ~uint64_t{0};
  if (w.high != 0) classify_high(p, a, x, w);
  w.caseless = w.letter & ~w.upper & ~w.lower;
  w.other = ~(w.letter | w.number | w.space);
  return w;
}

/// The bits just after those runs of `runs` in which `seeds` has a bit (a seed is a part of its run).
LLMCORE_INLINE uint64_t after_runs(uint64_t runs, uint64_t seeds) { return (runs + seeds) & ~runs; }

/// First bytes of the characters whose last bytes are `last`.
LLMCORE_INLINE uint64_t first_bytes(const Window& w, uint64_t last) {
  uint64_t found = last & w.first;
  for (uint64_t rest = last & ~w.first; rest != 0; rest &= rest - 1) {
    found |= uint64_t{1} << highest_bit(w.first & below_bit(lowest_bit(rest)));
  }
  return found;
}

/// Starts of the pieces \s*[\r\n]+|\s+(?!\S)|\s+ of `spaces`, and of what follows them if it takes a space along. With
/// `newlines` 0, of \s+(?!\S)|\s+ alone. What follows counts as the end of the text where it is one of `ends`. A run
/// that touches the window's end has but its start.
LLMCORE_INLINE uint64_t starts_in_spaces(const Window& w, uint64_t spaces, uint64_t newlines, uint64_t ends = 0) {
  uint64_t starts = spaces & ~(spaces << 1);
  // After the last newline of a run, unless more newlines follow the blanks there.
  const uint64_t blanks = spaces & ~newlines;
  uint64_t after_newline = blanks & (newlines & spaces) << 1;
  for (uint64_t rest = after_runs(blanks, after_newline) & newlines; rest != 0; rest &= rest - 1) {
    after_newline &= ~(uint64_t{1} << highest_bit(after_newline & below_bit(lowest_bit(rest))));
  }
  starts |= after_newline;
  // The last space of a run is left to what follows.
  const uint64_t last = blanks & ~(spaces >> 1 | ends >> 1) & (w.valid >> 1);
  return starts | first_bytes(w, last);
}

/// Leaves out the starts inside of a run of spaces that touches the window's end.
LLMCORE_INLINE uint64_t certain_before_last_spaces(const Window& w, uint64_t spaces, uint64_t starts) {
  const uint64_t outside = w.valid & ~spaces;
  if (outside == 0) return 0;
  return starts & (below_bit(highest_bit(outside)) << 2 | 3);
}

/// Adds a start after every third number of a run.
LLMCORE_INLINE uint64_t every_third(uint64_t number, uint64_t starts) {
  const uint64_t four = number & number << 1 & number << 2 & number << 3;
  uint64_t found = starts;
  for (uint64_t at = starts << 3 & four; at != 0; at = at << 3 & four) found |= at;
  return found;
}

struct Starts {
  uint64_t bits;   // without the window's own start
  bool slow_text;  // the scalar scanner is better for a while
};

LLMCORE_INLINE Starts certain(const Window& w, uint64_t starts, uint64_t hazards) {
  hazards &= w.valid;
  if (hazards) starts &= below_bit(lowest_bit(hazards));
  starts &= w.valid & ~uint64_t{1};
  return {starts, hazards != 0};
}

/// GPT-2's pattern (scan.cpp quotes it).
LLMCORE_INLINE Starts gpt2_starts(const Window& w, const uint8_t* p) {
  const uint64_t letter = w.letter & w.valid, number = w.number & w.valid, other = w.other & w.valid;
  const uint64_t spaces = w.space & w.valid;
  uint64_t starts = (letter & ~(letter << 1)) | (number & ~(number << 1)) | (other & ~(other << 1));
  starts &= ~(w.blank << 1);
  starts |= starts_in_spaces(w, spaces, 0);
  starts = certain_before_last_spaces(w, spaces, starts);
  for (uint64_t rest = w.apostrophe & (starts | 1); rest != 0; rest &= rest - 1) {
    const int at = lowest_bit(rest);
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

// What the patterns that know words, numbers, symbols and spaces begin with: runs of each, and where pieces start but
// for those of numbers.
struct WordStarts {
  uint64_t letter, number, other_starts;
  uint64_t taken;   // newlines right after symbols, which belong to them
  uint64_t spaces;  // the others, and blanks
  uint64_t bits;
};
template <bool kMarks = false>
LLMCORE_INLINE WordStarts word_starts(const Window& w) {
  const uint64_t marks = kMarks ? w.mark : 0;
  const uint64_t letter = (w.letter | marks) & w.valid, other = w.other & ~marks & w.valid;
  const uint64_t number = w.number & w.valid;
  const uint64_t newline = w.newline & w.valid, blank = w.blank;
  const uint64_t other_starts = other & ~(other << 1);
  const uint64_t taken = newline & ~(newline + (newline & other << 1));
  const uint64_t spaces = w.space & w.valid & ~taken;
  uint64_t starts = starts_in_spaces(w, spaces, newline);
  starts |= other_starts & ~(blank << 1);
  // A word takes one character along, if that isn't a number or newline, nor a symbol after another or after a blank.
  const uint64_t kept = (other & w.first & other << 1) | (other_starts & blank << 1);
  starts |= letter & ~(letter << 1) & (number << 1 | newline << 1 | after_runs(other, kept));
  return {letter, number, other_starts, taken, spaces, starts};
}

/// cl100k, Llama-3, Qwen2 and Qwen3.5 (they differ in the number of digits, at the end of a text, and in marks).
template <int kDigits, bool kMarks = false>
LLMCORE_INLINE Starts cl100k_starts(const Window& w, const uint8_t* p) {
  const WordStarts words = word_starts<kMarks>(w);
  const uint64_t number = words.number;
  uint64_t starts = words.bits;
  starts |= kDigits == 1 ? number & w.first : every_third(number, number & ~(number << 1));
  starts = certain_before_last_spaces(w, words.spaces, starts);
  for (uint64_t rest = w.apostrophe & words.other_starts & ~(w.blank << 1); rest != 0; rest &= rest - 1) {
    const int at = lowest_bit(rest);
    const int n = contraction(p + at, p + 64, true);
    if (n && at + n < 64) starts |= uint64_t{1} << (at + n);
  }
  return certain(w, starts, kDigits == 1 ? 0 : number & w.high);
}

/// o200k without marks: as cl100k, and words begin anew where upper case follows lower case, and keep a contraction.
/// And tekken, with single digits and no contractions.
template <int kDigits, bool kContractions>
LLMCORE_INLINE Starts o200k_starts(const Window& w, const uint8_t* p) {
  const WordStarts words = word_starts(w);
  const uint64_t number = words.number, upper = w.upper;
  uint64_t starts = words.bits | (upper & w.lower << 1);
  starts |= kDigits == 1 ? number & w.first : every_third(number, number & ~(number << 1));
  starts = certain_before_last_spaces(w, words.spaces, starts);
  int done = 0;
  for (uint64_t rest = kContractions ? w.apostrophe & words.letter << 1 : 0; rest != 0; rest &= rest - 1) {
    const int at = lowest_bit(rest);
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
  const uint64_t long_numbers = kDigits == 1 ? 0 : number & w.high;
  return certain(w, starts, long_numbers | w.mark | mixed | (w.slash & words.taken << 1));
}

/// DeepSeek's three expressions; what the last one doesn't match is a hazard.
LLMCORE_INLINE Starts deepseek_starts(const Window& w) {
  const uint64_t number = w.number & w.valid, newline = w.newline & w.valid;
  const uint64_t all_letters = (w.letter | w.mark) & w.valid, all_signs = w.sign & w.valid;
  const uint64_t letter = all_letters & ~w.han, sign = all_signs & ~w.han;
  const uint64_t taken = newline & ~(newline + (newline & sign << 1));
  const uint64_t spaces = w.space & w.valid & ~taken;
  uint64_t starts = starts_in_spaces(w, spaces, newline, number | w.han);
  const uint64_t sign_starts = sign & ~(sign << 1) & ~(w.blank << 1);
  // A sign of ASCII takes the letters of ASCII along.
  const uint64_t plain = w.letter & ~w.high, leading = sign_starts & ~w.high & plain >> 1;
  starts |= sign_starts | (after_runs(plain, leading << 1) & letter);
  starts |= letter & ~(letter << 1) & ((number | w.han | newline | (sign & ~leading)) << 1);
  const uint64_t han_letter = all_letters & w.han, han_sign = all_signs & w.han;
  starts |= (han_letter & ~(han_letter << 1)) | (han_sign & ~(han_sign << 1));
  starts |= every_third(number, number & ~(number << 1));
  starts = certain_before_last_spaces(w, spaces, starts);
  return certain(w, starts, (number & w.high) | ~(all_letters | all_signs | number | w.space));
}

/// Every U+0020, or the first of a run of them.
template <bool kRuns>
LLMCORE_INLINE Starts blank_starts(const uint8_t* p) {
  const uint64_t blank = bits_equal(load_u8(p), ' ');
  return {(kRuns ? blank & ~(blank << 1) : blank) & ~uint64_t{1}, false};
}

template <llmcore::WindowPattern kPattern>
LLMCORE_INLINE Starts starts_of(const uint8_t* p, const WindowArgs& a) {
  switch (kPattern) {
    case llmcore::kWindowSpaceRuns:
      return blank_starts<true>(p);
    case llmcore::kWindowSpaceEach:
      return blank_starts<false>(p);
    case llmcore::kWindowGpt2:
      return gpt2_starts(classify(p, a), p);
    case llmcore::kWindowCl100k:
      return cl100k_starts<3>(classify(p, a), p);
    case llmcore::kWindowQwen2:
      return cl100k_starts<1>(classify(p, a), p);
    case llmcore::kWindowQwen35:
      return cl100k_starts<1, true>(classify(p, a), p);
    case llmcore::kWindowDeepSeek:
      return deepseek_starts(classify(p, a));
    case llmcore::kWindowTekken:
      return o200k_starts<1, false>(classify(p, a), p);
    default:
      return o200k_starts<3, true>(classify(p, a), p);
  }
}

template <llmcore::WindowPattern kPattern>
void window_kernel(WindowArgs& a) noexcept {
  const uint8_t* p = a.at;
  uint32_t* out = a.ends + a.count;
  const uint32_t* const last = a.ends + a.max_ends - kWindowBytes;
  a.resume = nullptr;
  while (out <= last && a.resume == nullptr) {
    if (a.end - p <= kWindowBytes) {
      a.resume = a.end;
      break;
    }
    const Starts starts = starts_of<kPattern>(p, a);
    out = put_positions(starts.bits, static_cast<uint32_t>(p - a.begin), out);
    if (starts.bits != 0) p += highest_bit(starts.bits);
    if (starts.slow_text) {
      a.resume = a.end - p > kWindowBytes ? p + kWindowBytes : p + 1;
    } else if (starts.bits == 0) {
      a.resume = p + 1;
    }
  }
  if (a.resume == nullptr) a.resume = p;
  a.at = p;
  a.count = static_cast<size_t>(out - a.ends);
}

}  // namespace

/// Those of WindowPattern, in its order.
#define LLMCORE_WINDOWS                                                               \
  {window_kernel<llmcore::kWindowGpt2>,     window_kernel<llmcore::kWindowCl100k>,    \
   window_kernel<llmcore::kWindowQwen2>,    window_kernel<llmcore::kWindowO200k>,     \
   window_kernel<llmcore::kWindowTekken>,   window_kernel<llmcore::kWindowQwen35>,    \
   window_kernel<llmcore::kWindowDeepSeek>, window_kernel<llmcore::kWindowSpaceRuns>, \
   window_kernel<llmcore::kWindowSpaceEach>}
