// Attention over the pages of one KV head, and the writing of pages. Keys lie as [head_dim][16 tokens], so that scores
// of 16 tokens are one vector summed over head_dim in ascending order; values lie as [16 tokens][head_dim], so that an
// output is summed over tokens in ascending order. No horizontal sums but the softmax's. Included after vec.h and
// elementwise.h.

namespace {

struct KvF32 {
  using Element = float;
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
  static LLMCORE_INLINE void store_line(uint8_t* p, F32x16 v) { store(reinterpret_cast<float*>(p), v); }
};
struct KvF16 {
  using Element = uint16_t;
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); }
  static LLMCORE_INLINE void store_line(uint8_t* p, F32x16 v) { store_f16(reinterpret_cast<uint16_t*>(p), v); }
};
struct KvBF16 {
  using Element = uint16_t;
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) { return load_bf16(reinterpret_cast<const uint16_t*>(p)); }
  static LLMCORE_INLINE void store_line(uint8_t* p, F32x16 v) { store_bf16(reinterpret_cast<uint16_t*>(p), v); }
};

template <class Kv>
void store_key_kernel(const float* key, int64_t head_dim, int lane, uint8_t* page) noexcept {
  using Element = typename Kv::Element;
  Element* out = reinterpret_cast<Element*>(page) + lane;
  for (int64_t d = 0; d < head_dim; d += 16) {
    Element line[16];
    Kv::store_line(reinterpret_cast<uint8_t*>(line), load_first(key + d, head_dim - d));
    for (int64_t i = 0; i < 16 && d + i < head_dim; ++i) out[(d + i) * 16] = line[i];
  }
}

template <class Kv>
void store_value_kernel(const float* value, int64_t head_dim, int lane, uint8_t* page) noexcept {
  const int64_t padded = (head_dim + 15) / 16 * 16;
  uint8_t* out = page + lane * padded * static_cast<int64_t>(sizeof(typename Kv::Element));
  for (int64_t d = 0; d < head_dim; d += 16) {
    Kv::store_line(out + d * static_cast<int64_t>(sizeof(typename Kv::Element)), load_first(value + d, head_dim - d));
  }
}

using ScoreRow = float[llmcore::kSplitTokens];

// scores[r][16 tokens of one page] = q[r] . k
template <class Kv, int R>
void score_page(const float* const* queries, const uint8_t* keys, int64_t head_dim, ScoreRow* scores,
                int64_t offset) noexcept {
  F32x16 acc[R];
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) acc[r] = set1(0.0f);
  for (int64_t d = 0; d < head_dim; ++d) {
    const F32x16 k = Kv::load_line(keys + d * 16 * static_cast<int64_t>(sizeof(typename Kv::Element)));
    _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) acc[r] = fma(set1(queries[r][d]), k, acc[r]);
  }
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) store(scores[r] + offset, acc[r]);
}

// Adds tokens [begin, end) of the split to DB blocks of 16 outputs of R rows.
template <class Kv, int R, int DB>
LLMCORE_INLINE void add_values(const llmcore::AttentionArgs& a, const ScoreRow* weights, F32x16 (&acc)[R][DB],
                               int64_t d0, int64_t begin, int64_t end) {
  constexpr int64_t kSize = static_cast<int64_t>(sizeof(typename Kv::Element));
  const int64_t row = (a.head_dim + 15) / 16 * 16 * kSize;
  for (int64_t t = begin; t < end;) {
    const int64_t stop = (t | 15) + 1 < end ? (t | 15) + 1 : end;
    const uint8_t* v = a.values + a.block_table[t / 16] * a.value_page_stride + (t % 16) * row + d0 * kSize;
    for (; t < stop; ++t, v += row) {
      F32x16 value[DB];
      _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) value[b] = Kv::load_line(v + b * 16 * kSize);
      _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
        const F32x16 weight = set1(weights[r][t - a.token_begin]);
        _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) acc[r][b] = fma(weight, value[b], acc[r][b]);
      }
    }
  }
}

struct Visible {
  int64_t begin, end;
};

LLMCORE_INLINE Visible visible(const llmcore::AttentionArgs& a, int row) {
  const int64_t begin = a.begins[row] > a.token_begin ? a.begins[row] : a.token_begin;
  const int64_t end = a.ends[row] < a.token_end ? a.ends[row] : a.token_end;
  return {begin, end < begin ? begin : end};
}

