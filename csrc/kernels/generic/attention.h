// Attention over the pages of one KV head, and the writing of pages. Keys lie as [head_dim][16 tokens], so that scores
// of 16 tokens are one vector summed over head_dim in ascending order; values lie as [16 tokens][head_dim], so that an
// output is summed over tokens in ascending order. No horizontal sums but the softmax's. A split goes through its pages
// twice: keys give all scores, softmax turns them into weights, values are added by weight. Included after vec.h and
// elementwise.h.

namespace {

// What a page holds: kLineBytes for 16 elements, and how they become float32. Integer types have a scale for each
// token, which is multiplied in after the sum over head_dim (keys) or into the weight (values).

struct KvF32 {
  using Element = float;
  static constexpr int kLineBytes = 64;
  static constexpr bool kScaled = false;
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
  static LLMCORE_INLINE void store_line(uint8_t* p, F32x16 v) { store(reinterpret_cast<float*>(p), v); }
};
struct KvF16 {
  using Element = uint16_t;
  static constexpr int kLineBytes = 32;
  static constexpr bool kScaled = false;
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); }
  static LLMCORE_INLINE void store_line(uint8_t* p, F32x16 v) { store_f16(reinterpret_cast<uint16_t*>(p), v); }
};
struct KvBF16 {
  using Element = uint16_t;
  static constexpr int kLineBytes = 32;
  static constexpr bool kScaled = false;
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) { return load_bf16(reinterpret_cast<const uint16_t*>(p)); }
  static LLMCORE_INLINE void store_line(uint8_t* p, F32x16 v) { store_bf16(reinterpret_cast<uint16_t*>(p), v); }
};
struct KvInt8 {
  static constexpr int kLineBytes = 16;
  static constexpr bool kScaled = true;
  static constexpr float kLowest = -127.0f, kHighest = 127.0f;
  // The scale for elements between low <= 0 and high >= 0.
  static LLMCORE_INLINE float scale(float low, float high) { return (high > -low ? high : -low) / 127.0f; }
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) {
    return to_float(load_i8(reinterpret_cast<const int8_t*>(p)));
  }
  static LLMCORE_INLINE void put(uint8_t* line, int i, int32_t code) { line[i] = static_cast<uint8_t>(code); }
};
struct KvInt4 {
  static constexpr int kLineBytes = 8;
  static constexpr bool kScaled = true;
  static constexpr float kLowest = -8.0f, kHighest = 7.0f;
  // The element of largest magnitude becomes -8, as in the int4 weights.
  static LLMCORE_INLINE float scale(float low, float high) { return (high > -low ? high : low) / -8.0f; }
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) { return to_float(sub(load_nibbles(p), set1_i32(8))); }
  static LLMCORE_INLINE void put(uint8_t* line, int i, int32_t code) {
    const int32_t nibble = code + 8;
    uint8_t& byte = line[i % 8];
    byte = static_cast<uint8_t>(i < 8 ? (byte & 0xf0) | nibble : (byte & 0x0f) | (nibble << 4));
  }
};

LLMCORE_INLINE int64_t padded_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// Calls put(d, code) for each element of a head, 0 beyond it up to `padded`. Returns the scale; NaN or infinity in the
// head makes it NaN.
template <class Kv, class Put>
LLMCORE_INLINE float quantize_head(const float* x, int64_t head_dim, int64_t padded, Put put) {
  F32x16 high = set1(0.0f), low = set1(0.0f), poison = set1(0.0f);
  for (int64_t d = 0; d < head_dim; d += 16) {
    const F32x16 v = load_first(x + d, head_dim - d);
    high = max(v, high);
    low = min(v, low);
    poison = fma(v, set1(0.0f), poison);
  }
  const float scale = Kv::scale(-reduce_max(neg(low)), reduce_max(high));
  const bool tiny = !((scale < 0 ? -scale : scale) > 1e-30f);
  const F32x16 inverse = set1(tiny ? 0.0f : 1.0f / scale);
  for (int64_t d = 0; d < padded; d += 16) {
    const F32x16 v = d < head_dim ? mul(load_first(x + d, head_dim - d), inverse) : set1(0.0f);
    int32_t codes[16];
    store(codes, to_int(min(max(v, set1(Kv::kLowest)), set1(Kv::kHighest))));
    for (int i = 0; i < 16; ++i) {
      if (d + i < padded) put(d + i, codes[i]);
    }
  }
  return (tiny ? 0.0f : scale) + reduce_add(poison);
}

