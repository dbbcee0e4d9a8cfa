// Attention over the pages of some KV heads (kv_pages.h says what they hold). Keys lie as [head_dim][16 tokens], so
// that scores of 16 tokens are one vector summed over head_dim in ascending order; values lie as [16 tokens][head_dim],
// so that an output is summed over tokens in ascending order. No horizontal sums but the softmax's. A split goes
// through its pages twice: keys give all scores, softmax turns them into weights, values are added by weight. Where
// pages hold integers, both are products of integers: keys by the query, values by the weights, each rounded. Included
// after matmul.h and kv_pages.h.

namespace {

using llmcore::kScoreStride;
using llmcore::kTilePages;

// Rows that are worked on together, and which tokens of the split they see, counted from its first: some of them
// [first, last), all of them [begin, end).
struct RowGroup {
  int row, count, head;
  int first, last, begin, end;
  // The pages of what some see, none if begin >= end, and those of them among [page, stop).
  struct Pages {
    int64_t begin, end;
  };
  Pages pages() const { return {first / 16, (last + 15) / 16}; }
  Pages pages(int64_t page, int64_t stop) const {
    const Pages all = pages();
    return {all.begin > page ? all.begin : page, all.end < stop ? all.end : stop};
  }
};

// The work on one split: where its pages are, and which of its tokens each row sees.
struct Split {
  explicit LLMCORE_INLINE Split(const llmcore::AttentionArgs& args)
      : a(args),
        padded(padded_dim(a.head_dim)),
        scores(a.scratch),
        starts(reinterpret_cast<int32_t*>(a.scratch + a.rows * kScoreStride)),
        factors(reinterpret_cast<float*>(starts + a.rows)),
        scales(factors + a.rows),
        sums(reinterpret_cast<int32_t*>(scales + a.rows)),
        lines(reinterpret_cast<float*>(sums + a.rows)) {}
  const llmcore::AttentionArgs& a;
  int64_t padded;  // head_dim
  float* scores;   // [row][kScoreStride], from first_row on
  int first_row = 0;
  // Where pages hold integers, of each row: where sums of products begin, what scores still lack for base 2, and the
  // scale and the sum of its rounded weights.
  int32_t* starts;
  float *factors, *scales;
  int32_t* sums;
  float* lines;       // some pages as float32; where they hold integers, the ValueScales of a head
  bool many = false;  // rows a head
  int groups = 0;     // of all heads, one head's after another's
  int16_t begins[llmcore::kMaxQueryBlock], ends[llmcore::kMaxQueryBlock];
  RowGroup group[llmcore::kMaxQueryBlock];

