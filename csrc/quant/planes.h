#pragma once
// How codes of 3, 5 or 6 bits lie: their low 2 or 4 bits as in quant/lines.h, followed by a line of their high bits.
//
//   unit: 32 / high k: unit * low / 32 lines of low bits, then one line, in which byte 4 r + j of row r holds the high
//   bits of k = 4 s + j at bits s * high, s = 0 ... 8 / high - 1.
//
//   6 bits: 16 k a unit  | low nibbles of k0..7 | of k8..15 | two high bits of k0..15 |            192 bytes
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
    for (int64_t k = 0; k < K_padded; k += kUnit, codes += kUnit, panel += kUnitBytes) {
      uint8_t low_bits[kUnit] = {}, high_bits[4] = {};
      for (int i = 0; i < kUnit && k + i < K_padded; ++i) {
        low_bits[i] = codes[i] & Low::kMask;
        high_bits[i % 4] = static_cast<uint8_t>(high_bits[i % 4] | codes[i] >> low << (i / 4 * high));
      }
      Low::put_row(panel, row, low_bits, kUnit);
      __builtin_memcpy(panel + kLowBytes + row * 4, high_bits, 4);
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
