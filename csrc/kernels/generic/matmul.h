// Matrix products over interleaved panels of 16 weight rows (layout: quant/matrix.h). Vector lanes run over weight
// rows, so each output element is summed in one order on every ISA: k ascending, int32 inside a group, one fma per
// group. Included after vec.h and elementwise.h.
//
// In this order: how codes lie and are taken apart; scales and what is taken off; tiles of several rows (batches,
// prefill), block by block; one row (decode); and float weights.

namespace {

// How codes of `kBits` lie in a line of 64 bytes: lane r holds bytes 4 r to 4 r + 3; part s of each byte (bits s *
// kBits and up) belongs to k = 4 s + byte % 4. So a line covers kStep values of k.
// With levels, a code is the number of one, and what is multiplied is the level, up to kMaxCode: MatmulArgs::levels.
template <int kBits_, int kMaxCode_, bool has_levels = false>
struct CodeLines {
  static constexpr bool kHasLevels = has_levels;
  static constexpr int kBits = kBits_;
  static constexpr int kParts = 8 / kBits;
  static constexpr int kStep = 4 * kParts;
  static constexpr int kMaxCode = kMaxCode_;
  // Bytes of k values, a multiple of kStep.
  static constexpr int64_t bytes(int64_t k) { return k / kStep * 64; }
};
using Int8Lines = CodeLines<8, 255>;
using Int4Lines = CodeLines<4, 15>;
using TernaryLines = CodeLines<2, 2>;
using LevelLines = CodeLines<4, 255, true>;
using SmallLevelLines = CodeLines<4, 127, true>;
using Int2Lines = CodeLines<2, 3>;
// quant/planes.h: a step of 16 k is a part of a unit.
template <int kLow_, int kHigh_>
struct PlaneLines {
  static constexpr int kLow = kLow_, kHigh = kHigh_;
  static constexpr int kParts = 4;
  static constexpr int kStep = 16;
  static constexpr int kMaxCode = (1 << (kLow + kHigh)) - 1;
  static constexpr int64_t kUnit = 32 / kHigh, kLowBytes = kUnit * kLow * 2, kUnitBytes = kLowBytes + 64;
  static constexpr int64_t bytes(int64_t k) { return (k + kUnit - 1) / kUnit * kUnitBytes; }

  // The codes of k = 4 part to 4 part + 3 of a unit.
  template <int part>
  static LLMCORE_INLINE U8x64 codes(const uint8_t* unit) {
    constexpr int kPerLine = 8 / kLow, kLowMask = (1 << kLow) - 1, kHighMask = ((1 << kHigh) - 1) << kLow;
    const U8x64 low = extract<part % kPerLine * kLow, kLowMask>(load_u8(unit + 64 * (part / kPerLine)));
    return insert<kLow - part * kHigh, kHighMask>(low, load_u8(unit + kLowBytes));
  }
};
using Int3Lines = PlaneLines<2, 1>;
using Int5Lines = PlaneLines<4, 1>;
// quant/six_bits.h: the same.
struct Int6Lines {
  static constexpr int kParts = 4;
  static constexpr int kStep = 16;
  static constexpr int kMaxCode = 63;
  static constexpr int64_t kUnit = 16, kUnitBytes = 3 * 64;
  static constexpr int64_t bytes(int64_t k) { return (k + kUnit - 1) / kUnit * kUnitBytes; }