  // A head's part of the split's page `index`.
  const uint8_t* keys(int64_t index, int head) const {
    return a.keys + a.pages[index] * a.key_page_stride + head * a.key_head_stride;
  }
  const uint8_t* values(int64_t index, int head) const {
    return a.values + a.pages[index] * a.value_page_stride + head * a.value_head_stride;
  }
  // Of the work that follows; null if there is none.
  const uint8_t* next_keys(int64_t index, int head) const {
    if (index >= a.next_count) return nullptr;
    return a.next_keys + a.next_pages[index] * a.key_page_stride + head * a.key_head_stride;
  }
  bool bent() const { return a.softcap != 0.0f || a.slopes; }
  float* scores_of(int row) const { return scores + (row - first_row) * kScoreStride; }
  // Where a row's scores were: its weights' digits, of kDigitPages pages the high ones, then the low.
  int8_t* digits(int row) const { return reinterpret_cast<int8_t*>(scores_of(row)); }
};

// Weights of integer values, times the values' scales, are rounded to at most 14 bits and a sign: two digits of 7, for
// dot4 takes no more on every ISA.
constexpr int kDigitBits = 7;
static_assert(255 * (1 << 2 * kDigitBits) * int64_t{llmcore::kSplitTokens} < (int64_t{1} << 31));
constexpr int64_t kDigitPages = 4, kLowDigits = kDigitPages * 16;
// Where a page's high digits are; its low ones are kLowDigits on.
LLMCORE_INLINE int64_t digits_at(int64_t page) { return page / kDigitPages * 2 * kLowDigits + page % kDigitPages * 16; }

// How many of a head's last n rows to take next: `most`, but no less than four while there are four.
LLMCORE_INLINE int rows_to_take(int n, int most) {
  if (n >= most && (most <= 4 || n == most || n >= most + 4)) return most;
  return n >= 4 && most > 4 ? 4 : n >= 2 && most > 2 ? 2 : 1;
}
// Rows of integer values that are added together, two digits each: few enough that some blocks of outputs fit beside.
constexpr int kCodeRows = kAttentionSums >= 16 ? 4 : kAttentionSums >= 4 ? 2 : 1;
LLMCORE_INLINE int code_rows_to_take(int n) {
  if (kAttentionSums >= 24 && (n == 3 || n == 6)) return 3;
  return n >= kCodeRows ? kCodeRows : n >= 2 ? 2 : 1;
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
  const int head_rows = a.rows / a.kv_heads;
  s.many = head_rows > 2 * kAttentionRows;
  const int most = s.many ? kAttentionManyRows : kAttentionRows;
  for (int row = 0; row < a.rows;) {
    const int head = row / head_rows, count = rows_to_take((head + 1) * head_rows - row, most);
    RowGroup g{row, count, head, llmcore::kSplitTokens, 0, 0, llmcore::kSplitTokens};
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

// Calls function.template operator()<R>() with R = rows, at most `most`.
template <int most, class Function>
LLMCORE_INLINE void with_rows(int rows, Function&& function) {
  const auto call = [&]<int R>() {
    if constexpr (R <= most) {
      if (rows == R) function.template operator()<R>();
    }
  };
  call.template operator()<8>();
  call.template operator()<6>();
  call.template operator()<4>();
  if constexpr (most == 4 && kAttentionSums >= 24) call.template operator()<3>();
  call.template operator()<2>();
  call.template operator()<1>();
}

// How many vectors of R rows are summed at once, so that enough sums are on their way and a row's number, once loaded,
// is used for all: pages of scores, blocks of 16 outputs. One, two or four.
template <int R>
constexpr int beside(int most) {
  const int n = kAttentionSums / R < most ? kAttentionSums / R : most;
  return n >= 4 ? 4 : n >= 2 ? 2 : 1;
}

// A page of keys or of integer values, pages to prefetch if not null, and where the first row's scores of keys go.
// `again` was asked for before, but a CPU forgets prefetches while it waits for as many lines as it can.
struct Page {
  const uint8_t *codes = nullptr, *ahead = nullptr, *again = nullptr;
  float* scores = nullptr;
};

// scores[r][16 tokens of a page] = q[r] . k, for P pages.
template <class Kv, int R, int P>
void score_pages(const float* const* queries, const Page* pages, int64_t head_dim) noexcept {
  constexpr int kLines = 64 / Kv::kLineBytes, kUnroll = kLines > 4 ? kLines : 4;
  F32x16 acc[R][P];
  const float* q[R];
  const uint8_t *keys[P], *ahead[P];
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    _Pragma("GCC unroll 4") for (int p = 0; p < P; ++p) acc[r][p] = set1(0.0f);
    q[r] = queries[r];
  }
  _Pragma("GCC unroll 4") for (int p = 0; p < P; ++p) {
    keys[p] = pages[p].codes;
    ahead[p] = pages[p].ahead;
  }
  const auto add_element = [&](int64_t d) __attribute__((always_inline)) {
    F32x16 k[P];
    _Pragma("GCC unroll 4") for (int p = 0; p < P; ++p) k[p] = Kv::load_line(keys[p] + d * Kv::kLineBytes);
    _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
      const F32x16 element = set1(q[r][d]);
      _Pragma("GCC unroll 4") for (int p = 0; p < P; ++p) acc[r][p] = fma(element, k[p], acc[r][p]);
    }
  };
  int64_t d = 0;
  for (; d + kUnroll <= head_dim; d += kUnroll) {
    _Pragma("GCC unroll 8") for (int j = 0; j < kUnroll; ++j) {
      _Pragma("GCC unroll 4") for (int p = 0; p < P; ++p) {
        if (j % kLines == 0 && ahead[p]) prefetch(ahead[p] + (d + j) * Kv::kLineBytes);
      }
      add_element(d + j);
    }
  }
  for (; d < head_dim; ++d) add_element(d);
  _Pragma("GCC unroll 4") for (int p = 0; p < P; ++p) {
    _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) store(pages[p].scores + r * kScoreStride, acc[r][p]);
  }
}

// The same for integer keys: scores are (sum of q * k) * scale of k, still without the scale of q.
template <class Kv, int R, int P>
void score_codes(const Split& s, int row, const Page* pages) noexcept {
  using Lines = typename Kv::Lines;
  const int8_t* x = s.a.query_codes + row * s.padded;
  const int32_t* starts = s.starts + row;
  I32x16 acc[R][P];
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    _Pragma("GCC unroll 4") for (int p = 0; p < P; ++p) acc[r][p] = set1_i32(starts[r]);
  }
  const int64_t bytes = Lines::bytes(key_dim<Kv>(s.a.head_dim));
  for (int64_t at = 0; at < bytes; at += 64, x += Lines::kStep) {
    U8x64 line[P];
    _Pragma("GCC unroll 4") for (int p = 0; p < P; ++p) {
      line[p] = load_u8(pages[p].codes + at);
      if (pages[p].ahead) prefetch(pages[p].ahead + at);
      if (Kv::kPaced && pages[p].again) prefetch(pages[p].again + at);
    }
    multiply_part<Lines, 0>(acc, line, x, s.padded);
    if constexpr (Lines::kParts > 1) multiply_part<Lines, 1>(acc, line, x, s.padded);
  }
  _Pragma("GCC unroll 4") for (int p = 0; p < P; ++p) {
    if (pages[p].ahead) prefetch(pages[p].ahead + bytes);
    const F32x16 scales = load(reinterpret_cast<const float*>(pages[p].codes + bytes));
    float* scores = pages[p].scores;
    _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
      store(scores + r * kScoreStride, mul(to_float(acc[r][p]), scales));
    }
  }
}

// Up to kTilePages pages of float values, tokens row_bytes and blocks of 16 elements block_bytes apart, each with a
// page to prefetch if not null.
struct ValueTile {
  const uint8_t *pages[kTilePages], *ahead[kTilePages];
  int64_t row_bytes, block_bytes;
};

