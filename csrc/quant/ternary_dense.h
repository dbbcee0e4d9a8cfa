#pragma once
// ternary_dense: ternary (quant/ternary.h) with three weights in five bits, as bitnet.cpp's TL2 has them.
//
// A unit of 384 k is three groups of 128. Field f, f = 0 ... 31, of a lane's byte j holds the weights t of k = 4 f + j
// in each of the three groups: t0 + 3 t1 + 9 t2, below 27. So a field looked up in a table gives the groups' codes, two
// bits each, and what is summed from the second and third without shifting is 4 and 16 times the group's sum. A unit is
// 4 times five lines of 64 bytes (a lane's bytes as in quant/lines.h):
//
//   | bit 4 of field 8 q + b in bit b | fields 8 q, 8 q + 1 : low nibble, high nibble | 8 q + 2, 8 q + 3 | ... | ... |
//
// The last k, K_padded % 384, follow as lines of 2 bits. A scale per row (float32) or per group of 128 (float16).
//   bits per weight: 5/3 + 32/K for whole units, 1.69 for K = 2,048.

#include "quant/lines.h"
#include "quant/ternary.h"

namespace llmcore {

struct TritLines {
  using Rest = Lines<2>;
  static constexpr int64_t kUnit = 384, kUnitLines = 20, kGroup = 128;

  static constexpr int64_t panel_bytes(int64_t K_padded) {
    return K_padded / kUnit * kUnitLines * kLineBytes + Rest::panel_bytes(K_padded % kUnit);
  }
  static void put_row(uint8_t* panel, int row, const uint8_t* codes, int64_t K_padded) {
    for (; K_padded >= kUnit; K_padded -= kUnit, codes += kUnit, panel += kUnitLines * kLineBytes) {
      for (int64_t q = 0; q < 4; ++q) {
        uint8_t* lines = panel + q * 5 * kLineBytes + row * 4;
        for (int j = 0; j < 4; ++j) {
          unsigned high = 0, low[8];
          for (int64_t b = 0; b < 8; ++b) {
            const uint8_t* t = codes + 4 * (8 * q + b) + j;
            const unsigned field = t[0] + 3u * t[kGroup] + 9u * t[2 * kGroup];
            high |= field >> 4 << b;
            low[b] = field & 15;
          }
          lines[j] = static_cast<uint8_t>(high);
          for (int i = 0; i < 4; ++i)
            lines[(1 + i) * kLineBytes + j] = static_cast<uint8_t>(low[2 * i] | low[2 * i + 1] << 4);
        }
      }
    }
    Rest::put_row(panel, row, codes, K_padded);
  }
  static unsigned get(const uint8_t* panel, int row, int64_t k, int64_t K_padded) {
    panel += k / kUnit * kUnitLines * kLineBytes;
    if (k / kUnit == K_padded / kUnit) return Rest::get(panel, row, k % kUnit, K_padded);
    const int64_t f = k % kGroup / 4;
    unsigned field = field_at(panel + row * 4 + k % 4, f);
    for (int64_t group = k % kUnit / kGroup; group > 0; --group) field /= 3;
    return field % 3;
  }
  static void fill(uint8_t* panel, unsigned code, int64_t K_padded) {
    const unsigned field = 13 * code;
    for (; K_padded >= kUnit; K_padded -= kUnit) {
      for (int line = 0; line < kUnitLines; ++line, panel += kLineBytes) {
        const unsigned byte = line % 5 == 0 ? (field >> 4) * 255 : (field & 15) * 17;
        __builtin_memset(panel, static_cast<int>(byte), kLineBytes);
      }
    }
    Rest::fill(panel, code, K_padded);
  }
  static bool check(const uint8_t* panel, unsigned highest, int64_t K_padded) {
    bool bad = false;
    for (; K_padded >= kUnit; K_padded -= kUnit, panel += kUnitLines * kLineBytes) {
      for (int64_t f = 0; f < 32; ++f) {
        for (int i = 0; i < kLineBytes; ++i) bad |= field_at(panel + i, f) > 13 * highest;
      }
    }
    return !bad && Rest::check(panel, highest, K_padded);
  }

 private:
  // `unit`: the byte of a lane in the unit's first line.
  static unsigned field_at(const uint8_t* unit, int64_t f) {
    const uint8_t* lines = unit + f / 8 * 5 * kLineBytes;
    const unsigned low = lines[(1 + f % 8 / 2) * kLineBytes] >> (f % 2 * 4) & 15u;
    return low | (lines[0] >> (f % 8) & 1u) << 4;
  }
};

struct TernaryDense : Ternary {
  static constexpr const char* kName = "ternary_dense";
  using Layout = TritLines;
};

}  // namespace llmcore