  template <int part>
  static LLMCORE_INLINE U8x64 codes(const uint8_t* unit) {
    if constexpr (part < 3) {
      return extract<0, 63>(load_u8(unit + 64 * part));
    } else {
      const U8x64 two = insert<-4, 3 << 2>(extract<6, 3>(load_u8(unit)), load_u8(unit + 64));
      return insert<-2, 3 << 4>(two, load_u8(unit + 128));
    }
  }
};
template <class Lines>
constexpr bool kInUnits = false;
template <int low, int high>
constexpr bool kInUnits<PlaneLines<low, high>> = true;
template <>
constexpr bool kInUnits<Int6Lines> = true;
// quant/ternary_dense.h
struct DenseLines : TernaryLines {
  static constexpr int64_t kUnit = 384, kUnitBytes = 20 * 64;
  static constexpr int64_t bytes(int64_t k) { return k / kUnit * kUnitBytes + TernaryLines::bytes(k % kUnit); }
};
template <class Lines>
constexpr bool kIsDense = false;
template <>
constexpr bool kIsDense<DenseLines> = true;

// Values of k that all rows pass before the next: 16 KB of codes, and up to 64 of packed ones; multiples of all groups.
constexpr int64_t kBlock = kTilePanels >= 4 ? 256 : 1024;
template <class Lines>
constexpr int64_t kPackedBlock = kBlock * (4 * kBlock * 16 / Lines::bytes(kBlock));
constexpr int64_t kDenseBlock = (kTilePanels >= 4 ? 2 : 4) * DenseLines::kUnit;
static_assert(kBlock % llmcore::kMaxActivationGroup == 0 && kDenseBlock % llmcore::kMaxActivationGroup == 0);
constexpr int64_t kBlockRows = 96;
// So many rows pay for unpacking codes first: wide tiles take packed ones apart beside their products. Planes, which
// take more doing, are worth unpacking from two tiles on.
template <class Lines>
constexpr int64_t kUnpackRows = kTilePanels >= 4 ? 192 : 2 * kTileRows;
template <int low, int high>
constexpr int64_t kUnpackRows<PlaneLines<low, high>> = 2 * kTileRows;
// Lines, or steps of units, after which main memory is asked for more.
template <class Lines>
constexpr int64_t kSpan = kInUnits<Lines> ? 2 : 8;

// The same codes, one per byte: what a block of panels is unpacked to when many rows share it. Formats share them, for
// code size.
template <class Lines>
using Unpacked = CodeLines<8, (Lines::kMaxCode > 127 ? 255 : 127)>;

/// Part `part` of a line as it is multiplied, shifted down to bit `unshifted`.
template <class Lines, int part, int unshifted = 0>
LLMCORE_INLINE U8x64 part_of(U8x64 line, const uint8_t* levels) {
  constexpr int kMask = ((1 << Lines::kBits) - 1) << unshifted;
  const U8x64 codes = extract<part * Lines::kBits - unshifted, kMask>(line);
  if constexpr (Lines::kHasLevels) return look_up(codes, levels);
  return codes;
}

// Calls function.template operator()<first part>() for the step at k, which is the first or the second half of a unit.
template <class Lines, class Function>
LLMCORE_INLINE void with_half(int64_t k, Function&& function) {
  if constexpr (Lines::kUnit == 32) {
    if (k % 32) return function.template operator()<4>();
  }
  function.template operator()<0>();
}

// The multiples of units that belong to a group.
LLMCORE_INLINE F32x16 load_multiples(const llmcore::MatmulArgs& a, const int8_t* multiples, const uint16_t* units,
                                     int64_t panel, int64_t g) {
  const int64_t unit_groups = (a.x_groups + llmcore::kUnitGroups - 1) / llmcore::kUnitGroups;
  return mul(to_float(load_i8(multiples + (panel * a.x_groups + g) * 16)),
             load_f16(units + (panel * unit_groups + g / llmcore::kUnitGroups) * 16));
}

LLMCORE_INLINE F32x16 load_scales(const llmcore::MatmulArgs& a, int64_t panel, int64_t g) {
  const int64_t index = (panel * a.x_groups + g) * 16;
  if (a.scale_type == llmcore::kScaleF16) return load_f16(static_cast<const uint16_t*>(a.scales) + index);
  if (a.scale_type == llmcore::kScaleF32) return load(static_cast<const float*>(a.scales) + index);
  if (a.scale_type == llmcore::kScaleBF16) return load_bf16(static_cast<const uint16_t*>(a.scales) + index);
  return load_multiples(a, static_cast<const int8_t*>(a.scales), a.scale_units, panel, g);
}

// What the sum of all groups is multiplied by.
LLMCORE_INLINE F32x16 final_scale(const llmcore::MatmulArgs& a, int64_t panel) {
  return a.per_row ? load(static_cast<const float*>(a.scales) + panel * 16) : set1(a.factor);
}

LLMCORE_INLINE void store_outputs(const llmcore::MatmulArgs& a, int64_t m, int64_t panel, F32x16 y) {
  const int64_t n = panel * 16;
  if (a.bias) y = add(y, load_first(a.bias + n, a.N - n));
  store_first(a.y + m * a.y_stride + n - a.y_begin, y, a.N - n);
}

// What belongs to a group of a panel beside its scales.
struct GroupOffset {
  bool shifted, lowered;
  F32x16 offset;
};

LLMCORE_INLINE GroupOffset load_offset(const llmcore::MatmulArgs& a, int64_t panel, int64_t g) {
  if (a.shifts) return {true, false, load_f16(a.shifts + (a.per_row ? panel : panel * a.x_groups + g) * 16)};
  if (!a.minima) return {false, false, set1(0.0f)};
  if (a.minimum_units) {
    return {false, true, load_multiples(a, static_cast<const int8_t*>(a.minima), a.minimum_units, panel, g)};
  }
  return {false, true, load_f16(static_cast<const uint16_t*>(a.minima) + (panel * a.x_groups + g) * 16)};
}

// What is taken off each code that is summed, beyond dot4's own.
template <class Lines>
LLMCORE_INLINE int32_t code_offset(const llmcore::MatmulArgs& a) {
  return a.zero - dot4_zero<Lines::kMaxCode>();
}

// sum + a group's products of one row and one panel: `total` with what each code is shifted by, an integer below 2^24,
// so that nothing is rounded, times both scales; less the minima.
LLMCORE_INLINE F32x16 add_total(const GroupOffset& own, I32x16 total, F32x16 scale, float x_scale, int32_t x_sum,
                                F32x16 sum) {
  const F32x16 value = to_float(total);
  const float x_total = static_cast<float>(x_sum);
  if (own.shifted) return fma(fma(own.offset, set1(x_total), value), scale, sum);
  if (own.lowered) sum = fma(own.offset, set1(-(x_scale * x_total)), sum);
  return fma(value, scale, sum);
}

// acc += the products of four k, whose codes are taken apart already.
template <int kMaxCode, int MR, int NP>
LLMCORE_INLINE void multiply_codes(I32x16 (&acc)[MR][NP], const U8x64 (&codes)[NP], const int8_t* x, int64_t x_stride) {
  _Pragma("GCC unroll 8") for (int m = 0; m < MR; ++m) {
    const S8x4 activations = load_s8x4(x + m * x_stride);
    _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) acc[m][p] = dot4<kMaxCode>(acc[m][p], codes[p], activations);
  }
}

