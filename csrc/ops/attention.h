#pragma once
// Attention over a paged KV cache. One layer's keys lie as [page][kv_head][head_dim][16 tokens], its values as
// [page][kv_head][16 tokens][head_dim padded to 16]; a sequence's block table lists its pages in order.

#include <cstdint>

#include "base/buffer.h"
#include "ops/context.h"

namespace llmcore {

struct KvLayout {
  KvType type = kKvF32;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t pages = 0;

  int64_t element_bytes() const { return type == kKvF32 ? 4 : 2; }
  int64_t padded_head_dim() const { return (head_dim + 15) / 16 * 16; }
  int64_t key_head_bytes() const { return head_dim * kPageTokens * element_bytes(); }
  int64_t value_head_bytes() const { return padded_head_dim() * kPageTokens * element_bytes(); }
  int64_t key_page_bytes() const { return kv_heads * key_head_bytes(); }
  int64_t value_page_bytes() const { return kv_heads * value_head_bytes(); }
  int64_t layer_bytes() const { return pages * (key_page_bytes() + value_page_bytes()); }
};

/// Consecutive tokens of one sequence in a batch.
struct SequenceSlice {
  int64_t row = 0;  // of the batch: its first token
  int64_t tokens = 0;
  int64_t position = 0;  // of its first token in the sequence
  const int32_t* block_table = nullptr;
};

class AttentionWorkspace {
 public:
  AttentionWorkspace() = default;
  AttentionWorkspace(const Context& context, int64_t head_dim, int64_t max_tokens);
  int64_t nbytes() const { return buffer_.size(); }

 private:
  friend void paged_attention(const Context&, AttentionWorkspace&, const KvLayout&, const uint8_t*, const uint8_t*,
                              const SequenceSlice*, int64_t, const float*, int64_t, int64_t, int64_t, float*, int64_t);
  int64_t splits_ = 0, output_stride_ = 0, thread_stride_ = 0;
  Buffer buffer_;
};

/// Writes the keys and values of a batch's tokens into their pages. k, v: [T, kv_heads * head_dim].
void store_kv(const Context& context, const KvLayout& layout, uint8_t* keys, uint8_t* values,
              const SequenceSlice* slices, int64_t count, const float* k, const float* v, int64_t stride);

/// out[t, h] = softmax(q[t, h] . keys) values over tokens (position - window, position]; window 0: all.
/// q: [T, heads * head_dim], already scaled; the slices' own keys and values are in their pages.
void paged_attention(const Context& context, AttentionWorkspace& workspace, const KvLayout& layout, const uint8_t* keys,
                     const uint8_t* values, const SequenceSlice* slices, int64_t count, const float* q,
                     int64_t q_stride, int64_t heads, int64_t window, float* out, int64_t out_stride);

}  // namespace llmcore
