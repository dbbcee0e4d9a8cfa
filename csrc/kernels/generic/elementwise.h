// Row operations and elementary functions over sixteen virtual lanes. Included after an ISA's vec.h, once per ISA
// object; every ISA runs the same sequence of operations, so the bits are the same.

namespace {

LLMCORE_INLINE F32x16 load_first(const float* p, int64_t n) {
  if (n >= 16) return load(p);
  float t[16] = {};
  for (int64_t i = 0; i < n; ++i) t[i] = p[i];
  return load(t);
}

LLMCORE_INLINE void store_first(float* p, F32x16 a, int64_t n) {
  if (n >= 16) return store(p, a);
  float t[16];
  store(t, a);
  for (int64_t i = 0; i < n; ++i) p[i] = t[i];
}

// The fixed tree of every reduction: lanes 8 apart, then 4, 2, 1.
LLMCORE_INLINE float reduce_add(F32x16 a) {
  a = add(a, swapped<8>(a));
  a = add(a, swapped<4>(a));
  a = add(a, swapped<2>(a));
  return first_lane(add(a, swapped<1>(a)));
}

LLMCORE_INLINE float reduce_max(F32x16 a) {
  a = max(a, swapped<8>(a));
  a = max(a, swapped<4>(a));
  a = max(a, swapped<2>(a));
  return first_lane(max(a, swapped<1>(a)));
}

LLMCORE_INLINE int32_t reduce_add(I32x16 a) {
  a = add(a, as_int(swapped<8>(as_float(a))));
  a = add(a, as_int(swapped<4>(as_float(a))));
  a = add(a, as_int(swapped<2>(as_float(a))));
  const float sum = first_lane(as_float(add(a, as_int(swapped<1>(as_float(a))))));
  return __builtin_bit_cast(int32_t, sum);
}

// The integer nearest to a * b, rounded once, plus kShiftedZero; |a * b| must be below 2^22 (NaN gives anything).
constexpr int32_t kShiftedZero = 0x4b400000;
LLMCORE_INLINE I32x16 shifted_product(F32x16 a, F32x16 b) { return as_int(fma(a, b, set1(12582912.0f))); }

// Calls f(i) for i < n, unrolled.
template <int n, class Function>
LLMCORE_INLINE void repeat(Function&& f) {
  _Pragma("GCC unroll 8") for (int i = 0; i < n; ++i) f(i);
}

// e^x. Range reduction x = n ln 2 + r with ln 2 in two parts, then the polynomial of degree 6 on |r| <= ln 2 / 2 of
// Cephes' expf. Error below 1.5 ulp where the result is normal (tests/test_kernels.py); 0 below -104, NaN stays.
LLMCORE_INLINE F32x16 exp16(F32x16 x) {
  const F32x16 clamped = min(max(x, set1(-104.0f)), set1(89.0f));
  const F32x16 magic = set1(12582912.0f);
  const F32x16 n = sub(fma(clamped, set1(1.44269504088896341f), magic), magic);
  F32x16 r = fma(n, set1(-0.693359375f), clamped);
  r = fma(n, set1(2.12194440e-4f), r);
  F32x16 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), set1(1.0f));
  const I32x16 exponent = to_int(n);
  const I32x16 half = shift_right_arithmetic<1>(exponent);  // 2^n in two factors, for n may be 128 or -150
  const I32x16 bias = set1_i32(127);
  const F32x16 low = as_float(shift_left<23>(add(half, bias)));
  const F32x16 high = as_float(shift_left<23>(add(sub(exponent, half), bias)));
  return select(is_nan(x), x, mul(mul(p, low), high));
}

