// Attention over the pages of some KV heads (kv_pages.h says what they hold). Keys lie as [head_dim][16 tokens], so
// that scores of 16 tokens are one vector summed over head_dim in ascending order; values lie as [16 tokens][head_dim],
// so that an output is summed over tokens in ascending order. No horizontal sums but the softmax's. A split goes
// through its pages twice: keys give all scores, softmax turns them into weights, values are added by weight. Where
// pages hold integers, both are products of integers: keys by the query, values by the weights, each rounded. Included
// after attention_softmax.h.

namespace {

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
    const uint8_t *keys[kTilePages], *values[kTilePages];
    for (int64_t i = page; i < stop; ++i) {
      keys[i - page] = s.keys(i, 0);
      values[i - page] = s.values(i, 0);
    }
    for (int head = 0; head < s.a.kv_heads; ++head) {
      Page tile[kTilePages];
      for (int64_t i = page; i < stop; ++i) {
        Page& p = tile[i - page];
        p.codes = keys[i - page] + head * s.a.key_head_stride;
        p.ahead = stream.next();
        if constexpr (Kv::kScaled) {
          if constexpr (Kv::kPaced) p.again = stream.after(p.codes, i - pass.begin, head, 2, s.a.key_head_stride);
          // What softmax wants of the values.
          prefetch(values[i - page] + head * s.a.value_head_stride + s.padded * Kv::kLineBytes);
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
  // More pages at once are faster where products wait for nothing, and as fast where they wait for memory.
  const int64_t step = Kv::kPaced ? kTilePages : pass.step;
  for (int64_t page = pass.begin; page < pass.end; page += step) {
    const int64_t stop = page + step < pass.end ? page + step : pass.end;
    const uint8_t* values[kTilePages];
    for (int64_t i = page; i < stop; ++i) values[i - page] = s.values(i, 0);
    for (int head = 0; head < s.a.kv_heads; ++head) {
      Page tile[kTilePages];
      for (int64_t i = page; i < stop; ++i) {
        Page& p = tile[i - page];
        p.codes = values[i - page] + head * s.a.value_head_stride;
        p.ahead = stream.next();
        if constexpr (Kv::kPaced) {
          p.again = stream.after(p.codes, pass.end + i - 2 * pass.begin, head, 1, s.a.value_head_stride);
        }
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
  find_groups(s, Kv::kWide);
  if constexpr (Kv::kScaled) {
    for (int r = 0; r < a.rows; ++r) {
      if constexpr (!Kv::kWide) {
        constexpr int kOffset = Kv::kZero - dot4_zero<Kv::Lines::kMaxCode>();
        s.starts[r] = -kOffset * a.query_sums[r];
      }
      s.factors[r] = a.query_scales[r] * llmcore::kLog2E;
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