template <class Kv>
void store_key_kernel(const float* key, int64_t head_dim, int lane, uint8_t* page) noexcept {
  if constexpr (Kv::kScaled) {
    const float scale = quantize_head<Kv>(
        key, head_dim, head_dim, [&](int64_t d, int32_t code) { Kv::put(page + d * Kv::kLineBytes, lane, code); });
    __builtin_memcpy(page + head_dim * Kv::kLineBytes + lane * 4, &scale, 4);
  } else {
    using Element = typename Kv::Element;
    Element* out = reinterpret_cast<Element*>(page) + lane;
    for (int64_t d = 0; d < head_dim; d += 16) {
      Element line[16];
      Kv::store_line(reinterpret_cast<uint8_t*>(line), load_first(key + d, head_dim - d));
      for (int64_t i = 0; i < 16 && d + i < head_dim; ++i) out[(d + i) * 16] = line[i];
    }
  }
}

template <class Kv>
void store_value_kernel(const float* value, int64_t head_dim, int lane, uint8_t* page) noexcept {
  const int64_t padded = padded_dim(head_dim);
  uint8_t* out = page + lane * (padded / 16) * Kv::kLineBytes;
  if constexpr (Kv::kScaled) {
    const float scale = quantize_head<Kv>(value, head_dim, padded, [&](int64_t d, int32_t code) {
      Kv::put(out + d / 16 * Kv::kLineBytes, static_cast<int>(d % 16), code);
    });
    __builtin_memcpy(page + padded * Kv::kLineBytes + lane * 4, &scale, 4);
  } else {
    for (int64_t d = 0; d < head_dim; d += 16) {
      Kv::store_line(out + d / 16 * Kv::kLineBytes, load_first(value + d, head_dim - d));
    }
  }
}

// The work on one split: where its pages are, and which of its tokens, counted from token_begin, each row sees.
struct Split {
  const llmcore::AttentionArgs& a;
  int64_t pages;  // of the split
  int64_t key_lines, value_lines;
  int16_t begins[llmcore::kMaxQueryBlock], ends[llmcore::kMaxQueryBlock];

  const uint8_t* page(const uint8_t* base, int64_t stride, int64_t index) const {
    return base + a.block_table[a.token_begin / 16 + index] * stride;
  }
  const uint8_t* keys(int64_t index) const { return page(a.keys, a.key_page_stride, index); }
  const uint8_t* values(int64_t index) const { return page(a.values, a.value_page_stride, index); }
};

// What is read soon: the lines of the page two pages on, while this one is worked on.
constexpr int64_t kPagesAhead = 2;

template <class Kv>
LLMCORE_INLINE void prefetch_line(const uint8_t* ahead, int64_t line) {
  constexpr int kLines = 64 / Kv::kLineBytes;
  if (line % kLines == 0) prefetch(ahead + line * Kv::kLineBytes);
}

// scores[r][16 tokens of one page] = q[r] . k, times the tokens' scales where there are any.
template <class Kv, int R>
LLMCORE_INLINE void score_page(const float* const* queries, const uint8_t* keys, const float* scales, int64_t head_dim,
                               float* scores, const uint8_t* ahead) {
  constexpr int kUnroll = 64 / Kv::kLineBytes;
  F32x16 acc[R];
  const float* q[R];
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    acc[r] = set1(0.0f);
    q[r] = queries[r];
  }
  int64_t d = 0;
  for (; d + kUnroll <= head_dim; d += kUnroll) {
    prefetch(ahead + d * Kv::kLineBytes);
    _Pragma("GCC unroll 8") for (int j = 0; j < kUnroll; ++j) {
      const F32x16 k = Kv::load_line(keys + (d + j) * Kv::kLineBytes);
      _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) acc[r] = fma(set1(q[r][d + j]), k, acc[r]);
    }
  }
  for (; d < head_dim; ++d) {
    const F32x16 k = Kv::load_line(keys + d * Kv::kLineBytes);
    _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) acc[r] = fma(set1(q[r][d]), k, acc[r]);
  }
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    store(scores + r * llmcore::kSplitTokens, scales ? mul(acc[r], load(scales)) : acc[r]);
  }
}

