#pragma once
// Text <-> ids. One immutable object, built from flat arrays, used by any number of threads at once.

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/added.h"
#include "tokenizer/bpe.h"
#include "tokenizer/scan.h"

namespace llmcore {

/// Where a space is put before text that has none.
enum class SpacePrefix : uint8_t { kNever = 0, kEverySegment = 1, kTextStart = 2 };

struct TokenizerSpec {
  BpeSpec bpe;
  std::vector<Pattern> stages;
  std::vector<AddedToken> added;
  std::vector<uint32_t> prefix_ids, suffix_ids;  // around the text when special tokens are asked for (BOS, EOS)
  SpacePrefix space_prefix = SpacePrefix::kNever;
  bool prefix_even_if_space = false;  // also before text that begins with a space
  bool prefix_before_added = false;   // the prefix is there before normalised added tokens are looked for
  bool metaspace = false;             // U+2581 in text is a space
};

/// A token's place in the text, in characters.
struct Span {
  uint32_t begin, end;
};

class Tokenizer {
 public:
  explicit Tokenizer(TokenizerSpec spec);

  const Bpe& bpe() const noexcept { return bpe_; }
  size_t size() const noexcept { return bpe_.size(); }

  /// Appends the ids of `text` (valid UTF-8). With `spans`, also each token's place.
  /// No control token begins at a byte that `guarded` (in order) names.
  void encode(std::string_view text, bool add_special, bool allow_control, std::vector<uint32_t>& ids,
              std::vector<Span>* spans = nullptr, const std::vector<uint32_t>* guarded = nullptr) const;
  /// The same for each text, on `threads` threads.
  std::vector<std::vector<uint32_t>> encode_batch(const std::vector<std::string_view>& texts, bool add_special,
                                                  bool allow_control, int threads) const;
  /// Appends the bytes of `ids`; throws ArgumentError for an id that isn't in the vocabulary.
  void decode(const uint32_t* ids, size_t count, const std::vector<bool>& skip, std::string& out) const;
  /// Splits raw text at the added tokens that are looked for before normalisation.
  std::vector<Segment> split_added(std::string_view text, bool allow_control,
                                   const std::vector<uint32_t>* guarded = nullptr) const;
  /// Ends in bytes of the pieces that pre-tokenisation makes of `text`.
  std::vector<size_t> pieces(std::string_view text) const;

 private:
  struct View;
  struct Output;
  std::unique_ptr<EncodeState> borrow() const;
  void give_back(std::unique_ptr<EncodeState> state) const;
  View normalise(const View& part, Output& out) const;
  void encode_segment(View view, bool allow_control, Output& out) const;
  void encode_plain(const View& view, Output& out) const;

  Bpe bpe_;
  TokenizerSpec spec_;  // its bpe part has moved to bpe_
  // Indexed by allow_control: tokens looked for in raw text, and those looked for in normalised text.
  AddedMatcher raw_[2], normalized_[2];
  mutable std::mutex states_mutex_;
  mutable std::vector<std::unique_ptr<EncodeState>> states_;
};

}  // namespace llmcore
