// Products of queries with pages of keys, and of weights with pages of values, in tiles of rows and pages. Included
// after attention_split.h.

namespace {

// How many vectors of R rows are summed at once, so that enough sums are on their way and a row's number, once loaded,
// is used for all: pages of scores, blocks of 16 outputs. One, two or four.
template <int R>
constexpr int beside(int most) {
  const int n = kAttentionSums / R < most ? kAttentionSums / R : most;
  return n >= 4 ? 4 : n >= 2 ? 2 : 1;
}

// How many panels of words are worked on together, each of which takes registers for its words.
constexpr int kWordPanels = kAttentionSums >= 24 ? 2 : 1;

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

// (sum of q * k) * scale of k, still without the scale of q. Scales begin `bytes` after a page's codes.
template <int R, int P>
LLMCORE_INLINE void store_scores(const I32x16 (&sums)[R][P], const Page* pages, int64_t bytes) {
  _Pragma("GCC unroll 4") for (int p = 0; p < P; ++p) {
    if (pages[p].ahead) prefetch(pages[p].ahead + bytes);
    const F32x16 scales = load(reinterpret_cast<const float*>(pages[p].codes + bytes));
    float* scores = pages[p].scores;
    _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
      store(scores + r * kScoreStride, mul(to_float(sums[r][p]), scales));
    }
  }
}

// acc += the products of units of NP panels with words of MR rows, x_stride apart.
template <class Lines, int i = 0, int MR, int NP>
LLMCORE_INLINE void multiply_unit(I32x16 (&acc)[MR][NP], const uint8_t* const (&units)[NP], const int16_t* x,
                                  int64_t x_stride) {
  I16x32 words[NP];
  _Pragma("GCC unroll 4") for (int p = 0; p < NP; ++p) words[p] = Lines::template load<i>(units[p]);
  _Pragma("GCC unroll 8") for (int m = 0; m < MR; ++m) {
    const S16x2 pair = load_s16x2(x + m * x_stride + 2 * i);
    _Pragma("GCC unroll 4") for (int p = 0; p < NP; ++p) acc[m][p] = dot2(acc[m][p], words[p], pair);
  }
  if constexpr (2 * i + 2 < Lines::kStep) multiply_unit<Lines, i + 1>(acc, units, x, x_stride);
}

// Asks for `bytes`, `at` bytes on in what a page has to prefetch.
template <class Kv>
LLMCORE_INLINE void prefetch_part(const Page& page, int64_t at, int64_t bytes) {
  if (page.ahead) {
    for (int64_t line = at; line < at + bytes; line += 64) prefetch(page.ahead + line);
  }
  if (Kv::kPaced && page.again) {
    for (int64_t line = at; line < at + bytes; line += 64) prefetch(page.again + line);
  }
}

// The same as score_pages for integer keys.
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
  // All but a page's first rows have nothing to ask for, and a question for every line takes a tenth of its products'
  // time.
  const auto multiply = [&]<bool prefetching>() __attribute__((always_inline)) {
    for (int64_t at = 0; at < bytes; at += 64, x += Lines::kStep) {
      U8x64 line[P];
      _Pragma("GCC unroll 4") for (int p = 0; p < P; ++p) {
        line[p] = load_u8(pages[p].codes + at);
        if constexpr (prefetching) prefetch_part<Kv>(pages[p], at, 64);
      }
      multiply_part<Lines, 0>(acc, line, x, s.padded);
      if constexpr (Lines::kParts > 1) multiply_part<Lines, 1>(acc, line, x, s.padded);
    }
  };
  bool prefetching = false;
  for (int p = 0; p < P; ++p) prefetching |= pages[p].ahead || pages[p].again;
  if (prefetching) {
    multiply.template operator()<true>();
  } else {
    multiply.template operator()<false>();
  }
  store_scores(acc, pages, bytes);
}

// The same for wide types.
template <class Kv, int R, int P>
void score_words(const Split& s, int row, const Page* pages) noexcept {
  using Lines = typename Kv::Lines;
  const int16_t* x = s.a.query_words + row * s.padded;
  I32x16 acc[R][P];
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    _Pragma("GCC unroll 4") for (int p = 0; p < P; ++p) acc[r][p] = set1_i32(0);
  }
  const int64_t bytes = Lines::bytes(key_dim<Kv>(s.a.head_dim));
  for (int64_t at = 0; at < bytes; at += Lines::kUnit, x += Lines::kStep) {
    const uint8_t* units[P];
    _Pragma("GCC unroll 4") for (int p = 0; p < P; ++p) {
      units[p] = pages[p].codes + at;
      prefetch_part<Kv>(pages[p], at, Lines::kUnit);
    }
    multiply_unit<Lines>(acc, units, x, s.padded);
  }
  store_scores(acc, pages, bytes);
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