// Adds tokens [begin, end) of a page to DB blocks of 16 outputs of R rows.
template <class Kv, int R, int DB>
LLMCORE_INLINE void add_tokens(const float* weights, const uint8_t* values, int64_t row_bytes, int begin, int end,
                               F32x16 (&acc)[R][DB]) {
  for (int t = begin; t < end; ++t) {
    F32x16 value[DB];
    _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) {
      value[b] = Kv::load_line(values + t * row_bytes + b * Kv::kLineBytes);
    }
    _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
      const F32x16 weight = set1(weights[r * llmcore::kSplitTokens + t]);
      _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) acc[r][b] = fma(weight, value[b], acc[r][b]);
    }
  }
}

template <int R, int DB>
LLMCORE_INLINE void load_outputs(const float* outputs, int64_t stride, F32x16 (&acc)[R][DB]) {
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) acc[r][b] = load(outputs + r * stride + 16 * b);
  }
}
template <int R, int DB>
LLMCORE_INLINE void store_outputs(float* outputs, int64_t stride, const F32x16 (&acc)[R][DB]) {
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) store(outputs + r * stride + 16 * b, acc[r][b]);
  }
}

// Adds tokens [begin, end) of a page to all outputs of R rows, all of which see these tokens.
template <class Kv, int R>
LLMCORE_INLINE void add_page(const float* weights, const uint8_t* values, int64_t padded, int begin, int end,
                             float* outputs, const uint8_t* ahead) {
  constexpr int DB = R <= 1 ? 4 : R <= 2 ? 2 : 1;
  const int64_t row_bytes = padded / 16 * Kv::kLineBytes;
  int64_t d = 0;
  for (; d + 16 * DB <= padded; d += 16 * DB) {
    // Each of the padded / 16 blocks asks for its 16 lines of the page ahead.
    _Pragma("GCC unroll 64") for (int i = 0; i < 16 * DB; ++i) prefetch_line<Kv>(ahead + d * Kv::kLineBytes, i);
    F32x16 acc[R][DB];
    load_outputs<R, DB>(outputs + d, padded, acc);
    const uint8_t* v = values + d / 16 * Kv::kLineBytes;
    if (begin == 0 && end == 16) {
      add_tokens<Kv, R, DB>(weights, v, row_bytes, 0, 16, acc);
    } else {
      add_tokens<Kv, R, DB>(weights, v, row_bytes, begin, end, acc);
    }
    store_outputs<R, DB>(outputs + d, padded, acc);
  }
  if constexpr (DB > 1) {
    for (; d < padded; d += 16) {
      F32x16 acc[R][1];
      load_outputs<R, 1>(outputs + d, padded, acc);
      add_tokens<Kv, R, 1>(weights, values + d / 16 * Kv::kLineBytes, row_bytes, begin, end, acc);
      store_outputs<R, 1>(outputs + d, padded, acc);
    }
  }
}

// A row sums over just the tokens it sees: those all R rows see are added together, the others row by row, so that no
// row's result depends on the rows beside it.
template <class Kv, int R>
LLMCORE_INLINE void value_page(const Split& s, int row, int64_t page, const float* scores, const uint8_t* values,
                               const uint8_t* ahead) {
  const int64_t padded = padded_dim(s.a.head_dim);
  const int origin = static_cast<int>(page * 16);
  int begin = 0, end = 16, first = 16, last = 0;
  for (int r = 0; r < R; ++r) {
    const int from = s.begins[row + r] - origin, to = s.ends[row + r] - origin;
    begin = from > begin ? from : begin;
    end = to < end ? to : end;
    first = from < first ? from : first;
    last = to > last ? to : last;
  }
  if (first >= 16 || last <= 0) return;
  const float* weights = scores + row * llmcore::kSplitTokens + origin;
  float* outputs = s.a.outputs + row * padded;
  if (begin == 0 && end == 16) return add_page<Kv, R>(weights, values, padded, 0, 16, outputs, ahead);
  const bool shared = begin < end;
  const auto one_row = [&](int r, int low, int high) {
    const int from = s.begins[row + r] - origin > low ? s.begins[row + r] - origin : low;
    const int to = s.ends[row + r] - origin < high ? s.ends[row + r] - origin : high;
    if (from < to) {
      add_page<Kv, 1>(weights + r * llmcore::kSplitTokens, values, padded, from, to, outputs + r * padded, ahead);
    }
  };
  for (int r = 0; r < R; ++r) one_row(r, 0, shared ? begin : 16);
  if (!shared) return;
  add_page<Kv, R>(weights, values, padded, begin, end, outputs, ahead);
  for (int r = 0; r < R; ++r) one_row(r, end, 16);
}

