#pragma once
// Models other than byte-pair encoding proper: Unigram (the most probable cut), WordPiece (longest match first),
// WordLevel (whole words), and byte-pair encoding whose tokens are marked at the ends of words.

#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/merger.h"
#include "tokenizer/trie.h"

namespace llmcore {

enum class ModelKind : uint8_t { kBpe = 0, kUnigram = 1, kWordPiece = 2, kWordLevel = 3, kAffixBpe = 4, kCount = 5 };

/// A vocabulary as flat arrays, by id.
struct ModelSpec {
  ModelKind kind = ModelKind::kBpe;
  std::vector<char> text;  // what each id matches
  std::vector<uint32_t> text_ends;
  std::vector<uint8_t> usable;     // 1: takes part; 2: also given by the user, so that Unigram always prefers it
  std::vector<double> scores;      // Unigram
  std::vector<uint32_t> byte_ids;  // 256, or empty without byte fallback
  std::vector<uint32_t> merges;    // triples of ids, for kAffixBpe
  uint32_t unk_id = kNoId;
  bool fuse_unk = false;
  bool single_precision = false;  // SentencePiece adds up scores as float
  double min_score = 0.0;         // the lowest of all scores
  uint32_t max_characters = 100;  // of a word, for WordPiece
  std::string prefix, suffix;     // of tokens within a word, and at its end
};

class PieceModel {
 public:
  virtual ~PieceModel() = default;
  /// Appends the tokens of one piece; their lengths, in bytes, add up to the piece's.
  virtual void encode(std::string_view piece, std::vector<Symbol>& out) const = 0;
};

/// Null for kBpe. Throws TokenizerError or LimitError when the arrays contradict each other.
std::unique_ptr<PieceModel> make_model(ModelSpec spec);

/// Byte-pair merging that leaves out each merge with the probability `rate` when its turn comes, and takes it up again
/// after the next that is made (BPE dropout).
void merge_with_dropout(const PairTable& pairs, double rate, std::mt19937_64& random, std::vector<Symbol>& symbols);

}  // namespace llmcore
