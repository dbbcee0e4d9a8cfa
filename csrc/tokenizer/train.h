#pragma once
// Training of a byte-level BPE vocabulary: count the pieces of a corpus on several threads, then merge the most
// frequent pair until the vocabulary is full. The result depends on the counts alone, so it is the same for any number
// of threads and any order of the texts, and its ids are those of Hugging Face's BpeTrainer.

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

class PieceCounter {
 public:
  explicit PieceCounter(std::vector<Pattern> stages) : stages_(std::move(stages)) {}

  /// Counts the pieces of `texts`. With `by_line`, every line with its ending is a text of its own.
  void add(const std::vector<std::string_view>& texts, bool by_line, int threads);

  using Counts = std::unordered_map<std::string, int64_t, TextHash, std::equal_to<>>;
  const Counts& counts() const noexcept { return counts_; }

 private:
  void count(std::string_view text, bool by_line, Counts& counts, std::vector<size_t>& ends) const;

  std::vector<Pattern> stages_;
  Counts counts_;
};

struct TrainOptions {
  size_t vocab_size = 0;
  int64_t min_frequency = 0;
  std::vector<std::string> special;       // take the first ids; no merge may spell one of them
  std::array<uint8_t, 256> byte_order{};  // the bytes in the order of their ids
  bool ties_by_text = false;              // among equal counts: the greatest texts first, else the smallest ids
};

struct TrainResult {
  std::vector<std::string> tokens;  // by id
  std::vector<uint32_t> merges;     // left, right, result
};

/// `progress(done, total)` is called now and then; what it throws ends the training.
TrainResult train_bpe(const PieceCounter::Counts& counts, const TrainOptions& options,
                      const std::function<void(size_t, size_t)>& progress);

}  // namespace llmcore
