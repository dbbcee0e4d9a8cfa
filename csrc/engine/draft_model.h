#pragma once
// Guesses from a smaller model: it draws the next tokens with the random numbers that the model itself will draw with,
// so that both come to the same token as often as their distributions agree. It keeps its keys and values in pages of
// the same numbers as the engine's, and what it holds decides nothing but how good the guesses are.
// (Speculative decoding: Y. Leviathan and others, 2023; here a guess counts only when it is the token drawn anyway.)

#include <memory>
#include <vector>

#include "decoder/decoder.h"
#include "engine/engine.h"
#include "engine/sequence.h"

namespace llmcore {

class DraftModel {
 public:
  /// `decoder` is planned for `sequences` rows of logits; `vocab`: of the model whose tokens are guessed.
  DraftModel(std::shared_ptr<Decoder> decoder, const EngineLimits& limits, int64_t vocab);

  struct Wish {
    Engine::Sequence* sequence;
    int64_t most;  // tokens; pages are there for them
  };
  /// Fills the drafts of all sequences, and returns how many tokens one after the other that took.
  int64_t guess(const std::vector<Wish>& wishes, Sampler& sampler, const Poll& poll);
  void copy_page(int32_t from, int32_t to) { cache_.copy_page(from, to); }
  int64_t kv_bytes() const { return cache_.nbytes(); }
  const Decoder& decoder() const { return *decoder_; }

 private:
  void add(const Engine::Sequence& sequence, int64_t from, const int32_t* tokens, int64_t count);
  void forward(const Poll& poll);
  void catch_up(Engine::Sequence& sequence, const Poll& poll);
  int32_t draw(Engine::Sequence& sequence, const float* logits, Sampler& sampler);

  std::shared_ptr<Decoder> decoder_;
  KvCache cache_;
  std::vector<int32_t> ids_, positions_, rows_, history_;
  std::vector<SequenceSlice> slices_;
  std::vector<float> padded_;  // a row of logits of the model's vocabulary
};

}  // namespace llmcore
