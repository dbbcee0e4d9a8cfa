#pragma once
// Training of vocabularies: count the pieces of a corpus on several threads, then either merge the most frequent pair
// until the vocabulary is full (byte-pair encoding, of bytes or of characters; ids are those of Hugging Face's
// BpeTrainer), or take a large one and drop the tokens that matter least until it fits (Unigram). The result depends on
// the counts alone, so it is the same for any number of threads and any order of the texts.

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer/scan.h"
#include "tokenizer/tables.h"

namespace llmcore {

struct TextHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const noexcept { return hash_text(text); }
};

/// What is split on its own.
enum class TextUnit : uint8_t {
  kWhole = 0,      // each text
  kLines = 1,      // every line with its ending
  kSentences = 2,  // every line without its ending and with a space before it, as SentencePiece has it
};

using PieceCounts = std::unordered_map<std::string, int64_t, TextHash, std::equal_to<>>;

/// Characters in the order of their code points (a space counts as the U+2581 it is written as): the most frequent
/// ones, which make up the share `coverage` of all.
std::vector<std::string> frequent_characters(const PieceCounts& counts, double coverage);

class PieceCounter {
 public:
  explicit PieceCounter(std::vector<Pattern> stages) : stages_(std::move(stages)) {}

  /// Counts the pieces of `texts`.
  void add(const std::vector<std::string_view>& texts, TextUnit unit, int threads);

  const PieceCounts& counts() const noexcept { return counts_; }

 private:
  struct Scratch;
  void count(std::string_view text, TextUnit unit, PieceCounts& counts, Scratch& scratch) const;
  void count_pieces(std::string_view text, PieceCounts& counts, Scratch& scratch) const;

  std::vector<Pattern> stages_;
  PieceCounts counts_;
};

struct TrainOptions {
  size_t vocab_size = 0;
  int64_t min_frequency = 0;
  std::vector<std::string> special;   // take the first ids; no merge may spell one of them
  std::vector<std::string> alphabet;  // what symbols begin as, bytes or characters, in the order of their ids
  bool characters = false;
  bool ties_by_text = false;  // among equal counts: the greatest texts first, else the smallest ids
};

struct TrainResult {
  std::vector<std::string> tokens;  // by id
  std::vector<uint32_t> merges;     // left, right, result
};

using Progress = std::function<void(size_t, size_t)>;

/// `progress(done, total)` is called now and then; what it throws ends the training.
TrainResult train_bpe(const PieceCounts& counts, const TrainOptions& options, const Progress& progress);

struct UnigramOptions {
  size_t size = 0;                    // of the vocabulary, with the alphabet
  std::vector<std::string> alphabet;  // characters that stay in any case
  size_t seeds = 1'000'000;           // candidates to begin with
  size_t max_characters = 16;         // of a token
  int threads = 1;
};

struct ScoredPiece {
  std::string text;
  double score;  // the logarithm of its probability
};

/// Kudo, "Subword Regularization" (2018), section 3.2, as SentencePiece does it: most probable tokens first. Fewer than
/// `size` when there aren't as many that repeat.
std::vector<ScoredPiece> train_unigram(const PieceCounts& counts, const UnigramOptions& options,
                                       const Progress& progress);

}  // namespace llmcore
