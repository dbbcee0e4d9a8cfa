#pragma once
// Merging of a few symbols: the lowest rank is found by looking at them all, several at a time. A step is in three
// parts, each of which begins with what the one before has prefetched; a caller with several pieces lets them take
// turns. With many turns a branch can't be foreseen, so there are none for the ends of a piece: beyond them is a symbol
// that merges with nothing.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "tokenizer/tables.h"

namespace llmcore {

/// Rules of two bytes that are symbols side by side at first, by (first << 8 | second): most pairs need no hash.
using BytePairs = Table<uint32_t>;

template <size_t kSymbols>
class Merger {
  static_assert(kSymbols % 16 == 0 && kSymbols <= 256);
  using Lanes __attribute__((vector_size(16))) = int32_t;
  static constexpr int32_t kNever = static_cast<int32_t>(PairLimits::kNoRule << 8);  // and what is above

 public:
  /// `starts`, at most kSymbols, are the symbols of `piece` before any merge; `bytes` may be empty. If there is one per
  /// byte, the first rules come from that table.
  template <class Pairs>
  void start(const Pairs& pairs, const BytePairs& bytes, std::string_view piece,
             std::span<const Symbol> starts) noexcept {
    link(starts.size());
    for (size_t i = 0; i < n_; ++i) {
      ids_[i + 1] = starts[i].id;
      lens_[i] = starts[i].len;
    }
    const int pairs_here = static_cast<int>(n_) - 1;
    if (n_ == piece.size() && !bytes.empty()) {
      const auto byte = [&](int at) { return size_t{static_cast<uint8_t>(piece[static_cast<size_t>(at)])}; };
      for (int i = 0; i < pairs_here; ++i) set(pairs, i, bytes[byte(i) << 8 | byte(i + 1)]);
      return;
    }
    std::array<size_t, kSymbols> homes;
    for (int i = 0; i < pairs_here; ++i) homes[i] = pairs.prefetch(ids_[i + 1], ids_[i + 2]);
    for (int i = 0; i < pairs_here; ++i) set(pairs, i, pairs.find(ids_[i + 1], ids_[i + 2], homes[i]));
  }

  /// The same for ASCII, of which each byte begins as the symbol of `symbols`, and without lengths.
  template <class Pairs>
  void start_ascii(const Pairs& pairs, const BytePairs& bytes, const std::array<uint32_t, 256>& symbols,
                   std::string_view piece) noexcept {
    link(piece.size());
    const uint8_t* const p = reinterpret_cast<const uint8_t*>(piece.data());
    for (size_t i = 0; i < n_; ++i) ids_[i + 1] = symbols[p[i]];
    for (size_t i = 1; i < n_; ++i) set(pairs, static_cast<int>(i) - 1, bytes[size_t{p[i - 1]} << 8 | p[i]]);
  }

  /// Finds the pair to merge next; false when there is none.
  template <class Pairs>
  bool choose(const Pairs& pairs) noexcept {
    const auto lanes_at = [&](size_t i) {
      Lanes x;
      std::memcpy(&x, order_ + kFront + i, sizeof x);
      return x;
    };
    const auto lower = [](Lanes x, Lanes y) { return x < y ? x : y; };
    Lanes low = lower(lower(lanes_at(0), lanes_at(4)), lower(lanes_at(8), lanes_at(12)));
    for (size_t i = 16; i < padded_; i += 8) low = lower(low, lower(lanes_at(i), lanes_at(i + 4)));
    const int32_t best = std::min(std::min(low[0], low[1]), std::min(low[2], low[3]));
    if (best >= kNever) return false;
    best_ = best & 0xFF;
    pairs.prefetch_result(rule_[kFront + best_]);
    return true;
  }

  /// Merges the chosen pair.
  template <class Pairs>
  void apply(const Pairs& pairs) noexcept {
    const int i = best_, j = after_[i], next = after_[j];
    const uint32_t id = pairs.result(rule_[kFront + i]);
    ids_[i + 1] = id;
    lens_[i] += lens_[j];
    order_[kFront + j] = kNever;
    after_[i] = static_cast<int16_t>(next);
    before_[next] = static_cast<int16_t>(i);
    left_home_ = pairs.prefetch(ids_[before_[i] + 1], id);
    right_home_ = pairs.prefetch(id, ids_[next + 1]);
  }

  /// Finishes the step. Some time should pass until the next choice: it reads as vectors what is written here.
  template <class Pairs>
  void settle(const Pairs& pairs) noexcept {
    const int i = best_, left = before_[i];
    const uint32_t id = ids_[i + 1];
    set(pairs, left, pairs.find(ids_[left + 1], id, left_home_));
    set(pairs, i, pairs.find(id, ids_[after_[i] + 1], right_home_));
  }

  /// How many symbols there were at first.
  size_t size() const noexcept { return n_; }
  /// Writes the symbols that are left, at most as many as there were, and returns how many there are.
  size_t finish(Symbol* out) const noexcept {
    size_t count = 0;
    for (int i = 0; i < static_cast<int>(n_); i = after_[i]) out[count++] = {ids_[i + 1], lens_[i]};
    return count;
  }
  size_t finish(uint32_t* out) const noexcept {
    size_t count = 0;
    for (int i = 0; i < static_cast<int>(n_); i = after_[i]) out[count++] = ids_[i + 1];
    return count;
  }

 private:
  static constexpr int kFront = 4;  // of what is kept for place -1 as well, and never read there

  /// n symbols, each beside the next, and no rules yet.
  void link(size_t n) noexcept {
    n_ = n;
    padded_ = std::max<size_t>(16, (n + 7) & ~size_t{7});
    for (size_t i = 0; i < padded_; ++i) {
      before_[i] = static_cast<int16_t>(static_cast<int>(i) - 1);
      after_[i] = static_cast<int16_t>(i + 1);
      order_[kFront + i] = kNever;
    }
    ids_[0] = ids_[n + 1] = PairLimits::kNoSymbol;
  }
  template <class Pairs>
  void set(const Pairs& pairs, int i, uint32_t rule) noexcept {
    rule_[kFront + i] = rule;
    order_[kFront + i] = static_cast<int32_t>(pairs.order(rule) << 8 | (static_cast<uint32_t>(i) & 0xFF));
  }

  // Of joining symbol i and the one after it: rank, then place. A symbol that was swallowed keeps its place.
  alignas(16) int32_t order_[kFront + kSymbols];
  uint32_t rule_[kFront + kSymbols];
  uint32_t ids_[kSymbols + 2];  // from place -1 on
  uint32_t lens_[kSymbols];
  int16_t before_[kSymbols + 1], after_[kSymbols];
  int best_ = 0;
  size_t n_ = 0, padded_ = 0;
  size_t left_home_ = 0, right_home_ = 0;
};

}  // namespace llmcore