template <class Lines, int part, int MR, int NP>
LLMCORE_INLINE void multiply_part(I32x16 (&acc)[MR][NP], const U8x64 (&line)[NP], const int8_t* x, int64_t x_stride,
                                  const uint8_t* levels = nullptr) {
  U8x64 codes[NP];
  _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) codes[p] = part_of<Lines, part>(line[p], levels);
  multiply_codes<Lines::kMaxCode>(acc, codes, x + 4 * part, x_stride);
}

// acc += the products of a part of a unit.
template <class Lines, int part, int MR, int NP>
LLMCORE_INLINE void multiply_unit_part(I32x16 (&acc)[MR][NP], const uint8_t* unit, int64_t panel_bytes, const int8_t* x,
                                       int64_t x_stride) {
  U8x64 codes[NP];
  __asm__("" : "+r"(unit));  // lest lines be kept, and sums spilled, from one part to the next
  _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) codes[p] = Lines::template codes<part>(unit + p * panel_bytes);
  multiply_codes<Lines::kMaxCode>(acc, codes, x + part % 4 * 4, x_stride);
}

// acc += the products of k from `begin` to `end` of planes whose first unit is `codes`.
template <class Lines, int MR, int NP>
LLMCORE_INLINE void multiply_units(I32x16 (&acc)[MR][NP], const uint8_t* codes, int64_t panel_bytes, const int8_t* x,
                                   int64_t x_stride, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; k += 16, x += 16) {
    const uint8_t* unit = codes + k / Lines::kUnit * Lines::kUnitBytes;
    with_half<Lines>(k, [&]<int part>() {
      multiply_unit_part<Lines, part>(acc, unit, panel_bytes, x, x_stride);
      multiply_unit_part<Lines, part + 1>(acc, unit, panel_bytes, x, x_stride);
      multiply_unit_part<Lines, part + 2>(acc, unit, panel_bytes, x, x_stride);
      multiply_unit_part<Lines, part + 3>(acc, unit, panel_bytes, x, x_stride);
    });
  }
}

// acc += the products of `count` lines.
template <class Lines, int MR, int NP>
LLMCORE_INLINE void multiply_lines(I32x16 (&acc)[MR][NP], const uint8_t* codes, int64_t panel_bytes, const int8_t* x,
                                   int64_t x_stride, int64_t count, const uint8_t* levels) {
  for (; count > 0; --count) {
    U8x64 line[NP];
    _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) line[p] = load_u8(codes + p * panel_bytes);
    multiply_part<Lines, 0>(acc, line, x, x_stride, levels);
    if constexpr (Lines::kParts > 1) multiply_part<Lines, 1>(acc, line, x, x_stride, levels);
    if constexpr (Lines::kParts > 2) {
      multiply_part<Lines, 2>(acc, line, x, x_stride, levels);
      multiply_part<Lines, 3>(acc, line, x, x_stride, levels);
    }
    x += Lines::kStep;
    codes += 64;
  }
}

// What the products of MR rows with NP panels are summed in, group by group.
template <int MR, int NP>
struct TileSums {
  I32x16 acc[MR][NP];

  LLMCORE_INLINE void start(int m, I32x16 value) {
    _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) acc[m][p] = value;
  }
  LLMCORE_INLINE I32x16 total(int m, int p) const { return acc[m][p]; }

  // Adds k from `begin` to `end` of panels that begin at `codes`.
  template <class Lines>
  LLMCORE_INLINE void multiply(const uint8_t* codes, int64_t panel_bytes, const int8_t* x, int64_t x_stride,
                               int64_t begin, int64_t end, const uint8_t* levels) {
    if constexpr (kInUnits<Lines>) {
      multiply_units<Lines>(acc, codes, panel_bytes, x, x_stride, begin, end);
    } else {
      multiply_lines<Lines>(acc, codes + Lines::bytes(begin), panel_bytes, x, x_stride,
                            (end - begin + Lines::kStep - 1) / Lines::kStep, levels);
    }
  }
};

#if defined(LLMCORE_ROW_PAIRS)
// Where one instruction multiplies two rows of weights with two of activations, eight k each, sums of two rows lie
// together, and an odd last row as before.
template <int MR, int NP>
  requires(MR > 1)
struct TileSums<MR, NP> {
  I32x16x2 pairs[MR / 2][NP];
  TileSums<1, NP> last;