// A row sums over just the tokens it sees: those all R rows see are added together, the others row by row, so that no
// row's result depends on the rows beside it.
template <class Kv, int R, int DB>
void value_block(const llmcore::AttentionArgs& a, const ScoreRow* weights, int row, int64_t d0) noexcept {
  F32x16 acc[R][DB];
  int64_t begin = a.token_begin, end = a.token_end;
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    const Visible v = visible(a, row + r);
    begin = v.begin > begin ? v.begin : begin;
    end = v.end < end ? v.end : end;
    _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) acc[r][b] = set1(0.0f);
  }
  const bool shared = begin < end;
  for (int r = 0; r < R; ++r) {
    const Visible v = visible(a, row + r);
    F32x16 one[1][DB];
    _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) one[0][b] = set1(0.0f);
    add_values<Kv, 1, DB>(a, weights + r, one, d0, v.begin, shared ? begin : v.end);
    _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) acc[r][b] = one[0][b];
  }
  if (shared) {
    add_values<Kv, R, DB>(a, weights, acc, d0, begin, end);
    for (int r = 0; r < R; ++r) {
      const Visible v = visible(a, row + r);
      F32x16 one[1][DB];
      _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) one[0][b] = acc[r][b];
      add_values<Kv, 1, DB>(a, weights + r, one, d0, end, v.end);
      _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) acc[r][b] = one[0][b];
    }
  }
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) store(a.outputs[row + r] + d0 + 16 * b, acc[r][b]);
  }
}

// Turns a row's scores into weights e^(score - max), zero where the row does not see, and notes max and sum.
LLMCORE_INLINE void softmax_split(const llmcore::AttentionArgs& a, int row, float* scores) {
  const Visible v = visible(a, row);
  a.maxima[row] = -__builtin_inff();
  a.sums[row] = 0.0f;
  if (v.begin == v.end) return;  // begin may lie beyond the split, and beyond the scores
  const int64_t first = (v.begin - a.token_begin) / 16 * 16, last = v.end - a.token_begin;
  const int64_t begin = v.begin - a.token_begin;
  const F32x16 lowest = set1(-__builtin_inff());
  F32x16 top = lowest;
  for (int64_t t = first; t < last; t += 16) {
    const Mask16 seen = lanes(static_cast<int>(begin - t), static_cast<int>(last - t));
    top = max(top, select(seen, load(scores + t), lowest));
  }
  const float maximum = reduce_max(top);
  F32x16 total = set1(0.0f);
  for (int64_t t = first; t < last; t += 16) {
    const Mask16 seen = lanes(static_cast<int>(begin - t), static_cast<int>(last - t));
    const F32x16 weight = select(seen, exp16(sub(load(scores + t), set1(maximum))), set1(0.0f));
    total = add(total, weight);
    store(scores + t, weight);
  }
  a.maxima[row] = maximum;
  a.sums[row] = reduce_add(total);
}

template <class Kv, int R>
void attention_rows(const llmcore::AttentionArgs& a, int row) noexcept {
  alignas(64) ScoreRow scores[R];
  int64_t begin = a.token_end, end = a.token_begin;
  for (int r = 0; r < R; ++r) {
    const Visible v = visible(a, row + r);
    if (v.begin < v.end) {
      begin = v.begin < begin ? v.begin : begin;
      end = v.end > end ? v.end : end;
    }
  }
  for (int64_t page = begin / 16; page * 16 < end; ++page) {
    score_page<Kv, R>(a.queries + row, a.keys + a.block_table[page] * a.key_page_stride, a.head_dim, scores,
                      page * 16 - a.token_begin);
  }
  for (int r = 0; r < R; ++r) softmax_split(a, row + r, scores[r]);
  const int64_t padded = (a.head_dim + 15) / 16 * 16;
  constexpr int kBlocks = R <= 2 ? 4 : R <= 4 ? 2 : 1;
  int64_t d = 0;
  for (; d + 16 * kBlocks <= padded; d += 16 * kBlocks) value_block<Kv, R, kBlocks>(a, scores, row, d);
  for (; d < padded; d += 16) value_block<Kv, R, 1>(a, scores, row, d);
}

template <class Kv, int R>
void attention_dispatch(const llmcore::AttentionArgs& a, int row) noexcept {
  for (; a.rows - row >= R; row += R) attention_rows<Kv, R>(a, row);
  if constexpr (R > 1) {
    if (row < a.rows) attention_dispatch<Kv, R / 2>(a, row);
  }
}

template <class Kv>
void attention_kernel(const llmcore::AttentionArgs& a) noexcept {
  attention_dispatch<Kv, kAttentionRows>(a, 0);
}

void attention_combine_kernel(const float* outputs, int64_t output_stride, const float* maxima, const float* sums,
                              int64_t splits, float* out, int64_t head_dim) noexcept {
  float maximum = -__builtin_inff();
  for (int64_t s = 0; s < splits; ++s) maximum = maximum > maxima[s] ? maximum : maxima[s];
  float total = 0.0f;
  for (int64_t d = 0; d < head_dim; d += 16) store_first(out + d, set1(0.0f), head_dim - d);
  for (int64_t s = 0; s < splits; ++s) {
    float lane[16];
    store(lane, exp16(set1(maxima[s] - maximum)));
    const F32x16 weight = set1(lane[0]);
    store(lane, fma(weight, set1(sums[s]), set1(total)));
    total = lane[0];
    for (int64_t d = 0; d < head_dim; d += 16) {
      const F32x16 v = load(outputs + s * output_stride + d);
      store_first(out + d, fma(weight, v, load_first(out + d, head_dim - d)), head_dim - d);
    }
  }
  for (int64_t d = 0; d < head_dim; d += 16) {
    store_first(out + d, div(load_first(out + d, head_dim - d), set1(total)), head_dim - d);
  }
}

}  // namespace
