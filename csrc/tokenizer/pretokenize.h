#pragma once
// Pre-tokenisers: the parts of a tokenizer.json's "pre_tokenizer", each as Hugging Face tokenizers has it. They cut
// pieces one after the other, and may change, add to or drop what they cut. Where all of a vocabulary's parts are ones
// that scan.h knows, that is used instead and nothing is copied.

#include <memory>
#include <string>
#include <vector>

#include "tokenizer/mapped_text.h"
#include "tokenizer/regex.h"
#include "tokenizer/scan.h"

namespace llmcore {

enum class PreTokenizerKind : uint8_t {
  kScan = 0,        // one of the known patterns
  kSplitText = 1,   // at a string
  kSplitRegex = 2,  // at what an expression matches
  kWhitespace = 3,  // \w+|[^\w\s]+
  kWhitespaceSplit = 4,
  kPunctuation = 5,
  kDigits = 6,
  kMetaspace = 7,
  kBert = 8,
  kUnicodeScripts = 9,
  kFixedLength = 10,
  kByteLevel = 11,
  kCount = 12
};

/// What happens to what a pattern matches.
enum class SplitBehavior : uint8_t {
  kRemoved = 0,
  kIsolated = 1,
  kMergedWithPrevious = 2,
  kMergedWithNext = 3,
  kContiguous = 4
};

enum PreTokenizerFlags : uint32_t {
  kByteLevelPrefix = 1,
  kByteLevelSpell = 2,   // bytes become characters of the byte alphabet
  kMetaspaceAlways = 1,  // a mark before every piece
  kMetaspaceFirst = 2,   // a mark before the piece that begins the text
  kMetaspaceSplit = 4
};

struct PreTokenizerSpec {
  PreTokenizerKind kind;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool inverted = false;
  RegexDialect dialect = RegexDialect::kOniguruma;
  uint32_t flags = 0;
  uint32_t number = 0;  // the pattern's code, or the length of FixedLength
  std::string text;     // the string, expression or mark
};

/// A text cut into pieces that cover it: piece i ends at `ends[i]`.
struct Pieces {
  MappedText text;
  std::vector<uint32_t> ends;
};

class PreTokenizer {
 public:
  /// Throws TokenizerError for an expression that isn't one.
  explicit PreTokenizer(PreTokenizerSpec spec);
  void apply(Pieces& pieces) const;

 private:
  struct Cut {
    size_t begin, end;
    bool match;
  };
  void find(std::string_view piece, std::vector<Regex::Match>& matches, std::vector<Cut>& cuts) const;
  void rewrite(Pieces& pieces) const;
  void cut(Pieces& pieces) const;

  PreTokenizerSpec spec_;
  std::shared_ptr<const Regex> regex_;
};

}  // namespace llmcore
