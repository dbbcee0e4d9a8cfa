#pragma once
// Regular expressions for pre-tokenisers and normalisers that have no scanner of their own. Matches what Oniguruma (the
// engine behind tokenizer.json) or fancy-regex (behind tiktoken) match: leftmost, alternatives in order. Work and
// memory are bounded: an expression that backtracks without end is a LimitError, never a hang, and nothing recurses
// over text.

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace llmcore {

enum class RegexDialect : uint8_t {
  kOniguruma = 0,  // ^ and $ are those of lines; {n,m}+ repeats the repetition
  kFancy = 1       // ^ and $ are those of the text; {n,m}+ is possessive
};

/// A set of code points.
class CodeSet {
 public:
  struct Range {
    uint32_t first, last;
  };
  void add(uint32_t first, uint32_t last) { ranges_.push_back({first, last}); }
  void add(const CodeSet& other);
  /// Sorts and joins the ranges; the operations below need it, and leave it so.
  void finish();
  void invert();
  void intersect(const CodeSet& other);
  /// Adds every code point that differs from one in the set by case alone.
  void add_cases();
  /// After the last change: makes `has` ready.
  void index();
  bool has(uint32_t code) const noexcept {
    if (code < 0x10000) return low_[code >> 6] >> (code & 63) & 1;
    return has_high(code);
  }
  const std::vector<Range>& ranges() const noexcept { return ranges_; }

 private:
  bool has_high(uint32_t code) const noexcept;

  std::vector<Range> ranges_;
  std::vector<uint64_t> low_;  // a bit each of the first 65,536 code points
};

class Regex {
 public:
  /// Throws TokenizerError for an expression that isn't one, or has parts that aren't supported (back references,
  /// conditions, calls), LimitError for one that is too large.
  Regex(std::string_view pattern, RegexDialect dialect);

  struct Match {
    size_t begin, end;
  };
  /// All matches of `text` (valid UTF-8) from left to right, none of which overlap; an empty one doesn't follow another
  /// match directly. Throws LimitError when matching takes out of proportion long.
  void find_all(std::string_view text, std::vector<Match>& matches) const;

 private:
  friend class RegexCompiler;
  friend class RegexRun;
  enum class Op : uint8_t { kSet, kSplit, kJump, kAssert, kRepeat, kSub, kMark, kCheck, kMatch };
  struct Inst {
    Op op;
    int32_t a = 0, b = 0, c = 0;
  };

  std::vector<Inst> program_;
  std::vector<CodeSet> sets_;
  int32_t slots_ = 0;
  std::array<bool, 256> starts_{};  // bytes that a match may begin with
  bool may_be_empty_ = false;
};

}  // namespace llmcore
