#include "engine/draft.h"

#include <algorithm>

namespace llmcore {
namespace {

constexpr int64_t kLongestMatch = 4, kShortestMatch = 2;
constexpr int64_t kSearched = 4096;  // tokens back
// A row more costs a step a fraction of its time; below this share of accepted guesses that is not won back.
constexpr int64_t kJudged = 32, kPause = 64;
constexpr int64_t kLeastAcceptedPercent = 25;

}  // namespace

void Drafts::guess(const std::vector<int32_t>& tokens, int64_t most) {
  tokens_.clear();
  if (pause_ > 0) {
    --pause_;
    return;
  }
  const int64_t length = static_cast<int64_t>(tokens.size());
  int64_t best = -1, best_match = kShortestMatch - 1;
  for (int64_t end = length - 1; end >= std::max(kShortestMatch, length - kSearched); --end) {
    int64_t match = 0;
    while (match < std::min(kLongestMatch, end) && tokens[end - 1 - match] == tokens[length - 1 - match]) ++match;
    if (match > best_match) {
      best = end;
      best_match = match;
      if (match == kLongestMatch) break;
    }
  }
  if (best < 0) return;
  for (int64_t i = best; i < length && static_cast<int64_t>(tokens_.size()) < most; ++i) tokens_.push_back(tokens[i]);
}

void Drafts::note(int64_t drafted, int64_t accepted) {
  drafted_ += drafted;
  accepted_ += accepted;
  if (drafted_ < kJudged) return;
  if (accepted_ * 100 < drafted_ * kLeastAcceptedPercent) pause_ = kPause;
  drafted_ = accepted_ = 0;
}

}  // namespace llmcore
