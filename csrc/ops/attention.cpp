#include "ops/attention.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <vector>

#include "base/checked.h"
#include "base/error.h"
#include "kernels/select.h"
#include "quant/half.h"
#include "quant/lines.h"

namespace llmcore {

KvType kv_type_from_name(const std::string& name) {
  const char* const names[kNumKvTypes] = {"f32", "f16", "bf16", "int12", "int8", "int4"};
  for (int type = 0; type < kNumKvTypes; ++type) {
    if (name == names[type]) return static_cast<KvType>(type);
  }
  throw ArgumentError("kv_dtype must be one of f32, f16, bf16, int12, int8, int4, got '" + name.substr(0, 40) + "'");
}

void store_kv(const Context& context, const KvLayout& layout, uint8_t* keys, uint8_t* values,
              const SequenceSlice* slices, int64_t count, const float* k, const float* v, int64_t stride) {
  const auto store_key = context.table.store_key[layout.type];
  const auto store_value = context.table.store_value[layout.type];
  const auto pages_of = [](const SequenceSlice& s) {
    return ceil_div(s.position + s.tokens, kPageTokens) - s.position / kPageTokens;
  };
  const auto store = [&](const SequenceSlice& s, int64_t nth, int64_t h) {
    const int64_t index = s.position / kPageTokens + nth, page = s.block_table[index];
    const int64_t first = std::max(s.position, index * kPageTokens);
    const int64_t last = std::min(s.position + s.tokens, (index + 1) * kPageTokens);
    for (int64_t position = first; position < last; ++position) {
      const int lane = static_cast<int>(position % kPageTokens);
      const int64_t at = (s.row + position - s.position) * stride + h * layout.head_dim;
      store_key(k + at, layout.head_dim, lane, keys + page * layout.key_page_bytes() + h * layout.key_head_bytes());
      store_value(v + at, layout.head_dim, lane,
                  values + page * layout.value_page_bytes() + h * layout.value_head_bytes());
    }
  };
  // A head's part of a page is one thread's: tokens share bytes there.
  int64_t units = 0, tokens = 0;
  for (int64_t s = 0; s < count; ++s) {
    units += pages_of(slices[s]) * layout.kv_heads;
    tokens += slices[s].tokens;
  }
  const auto store_units = [&](int64_t begin, int64_t end, int) {
    int64_t s = 0, before = 0;
    for (int64_t i = begin; i < end; ++i) {
      while (i - before >= pages_of(slices[s]) * layout.kv_heads) before += pages_of(slices[s++]) * layout.kv_heads;
      store(slices[s], (i - before) / layout.kv_heads, (i - before) % layout.kv_heads);
    }
  };
  if (tokens < 16) {
    store_units(0, units, 0);
  } else {
    context.pool.parallel_for(units, 1, store_units);
  }
}

namespace {

float float_element(KvType type, const uint8_t* line, int64_t i) {
  if (type == kKvF32) return reinterpret_cast<const float*>(line)[i];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(line)[i];
  return type == kKvF16 ? half_to_float(bits) : bfloat_to_float(bits);
}

// The code in a row of a panel at k (quant/lines.h), less the code of 0.
int integer_code(KvType type, const uint8_t* panel, int64_t row, int64_t k) {
  if (type == kKvInt12) return Lines12::get(panel, row, k);
  if (type == kKvInt8) return static_cast<int>(Lines<8>::get(panel, static_cast<int>(row), k, 0)) - 128;
  return static_cast<int>(Lines<4>::get(panel, static_cast<int>(row), k, 0)) - 8;
}

// Element d of a page's head of keys or values, of its token `lane`.
float key_element(const KvLayout& layout, const uint8_t* key, int64_t lane, int64_t d) {
  const int64_t bytes = layout.line_bytes();
  if (!layout.scaled()) return float_element(layout.type, key + d * bytes, lane);
  const float scale = reinterpret_cast<const float*>(key + layout.key_dim() * bytes)[lane];
  return scale * static_cast<float>(integer_code(layout.type, key, lane, d));
}

float value_element(const KvLayout& layout, const uint8_t* value, int64_t lane, int64_t d) {
  const int64_t bytes = layout.line_bytes(), padded = layout.padded_head_dim();
  if (!layout.scaled()) return float_element(layout.type, value + (lane * padded / 16 + d / 16) * bytes, d % 16);
  const float scale = reinterpret_cast<const float*>(value + padded * bytes)[lane];
  return scale * static_cast<float>(integer_code(layout.type, value + d / 16 * 16 * bytes, d % 16, lane));
}

}  // namespace

void load_kv(const KvLayout& layout, const uint8_t* keys, const uint8_t* values, const int32_t* block_table,
             int64_t length, float* k, float* v) {
  std::vector<float> mixed(static_cast<size_t>(layout.padded_head_dim()));
  for (int64_t t = 0; t < length; ++t) {
    const int64_t page = block_table[t / kPageTokens], lane = t % kPageTokens;
    for (int64_t h = 0; h < layout.kv_heads; ++h) {
      const uint8_t* key = keys + page * layout.key_page_bytes() + h * layout.key_head_bytes();
      const uint8_t* value = values + page * layout.value_page_bytes() + h * layout.value_head_bytes();
      for (int64_t d = 0; d < layout.head_dim; ++d) {
        k[d] = key_element(layout, key, lane, d);
        v[d] = value_element(layout, value, lane, d);
      }
      if (layout.scaled()) {
        kernels().hadamard(k, layout.head_dim, mixed.data());
        std::copy_n(mixed.data(), layout.head_dim, k);
      }
      k += layout.head_dim;
      v += layout.head_dim;
    }
  }
}

namespace {

// A call with fewer blocks than this for each thread shares the parts of a block out among threads. So does one with
// blocks of few rows a KV head, as long as there is room for the results.
constexpr int64_t kBlocksPerThread = 4;
constexpr int64_t kStreamedRows = 16;
constexpr int64_t kSharedFloats = int64_t{1} << 20;
constexpr int64_t kSharedBlocks = 1024;
// Blocks of few rows take as many KV heads as leave so many items for each thread: a page's heads lie side by side, and
// memory is read twice as fast in its own order as head by head.
constexpr int64_t kItemsPerThread = 4;
// Blocks whose parts are shared out are taken in turns, part by part. A thread keeps the queries of so many as the
// kernel takes them.
constexpr int64_t kKeptBlocks = 32;
constexpr int64_t kKeptRows = 2 * kMaxQueryBlock;  // of float32

// Query rows that share keys: `tokens` tokens from `token` on, heads [head, head + heads) of each of kv_heads KV heads
// from kv_head on.
struct Block {
  const SequenceSlice* slice;
  int64_t token, tokens, head, heads, kv_head, kv_heads;
};

// How a slice's queries fall into blocks of at most kMaxQueryBlock rows.
class Blocking {
 public:
  Blocking(int64_t num_heads, int64_t num_kv_heads)
      : group_(num_heads / num_kv_heads),
        heads_(std::min<int64_t>(group_, kMaxQueryBlock)),
        head_blocks_(ceil_div(group_, heads_)),
        tokens_(kMaxQueryBlock / heads_),
        kv_heads_(num_kv_heads) {}
  // Slices of few rows put up to `wide` KV heads into a block.
  void widen(int64_t wide) { wide_ = wide; }
  int64_t blocks(const SequenceSlice& s) const {
    return ceil_div(s.tokens, tokens_) * ceil_div(kv_heads_, wide(s)) * head_blocks_;
  }
  Block block(const SequenceSlice& s, int64_t i) const {
    const int64_t width = wide(s), across = ceil_div(kv_heads_, width);
    const int64_t part = i % head_blocks_, kv_head = i / head_blocks_ % across * width;
    const int64_t token = i / head_blocks_ / across * tokens_;
    return {&s,
            token,
            std::min(tokens_, s.tokens - token),
            part * heads_,
            std::min(heads_, group_ - part * heads_),
            kv_head,
            std::min(width, kv_heads_ - kv_head)};
  }
  int64_t group() const { return group_; }

