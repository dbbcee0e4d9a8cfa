#include "tokenizer/code_set.h"

#include <algorithm>
#include <string>

#include "base/error.h"
#include "tokenizer/unicode.h"
#include "tokenizer/unicode_data.h"

namespace llmcore {

namespace {

constexpr uint32_t kLastCode = 0x10FFFF;

template <class Test>
CodeSet set_of(Test test) {
  CodeSet set;
  uint32_t first = 0;
  bool inside = false;
  for (uint32_t code = 0; code <= kLastCode + 1; ++code) {
    const bool in = code <= kLastCode && test(code);
    if (in && !inside) first = code;
    if (!in && inside) set.add(first, code - 1);
    inside = in;
  }
  return set;
}

/// The code points of each category, found once.
const CodeSet& category_set(size_t category) {
  static const std::vector<CodeSet> sets = [] {
    std::vector<CodeSet> all(static_cast<size_t>(Category::Cn) + 1);
    uint32_t first = 0;
    Category last = category_of(0);
    for (uint32_t code = 1; code <= kLastCode + 1; ++code) {
      if (code <= kLastCode && category_of(code) == last) continue;
      all[static_cast<size_t>(last)].add(first, code - 1);
      first = code;
      if (code <= kLastCode) last = category_of(code);
    }
    return all;
  }();
  return sets[category];
}

constexpr const char* kCategoryNames[] = {"lu", "ll", "lt", "lm", "lo", "mn", "mc", "me", "nd", "nl",
                                          "no", "pc", "pd", "ps", "pe", "pi", "pf", "po", "sm", "sc",
                                          "sk", "so", "zs", "zl", "zp", "cc", "cf", "cs", "co", "cn"};
struct LongName {
  const char* name;
  const char* categories;  // names of kCategoryNames or their first letters, separated by spaces
};
constexpr LongName kLongNames[] = {{"letter", "l"},
                                   {"mark", "m"},
                                   {"number", "n"},
                                   {"punctuation", "p"},
                                   {"symbol", "s"},
                                   {"separator", "z"},
                                   {"other", "c"},
                                   {"lc", "lu ll lt"},
                                   {"uppercaseletter", "lu"},
                                   {"lowercaseletter", "ll"},
                                   {"titlecaseletter", "lt"},
                                   {"modifierletter", "lm"},
                                   {"otherletter", "lo"},
                                   {"nonspacingmark", "mn"},
                                   {"spacingmark", "mc"},
                                   {"enclosingmark", "me"},
                                   {"decimalnumber", "nd"},
                                   {"letternumber", "nl"},
                                   {"othernumber", "no"},
                                   {"connectorpunctuation", "pc"},
                                   {"dashpunctuation", "pd"},
                                   {"openpunctuation", "ps"},
                                   {"closepunctuation", "pe"},
                                   {"initialpunctuation", "pi"},
                                   {"finalpunctuation", "pf"},
                                   {"otherpunctuation", "po"},
                                   {"mathsymbol", "sm"},
                                   {"currencysymbol", "sc"},
                                   {"modifiersymbol", "sk"},
                                   {"othersymbol", "so"},
                                   {"spaceseparator", "zs"},
                                   {"control", "cc"},
                                   {"format", "cf"},
                                   {"unassigned", "cn"},
                                   {"digit", "nd"},
                                   {"cntrl", "cc"}};

bool add_categories(std::string_view names, CodeSet& set) {
  bool known = false;
  for (size_t i = 0; i <= static_cast<size_t>(Category::Cn); ++i) {
    const std::string_view name = kCategoryNames[i];
    if (names.find(name) != names.npos || (names.size() == 1 && name[0] == names[0])) {
      set.add(category_set(i));
      known = true;
    }
  }
  return known;
}

CodeSet spaces() {
  return set_of([](uint32_t code) { return (class_of(code) & kSpace) != 0; });
}

CodeSet named_ranges(std::string_view name) {
  CodeSet set;
  if (name == "alpha") name = "alphabetic";
  if (name == "lower") name = "lowercase";
  if (name == "upper") name = "uppercase";
  for (const NamedRanges* p = kProperties; p < kProperties + kPropertyCount; ++p) {
    for (size_t i = 0; name == p->name && i < p->count; ++i) set.add(p->ranges[i][0], p->ranges[i][1]);
  }
  return set;
}

}  // namespace

bool is_word(uint32_t code, Words words) {
  const bool rust = traits_of(code) & kRustWord;
  if (words == Words::kRust) return rust;
  const bool latin = code == 0xB2 || code == 0xB3 || code == 0xB9 || (code >= 0xBC && code <= 0xBE);
  return (latin && words == Words::kOniguruma) || (rust && category_of(code) != Category::Cf);
}

CodeSet property_set(std::string_view spelled, bool posix) {
  std::string name;
  for (const char c : spelled) {
    if (c != ' ' && c != '_' && c != '-') name += static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
  }
  const bool inverted = name.starts_with('^');
  if (inverted) name.erase(0, 1);
  for (const std::string_view prefix : {"script=", "sc=", "generalcategory=", "gc="}) {
    if (name.starts_with(prefix)) name.erase(0, prefix.size());
  }
  CodeSet set;
  const auto is_long = [&](const LongName& n) { return name == n.name; };
  const auto* named = std::find_if(std::begin(kLongNames), std::end(kLongNames), is_long);
  bool known = true;
  if (named != std::end(kLongNames)) {
    add_categories(named->categories, set);
  } else if (name == "any") {
    set.add(0, kLastCode);
  } else if (name == "space" || name == "whitespace") {
    set = spaces();
  } else if (name == "alnum") {
    set = named_ranges("alphabetic");
    add_categories("nd", set);
  } else if (name == "punct") {
    add_categories("p", set);
    if (posix) add_categories("s", set);
  } else if (name == "word") {
    set = word_set(posix ? Words::kOnigurumaInBrackets : Words::kOniguruma);
  } else if (name == "ascii") {
    set.add(0, 0x7F);
  } else if (name == "xdigit") {
    set.add('0', '9');
    set.add('A', 'F');
    set.add('a', 'f');
  } else if (name == "blank") {
    add_categories("zs", set);
    set.add('\t', '\t');
  } else if (name == "graph" || name == "print") {
    const bool blanks = name == "print";
    set = set_of([blanks](uint32_t code) {
      const Category c = category_of(code);
      if (c == Category::Zs) return blanks;
      return c != Category::Cc && c != Category::Cn && c != Category::Cs && !(class_of(code) & kSpace);
    });
  } else if (!named_ranges(name).ranges().empty()) {
    set = named_ranges(name);
  } else if (name.size() <= 2 && !name.empty()) {
    known = add_categories(name, set);
  } else {
    const ScriptName* last = kScriptNames + kScriptNameCount;
    const ScriptName* found = std::find_if(kScriptNames, last, [&](const ScriptName& s) { return name == s.name; });
    known = found != last;
    if (known) {
      set = set_of(
          [found](uint32_t code) { return script_of(code) == found->script && category_of(code) != Category::Cn; });
    }
  }
  if (!known) throw TokenizerError("regular expression: unknown property \\p{" + std::string(spelled) + "}");
  set.finish();
  if (inverted) set.invert();
  return set;
}

void CodeSet::add(const CodeSet& other) { ranges_.insert(ranges_.end(), other.ranges_.begin(), other.ranges_.end()); }

void CodeSet::finish() {
  std::sort(ranges_.begin(), ranges_.end(), [](const Range& a, const Range& b) { return a.first < b.first; });
  std::vector<Range> joined;
  for (const Range& r : ranges_) {
    if (!joined.empty() && r.first <= joined.back().last + 1) {
      joined.back().last = std::max(joined.back().last, r.last);
    } else {
      joined.push_back(r);
    }
  }
  ranges_ = std::move(joined);
}

void CodeSet::invert() {
  std::vector<Range> rest;
  uint32_t next = 0;
  for (const Range& r : ranges_) {
    if (r.first > next) rest.push_back({next, r.first - 1});
    next = r.last + 1;
  }
  if (next <= kLastCode) rest.push_back({next, kLastCode});
  ranges_ = std::move(rest);
}

void CodeSet::intersect(const CodeSet& other) {
  CodeSet outside = other;
  outside.invert();
  invert();
  add(outside);
  finish();
  invert();
}

void CodeSet::add_cases() {
  const auto in = [&](uint32_t code) {
    const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), code,
                                        [](uint32_t value, const Range& r) { return value < r.first; });
    return after != ranges_.begin() && code <= (after - 1)->last;
  };
  std::vector<uint32_t> folds;
  for (size_t i = 0; i < kCasePairCount; ++i) {
    const CasePair& pair = kCasePairs[i];
    if (in(pair.code) || in(pair.folded)) folds.push_back(pair.folded);
  }
  std::sort(folds.begin(), folds.end());
  for (const uint32_t fold : folds) add(fold, fold);
  for (size_t i = 0; i < kCasePairCount; ++i) {
    const CasePair& pair = kCasePairs[i];
    if (std::binary_search(folds.begin(), folds.end(), pair.folded)) add(pair.code, pair.code);
  }
  finish();
}

void CodeSet::index() {
  low_.assign(0x10000 / 64, 0);
  for (const Range& r : ranges_) {
    for (uint32_t code = r.first; code <= std::min(r.last, 0xFFFFu); ++code)
      low_[code >> 6] |= uint64_t{1} << (code & 63);
  }
}

bool CodeSet::has_high(uint32_t code) const noexcept {
  const auto after = std::upper_bound(ranges_.begin(), ranges_.end(), code,
                                      [](uint32_t value, const Range& r) { return value < r.first; });
  return after != ranges_.begin() && code <= (after - 1)->last;
}

CodeSet space_set() { return spaces(); }

CodeSet word_set(Words words) {
  return set_of([words](uint32_t code) { return is_word(code, words); });
}

}  // namespace llmcore
