#pragma once
// Merging of a few symbols: the lowest rank is found by looking at them all, several at a time. A step is in two
// halves, each of which begins with what the one before has prefetched; a caller with several pieces lets them take
// turns.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "tokenizer/tables.h"

namespace llmcore {

/// One symbol of an encoded piece: its id, and how many bytes of the piece it covers.
struct Symbol {
  uint32_t id;
  uint32_t len;
};

/// Rules of two bytes that are symbols side by side at first, by (first << 8 | second): most pairs need no hash.
using BytePairs = Table<uint32_t>;

template <size_t kSymbols>
class Merger {
  static_assert(kSymbols % 8 == 0 && kSymbols <= 256);
  using Lanes __attribute__((vector_size(16))) = int32_t;
  static constexpr int32_t kNever = 0x7FFFFFFF;

 public:
  Symbol symbols[kSymbols];

  /// The first `n` symbols, at most kSymbols, are those of `piece` before any merge; `bytes` may be empty.
  void start(const PairTable& pairs, const BytePairs& bytes, std::string_view piece, size_t n) noexcept {
    n_ = n;
    size_t at = 0;
    for (size_t i = 0; i < n; ++i) {
      before_[i] = static_cast<uint16_t>(i - 1);
      after_[i] = static_cast<uint16_t>(i + 1);
      if (i + 1 == n) break;
      const Symbol left = symbols[i], right = symbols[i + 1];
      const auto byte = [&](size_t where) { return static_cast<size_t>(static_cast<uint8_t>(piece[where])); };
      const bool known = left.len == 1 && right.len == 1 && !bytes.empty();
      set(pairs, i, known ? bytes[byte(at) << 8 | byte(at + 1)] : pairs.find(left.id, right.id));
      at += left.len;
    }
    padded_ = n > 1 ? (n - 1 + 7) & ~size_t{7} : 0;
    for (size_t i = n > 1 ? n - 1 : 0; i < padded_; ++i) order_[i] = kNever;
    left_ = right_ = kNone;
  }

  /// Finishes the step before and finds the pair to merge next; false when there is none.
  bool choose(const PairTable& pairs) noexcept {
    if (left_ != kNone) set(pairs, left_, pairs.find(symbols[left_].id, symbols[after_[left_]].id, left_home_));
    if (right_ != kNone) set(pairs, right_, pairs.find(symbols[right_].id, symbols[after_[right_]].id, right_home_));
    left_ = right_ = kNone;
    if (padded_ == 0) return false;
    Lanes low, low2;
    std::memcpy(&low, order_, sizeof low);
    std::memcpy(&low2, order_ + 4, sizeof low);
    for (size_t i = 8; i < padded_; i += 8) {
      Lanes x, y;
      std::memcpy(&x, order_ + i, sizeof x);
      std::memcpy(&y, order_ + i + 4, sizeof y);
      low = x < low ? x : low;
      low2 = y < low2 ? y : low2;
    }
    low = low2 < low ? low2 : low;
    const int32_t best = std::min(std::min(low[0], low[1]), std::min(low[2], low[3]));
    if (best == kNever) return false;
    best_ = static_cast<size_t>(best & 0xFF);
    pairs.prefetch_result(rule_[best_]);
    return true;
  }

  /// Merges the chosen pair.
  void apply(const PairTable& pairs) noexcept {
    const size_t i = best_, j = after_[i], next = after_[j];
    symbols[i] = {pairs.result(rule_[i]), symbols[i].len + symbols[j].len};
    order_[i] = order_[j] = kNever;
    after_[i] = static_cast<uint16_t>(next);
    if (i > 0) {
      left_ = before_[i];
      left_home_ = pairs.prefetch(symbols[left_].id, symbols[i].id);
    }
    if (next < n_) {
      before_[next] = static_cast<uint16_t>(i);
      right_ = i;
      right_home_ = pairs.prefetch(symbols[i].id, symbols[next].id);
    }
  }

  /// Moves what is left together and returns how many there are.
  size_t finish() noexcept {
    size_t count = 0;
    for (size_t i = 0; i < n_; i = after_[i]) symbols[count++] = symbols[i];
    return count;
  }

 private:
  static constexpr size_t kNone = ~size_t{0};

  void set(const PairTable& pairs, size_t i, uint32_t rule) noexcept {
    rule_[i] = rule;
    const bool never = rule == PairTable::kNoRule;
    order_[i] = never ? kNever : static_cast<int32_t>(pairs.order(rule) << 8 | static_cast<uint32_t>(i));
  }

  // Of joining symbol i and the one after it: rank, then place. A symbol that was swallowed keeps its place.
  alignas(16) int32_t order_[kSymbols];
  uint32_t rule_[kSymbols];
  uint16_t before_[kSymbols], after_[kSymbols];
  size_t n_ = 0, padded_ = 0, best_ = 0;
  size_t left_ = kNone, right_ = kNone, left_home_ = 0, right_home_ = 0;
};

}  // namespace llmcore