 private:
  int64_t wide(const SequenceSlice& s) const {
    const int64_t rows = s.tokens * group_;
    return rows > kStreamedRows ? 1 : std::min(wide_, kMaxQueryBlock / rows);
  }
  int64_t group_, heads_, head_blocks_, tokens_, kv_heads_, wide_ = 1;
};

// The rows of a block and what they see: first of the kept tokens, as far as a window hides them, then of the rest. The
// parts of both are splits of kSplitTokens tokens, counted from token 0, in this order.
struct Rows {
  int count = 0;
  const float* queries[kMaxQueryBlock];
  int64_t heads[kMaxQueryBlock];
  int32_t positions[kMaxQueryBlock], begins[kMaxQueryBlock], ends[kMaxQueryBlock];
  int32_t zeros[kMaxQueryBlock], kept_ends[kMaxQueryBlock];
  float slopes[kMaxQueryBlock];
  int64_t kept_end = 0, end = 0;
  int64_t kept_parts = 0, first_split = 0, parts = 0;

  void add(const AttentionPattern& pattern, const float* query, int64_t head, int64_t position, int64_t length) {
    const int64_t window = pattern.window, reach = pattern.causal ? 1 : window ? window : length;
    const int64_t row_end = std::min(position + reach, pattern.causal ? position + 1 : length);
    int64_t begin = window ? std::max<int64_t>(0, position + 1 - window) : 0;
    if (begin <= pattern.kept) begin = 0;
    queries[count] = query;
    heads[count] = head;
    positions[count] = static_cast<int32_t>(position);
    begins[count] = static_cast<int32_t>(begin);
    ends[count] = static_cast<int32_t>(row_end);
    zeros[count] = 0;
    kept_ends[count] = static_cast<int32_t>(begin ? pattern.kept : 0);
    slopes[count] = pattern.slopes ? pattern.slopes[head] : 0.0f;
    kept_end = std::max<int64_t>(kept_end, kept_ends[count]);
    end = std::max(end, row_end);
    first_split = count ? std::min(first_split, begin / kSplitTokens) : begin / kSplitTokens;
    ++count;
    kept_parts = ceil_div(kept_end, kSplitTokens);
    parts = kept_parts + ceil_div(end, kSplitTokens) - first_split;
  }
};

}  // namespace

AttentionWorkspace::AttentionWorkspace(const Context& context, int64_t heads, int64_t head_dim, int64_t max_tokens)
    : padded_(round_up(head_dim, 16)) {
  // A thread: scratch, and for its own block queries, the outputs of one part and the sums so far, both with maxima and
  // sums; for shared ones in the same place the queries of some (kKeptRows), then scratch or the sums.
  const int64_t rows = kMaxQueryBlock, splits = ceil_div(max_tokens, kSplitTokens) + 1;
  thread_floats_ = round_up(attention_scratch_floats(rows, head_dim) + checked_mul(rows, 3 * padded_ + 4), 16);
  // Room for all heads of the longest sequence, or of several shorter ones.
  shared_floats_ = std::max(kSharedFloats, checked_mul(checked_mul(heads, splits), padded_ + 2));
  max_shared_blocks_ = std::max(kSharedBlocks, kBlocksPerThread * context.pool.size());
  left_ = std::make_unique<std::atomic<int32_t>[]>(static_cast<size_t>(max_shared_blocks_));
  buffer_ = Buffer(checked_mul(checked_add(checked_mul(thread_floats_, context.pool.size()), shared_floats_), 4));
}

class PagedAttention {
 public:
  PagedAttention(const Context& context, AttentionWorkspace& ws, const KvLayout& layout, const uint8_t* keys,
                 const uint8_t* values, const SequenceSlice* slices, int64_t count, const float* q, int64_t q_stride,
                 int64_t heads, const AttentionPattern& pattern, float* out, int64_t out_stride)
      : context_(context),
        table_(context.table),
        ws_(ws),
        layout_(layout),
        keys_(keys),
        values_(values),
        slices_(slices),
        q_(q),
        q_stride_(q_stride),
        pattern_(pattern),
        out_(out),
        out_stride_(out_stride),
        blocking_(heads, layout.kv_heads) {
    widen(count);
    for (int64_t s = 0; s < count; ++s) blocks_ += blocking_.blocks(slices[s]);
    plan_sharing(count);
  }