// 2^x for x <= 0, as softmax has it: 2^n 2^r with n + r = x, |r| <= 1/2, and 2^r by a polynomial of degree 6 (minimax,
// 4e-9), or of degree 4 (minimax, 3e-6) where the result is to be rounded to fewer bits. Below -124 the result stays at
// 2^-124. NaN stays; with degree 4 just one whose lowest bits are 0. Step by step for all of x, so that no step waits
// for the one before.
template <int degree = 6, int count>
LLMCORE_INLINE void exp2_nonpositive(F32x16 (&x)[count]) {
  static_assert(degree == 4 || degree == 6);
  const F32x16 magic = set1(12582912.0f);
  F32x16 shifted[count], p[count];
  const auto next = [&](float c) { repeat<count>([&](int i) { p[i] = fma(p[i], x[i], set1(c)); }); };
  repeat<count>([&](int i) { x[i] = max(set1(-124.0f), x[i]); });
  repeat<count>([&](int i) { shifted[i] = add(x[i], magic); });  // n in its lowest bits
  repeat<count>([&](int i) { p[i] = sub(shifted[i], magic); });
  repeat<count>([&](int i) { x[i] = sub(x[i], p[i]); });
  repeat<count>([&](int i) { p[i] = set1(degree == 6 ? 0.00015353362f : 0.00958285f); });
  if constexpr (degree == 6) {
    next(0.0013398875f);
    next(0.009618437f);
    next(0.055503324f);
    next(0.24022648f);
    next(0.6931472f);
  } else {
    next(0.05590643f);
    next(0.24024099f);
    next(0.69312419f);
  }
  next(1.0f);
  repeat<count>([&](int i) {
    const F32x16 y = as_float(add(as_int(p[i]), shift_left<23>(as_int(shifted[i]))));
    x[i] = degree == 6 ? select(is_nan(p[i]), p[i], y) : y;
  });
}
LLMCORE_INLINE F32x16 exp2_nonpositive(F32x16 x) {
  F32x16 one[1] = {x};
  exp2_nonpositive(one);
  return one[0];
}

// tanh x: Cephes' tanhf, an odd polynomial below 0.625 in magnitude and 1 - 2 / (e^2|x| + 1) with the sign of x above.
LLMCORE_INLINE F32x16 tanh16(F32x16 x) {
  const F32x16 z = mul(x, x), size = abs(x);
  F32x16 p = set1(-5.70498872745e-3f);
  p = fma(p, z, set1(2.06390887954e-2f));
  p = fma(p, z, set1(-5.37397155531e-2f));
  p = fma(p, z, set1(1.33314422036e-1f));
  p = fma(p, z, set1(-3.33332819422e-1f));
  const F32x16 small = fma(mul(p, z), x, x);
  const F32x16 far = sub(set1(1.0f), div(set1(2.0f), add(exp16(add(size, size)), set1(1.0f))));
  const F32x16 large = select(less(x, set1(0.0f)), neg(far), far);
  return select(less(size, set1(0.625f)), small, large);
}

// x / (1 + e^-x)
LLMCORE_INLINE F32x16 silu16(F32x16 x) { return div(x, add(set1(1.0f), exp16(neg(x)))); }

// 0.5 x (1 + tanh(u)) = x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
LLMCORE_INLINE F32x16 gelu_tanh16(F32x16 x) {
  const F32x16 inner = fma(mul(mul(x, x), x), set1(0.044715f), x);
  return div(x, add(set1(1.0f), exp16(mul(inner, set1(-1.5957691216057308f)))));
}

// x Phi(x), with erfc(z) = t e^(-z^2 + P(t)), t = 1 / (1 + z / 2), the Chebyshev fit of Press et al., "Numerical
// Recipes", section 6.2 (erfcc): relative error below 1.2e-7.
LLMCORE_INLINE F32x16 gelu16(F32x16 x) {
  const F32x16 z = mul(abs(x), set1(0.70710678118654752f));
  const F32x16 t = div(set1(1.0f), fma(z, set1(0.5f), set1(1.0f)));
  F32x16 p = set1(0.17087277f);
  p = fma(p, t, set1(-0.82215223f));
  p = fma(p, t, set1(1.48851587f));
  p = fma(p, t, set1(-1.13520398f));
  p = fma(p, t, set1(0.27886807f));
  p = fma(p, t, set1(-0.18628806f));
  p = fma(p, t, set1(0.09678418f));
  p = fma(p, t, set1(0.37409196f));
  p = fma(p, t, set1(1.00002368f));
  p = fma(p, t, set1(-1.26551223f));
  const F32x16 half_erfc = mul(set1(0.5f), mul(t, exp16(fma(neg(z), z, p))));
  const F32x16 phi = select(less(x, set1(0.0f)), half_erfc, sub(set1(1.0f), half_erfc));
  return mul(x, phi);
}

