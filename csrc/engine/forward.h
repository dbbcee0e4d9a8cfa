#pragma once
// Logits of whole sequences, for evaluation and tests: the decoder run chunk by chunk over a temporary KV cache.

#include <cstdint>
#include <vector>

#include "decoder/decoder.h"

namespace llmcore {

struct ForwardSequence {
  const int32_t* ids = nullptr;
  int64_t length = 0;
  float* logits = nullptr;  // [length, vocab] of host memory
};

/// Runs all sequences together, each at most `chunk` tokens a step (0: as many as a step holds). Throws ArgumentError,
/// ContextLengthError (longer than max_position_embeddings), OutOfMemoryError.
void forward(Decoder& decoder, KvType kv_type, const std::vector<ForwardSequence>& sequences, int64_t chunk,
             const Poll& poll);

}  // namespace llmcore