// Adds tokens [begin, end) of a tile by weight to R rows of outputs.
template <class Kv, int R>
void add_values(const float* weights, const ValueTile& tile, int64_t padded, int begin, int end,
                float* outputs) noexcept {
  const auto add_blocks = [&]<int kBlocks>(int64_t d) __attribute__((always_inline)) {
    F32x16 acc[R][kBlocks];
    _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
      _Pragma("GCC unroll 4") for (int b = 0; b < kBlocks; ++b) acc[r][b] = load(outputs + r * padded + d + 16 * b);
    }
    for (int t = begin; t < end;) {
      const int stop = end < t / 16 * 16 + 16 ? end : t / 16 * 16 + 16;
      const int64_t at = t % 16 * tile.row_bytes + d / 16 * tile.block_bytes;
      const uint8_t *values = tile.pages[t / 16] + at, *ahead = tile.ahead[t / 16];
      if (ahead) ahead += at;
      const auto add_token = [&](int i) __attribute__((always_inline)) {
        F32x16 value[kBlocks];
        _Pragma("GCC unroll 4") for (int b = 0; b < kBlocks; ++b) value[b] =
            Kv::load_line(values + b * tile.block_bytes);
        _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
          const F32x16 weight = set1(weights[r * kScoreStride + i]);
          _Pragma("GCC unroll 4") for (int b = 0; b < kBlocks; ++b) acc[r][b] = fma(weight, value[b], acc[r][b]);
        }
        if (ahead) {
          _Pragma("GCC unroll 4") for (int byte = 0; byte < kBlocks * Kv::kLineBytes; byte += 64)
              prefetch(ahead + byte);
          ahead += tile.row_bytes;
        }
        values += tile.row_bytes;
      };
      for (; t + 4 <= stop; t += 4) {
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i) add_token(t + i);
      }
      for (; t < stop; ++t) add_token(t);
    }
    _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
      _Pragma("GCC unroll 4") for (int b = 0; b < kBlocks; ++b) store(outputs + r * padded + d + 16 * b, acc[r][b]);
    }
  };
  constexpr int kBlocks = beside<R>(4);
  int64_t d = 0;
  for (; d + 16 * kBlocks <= padded; d += 16 * kBlocks) add_blocks.template operator()<kBlocks>(d);
  for (; d < padded; d += 16) add_blocks.template operator()<1>(d);
}

// Adds the tokens of a tile, [from, to) of the split, to the outputs of a group. A row sums over just the tokens it
// sees: those all rows see are added together, the others row by row, so that no row's result depends on the rows
// beside it.
template <class Kv>
__attribute__((noinline)) void add_to_group(const Split& s, const RowGroup& g, int from, int to,
                                            const ValueTile& tile) noexcept {
  if (from >= g.last || to <= g.first) return;
  const auto add = [&]<int R>(int row, int begin, int end) {
    add_values<Kv, R>(s.scores_of(row) + from, tile, s.padded, begin - from, end - from, s.a.outputs + row * s.padded);
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

// Adds the tokens of some pages by weight to R rows of outputs, elements [d, d + 16 B). `tile` begins with the first.
// The outputs are integers, none before the `first` pages, and after the `last` what the integers stand for.
template <class Kv, int R, int B>
void add_codes(const Split& s, int row, const Page* tile, RowGroup::Pages pages, int64_t d, bool first,
               bool last) noexcept {
  using Lines = typename Kv::Lines;
  constexpr int kOffset = Kv::kZero - dot4_zero<Lines::kMaxCode>();
  constexpr int64_t kRow = kScoreStride * 4;
  I32x16 high[R][B], low[R][B];
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    _Pragma("GCC unroll 4") for (int b = 0; b < B; ++b) high[r][b] = low[r][b] = set1_i32(0);
  }
  const int8_t* digits = s.digits(row);
  const int64_t block = d / 16 * Lines::bytes(16);
  const auto prefetch_part = [&](const uint8_t* page) __attribute__((always_inline)) {
    if (!page) return;
    for (int64_t at = 0; at < B * Lines::bytes(16); at += 64) prefetch(page + block + at);
  };
  for (int64_t n = pages.begin; n < pages.end; ++n, ++tile) {
    const int8_t* x = digits + digits_at(n);
    const uint8_t* const codes = tile->codes + block;
    prefetch_part(tile->ahead);
    if constexpr (Kv::kPaced) prefetch_part(tile->again);
    for (int64_t at = 0; at < Lines::bytes(16); at += 64, x += Lines::kStep) {
      U8x64 line[B];
      _Pragma("GCC unroll 4") for (int b = 0; b < B; ++b) line[b] = load_u8(codes + b * Lines::bytes(16) + at);
      multiply_part<Lines, 0>(high, line, x, kRow);
      multiply_part<Lines, 0>(low, line, x + kLowDigits, kRow);
      if constexpr (Lines::kParts > 1) {
        multiply_part<Lines, 1>(high, line, x, kRow);
        multiply_part<Lines, 1>(low, line, x + kLowDigits, kRow);
      }
    }
  }
  float* outputs = s.a.outputs + row * s.padded + d;
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    const I32x16 offset = set1_i32(static_cast<int32_t>(-kOffset * static_cast<uint32_t>(s.sums[row + r])));
    const F32x16 scale = set1(s.scales[row + r]);
    _Pragma("GCC unroll 4") for (int b = 0; b < B; ++b) {
      float* out = outputs + r * s.padded + 16 * b;
      I32x16 total = add(shift_left<kDigitBits>(high[r][b]), low[r][b]);
      if (!first) total = add(total, as_int(load(out)));
      store(out, last ? mul(to_float(add(total, offset)), scale) : as_float(total));
    }
  }
}

