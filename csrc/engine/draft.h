#pragma once
// Guesses of a sequence's next tokens from its own text: what followed the last time that its end occurred before.
// A guess is verified by the model in the same step, and only a token that the sampler draws there itself is kept, so
// the tokens are those of plain decoding. (Prompt lookup decoding: A. Saxena, 2023.)

#include <cstddef>
#include <cstdint>
#include <vector>

namespace llmcore {

class Drafts {
 public:
  /// Guesses at most `most` tokens after `tokens`; none while guesses have been too bad to pay.
  void guess(const std::vector<int32_t>& tokens, int64_t most);
  const std::vector<int32_t>& tokens() const { return tokens_; }
  void clear() { tokens_.clear(); }
  /// What became of the last guess.
  void note(int64_t drafted, int64_t accepted);
  void reserve(int64_t most) { tokens_.reserve(static_cast<size_t>(most)); }

 private:
  std::vector<int32_t> tokens_;
  int64_t drafted_ = 0, accepted_ = 0;  // recently
  int64_t pause_ = 0;                   // steps without a guess
};

}  // namespace llmcore
