#pragma once
// Attention over a paged KV cache. One layer's keys lie as [page][kv_head][head_dim][16 tokens], its values as
// [page][kv_head][16 tokens][head_dim padded to 16], each head of a page followed by its tokens' scales where the type
// has them (KvType in kernels/table.h); a sequence's block table lists its pages in order.

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "base/buffer.h"
#include "ops/context.h"

namespace llmcore {

/// f32, f16, bf16, int12, int8 or int4. Throws ArgumentError.
KvType kv_type_from_name(const std::string& name);

struct KvLayout {
  KvType type = kKvF32;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t pages = 0;

  int64_t padded_head_dim() const { return (head_dim + 15) / 16 * 16; }
  int64_t key_head_bytes() const { return key_dim() * line_bytes() + scale_bytes(); }
  int64_t value_head_bytes() const { return padded_head_dim() * line_bytes() + scale_bytes(); }
  int64_t key_page_bytes() const { return kv_heads * key_head_bytes(); }
  int64_t value_page_bytes() const { return kv_heads * value_head_bytes(); }
  int64_t page_bytes() const { return key_page_bytes() + value_page_bytes(); }
  int64_t layer_bytes() const { return pages * page_bytes(); }

  bool scaled() const { return type == kKvInt12 || type == kKvInt8 || type == kKvInt4; }
  // Integer keys fill whole lines (quant/lines.h).
  int64_t key_dim() const {
    const int64_t step = type == kKvInt8 ? 4 : type == kKvInt12 || type == kKvInt4 ? 8 : 1;
    return (head_dim + step - 1) / step * step;
  }
  int64_t line_bytes() const {
    constexpr int64_t bytes[kNumKvTypes] = {64, 32, 32, 24, 16, 8};
    return bytes[type];
  }

 private:
  int64_t scale_bytes() const { return scaled() ? kPageTokens * 4 : 0; }
};

/// Consecutive tokens of one sequence in a batch.
struct SequenceSlice {
  int64_t row = 0;  // of the batch: its first token
  int64_t tokens = 0;
  int64_t position = 0;  // of its first token in the sequence
  const int32_t* block_table = nullptr;
  int64_t length = 0;  // of the sequence so far; read where attention is not causal
};

/// Which tokens a query sees, and what becomes of its scores. Scores of a head are capped, then biased.
struct AttentionPattern {
  bool causal = true;
  int64_t window = 0;             // tokens seen on the left, its own included, and as many on the right; 0: all
  int64_t kept = 0;               // the sequence's first tokens, which a window doesn't hide
  float softcap = 0.0f;           // score = softcap * tanh(score / softcap); 0: none
  const float* slopes = nullptr;  // [heads], ALiBi: score -= slope * distance
  const float* sinks = nullptr;   // [heads]: a score without a value that takes its share of the softmax
};

class AttentionWorkspace {
 public:
  AttentionWorkspace() = default;
  AttentionWorkspace(const Context& context, int64_t heads, int64_t head_dim, int64_t max_tokens);
  int64_t nbytes() const { return buffer_.size(); }

 private:
  friend class PagedAttention;
  int64_t padded_ = 0, thread_floats_ = 0, shared_floats_ = 0, max_shared_blocks_ = 0;
  Buffer buffer_;                                 // of each thread, then what threads share
  std::unique_ptr<std::atomic<int32_t>[]> left_;  // [max_shared_blocks_] splits of a block that aren't done
};

/// Writes the keys and values of a batch's tokens into their pages. k, v: [T, kv_heads * head_dim].
void store_kv(const Context& context, const KvLayout& layout, uint8_t* keys, uint8_t* values,
              const SequenceSlice* slices, int64_t count, const float* k, const float* v, int64_t stride);

/// The first `length` tokens of a sequence as float32 [length, kv_heads * head_dim]: what the pages hold, exactly but
/// for the rounding of scale * code and of what undoes the mixing of integer keys.
void load_kv(const KvLayout& layout, const uint8_t* keys, const uint8_t* values, const int32_t* block_table,
             int64_t length, float* k, float* v);

/// out[t, h] = softmax(q[t, h] . keys) values over the tokens that the pattern lets a query see.
/// q: [T, heads * head_dim], already scaled; the slices' own keys and values are in their pages.
void paged_attention(const Context& context, AttentionWorkspace& workspace, const KvLayout& layout, const uint8_t* keys,
                     const uint8_t* values, const SequenceSlice* slices, int64_t count, const float* q,
                     int64_t q_stride, int64_t heads, const AttentionPattern& pattern, float* out, int64_t out_stride);

}  // namespace llmcore