// The same for all elements and rows of a group, of the pages from `page` on that it sees, up to `stop`. What it asked
// for ahead isn't asked for again.
template <class Kv>
__attribute__((noinline)) void add_codes_to_group(const Split& s, const RowGroup& g, Page* tile, int64_t page,
                                                  int64_t stop) noexcept {
  const RowGroup::Pages pages = g.pages(page, stop);
  if (pages.begin >= pages.end) return;
  const bool first = pages.begin == g.pages().begin, last = pages.end == g.pages().end;
  for (int row = g.row; row < g.row + g.count;) {
    const int count = code_rows_to_take(g.row + g.count - row);
    with_rows<kCodeRows>(count, [&]<int R>() {
      const auto add = [&]<int B>(int64_t d) {
        add_codes<Kv, R, B>(s, row, tile + (pages.begin - page), pages, d, first, last);
      };
      constexpr int B = beside<2 * R>(4);
      int64_t d = 0;
      for (; d + 16 * B <= s.padded; d += 16 * B) add.template operator()<B>(d);
      for (; d < s.padded; d += 16) add.template operator()<1>(d);
    });
    row += count;
  }
  for (int64_t n = pages.begin; n < pages.end; ++n) tile[n - page].ahead = tile[n - page].again = nullptr;
}

// What the scales of integer values, [token], are to softmax: scale = 2^exponent * factor / kUnitFactor, where factors
// are below 2 kUnitFactor, and inverse = 2^-exponent, NaN where the scale is. Exponents are added to scores, so that a
// row's largest weight is 1 and becomes, times its factor, an integer of 14 bits. Exponents are at least
// kLowestExponent, and smaller scales lose bits; scales above 1 / kPastLargestScale become NaN. Between the two the sum
// of weights is right whatever the scales beside.
constexpr float kUnitFactor = (127 << kDigitBits) / 2;
constexpr float kLowestExponent = -40.0f, kPastLargestScale = 0x1p-60f;

struct ValueScales {
  float *exponents, *inverses, *factors;
};
static_assert(3 * llmcore::kSplitTokens <= kTilePages * 16 * 16);  // what Split::lines has room for

template <class Kv>
LLMCORE_INLINE ValueScales value_scales(const Split& s, int64_t begin, int64_t end, int head) {
  const ValueScales v{s.lines, s.lines + llmcore::kSplitTokens, s.lines + 2 * llmcore::kSplitTokens};
  if constexpr (Kv::kScaled) {
    for (int64_t i = begin; i < end; ++i) {
      const F32x16 scale = load(reinterpret_cast<const float*>(s.values(i, head) + s.padded * Kv::kLineBytes));
      const I32x16 bits = sub(shift_right_arithmetic<23>(as_int(abs(scale))), set1_i32(127));
      const F32x16 exponent = max(to_float(bits), set1(kLowestExponent));
      const F32x16 power = as_float(shift_left<23>(sub(set1_i32(127), to_int(exponent))));
      store(v.exponents + i * 16, exponent);
      const F32x16 beyond = mul(mul(scale, set1(kPastLargestScale)), set1(3.4028235e38f));  // infinite then
      store(v.inverses + i * 16, fma(beyond, set1(0.0f), power));
      store(v.factors + i * 16, mul(mul(scale, power), set1(kUnitFactor)));
    }
  }
  return v;
}

// Exponents of scales are in a row's maximum, but not in its sum. Where they are far from 0, so are both: takes the
// power of two from the sum to the maximum, lest splits can't be folded.
LLMCORE_INLINE void balance(const Split& s, int row) {
  uint32_t bits;
  __builtin_memcpy(&bits, s.a.sums + row, 4);
  const int exponent = static_cast<int>(bits >> 23 & 0xff) - 127;
  float scale = 1.0f / kUnitFactor;
  if ((exponent < -20 || exponent > 20) && exponent > -127 && exponent < 127) {
    const uint32_t power = static_cast<uint32_t>(127 - exponent) << 23;
    float inverse;
    __builtin_memcpy(&inverse, &power, 4);
    s.a.maxima[row] += static_cast<float>(exponent);
    s.a.sums[row] *= inverse;
    scale *= inverse;
  }
  s.scales[row] = scale;
}

// Calls f.template operator()<edge>(t) for the lines of 16 tokens from t on in which [begin, end) lies, in ascending
// order; edge where a line isn't all in it.
template <class Function>
LLMCORE_INLINE void for_lines(int begin, int end, Function&& f) {
  int t = begin / 16 * 16;
  const int inner_end = end / 16 * 16;
  if (t < begin && t < end) {
    f.template operator()<true>(t);
    t += 16;
  }
  for (; t < inner_end; t += 16) f.template operator()<false>(t);
  if (t < end) f.template operator()<true>(t);
}

// Scores of the lines a row sees, which lack `factor`, become capped and biased.
__attribute__((noinline)) void bend_scores(const Split& s, int row, float factor) noexcept {
  static const float kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const llmcore::AttentionArgs& a = s.a;
  float* scores = s.scores_of(row);
  const F32x16 cap = set1(a.softcap), slope = set1(a.slopes ? -a.slopes[row] : 0.0f);
  for (int t = s.begins[row] / 16 * 16; t < s.ends[row]; t += 16) {
    F32x16 score = mul(load(scores + t), set1(factor));
    if (a.softcap != 0.0f) score = softcap16(score, cap);
    if (a.slopes) {
      const F32x16 offset = set1(static_cast<float>(a.token_begin + t - a.positions[row]));
      score = fma(slope, abs(add(load(kLane), offset)), score);
    }
    store(scores + t, score);
  }
}

// The largest score a row sees. Where values have scales, scores become score * factor + exponent of the scale.
template <class Kv>
LLMCORE_INLINE F32x16 largest_score(const Split& s, int row, F32x16 factor, const ValueScales& values) {
  float* scores = s.scores_of(row);
  const int begin = s.begins[row], end = s.ends[row];
  const float* exponents = values.exponents;
  const F32x16 lowest = set1(-__builtin_inff());
  F32x16 top = lowest;
  for_lines(begin, end, [&]<bool edge>(int t) {
    F32x16 score = load(scores + t);
    if constexpr (Kv::kScaled) {
      score = fma(score, factor, load(exponents + t));
      store(scores + t, score);
    }
    if constexpr (edge) score = select(lanes(begin - t, end - t), score, lowest);
    top = max(top, score);
  });
  return set1(reduce_max(top));
}

