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

using llmcore::kScoreStride;
using llmcore::kTilePages;

// Rows that are worked on together, and which tokens of the split they see, counted from its first: some of them
// [first, last), all of them [begin, end).
struct RowGroup {
  int row, count;
  int first, last, begin, end;
};

// The work on one split: where its pages are, and which of its tokens each row sees.
struct Split {
  const llmcore::AttentionArgs& a;
  int64_t padded;  // head_dim
  float* scores;   // [row][kScoreStride]
  int groups;
  int16_t begins[llmcore::kMaxQueryBlock], ends[llmcore::kMaxQueryBlock];
  RowGroup group[llmcore::kMaxQueryBlock];

  int64_t page_number(int64_t index) const { return a.block_table[a.token_begin / 16 + index]; }
  const uint8_t* keys(int64_t index) const { return a.keys + page_number(index) * a.key_page_stride; }
  const uint8_t* values(int64_t index) const { return a.values + page_number(index) * a.value_page_stride; }
};

// How many of n rows to take next: as many as registers hold, but no less than four while there are four.
LLMCORE_INLINE int rows_to_take(int n) {
  constexpr int R = kAttentionRows;
  if (n >= R && (R <= 4 || n == R || n >= R + 4)) return R;
  return n >= 4 && R > 4 ? 4 : n >= 2 && R > 2 ? 2 : 1;
}

LLMCORE_INLINE void find_groups(Split& s) {
  const llmcore::AttentionArgs& a = s.a;
  for (int r = 0; r < a.rows; ++r) {
    const int64_t begin = a.begins[r] > a.token_begin ? a.begins[r] : a.token_begin;
    const int64_t end = a.ends[r] < a.token_end ? a.ends[r] : a.token_end;
    s.begins[r] = static_cast<int16_t>(begin < end ? begin - a.token_begin : 0);
    s.ends[r] = static_cast<int16_t>(begin < end ? end - a.token_begin : 0);
  }
  s.groups = 0;
  for (int row = 0; row < a.rows;) {
    RowGroup g{row, rows_to_take(a.rows - row), llmcore::kSplitTokens, 0, 0, llmcore::kSplitTokens};
    for (int r = row; r < row + g.count; ++r) {
      const int begin = s.begins[r], end = s.ends[r];
      if (begin < end) {
        g.first = begin < g.first ? begin : g.first;
        g.last = end > g.last ? end : g.last;
      }
      g.begin = begin > g.begin ? begin : g.begin;
      g.end = end < g.end ? end : g.end;
    }
    row += g.count;
    s.group[s.groups++] = g;
  }
}

// Calls function.template operator()<R>() with R = rows.
template <int R, class Function>
LLMCORE_INLINE void with_rows(int rows, Function&& function) {
  if constexpr (R > 1) {
    if (rows != R) return with_rows<(R > 4 ? 4 : R / 2)>(rows, function);
  }
  function.template operator()<R>();
}

// scores[r][16 tokens of one page] = q[r] . k, times the tokens' scales where there are any.
template <class Kv, int R>
void score_page(const float* const* queries, const uint8_t* keys, const float* scales, int64_t head_dim, float* scores,
                const uint8_t* ahead) noexcept {
  constexpr int kLines = 64 / Kv::kLineBytes, kUnroll = kLines > 4 ? kLines : 4;
  F32x16 acc[R];
  const float* q[R];
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    acc[r] = set1(0.0f);
    q[r] = queries[r];
  }
  int64_t d = 0;
  for (; d + kUnroll <= head_dim; d += kUnroll) {
    _Pragma("GCC unroll 8") for (int j = 0; j < kUnroll; ++j) {
      if (j % kLines == 0 && ahead) prefetch(ahead + (d + j) * Kv::kLineBytes);
      const F32x16 k = Kv::load_line(keys + (d + j) * Kv::kLineBytes);
      _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) acc[r] = fma(set1(q[r][d + j]), k, acc[r]);
    }
  }
  for (; d < head_dim; ++d) {
    const F32x16 k = Kv::load_line(keys + d * Kv::kLineBytes);
    _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) acc[r] = fma(set1(q[r][d]), k, acc[r]);
  }
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    store(scores + r * kScoreStride, scales ? mul(acc[r], load(scales)) : acc[r]);
  }
}

// Adds `tokens` tokens, whose values lie row_bytes apart, to DB blocks of 16 outputs of R rows.
template <class Kv, int R, int DB>
LLMCORE_INLINE void add_tokens(const float* weights, const uint8_t* values, int64_t row_bytes, int64_t block_bytes,
                               int tokens, F32x16 (&acc)[R][DB]) {
  const float* w[R];
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) w[r] = weights + r * kScoreStride;
  const auto add_token = [&](int t) {
    F32x16 value[DB];
    _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) value[b] = Kv::load_line(values + b * block_bytes);
    _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
      const F32x16 weight = set1(w[r][t]);
      _Pragma("GCC unroll 4") for (int b = 0; b < DB; ++b) acc[r][b] = fma(weight, value[b], acc[r][b]);
    }
    values += row_bytes;
  };
  int t = 0;
  for (; t + 4 <= tokens; t += 4) {
    _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i) add_token(t + i);
  }
  for (; t < tokens; ++t) add_token(t);
}

