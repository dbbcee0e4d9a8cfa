#pragma once
// Normalisers: the parts of a tokenizer.json's "normalizer", each as Hugging Face tokenizers has it, and
// SentencePiece's own. They run one after the other over a stretch of text between added tokens.

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/mapped_text.h"
#include "tokenizer/regex.h"
#include "tokenizer/trie.h"

namespace llmcore {

/// The character map of SentencePiece (a double-array trie and the replacements it points to).
class CharacterMap {
 public:
  /// Throws TokenizerError when `blob` isn't one.
  explicit CharacterMap(std::string_view blob);
  /// The replacement of the longest prefix of `text` that has one; `length` is that prefix, 0 when there is none.
  std::string_view longest(std::string_view text, size_t& length) const noexcept;
  /// The replacement of the shortest prefix of `text` that has one, as Hugging Face's reader takes it; null: none.
  const char* first(std::string_view text) const noexcept;
  /// The end of the ASCII from `at` on that has no replacement, whatever follows; `stop` isn't in it.
  size_t spared_end(std::string_view text, size_t at, char stop) const noexcept;

 private:
  // A unit's label, or the bit of one that is a value.
  static constexpr uint32_t kLabel = 0x800000FF;
  static size_t offset(uint32_t unit) noexcept { return unit >> 10 << ((unit & 0x200) >> 6); }
  uint32_t unit(size_t at) const noexcept { return at < trie_.size() ? trie_[at] : 0; }
  bool spares_before_ascii(uint8_t c) const noexcept;
  template <class Found>
  void walk(std::string_view text, Found found) const noexcept;

  std::vector<uint32_t> trie_;
  std::string replacements_;        // each ends with a zero
  std::array<bool, 128> spared_{};  // no key has this character alone, or with another of ASCII after it
};

enum class NormalizerKind : uint8_t {
  kNfc = 0,
  kNfd = 1,
  kNfkc = 2,
  kNfkd = 3,
  kLowercase = 4,
  kStripAccents = 5,
  kStrip = 6,
  kNmt = 7,
  kPrecompiled = 8,
  kReplace = 9,
  kReplaceRegex = 10,
  kPrepend = 11,
  kByteLevel = 12,
  kBert = 13,
  kSentencePiece = 14,
  kCount = 15
};

struct NormalizerSpec {
  NormalizerKind kind;
  uint32_t flags = 0;         // bits of NormalizerFlags
  std::string first, second;  // what is replaced and by what; the character map, and what it spares (zero-terminated)
};

enum NormalizerFlags : uint32_t {
  kStripLeft = 1,
  kStripRight = 2,
  kBertClean = 1,
  kBertChinese = 2,
  kBertAccents = 4,
  kBertLower = 8,
  kSpmDummyPrefix = 1,
  kSpmRemoveExtra = 2,
  kSpmEscape = 4
};

class Normalizer {
 public:
  /// Throws TokenizerError for an expression or a character map that isn't one.
  explicit Normalizer(NormalizerSpec spec);
  /// Throws LimitError when `text` would become longer than `most` bytes.
  void apply(MappedText& text, size_t most) const;
  /// True when `text` surely stays as it is.
  bool leaves(std::string_view text) const noexcept;

 private:
  void change(MappedText& text, size_t most) const;
  void replace(MappedText& text, const std::vector<Regex::Match>& matches, size_t most) const;
  void bert(MappedText& text) const;
  void bert_characters(MappedText& text) const;
  void precompiled(MappedText& text) const;
  void sentencepiece(MappedText& text) const;

  NormalizerSpec spec_;
  std::shared_ptr<const Regex> regex_;
  std::shared_ptr<const CharacterMap> map_;
  std::shared_ptr<const Trie> spared_;
  std::array<int8_t, 128> bert_ascii_{};  // what BERT's makes of ASCII; -1: nothing
};

/// All of `parts` one after the other. Throws LimitError when the text grows out of proportion.
void normalize(const std::vector<Normalizer>& parts, MappedText& text);

/// The character of GPT-2's byte alphabet that stands for `byte`.
uint32_t byte_character(uint8_t byte) noexcept;
/// Every byte becomes its character of the byte alphabet.
void spell_bytes(MappedText& text);

}  // namespace llmcore
