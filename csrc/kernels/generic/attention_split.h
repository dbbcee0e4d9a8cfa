// What attention works on: a split of the tokens of some KV heads, the rows that see it, how rows fall into groups, and
// the order in which pages are asked for ahead. Included after kv_pages.h.

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
  // The same for wide types: its weights, one for each token.
  int16_t* words(int row) const { return reinterpret_cast<int16_t*>(scores_of(row)); }
};

// Weights of integer values, times the values' scales, are rounded: for bytes to at most 14 bits and a sign, two digits
// of 7, for dot4 takes no more on every ISA. Digits of so many pages lie together, and so many pages are rounded at
// once.
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

LLMCORE_INLINE void find_groups(Split& s, bool wide) {
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
  const int most = s.many && !wide ? kAttentionManyRows : kAttentionRows;
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
    begin_page();
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
  // The chunk `heads` on from one that is at `from`, where the next head is `stride` away.
  LLMCORE_INLINE const uint8_t* after(const uint8_t* from, int64_t page, int head, int heads, int64_t stride) const {
    return head + heads < s_.a.kv_heads ? from + heads * stride : chunk(page, head + heads);
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
    const uint8_t* const found = next_;
    if (++head_ == s_.a.kv_heads) {
      head_ = 0;
      ++page_;
      begin_page();
    } else if (next_) {
      next_ += stride_;
    }
    return found;
  }
  LLMCORE_INLINE void begin_page() {
    next_ = chunk(page_, head_);
    stride_ = page_ >= count_ && page_ < 2 * count_ ? s_.a.value_head_stride : s_.a.key_head_stride;
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
  int64_t page_;            // of the next chunk to ask for, as its head, where it is, and how far on the next head is
  int head_;
  const uint8_t* next_;
  int64_t stride_;
  int64_t due_ = 0;                               // of a chunk, in parts of 1 / work_
  int64_t line_share_, lines_due_ = 0;            // of a third of a page of a row's softmax, in parts of 1 / kOneLine
  const uint8_t *at_ = nullptr, *end_ = nullptr;  // what is left of a chunk asked for by lines
};

}  // namespace