// Sums of products of integers for a row's outputs [d, d + 16), which are integers till the last pages: then they are
// what the integers stand for.
LLMCORE_INLINE void put_total(const Split& s, int row, int64_t d, I32x16 total, bool first, bool last) {
  float* out = s.a.outputs + row * s.padded + d;
  if (!first) total = add(total, as_int(load(out)));
  store(out, last ? mul(to_float(total), set1(s.scales[row])) : as_float(total));
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
  for (int64_t n = pages.begin; n < pages.end; ++n, ++tile) {
    const int8_t* x = digits + digits_at(n);
    const uint8_t* const codes = tile->codes + block;
    prefetch_part<Kv>(*tile, block, B * Lines::bytes(16));
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
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    const I32x16 offset = set1_i32(static_cast<int32_t>(-kOffset * static_cast<uint32_t>(s.sums[row + r])));
    _Pragma("GCC unroll 4") for (int b = 0; b < B; ++b) {
      const I32x16 total = add(shift_left<kDigitBits>(high[r][b]), low[r][b]);
      put_total(s, row + r, d + 16 * b, first ? add(total, offset) : total, first, last);
    }
  }
}

// The same for wide types.
template <class Kv, int R, int B>
void add_words(const Split& s, int row, const Page* tile, RowGroup::Pages pages, int64_t d, bool first,
               bool last) noexcept {
  using Lines = typename Kv::Lines;
  constexpr int64_t kBlockBytes = Lines::bytes(16);
  I32x16 acc[R][B];
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    _Pragma("GCC unroll 4") for (int b = 0; b < B; ++b) acc[r][b] = set1_i32(0);
  }
  const int16_t* x = s.words(row) + pages.begin * 16;
  for (int64_t n = pages.begin; n < pages.end; ++n, ++tile) {
    for (int64_t at = d / 16 * kBlockBytes, end = at + kBlockBytes; at < end; at += Lines::kUnit, x += Lines::kStep) {
      const uint8_t* units[B];
      _Pragma("GCC unroll 4") for (int b = 0; b < B; ++b) {
        units[b] = tile->codes + at + b * kBlockBytes;
        prefetch_part<Kv>(*tile, at + b * kBlockBytes, Lines::kUnit);
      }
      multiply_unit<Lines>(acc, units, x, kScoreStride * 2);
    }
  }
  _Pragma("GCC unroll 8") for (int r = 0; r < R; ++r) {
    _Pragma("GCC unroll 4") for (int b = 0; b < B; ++b) put_total(s, row + r, d + 16 * b, acc[r][b], first, last);
  }
}

// Either for all elements and rows of a group, of the pages from `page` on that it sees, up to `stop`. What it asked
// for ahead isn't asked for again.
template <class Kv>
__attribute__((noinline)) void add_codes_to_group(const Split& s, const RowGroup& g, Page* tile, int64_t page,
                                                  int64_t stop) noexcept {
  const RowGroup::Pages pages = g.pages(page, stop);
  if (pages.begin >= pages.end) return;
  const bool first = pages.begin == g.pages().begin, last = pages.end == g.pages().end;
  for (int row = g.row; row < g.row + g.count;) {
    const int count = Kv::kWide ? g.count : code_rows_to_take(g.row + g.count - row);
    with_rows<Kv::kWide ? kAttentionRows : kCodeRows>(count, [&]<int R>() {
      const auto add = [&]<int B>(int64_t d) {
        if constexpr (Kv::kWide) {
          add_words<Kv, R, B>(s, row, tile + (pages.begin - page), pages, d, first, last);
        } else {
          add_codes<Kv, R, B>(s, row, tile + (pages.begin - page), pages, d, first, last);
        }
      };
      constexpr int B = Kv::kWide ? beside<R>(kWordPanels) : beside<2 * R>(4);
      int64_t d = 0;
      for (; d + 16 * B <= s.padded; d += 16 * B) add.template operator()<B>(d);
      for (; d < s.padded; d += 16) add.template operator()<1>(d);
    });
    row += count;
  }
  for (int64_t n = pages.begin; n < pages.end; ++n) tile[n - page].ahead = tile[n - page].again = nullptr;
}

// Scores of a group's rows for the pages from `page` on that it sees, up to `stop`; `tile` begins with `page`.
template <class Kv>
__attribute__((noinline)) void score_group(const Split& s, const RowGroup& g, Page* tile, int64_t page,
                                           int64_t stop) noexcept {
  const RowGroup::Pages pages = g.pages(page, stop);
  for (int64_t n = pages.begin; n < pages.end; ++n) tile[n - page].scores = s.scores_of(g.row) + n * 16;
  with_rows<kAttentionRows>(g.count, [&]<int R>() {
    const auto score = [&]<int P>(int64_t n) {
      if constexpr (Kv::kWide) {
        score_words<Kv, R, P>(s, g.row, tile + (n - page));
      } else if constexpr (Kv::kScaled) {
        score_codes<Kv, R, P>(s, g.row, tile + (n - page));
      } else {
        score_pages<Kv, R, P>(s.a.queries + g.row, tile + (n - page), s.a.head_dim);
      }
    };
    constexpr int P = beside<R>(Kv::kWide ? kWordPanels : kTilePages);
    int64_t n = pages.begin;
    for (; n + P <= pages.end; n += P) score.template operator()<P>(n);
    if constexpr (P > 2) {
      for (; n + 2 <= pages.end; n += 2) score.template operator()<2>(n);
    }
    for (; n < pages.end; ++n) score.template operator()<1>(n);
  });
  for (int64_t n = pages.begin; n < pages.end; ++n) tile[n - page].ahead = tile[n - page].again = nullptr;
}

}  // namespace
