#pragma once
// The merge rules of a vocabulary as kernels read them (tokenizer/tables.h builds the table), and pieces of text that
// are merged many at once. ISA objects include this file: plain C types only, and functions are static.

#include <stddef.h>
#include <stdint.h>

namespace llmcore {

constexpr uint32_t kNoRule = (1u << 23) - 1;    // rules are below
constexpr uint32_t kNoSymbol = (1u << 20) - 1;  // ids are below

/// Two hashes of a pair of ids, by 32-bit arithmetic alone, which vectors have: odd factors of the ids. The first says
/// the bucket, whose multiplier turns the second into the slot.
struct PairHash {
  uint32_t left = 1, left_too = 1, right = 1;
  int bucket_shift = 31, slot_shift = 31;

  uint32_t bucket(uint32_t l, uint32_t r) const noexcept { return (l * left + r * right) >> bucket_shift; }
  uint32_t place(uint32_t l, uint32_t r) const noexcept { return l * left_too + r * right; }
};

/// Pair of ids -> rule, rule -> id. Rules come first in the order of their numbers.
struct PairSlots {
  PairHash hash;
  const uint32_t* multipliers;  // by bucket
  const uint64_t* slots;        // left id, 20 bits, right id, 20 bits, rule, 24 bits; all ones where there is none
  const uint32_t* results;      // by rule; null if a rule's number is the id it makes
};

constexpr int kMergeLanes = 16;
constexpr int kMergeSymbols = 48;  // a piece begins as at most so many

/// A piece that begins as `count` symbols from place `begin` on; `count` is set to the number of its ids.
struct MergePiece {
  uint32_t begin, count;
};

struct MergeArgs {
  PairSlots pairs;
  const uint32_t* symbols;  // of all pieces
  MergePiece* pieces;       // neighbours with equal numbers of symbols are the fastest
  size_t count;
  uint32_t* ids;  // of the pieces one after the other, with room for kMergeLanes more
};

}  // namespace llmcore
