#include "tokenizer/normalize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "tokenizer/unicode_data.h"

namespace llmcore {
namespace {

constexpr uint32_t kHangulBase = 0xAC00, kLeadBase = 0x1100, kVowelBase = 0x1161, kTailBase = 0x11A7;
constexpr uint32_t kLeads = 19, kVowels = 21, kTails = 28;

/// The end of the ASCII that begins at `at`.
size_t ascii_end(std::string_view text, size_t at) {
  static_assert(std::endian::native == std::endian::little);
  for (; at + 8 <= text.size(); at += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    const uint64_t beyond = word & 0x8080808080808080u;
    if (beyond != 0) return at + static_cast<size_t>(std::countr_zero(beyond)) / 8;
  }
  while (at < text.size() && static_cast<uint8_t>(text[at]) < 0x80) ++at;
  return at;
}

bool is_ascii(std::string_view text) { return ascii_end(text, 0) == text.size(); }

bool is_space(uint32_t code) { return (class_of(code) & kSpace) != 0; }

struct MappedCode {
  uint32_t code;
  uint32_t combining;
  Origin origin;
};

/// Calls `change(code, origin, out)` for each character; what it pushes is the new text.
template <class Change>
void rewrite(MappedText& text, Change change) {
  MappedText out = text.like();
  const uint8_t* p = text.bytes();
  for (size_t i = 0; i < text.text.size(); i += utf8_length(p[i])) change(decode_utf8(p + i), text.origin(i), out);
  text = std::move(out);
}

/// What a code point becomes under `map`: `count` code points, or 0 when it stays.
struct Mapping {
  const uint32_t* codes;
  size_t count;
};
Mapping mapping(const CodeMap& map, uint32_t code) {
  const uint32_t* last = map.codes + map.count;
  const uint32_t* found = std::lower_bound(map.codes, last, code);
  if (found == last || *found != code) return {nullptr, 0};
  const auto i = static_cast<size_t>(found - map.codes);
  const size_t begin = i ? map.ends[i - 1] : 0;
  return {map.text + begin, map.ends[i] - begin};
}

void decompose(const CodeMap& map, uint32_t code, Origin origin, std::vector<MappedCode>& out) {
  const auto push = [&](uint32_t c) { out.push_back({c, combining_class(c), origin}); };
  if (code < 0x80) return push(code);
  const uint32_t syllable = code - kHangulBase;
  if (syllable < kLeads * kVowels * kTails) {
    push(kLeadBase + syllable / (kVowels * kTails));
    push(kVowelBase + syllable / kTails % kVowels);
    if (syllable % kTails) push(kTailBase + syllable % kTails);
    return;
  }
  const Mapping to = mapping(map, code);
  if (to.count == 0) push(code);
  for (size_t i = 0; i < to.count; ++i) push(to.codes[i]);
}

/// What two characters make together, 0 when they stay apart.
uint32_t compose(uint32_t first, uint32_t second) {
  const uint32_t lead = first - kLeadBase, vowel = second - kVowelBase, syllable = first - kHangulBase;
  if (lead < kLeads && vowel < kVowels) return kHangulBase + (lead * kVowels + vowel) * kTails;
  if (syllable < kLeads * kVowels * kTails && syllable % kTails == 0 && second - kTailBase - 1 < kTails - 1) {
    return first + (second - kTailBase);
  }
  const Composition* last = kCompositions + kCompositionCount;
  const Composition* found = std::lower_bound(kCompositions, last, 0, [&](const Composition& c, int) {
    return c.first != first ? c.first < first : c.second < second;
  });
  return found != last && found->first == first && found->second == second ? found->whole : 0;
}

void compose_all(std::vector<MappedCode>& codes) {
  size_t starter = codes.size(), kept = 0;
  uint32_t last_class = 0;
  for (size_t i = 0; i < codes.size(); ++i) {
    MappedCode c = codes[i];
    const bool adjacent = starter != codes.size() && kept == starter + 1;
    if (starter != codes.size() && (adjacent || last_class < c.combining)) {
      MappedCode& first = codes[starter];
      if (const uint32_t whole = compose(first.code, c.code)) {
        first.code = whole;
        first.origin = {std::min(first.origin.begin, c.origin.begin), std::max(first.origin.end, c.origin.end)};
        continue;
      }
    }
    if (c.combining == 0) starter = kept;
    last_class = c.combining;
    codes[kept++] = c;
  }
  codes.resize(kept);
}

void unicode_form(MappedText& text, const CodeMap& map, bool composed) {
  std::vector<MappedCode> codes;
  codes.reserve(text.text.size());
  const uint8_t* p = text.bytes();
  for (size_t i = 0; i < text.text.size(); i += utf8_length(p[i]))
    decompose(map, decode_utf8(p + i), text.origin(i), codes);
  for (size_t i = 0; i < codes.size();) {
    size_t end = i;
    while (end < codes.size() && codes[end].combining != 0) ++end;
    if (end > i + 1) {
      std::stable_sort(codes.begin() + static_cast<std::ptrdiff_t>(i), codes.begin() + static_cast<std::ptrdiff_t>(end),
                       [](const MappedCode& a, const MappedCode& b) { return a.combining < b.combining; });
    }
    i = end + 1;
  }
  if (composed) compose_all(codes);
  MappedText out = text.like();
  for (const MappedCode& c : codes) out.push(c.code, c.origin);
  text = std::move(out);
}

void lower_case(uint32_t code, Origin origin, MappedText& out) {
  if (code < 0x80) return out.push(code >= 'A' && code <= 'Z' ? code + 32 : code, origin);
  const Mapping to = mapping(kLowerCase, code);
  if (to.count == 0) out.push(code, origin);
  for (size_t i = 0; i < to.count; ++i) out.push(to.codes[i], origin);
}

bool nmt_removes(uint32_t code) {
  return (code >= 1 && code <= 8) || code == 0xB || (code >= 0xE && code <= 0x1F) || code == 0x7F || code == 0x8F ||
         code == 0x9F;
}
bool nmt_spaces(uint32_t code) {
  return code == 9 || code == 0xA || code == 0xC || code == 0xD || code == 0x1680 ||
         (code >= 0x200B && code <= 0x200F) || code == 0x2028 || code == 0x2029 || code == 0x2581 || code == 0xFEFF ||
         code == 0xFFFD;
}

void check_growth(size_t size, size_t most) {
  if (size > most) throw LimitError("normalizer: makes a text of more than " + std::to_string(most) + " bytes");
}

void strip(MappedText& text, bool left, bool right) {
  size_t begin = 0, end = text.text.size();
  const uint8_t* p = text.bytes();
  while (left && begin < end && is_space(decode_utf8(p + begin))) begin += utf8_length(p[begin]);
  while (right && end > begin) {
    size_t last = end - 1;
    while ((p[last] & 0xC0) == 0x80) --last;
    if (!is_space(decode_utf8(p + last))) break;
    end = last;
  }
  if (begin > 0 || end < text.text.size()) text = MappedText(text, begin, end);
}

/// Where in a syllable of Hangul a character stands: bits of what may follow it, and of what it is.
enum Hangul : uint8_t { kNoHangul = 0, kLead = 1, kVowel = 2, kTail = 4, kLeadVowel = 8, kWhole = 16 };
Hangul hangul_of(uint32_t code) {
  if (code < 0x1100) return kNoHangul;
  if (code <= 0x115F || (code >= 0xA960 && code <= 0xA97C)) return kLead;
  if (code <= 0x11A7 || (code >= 0xD7B0 && code <= 0xD7C6)) return kVowel;
  if (code <= 0x11FF || (code >= 0xD7CB && code <= 0xD7FB)) return kTail;
  if (code < kHangulBase || code >= kHangulBase + kLeads * kVowels * kTails) return kNoHangul;
  return (code - kHangulBase) % kTails == 0 ? kLeadVowel : kWhole;
}
bool same_syllable(Hangul left, Hangul right) {
  switch (left) {
    case kLead:
      return right == kLead || right == kVowel || right == kLeadVowel || right == kWhole;
    case kVowel:
    case kLeadVowel:
      return right == kVowel || right == kTail;
    case kTail:
    case kWhole:
      return right == kTail;
    default:
      return false;
  }
}

/// The end of the extended grapheme cluster that begins at `begin`. Pairs of regional indicators count as two: each
/// has four bytes, and only clusters below six are looked at as a whole.
size_t cluster_end(const uint8_t* p, size_t begin, size_t size) {
  uint32_t code = decode_utf8(p + begin);
  size_t at = begin + utf8_length(p[begin]);
  GraphemeBreak last = grapheme_break_of(code);
  Hangul syllable = hangul_of(code);
  bool pictograph = last == GraphemeBreak::kPictograph;
  if (last == GraphemeBreak::kControl) return code == '\r' && at < size && p[at] == '\n' ? at + 1 : at;
  while (at < size) {
    code = decode_utf8(p + at);
    const GraphemeBreak next = grapheme_break_of(code);
    const Hangul next_syllable = hangul_of(code);
    const bool extends = next == GraphemeBreak::kExtend || next == GraphemeBreak::kJoiner;
    const bool joined = pictograph && last == GraphemeBreak::kJoiner && next == GraphemeBreak::kPictograph;
    const bool prepended = last == GraphemeBreak::kPrepend && next != GraphemeBreak::kControl;
    if (!extends && !joined && !prepended && !same_syllable(syllable, next_syllable)) break;
    if (!extends) pictograph = next == GraphemeBreak::kPictograph;
    last = next;
    syllable = next_syllable;
    at += utf8_length(p[at]);
  }
  return at;
}

}  // namespace

CharacterMap::CharacterMap(std::string_view blob) {
  uint32_t size = 0;
  if (blob.size() >= 4) std::memcpy(&size, blob.data(), 4);
  if (blob.size() < 4 || size % 4 != 0 || size == 0 || size > blob.size() - 4) {
    throw TokenizerError("a character map of " + std::to_string(blob.size()) + " bytes isn't one of SentencePiece");
  }
  trie_.resize(size / 4);
  std::memcpy(trie_.data(), blob.data() + 4, size);
  replacements_ = blob.substr(4 + size);
  replacements_.push_back('\0');
  for (uint8_t c = 1; c < 128; ++c) spared_[c] = spares_before_ascii(c);
}

bool CharacterMap::spares_before_ascii(uint8_t c) const noexcept {
  size_t after = offset(unit(0)) ^ c;
  const uint32_t node = unit(after);
  if ((node & kLabel) != c) return true;
  if (node >> 8 & 1) return false;
  after ^= offset(node);
  for (uint8_t next = 1; next < 128; ++next) {
    if ((unit(after ^ next) & kLabel) == next) return false;
  }
  return true;
}

// The units of darts-clone: 8 bits of label, a bit that a value follows, and where the children are.
template <class Found>
void CharacterMap::walk(std::string_view text, Found found) const noexcept {
  size_t at = offset(unit(0));
  for (size_t i = 0; i < text.size() && text[i] != '\0'; ++i) {
    const auto byte = static_cast<uint8_t>(text[i]);
    at ^= byte;
    const uint32_t node = unit(at);
    if ((node & kLabel) != byte) return;
    at ^= offset(node);
    if ((node >> 8 & 1) && !found(i + 1, unit(at) & 0x7FFFFFFFu)) return;
  }
}

std::string_view CharacterMap::longest(std::string_view text, size_t& length) const noexcept {
  size_t place = 0;
  length = 0;
  walk(text, [&](size_t prefix, uint32_t value) {
    length = prefix;
    place = value;
    return true;
  });
  if (length == 0 || place >= replacements_.size()) return {};
  return replacements_.data() + place;
}

size_t CharacterMap::spared_end(std::string_view text, size_t at, char stop) const noexcept {
  const size_t begin = at;
  while (at < text.size() && static_cast<uint8_t>(text[at]) < 0x80 && text[at] != stop &&
         spared_[static_cast<uint8_t>(text[at])]) {
    ++at;
  }
  return at > begin && at < text.size() && static_cast<uint8_t>(text[at]) >= 0x80 ? at - 1 : at;
}

const char* CharacterMap::first(std::string_view text) const noexcept {
  size_t place = replacements_.size();
  walk(text, [&](size_t, uint32_t value) {
    place = value;
    return false;
  });
  return place < replacements_.size() ? replacements_.data() + place : nullptr;
}

Normalizer::Normalizer(NormalizerSpec spec) : spec_(std::move(spec)) {
  check_argument(spec_.kind < NormalizerKind::kCount, "tokenizer: unknown normaliser code");
  if (spec_.kind == NormalizerKind::kReplaceRegex) {
    regex_ = std::make_shared<Regex>(spec_.first, RegexDialect::kOniguruma);
  }
  const bool mapped = spec_.kind == NormalizerKind::kPrecompiled || spec_.kind == NormalizerKind::kSentencePiece;
  if (mapped && !spec_.first.empty()) map_ = std::make_shared<CharacterMap>(spec_.first);
  for (size_t c = 0; spec_.kind == NormalizerKind::kBert && c < bert_ascii_.size(); ++c) {
    MappedText one(std::string(1, static_cast<char>(c)), 0, false);
    bert_characters(one);
    bert_ascii_[c] = one.text.empty() ? int8_t{-1} : static_cast<int8_t>(one.text[0]);
  }
  std::vector<Trie::Key> spared;
  const bool spares = spec_.kind == NormalizerKind::kSentencePiece;
  for (size_t at = 0, end = 0; spares && (end = spec_.second.find('\0', at)) != spec_.second.npos; at = end + 1) {
    spared.push_back({std::string_view(spec_.second).substr(at, end - at), 0});
  }
  if (!spared.empty()) spared_ = std::make_shared<Trie>(std::move(spared));
}

bool Normalizer::leaves(std::string_view text) const noexcept {
  switch (spec_.kind) {
    case NormalizerKind::kNfc: {
      const auto* p = reinterpret_cast<const uint8_t*>(text.data());
      for (size_t i = ascii_end(text, 0); i < text.size(); i = ascii_end(text, i + utf8_length(p[i]))) {
        if (traits_of(decode_utf8(p + i)) & kNotNfc) return false;
      }
      return true;
    }
    case NormalizerKind::kNfd:
    case NormalizerKind::kNfkc:
    case NormalizerKind::kNfkd:
    case NormalizerKind::kStripAccents:
      return is_ascii(text);
    case NormalizerKind::kReplace:
      return spec_.first.empty() || text.find(spec_.first) == text.npos;
    default:
      return text.empty();
  }
}

void Normalizer::apply(MappedText& text, size_t most) const {
  if (leaves(text.text)) return;
  change(text, most);
  check_growth(text.text.size(), most);
}

void Normalizer::change(MappedText& text, size_t most) const {
  switch (spec_.kind) {
    case NormalizerKind::kNfc:
      return unicode_form(text, kCanonical, true);
    case NormalizerKind::kNfd:
      return unicode_form(text, kCanonical, false);
    case NormalizerKind::kNfkc:
      return unicode_form(text, kCompatible, true);
    case NormalizerKind::kNfkd:
      return unicode_form(text, kCompatible, false);
    case NormalizerKind::kLowercase:
      return rewrite(text, lower_case);
    case NormalizerKind::kStripAccents:
      return rewrite(text, [](uint32_t code, Origin origin, MappedText& out) {
        if (!(traits_of(code) & kCombiningMark)) out.push(code, origin);
      });
    case NormalizerKind::kStrip:
      return strip(text, spec_.flags & kStripLeft, spec_.flags & kStripRight);
    case NormalizerKind::kNmt:
      return rewrite(text, [](uint32_t code, Origin origin, MappedText& out) {
        if (!nmt_removes(code)) out.push(nmt_spaces(code) ? ' ' : code, origin);
      });
    case NormalizerKind::kPrecompiled:
      return precompiled(text);
    case NormalizerKind::kReplace: {
      std::vector<Regex::Match> matches;
      for (size_t at = text.text.find(spec_.first); at != text.text.npos;) {
        matches.push_back({at, at + spec_.first.size()});
        at = text.text.find(spec_.first, matches.back().end);
      }
      return replace(text, matches, most);
    }
    case NormalizerKind::kReplaceRegex: {
      std::vector<Regex::Match> matches;
      regex_->find_all(text.text, matches);
      return replace(text, matches, most);
    }
    case NormalizerKind::kPrepend: {
      MappedText out = text.like();
      out.push(spec_.first, text.origin(0));
      out.push(text, 0, text.text.size());
      text = std::move(out);
      return;
    }
    case NormalizerKind::kByteLevel:
      return spell_bytes(text);
    case NormalizerKind::kBert:
      return bert(text);
    case NormalizerKind::kSentencePiece:
      return sentencepiece(text);
    case NormalizerKind::kCount:
      return;
  }
}

void Normalizer::replace(MappedText& text, const std::vector<Regex::Match>& matches, size_t most) const {
  if (matches.empty()) return;
  check_growth(spec_.second.size() > most ? most + 1 : spec_.second.size() * matches.size(), most);
  MappedText out = text.like();
  size_t done = 0;
  for (const Regex::Match& m : matches) {
    out.push(text, done, m.begin);
    Origin origin{0, 0};
    if (text.mapped && m.end > m.begin) {
      origin = {text.origins[m.begin].begin, text.origins[m.end - 1].end};
    } else if (text.mapped) {
      const uint32_t at = m.begin < text.text.size() ? text.origins[m.begin].begin : text.origins.back().end;
      origin = {at, at};
    }
    out.push(spec_.second, origin);
    done = m.end;
  }
  out.push(text, done, text.text.size());
  text = std::move(out);
}

/// ASCII by a table, as what stands beside it changes nothing there; the rest in stretches.
void Normalizer::bert(MappedText& text) const {
  constexpr size_t kWorthIt = 16;
  MappedText out = text.like();
  const std::string_view all = text.text;
  for (size_t at = 0; at < all.size();) {
    const size_t plain = ascii_end(all, at);
    for (; at < plain; ++at) {
      const int8_t code = bert_ascii_[static_cast<uint8_t>(all[at])];
      if (code >= 0) out.push(static_cast<uint32_t>(code), text.origin(at));
    }
    size_t end = at, after = at;
    while (after < all.size() && after - end < kWorthIt) {
      end = after;
      while (end < all.size() && static_cast<uint8_t>(all[end]) >= 0x80) ++end;
      after = ascii_end(all, end);
    }
    MappedText rest(text, at, end);
    bert_characters(rest);
    out.push(rest, 0, rest.text.size());
    at = end;
  }
  text = std::move(out);
}

void Normalizer::bert_characters(MappedText& text) const {
  const uint32_t flags = spec_.flags;
  if (flags & kBertClean) {
    rewrite(text, [](uint32_t code, Origin origin, MappedText& out) {
      if (code == 0 || code == 0xFFFD || (traits_of(code) & kBertControl)) return;
      out.push(is_space(code) ? ' ' : code, origin);
    });
  }
  if (flags & kBertChinese) {
    rewrite(text, [](uint32_t code, Origin origin, MappedText& out) {
      const bool apart = (traits_of(code) & kChinese) != 0;
      if (apart) out.push(' ', origin);
      out.push(code, origin);
      if (apart) out.push(' ', origin);
    });
  }
  if ((flags & kBertAccents) && !is_ascii(text.text)) {
    unicode_form(text, kCanonical, false);
    rewrite(text, [](uint32_t code, Origin origin, MappedText& out) {
      if (!(traits_of(code) & kBertAccent)) out.push(code, origin);
    });
  }
  if (flags & kBertLower) rewrite(text, lower_case);
}

void Normalizer::precompiled(MappedText& text) const {
  if (!map_) return;
  MappedText out = text.like();
  const uint8_t* p = text.bytes();
  const std::string_view all = text.text;
  const auto whole = [&](size_t begin, size_t end) {
    return text.mapped ? Origin{text.origins[begin].begin, text.origins[end - 1].end} : Origin{0, 0};
  };
  for (size_t at = 0; at < all.size();) {
    // These are clusters of their own, but for \r.
    if (const size_t plain = map_->spared_end(all, at, '\r'); plain > at) {
      out.push(text, at, plain);
      at = plain;
      continue;
    }
    const size_t end = cluster_end(p, at, all.size());
    const char* changed = end - at < 6 ? map_->first(all.substr(at, end - at)) : nullptr;
    if (changed) {
      out.push(changed, whole(at, end));
      at = end;
    }
    for (; at < end;) {
      const size_t length = utf8_length(p[at]);
      const char* other = map_->first(all.substr(at, length));
      if (other) {
        out.push(other, text.origin(at));
      } else {
        out.push(text, at, at + length);
      }
      at += length;
    }
  }
  text = std::move(out);
}

void Normalizer::sentencepiece(MappedText& text) const {
  const uint8_t* p = text.bytes();
  const std::string_view all = text.text;
  const bool remove_extra = spec_.flags & kSpmRemoveExtra;
  const std::string_view space = spec_.flags & kSpmEscape ? kSpaceMark : " ";
  size_t at = 0, length = 0;
  const auto next = [&]() -> std::string_view {
    length = spared_ ? spared_->longest(all.substr(at)) : 0;
    if (length > 0) return all.substr(at, length);
    const std::string_view changed = map_ ? map_->longest(all.substr(at), length) : std::string_view();
    if (length > 0) return changed;
    length = utf8_length(p[at]);
    return all.substr(at, length);
  };
  while (remove_extra && at < all.size() && next() == " ") at += length;
  MappedText out = text.like();
  if (at == all.size()) {
    text = std::move(out);
    return;
  }
  const auto here = [&](size_t bytes) {
    return text.mapped ? Origin{text.origins[at].begin, text.origins[at + bytes - 1].end} : Origin{0, 0};
  };
  if (spec_.flags & kSpmDummyPrefix) out.push(space, here(1));
  bool after_space = remove_extra;
  for (; at < all.size(); at += length) {
    if (const size_t plain = map_ && !spared_ ? map_->spared_end(all, at, ' ') : at; plain > at) {
      out.push(text, at, plain);
      length = plain - at;
      after_space = false;
      continue;
    }
    std::string_view piece = next();
    while (after_space && piece.starts_with(' ')) piece.remove_prefix(1);
    if (!piece.empty()) {
      after_space = remove_extra && piece.ends_with(' ');
      for (size_t i = 0; i < piece.size(); ++i) out.push(piece[i] == ' ' ? space : piece.substr(i, 1), here(length));
    }
  }
  while (remove_extra && std::string_view(out.text).ends_with(space)) {
    out.text.erase(out.text.size() - space.size());
    if (out.mapped) out.origins.resize(out.text.size());
  }
  text = std::move(out);
}

void normalize(const std::vector<Normalizer>& parts, MappedText& text) {
  const size_t most = 16 * text.text.size() + 1024;
  for (const Normalizer& part : parts) part.apply(text, most);
}

uint32_t byte_character(uint8_t byte) noexcept {
  static const std::array<uint32_t, 256> characters = [] {
    std::array<uint32_t, 256> table{};
    uint32_t spare = 0x100;
    for (uint32_t b = 0; b < 256; ++b) {
      const bool shown = (b >= 0x21 && b < 0x7F) || (b >= 0xA1 && b < 0xAD) || b >= 0xAE;
      table[b] = shown ? b : spare++;
    }
    return table;
  }();
  return characters[byte];
}

void spell_bytes(MappedText& text) {
  MappedText out = text.like();
  for (size_t i = 0; i < text.text.size(); ++i)
    out.push(byte_character(static_cast<uint8_t>(text.text[i])), text.origin(i));
  text = std::move(out);
}

}  // namespace llmcore
