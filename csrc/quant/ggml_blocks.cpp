#include "quant/ggml_blocks.h"

#include <algorithm>
#include <bit>
#include <vector>

#include "base/checked.h"
#include "quant/ggml_grids.h"
#include "quant/half.h"

namespace llmcore {
namespace {

uint16_t half_at(const uint8_t* bytes) {
  uint16_t half;
  __builtin_memcpy(&half, bytes, 2);
  return half;
}
uint16_t negated(uint16_t half) { return half ^ 0x8000; }

// 16 bytes hold 32 codes: the low nibbles, then the high ones.
void take_nibbles(const uint8_t* bytes, uint8_t* codes) {
  for (int i = 0; i < 16; ++i) {
    codes[i] = bytes[i] & 15;
    codes[16 + i] = bytes[i] >> 4;
  }
}

void q8_0(const uint8_t* block, BlockParts& p) {
  p.scales[0] = half_at(block);
  for (int i = 0; i < 32; ++i) p.codes[i] = block[2 + i] ^ 128;
}

void q4_0(const uint8_t* block, BlockParts& p) {
  p.scales[0] = half_at(block);
  take_nibbles(block + 2, p.codes);
}

void q4_1(const uint8_t* block, BlockParts& p) {
  p.scales[0] = half_at(block);
  p.minima[0] = negated(half_at(block + 2));
  take_nibbles(block + 4, p.codes);
}

void take_fifth_bits(const uint8_t* bytes, uint8_t* codes) {
  for (int i = 0; i < 32; ++i) codes[i] |= static_cast<uint8_t>((bytes[i / 8] >> (i % 8) & 1) << 4);
}

void q5_0(const uint8_t* block, BlockParts& p) {
  p.scales[0] = half_at(block);
  take_nibbles(block + 6, p.codes);
  take_fifth_bits(block + 2, p.codes);
}

void q5_1(const uint8_t* block, BlockParts& p) {
  p.scales[0] = half_at(block);
  p.minima[0] = negated(half_at(block + 2));
  take_nibbles(block + 8, p.codes);
  take_fifth_bits(block + 4, p.codes);
}

// 256 codes of two bits: 128 of them in 32 bytes, the first 32 in the lowest bits.
void take_two_bits(const uint8_t* bytes, uint8_t* codes) {
  for (int run = 0; run < 8; ++run) {
    for (int i = 0; i < 32; ++i) codes[32 * run + i] = bytes[run / 4 * 32 + i] >> (run % 4 * 2) & 3;
  }
}

void q2_k(const uint8_t* block, BlockParts& p) {
  p.scale_unit = half_at(block + 80);
  p.minimum_unit = half_at(block + 82);
  for (int g = 0; g < 16; ++g) {
    p.scale_multiples[g] = block[g] & 15;
    p.minimum_multiples[g] = static_cast<int8_t>(block[g] >> 4);
  }
  take_two_bits(block + 16, p.codes);
}

void q3_k(const uint8_t* block, BlockParts& p) {
  const uint8_t* scales = block + 96;
  p.scale_unit = half_at(block + 108);
  for (int g = 0; g < 16; ++g) {
    const int low = scales[g % 8] >> (g / 8 * 4) & 15, high = scales[8 + g % 4] >> (g / 4 * 2) & 3;
    p.scale_multiples[g] = static_cast<int8_t>((low | high << 4) - 32);
  }
  take_two_bits(block + 32, p.codes);
  for (int run = 0; run < 8; ++run) {
    for (int i = 0; i < 32; ++i) p.codes[32 * run + i] |= static_cast<uint8_t>((block[i] >> run & 1) << 2);
  }
}

// Eight scales and minima of 6 bits each in 12 bytes.
void take_six_bits(const uint8_t* bytes, BlockParts& p) {
  for (int g = 0; g < 4; ++g) {
    p.scale_multiples[g] = bytes[g] & 63;
    p.minimum_multiples[g] = bytes[g + 4] & 63;
    p.scale_multiples[g + 4] = static_cast<int8_t>((bytes[g + 8] & 15) | bytes[g] >> 6 << 4);
    p.minimum_multiples[g + 4] = static_cast<int8_t>(bytes[g + 8] >> 4 | bytes[g + 4] >> 6 << 4);
  }
}

// 128 bytes hold 256 codes: of 64 the first 32 in the low nibbles.
void take_long_nibbles(const uint8_t* bytes, uint8_t* codes) {
  for (int i = 0; i < 128; ++i) {
    codes[i / 32 * 64 + i % 32] = bytes[i] & 15;
    codes[i / 32 * 64 + i % 32 + 32] = bytes[i] >> 4;
  }
}

void q4_k(const uint8_t* block, BlockParts& p) {
  p.scale_unit = half_at(block);
  p.minimum_unit = half_at(block + 2);
  take_six_bits(block + 4, p);
  take_long_nibbles(block + 16, p.codes);
}

void q5_k(const uint8_t* block, BlockParts& p) {
  p.scale_unit = half_at(block);
  p.minimum_unit = half_at(block + 2);
  take_six_bits(block + 4, p);
  take_long_nibbles(block + 48, p.codes);
  for (int run = 0; run < 8; ++run) {
    for (int i = 0; i < 32; ++i) p.codes[32 * run + i] |= static_cast<uint8_t>((block[16 + i] >> run & 1) << 4);
  }
}

void q6_k(const uint8_t* block, BlockParts& p) {
  p.scale_unit = half_at(block + 208);
  for (int g = 0; g < 16; ++g) p.scale_multiples[g] = static_cast<int8_t>(block[192 + g]);
  for (int run = 0; run < 8; ++run) {
    const uint8_t* low = block + run / 4 * 64 + run % 2 * 32;
    const uint8_t* high = block + 128 + run / 4 * 32;
    const int low_shift = run % 4 / 2 * 4, high_shift = run % 4 * 2;
    for (int i = 0; i < 32; ++i) {
      p.codes[32 * run + i] = static_cast<uint8_t>((low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4);
    }
  }
}

void iq4_xs(const uint8_t* block, BlockParts& p) {
  p.scale_unit = half_at(block);
  const unsigned high = half_at(block + 2);
  for (int g = 0; g < 8; ++g) {
    const unsigned low = block[4 + g / 2] >> (g % 2 * 4) & 15;
    p.scale_multiples[g] = static_cast<int8_t>(static_cast<int>(low | (high >> (2 * g) & 3) << 4) - 32);
    take_nibbles(block + 8 + 16 * g, p.codes + 32 * g);
  }
}

uint32_t word_at(const uint8_t* bytes) {
  uint32_t word;
  __builtin_memcpy(&word, bytes, 4);
  return word;
}

// Codes of `count` values whose magnitudes a place of a grid numbers, `bits` each: of levels in ascending order, half
// of them below 0 and `half` of them above.
template <int count, int bits>
void take_place(uint16_t place, unsigned signs, const uint8_t* above, int half, uint8_t* codes) {
  for (int i = 0; i < count; ++i) {
    const int code = above[place >> (bits * i) & ((1 << bits) - 1)];
    codes[i] = static_cast<uint8_t>(signs >> i & 1 ? 2 * half - 1 - code : code);
  }
}

// The codes of 8, 25 and 43 in iq2.
constexpr uint8_t kIq2Above[4] = {8, 10, 11};
static_assert(Iq2::kLevels[8] == 8 && Iq2::kLevels[10] == 25 && Iq2::kLevels[11] == 43 && Iq2::kZero == 6);
void take_iq2(uint16_t place, unsigned signs, uint8_t* codes) {
  take_place<8, 2>(place, signs, kIq2Above, Iq2::kZero, codes);
}
// The same of iq3 and iq3_s.
void take_iq3(const uint16_t (&places)[2], unsigned signs, uint8_t* codes) {
  static constexpr uint8_t kAbove[16] = {8, 9, 10, 11, 12, 13, 14, 15};
  take_place<4, 4>(places[0], signs, kAbove, Iq3::kZero, codes);
  take_place<4, 4>(places[1], signs >> 4, kAbove, Iq3::kZero, codes + 4);
}
// Eight signs in seven bits: the last makes their number even.
unsigned even_signs(unsigned seven) { return seven | static_cast<unsigned>(std::popcount(seven) & 1) << 7; }

void iq2_xxs(const uint8_t* block, BlockParts& p) {
  p.scale_unit = half_at(block);
  for (int g = 0; g < 8; ++g) {
    const uint8_t* places = block + 2 + 8 * g;
    const uint32_t rest = word_at(places + 4);
    p.scale_multiples[g] = static_cast<int8_t>(2 * (rest >> 28) + 1);
    for (int i = 0; i < 4; ++i) {
      take_iq2(kGridIq2Xxs[places[i]], even_signs(rest >> (7 * i) & 127), p.codes + 32 * g + 8 * i);
    }
  }
}

// Scales of 16 groups, four bits each.
void take_odd_multiples(const uint8_t* bytes, BlockParts& p) {
  for (int g = 0; g < 16; ++g) {
    p.scale_multiples[g] = static_cast<int8_t>(2 * (bytes[g / 2] >> (g % 2 * 4) & 15) + 1);
  }
}

void iq2_xs(const uint8_t* block, BlockParts& p) {
  p.scale_unit = half_at(block);
  take_odd_multiples(block + 66, p);
  for (int i = 0; i < 32; ++i) {
    const unsigned place = half_at(block + 2 + 2 * i);
    take_iq2(kGridIq2Xs[place & 511], even_signs(place >> 9), p.codes + 8 * i);
  }
}

void iq2_s(const uint8_t* block, BlockParts& p) {
  p.scale_unit = half_at(block);
  take_odd_multiples(block + 74, p);
  for (int i = 0; i < 32; ++i) {
    const unsigned high = block[66 + i / 4] >> (i % 4 * 2) & 3;
    take_iq2(kGridIq2S[block[2 + i] | high << 8], block[34 + i], p.codes + 8 * i);
  }
}

void iq3_xxs(const uint8_t* block, BlockParts& p) {
  p.scale_unit = half_at(block);
  for (int g = 0; g < 8; ++g) {
    const uint8_t* places = block + 2 + 8 * g;
    const uint32_t rest = word_at(block + 66 + 4 * g);
    p.scale_multiples[g] = static_cast<int8_t>(2 * (rest >> 28) + 1);
    for (int i = 0; i < 4; ++i) {
      take_iq3({kGridIq3Xxs[places[2 * i]], kGridIq3Xxs[places[2 * i + 1]]}, even_signs(rest >> (7 * i) & 127),
               p.codes + 32 * g + 8 * i);
    }
  }
}

void iq3_s(const uint8_t* block, BlockParts& p) {
  p.scale_unit = half_at(block);
  for (int g = 0; g < 8; ++g) {
    p.scale_multiples[g] = static_cast<int8_t>(2 * (block[106 + g / 2] >> (g % 2 * 4) & 15) + 1);
  }
  const auto place = [&](int i) { return kGridIq3S[block[2 + i] | (block[66 + i / 8] >> (i % 8) & 1) << 8]; };
  for (int i = 0; i < 32; ++i) take_iq3({place(2 * i), place(2 * i + 1)}, block[74 + i], p.codes + 8 * i);
}

// Eight values of -1, 0 and 1, an eighth more or less: in iq2 -9, -1, 7 and -7, 1, 9 eighths.
void take_iq1(uint16_t place, bool less, uint8_t* codes) {
  static constexpr uint8_t kMore[4] = {4, 6, 9}, kLess[4] = {2, 5, 7};
  static_assert(Iq2::kLevels[4] == -7 && Iq2::kLevels[6] == 1 && Iq2::kLevels[9] == 9);
  static_assert(Iq2::kLevels[2] == -9 && Iq2::kLevels[5] == -1 && Iq2::kLevels[7] == 7);
  take_place<8, 2>(place, 0, less ? kLess : kMore, Iq2::kZero, codes);
}

void iq1_s(const uint8_t* block, BlockParts& p) {
  p.scale_unit = half_at(block);
  for (int g = 0; g < 8; ++g) {
    const unsigned rest = half_at(block + 34 + 2 * g);
    p.scale_multiples[g] = static_cast<int8_t>(2 * (rest >> 12 & 7) + 1);
    for (int i = 4 * g; i < 4 * g + 4; ++i) {
      take_iq1(kGridIq1[block[2 + i] | (rest >> (i % 4 * 3) & 7) << 8], rest >> 15, p.codes + 8 * i);
    }
  }
}

void iq1_m(const uint8_t* block, BlockParts& p) {
  const auto scales = [&](int i) { return unsigned{half_at(block + 48 + 2 * i)}; };
  p.scale_unit = 0;
  for (int i = 0; i < 4; ++i) p.scale_unit |= static_cast<uint16_t>(scales(i) >> 12 << (4 * i));
  for (int g = 0; g < 16; ++g) {
    p.scale_multiples[g] = static_cast<int8_t>(2 * (scales(g / 4) >> (g % 4 * 3) & 7) + 1);
  }
  for (int i = 0; i < 32; ++i) {
    const unsigned rest = block[32 + i / 2] >> (i % 2 * 4) & 15;
    take_iq1(kGridIq1[block[i] | (rest & 7) << 8], rest >> 3, p.codes + 8 * i);
  }
}

// From sign and magnitude to the order of Fp4.
void order_fp4(int count, uint8_t* codes) {
  for (int i = 0; i < count; ++i) {
    codes[i] = static_cast<uint8_t>(codes[i] < 8 ? Fp4::kZero + codes[i] : Fp4::kZero + 8 - codes[i]);
  }
}

// A power of two, whose exponent is that of bfloat16 but for the subnormal ones.
void mxfp4(const uint8_t* block, BlockParts& p) {
  const unsigned exponent = block[0];  // of 2^(exponent - 128)
  p.scales[0] = static_cast<uint16_t>(exponent >= 2 ? (exponent - 1) << 7 : 0x20u << exponent);
  take_nibbles(block + 1, p.codes);
  order_fp4(32, p.codes);
}

// UE4M3 halved, as float16. 0 and 127 are 0.
uint16_t half_of_ue4m3(unsigned x) {
  if (x == 0 || x == 127) return 0;
  const unsigned exponent = x >> 3 & 15, mantissa = x & 7;
  const float value = exponent ? static_cast<float>(8 + mantissa) : 2.0f * static_cast<float>(mantissa);
  return float_to_half(value * 0x1p-11f * static_cast<float>(1u << (exponent ? exponent : 0u)));
}

void nvfp4(const uint8_t* block, BlockParts& p) {
  for (int g = 0; g < 4; ++g) {
    p.scales[g] = half_of_ue4m3(block[g]);
    for (int i = 0; i < 8; ++i) {
      p.codes[16 * g + i] = block[4 + 8 * g + i] & 15;
      p.codes[16 * g + 8 + i] = block[4 + 8 * g + i] >> 4;
    }
  }
  order_fp4(64, p.codes);
}

// Trit n of five in a byte, from the highest: byte = ceil(256 * number / 243).
uint8_t trit(uint8_t byte, int n) {
  constexpr uint8_t kPowers[5] = {1, 3, 9, 27, 81};
  return static_cast<uint8_t>(static_cast<uint8_t>(byte * kPowers[n]) * 3 >> 8);
}

void tq1_0(const uint8_t* block, BlockParts& p) {
  p.scales[0] = p.scales[1] = half_at(block + 52);
  for (int i = 0; i < 160; ++i) p.codes[i] = trit(block[i % 32], i / 32);
  for (int i = 0; i < 80; ++i) p.codes[160 + i] = trit(block[32 + i % 16], i / 16);
  for (int i = 0; i < 16; ++i) p.codes[240 + i] = trit(block[48 + i % 4], i / 4);
}

void tq2_0(const uint8_t* block, BlockParts& p) {
  p.scales[0] = p.scales[1] = half_at(block + 64);
  take_two_bits(block, p.codes);
}

void q1_0(const uint8_t* block, BlockParts& p) {
  p.scales[0] = half_at(block);
  for (int i = 0; i < 128; ++i) p.codes[i] = static_cast<uint8_t>((block[2 + i / 8] >> (i % 8) & 1) * 2);
}

void q2_0(const uint8_t* block, BlockParts& p) {
  p.scales[0] = half_at(block);
  for (int i = 0; i < 64; ++i) {
    p.codes[i] = static_cast<uint8_t>(Int3::kZero - 1 + (block[2 + i / 4] >> (i % 4 * 2) & 3));
  }
}

constexpr Format kI2 = Format::kInt2, kI3 = Format::kInt3, kI4 = Format::kInt4, kI5 = Format::kInt5,
                 kI6 = Format::kInt6, kT = Format::kTernary;
constexpr BlockType kBlockTypes[] = {
    {"Q8_0", 32, 34, Format::kInt8, 32, Element::kF16, false, q8_0},
    {"Q4_0", 32, 18, kI4, 32, Element::kF16, false, q4_0},
    {"Q4_1", 32, 20, kI4, 32, Element::kF16, true, q4_1},
    {"Q5_0", 32, 22, kI5, 32, Element::kF16, false, q5_0},
    {"Q5_1", 32, 24, kI5, 32, Element::kF16, true, q5_1},
    {"Q2_K", 256, 84, kI2, 16, Element::kInt8, true, q2_k},
    {"Q3_K", 256, 110, kI3, 16, Element::kInt8, false, q3_k},
    {"Q4_K", 256, 144, kI4, 32, Element::kInt8, true, q4_k},
    {"Q5_K", 256, 176, kI5, 32, Element::kInt8, true, q5_k},
    {"Q6_K", 256, 210, kI6, 16, Element::kInt8, false, q6_k},
    {"IQ4_NL", 32, 18, Format::kIq4, 32, Element::kF16, false, q4_0},
    {"IQ4_XS", 256, 136, Format::kIq4, 32, Element::kInt8, false, iq4_xs},
    {"IQ1_S", 256, 50, Format::kIq2, 32, Element::kInt8, false, iq1_s},
    {"IQ1_M", 256, 56, Format::kIq2, 16, Element::kInt8, false, iq1_m},
    {"IQ2_XXS", 256, 66, Format::kIq2, 32, Element::kInt8, false, iq2_xxs},
    {"IQ2_XS", 256, 74, Format::kIq2, 16, Element::kInt8, false, iq2_xs},
    {"IQ2_S", 256, 82, Format::kIq2, 16, Element::kInt8, false, iq2_s},
    {"IQ3_XXS", 256, 98, Format::kIq3, 32, Element::kInt8, false, iq3_xxs},
    {"IQ3_S", 256, 110, Format::kIq3S, 32, Element::kInt8, false, iq3_s},
    {"MXFP4", 32, 17, Format::kFp4, 32, Element::kBF16, false, mxfp4},
    {"NVFP4", 64, 36, Format::kFp4, 16, Element::kF16, false, nvfp4},
    {"TQ1_0", 256, 54, kT, 128, Element::kF16, false, tq1_0},
    {"TQ2_0", 256, 66, kT, 128, Element::kF16, false, tq2_0},
    {"Q1_0", 128, 18, kT, 128, Element::kF16, false, q1_0},
    {"Q2_0", 64, 18, kI3, 64, Element::kF16, false, q2_0},
};

}  // namespace

std::span<const BlockType> block_types() { return kBlockTypes; }

const BlockType* find_block_type(const std::string& name) {
  for (const BlockType& type : kBlockTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

void Matrix::set_blocks(int64_t first_row, int64_t rows, const uint8_t* blocks, const BlockType& type,
                        ThreadPool& pool) {
  check_rows(first_row, rows);
  check_argument(format_ == type.format && group_size_ == type.group_size && scale_type_ == type.scale_type &&
                     has_minima() == type.minima && has_zero_points() == type.minima && K_ % type.weights == 0,
                 std::string("matrix: blocks of ") + type.name + " belong to a matrix of another kind");
  const int64_t count = K_ / type.weights, groups = type.weights / group_size_;
  pool.parallel_for(rows, 16, [&](int64_t begin, int64_t end, int) {
    BlockParts parts;
    std::vector<uint8_t> codes(static_cast<size_t>(K_padded_),
                               visit_codec(format_, []<class Codec>() { return static_cast<uint8_t>(Codec::kZero); }));
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = first_row + r;
      for (int64_t b = 0; b < count; ++b) {
        type.unpack(blocks + (r * count + b) * type.bytes, parts);
        __builtin_memcpy(codes.data() + b * type.weights, parts.codes, static_cast<size_t>(type.weights));
        for (int64_t i = 0; i < groups; ++i) {
          const int64_t g = b * groups + i, at = scale_index(n, g);
          if (has_units()) {
            scales_.as<int8_t>()[at] = parts.scale_multiples[i];
            units(scales_)[unit_index(n, g)] = parts.scale_unit;
            if (!has_minima()) continue;
            shifts_.as<int8_t>()[at] = parts.minimum_multiples[i];
            units(shifts_)[unit_index(n, g)] = parts.minimum_unit;
          } else {
            scales_.as<uint16_t>()[at] = parts.scales[i];
            if (has_minima()) shifts_.as<uint16_t>()[at] = parts.minima[i];
          }
        }
      }
      visit_codec(format_, [&]<class Codec>() {
        if (std::any_of(codes.begin(), codes.end(), [](uint8_t code) { return code > Codec::kMaxCode; })) {
          throw QuantError(std::string("a code of ") + type.name + " at row " + std::to_string(n) + " is out of range");
        }
        Codec::Layout::put_row(codes_.data() + n / kRowsPerPanel * panel_bytes_, static_cast<int>(n % kRowsPerPanel),
                               codes.data(), K_padded_);
      });
    }
  });
}

}  // namespace llmcore