  LLMCORE_INLINE void start(int m, I32x16 value) {
    if (m == MR / 2 * 2) return last.start(0, value);
    _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) {
      pairs[m / 2][p] = m % 2 ? paired(first_of(pairs[m / 2][p]), value) : paired(value, value);
    }
  }
  LLMCORE_INLINE I32x16 total(int m, int p) const {
    if (m == MR / 2 * 2) return last.total(0, p);
    return m % 2 ? second_of(pairs[m / 2][p]) : first_of(pairs[m / 2][p]);
  }

  template <class Lines>
  LLMCORE_INLINE void multiply(const uint8_t* codes, int64_t panel_bytes, const int8_t* x, int64_t x_stride,
                               int64_t begin, int64_t end, const uint8_t* levels) {
    for (int64_t k = begin; k < end; k += 16, x += 16) {
      if constexpr (kInUnits<Lines>) {
        const uint8_t* unit = codes + k / Lines::kUnit * Lines::kUnitBytes;
        with_half<Lines>(k, [&]<int part>() {
          const auto codes_at = [&]<int i>(int p) { return Lines::template codes<part + i>(unit + p * panel_bytes); };
          multiply_sixteen<Lines::kMaxCode>(codes_at, x, x_stride);
        });
      } else {
        const uint8_t* step = codes + Lines::bytes(k);
        const auto codes_at = [&]<int i>(int p) {
          const U8x64 line = load_u8(step + p * panel_bytes + 64 * (i / Lines::kParts));
          return part_of<Lines, i % Lines::kParts>(line, levels);
        };
        multiply_sixteen<Lines::kMaxCode>(codes_at, x, x_stride);
      }
    }
  }

 private:
  template <int kMaxCode, class Codes>
  LLMCORE_INLINE void multiply_sixteen(const Codes& codes_at, const int8_t* x, int64_t x_stride) {
    multiply_eight<kMaxCode, 0>(codes_at, x, x_stride);
    multiply_eight<kMaxCode, 2>(codes_at, x + 8, x_stride);
  }
  template <int kMaxCode, int i, class Codes>
  LLMCORE_INLINE void multiply_eight(const Codes& codes_at, const int8_t* x, int64_t x_stride) {
    _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) {
      const U8x64 low = codes_at.template operator()<i>(p), high = codes_at.template operator()<i + 1>(p);
      _Pragma("GCC unroll 8") for (int m = 0; m + 1 < MR; m += 2) {
        pairs[m / 2][p] = dot8(pairs[m / 2][p], low, high, load_s8x8x2(x + m * x_stride, x + (m + 1) * x_stride));
      }
      if constexpr (MR % 2) {
        const int8_t* row = x + (MR - 1) * x_stride;
        I32x16& sum = last.acc[0][p];
        sum = dot4<kMaxCode>(dot4<kMaxCode>(sum, low, load_s8x4(row)), high, load_s8x4(row + 4));
      }
    }
  }
};
#endif

// NP panels over the values [begin, end) of k, and all rows of x.
struct Block {
  const uint8_t* codes;  // the first panel's line of `begin`
  int64_t panel_bytes;   // from a panel to the next
  int64_t panel;
  int64_t begin, end;
  int32_t offset;  // code_offset of the format
  float* sums;     // [M][NP][16], what the blocks before have summed
  // Of the groups, [group][NP][16]: scales, 1 where rows have them and shifts, and shifts or minima, if there are.
  const float *scales, *offsets;
  // What main memory is asked for meanwhile: so many more lines of each panel after every kSpan lines that are used.
  const uint8_t* next;
  int64_t next_panel_bytes;
  int64_t next_lines;
};

// What the total of a group becomes: shifted; times a scale of its own, unless there is one for the whole row at the
// end, and no shift; less a minimum.
template <bool scaled, bool shifted, bool lowered>
struct GroupKind {
  static constexpr bool kScaled = scaled, kShifted = shifted, kLowered = lowered;
};
template <class Function>
LLMCORE_INLINE void with_kind(const llmcore::MatmulArgs& a, Function&& function) {
  if (a.minima) return function.template operator()<GroupKind<true, false, true>>();
  if (a.shifts) return function.template operator()<GroupKind<true, true, false>>();
  if (a.per_row) return function.template operator()<GroupKind<false, false, false>>();
  function.template operator()<GroupKind<true, false, false>>();
}

// Writes the outputs of `rows` rows from m0 on, whose sums are [row][NP][16].
template <int NP>
__attribute__((noinline)) void store_tile(const llmcore::MatmulArgs& a, const float* sums, int64_t panel, int64_t m0,
                                          int64_t rows) noexcept {
  F32x16 scales[NP];
  for (int p = 0; p < NP; ++p) scales[p] = final_scale(a, panel + p);
  for (int64_t m = m0; m < m0 + rows; ++m) {
    for (int p = 0; p < NP; ++p, sums += 16) store_outputs(a, m, panel + p, mul(load(sums), scales[p]));
  }
}