  void run() {
    const int64_t total = part_stride_ ? blocks_ * parts_ : blocks_;
    std::atomic<int64_t> next{0};
    Interruption interruption(context_.poll);
    // Handed out one by one: costs differ, and which thread takes one doesn't show in the result. Shared parts are
    // taken one early, so that the keys of the next can be asked for.
    const bool early = part_stride_ && total >= 4 * context_.pool.size();
    const auto work = [&](int thread, int) {
      float* memory = ws_.buffer_.as<float>() + thread * ws_.thread_floats_;
      std::array<int64_t, kKeptBlocks> kept;  // the blocks whose queries are in `memory`
      kept.fill(-1);
      Place place = find(next++, {});
      while (place.item < total && interruption.go_on(thread)) {
        Place following = early ? find(next++, place) : Place{total};
        if (part_stride_) {
          share_block(place, following, memory, kept[static_cast<size_t>(place.index % kept_blocks_)]);
        } else {
          run_block(place.block, memory);
        }
        place = early ? following : find(next++, place);
      }
    };
    if (total <= 1) {
      work(0, 1);
    } else {
      context_.pool.run(work);
    }
  }

 private:
  // Where an item is: its block, which is number `index` of all, and its part of that. Shared parts are taken part by
  // part, so that the heads of a page are read one after another.
  struct Place {
    int64_t item = 0, slice = 0, before = 0, index = 0, part = 0;
    Block block{};
  };
  Place find(int64_t item, Place from) const {
    Place p{item};
    if (item >= (part_stride_ ? blocks_ * parts_ : blocks_)) return p;
    p.index = part_stride_ ? item % blocks_ : item;
    p.part = part_stride_ ? item / blocks_ : 0;
    if (p.index >= from.before) {
      p.slice = from.slice;
      p.before = from.before;
    }
    while (p.index - p.before >= blocking_.blocks(slices_[p.slice])) {
      p.before += blocking_.blocks(slices_[p.slice++]);
    }
    p.block = blocking_.block(slices_[p.slice], p.index - p.before);
    return p;
  }

