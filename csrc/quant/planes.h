#pragma once
// How codes of 3 or 5 bits lie: their low 2 or 4 bits as in quant/lines.h, followed by a line of their high bits.
//
//   unit: 32 / high k: unit * low / 32 lines of low bits, then one line, in which byte 4 r + j of row r holds the high
//   bits of k = 4 s + j at bits s * high, s = 0 ... 8 / high - 1.
//
//   5 bits: 32 k a unit  | low nibbles of k0..7 | ... | of k24..31 | the high bit of k0..31 |      320 bytes
//   3 bits: 32 k a unit  | two low bits of k0..15 | of k16..31 | the high bit of k0..31 |          192 bytes
//
// The last unit may be filled in part.

#include "quant/lines.h"

namespace llmcore {

template <int low, int high>
struct Planes {
  using Low = Lines<low>;
  static constexpr int64_t kUnit = 32 / high;
  static constexpr int64_t kLowBytes = Low::panel_bytes(kUnit), kUnitBytes = kLowBytes + kLineBytes;

  static constexpr int64_t panel_bytes(int64_t K_padded) { return (K_padded + kUnit - 1) / kUnit * kUnitBytes; }
  static void put_row(uint8_t* panel, int row, const uint8_t* codes, int64_t K_padded) {
    constexpr uint32_t kEach = 0x01010101, kLowMask = kEach * Low::kMask, kHighMask = kEach * ((1u << high) - 1);
    for (int64_t k = 0; k < K_padded; k += kUnit, panel += kUnitBytes) {
      uint32_t low_words[kLowBytes / kLineBytes] = {}, high_word = 0;
      for (int part = 0; part < kUnit / 4 && k + 4 * part < K_padded; ++part) {
        uint32_t four;
        __builtin_memcpy(&four, codes + k + 4 * part, 4);
        low_words[part / Low::kParts] |= (four & kLowMask) << (part % Low::kParts * low);
        high_word |= (four >> low & kHighMask) << (part * high);
      }
      for (int line = 0; line < kLowBytes / kLineBytes; ++line) {
        __builtin_memcpy(panel + line * kLineBytes + row * 4, low_words + line, 4);
      }
      __builtin_memcpy(panel + kLowBytes + row * 4, &high_word, 4);
    }
  }
  static unsigned get(const uint8_t* panel, int row, int64_t k, int64_t /*K_padded*/) {
    panel += k / kUnit * kUnitBytes;
    k %= kUnit;
    const unsigned bits = panel[kLowBytes + row * 4 + k % 4] >> (k / 4 * high) & ((1u << high) - 1);
    return Low::get(panel, row, k, kUnit) | bits << low;
  }
  static void fill(uint8_t* panel, unsigned code, int64_t K_padded) {
    for (int64_t k = 0; k < K_padded; k += kUnit, panel += kUnitBytes) {
      Low::fill(panel, code & Low::kMask, kUnit);
      Lines<high>::fill(panel + kLowBytes, code >> low, kUnit);
    }
  }
  // All codes are codes.
  static bool check(const uint8_t* /*panel*/, unsigned /*highest*/, int64_t /*K_padded*/) { return true; }
};

}  // namespace llmcore