// MR rows of x times the panels of a block.
template <class Lines, class Kind, int MR, int NP>
__attribute__((noinline)) void integer_tile(const llmcore::MatmulArgs& a, Block& b, int64_t m0) noexcept {
  F32x16 sums[MR][NP];
  float* stored = b.sums + m0 * NP * 16;
  if (b.begin == 0) {
    _Pragma("GCC unroll 8") for (int m = 0; m < MR; ++m) {
      _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) sums[m][p] = set1(0.0f);
    }
  } else {
    _Pragma("GCC unroll 8") for (int m = 0; m < MR; ++m) {
      _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) sums[m][p] = load(stored + (m * NP + p) * 16);
    }
  }
  if (b.end == a.K) {
    for (int m = 0; m < MR; ++m) {
      const float* y = a.y + (m0 + m) * a.y_stride + b.panel * 16 - a.y_begin;
      for (int p = 0; p < NP; ++p) prefetch(y + p * 16);
    }
  }
  const int64_t first_group = b.begin / a.x_group;
  for (int64_t g = first_group, begin = b.begin; begin < b.end; ++g, begin += a.x_group) {
    const int64_t end = begin + a.x_group < b.end ? begin + a.x_group : b.end;
    TileSums<MR, NP> acc;
    _Pragma("GCC unroll 8") for (int m = 0; m < MR; ++m) {
      acc.start(m, set1_i32(-b.offset * a.x_sums[g * a.x_scale_stride + m0 + m]));
    }
    const int8_t* x = a.x + m0 * a.x_stride;
    for (int64_t k = begin, span; k < end; k = span) {
      span = k + kSpan<Lines> * Lines::kStep < end ? k + kSpan<Lines> * Lines::kStep : end;
      acc.template multiply<Lines>(b.codes, b.panel_bytes, x + k, a.x_stride, k - b.begin, span - b.begin, a.levels);
      for (int64_t i = 0; i < b.next_lines; ++i, b.next += 64) {
        for (int p = 0; p < NP; ++p) prefetch(b.next + p * b.next_panel_bytes);
      }
    }
    const float *scales = b.scales + (g - first_group) * NP * 16, *offsets = b.offsets + (g - first_group) * NP * 16;
    _Pragma("GCC unroll 8") for (int m = 0; m < MR; ++m) {
      const int64_t x_index = g * a.x_scale_stride + m0 + m;
      const F32x16 x_scale = set1(a.x_scales[x_index]);
      _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) {
        constexpr bool kOffset = Kind::kShifted || Kind::kLowered;
        const GroupOffset own{Kind::kShifted, Kind::kLowered, kOffset ? load(offsets + p * 16) : set1(0.0f)};
        const F32x16 scale = Kind::kScaled ? mul(load(scales + p * 16), x_scale) : x_scale;
        sums[m][p] = add_total(own, acc.total(m, p), scale, a.x_scales[x_index], a.x_sums[x_index], sums[m][p]);
      }
    }
  }
  float last[MR * NP * 16];
  float* to = b.end < a.K ? stored : last;
  _Pragma("GCC unroll 8") for (int m = 0; m < MR; ++m) {
    _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) store(to + (m * NP + p) * 16, sums[m][p]);
  }
  if (b.end == a.K) store_tile<NP>(a, last, b.panel, m0, MR);
}

// Scales and offsets of the groups of a block as float32, once for all its tiles.
template <int NP>
void prepare_groups(const llmcore::MatmulArgs& a, Block& b, float* out) noexcept {
  const int64_t first = b.begin / a.x_group, end = (b.end + a.x_group - 1) / a.x_group;
  float* offsets = out + (end - first) * NP * 16;
  b.scales = out;
  b.offsets = offsets;
  for (int64_t g = first; g < end; ++g) {
    for (int p = 0; p < NP; ++p, out += 16, offsets += 16) {
      if (!a.per_row) {
        store(out, load_scales(a, b.panel + p, g));
      } else if (a.shifts) {
        store(out, set1(1.0f));
      }
      if (a.shifts || a.minima) store(offsets, load_offset(a, b.panel + p, g).offset);
    }
  }
}

// Tiles of as many rows each as can be.
template <class Lines, class Kind, int MR, int NP>
void integer_tiles(const llmcore::MatmulArgs& a, Block& b, int64_t rows, int64_t& m, int64_t end) noexcept {
  if (rows == MR) {
    for (; m < end; m += MR) integer_tile<Lines, Kind, MR, NP>(a, b, m);
  } else if constexpr (MR > 1) {
    integer_tiles<Lines, Kind, MR - 1, NP>(a, b, rows, m, end);
  }
}

template <class Lines, int NP>
void integer_rows(const llmcore::MatmulArgs& a, Block& b) noexcept {
  const int64_t tiles = (a.M + kTileRows - 1) / kTileRows, rows = a.M / tiles, larger = a.M % tiles;
  with_kind(a, [&]<class Kind>() {
    int64_t m = 0;
    if (larger) integer_tiles<Lines, Kind, kTileRows, NP>(a, b, rows + 1, m, larger * (rows + 1));
    integer_tiles<Lines, Kind, kTileRows, NP>(a, b, rows, m, a.M);
  });
}

template <class Lines, int part>
LLMCORE_INLINE void unpack_unit(const uint8_t* unit, uint8_t* out) {
  store_u8(out + 64 * part, Lines::template codes<part>(unit));
  if constexpr (4 * (part + 1) < Lines::kUnit) unpack_unit<Lines, part + 1>(unit, out);
}

template <class Lines>
  requires kInUnits<Lines>
void unpack_lines(const uint8_t* codes, int64_t count, uint8_t* out, const uint8_t* /*levels*/) noexcept {
  for (; count > 0; count -= Lines::kUnit, codes += Lines::kUnitBytes, out += Lines::kUnit * 16)
    unpack_unit<Lines, 0>(codes, out);
}

template <class Lines>
void unpack_lines(const uint8_t* codes, int64_t count, uint8_t* out, const uint8_t* levels) noexcept {
  for (int64_t k = 0; k < count; k += Lines::kStep, codes += 64) {
    const U8x64 line = load_u8(codes);
    store_u8(out, part_of<Lines, 0>(line, levels));
    if constexpr (Lines::kParts > 1) store_u8(out + 64, part_of<Lines, 1>(line, levels));
    if constexpr (Lines::kParts > 2) {
      store_u8(out + 128, part_of<Lines, 2>(line, levels));
      store_u8(out + 192, part_of<Lines, 3>(line, levels));
    }
    out += 64 * Lines::kParts;
  }
}

// Field f's codes of three groups, two bits each.
template <int i>
LLMCORE_INLINE U8x64 trits(const uint8_t* lines, U8x64 high) {
  const U8x64 line = load_u8(lines + 64 * (1 + i / 2));
  return look_up<i>(extract<i % 2 * 4, 15>(line), high, llmcore::kTrits);
}