// Turns a row's scores into weights 2^(score * factor - maximum), zero where the row does not see, and returns their
// sum, lane by lane.
LLMCORE_INLINE F32x16 weigh_scores(const Split& s, int row, F32x16 factor, F32x16 maximum) {
  float* scores = s.scores_of(row);
  const int begin = s.begins[row], end = s.ends[row];
  const F32x16 zero = set1(0.0f);
  F32x16 sum = zero;
  for_lines(begin, end, [&]<bool edge>(int t) {
    F32x16 weight = exp2_nonpositive(sub(mul(load(scores + t), factor), maximum));
    if constexpr (edge) weight = select(lanes(begin - t, end - t), weight, zero);
    sum = add(sum, weight);
    store(scores + t, weight);
  });
  return sum;
}

// What a split reads, in the order of memory: its keys, page by page and in a page head by head, its values, then the
// keys of the work that follows. A chunk is a head of a page. Prefetches run a tile and kChunksAhead chunks ahead of
// the work. Where they are paced, a row's softmax counts as kSoftmaxChunks of keys or values.
constexpr int64_t kChunksAhead = 4, kSoftmaxChunks = 2;

class Stream {
 public:
  // Of `count` pages from `first` on, whose first `tile` chunks and kChunksAhead more were asked for before; a row's
  // softmax counts as `softmax_chunks`.
  LLMCORE_INLINE Stream(const Split& split, int64_t first, int64_t count, int64_t tile, int64_t softmax_chunks)
      : s_(split), first_(first), count_(count), chunks_(2 * count * split.a.kv_heads) {
    work_ = chunks_ + split.a.rows * softmax_chunks;
    // Keys fall behind by what is left for softmax.
    const int64_t asked = tile + kChunksAhead + chunks_ / 2 * (work_ - chunks_) / work_;
    page_ = asked / split.a.kv_heads;
    head_ = static_cast<int>(asked % split.a.kv_heads);
    line_share_ = softmax_chunks * split.a.key_head_stride / 64 * chunks_ * kOneLine / (work_ * 3 * count);
  }
  // After a chunk's work: the chunk to prefetch, or null.
  LLMCORE_INLINE const uint8_t* next() {
    due_ += chunks_;
    if (due_ < work_) return nullptr;
    due_ -= work_;
    return next_chunk();
  }
  // The chunk of a head and a page, counted from the split's first keys on, or null. Heads go on in the next page.
  LLMCORE_INLINE const uint8_t* chunk(int64_t page, int head) const {
    for (; head >= s_.a.kv_heads; head -= s_.a.kv_heads) ++page;
    if (page < count_) return s_.keys(first_ + page, head);
    if (page < 2 * count_) return s_.values(first_ + page - count_, head);
    return s_.next_keys(page - 2 * count_, head);
  }
  // Prefetches what is due after thirds of a page of a row's softmax: one where the largest score is looked for, two
  // where scores become weights. Few lines at once, as a CPU forgets the others.
  LLMCORE_INLINE void after_softmax(int64_t thirds) {
    lines_due_ += thirds * line_share_;
    prefetch_lines(lines_due_ / kOneLine);
    lines_due_ %= kOneLine;
  }
  // Prefetches what is left of a chunk.
  LLMCORE_INLINE void finish_chunk() { prefetch_lines((end_ - at_ + 63) / 64); }

 private:
  static constexpr int64_t kOneLine = int64_t{1} << 16;

  LLMCORE_INLINE const uint8_t* next_chunk() {
    const uint8_t* const found = chunk(page_, head_);
    if (++head_ == s_.a.kv_heads) {
      head_ = 0;
      ++page_;
    }
    return found;
  }
  LLMCORE_INLINE void prefetch_lines(int64_t lines) {
    for (; lines > 0; --lines, at_ += 64) {
      if (at_ >= end_) {
        at_ = next_chunk();
        end_ = at_ ? at_ + s_.a.key_head_stride : nullptr;  // values are as long, or a little longer
        if (!at_) return;
      }
      prefetch(at_);
    }
  }

  const Split& s_;
  int64_t first_;
  int64_t count_, chunks_;  // of pages; of chunks of keys and values
  int64_t work_;            // chunks, and what counts as chunks
  int64_t page_;            // of the next chunk to ask for, as its head
  int head_;
  int64_t due_ = 0;                               // of a chunk, in parts of 1 / work_
  int64_t line_share_, lines_due_ = 0;            // of a third of a page of a row's softmax, in parts of 1 / kOneLine
  const uint8_t *at_ = nullptr, *end_ = nullptr;  // what is left of a chunk asked for by lines
};

