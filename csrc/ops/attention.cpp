#include "ops/attention.h"

#include <algorithm>
#include <atomic>

#include "base/checked.h"

namespace llmcore {

AttentionWorkspace::AttentionWorkspace(const Context& context, int64_t head_dim, int64_t max_tokens)
    : splits_(ceil_div(max_tokens, kSplitTokens)), output_stride_(round_up(head_dim, 16)) {
  const int64_t floats = checked_mul(kMaxQueryBlock * splits_, output_stride_ + 2);
  thread_stride_ = round_up(floats, 16);
  buffer_ = Buffer(checked_mul(thread_stride_ * 4, context.pool.size()));
}

void store_kv(const Context& context, const KvLayout& layout, uint8_t* keys, uint8_t* values,
              const SequenceSlice* slices, int64_t count, const float* k, const float* v, int64_t stride) {
  const auto store_key = context.table.store_key[layout.type];
  const auto store_value = context.table.store_value[layout.type];
  const auto store = [&](int64_t begin, int64_t end, int) {
    for (int64_t s = 0; s < count; ++s) {
      const SequenceSlice& slice = slices[s];
      const int64_t first = std::max(begin, slice.row), last = std::min(end, slice.row + slice.tokens);
      for (int64_t t = first; t < last; ++t) {
        const int64_t position = slice.position + t - slice.row;
        const int64_t page = slice.block_table[position / kPageTokens];
        const int lane = static_cast<int>(position % kPageTokens);
        for (int64_t h = 0; h < layout.kv_heads; ++h) {
          store_key(k + t * stride + h * layout.head_dim, layout.head_dim, lane,
                    keys + page * layout.key_page_bytes() + h * layout.key_head_bytes());
          store_value(v + t * stride + h * layout.head_dim, layout.head_dim, lane,
                      values + page * layout.value_page_bytes() + h * layout.value_head_bytes());
        }
      }
    }
  };
  const int64_t T = count ? slices[count - 1].row + slices[count - 1].tokens : 0;
  if (T < 16) {
    store(0, T, 0);
  } else {
    context.pool.parallel_for(T, 1, store);
  }
}

namespace {

// Query rows that share keys: `tokens` tokens from `token` on, heads [head, head + heads) of one KV head.
struct Block {
  const SequenceSlice* slice;
  int64_t token, tokens, head, heads, kv_head;
};

// How a slice's queries fall into blocks of at most kMaxQueryBlock rows.
struct Blocking {
  int64_t group, heads, head_blocks, tokens, kv_heads;
  Blocking(int64_t num_heads, int64_t num_kv_heads)
      : group(num_heads / num_kv_heads),
        heads(std::min<int64_t>(group, kMaxQueryBlock)),
        head_blocks(ceil_div(group, heads)),
        tokens(kMaxQueryBlock / heads),
        kv_heads(num_kv_heads) {}
  int64_t blocks(const SequenceSlice& s) const { return ceil_div(s.tokens, tokens) * kv_heads * head_blocks; }
  Block block(const SequenceSlice& s, int64_t i) const {
    const int64_t part = i % head_blocks, kv_head = i / head_blocks % kv_heads;
    const int64_t token = i / head_blocks / kv_heads * tokens;
    return {&s,
            token,
            std::min(tokens, s.tokens - token),
            kv_head * group + part * heads,
            std::min(heads, group - part * heads),
            kv_head};
  }
};

}  // namespace

void paged_attention(const Context& context, AttentionWorkspace& ws, const KvLayout& layout, const uint8_t* keys,
                     const uint8_t* values, const SequenceSlice* slices, int64_t count, const float* q,
                     int64_t q_stride, int64_t heads, int64_t window, float* out, int64_t out_stride) {
  const Blocking blocking(heads, layout.kv_heads);
  const auto kernel = context.table.attention[layout.type];
  const int64_t D = layout.head_dim;

  const auto run_block = [&](const Block& b, float* memory) {
    float* outputs = memory;  // [row][split][D padded]
    float* maxima = outputs + kMaxQueryBlock * ws.splits_ * ws.output_stride_;
    float* sums = maxima + kMaxQueryBlock * ws.splits_;
    const float* queries[kMaxQueryBlock];
    float* split_outputs[kMaxQueryBlock];
    float split_maxima[kMaxQueryBlock], split_sums[kMaxQueryBlock];
    int32_t begins[kMaxQueryBlock], ends[kMaxQueryBlock];
    int rows = 0;
    for (int64_t t = b.token; t < b.token + b.tokens; ++t) {
      const int64_t position = b.slice->position + t;
      for (int64_t h = b.head; h < b.head + b.heads; ++h, ++rows) {
        queries[rows] = q + (b.slice->row + t) * q_stride + h * D;
        begins[rows] = static_cast<int32_t>(window ? std::max<int64_t>(0, position + 1 - window) : 0);
        ends[rows] = static_cast<int32_t>(position + 1);
      }
    }
    AttentionArgs a{};
    a.queries = queries;
    a.rows = rows;
    a.begins = begins;
    a.ends = ends;
    a.head_dim = D;
    a.block_table = b.slice->block_table;
    a.outputs = split_outputs;
    a.maxima = split_maxima;
    a.sums = split_sums;
    const int64_t end = ends[rows - 1];
    const int64_t first_split = begins[0] / kSplitTokens, last_split = ceil_div(end, kSplitTokens);
    // Each page holds the heads one after another; the kernel sees the pages of one head.
    a.keys = keys + b.kv_head * layout.key_head_bytes();
    a.values = values + b.kv_head * layout.value_head_bytes();
    a.key_page_stride = layout.key_page_bytes();
    a.value_page_stride = layout.value_page_bytes();
    for (int64_t split = first_split; split < last_split; ++split) {
      a.token_begin = split * kSplitTokens;
      a.token_end = std::min(end, a.token_begin + kSplitTokens);
      for (int r = 0; r < rows; ++r) split_outputs[r] = outputs + (r * ws.splits_ + split) * ws.output_stride_;
      kernel(a);
      for (int r = 0; r < rows; ++r) {
        maxima[r * ws.splits_ + split] = split_maxima[r];
        sums[r * ws.splits_ + split] = split_sums[r];
      }
    }
    rows = 0;
    for (int64_t t = b.token; t < b.token + b.tokens; ++t) {
      for (int64_t h = b.head; h < b.head + b.heads; ++h, ++rows) {
        // Just the splits the row sees, so that it doesn't matter which rows stand in its block.
        const int64_t from = begins[rows] / kSplitTokens, to = ceil_div(ends[rows], kSplitTokens);
        const int64_t at = rows * ws.splits_ + from;
        context.table.attention_combine(outputs + at * ws.output_stride_, ws.output_stride_, maxima + at, sums + at,
                                        to - from, out + (b.slice->row + t) * out_stride + h * D, D);
      }
    }
  };

  // Blocks are handed out one by one: their costs differ, and which thread takes one doesn't show in the result.
  int64_t total = 0;
  for (int64_t s = 0; s < count; ++s) total += blocking.blocks(slices[s]);
  std::atomic<int64_t> next{0};
  Interruption interruption(context.poll);
  const auto work = [&](int thread, int) {
    float* memory = ws.buffer_.as<float>() + thread * ws.thread_stride_;
    int64_t s = 0, before = 0;
    for (int64_t i = next++; i < total && interruption.go_on(thread); i = next++) {
      while (i - before >= blocking.blocks(slices[s])) before += blocking.blocks(slices[s++]);
      run_block(blocking.block(slices[s], i - before), memory);
    }
  };
  if (total <= 1) {
    work(0, 1);
  } else {
    context.pool.run(work);
  }
}

}  // namespace llmcore