template <int i>
LLMCORE_INLINE void unpack_field(const uint8_t* lines, U8x64 high, uint8_t* out) {
  const U8x64 three = trits<i>(lines, high);
  store_u8(out + 64 * i, extract<0, 3>(three));
  store_u8(out + 64 * (32 + i), extract<2, 3>(three));
  store_u8(out + 64 * (64 + i), extract<4, 3>(three));
  if constexpr (i < 7) unpack_field<i + 1>(lines, high, out);
}

template <>
void unpack_lines<DenseLines>(const uint8_t* codes, int64_t count, uint8_t* out, const uint8_t* levels) noexcept {
  for (; count >= DenseLines::kUnit; count -= DenseLines::kUnit, out += DenseLines::kUnit * 16) {
    for (int q = 0; q < 4; ++q, codes += 5 * 64) unpack_field<0>(codes, load_u8(codes), out + q * 8 * 64);
  }
  unpack_lines<TernaryLines>(codes, count, out, levels);
}

// A part of a line need not be shifted down where dot4 takes the larger codes: its sum is then 2^shift times as large,
// and shifted once a group instead.
template <class Lines, int part>
constexpr int unshifted_bits() {
  constexpr int kShift = part * Lines::kBits;
  return !Lines::kHasLevels && kShift && dot4_zero<(Lines::kMaxCode << kShift)>() == 0 ? kShift : 0;
}

// acc[i] += the products of the i-th four of sixteen k.
template <class Lines, int i>
LLMCORE_INLINE void multiply_four(I32x16 (&acc)[4], const uint8_t* codes, const int8_t* x, const uint8_t* levels) {
  constexpr int kPart = i % Lines::kParts, kUnshifted = unshifted_bits<Lines, kPart>();
  const U8x64 part = part_of<Lines, kPart, kUnshifted>(load_u8(codes + 64 * (i / Lines::kParts)), levels);
  acc[i] = dot4<(Lines::kMaxCode << kUnshifted)>(acc[i], part, load_s8x4(x + 4 * i));
}

template <class Lines, int i>
LLMCORE_INLINE I32x16 sum_of_four(const I32x16 (&acc)[4]) {
  constexpr int kUnshifted = unshifted_bits<Lines, i % Lines::kParts>();
  if constexpr (kUnshifted) return shift_right_arithmetic<kUnshifted>(acc[i]);
  return acc[i];
}

constexpr int kAhead = 8192;  // bytes

// The same where there is one row.
LLMCORE_INLINE F32x16 add_group(const llmcore::MatmulArgs& a, int64_t panel, int64_t g, I32x16 total, F32x16 sum) {
  const float x_scale = a.x_scales[g * a.x_scale_stride];
  F32x16 scale = set1(x_scale);
  if (!a.per_row) scale = mul(load_scales(a, panel, g), scale);
  return add_total(load_offset(a, panel, g), total, scale, x_scale, a.x_sums[g * a.x_scale_stride], sum);
}

// start + the products of one row of x and a group of one panel, k from `begin` to `end`; moves on in x, and in codes
// but for planes, whose `codes` is the panel. Packed lines are asked for early, for the hardware's prefetching stops at
// each page. Four sums hide the latency of the products.
template <class Lines>
LLMCORE_INLINE I32x16 group_total(I32x16 start, const uint8_t*& codes, const int8_t*& x, int64_t begin, int64_t end,
                                  const uint8_t* levels) {
  const I32x16 zero = set1_i32(0);
  I32x16 acc[4] = {start, zero, zero, zero};
  if constexpr (kInUnits<Lines>) {
    for (int64_t k = begin; k < end; k += 16, x += 16) {
      const uint8_t* unit = codes + k / Lines::kUnit * Lines::kUnitBytes;
      if (k % Lines::kUnit == 0) {
        for (int64_t line = 0; line < Lines::kUnitBytes; line += 64) prefetch(unit + kAhead + line);
      }
      with_half<Lines>(k, [&]<int part>() {
        acc[0] = dot4<Lines::kMaxCode>(acc[0], Lines::template codes<part>(unit), load_s8x4(x));
        acc[1] = dot4<Lines::kMaxCode>(acc[1], Lines::template codes<part + 1>(unit), load_s8x4(x + 4));
        acc[2] = dot4<Lines::kMaxCode>(acc[2], Lines::template codes<part + 2>(unit), load_s8x4(x + 8));
        acc[3] = dot4<Lines::kMaxCode>(acc[3], Lines::template codes<part + 3>(unit), load_s8x4(x + 12));
      });
    }
    return add(add(acc[0], acc[1]), add(acc[2], acc[3]));
  } else {
    constexpr int kBytes = 64 * 4 / Lines::kParts;
    for (int64_t k = begin; k < end; k += 16) {
      if constexpr (Lines::kParts > 1) {
        for (int line = 0; line < kBytes; line += 64) prefetch(codes + kAhead + line);
      }
      multiply_four<Lines, 0>(acc, codes, x, levels);
      multiply_four<Lines, 1>(acc, codes, x, levels);
      multiply_four<Lines, 2>(acc, codes, x, levels);
      multiply_four<Lines, 3>(acc, codes, x, levels);
      x += 16;
      codes += kBytes;
    }
    return add(add(sum_of_four<Lines, 0>(acc), sum_of_four<Lines, 1>(acc)),
               add(sum_of_four<Lines, 2>(acc), sum_of_four<Lines, 3>(acc)));
  }
}