LLMCORE_INLINE F32x16 relu16(F32x16 x) { return select(less(x, set1(0.0f)), set1(0.0f), x); }
LLMCORE_INLINE F32x16 relu2_16(F32x16 x) { return mul(relu16(x), relu16(x)); }

template <class Function>
LLMCORE_INLINE void activate(const float* x, const float* up, float* y, int64_t n, Function function) {
  for (int64_t i = 0; i < n; i += 16) {
    F32x16 v = function(load_first(x + i, n - i));
    if (up) v = mul(v, load_first(up + i, n - i));
    store_first(y + i, v, n - i);
  }
}

void silu_kernel(const float* x, const float* up, float* y, int64_t n) noexcept {
  activate(x, up, y, n, [](F32x16 v) { return silu16(v); });
}
void gelu_tanh_kernel(const float* x, const float* up, float* y, int64_t n) noexcept {
  activate(x, up, y, n, [](F32x16 v) { return gelu_tanh16(v); });
}
void gelu_kernel(const float* x, const float* up, float* y, int64_t n) noexcept {
  activate(x, up, y, n, [](F32x16 v) { return gelu16(v); });
}
void relu_kernel(const float* x, const float* up, float* y, int64_t n) noexcept {
  activate(x, up, y, n, [](F32x16 v) { return relu16(v); });
}
void relu2_kernel(const float* x, const float* up, float* y, int64_t n) noexcept {
  activate(x, up, y, n, [](F32x16 v) { return relu2_16(v); });
}
void exp_kernel(const float* x, float* y, int64_t n) noexcept {
  activate(x, static_cast<const float*>(nullptr), y, n, [](F32x16 v) { return exp16(v); });
}

void add_kernel(const float* x, float* y, int64_t n) noexcept {
  for (int64_t i = 0; i < n; i += 16)
    store_first(y + i, add(load_first(y + i, n - i), load_first(x + i, n - i)), n - i);
}

void scale_kernel(float* x, float factor, int64_t n) noexcept {
  for (int64_t i = 0; i < n; i += 16) store_first(x + i, mul(load_first(x + i, n - i), set1(factor)), n - i);
}

LLMCORE_INLINE F32x16 softcap16(F32x16 x, F32x16 cap) { return mul(cap, tanh16(div(x, cap))); }

void softcap_kernel(float* x, float cap, int64_t n) noexcept {
  for (int64_t i = 0; i < n; i += 16) store_first(x + i, softcap16(load_first(x + i, n - i), set1(cap)), n - i);
}

void rms_norm_kernel(const float* x, const float* weight, float eps, float* y, int64_t n) noexcept {
  F32x16 squares = set1(0.0f);
  for (int64_t i = 0; i < n; i += 16) {
    const F32x16 v = load_first(x + i, n - i);
    squares = fma(v, v, squares);
  }
  const float mean = reduce_add(squares) / static_cast<float>(n);
  const F32x16 inverse = set1(1.0f / __builtin_sqrtf(mean + eps));
  for (int64_t i = 0; i < n; i += 16) {
    const F32x16 v = mul(load_first(x + i, n - i), inverse);
    store_first(y + i, mul(v, load_first(weight + i, n - i)), n - i);
  }
}

