#include "engine/draft.h"

#include <algorithm>

namespace llmcore {
namespace {

constexpr int64_t kLongestMatch = 4, kShortestMatch = 2;
constexpr int64_t kSearched = 4096;  // tokens back
// Guesses are judged a few at a time, and left alone for some steps when too few of them were right.
constexpr int64_t kJudged = 24;

}  // namespace

void Drafts::guess(const std::vector<int32_t>& tokens, int64_t most) {
  tokens_.clear();
  if (paused()) return;
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
  // Past the end it goes on with what was guessed, as a text does that repeats itself.
  for (int64_t i = best; i < best + most; ++i) tokens_.push_back(i < length ? tokens[i] : tokens_[i - length]);
}

bool Drafts::paused() {
  if (pause_ == 0) return false;
  --pause_;
  return true;
}

void Drafts::note(int64_t drafted, int64_t accepted, int64_t least_percent) {
  drafted_ += drafted;
  accepted_ += accepted;
  if (drafted_ < kJudged) return;
  const bool pays = accepted_ * 100 >= drafted_ * least_percent;
  pause_ = pays ? 0 : next_pause_;
  next_pause_ = pays ? kPause : std::min(2 * next_pause_, kLongestPause);
  drafted_ = accepted_ = 0;
}

}  // namespace llmcore