  // Outputs of one part of a block, [row][padded], with maxima and sums behind.
  struct Part {
    float *outputs, *maxima, *sums;
    Part(float* memory, int64_t rows, int64_t padded)
        : outputs(memory), maxima(memory + rows * padded), sums(maxima + rows) {}
  };

  void widen(int64_t count) {
    int64_t splits = 0;
    for (int64_t s = 0; s < count; ++s) splits += ceil_div(slices_[s].position + slices_[s].tokens, kSplitTokens);
    const int64_t items = splits * layout_.kv_heads;
    blocking_.widen(std::clamp<int64_t>(items / (kItemsPerThread * context_.pool.size()), 1, layout_.kv_heads));
  }

  // With few blocks their parts are shared out, as far as there is room for the results of all.
  void plan_sharing(int64_t count) {
    if (blocks_ > ws_.max_shared_blocks_) return;
    int64_t rows = 0, narrow = 0;  // of a block, of a KV head in it
    for (int64_t s = 0; s < count; ++s) {
      for (int64_t i = 0; i < blocking_.blocks(slices_[s]); ++i) {
        const Rows r = rows_of(blocking_.block(slices_[s], i));
        parts_ = std::max(parts_, r.parts);
        rows = std::max<int64_t>(rows, r.count);
        narrow = std::max<int64_t>(narrow, r.count / blocking_.block(slices_[s], i).kv_heads);
      }
    }
    if (narrow > kStreamedRows && blocks_ >= kBlocksPerThread * context_.pool.size()) return;
    const int64_t stride = rows * (ws_.padded_ + 2);
    if (parts_ <= 1 || blocks_ * parts_ * stride > ws_.shared_floats_) return;
    part_stride_ = stride;
    query_floats_ = round_up(rows * query_row_floats(), 16);
    kept_blocks_ = std::min(kKeptBlocks, kKeptRows * ws_.padded_ / query_floats_);
    for (int64_t i = 0; i < blocks_; ++i) ws_.left_[i].store(static_cast<int32_t>(parts_), std::memory_order_relaxed);
  }

  // Calls f(token, head) for the rows of a block, those of a KV head together.
  template <class F>
  void for_rows(const Block& b, F f) const {
    for (int64_t kv = b.kv_head; kv < b.kv_head + b.kv_heads; ++kv) {
      const int64_t head = kv * blocking_.group() + b.head;
      for (int64_t t = b.token; t < b.token + b.tokens; ++t) {
        for (int64_t h = head; h < head + b.heads; ++h) f(t, h);
      }
    }
  }
  Rows rows_of(const Block& b) const {
    Rows rows;
    for_rows(b, [&](int64_t t, int64_t h) {
      rows.add(pattern_, q_ + (b.slice->row + t) * q_stride_ + h * layout_.head_dim, h, b.slice->position + t,
               b.slice->length);
    });
    return rows;
  }

