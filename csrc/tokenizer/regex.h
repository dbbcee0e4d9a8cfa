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

#include "tokenizer/code_set.h"

namespace llmcore {

enum class RegexDialect : uint8_t {
  kOniguruma = 0,  // ^ and $ are those of lines; {n,m}+ repeats the repetition
  kFancy = 1       // ^ and $ are those of the text; {n,m}+ is possessive
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
  using Bytes = std::array<bool, 256>;
  /// Bytes that what a kSplit goes on with may begin with, and its other choice.
  struct Starts {
    Bytes first, other;
  };

  std::vector<Inst> program_;
  std::vector<CodeSet> sets_;
  int32_t slots_ = 0;
  std::vector<Starts> splits_;  // by a kSplit's c; those that tell something
  Bytes starts_{};              // bytes that a match may begin with
  bool may_be_empty_ = false;
  Words words_ = Words::kOniguruma;
};

}  // namespace llmcore