void layer_norm_kernel(const float* x, const float* weight, const float* bias, float eps, float* y,
                       int64_t n) noexcept {
  F32x16 total = set1(0.0f);
  for (int64_t i = 0; i < n; i += 16) total = add(total, load_first(x + i, n - i));
  const F32x16 mean = set1(reduce_add(total) / static_cast<float>(n));
  F32x16 squares = set1(0.0f);
  for (int64_t i = 0; i < n; i += 16) {
    F32x16 d = sub(load_first(x + i, n - i), mean);
    if (n - i < 16) d = select(lanes(0, static_cast<int>(n - i)), d, set1(0.0f));
    squares = fma(d, d, squares);
  }
  const F32x16 inverse = set1(1.0f / __builtin_sqrtf(reduce_add(squares) / static_cast<float>(n) + eps));
  for (int64_t i = 0; i < n; i += 16) {
    const F32x16 v = mul(sub(load_first(x + i, n - i), mean), inverse);
    const F32x16 b = bias ? load_first(bias + i, n - i) : set1(0.0f);
    store_first(y + i, fma(v, load_first(weight + i, n - i), b), n - i);
  }
}

void softmax_statistics_kernel(const float* x, float factor, int64_t n, float* maximum, float* sum) noexcept {
  const F32x16 lowest = set1(-__builtin_inff());
  F32x16 top = lowest;
  for (int64_t i = 0; i < n; i += 16) {
    F32x16 v = load_first(x + i, n - i);
    if (n - i < 16) v = select(lanes(0, static_cast<int>(n - i)), v, lowest);
    top = max(top, v);
  }
  *maximum = reduce_max(top);
  F32x16 total = set1(0.0f);
  for (int64_t i = 0; i < n; i += 16) {
    F32x16 e = exp16(mul(sub(load_first(x + i, n - i), set1(*maximum)), set1(factor)));
    if (n - i < 16) e = select(lanes(0, static_cast<int>(n - i)), e, set1(0.0f));
    total = add(total, e);
  }
  *sum = reduce_add(total);
}

void softmax_kernel(const float* x, float* y, int64_t n) noexcept {
  float maximum, sum;
  softmax_statistics_kernel(x, 1.0f, n, &maximum, &sum);
  for (int64_t i = 0; i < n; i += 16) {
    const F32x16 e = exp16(sub(load_first(x + i, n - i), set1(maximum)));
    store_first(y + i, div(e, set1(sum)), n - i);
  }
}

void rope_kernel(float* x, const float* cosines, const float* sines, int64_t half) noexcept {
  for (int64_t i = 0; i < half; i += 16) {
    const F32x16 a = load_first(x + i, half - i), b = load_first(x + half + i, half - i);
    const F32x16 c = load_first(cosines + i, half - i), s = load_first(sines + i, half - i);
    store_first(x + i, fma(a, c, neg(mul(b, s))), half - i);
    store_first(x + half + i, fma(b, c, mul(a, s)), half - i);
  }
}

void rope_interleaved_kernel(float* x, const float* cosines, const float* sines, int64_t half) noexcept {
  for (int64_t i = 0; i < half; i += 16) {
    const int64_t n = half - i < 16 ? half - i : 16;
    float even[16] = {}, odd[16] = {};
    for (int64_t j = 0; j < n; ++j) {
      even[j] = x[2 * (i + j)];
      odd[j] = x[2 * (i + j) + 1];
    }
    const F32x16 a = load(even), b = load(odd);
    const F32x16 c = load_first(cosines + i, half - i), s = load_first(sines + i, half - i);
    store(even, fma(a, c, neg(mul(b, s))));
    store(odd, fma(b, c, mul(a, s)));
    for (int64_t j = 0; j < n; ++j) {
      x[2 * (i + j)] = even[j];
      x[2 * (i + j) + 1] = odd[j];
    }
  }
}

// Sums and differences of lanes n apart.
template <int n>
LLMCORE_INLINE F32x16 butterfly(F32x16 a) {
  struct Signs {
    float lanes[16];
  };
  static constexpr Signs kSigns = [] {
    Signs signs{};
    for (int i = 0; i < 16; ++i) signs.lanes[i] = i & n ? -1.0f : 1.0f;
    return signs;
  }();
  return fma(a, load(kSigns.lanes), swapped<n>(a));
}

