#include "tokenizer/scan.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "kernels/select.h"
#include "tokenizer/unicode.h"
#include "tokenizer/unicode_data.h"

namespace llmcore {
namespace {

using Byte = const uint8_t*;

/// End of the run of characters for which (class & mask) != 0.
inline Byte run_of(Byte p, Byte end, uint8_t mask) noexcept {
  while (p < end) {
    const Char c = char_at(p);
    if (!(c.cls & mask)) break;
    p += c.len;
  }
  return p;
}

/// End of the run of characters outside of \s, \p{N} and the classes of words.
template <uint8_t kWord = kLetter>
inline Byte run_of_symbols(Byte p, Byte end) noexcept {
  while (p < end) {
    const Char c = char_at(p);
    if (c.cls & (kSpace | kWord | kNumber)) break;
    p += c.len;
  }
  return p;
}

/// A run of white space: where it ends, where its last character begins, and the end of its last \r or \n (or null).
struct SpaceRun {
  Byte end, last, newline_end;
};

inline SpaceRun space_run(Byte p, Byte end) noexcept {
  SpaceRun run{p, p, nullptr};
  while (run.end < end) {
    const Char c = char_at(run.end);
    if (!(c.cls & kSpace)) break;
    run.last = run.end;
    run.end += c.len;
    if (c.cls & kNewline) run.newline_end = run.end;
  }
  return run;
}

/// \s+(?!\S)|\s+
inline Byte end_of_spaces(const SpaceRun& run, Byte begin, Byte end) noexcept {
  return run.end == end || run.last == begin ? run.end : run.last;
}

/// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
inline Byte scan_gpt2(Byte p, Byte end) noexcept {
  if (const int n = contraction(p, end, false)) return p + n;
  Byte q = p;
  Char c = char_at(q);
  if (*p == ' ' && end - p > 1) {
    const Char next = char_at(p + 1);
    if (!(next.cls & kSpace)) {
      q = p + 1;
      c = next;
    }
  }
  if (c.cls & kLetter) return run_of(q + c.len, end, kLetter);
  if (c.cls & kNumber) return run_of(q + c.len, end, kNumber);
  if (c.cls & kSpace) return end_of_spaces(space_run(p, end), p, end);
  return run_of_symbols(q + c.len, end);
}

/// \p{N}{1,max} after the number `c` at `p`.
inline Byte scan_number(Byte p, Byte end, Char c, int max) noexcept {
  p += c.len;
  for (int n = 1; n < max && p < end; ++n) {
    c = char_at(p);
    if (!(c.cls & kNumber)) break;
    p += c.len;
  }
  return p;
}

/// ` ?[^\s\p{L}\p{N}]+[\r\n]*` (and `/` in the last set for o200k), or null.
template <bool kSlash, uint8_t kWord = kLetter>
inline Byte scan_symbols(Byte p, Byte end, Char c) noexcept {
  Byte q = p;
  if (*p == ' ' && end - p > 1) {
    q = p + 1;
    c = char_at(q);
  }
  if (c.cls & (kSpace | kWord | kNumber)) return nullptr;
  q = run_of_symbols<kWord>(q + c.len, end);
  while (q < end && (*q == '\r' || *q == '\n' || (kSlash && *q == '/'))) ++q;
  return q;
}

/// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,kDigits}| ?[^\s\p{L}\p{N}]+[\r\n]*
/// |\s*[\r\n]+|\s+(?!\S)|\s+      and with kTail, before \s*[\r\n]+, tiktoken's |\s++$
/// With marks in kWord, Qwen3.5's: [^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+ and ` ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*`.
template <int kDigits, bool kTail, uint8_t kWord = kLetter>
inline Byte scan_cl100k(Byte p, Byte end) noexcept {
  if (const int n = contraction(p, end, true)) return p + n;
  const Char c = char_at(p);
  if (c.cls & kWord) return run_of(p + c.len, end, kWord);
  if (c.cls & kNumber) return scan_number(p, end, c, kDigits);
  if (!(c.cls & kNewline) && p + c.len < end) {
    const Char next = char_at(p + c.len);
    if (next.cls & kWord) return run_of(p + c.len + next.len, end, kWord);
  }
  if (Byte symbols = scan_symbols<false, kWord>(p, end, c)) return symbols;
  const SpaceRun run = space_run(p, end);
  if (kTail && run.end == end) return end;
  if (run.newline_end) return run.newline_end;
  return end_of_spaces(run, p, end);
}

/// The two sets of o200k: U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and V = [\p{Ll}\p{Lm}\p{Lo}\p{M}].
inline bool in_u(uint8_t cls) noexcept { return (cls & kMark) || ((cls & kLetter) && !(cls & kLower)); }
inline bool in_v(uint8_t cls) noexcept { return (cls & kMark) || ((cls & kLetter) && !(cls & kUpper)); }

/// Ends of U*V+ and of U+V* at `p`, null where there is no match. U*V+ first takes all of U and then gives back up to
/// its last character that is in V as well: what follows that one in the run is not in V, so the match ends there.
struct Word {
  Byte lower, upper;
};

inline Word match_word(Byte p, Byte end) noexcept {
  Byte q = p, last_shared = nullptr;
  while (q < end) {
    const Char c = char_at(q);
    if (!in_u(c.cls)) break;
    q += c.len;
    if (in_v(c.cls)) last_shared = q;
  }
  Byte u_end = q;
  while (q < end) {
    const Char c = char_at(q);
    if (!in_v(c.cls)) break;
    q += c.len;
  }
  if (q > u_end) return {q, u_end > p ? q : nullptr};
  return {last_shared, u_end > p ? u_end : nullptr};
}

/// [^\r\n\p{L}\p{N}]?U*V+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?U+V*(?i:'s|'t|'re|'ve|'m|'ll|'d)?
/// |\p{N}{1,kDigits}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+      of tekken without 's and the like
template <int kDigits, bool kContractions>
inline Byte scan_o200k(Byte p, Byte end) noexcept {
  const Char c = char_at(p);
  if (c.cls & kNumber) return scan_number(p, end, c, kDigits);
  const bool is_letter = c.cls & kLetter;
  const bool may_prefix = !is_letter && !(c.cls & kNewline);
  const Word after = may_prefix && p + c.len < end ? match_word(p + c.len, end) : Word{nullptr, nullptr};
  const Word here = is_letter || (c.cls & kMark) ? match_word(p, end) : Word{nullptr, nullptr};
  for (Byte match : {after.lower, here.lower, after.upper, here.upper}) {
    if (match) return kContractions ? match + contraction(match, end, true) : match;
  }
  if (Byte symbols = scan_symbols<true>(p, end, c)) return symbols;
  const SpaceRun run = space_run(p, end);
  return run.newline_end ? run.newline_end : end_of_spaces(run, p, end);
}

/// Within [\u4e00-\u9fa5\u3040-\u30ff].
inline bool is_han_or_kana(Byte p) noexcept {
  if (*p == 0xE3) return p[1] >= 0x81 && p[1] <= 0x83;
  if (*p == 0xE4) return p[1] >= 0xB8;
  return (*p >= 0xE5 && *p <= 0xE8) || (*p == 0xE9 && (p[1] < 0xBE || (p[1] == 0xBE && p[2] <= 0xA5)));
}

/// \p{N}{1,3}, then [\u4e00-\u9fa5\u3040-\u30ff]+, and then in each of the pieces, of which nothing looks beyond:
/// [!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
/// What no alternative matches is a piece as far as the next match.
inline Byte scan_deepseek(Byte p, Byte end) noexcept {
  constexpr uint8_t kWord = kLetter | kMark;
  const Char c = char_at(p);
  if (c.cls & kNumber) return scan_number(p, end, c, 3);
  const bool apart = is_han_or_kana(p);
  const auto at = [&](Byte q) -> Char {  // of no length beyond the piece
    if (q >= end || is_han_or_kana(q) != apart) return {0, 0};
    const Char found = char_at(q);
    return found.cls & kNumber ? Char{0, 0} : found;
  };
  const auto run = [&](Byte q, uint8_t mask) {
    for (Char next = at(q); next.cls & mask; next = at(q)) q += next.len;
    return q;
  };
  const auto is_plain_letter = [&](Byte q) { return q < end && ((*q | 0x20) >= 'a' && (*q | 0x20) <= 'z'); };
  if (*p < 0x80 && (c.cls & kSign) && is_plain_letter(p + 1)) {
    Byte q = p + 1;
    while (is_plain_letter(q)) ++q;
    return q;
  }
  const Char next = at(p + c.len);
  if ((c.cls & kWord) || (!(c.cls & (kNewline | kSign)) && (next.cls & kWord))) return run(p + c.len, kWord);
  if ((c.cls & kSign) || (*p == ' ' && (next.cls & kSign))) return run(run(p + c.len, kSign), kNewline);
  if (c.cls & kSpace) {
    const SpaceRun spaces = space_run(p, end);
    if (spaces.newline_end) return spaces.newline_end;
    return end_of_spaces(spaces, p, at(spaces.end).len ? end : spaces.end);
  }
  p += c.len;
  for (Char rest = next; rest.len != 0; rest = at(p)) {
    if ((rest.cls & (kWord | kSign | kSpace)) || (at(p + rest.len).cls & kWord)) break;
    p += rest.len;
  }
  return p;
}

/// Runs of what Hugging Face's Punctuation and Digits split off: they know other versions of Unicode than patterns do.
inline Byte scan_trait_runs(Byte p, Byte end, CodeTrait trait, bool each = false) noexcept {
  const auto has_trait = [trait](Byte q) {
    return ((*q < 0x80 ? kTraitBlocks[*q] : traits_of(decode_utf8(q))) & trait) != 0;  // ASCII has the first block
  };
  const bool wanted = has_trait(p);
  p += utf8_length(*p);
  if (wanted && each) return p;
  while (p < end && has_trait(p) == wanted) p += utf8_length(*p);
  return p;
}

/// Digits after the byte alphabet: bytes B2 B3 B9 BC BD BE stand there as ² ³ ¹ ¼ ½ ¾, which are numbers too. Such a
/// stage may cut inside of a character, so only stages that look at bytes may follow it.
inline bool is_byte_digit(uint8_t c) noexcept {
  return (c >= '0' && c <= '9') || c == 0xB2 || c == 0xB3 || c == 0xB9 || (c >= 0xBC && c <= 0xBE);
}

inline Byte scan_byte_digits(Byte p, Byte end, bool each) noexcept {
  const bool digits = is_byte_digit(*p++);
  while (p < end && !(digits && each) && is_byte_digit(*p) == digits) ++p;
  return p;
}

inline Byte scan_three_digits(Byte p, Byte end) noexcept {
  const auto digit = [](uint8_t c) { return c >= '0' && c <= '9'; };
  for (Byte q = p; end - q >= 3; ++q) {
    if (digit(q[0]) && digit(q[1]) && digit(q[2])) return q == p ? p + 3 : q;
  }
  return end;
}

inline Byte scan_space_runs(Byte p, Byte end) noexcept {
  while (p < end && *p == ' ') ++p;
  const void* space = p < end ? std::memchr(p, ' ', static_cast<size_t>(end - p)) : nullptr;
  return space ? static_cast<Byte>(space) : end;
}

inline Byte scan_space_each(Byte p, Byte end) noexcept {
  const void* space = end - p > 1 ? std::memchr(p + 1, ' ', static_cast<size_t>(end - p - 1)) : nullptr;
  return space ? static_cast<Byte>(space) : end;
}

/// The windows that find the pieces of a pattern, if there are any.
std::optional<WindowPattern> window_of(Pattern pattern) {
  switch (pattern) {
    case Pattern::kGpt2:
      return kWindowGpt2;
    case Pattern::kCl100k:
    case Pattern::kLlama3:
      return kWindowCl100k;
    case Pattern::kQwen2:
      return kWindowQwen2;
    case Pattern::kO200k:
      return kWindowO200k;
    case Pattern::kTekken:
      return kWindowTekken;
    case Pattern::kQwen35:
      return kWindowQwen35;
    case Pattern::kDeepSeek:
      return kWindowDeepSeek;
    case Pattern::kSpaceRuns:
      return kWindowSpaceRuns;
    case Pattern::kSpaceEach:
      return kWindowSpaceEach;
    default:
      return std::nullopt;
  }
}

/// Calls `use(scan of one piece)` for the pattern; the switch stands outside of all loops.
template <class Use>
auto with_scanner(Pattern pattern, Use&& use) {
  switch (pattern) {
    case Pattern::kGpt2:
      return use(scan_gpt2);
    case Pattern::kCl100k:
      return use(scan_cl100k<3, true>);
    case Pattern::kLlama3:
      return use(scan_cl100k<3, false>);
    case Pattern::kQwen2:
      return use(scan_cl100k<1, false>);
    case Pattern::kO200k:
      return use(scan_o200k<3, true>);
    case Pattern::kTekken:
      return use(scan_o200k<1, false>);
    case Pattern::kQwen35:
      return use(scan_cl100k<1, false, kLetter | kMark>);
    case Pattern::kDeepSeek:
      return use(scan_deepseek);
    case Pattern::kDigitRuns:
      return use([](Byte a, Byte b) { return scan_trait_runs(a, b, kNumeric); });
    case Pattern::kDigitsEach:
      return use([](Byte a, Byte b) { return scan_trait_runs(a, b, kNumeric, true); });
    case Pattern::kPunctuation:
      return use([](Byte a, Byte b) { return scan_trait_runs(a, b, kBertPunct); });
    case Pattern::kThreeDigits:
      return use(scan_three_digits);
    case Pattern::kSpaceRuns:
      return use(scan_space_runs);
    case Pattern::kSpaceEach:
      return use(scan_space_each);
    case Pattern::kByteDigitRuns:
      return use([](Byte a, Byte b) { return scan_byte_digits(a, b, false); });
    case Pattern::kByteDigitsEach:
      return use([](Byte a, Byte b) { return scan_byte_digits(a, b, true); });
    case Pattern::kNone:
    case Pattern::kCount:
      break;
  }
  return use([](Byte, Byte b) { return b; });
}

/// What WindowArgs asks for.
struct FirstBytes {
  std::array<uint8_t, kFirstBytes> of_two{};
  std::array<uint16_t, kFirstBytes> of_three{};

