#pragma once
// Sets of code points, as regular expressions name them: properties, scripts, classes and ranges.

#include <cstdint>
#include <string_view>
#include <vector>

namespace llmcore {

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

/// The set of a property by its name in any of the usual spellings; `posix`: between [: and :]. Throws TokenizerError
/// for an unknown one.
CodeSet property_set(std::string_view name, bool posix = false);
CodeSet space_set();
/// \w: Oniguruma's has the superscripts and fractions of Latin-1, but not between brackets; Rust's has the joiners.
enum class Words : uint8_t { kOniguruma, kOnigurumaInBrackets, kRust };
CodeSet word_set(Words words);
bool is_word(uint32_t code, Words words);

}  // namespace llmcore