  // Which split a part of a block is.
  static int64_t split_of(const Rows& rows, int64_t index) {
    return index < rows.kept_parts ? index : rows.first_split + index - rows.kept_parts;
  }

  // What with_queries puts down for a row: words and a scale, codes, a scale and a sum, or floats.
  int64_t query_row_floats() const {
    if (layout_.type == kKvInt12) return ws_.padded_ / 2 + 1;
    return layout_.scaled() ? ws_.padded_ / 4 + 2 : ws_.padded_;
  }

  // The queries as the kernel takes them, in `memory`, where they may be `already`; padded_ floats at `mixed` are used
  // meanwhile. Floats lie side by side there: in a batch they lie a power of two apart, and would share a few cache
  // sets.
  AttentionArgs with_queries(Rows& rows, float* memory, float* mixed, bool already = false) const {
    AttentionArgs a{};
    a.rows = rows.count;
    if (layout_.type == kKvInt12) {
      float* scales = memory + rows.count * ws_.padded_ / 2;
      int16_t* words = reinterpret_cast<int16_t*>(memory);
      for (int r = 0; r < rows.count && !already; ++r) {
        table_.hadamard(rows.queries[r], layout_.head_dim, mixed);
        table_.quantize_words(mixed, layout_.head_dim, ws_.padded_, words + r * ws_.padded_, scales + r);
      }
      a.query_words = words;
      a.query_scales = scales;
      return a;
    }
    if (layout_.scaled()) {
      float* scales = memory + rows.count * ws_.padded_ / 4;
      int32_t* sums = reinterpret_cast<int32_t*>(scales + rows.count);
      int8_t* codes = reinterpret_cast<int8_t*>(memory);
      for (int r = 0; r < rows.count && !already; ++r) {
        table_.hadamard(rows.queries[r], layout_.head_dim, mixed);
        table_.quantize_row(mixed, layout_.head_dim, ws_.padded_, ws_.padded_, codes + r * ws_.padded_, scales + r,
                            sums + r, 1);
      }
      a.query_codes = codes;
      a.query_scales = scales;
      a.query_sums = sums;
      return a;
    }
    for (int r = 0; r < rows.count; ++r, memory += ws_.padded_) {
      if (!already) std::copy_n(rows.queries[r], layout_.head_dim, memory);
      rows.queries[r] = memory;
    }
    a.queries = rows.queries;
    return a;
  }

  // `a` has the queries. `next`, if not null, is a block whose part the thread goes on with.
  void run_part(AttentionArgs a, const Block& b, const Rows& rows, int64_t index, const Block* next, int64_t next_index,
                float* scratch, const Part& part) const {
    const bool kept = index < rows.kept_parts;
    const int64_t split = split_of(rows, index);
    a.kv_heads = static_cast<int>(b.kv_heads);
    a.begins = kept ? rows.zeros : rows.begins;
    a.ends = kept ? rows.kept_ends : rows.ends;
    a.positions = rows.positions;
    a.slopes = pattern_.slopes ? rows.slopes : nullptr;
    a.softcap = pattern_.softcap;
    a.head_dim = layout_.head_dim;
    a.token_begin = split * kSplitTokens;
    a.token_end = std::min(kept ? rows.kept_end : rows.end, a.token_begin + kSplitTokens);
    a.pages = b.slice->block_table + a.token_begin / kPageTokens;
    a.keys = keys_ + b.kv_head * layout_.key_head_bytes();
    a.values = values_ + b.kv_head * layout_.value_head_bytes();
    a.key_page_stride = layout_.key_page_bytes();
    a.value_page_stride = layout_.value_page_bytes();
    a.key_head_stride = layout_.key_head_bytes();
    a.value_head_stride = layout_.value_head_bytes();
    if (next) {
      const Rows next_rows = rows_of(*next);
      const int64_t page = split_of(next_rows, next_index) * (kSplitTokens / kPageTokens);
      a.next_pages = next->slice->block_table + page;
      a.next_keys = keys_ + next->kv_head * layout_.key_head_bytes();
      a.next_count = std::min<int64_t>(ceil_div(next_rows.end, kPageTokens) - page, kSplitTokens / kPageTokens);
    }
    a.scratch = scratch;
    a.outputs = part.outputs;
    a.maxima = part.maxima;
    a.sums = part.sums;
    table_.attention[layout_.type](a);
  }