  FirstBytes() {
    for (uint32_t code = 0x80; code < 0x800; ++code) {
      const uint8_t both[] = {static_cast<uint8_t>(0xC0 | code >> 6), static_cast<uint8_t>(0x80 | (code & 0x3F))};
      of_two[first_bytes_of_two(both)] = class_of(code);
    }
    for (uint32_t code = 0x800; code < 0x10000; code += 64) {
      const uint8_t both[] = {static_cast<uint8_t>(0xE0 | code >> 12), static_cast<uint8_t>(0x80 | (code >> 6 & 0x3F))};
      of_three[first_bytes_of_three(both)] = static_cast<uint16_t>(kClassIndex[code >> 7] * 2 + (code >> 6 & 1));
    }
  }
};
const FirstBytes kFirst;

/// Ends of pieces, counted from `base`, until there are kPieceBatch - 64 of them or more.
size_t next_pieces(Pattern pattern, Byte base, Byte end, uint32_t* ends) noexcept {
  const std::optional<WindowPattern> windows = window_of(pattern);
  return with_scanner(pattern, [&](auto scan) {
    WindowArgs found{kClasses, kFirst.of_two.data(), kFirst.of_three.data(), base, end, ends, kPieceBatch, base, 0,
                     end};
    while (found.at < end && found.count + kWindowBytes <= kPieceBatch) {
      if (windows) kernels().window[*windows](found);
      while (found.at < found.resume && found.count < kPieceBatch) {
        found.at = scan(found.at, end);
        ends[found.count++] = static_cast<uint32_t>(found.at - base);
      }
    }
    return found.count;
  });
}

}  // namespace

void PieceBatch::next(const std::vector<Pattern>& stages, std::string_view text) {
  const Byte base = reinterpret_cast<Byte>(text.data());
  const auto append = [&](size_t stage, Byte from, Byte to) {
    const uint32_t offset = static_cast<uint32_t>(from - base);
    const size_t count = ends.size(), bytes = static_cast<size_t>(to - from);
    ends.resize(count + (bytes <= kWindowBytes ? bytes : kPieceBatch));
    uint32_t* out = ends.data() + count;
    const size_t n = next_pieces(stage < stages.size() ? stages[stage] : Pattern::kNone, from, to, out);
    for (size_t i = 0; i < n; ++i) out[i] += offset;
    ends.resize(count + n);
  };
  ends.clear();
  if (text.empty()) return;
  append(0, base, base + text.size());
  for (size_t s = 1; s < stages.size(); ++s) {
    outer_.swap(ends);
    ends.clear();
    with_scanner(stages[s], [&](auto scan) {
      uint32_t done = 0;
      for (const uint32_t to : outer_) {
        while (done < to) {
          if (to - done > kWindowBytes) {
            append(s, base + done, base + to);
          } else {
            ends.push_back(static_cast<uint32_t>(scan(base + done, base + to) - base));
          }
          done = ends.back();
        }
      }
    });
  }
}

// Where the patterns that have windows begin a piece, whatever stands farther away: at the blank between two letters,
// and those that know words also at a newline, or a sign beyond ASCII, after a letter.
size_t find_seam(const std::vector<Pattern>& stages, std::string_view text, size_t at, size_t limit) {
  const auto cuts_there = [](Pattern pattern) { return window_of(pattern).has_value(); };
  const auto knows_words = [&](Pattern pattern) {
    return cuts_there(pattern) && pattern != Pattern::kSpaceRuns && pattern != Pattern::kSpaceEach;
  };
  if (std::none_of(stages.begin(), stages.end(), cuts_there)) return text.size();
  const bool words = std::any_of(stages.begin(), stages.end(), knows_words);
  const Byte base = reinterpret_cast<Byte>(text.data()), end = base + text.size();
  const auto inner = [](uint8_t byte) { return (byte & 0xC0) == 0x80; };
  Byte p = base + std::max<size_t>(at, 1);
  while (p < end && inner(*p)) ++p;
  if (p >= end) return text.size();
  Byte last = p - 1;
  while (inner(*last)) --last;
  while (p < base + std::min(limit, text.size())) {
    const Char here = char_at(p);
    const Byte next = p + here.len;
    const bool letter = char_at(last).cls & kLetter;
    if (letter && *p == ' ' && next < end && (char_at(next).cls & kLetter)) return static_cast<size_t>(p - base);
    if (words && letter && (*p == '\n' || (*p >= 0x80 && (here.cls & kSign)))) return static_cast<size_t>(p - base);
    last = p;
    p = next;
  }
  return text.size();
}

void split_pieces(const std::vector<Pattern>& stages, std::string_view text, std::vector<size_t>& ends) {
  ends.clear();
  PieceBatch batch;
  for (size_t at = 0; at < text.size();) {
    batch.next(stages, text.substr(at));
    for (const uint32_t e : batch.ends) ends.push_back(at + e);
    at = ends.back();
  }
}

void split_pieces_one_by_one(Pattern pattern, std::string_view text, std::vector<size_t>& ends) {
  const Byte base = reinterpret_cast<Byte>(text.data());
  ends.clear();
  with_scanner(pattern, [&](auto scan) {
    for (Byte p = base; p < base + text.size();) {
      p = scan(p, base + text.size());
      ends.push_back(static_cast<size_t>(p - base));
    }
  });
}

}  // namespace llmcore