// Turns a row's scores into weights e^(score - max), zero where the row does not see, and notes max and sum. Where
// values have scales the weights take them in; the sum doesn't.
template <class Kv>
LLMCORE_INLINE void softmax_split(const Split& s, int row, float* scores) {
  static const float kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const llmcore::AttentionArgs& a = s.a;
  a.maxima[row] = -__builtin_inff();
  a.sums[row] = 0.0f;
  const int begin = s.begins[row], end = s.ends[row];
  if (begin == end) return;
  const int first = begin / 16 * 16;
  if (a.softcap != 0.0f) {
    const F32x16 cap = set1(a.softcap);
    for (int t = first; t < end; t += 16) store(scores + t, mul(cap, tanh16(div(load(scores + t), cap))));
  }
  if (a.slopes) {
    const F32x16 slope = set1(-a.slopes[row]);
    for (int t = first; t < end; t += 16) {
      const F32x16 offset = set1(static_cast<float>(a.token_begin + t - a.positions[row]));
      store(scores + t, fma(slope, abs(add(load(kLane), offset)), load(scores + t)));
    }
  }
  const F32x16 lowest = set1(-__builtin_inff());
  F32x16 top = lowest;
  for (int t = first; t < end; t += 16) {
    F32x16 score = load(scores + t);
    if (t < begin || t + 16 > end) score = select(lanes(begin - t, end - t), score, lowest);
    top = max(top, score);
  }
  const float maximum = reduce_max(top);
  F32x16 total = set1(0.0f);
  for (int t = first; t < end; t += 16) {
    F32x16 weight = exp16(sub(load(scores + t), set1(maximum)));
    if (t < begin || t + 16 > end) weight = select(lanes(begin - t, end - t), weight, set1(0.0f));
    total = add(total, weight);
    if constexpr (Kv::kScaled) {
      const uint8_t* scales = s.values(t / 16) + s.value_lines * Kv::kLineBytes;
      weight = mul(weight, load(reinterpret_cast<const float*>(scales)));
    }
    store(scores + t, weight);
  }
  a.maxima[row] = maximum;
  a.sums[row] = reduce_add(total);
}

template <class Kv, int R>
void score_rows(const Split& s, int row, int64_t page, const uint8_t* keys, const float* scales, float* scores,
                const uint8_t* ahead) noexcept {
  const int origin = static_cast<int>(page * 16);
  for (; s.a.rows - row >= R; row += R) {
    bool seen = false;
    for (int r = 0; r < R; ++r) seen |= s.begins[row + r] < origin + 16 && s.ends[row + r] > origin;
    if (!seen) continue;
    score_page<Kv, R>(s.a.queries + row, keys, scales, s.a.head_dim, scores + row * llmcore::kSplitTokens + origin,
                      ahead);
  }
  if constexpr (R > 1) {
    if (row < s.a.rows) score_rows<Kv, (R > 4 ? 4 : R / 2)>(s, row, page, keys, scales, scores, ahead);
  }
}

template <class Kv, int R>
void value_rows(const Split& s, int row, int64_t page, const float* scores, const uint8_t* values,
                const uint8_t* ahead) noexcept {
  for (; s.a.rows - row >= R; row += R) value_page<Kv, R>(s, row, page, scores, values, ahead);
  if constexpr (R > 1) {
    if (row < s.a.rows) value_rows<Kv, (R > 4 ? 4 : R / 2)>(s, row, page, scores, values, ahead);
  }
}

// Lines as float32, for rows enough that converting them anew for every few would cost more.
template <class Kv>
LLMCORE_INLINE const uint8_t* as_float32(const uint8_t* lines, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) store(out + i * 16, Kv::load_line(lines + i * Kv::kLineBytes));
  return reinterpret_cast<const uint8_t*>(out);
}

