#pragma once
// Whole sequences at once, for evaluation and embeddings: the decoder run chunk by chunk over a temporary KV cache.

#include <cstdint>
#include <vector>

#include "decoder/decoder.h"

namespace llmcore {

struct ForwardSequence {
  const int32_t* ids = nullptr;
  int64_t length = 0;
  float* logits = nullptr;  // [length, vocab] of host memory
};

enum class Pooling : int { kMean, kLast, kCls };

struct EmbedSequence {
  const int32_t* ids = nullptr;
  int64_t length = 0;
  double* sum = nullptr;  // [hidden], zero at first: the last layer's rows after the final norm, pooled
};

/// Runs all sequences together, each at most `chunk` tokens a step (0: as many as a step holds). Throws ArgumentError,
/// ContextLengthError (longer than max_position_embeddings), OutOfMemoryError.
void forward(Decoder& decoder, KvType kv_type, const std::vector<ForwardSequence>& sequences, int64_t chunk,
             const Poll& poll);
/// The same, without logits. The mean adds its rows in the order of the tokens.
void embed(Decoder& decoder, KvType kv_type, const std::vector<EmbedSequence>& sequences, Pooling pooling,
           const Poll& poll);

}  // namespace llmcore
