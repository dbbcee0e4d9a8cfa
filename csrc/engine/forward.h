#pragma once
// Whole sequences at once, for evaluation and embeddings: the decoder run chunk by chunk.

#include <cstdint>
#include <vector>

#include "decoder/decoder.h"
#include "kvcache/kv_cache.h"

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

/// The pages of each sequence.
using PageTables = std::vector<std::vector<int32_t>>;

/// Runs all sequences together over a KV cache of their own, each at most `chunk` tokens a step (0: as many as a step
/// holds). `pause` is called between two steps: others may use the decoder then. Throws ArgumentError,
/// ContextLengthError (longer than max_position_embeddings), OutOfMemoryError.
void forward(Decoder& decoder, KvType kv_type, const std::vector<ForwardSequence>& sequences, int64_t chunk,
             const Poll& poll, const Poll& pause = nullptr);
/// The same, without logits, over pages that the caller has. The mean adds its rows in the order of the tokens.
void embed(Decoder& decoder, KvCache& cache, const PageTables& tables, const std::vector<EmbedSequence>& sequences,
           Pooling pooling, const Poll& poll, const Poll& pause = nullptr);

}  // namespace llmcore
