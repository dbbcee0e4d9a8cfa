// What pages of keys and values hold, by type, and the writing of a token into them. Keys lie as [head_dim][16 tokens],
// values as [16 tokens][head_dim]; attention.h says why. Included after matmul.h.

namespace {

// Lines12 of quant/lines.h, whose codes become words of 16 bits.
struct Int12Lines {
  static constexpr int kStep = 8, kUnit = 192;
  static constexpr int64_t bytes(int64_t k) { return k / kStep * kUnit; }
  // k 2 i and 2 i + 1 of each row of a unit.
  template <int i>
  static LLMCORE_INLINE I16x32 load(const uint8_t* unit) {
    if constexpr (i < 3) return shift_right_arithmetic<4>(load_i16(unit + 64 * i));
    const I16x32 low = shift_left<4>(load_i16(unit)), middle = shift_left<8>(load_i16(unit + 64));
    const I16x32 high = shift_left<12>(load_i16(unit + 128));
    return shift_right_arithmetic<4>(insert<0x00f0>(insert<0x0f00>(high, middle), low));
  }
  static LLMCORE_INLINE void put(uint8_t* panel, int64_t row, int64_t k, int32_t code) {
    const auto put_bits = [&](int64_t line, int shift, int mask, int32_t bits) {
      uint8_t* const at = panel + k / kStep * kUnit + line * 64 + (row * 2 + k % 2) * 2;
      uint16_t word;
      __builtin_memcpy(&word, at, 2);
      word = static_cast<uint16_t>((word & ~(mask << shift)) | (bits & mask) << shift);
      __builtin_memcpy(at, &word, 2);
    };
    const int64_t pair = k % kStep / 2;
    if (pair < 3) return put_bits(pair, 4, 0xfff, code);
    for (int i = 0; i < 3; ++i) put_bits(i, 0, 0xf, code >> 4 * i);
  }
};

// What a page holds: kLineBytes for 16 elements, and how they become float32, or how integers lie in panels
// (quant/lines.h). Those have a scale for each token, which is taken into the score (of values only its power of two,
// and the rest into the weight). Keys are a panel whose rows are tokens, to which the rounded query is the activation;
// values are panels whose rows are 16 elements of the head, to which the weights of tokens are. kWide: codes are words,
// and multiplied by words, two at a time (dot2); else by bytes, four at a time (dot4).
// kPaced: pages are worked on about as fast as memory gives them, where float pages wait for it, and int4 pages for
// arithmetic. So with few rows a head they take care (decoding at depth is 1.2 times as fast; with int4 0.96): keys go
// page by page, in the order of memory, and what prefetches miss, the hardware's own get; prefetches go on during
// softmax; and what is near is asked for again.

struct KvF32 {
  using Element = float;
  static constexpr int kLineBytes = 64;
  static constexpr bool kScaled = false, kWide = false, kPaced = false;
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
  static LLMCORE_INLINE void store_line(uint8_t* p, F32x16 v) { store(reinterpret_cast<float*>(p), v); }
};
struct KvF16 {
  using Element = uint16_t;
  static constexpr int kLineBytes = 32;
  static constexpr bool kScaled = false, kWide = false, kPaced = false;
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); }
  static LLMCORE_INLINE void store_line(uint8_t* p, F32x16 v) { store_f16(reinterpret_cast<uint16_t*>(p), v); }
};
struct KvBF16 {
  using Element = uint16_t;
  static constexpr int kLineBytes = 32;
  static constexpr bool kScaled = false, kWide = false, kPaced = false;
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) { return load_bf16(reinterpret_cast<const uint16_t*>(p)); }
  static LLMCORE_INLINE void store_line(uint8_t* p, F32x16 v) { store_bf16(reinterpret_cast<uint16_t*>(p), v); }
};
struct KvInt8 {
  using Lines = Int8Lines;
  static constexpr int kLineBytes = 16, kZero = 128;
  static constexpr bool kScaled = true, kWide = false, kPaced = true;
  static constexpr float kLowest = -127.0f, kHighest = 127.0f;
  // The scale for elements between low <= 0 and high >= 0.
  static LLMCORE_INLINE float scale(float low, float high) { return (high > -low ? high : -low) / 127.0f; }
};
struct KvInt4 {
  using Lines = Int4Lines;
  static constexpr int kLineBytes = 8, kZero = 8;
  static constexpr bool kScaled = true, kWide = false, kPaced = false;
  static constexpr float kLowest = -8.0f, kHighest = 7.0f;
  // The element of largest magnitude becomes -8, as in the int4 weights.
  static LLMCORE_INLINE float scale(float low, float high) { return (high > -low ? high : low) / -8.0f; }
};

struct KvInt12 {
  using Lines = Int12Lines;
  static constexpr int kLineBytes = 24;
  static constexpr bool kScaled = true, kWide = true, kPaced = true;
  static constexpr float kLowest = -llmcore::kMaxWordCode, kHighest = llmcore::kMaxWordCode;
  static LLMCORE_INLINE float scale(float low, float high) { return (high > -low ? high : -low) / kHighest; }
};

LLMCORE_INLINE int64_t padded_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// head_dim as the keys are stored.
template <class Kv>
LLMCORE_INLINE int64_t key_dim(int64_t head_dim) {
  if constexpr (Kv::kScaled) return (head_dim + Kv::Lines::kStep - 1) / Kv::Lines::kStep * Kv::Lines::kStep;
  return head_dim;
}

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
  return one_nan((tiny ? 0.0f : scale) + reduce_add(poison));
}

// Puts the code at k of a panel's row.
template <class Kv>
LLMCORE_INLINE void put_code(uint8_t* panel, int64_t row, int64_t k, int32_t code) {
  using Lines = typename Kv::Lines;
  if constexpr (Kv::kWide) {
    Lines::put(panel, row, k, code);
  } else {
    constexpr int kMask = (1 << Lines::kBits) - 1;
    const int shift = static_cast<int>(k % Lines::kStep / 4 * Lines::kBits);
    uint8_t& byte = panel[k / Lines::kStep * 64 + row * 4 + k % 4];
    byte = static_cast<uint8_t>((byte & ~(kMask << shift)) | (code + Kv::kZero) << shift);
  }
}

template <class Kv>
void store_key_kernel(const float* key, int64_t head_dim, int lane, uint8_t* page) noexcept {
  if constexpr (Kv::kScaled) {
    float mixed[llmcore::kMaxHeadDim];
    hadamard_kernel(key, head_dim, mixed);
    const int64_t padded = key_dim<Kv>(head_dim);
    const float scale = quantize_head<Kv>(mixed, head_dim, padded,
                                          [&](int64_t d, int32_t code) { put_code<Kv>(page, lane, d, code); }) /
                        static_cast<float>(llmcore::hadamard_run(head_dim));
    __builtin_memcpy(page + padded * Kv::kLineBytes + lane * 4, &scale, 4);
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
  if constexpr (Kv::kScaled) {
    using Lines = typename Kv::Lines;
    const float scale = quantize_head<Kv>(value, head_dim, padded, [&](int64_t d, int32_t code) {
      put_code<Kv>(page + d / 16 * Lines::bytes(16), d % 16, lane, code);
    });
    __builtin_memcpy(page + padded * Kv::kLineBytes + lane * 4, &scale, 4);
  } else {
    uint8_t* out = page + lane * (padded / 16) * Kv::kLineBytes;
    for (int64_t d = 0; d < head_dim; d += 16) {
      Kv::store_line(out + d / 16 * Kv::kLineBytes, load_first(value + d, head_dim - d));
    }
  }
}

}  // namespace
