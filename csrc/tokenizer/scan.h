#pragma once
// Pre-tokenisation: hand-written scanners, one per known pattern. Each is the exact equal of a regular expression
// (quoted at its function) over valid UTF-8, runs in linear time without recursion, and covers the text completely.
// The common patterns find most pieces 64 bytes at a time (kernels/generic/windows.h); the scalar scanners say what is
// right.

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace llmcore {

/// Pieces of a batch of one stage, at most.
constexpr size_t kPieceBatch = 1024;

enum class Pattern : uint8_t {
  kNone = 0,         // the text is one piece
  kGpt2 = 1,         // GPT-2, r50k, p50k
  kCl100k = 2,       // tiktoken's cl100k: a run of white space at the very end is one piece
  kLlama3 = 3,       // Llama-3 and the Hugging Face form of cl100k
  kQwen2 = 4,        // as Llama-3 with single digits
  kO200k = 5,        // o200k: words split at changes to upper case
  kDigitRuns = 6,    // runs of \p{N} alone
  kDigitsEach = 7,   // every \p{N} alone
  kPunctuation = 8,  // runs of punctuation alone
  kThreeDigits = 9,  // [0-9][0-9][0-9] alone
  kSpaceRuns = 10,   // before every run of U+0020: exact for vocabularies in which no token has text before a space
  kSpaceEach = 11,   // before every U+0020 (Metaspace with split)
  kByteDigitRuns =
      12,  // runs of digits of GPT-2's byte alphabet: 0-9 and the bytes it shows as superscripts and fractions
  kByteDigitsEach = 13,
  kTekken = 14,    // Mistral's: as o200k with single digits, without contractions
  kQwen35 = 15,    // as Qwen2 with marks in words
  kDeepSeek = 16,  // V3 and R1: three expressions one after the other
  kCount = 17
};

/// The pieces of a text, a batch at a time, so that a long text needs no list of them all.
class PieceBatch {
 public:
  /// Fills `ends` with the ends of the first pieces of `text` (shorter than 4 GiB), at least one if there is text,
  /// after the stages one after the other, each splitting the pieces of the one before. The next batch begins at the
  /// last end.
  void next(const std::vector<Pattern>& stages, std::string_view text);

  std::vector<uint32_t> ends;

 private:
  std::vector<uint32_t> outer_;
};

/// A place from `at` on where a piece begins whatever comes before and after, so that the two sides can be cut into
/// pieces apart; the end of the text if there is none. It is searched for as far as `limit`.
size_t find_seam(const std::vector<Pattern>& stages, std::string_view text, size_t at, size_t limit);
/// Ends of all pieces of `text`.
void split_pieces(const std::vector<Pattern>& stages, std::string_view text, std::vector<size_t>& ends);
/// The same for one pattern, by its scalar scanner alone: what windows are tested against.
void split_pieces_one_by_one(Pattern pattern, std::string_view text, std::vector<size_t>& ends);

}  // namespace llmcore