// Turns a row's scores with exponents into digits of weights with scales, 0 for what else there is of the pages, and
// returns the sum of the weights without scales, lane by lane. The sum of digits of NaN is anything.
LLMCORE_INLINE F32x16 round_weights(const Split& s, int row, F32x16 maximum, const ValueScales& values,
                                    RowGroup::Pages pages, Stream* stream) {
  const int begin = s.begins[row], end = s.ends[row];
  const float *scores = s.scores_of(row), *inverses = values.inverses, *factors = values.factors;
  const F32x16 zero = set1(0.0f);
  F32x16 sum[kDigitPages] = {zero, zero, zero, zero};
  I32x16 code_sum = set1_i32(0);
  uint32_t shifts = 0;  // how often code_sum has kShiftedZero
  int64_t n = pages.begin / kDigitPages * kDigitPages;
  int8_t* digits = s.digits(row) + digits_at(n);  // always behind the scores that are still to be read
  const auto put = [&](const I32x16(&code)[kDigitPages]) __attribute__((always_inline)) {
    code_sum = add(code_sum, add(add(code[0], code[1]), add(code[2], code[3])));
    shifts += kDigitPages * 16;
    store_digits<kDigitBits>(digits, digits + kLowDigits, code);
    digits += 2 * kLowDigits;
    n += kDigitPages;
  };
  // Pages all of whose tokens the row sees.
  const auto round_whole = [&]<int count>() __attribute__((always_inline)) {
    constexpr int kTogether = count < kExp2Together ? count : kExp2Together;
    if (stream) stream->after_softmax(2 * count);
    F32x16 weight[count / kTogether][kTogether];
    I32x16 code[count / kDigitPages][kDigitPages];
    const int t = static_cast<int>(n * 16);
    _Pragma("GCC unroll 4") for (int i = 0; i < count; i += kTogether) {
      F32x16(&w)[kTogether] = weight[i / kTogether];
      repeat<kTogether>([&](int j) { w[j] = sub(load(scores + t + (i + j) * 16), maximum); });
      exp2_nonpositive<4>(w);
    }
    repeat<count>([&](int i) {
      const F32x16 w = weight[i / kTogether][i % kTogether];
      sum[i % kDigitPages] = fma(w, load(inverses + t + i * 16), sum[i % kDigitPages]);
      code[i / kDigitPages][i % kDigitPages] = shifted_product(w, load(factors + t + i * 16));
    });
    _Pragma("GCC unroll 2") for (int i = 0; i < count / kDigitPages; ++i) put(code[i]);
  };
  while (n < pages.end) {
    const int first = static_cast<int>(n * 16), left = end - first;
    if constexpr (kExp2Together > kDigitPages) {
      if (first >= begin && left >= kExp2Together * 16) {
        round_whole.template operator()<kExp2Together>();
        continue;
      }
    }
    if (first >= begin && left >= kDigitPages * 16) {
      round_whole.template operator()<kDigitPages>();
      continue;
    }
    if (stream) stream->after_softmax(2 * kDigitPages);
    I32x16 code[kDigitPages];
    for (int i = 0; i < kDigitPages; ++i) {
      const int t = first + i * 16;
      code[i] = set1_i32(kShiftedZero);
      if (t >= end || t + 16 <= begin) continue;
      const Mask16 seen = lanes(begin - t, end - t);
      F32x16 weight[1] = {sub(load(scores + t), maximum)};
      exp2_nonpositive<4>(weight);
      weight[0] = select(seen, weight[0], zero);
      sum[i] = fma(weight[0], select(seen, load(inverses + t), zero), sum[i]);
      code[i] = shifted_product(weight[0], select(seen, load(factors + t), zero));
    }
    put(code);
  }
  s.sums[row] = static_cast<int32_t>(static_cast<uint32_t>(reduce_add(code_sum)) - shifts * kShiftedZero);
  return add(add(sum[0], sum[1]), add(sum[2], sum[3]));
}

// Softmax of a group's rows: weights for scores, and each row's maximum and sum. Steps take turns row by row, so that
// none waits for its own. `stream`, if not null, goes on meanwhile.
template <class Kv>
__attribute__((noinline)) void softmax_group(const Split& s, const RowGroup& g, const ValueScales& values,
                                             Stream* stream) noexcept {
  F32x16 factors[kAttentionRows], maxima[kAttentionRows];
  for (int r = 0; r < g.count; ++r) {
    const int row = g.row + r;
    factors[r] = set1(Kv::kScaled ? s.factors[row] : llmcore::kLog2E);
    if (s.bent()) {
      bend_scores(s, row, Kv::kScaled ? s.a.query_scales[row] : 1.0f);
      factors[r] = set1(llmcore::kLog2E);
    }
    if (stream) stream->after_softmax(g.pages().end - g.pages().begin);
    maxima[r] = largest_score<Kv>(s, row, factors[r], values);
    if constexpr (!Kv::kScaled) maxima[r] = mul(maxima[r], factors[r]);
  }
  for (int r = 0; r < g.count; ++r) {
    const int row = g.row + r;
    F32x16 sums;
    if constexpr (Kv::kScaled) {
      sums = round_weights(s, row, maxima[r], values, g.pages(), stream);
    } else {
      sums = weigh_scores(s, row, factors[r], maxima[r]);
    }
    s.a.maxima[row] = first_lane(maxima[r]);
    s.a.sums[row] = reduce_add(sums);
    if constexpr (Kv::kScaled) balance(s, row);
  }
}

// Scores of a group's rows for the pages from `page` on that it sees, up to `stop`; `tile` begins with `page`.
template <class Kv>
__attribute__((noinline)) void score_group(const Split& s, const RowGroup& g, Page* tile, int64_t page,
                                           int64_t stop) noexcept {
  const RowGroup::Pages pages = g.pages(page, stop);
  for (int64_t n = pages.begin; n < pages.end; ++n) tile[n - page].scores = s.scores_of(g.row) + n * 16;
  with_rows<kAttentionRows>(g.count, [&]<int R>() {
    const auto score = [&]<int P>(int64_t n) {
      if constexpr (Kv::kScaled) {
        score_codes<Kv, R, P>(s, g.row, tile + (n - page));
      } else {
        score_pages<Kv, R, P>(s.a.queries + g.row, tile + (n - page), s.a.head_dim);
      }
    };
    constexpr int P = beside<R>(kTilePages);
    int64_t n = pages.begin;
    for (; n + P <= pages.end; n += P) score.template operator()<P>(n);
    if constexpr (P > 2) {
      for (; n + 2 <= pages.end; n += 2) score.template operator()<2>(n);
    }
    for (; n < pages.end; ++n) score.template operator()<1>(n);
  });
  for (int64_t n = pages.begin; n < pages.end; ++n) tile[n - page].ahead = tile[n - page].again = nullptr;
}