void hadamard_kernel(const float* x, int64_t n, float* out) noexcept {
  const int64_t run = llmcore::hadamard_run(n);
  for (int64_t i = 0; i < n; i += 16) {
    F32x16 v = load_first(x + i, n - i);
    if (run > 1) v = butterfly<1>(v);
    if (run > 2) v = butterfly<2>(v);
    if (run > 4) v = butterfly<4>(v);
    if (run > 8) v = butterfly<8>(v);
    store(out + i, v);
  }
  for (int64_t half = 16; half < run; half *= 2) {
    for (int64_t begin = 0; begin < n; begin += 2 * half) {
      for (int64_t i = begin; i < begin + half; i += 16) {
        const F32x16 a = load(out + i), b = load(out + i + half);
        store(out + i, add(a, b));
        store(out + i + half, sub(a, b));
      }
    }
  }
}

// x, or the same NaN whatever NaN it was: one whose lowest bits are 0, which exp2_nonpositive keeps.
LLMCORE_INLINE float one_nan(float x) { return x == x ? x : __builtin_nanf(""); }

void quantize_words_kernel(const float* x, int64_t n, int64_t n_padded, int16_t* words, float* scale) noexcept {
  F32x16 top = set1(0.0f), poison = set1(0.0f);
  for (int64_t i = 0; i < n; i += 16) {
    const F32x16 v = load_first(x + i, n - i);
    top = max(top, abs(v));
    poison = fma(v, set1(0.0f), poison);
  }
  const int64_t share = llmcore::kMaxWordSum / n_padded;
  const float amax = reduce_max(top), most = static_cast<float>(share < 32767 ? share : 32767);
  const bool tiny = !(amax > 1e-30f);
  const F32x16 inverse = set1(tiny ? 0.0f : most / amax);
  *scale = one_nan((tiny ? 0.0f : amax / most) + reduce_add(poison));
  for (int64_t i = 0; i < n_padded; i += 16) {
    const F32x16 v = i < n ? mul(load_first(x + i, n - i), inverse) : set1(0.0f);
    store_i16(words + i, to_int(min(max(v, set1(-most)), set1(most))));
  }
}

void quantize_row_kernel(const float* x, int64_t n, int64_t n_padded, int64_t group, int8_t* codes, float* scales,
                         int32_t* sums, int64_t stride) noexcept {
  for (int64_t begin = 0, g = 0; begin < n_padded; begin += group, g += stride) {
    const int64_t end = begin + group < n_padded ? begin + group : n_padded;
    F32x16 top = set1(0.0f), poison = set1(0.0f);
    for (int64_t i = begin; i < end && i < n; i += 16) {
      const int64_t left = (end < n ? end : n) - i;
      const F32x16 v = load_first(x + i, left);
      top = max(top, abs(v));
      poison = fma(v, set1(0.0f), poison);  // NaN as soon as one element is not finite
    }
    const float amax = reduce_max(top);
    const bool tiny = !(amax > 1e-30f);
    const F32x16 inverse = set1(tiny ? 0.0f : 127.0f / amax);
    scales[g] = one_nan((tiny ? 0.0f : amax / 127.0f) + reduce_add(poison));
    I32x16 total = set1_i32(0);
    for (int64_t i = begin; i < end; i += 16) {
      const int64_t left = (end < n ? end : n) - i;
      F32x16 v = left > 0 ? mul(load_first(x + i, left), inverse) : set1(0.0f);
      v = min(max(v, set1(-127.0f)), set1(127.0f));
      const I32x16 q = to_int(v);
      total = add(total, q);
      if (end - i >= 16) {
        store_i8(codes + i, q);
      } else {
        int8_t t[16];
        store_i8(t, q);
        for (int64_t j = 0; j < end - i; ++j) codes[i + j] = t[j];
      }
    }
    sums[g] = reduce_add(total);
  }
}

}  // namespace