// One row of x times one panel, from k on, whose line is `codes`; `total` is what k's group has summed before it. The
// panel is read from its start to its end, and panels lie one after another, so that memory sees one stream.
template <class Lines>
LLMCORE_INLINE F32x16 vector_groups(const llmcore::MatmulArgs& a, int64_t panel, const uint8_t* codes, int64_t k,
                                    I32x16 total, F32x16 sum) {
  const int32_t offset = code_offset<Lines>(a);
  const int8_t* x = a.x + k;
  for (int64_t g = k / a.x_group; g < a.x_groups; ++g) {
    const int64_t end = (g + 1) * a.x_group < a.K ? (g + 1) * a.x_group : a.K;
    total =
        group_total<Lines>(add(total, set1_i32(-offset * a.x_sums[g * a.x_scale_stride])), codes, x, k, end, a.levels);
    sum = add_group(a, panel, g, total, sum);
    total = set1_i32(0);
    k = end;
  }
  return sum;
}

// acc[s] += the products of part s of eight fields from the i-th on, times 4^s.
template <int i>
LLMCORE_INLINE void multiply_fields(I32x16 (&acc)[2][3], const uint8_t* lines, U8x64 high, const int8_t* x) {
  constexpr int64_t kGroup = DenseLines::kUnit / 3;
  const U8x64 three = trits<i>(lines, high);
  I32x16(&sums)[3] = acc[i % 2];
  sums[0] = dot4<2>(sums[0], extract<0, 3>(three), load_s8x4(x + 4 * i));
  sums[1] = dot4<2 << 2>(sums[1], extract<0, 3 << 2>(three), load_s8x4(x + kGroup + 4 * i));
  sums[2] = dot4<2 << 4>(sums[2], extract<0, 3 << 4>(three), load_s8x4(x + 2 * kGroup + 4 * i));
  if constexpr (i < 7) multiply_fields<i + 1>(acc, lines, high, x);
}

LLMCORE_INLINE F32x16 dense_groups(const llmcore::MatmulArgs& a, int64_t panel, const uint8_t* codes) {
  static_assert(dot4_zero<2>() == 0 && dot4_zero<2 << 2>() == 0 && dot4_zero<2 << 4>() == 0);
  const I32x16 zero = set1_i32(0);
  F32x16 sum = set1(0.0f);
  I32x16 total = zero;
  int64_t k = 0, g = 0;
  const auto add_third = [&](I32x16 third) __attribute__((always_inline)) {
    total = add(total, third);
    k += DenseLines::kUnit / 3;
    if (k % a.x_group) return;
    sum = add_group(a, panel, g, sub(total, set1_i32(a.x_sums[g * a.x_scale_stride])), sum);
    total = zero;
    ++g;
  };
  while (k + DenseLines::kUnit <= a.K) {
    I32x16 acc[2][3] = {{zero, zero, zero}, {zero, zero, zero}};
    for (int q = 0; q < 4; ++q, codes += 5 * 64) {
      for (int line = 0; line < 5 * 64; line += 64) prefetch(codes + kAhead + line);
      multiply_fields<0>(acc, codes, load_u8(codes), a.x + k + q * 8 * 4);
    }
    add_third(add(acc[0][0], acc[1][0]));
    add_third(shift_right_arithmetic<2>(add(acc[0][1], acc[1][1])));
    add_third(shift_right_arithmetic<4>(add(acc[0][2], acc[1][2])));
  }
  return vector_groups<TernaryLines>(a, panel, codes, k, total, sum);
}

template <class Lines>
void integer_vector(const llmcore::MatmulArgs& a, int64_t panel) noexcept {
  const uint8_t* codes = a.codes + panel * a.panel_bytes;
  F32x16 sum;
  if constexpr (kIsDense<Lines>) {
    sum = dense_groups(a, panel, codes);
  } else {
    sum = vector_groups<Lines>(a, panel, codes, 0, set1_i32(0), set1(0.0f));
  }
  store_outputs(a, 0, panel, mul(sum, final_scale(a, panel)));
}

// NP panels times all rows. Up to kBlockRows rows pass by blocks of codes that stay in the nearest caches, while the
// next block comes from main memory. Where enough rows share packed codes, they are unpacked first.
template <class Lines, int NP>
void integer_block(const llmcore::MatmulArgs& a, int64_t panel) noexcept {
  static_assert(dot4_zero<Lines::kMaxCode>() == dot4_zero<Unpacked<Lines>::kMaxCode>());
  const bool unpack = kIsDense<Lines> || (Lines::kParts > 1 && a.M >= kUnpackRows<Lines>);
  const int64_t tiles = (a.M + kTileRows - 1) / kTileRows;
  const bool blocks = (tiles > 1 || kIsDense<Lines>) && a.M <= kBlockRows;
  const int64_t code_block = unpack || Lines::kParts == 1 ? kBlock : kPackedBlock<Lines>;
  const int64_t size = !blocks ? a.K : kIsDense<Lines> ? kDenseBlock : code_block;
  const uint8_t* codes = a.codes + panel * a.panel_bytes;
  for (int64_t begin = 0; begin < a.K; begin += size) {
    const int64_t end = begin + size < a.K ? begin + size : a.K, k = end - begin;
    const int64_t bytes = Lines::bytes(k);
    float* sums = reinterpret_cast<float*>(a.scratch);
    Block b{codes, a.panel_bytes, panel,   begin, end,           code_offset<Lines>(a),
            sums,  nullptr,       nullptr, codes, a.panel_bytes, 0};
    float* groups = sums + kBlockRows * NP * 16;
    prepare_groups<NP>(a, b, groups);
    if (blocks) {
      b.next += end < a.K ? bytes : bytes + (NP - 1) * a.panel_bytes;  // or the next panels' first block
      const int64_t span = unpack ? kSpan<Unpacked<Lines>> : kSpan<Lines>;
      const int64_t lines = unpack ? k / 4 : k / Lines::kStep, spans = tiles * ((lines + span - 1) / span);
      b.next_lines = (bytes / 64 + spans - 1) / spans;
    }
    codes += bytes;
    if constexpr (Lines::kParts > 1) {
      if (unpack) {
        uint8_t* unpacked = reinterpret_cast<uint8_t*>(groups + (k / 16 + 1) * NP * 32);
        for (int p = 0; p < NP; ++p)
          unpack_lines<Lines>(b.codes + p * a.panel_bytes, k, unpacked + p * 16 * k, a.levels);
        b.codes = unpacked;
        b.panel_bytes = 16 * k;
        integer_rows<Unpacked<Lines>, NP>(a, b);
        continue;
      }
    }
    if constexpr (!kIsDense<Lines>) integer_rows<Lines, NP>(a, b);
  }
}

