// Scores of a split become weights, which are rounded to integers where values are integers. Included after
// attention_split.h.

namespace {

// What the scales of integer values, [token], are to softmax: scale = 2^exponent * factor / kUnitFactor, where factors
// are below 2 kUnitFactor, and inverse = 2^-exponent, NaN where the scale is. Exponents are added to scores, so that a
// row's largest weight is 1 and becomes, times its factor, an integer of all bits there are. Exponents are at least
// kLowestExponent, and smaller scales lose bits; scales above 1 / kPastLargestScale become NaN. Between the two the sum
// of weights is right whatever the scales beside.
template <bool wide>
constexpr float kUnitFactor = wide ? 1.0f : (127 << kDigitBits) / 2;
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
      store(v.factors + i * 16, mul(mul(scale, power), set1(kUnitFactor<Kv::kWide>)));
    }
  }
  return v;
}

// Exponents of scales are in a row's maximum, but not in its sum. Where they are far from 0, so are both: takes the
// power of two from the sum to the maximum, lest splits can't be folded. `scale` is that of the rounded weights.
LLMCORE_INLINE void balance(const Split& s, int row, float scale) {
  uint32_t bits;
  __builtin_memcpy(&bits, s.a.sums + row, 4);
  const int exponent = static_cast<int>(bits >> 23 & 0xff) - 127;
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
  _Pragma("GCC unroll 4") for (; t < inner_end; t += 16) f.template operator()<false>(t);
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

// What round_weights makes of weights times their values' factors: digits for dot4.
template <bool wide>
struct Rounding {
  using Rounded = I32x16;
  LLMCORE_INLINE Rounding(const Split& split, int r, int64_t page)
      : s(split), row(r), digits(split.digits(r) + digits_at(page)) {}
  const Split& s;
  int row;
  int8_t* digits;  // always behind the scores that are still to be read
  I32x16 sum = set1_i32(0);
  uint32_t shifts = 0;  // how often `sum` has kShiftedZero

  static LLMCORE_INLINE I32x16 nothing() { return set1_i32(kShiftedZero); }
  static LLMCORE_INLINE I32x16 round(F32x16 weight, F32x16 factor) { return shifted_product(weight, factor); }
  LLMCORE_INLINE void put(const I32x16 (&code)[kDigitPages]) {
    sum = add(sum, add(add(code[0], code[1]), add(code[2], code[3])));
    shifts += kDigitPages * 16;
    store_digits<kDigitBits>(digits, digits + kLowDigits, code);
    digits += 2 * kLowDigits;
  }
  // Returns what a unit of the digits stands for.
  LLMCORE_INLINE float finish() {
    s.sums[row] = static_cast<int32_t>(static_cast<uint32_t>(reduce_add(sum)) - shifts * kShiftedZero);
    return 1.0f / kUnitFactor<false>;
  }
};
// Or words for dot2, whose sum is kMaxWordSum at most, but for rounding; so they are rounded when all are known.
template <>
struct Rounding<true> {
  using Rounded = F32x16;
  LLMCORE_INLINE Rounding(const Split& s, int row, int64_t page)
      : words(s.words(row)), products(s.scores_of(row)), first(page * 16), end(first) {}
  int16_t* words;
  float* products;
  int64_t first, end;
  F32x16 sum = set1(0.0f);

  static LLMCORE_INLINE F32x16 nothing() { return set1(0.0f); }
  static LLMCORE_INLINE F32x16 round(F32x16 weight, F32x16 factor) { return mul(weight, factor); }
  LLMCORE_INLINE void put(const F32x16 (&product)[kDigitPages]) {
    sum = add(sum, add(add(product[0], product[1]), add(product[2], product[3])));
    repeat<kDigitPages>([&](int i) { store(products + end + 16 * i, product[i]); });
    end += kDigitPages * 16;
  }
  LLMCORE_INLINE float finish() {
    const float share = static_cast<float>(llmcore::kMaxWordSum) / reduce_add(sum);  // of a product, which is below 2
    const float factor = share < 16383.0f ? share : 16383.0f;
    for (int64_t t = first; t < end; t += 16) {
      store_i16(words + t, shifted_product(load(products + t), set1(factor)));
    }
    return 1.0f / factor;
  }
};

// Turns a row's scores with exponents into integers for weights with scales, 0 for what else there is of the pages, and
// returns the sum of the weights without scales, lane by lane. `unit` becomes what 1 stands for. Integers of NaN are
// anything.
template <class Kv>
LLMCORE_INLINE F32x16 round_weights(const Split& s, int row, F32x16 maximum, const ValueScales& values,
                                    RowGroup::Pages pages, Stream* stream, float& unit) {
  using Round = Rounding<Kv::kWide>;
  using Rounded = typename Round::Rounded;
  const int begin = s.begins[row], end = s.ends[row];
  const float *scores = s.scores_of(row), *inverses = values.inverses, *factors = values.factors;
  const F32x16 zero = set1(0.0f);
  F32x16 sum[kDigitPages] = {zero, zero, zero, zero};
  int64_t n = pages.begin / kDigitPages * kDigitPages;
  Round rounding(s, row, n);
  // Pages all of whose tokens the row sees.
  const auto round_whole = [&]<int count>() __attribute__((always_inline)) {
    constexpr int kTogether = count < kExp2Together ? count : kExp2Together;
    if (stream) stream->after_softmax(2 * count);
    F32x16 weight[count / kTogether][kTogether];
    Rounded rounded[count / kDigitPages][kDigitPages];
    const int t = static_cast<int>(n * 16);
    _Pragma("GCC unroll 4") for (int i = 0; i < count; i += kTogether) {
      F32x16(&w)[kTogether] = weight[i / kTogether];
      repeat<kTogether>([&](int j) { w[j] = sub(load(scores + t + (i + j) * 16), maximum); });
      exp2_nonpositive<4>(w);
    }
    repeat<count>([&](int i) {
      const F32x16 w = weight[i / kTogether][i % kTogether];
      sum[i % kDigitPages] = fma(w, load(inverses + t + i * 16), sum[i % kDigitPages]);
      rounded[i / kDigitPages][i % kDigitPages] = Round::round(w, load(factors + t + i * 16));
    });
    _Pragma("GCC unroll 2") for (int i = 0; i < count / kDigitPages; ++i) rounding.put(rounded[i]);
    n += count;
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
    Rounded rounded[kDigitPages];
    for (int i = 0; i < kDigitPages; ++i) {
      const int t = first + i * 16;
      rounded[i] = Round::nothing();
      if (t >= end || t + 16 <= begin) continue;
      const Mask16 seen = lanes(begin - t, end - t);
      F32x16 weight[1] = {sub(load(scores + t), maximum)};
      exp2_nonpositive<4>(weight);
      weight[0] = select(seen, weight[0], zero);
      sum[i] = fma(weight[0], select(seen, load(inverses + t), zero), sum[i]);
      rounded[i] = Round::round(weight[0], select(seen, load(factors + t), zero));
    }
    rounding.put(rounded);
    n += kDigitPages;
  }
  unit = rounding.finish();
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
    s.a.maxima[row] = first_lane(maxima[r]);
    if constexpr (Kv::kScaled) {
      float scale;
      s.a.sums[row] = reduce_add(round_weights<Kv>(s, row, maxima[r], values, g.pages(), stream, scale));
      balance(s, row, scale);
    } else {
      s.a.sums[row] = reduce_add(weigh_scores(s, row, factors[r], maxima[r]));
    }
  }
}

}  // namespace