// Where values lie: a token's lines block_bytes apart, tokens row_bytes apart.
struct ValueLines {
  const uint8_t* first;
  int64_t row_bytes, block_bytes;
  LLMCORE_INLINE ValueLines from(int64_t token) const { return {first + token * row_bytes, row_bytes, block_bytes}; }
};

// The same for all outputs. `ahead`, if not null, is a page to prefetch.
template <class Kv, int R>
void add_values(const float* weights, const ValueLines& values, int64_t padded, int tokens, float* outputs,
                const uint8_t* ahead) noexcept {
  constexpr int DB = R <= 1 ? 4 : R <= 2 ? 2 : 1;
  const auto add_blocks = [&]<int kBlocks>(int64_t d) __attribute__((always_inline)) {
    if (ahead) {  // each of the padded / 16 blocks asks for 16 lines of it
      _Pragma("GCC unroll 16") for (int i = 0; i < 16 * kBlocks; i += 64 / Kv::kLineBytes) {
        prefetch(ahead + (d + i) * Kv::kLineBytes);
      }
    }
    F32x16 acc[R][kBlocks];
    _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
      _Pragma("GCC unroll 4") for (int b = 0; b < kBlocks; ++b) acc[r][b] = load(outputs + r * padded + d + 16 * b);
    }
    add_tokens<Kv, R, kBlocks>(weights, values.first + d / 16 * values.block_bytes, values.row_bytes,
                               values.block_bytes, tokens, acc);
    _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
      _Pragma("GCC unroll 4") for (int b = 0; b < kBlocks; ++b) store(outputs + r * padded + d + 16 * b, acc[r][b]);
    }
  };
  int64_t d = 0;
  for (; d + 16 * DB <= padded; d += 16 * DB) add_blocks.template operator()<DB>(d);
  for (; d < padded; d += 16) add_blocks.template operator()<1>(d);
}

// Adds tokens [from, to) of the split, whose first value is at `values`, to the outputs of a group. A row sums over
// just the tokens it sees: those all rows see are added together, the others row by row, so that no row's result
// depends on the rows beside it.
template <class Kv>
LLMCORE_INLINE void add_to_group(const Split& s, const RowGroup& g, int from, int to, const ValueLines& values,
                                 const uint8_t* ahead) {
  if (from >= g.last || to <= g.first) return;
  const auto add = [&]<int R>(int row, int begin, int end) {
    add_values<Kv, R>(s.scores + row * kScoreStride + begin, values.from(begin - from), s.padded, end - begin,
                      s.a.outputs + row * s.padded, ahead);
  };
  const int begin = g.begin > from ? g.begin : from, end = g.end < to ? g.end : to;
  const bool shared = begin < end;
  const auto one_by_one = [&](int low, int high) {
    for (int row = g.row; row < g.row + g.count; ++row) {
      const int first = s.begins[row] > low ? s.begins[row] : low, last = s.ends[row] < high ? s.ends[row] : high;
      if (first < last) add.template operator()<1>(row, first, last);
    }
  };
  if (!shared || begin > from) one_by_one(from, shared ? begin : to);
  if (!shared) return;
  with_rows<kAttentionRows>(g.count, [&]<int R>() { add.template operator()<R>(g.row, begin, end); });
  if (end < to) one_by_one(end, to);
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
    for (int t = first; t < end; t += 16) store(scores + t, softcap16(load(scores + t), cap));
  }
  if (a.slopes) {
    const F32x16 slope = set1(-a.slopes[row]);
    for (int t = first; t < end; t += 16) {
      const F32x16 offset = set1(static_cast<float>(a.token_begin + t - a.positions[row]));
      store(scores + t, fma(slope, abs(add(load(kLane), offset)), load(scores + t)));
    }
  }
  // What isn't seen gets a score of -infinity. The rest of the pass is the same for all lanes.
  const F32x16 lowest = set1(-__builtin_inff());
  F32x16 top = lowest;
  for (int t = first; t < end; t += 16) {
    F32x16 score = load(scores + t);
    if (t < begin || t + 16 > end) score = select(lanes(begin - t, end - t), score, lowest);
    top = max(top, score);
  }
  const F32x16 maximum = set1(reduce_max(top));
  F32x16 total = set1(0.0f);
  for (int t = first; t < end; t += 16) {
    F32x16 weight = exp16_nonpositive(sub(load(scores + t), maximum));
    if (t < begin || t + 16 > end) weight = select(lanes(begin - t, end - t), weight, set1(0.0f));
    total = add(total, weight);
    if constexpr (Kv::kScaled) {
      const uint8_t* scales = s.values(t / 16) + s.padded * Kv::kLineBytes;
      weight = mul(weight, load(reinterpret_cast<const float*>(scales)));
    }
    store(scores + t, weight);
  }
  float lane[16];
  store(lane, maximum);
  a.maxima[row] = lane[0];
  a.sums[row] = reduce_add(total);
}