template <class Kv>
void attention_kernel(const llmcore::AttentionArgs& a) noexcept {
  const int64_t padded = padded_dim(a.head_dim);
  Split s{a, 0, a.head_dim, padded, {}, {}};
  int first = llmcore::kSplitTokens, last = 0;
  for (int r = 0; r < a.rows; ++r) {
    const int64_t begin = a.begins[r] > a.token_begin ? a.begins[r] : a.token_begin;
    const int64_t end = a.ends[r] < a.token_end ? a.ends[r] : a.token_end;
    s.begins[r] = static_cast<int16_t>(begin < end ? begin - a.token_begin : 0);
    s.ends[r] = static_cast<int16_t>(begin < end ? end - a.token_begin : 0);
    if (begin >= end) continue;
    first = s.begins[r] < first ? s.begins[r] : first;
    last = s.ends[r] > last ? s.ends[r] : last;
  }
  for (int64_t i = 0; i < a.rows * padded; i += 16) store(a.outputs + i, set1(0.0f));
  const int64_t page_begin = first / 16, page_end = (last + 15) / 16;
  // The pages of keys, then those of values, as one stream to prefetch.
  const auto ahead = [&](bool values, int64_t page) {
    int64_t next = page + kPagesAhead;
    if (!values) {
      if (next < page_end) return s.keys(next);
      next = page_begin + (next - page_end);
    }
    return next < page_end ? s.values(next) : s.values(page);
  };
  float* scores = a.scratch;
  float* lines = scores + a.rows * llmcore::kSplitTokens;
  constexpr bool kPlain = Kv::kLineBytes == 64;
  const bool many = !kPlain && a.rows > kAttentionRows;
  for (int64_t page = page_begin; page < page_end; ++page) {
    const uint8_t *keys = s.keys(page), *next = ahead(false, page);
    const float* scales = Kv::kScaled ? reinterpret_cast<const float*>(keys + s.key_lines * Kv::kLineBytes) : nullptr;
    if (many) {
      score_rows<KvF32, kAttentionRows>(s, 0, page, as_float32<Kv>(keys, s.key_lines, lines), scales, scores,
                                        reinterpret_cast<const uint8_t*>(lines));
    } else {
      score_rows<Kv, kAttentionRows>(s, 0, page, keys, scales, scores, next);
    }
  }
  for (int r = 0; r < a.rows; ++r) softmax_split<Kv>(s, r, scores + r * llmcore::kSplitTokens);
  for (int64_t page = page_begin; page < page_end; ++page) {
    const uint8_t *values = s.values(page), *next = ahead(true, page);
    if (many) {
      value_rows<KvF32, kAttentionRows>(s, 0, page, scores, as_float32<Kv>(values, s.value_lines, lines),
                                        reinterpret_cast<const uint8_t*>(lines));
    } else {
      value_rows<Kv, kAttentionRows>(s, 0, page, scores, values, next);
    }
  }
}

// Rescales what has the smaller maximum. The first split is taken as it is.
void attention_fold_kernel(const float* output, float split_maximum, float split_sum, float* out, float* maximum,
                           float* sum, int64_t head_dim) noexcept {
  if (split_sum == 0.0f) return;
  const int64_t padded = padded_dim(head_dim);
  if (*sum == 0.0f) {
    for (int64_t d = 0; d < padded; d += 16) store(out + d, load(output + d));
    *maximum = split_maximum;
    *sum = split_sum;
    return;
  }
  const float top = *maximum > split_maximum ? *maximum : split_maximum;
  float lane[16];
  store(lane, exp16(set1(*maximum - top)));
  const F32x16 old_weight = set1(lane[0]);
  store(lane, exp16(set1(split_maximum - top)));
  const F32x16 new_weight = set1(lane[0]);
  for (int64_t d = 0; d < padded; d += 16) {
    store(out + d, fma(new_weight, load(output + d), mul(old_weight, load(out + d))));
  }
  store(lane, fma(new_weight, set1(split_sum), mul(old_weight, set1(*sum))));
  *maximum = top;
  *sum = lane[0];
}

void attention_finish_kernel(const float* state, float sum, float* out, int64_t head_dim) noexcept {
  for (int64_t d = 0; d < head_dim; d += 16) store_first(out + d, div(load(state + d), set1(sum)), head_dim - d);
}

}  // namespace
