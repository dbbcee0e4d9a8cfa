#pragma once
// Text <-> ids. One immutable object, built from flat arrays, used by any number of threads at once.

#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/added.h"
#include "tokenizer/bpe.h"
#include "tokenizer/models.h"
#include "tokenizer/normalize.h"
#include "tokenizer/pretokenize.h"
#include "tokenizer/scan.h"

namespace llmcore {

/// Where a space is put before text that has none.
enum class SpacePrefix : uint8_t { kNever = 0, kEverySegment = 1, kTextStart = 2 };

/// Which space that decoded text would begin with is dropped.
enum class FirstSpace : uint8_t {
  kKept = 0,
  kOfText = 1,      // the first, whatever it comes from
  kOfToken = 2,     // the first token's, unless that is a byte
  kAllOfToken = 3,  // all of the first token
  kOfTokens = 4,    // one of each token until there is text
  kCount = 5,
};

struct TokenizerSpec {
  BpeSpec bpe;      // also what the ids of another model decode to
  ModelSpec model;  // of a kind other than kBpe: what text is encoded with
  std::vector<NormalizerSpec> normalizers;
  std::vector<Pattern> stages;                   // how text is cut where only known patterns cut it,
  std::vector<PreTokenizerSpec> pre_tokenizers;  // or else the parts that cut it
  // What ids decode to where that is other than the text they match (bpe.text); empty: the same.
  std::vector<char> decoded;
  std::vector<uint32_t> decoded_ends;
  std::vector<AddedToken> added;
  std::vector<uint32_t> prefix_ids, suffix_ids;  // around the text when special tokens are asked for (BOS, EOS)
  SpacePrefix space_prefix = SpacePrefix::kNever;
  bool prefix_even_if_space = false;  // also before text that begins with a space
  bool prefix_before_added = false;   // the prefix is there before normalised added tokens are looked for
  bool metaspace = false;             // U+2581 in text is a space
  FirstSpace first_space = FirstSpace::kKept;
};

/// A token's place in the text, in characters.
struct Span {
  uint32_t begin, end;
};

/// The ids of a text in parts, one after another: a long text's as its threads made them.
using IdParts = std::vector<std::vector<uint32_t>>;

/// BPE dropout: merges are left out with this probability, at random.
struct Dropout {
  double rate;
  std::mt19937_64 random;
};

class Tokenizer {
 public:
  explicit Tokenizer(TokenizerSpec spec);
  /// With the vocabulary that `save_vocabulary` wrote in the place of spec.bpe. Throws TokenizerError for a damaged
  /// one.
  Tokenizer(TokenizerSpec spec, std::string_view vocabulary);
  std::string save_vocabulary() const;

  const Bpe& bpe() const noexcept { return bpe_; }
  size_t size() const noexcept { return bpe_.size(); }
  /// The bytes that an id decodes to.
  std::string_view token(uint32_t id) const noexcept;
  /// Whether decoding looks at where text begins.
  bool drops_first_space() const noexcept { return spec_.first_space != FirstSpace::kKept; }
  /// Appends what `id` contributes where no id before it had a part in the text; false if the next one is there, too.
  bool append_first(uint32_t id, std::string& out) const;
  /// `text` after all normalisers.
  std::string normalized(std::string_view text) const;

  /// Appends the ids of `text` (valid UTF-8). With `spans`, also each token's place.
  /// No control token holds any of the stretches of bytes that `guarded` names.
  void encode(std::string_view text, bool add_special, bool allow_control, std::vector<uint32_t>& ids,
              std::vector<Span>* spans = nullptr, const Guarded* guarded = nullptr, Dropout* dropout = nullptr) const;
  /// The ids of each text, on `threads` threads, among which long texts are cut up where there are fewer texts.
  std::vector<IdParts> encode_batch(const std::vector<std::string_view>& texts, bool add_special, bool allow_control,
                                    int threads) const;
  /// Appends the bytes of `ids`; throws ArgumentError for an id that isn't in the vocabulary.
  void decode(const uint32_t* ids, size_t count, const std::vector<bool>& skip, std::string& out) const;
  /// Splits raw text at the added tokens that are looked for before normalisation.
  std::vector<Segment> split_added(std::string_view text, bool allow_control, const Guarded* guarded = nullptr) const;
  /// The pieces that normalisation and pre-tokenisation make of `text`.
  std::vector<std::string> pieces(std::string_view text) const;

 private:
  Tokenizer(TokenizerSpec&& spec, Bpe bpe);
  struct View;
  struct Output;
  std::unique_ptr<EncodeState> borrow() const;
  void give_back(std::unique_ptr<EncodeState> state) const;
  View prefixed(const View& part, bool mapped, MappedText& changed) const;
  void encode_text(std::string_view text, bool add_special, bool allow_control, Output& out) const;
  void encode_segment(View view, bool allow_control, Output& out) const;
  void encode_part(const View& view, Output& out) const;
  void encode_scanned(const View& view, Output& out) const;
  void encode_stretch(const View& view, Output& out) const;
  void encode_cut(const View& view, Output& out) const;
  void push_symbols(const View& view, size_t begin, const std::vector<Symbol>& symbols, Output& out) const;

  Bpe bpe_;
  TokenizerSpec spec_;  // its bpe and model parts have moved
  std::unique_ptr<PieceModel> model_;
  std::vector<Normalizer> normalizers_;
  std::vector<PreTokenizer> pre_tokenizers_;
  bool needs_origins_ = false;  // a pre-tokeniser asks where the text begins
  bool cut_by_bytes_ = false;   // the vocabulary cuts wherever the stages do, which are for blanks alone
  // Indexed by allow_control: tokens looked for in raw text, and those looked for in normalised text.
  AddedMatcher raw_[2], normalized_[2];
  mutable std::mutex states_mutex_;
  mutable std::vector<std::unique_ptr<EncodeState>> states_;
};

}  // namespace llmcore
