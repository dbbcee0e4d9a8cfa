// What characters begin as (class Bpe; character_starts.h says why that is exact).

#include "tokenizer/character_starts.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/bpe.h"
#include "tokenizer/mapped_text.h"

namespace llmcore {
namespace {

bool continues(char c) noexcept { return (static_cast<uint8_t>(c) & 0xC0) == 0x80; }

/// Calls `use(code, its UTF-8)` for every character of two or three bytes.
template <class Use>
void for_characters(Use&& use) {
  std::string text;
  for (uint32_t code = 0x80; code < CharacterStarts::kCodes; ++code) {
    if (code == 0xD800) code = 0xE000;  // surrogates
    text.clear();
    append_utf8(text, code);
    use(code, std::string_view(text));
  }
}

/// The last character of a token that may stand before a border of characters: kNothing if the token doesn't end at a
/// border, kCut if it ends in the last bytes of a character.
constexpr uint32_t kCut = CharacterStarts::kNothing - 1;
uint32_t last_character(std::string_view text) noexcept {
  for (size_t n = 1; n <= 4 && n <= text.size(); ++n) {
    const uint8_t* const p = reinterpret_cast<const uint8_t*>(text.data() + text.size() - n);
    if (continues(text[text.size() - n])) continue;
    return utf8_length(*p) == n ? decode_utf8(p) : CharacterStarts::kNothing;
  }
  return kCut;
}

}  // namespace

/// Symbols are characters: each begins as its token, or as its bytes' tokens.
void Bpe::index_characters() {
  for_characters([&](uint32_t code, std::string_view text) {
    std::array<Symbol, 3> symbols;
    const uint32_t id = find(text);
    size_t count = 0;
    if (id != kNoId && id != spec_.unk_id) {
      symbols[count++] = {id, static_cast<uint32_t>(text.size())};
    } else {
      for (const char c : text) symbols[count++] = {spec_.byte_ids[static_cast<uint8_t>(c)], 1};
    }
    const auto known = [](const Symbol& s) { return s.id != kNoId; };
    if (std::all_of(symbols.data(), symbols.data() + count, known)) character_starts_.set(code, symbols.data(), count);
  });
}

/// Symbols are bytes: a character begins as what they merge to, where nothing can come before that.
void Bpe::index_merged_characters() {
  // Rules across a border of characters. By id, the lowest rank of one with this symbol on the left, on the right, and
  // on the right after what may be the end of any character.
  struct Rule {
    uint32_t right, rank, before;
  };
  std::vector<Rule> across;
  std::vector<uint32_t> as_left(size(), kNoId), as_right(size(), kNoId), after_any(size(), kNoId);
  for (size_t i = 0; i < rules_.size(); i += 3) {
    const uint32_t left = rules_[i], right = rules_[i + 1];
    const std::string_view left_text = token(left), right_text = token(right), whole = token(rules_[i + 2]);
    const uint32_t rule = pairs_.find(left, right);
    if (rule == PairTable::kNoRule) continue;
    // Where a symbol stands must show in its text.
    const bool joins = whole.starts_with(left_text) && whole.substr(left_text.size()) == right_text;
    if (!joins || left_text.empty() || right_text.empty()) return;
    const uint32_t before = last_character(left_text);
    if (continues(right_text.front()) || before == CharacterStarts::kNothing) continue;
    const uint32_t rank = pairs_.order(rule);
    as_left[left] = std::min(as_left[left], rank);
    as_right[right] = std::min(as_right[right], rank);
    if (before == kCut) after_any[right] = std::min(after_any[right], rank);
    across.push_back({right, rank, before});
  }
  // By id of a symbol that begins characters: the highest rank of a merge inside of one of them, and which they are,
  // last bytes aside.
  std::vector<uint32_t> highest_inside(size(), 0);
  std::vector<std::vector<uint32_t>> begun(size());
  for_characters([&](uint32_t code, std::string_view text) {
    std::array<Symbol, 3> symbols{};
    std::array<uint32_t, 3> firsts;  // the first symbol, after 0, 1, 2 merges
    size_t count = 0, merges = 0;
    for (const char c : text) {
      symbols[count] = {byte_symbols_[static_cast<uint8_t>(c)], 1};
      if (symbols[count].id == kNoId || token(symbols[count].id) != std::string_view(&c, 1)) return;
      ++count;
    }
    const std::array<Symbol, 3> bytes = symbols;
    uint32_t highest = 0, outside = kNoId;
    while (true) {
      firsts[merges] = symbols[0].id;
      outside = std::min({outside, after_any[symbols[0].id], as_left[symbols[count - 1].id]});
      size_t best = 0;
      uint32_t best_rule = PairTable::kNoRule;
      for (size_t i = 0; i + 1 < count; ++i) {
        const uint32_t rule = pairs_.find(symbols[i].id, symbols[i + 1].id);
        if (rule == PairTable::kNoRule) continue;
        if (best_rule != PairTable::kNoRule && pairs_.order(rule) >= pairs_.order(best_rule)) continue;
        best = i;
        best_rule = rule;
      }
      if (best_rule == PairTable::kNoRule) break;
      highest = std::max(highest, pairs_.order(best_rule));
      symbols[best] = {pairs_.result(best_rule), symbols[best].len + symbols[best + 1].len};
      std::copy(symbols.begin() + best + 2, symbols.begin() + count, symbols.begin() + best + 1);
      --count;
      ++merges;
    }
    if (merges == 0 || highest >= outside) return character_starts_.set(code, bytes.data(), text.size());
    character_starts_.set(code, symbols.data(), count);
    for (size_t i = 0; i <= merges; ++i) {
      const uint32_t first = firsts[i];
      if (as_right[first] > highest) continue;
      highest_inside[first] = std::max(highest_inside[first], highest);
      if (begun[first].empty() || begun[first].back() >> 6 != code >> 6) begun[first].push_back(code);
    }
  });
  for (const Rule& rule : across) {
    if (rule.rank > highest_inside[rule.right]) continue;
    for (const uint32_t code : begun[rule.right]) character_starts_.join(rule.before, code);
  }
}

}  // namespace llmcore
