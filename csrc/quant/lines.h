#pragma once
// How the codes of 16 weight rows share a line of 64 bytes. One layout for every bit width:
//
//   byte 4 r + j of a line belongs to row r of the panel and to k = j (mod 4);
//   bits [s * bits, (s + 1) * bits) of that byte hold k = line * step + 4 s + j,     step = 32 / bits.
//
//   8 bits:  | k0 | k1 | k2 | k3 |                        of row 0, then row 1, ...          4 k a line
//   4 bits:  | k4:k0 | k5:k1 | k6:k2 | k7:k3 |            (high nibble : low nibble)         8 k a line
//   2 bits:  | k12:k8:k4:k0 | k13:k9:k5:k1 | ...          (high bits : ... : low bits)      16 k a line
//
// So one 64-byte load and a mask give 16 lanes of 4 consecutive k, what vpdpbusd, sdot and their relatives eat, and a
// lane is a weight row on every ISA. Codes are unsigned: real weight = scale * (code - zero).

#include <cstddef>
#include <cstdint>

namespace llmcore {

constexpr int kLineBytes = 64;
constexpr int64_t kRowsPerPanel = 16;

template <int bits>
struct Lines {
  static constexpr int kParts = 8 / bits;
  static constexpr int kStep = 4 * kParts;
  static constexpr unsigned kMask = (1u << bits) - 1;

  static constexpr int64_t panel_bytes(int64_t K_padded) { return K_padded * kRowsPerPanel * bits / 8; }

  // Writes a whole row: codes [K_padded], one per byte, each below 2^bits.
  static void put_row(uint8_t* panel, int row, const uint8_t* codes, int64_t K_padded) {
    for (int64_t k = 0; k < K_padded; k += kStep) {
      uint32_t word = 0;
      for (int part = 0; part < kParts; ++part) {
        uint32_t four;
        __builtin_memcpy(&four, codes + k + 4 * part, 4);
        word |= four << (part * bits);
      }
      __builtin_memcpy(panel + k / kStep * kLineBytes + row * 4, &word, 4);
    }
  }
  static unsigned get(const uint8_t* panel, int row, int64_t k, int64_t /*K_padded*/) {
    const int64_t j = k % kStep;
    return (panel[k / kStep * kLineBytes + row * 4 + j % 4] >> (j / 4 * bits)) & kMask;
  }
  // A whole panel of one code.
  static void fill(uint8_t* panel, unsigned code, int64_t K_padded) {
    for (int shift = bits; shift < 8; shift += bits) code |= (code & kMask) << shift;
    __builtin_memset(panel, static_cast<int>(code), static_cast<size_t>(panel_bytes(K_padded)));
  }
  // Whether no code of a panel is above `highest`.
  static bool check(const uint8_t* panel, unsigned highest, int64_t K_padded) {
    bool bad = false;
    for (int64_t i = 0; i < panel_bytes(K_padded); ++i) {
      for (int part = 0; part < kParts; ++part) bad |= ((panel[i] >> (part * bits)) & kMask) > highest;
    }
    return !bad;
  }
};

// Signed codes of 12 bits, which keys and values are stored as: three lines for 8 k. A line holds 2 k of each row, as
// 16-bit words; the upper 12 bits of word 2 r + j are k = j, 2 + j or 4 + j of row r, by line. The lower 4 bits are a
// part of k = 6 + j, the lowest bits in the first line. So a shift of whole lines gives words to multiply.
struct Lines12 {
  static constexpr int kStep = 8;
  static constexpr int kUnit = 3 * kLineBytes;

  static int get(const uint8_t* panel, int64_t row, int64_t k) {
    const auto word = [&](int64_t line) {
      int16_t bits;
      __builtin_memcpy(&bits, panel + k / kStep * kUnit + line * kLineBytes + (row * 2 + k % 2) * 2, 2);
      return bits;
    };
    const int64_t pair = k % kStep / 2;
    if (pair < 3) return word(pair) >> 4;
    return static_cast<int16_t>((word(0) & 15) << 4 | (word(1) & 15) << 8 | (word(2) & 15) << 12) >> 4;
  }
};

}  // namespace llmcore
