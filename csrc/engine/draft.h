#pragma once
// Guesses of a sequence's next tokens: from its own text, what followed the last time that its end occurred before, or
// from a smaller model (draft_model.h).
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
  void add(int32_t token) { tokens_.push_back(token); }
  /// Whether this step goes without a guess, because guesses have been too bad to pay; counts the step.
  bool paused();
  /// What became of the last guess; fewer than `least_percent` accepted don't pay.
  void note(int64_t drafted, int64_t accepted, int64_t least_percent);
  void reserve(int64_t most) { tokens_.reserve(static_cast<size_t>(most)); }

  int64_t computed = 0;  // tokens whose keys and values the smaller model has

 private:
  std::vector<int32_t> tokens_;
  int64_t drafted_ = 0, accepted_ = 0;  // recently
  static constexpr int64_t kPause = 64, kLongestPause = 4096;
  int64_t pause_ = 0, next_pause_ = kPause;  // steps without a guess; longer each time that guesses didn't pay
};

}  // namespace llmcore
