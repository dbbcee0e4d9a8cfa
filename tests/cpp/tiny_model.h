#pragma once
// Small random decoders, the same on every machine.

#include <memory>

#include "decoder/decoder.h"
#include "engine/engine.h"

namespace llmcore::test {

/// kGemma2: norms before and after, softcaps, a window in every other layer; kSinks: attention sinks, ALiBi, a window
/// and kept first tokens.
enum class Style { kLlama, kQwen3, kGpt2, kMistral, kGemma2, kSinks };

struct TinyModel {
  Style style = Style::kLlama;
  Format format = Format::kF32;
  int64_t group_size = 0;
  int64_t hidden_size = 48;
  int64_t num_layers = 2;
  int64_t head_dim = 20;  // not a multiple of 16, as 80 is not of 64
  int64_t vocab_size = 67;
  int64_t max_tokens = 64;  // of a step
  int64_t max_logit_rows = 16;
  int64_t max_model_len = 320;
  int threads = 2;
  /// Flips one bit (of weight 2^-11) of one weight of the last layer: a control that must change the logits.
  bool nudged = false;
};

/// The decoder of `model`, planned.
std::shared_ptr<Decoder> make_decoder(const TinyModel& model);
/// Token ids in [0, vocab).
std::vector<int32_t> random_ids(uint64_t seed, int64_t count, int64_t vocab);
/// Limits of an engine over a decoder of `model` with `pages` pages.
EngineLimits engine_limits(const TinyModel& model, int64_t pages, KvType kv_type);

}  // namespace llmcore::test