template <class Lines>
void integer_matmul(const llmcore::MatmulArgs& a) noexcept {
  int64_t panel = a.panel_begin;
  if (a.M == 1) {
    for (; panel < a.panel_end; ++panel) integer_vector<Lines>(a, panel);
    return;
  }
  for (; panel + kTilePanels <= a.panel_end; panel += kTilePanels) integer_block<Lines, kTilePanels>(a, panel);
  for (; panel < a.panel_end; ++panel) integer_block<Lines, 1>(a, panel);
}

struct F32Lines {
  static constexpr int kBytes = 4;
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
};
struct BF16Lines {
  static constexpr int kBytes = 2;
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) { return load_bf16(reinterpret_cast<const uint16_t*>(p)); }
};
struct F16Lines {
  static constexpr int kBytes = 2;
  static LLMCORE_INLINE F32x16 load_line(const uint8_t* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); }
};

// Sums in blocks of kFloatBlock k, then over blocks: shorter chains, a smaller error.
constexpr int64_t kFloatBlock = 128;

template <class Lines, int MR, int NP>
void float_tile(const llmcore::MatmulArgs& a, int64_t panel, int64_t m0) noexcept {
  F32x16 sums[MR][NP];
  _Pragma("GCC unroll 8") for (int m = 0; m < MR; ++m) {
    _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) sums[m][p] = set1(0.0f);
  }
  const uint8_t* codes = a.codes + panel * a.panel_bytes;
  const float* x = a.xf + m0 * a.xf_stride;
  for (int64_t begin = 0; begin < a.K; begin += kFloatBlock) {
    const int64_t end = begin + kFloatBlock < a.K ? begin + kFloatBlock : a.K;
    F32x16 acc[MR][NP];
    _Pragma("GCC unroll 8") for (int m = 0; m < MR; ++m) {
      _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) acc[m][p] = set1(0.0f);
    }
    for (int64_t k = begin; k < end; ++k) {
      F32x16 w[NP];
      _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) {
        w[p] = Lines::load_line(codes + p * a.panel_bytes + k * 16 * Lines::kBytes);
      }
      _Pragma("GCC unroll 8") for (int m = 0; m < MR; ++m) {
        const F32x16 activation = set1(x[m * a.xf_stride + k]);
        _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) acc[m][p] = fma(w[p], activation, acc[m][p]);
      }
    }
    _Pragma("GCC unroll 8") for (int m = 0; m < MR; ++m) {
      _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) sums[m][p] = add(sums[m][p], acc[m][p]);
    }
  }
  _Pragma("GCC unroll 8") for (int m = 0; m < MR; ++m) {
    _Pragma("GCC unroll 8") for (int p = 0; p < NP; ++p) store_outputs(a, m0 + m, panel + p, sums[m][p]);
  }
}

template <class Lines, int MR, int NP>
void float_rows(const llmcore::MatmulArgs& a, int64_t panel, int64_t m) noexcept {
  for (; a.M - m >= MR; m += MR) float_tile<Lines, MR, NP>(a, panel, m);
  if constexpr (MR > 1) {
    if (m < a.M) float_rows<Lines, MR - 1, NP>(a, panel, m);
  }
}

template <class Lines>
void float_matmul(const llmcore::MatmulArgs& a) noexcept {
  int64_t panel = a.panel_begin;
  if (a.M == 1) {
    for (; panel + kVectorPanels <= a.panel_end; panel += kVectorPanels)
      float_tile<Lines, 1, kVectorPanels>(a, panel, 0);
  } else {
    for (; panel + kTilePanels <= a.panel_end; panel += kTilePanels)
      float_rows<Lines, kTileRows, kTilePanels>(a, panel, 0);
  }
  for (; panel < a.panel_end; ++panel) float_rows<Lines, kTileRows, 1>(a, panel, 0);
}

constexpr int kPanelQuantum = kVectorPanels > kTilePanels ? kVectorPanels : kTilePanels;

// Sums, scales and offsets of groups, and codes of whole units.
int64_t matmul_scratch_bytes_kernel(int64_t K) noexcept {
  return (K + 16 + (K / 16 + 1) * 8 + kBlockRows * 4) * 16 * kPanelQuantum;
}

}  // namespace