  void begin_state(const Rows& rows, const Part& state) const {
    for (int r = 0; r < rows.count; ++r) {
      state.maxima[r] =
          pattern_.sinks ? pattern_.sinks[rows.heads[r]] * kLog2E : -std::numeric_limits<float>::infinity();
      state.sums[r] = pattern_.sinks ? 1.0f : 0.0f;
    }
    std::fill(state.outputs, state.outputs + rows.count * ws_.padded_, 0.0f);
  }
  void fold(const Rows& rows, const Part& part, const Part& state) const {
    table_.attention_fold(rows.count, part.outputs, part.maxima, part.sums, state.outputs, state.maxima, state.sums,
                          layout_.head_dim);
  }
  void finish(const Block& b, const Part& state) const {
    int64_t r = 0;
    for_rows(b, [&](int64_t t, int64_t h) {
      table_.attention_finish(state.outputs + r * ws_.padded_, state.sums[r],
                              out_ + (b.slice->row + t) * out_stride_ + h * layout_.head_dim, layout_.head_dim);
      ++r;
    });
  }

  // One thread does all parts of a block.
  void run_block(const Block& b, float* memory) const {
    Rows rows = rows_of(b);
    const int64_t results = rows.count * (ws_.padded_ + 2);
    float* const queries = memory;
    memory += rows.count * ws_.padded_;
    const AttentionArgs a = with_queries(rows, queries, memory);
    const Part part(memory, rows.count, ws_.padded_), state(memory + results, rows.count, ws_.padded_);
    begin_state(rows, state);
    for (int64_t i = 0; i < rows.parts; ++i) {
      run_part(a, b, rows, i, i + 1 < rows.parts ? &b : nullptr, i + 1, memory + 2 * results, part);
      fold(rows, part, state);
    }
    finish(b, state);
  }

  // One part of a block; whoever ends the block's last part folds them all, in order. `kept`: the block whose queries
  // are where this one's go.
  void share_block(const Place& p, const Place& following, float* memory, int64_t& kept) const {
    Rows rows = rows_of(p.block);
    float* const queries = memory + p.index % kept_blocks_ * query_floats_;
    memory += kKeptRows * ws_.padded_;
    float* shared =
        ws_.buffer_.as<float>() + context_.pool.size() * ws_.thread_floats_ + p.index * parts_ * part_stride_;
    const auto part = [&](int64_t i) { return Part(shared + i * part_stride_, rows.count, ws_.padded_); };
    if (p.part < rows.parts) {
      const Block* next = following.block.slice ? &following.block : nullptr;
      const AttentionArgs a = with_queries(rows, queries, memory, kept == p.index);
      kept = p.index;
      run_part(a, p.block, rows, p.part, next, following.part, memory, part(p.part));
    }
    if (ws_.left_[p.index].fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    const Part state(memory, rows.count, ws_.padded_);
    begin_state(rows, state);
    for (int64_t i = 0; i < rows.parts; ++i) fold(rows, part(i), state);
    finish(p.block, state);
  }

  const Context& context_;
  const KernelTable& table_;
  AttentionWorkspace& ws_;
  const KvLayout& layout_;
  const uint8_t *keys_, *values_;
  const SequenceSlice* slices_;
  const float* q_;
  int64_t q_stride_;
  const AttentionPattern& pattern_;
  float* out_;
  int64_t out_stride_;
  Blocking blocking_;
  int64_t blocks_ = 0, parts_ = 0, part_stride_ = 0;  // part_stride_ 0: blocks aren't shared
  int64_t query_floats_ = 0, kept_blocks_ = 1;
};

void paged_attention(const Context& context, AttentionWorkspace& workspace, const KvLayout& layout, const uint8_t* keys,
                     const uint8_t* values, const SequenceSlice* slices, int64_t count, const float* q,
                     int64_t q_stride, int64_t heads, const AttentionPattern& pattern, float* out, int64_t out_stride) {
  PagedAttention(context, workspace, layout, keys, values, slices, count, q, q_stride, heads, pattern, out, out_stride)
      .run();
}

}  // namespace llmcore
