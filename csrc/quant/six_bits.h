#pragma once
// How codes of 6 bits lie: in units of three lines, whose bytes hold one code each and a third of a fourth one.
//
//   byte 4 r + j of line i = 0, 1, 2 of a unit, row r of the panel:
//   bits 0-5: the code of k = 4 i + j; bits 6-7: bits 2 i and 2 i + 1 of the code of k = 12 + j.      16 k in 192 bytes
//
// So three of four codes take a mask, and the fourth three shifts. The last unit may be filled in part.

#include "quant/lines.h"

namespace llmcore {

struct SixBits {
  static constexpr int64_t kUnit = 16, kUnitBytes = 3 * kLineBytes;

  static constexpr int64_t panel_bytes(int64_t K_padded) { return (K_padded + kUnit - 1) / kUnit * kUnitBytes; }
  static void put_row(uint8_t* panel, int row, const uint8_t* codes, int64_t K_padded) {
    for (int64_t k = 0; k < K_padded; k += kUnit, panel += kUnitBytes) {
      uint32_t fours[4] = {};
      __builtin_memcpy(fours, codes + k, static_cast<size_t>(K_padded - k < kUnit ? K_padded - k : kUnit));
      for (int line = 0; line < 3; ++line) {
        const uint32_t word = fours[line] | (fours[3] >> (2 * line) & 0x03030303) << 6;
        __builtin_memcpy(panel + line * kLineBytes + row * 4, &word, 4);
      }
    }
  }
  static unsigned get(const uint8_t* panel, int row, int64_t k, int64_t /*K_padded*/) {
    const uint8_t* bytes = panel + k / kUnit * kUnitBytes + row * 4 + k % 4;
    const int64_t line = k % kUnit / 4;
    if (line < 3) return bytes[line * kLineBytes] & 63u;
    return bytes[0] >> 6 | bytes[kLineBytes] >> 6 << 2 | bytes[2 * kLineBytes] >> 6 << 4;
  }
  static void fill(uint8_t* panel, unsigned code, int64_t K_padded) {
    for (; K_padded > 0; K_padded -= kUnit, panel += kUnitBytes) {
      for (int line = 0; line < 3; ++line) {
        const unsigned byte = code | (code >> (2 * line) & 3) << 6;
        __builtin_memset(panel + line * kLineBytes, static_cast<int>(byte), kLineBytes);
      }
    }
  }
  // All codes are codes.
  static bool check(const uint8_t* /*panel*/, unsigned /*highest*/, int64_t /*K_padded*/) { return true; }
};

}  // namespace llmcore