// A page's lines as float32, for rows enough that converting them anew for every few would cost more: line i of token t
// (keys: of element t) goes to out[i * stride + t * 16].
template <class Kv>
LLMCORE_INLINE void convert(const uint8_t* page, int64_t tokens, int64_t lines, float* out, int64_t stride,
                            const uint8_t* ahead) {
  for (int64_t t = 0, n = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < lines; ++i, ++n) {
      if (n % (64 / Kv::kLineBytes) == 0 && ahead) prefetch(ahead + n * Kv::kLineBytes);
      store(out + i * stride + t * 16, Kv::load_line(page + n * Kv::kLineBytes));
    }
  }
}

// Pages [begin, end) of a split, worked on `step` at a time, head by head. With `many` rows a head, float pages are
// converted to float32 once for all groups of rows, kTilePages at a time.
struct Pass {
  int64_t begin, end, step;
  int head_groups;
};

template <class Kv>
LLMCORE_INLINE void score_keys(const Split& s, const Pass& pass, Stream& stream) {
  const int64_t step = Kv::kPaced ? 1 : pass.step;
  for (int64_t page = pass.begin; page < pass.end; page += step) {
    const int64_t stop = page + step < pass.end ? page + step : pass.end;
    for (int head = 0; head < s.a.kv_heads; ++head) {
      Page tile[kTilePages];
      for (int64_t i = page; i < stop; ++i) {
        Page& p = tile[i - page];
        p.codes = s.keys(i, head);
        p.ahead = stream.next();
        if constexpr (Kv::kScaled) {
          if constexpr (Kv::kPaced) p.again = stream.chunk(i - pass.begin, head + 2);
          prefetch(s.values(i, head) + s.padded * Kv::kLineBytes);  // what softmax wants of the values
        } else if (s.many) {
          float* out = s.lines + (i - page) * 16 * s.padded;
          convert<Kv>(p.codes, s.a.head_dim, 1, out, 0, p.ahead);
          p.codes = reinterpret_cast<const uint8_t*>(out);
          p.ahead = nullptr;
        }
      }
      for (int i = head * pass.head_groups; i < (head + 1) * pass.head_groups; ++i) {
        if (!Kv::kScaled && s.many) {
          score_group<KvF32>(s, s.group[i], tile, page, stop);
        } else {
          score_group<Kv>(s, s.group[i], tile, page, stop);
        }
      }
    }
  }
}

// Adds float values by weight.
template <class Kv>
LLMCORE_INLINE void weigh_values(const Split& s, const Pass& pass, Stream& stream) {
  for (int64_t page = pass.begin; page < pass.end; page += pass.step) {
    const int64_t stop = page + pass.step < pass.end ? page + pass.step : pass.end;
    const int from = static_cast<int>(page * 16), to = static_cast<int>(stop * 16);
    for (int head = 0; head < s.a.kv_heads; ++head) {
      ValueTile tile{{}, {}, s.padded / 16 * Kv::kLineBytes, Kv::kLineBytes};
      if (s.many) {
        tile.row_bytes = 64;
        tile.block_bytes = (stop - page) * 16 * 64;
      }
      for (int64_t i = page; i < stop; ++i) {
        const uint8_t*& values = tile.pages[i - page];
        values = s.values(i, head);
        const uint8_t* ahead = stream.next();
        if (s.many) {
          float* out = s.lines + (i - page) * 256;
          convert<Kv>(values, 16, s.padded / 16, out, (stop - page) * 256, ahead);
          values = reinterpret_cast<const uint8_t*>(out);
        } else {
          tile.ahead[i - page] = ahead;
        }
      }
      for (int i = head * pass.head_groups; i < (head + 1) * pass.head_groups; ++i) {
        if (s.many) {
          add_to_group<KvF32>(s, s.group[i], from, to, tile);
        } else {
          add_to_group<Kv>(s, s.group[i], from, to, tile);
        }
      }
    }
  }
}

// Adds integer values by weight.
template <class Kv>
LLMCORE_INLINE void weigh_codes(const Split& s, const Pass& pass, Stream& stream) {
  for (int64_t page = pass.begin; page < pass.end; page += pass.step) {
    const int64_t stop = page + pass.step < pass.end ? page + pass.step : pass.end;
    for (int head = 0; head < s.a.kv_heads; ++head) {
      Page tile[kTilePages];
      for (int64_t i = page; i < stop; ++i) {
        Page& p = tile[i - page];
        p.codes = s.values(i, head);
        p.ahead = stream.next();
        if constexpr (Kv::kPaced) p.again = stream.chunk(pass.end + i - 2 * pass.begin, head + 1);
      }
      for (int i = head * pass.head_groups; i < (head + 1) * pass.head_groups; ++i) {
        add_codes_to_group<Kv>(s, s.group[i], tile, page, stop);
      }
    }
  }
}