// A page's lines as float32, for rows enough that converting them anew for every few would cost more: line i of token t
// (keys: of element t) goes to out[i * stride + t * 16].
template <class Kv>
LLMCORE_INLINE void convert(const uint8_t* page, int64_t tokens, int64_t lines, float* out, int64_t stride,
                            const uint8_t* ahead) {
  for (int64_t t = 0, n = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < lines; ++i, ++n) {
      if (n % (64 / Kv::kLineBytes) == 0) prefetch(ahead + n * Kv::kLineBytes);
      store(out + i * stride + t * 16, Kv::load_line(page + n * Kv::kLineBytes));
    }
  }
}

// What a split reads is a stream of pages: its keys, its values, then the keys of the next head. Prefetches run this
// far ahead of the work; during the softmax, which reads nothing, they gain the difference.
constexpr int64_t kAheadOfKeys = 3, kAheadOfValues = 6;

// `many` rows: pages are converted once for all groups, values of several pages at a time.
template <class Kv>
void attention_kernel(const llmcore::AttentionArgs& a) noexcept {
  Split s{a, padded_dim(a.head_dim), a.scratch, 0, {}, {}, {}};
  find_groups(s);
  int first = llmcore::kSplitTokens, last = 0;
  for (int i = 0; i < s.groups; ++i) {
    first = s.group[i].first < first ? s.group[i].first : first;
    last = s.group[i].last > last ? s.group[i].last : last;
  }
  for (int64_t i = 0; i < a.rows * s.padded; i += 16) store(a.outputs + i, set1(0.0f));
  const int64_t page_begin = first / 16, page_end = (last + 15) / 16, pages = page_end - page_begin;
  const auto stream = [&](int64_t i) -> const uint8_t* {
    if (i < pages) return s.keys(page_begin + i);
    if (i < 2 * pages) return s.values(page_begin + i - pages);
    if (i >= 3 * pages || !a.next_keys) return s.values(page_end - 1);
    return a.next_keys + s.page_number(page_begin + i - 2 * pages) * a.key_page_stride;
  };
  float* lines = s.scores + a.rows * kScoreStride;
  const uint8_t* converted = reinterpret_cast<const uint8_t*>(lines);
  const bool many = s.groups > 2;

  for (int64_t page = page_begin; page < page_end; ++page) {
    const uint8_t *keys = s.keys(page), *ahead = stream(page - page_begin + kAheadOfKeys);
    const float* scales = Kv::kScaled ? reinterpret_cast<const float*>(keys + a.head_dim * Kv::kLineBytes) : nullptr;
    if (many) convert<Kv>(keys, a.head_dim, 1, lines, 0, ahead);
    for (int i = 0; i < s.groups; ++i) {
      const RowGroup& g = s.group[i];
      if (page * 16 >= g.last || page * 16 + 16 <= g.first) continue;
      float* scores = s.scores + g.row * kScoreStride + page * 16;
      with_rows<kAttentionRows>(g.count, [&]<int R>() {
        if (many) {
          score_page<KvF32, R>(a.queries + g.row, converted, scales, a.head_dim, scores, nullptr);
        } else {
          score_page<Kv, R>(a.queries + g.row, keys, scales, a.head_dim, scores, ahead);
        }
      });
    }
  }
  for (int r = 0; r < a.rows; ++r) {
    for (int64_t i = kAheadOfKeys + r; i < kAheadOfValues; i += a.rows) {
      const uint8_t* ahead = stream(pages + i);
      for (int64_t at = 0; at < s.padded * Kv::kLineBytes; at += 64) prefetch(ahead + at);
    }
    softmax_split<Kv>(s, r, s.scores + r * kScoreStride);
  }
  const int64_t step = many ? kTilePages : 1;
  for (int64_t page = page_begin; page < page_end; page += step) {
    const int64_t stop = page + step < page_end ? page + step : page_end;
    const int from = static_cast<int>(page * 16), to = static_cast<int>(stop * 16);
    const uint8_t* ahead = stream(pages + page - page_begin + kAheadOfValues);
    const ValueLines stored{s.values(page), s.padded / 16 * Kv::kLineBytes, Kv::kLineBytes};
    const ValueLines tile{converted, 64, (stop - page) * 16 * 64};
    for (int64_t i = page; many && i < stop; ++i) {
      convert<Kv>(s.values(i), 16, s.padded / 16, lines + (i - page) * 256, (stop - page) * 256,
                  stream(pages + i - page_begin + kAheadOfValues));
    }
    for (int i = 0; i < s.groups; ++i) {
      if (many) {
        add_to_group<KvF32>(s, s.group[i], from, to, tile, nullptr);
      } else {
        add_to_group<Kv>(s, s.group[i], from, to, stored, ahead);
      }
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
