#include "engine/draft_model.h"

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace llmcore {

DraftModel::DraftModel(std::shared_ptr<Decoder> decoder, const EngineLimits& limits, int64_t vocab)
    : decoder_(std::move(decoder)),
      cache_(decoder_->backend(), decoder_->kv_layout(limits.kv_type, limits.pages), decoder_->spec().num_layers),
      padded_(static_cast<size_t>(vocab), -std::numeric_limits<float>::infinity()) {
  check_argument(
      decoder_->max_tokens() >= 2 * limits.max_batch_size && decoder_->max_logit_rows() >= limits.max_batch_size,
      "engine: the draft model was planned for smaller steps");
  ids_.reserve(decoder_->max_tokens());
  positions_.reserve(decoder_->max_tokens());
  rows_.reserve(limits.max_batch_size);
  slices_.reserve(limits.max_batch_size);
  history_.reserve(limits.max_model_len + limits.draft_tokens);
}

void DraftModel::add(const Engine::Sequence& s, int64_t from, const int32_t* tokens, int64_t count) {
  const int64_t row = static_cast<int64_t>(ids_.size());
  slices_.push_back({row, count, from, s.pages.data(), from + count});
  const int64_t vocab = decoder_->spec().vocab_size;
  for (int64_t i = 0; i < count; ++i) {
    ids_.push_back(tokens[i] < vocab ? tokens[i] : 0);  // what it hasn't decides only how good its guesses are
    positions_.push_back(static_cast<int32_t>(from + i));
  }
  rows_.push_back(static_cast<int32_t>(row + count - 1));
}

void DraftModel::forward(const Poll& poll) {
  const Batch batch{ids_.data(),
                    positions_.data(),
                    static_cast<int64_t>(ids_.size()),
                    {slices_.data(), static_cast<int64_t>(slices_.size())}};
  decoder_->forward(batch, cache_, poll);
}

/// Computes what the sequence has behind the draft model's keys and values, up to its last two tokens.
void DraftModel::catch_up(Engine::Sequence& s, const Poll& poll) {
  while (s.length() - s.drafts.computed > 2) {
    ids_.clear();
    positions_.clear();
    rows_.clear();
    slices_.clear();
    const int64_t count = std::min(s.length() - s.drafts.computed - 1, decoder_->max_tokens());
    add(s, s.drafts.computed, s.tokens.data() + s.drafts.computed, count);
    forward(poll);
    s.drafts.computed += count;
  }
}

int32_t DraftModel::draw(Engine::Sequence& s, const float* logits, Sampler& sampler) {
  const auto shared = static_cast<int64_t>(std::min<size_t>(padded_.size(), decoder_->spec().vocab_size));
  std::copy(logits, logits + shared, padded_.begin());
  const std::vector<int32_t>& guesses = s.drafts.tokens();
  history_.assign(s.tokens.begin(), s.tokens.end());
  history_.insert(history_.end(), guesses.begin(), guesses.end());
  SamplerState state = s.sampler;  // only tokens that count change it
  SamplerHistory history{
      history_.data(), s.prompt(), static_cast<int64_t>(history_.size()), s.request.sequence, nullptr, 0, &state};
  const SamplerParams& params = s.request.sampling;
  return sampler.sample(padded_.data(), params, history).id;
}

int64_t DraftModel::guess(const std::vector<Wish>& wishes, Sampler& sampler, const Poll& poll) {
  std::vector<Wish> open;
  for (const Wish& wish : wishes) {
    // A step that was undone after its guesses leaves those behind.
    wish.sequence->drafts.computed = std::min(wish.sequence->drafts.computed, wish.sequence->length() - 1);
    catch_up(*wish.sequence, poll);
    open.push_back(wish);
  }
  const int64_t vocab = decoder_->spec().vocab_size;
  int64_t rounds = 0;
  for (; !open.empty(); ++rounds) {
    ids_.clear();
    positions_.clear();
    rows_.clear();
    slices_.clear();
    for (const Wish& wish : open) {
      Engine::Sequence& s = *wish.sequence;
      const int64_t from = s.drafts.computed;
      if (rounds == 0) {
        add(s, from, s.tokens.data() + from, s.length() - from);
      } else {
        add(s, from, &s.drafts.tokens().back(), 1);
      }
    }
    forward(poll);
    const auto count = static_cast<int64_t>(rows_.size());
    const float* logits = decoder_->backend().read(decoder_->logits(rows_.data(), count), count * vocab);
    size_t kept = 0;
    for (size_t i = 0; i < open.size(); ++i) {
      Engine::Sequence& s = *open[i].sequence;
      s.drafts.computed += slices_[i].tokens;
      try {
        s.drafts.add(draw(s, logits + static_cast<int64_t>(i) * vocab, sampler));
      } catch (const NumericError&) {  // no guess is as good as a wrong one
        continue;
      }
      if (static_cast<int64_t>(s.drafts.tokens().size()) < open[i].most) open[kept++] = open[i];
    }
    open.resize(kept);
  }
  return rounds;
}

}  // namespace llmcore