// Integer keys and values: with many rows a head a group passes the whole split before the next, so that its scores
// stay at hand. Pages that follow are asked for by the first group.
template <class Kv>
LLMCORE_INLINE void attend_by_group(Split& s, const Pass& pass) {
  constexpr int64_t kSplitPages = llmcore::kSplitTokens / 16;
  const llmcore::AttentionArgs& a = s.a;
  for (int head = 0; head < a.kv_heads; ++head) {
    const ValueScales scales = value_scales<Kv>(s, pass.begin, pass.end, head);
    Page keys[kSplitPages], values[kSplitPages];
    for (int64_t i = pass.begin; i < pass.end; ++i) {
      const int64_t n = i - pass.begin;
      keys[n] = {s.keys(i, head), s.values(i, head)};
      values[n] = {s.values(i, head), s.next_keys(n, head)};
    }
    for (int i = head * pass.head_groups; i < (head + 1) * pass.head_groups; ++i) {
      const RowGroup& g = s.group[i];
      s.first_row = g.row;
      score_group<Kv>(s, g, keys, pass.begin, pass.end);
      softmax_group<Kv>(s, g, scales, nullptr);
      add_codes_to_group<Kv>(s, g, values, pass.begin, pass.end);
    }
  }
}

template <class Kv>
void attention_kernel(const llmcore::AttentionArgs& a) noexcept {
  Split s(a);
  find_groups(s);
  if constexpr (Kv::kScaled) {
    constexpr int kOffset = Kv::kZero - dot4_zero<Kv::Lines::kMaxCode>();
    for (int r = 0; r < a.rows; ++r) {
      s.starts[r] = -kOffset * a.query_sums[r];
      const float factor = a.query_scales[r] * llmcore::kLog2E;
      s.factors[r] = factor == factor ? factor : __builtin_nanf("");  // with no bits that exp2_nonpositive would lose
    }
  }
  int first = llmcore::kSplitTokens, last = 0;
  for (int i = 0; i < s.groups; ++i) {
    const RowGroup& g = s.group[i];
    first = g.first < first ? g.first : first;
    last = g.last > last ? g.last : last;
    if (Kv::kScaled && g.first < g.last) continue;  // written once
    float* outputs = a.outputs + g.row * s.padded;
    for (int64_t d = 0; d < g.count * s.padded; d += 16) store(outputs + d, set1(0.0f));
  }
  if (first >= last) {
    for (int r = 0; r < a.rows; ++r) {
      a.maxima[r] = -__builtin_inff();
      a.sums[r] = 0.0f;
    }
    return;
  }
  Pass pass{first / 16, (last + 15) / 16, kTilePages / 2, s.groups / a.kv_heads};
  if (s.many) {
    pass.step = kTilePages;
    if constexpr (Kv::kScaled) return attend_by_group<Kv>(s, pass);
  }
  Stream stream(s, pass.begin, pass.end - pass.begin, pass.step * a.kv_heads, Kv::kPaced ? kSoftmaxChunks : 0);

  score_keys<Kv>(s, pass, stream);
  for (int head = 0; head < a.kv_heads; ++head) {
    const ValueScales values = value_scales<Kv>(s, pass.begin, pass.end, head);
    for (int i = head * pass.head_groups; i < (head + 1) * pass.head_groups; ++i) {
      softmax_group<Kv>(s, s.group[i], values, Kv::kPaced ? &stream : nullptr);
    }
  }
  stream.finish_chunk();
  if constexpr (Kv::kScaled) {
    weigh_codes<Kv>(s, pass, stream);
  } else {
    weigh_values<Kv>(s, pass, stream);
  }
}

// Rescales what has the smaller maximum. The first split is taken as it is.
void attention_fold_kernel(int rows, const float* outputs, const float* split_maxima, const float* split_sums,
                           float* states, float* maxima, float* sums, int64_t head_dim) noexcept {
  const int64_t padded = padded_dim(head_dim);
  for (int first = 0; first < rows; first += 16) {
    const int count = rows - first < 16 ? rows - first : 16;
    const F32x16 split = load_first(split_maxima + first, count), own = load_first(maxima + first, count);
    const F32x16 top = max(own, split), split_weight = exp2_nonpositive(sub(split, top));
    const F32x16 own_weight = exp2_nonpositive(sub(own, top));
    const F32x16 split_sum = load_first(split_sums + first, count), own_sum = load_first(sums + first, count);
    float split_weights[16], own_weights[16], tops[16], totals[16];
    store(split_weights, split_weight);
    store(own_weights, own_weight);
    store(tops, top);
    store(totals, fma(split_weight, split_sum, mul(own_weight, own_sum)));
    for (int i = 0; i < count; ++i) {
      const int row = first + i;
      if (split_sums[row] == 0.0f) continue;
      const float* output = outputs + row * padded;
      float* state = states + row * padded;
      if (sums[row] == 0.0f) {
        for (int64_t d = 0; d < padded; d += 16) store(state + d, load(output + d));
        maxima[row] = split_maxima[row];
        sums[row] = split_sums[row];
        continue;
      }
      const F32x16 new_part = set1(split_weights[i]), old_part = set1(own_weights[i]);
      for (int64_t d = 0; d < padded; d += 16) {
        store(state + d, fma(new_part, load(output + d), mul(old_part, load(state + d))));
      }
      maxima[row] = tops[i];
      sums[row] = totals[i];
    }
  }
}

void attention_finish_kernel(const float* state, float sum, float* out, int64_t head_dim) noexcept {
  const F32x16 inverse = set1(1.0f / sum);
  for (int64_t d = 0; d < head_dim; d += 16) store_first(out + d, mul(load(state + d), inverse), head_dim - d);
}

}  // namespace
