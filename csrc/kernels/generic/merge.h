// Merges short pieces of text, sixteen at once: each has a lane, and place p of all of them is one vector. A step finds
// the lowest rule of every piece and merges the pair, without a branch and without a list: what is to the right of the
// pair moves up by one place, so every step has one place fewer to look at. Then the new symbol is looked up with its
// neighbours. That waits for caches, so several groups take turns: what is looked up in one turn is read in the next.
// Included after an ISA's gathers.h; for those without one, tokenizer/merger.h merges piece by piece.

#include "kernels/pairs.h"

namespace {

using llmcore::kMergeLanes;
using llmcore::kMergeSymbols;
using llmcore::MergeArgs;
using llmcore::MergePiece;
using llmcore::PairSlots;

constexpr int kMergeGroups = 8;  // that take turns

/// Sixteen pairs that are looked up: their slots are on their way from memory.
struct PairQuery {
  alignas(64) int32_t left[kMergeLanes], right[kMergeLanes], slots[kMergeLanes];
  uint16_t wanted;
};

/// Sixteen pieces. Row 1 has the first symbol of each: what is left of a piece is nothing, too.
struct MergeGroup {
  int places;                                                  // of the longest piece that isn't finished
  alignas(64) int32_t ids[kMergeSymbols + 3][kMergeLanes];     // kNoSymbol after a piece
  alignas(64) int32_t orders[kMergeSymbols + 2][kMergeLanes];  // the rules of each symbol and the next one
  alignas(64) int32_t counts[kMergeLanes];                     // of symbols
  // Of the last step: the new symbols with what is on either side (in one query if they are few), and where they are.
  PairQuery left, right;
  uint16_t active, at[kMergeSymbols + 2];
};

LLMCORE_INLINE I32x16 no_rules() { return set1_i32(llmcore::kNoRule); }
LLMCORE_INLINE I32x16 no_symbols() { return set1_i32(llmcore::kNoSymbol); }
/// Whether one query has room for both sides of the new symbols.
LLMCORE_INLINE bool fit_in_one(Mask16 active) { return count_of(active) <= kMergeLanes / 2; }
LLMCORE_INLINE Mask16 both_there(I32x16 left, I32x16 right) {
  return both_of(unequal(left, no_symbols()), unequal(right, no_symbols()));
}

LLMCORE_INLINE I32x16 slots_of(const PairSlots& t, I32x16 left, I32x16 right, Mask16 wanted) {
  const I32x16 both = mul(right, set1_i32(static_cast<int32_t>(t.hash.right)));
  const I32x16 bucket = add(mul(left, set1_i32(static_cast<int32_t>(t.hash.left))), both);
  const I32x16 place = add(mul(left, set1_i32(static_cast<int32_t>(t.hash.left_too))), both);
  const I32x16 factor = gather(t.multipliers, shift_right(bucket, t.hash.bucket_shift), wanted);
  return shift_right(mul(place, factor), t.hash.slot_shift);
}
LLMCORE_INLINE I32x16 rules_in(const PairSlots& t, I32x16 slots, I32x16 left, I32x16 right, Mask16 wanted) {
  I32x16 low, high;
  gather(t.slots, slots, wanted, low, high);
  // Above: left and the upper 12 bits of right. Below: the other 8 of right, and the rule.
  const Mask16 same = both_of(equal(high, add(shift_left<12>(left), shift_right(right, 8))),
                              equal(shift_right(low, 24), bit_and(right, set1_i32(0xFF))));
  return select(both_of(same, wanted), bit_and(low, no_rules()), no_rules());
}

/// The rules of sixteen pairs (PairHash says where they are); kNoRule where there is none, or it isn't wanted.
LLMCORE_INLINE I32x16 find_rules(const PairSlots& t, I32x16 left, I32x16 right, Mask16 wanted) {
  return rules_in(t, slots_of(t, left, right, wanted), left, right, wanted);
}
/// The same in two steps.
LLMCORE_INLINE void ask(const PairSlots& t, I32x16 left, I32x16 right, Mask16 wanted, PairQuery& q) {
  store(q.left, left);
  store(q.right, right);
  store(q.slots, slots_of(t, left, right, wanted));
  store(&q.wanted, wanted);
  _Pragma("GCC unroll 16") for (int lane = 0; lane < kMergeLanes; ++lane) prefetch(t.slots + q.slots[lane]);
}
LLMCORE_INLINE I32x16 answer(const PairSlots& t, const PairQuery& q) {
  return rules_in(t, load(q.slots), load(q.left), load(q.right), load_mask(&q.wanted));
}

/// Places the pieces in lanes and looks up their symbols with the next ones.
LLMCORE_INLINE void begin(const PairSlots& t, const uint32_t* symbols, const MergePiece* pieces, int count,
                          MergeGroup& g) {
  g.places = 0;
  for (int lane = 0; lane < kMergeLanes; ++lane) {
    g.counts[lane] = lane < count ? static_cast<int32_t>(pieces[lane].count) : 0;
    g.places = g.counts[lane] > g.places ? g.counts[lane] : g.places;
  }
  for (int from = 0; from < g.places; from += 16) {
    I32x16 rows[16];
    for (int lane = 0; lane < kMergeLanes; ++lane) {
      const uint32_t begin = lane < count ? pieces[lane].begin : 0;
      rows[lane] = load_some(symbols + begin + from, g.counts[lane] - from, no_symbols());
    }
    transpose(rows);
    for (int p = 0; p < 16; ++p) store(g.ids[1 + from + p], rows[p]);
  }
  store(g.ids[g.places + 1], no_symbols());
  for (int p = 1; p < g.places; ++p) {
    const I32x16 left = load(g.ids[p]), right = load(g.ids[p + 1]);
    store(g.orders[p], find_rules(t, left, right, both_there(left, right)));
  }
  store(g.orders[g.places], no_rules());
}

LLMCORE_INLINE I32x16 first_rules(const MergeGroup& g) {
  I32x16 best = no_rules();
  for (int p = 1; p < g.places; ++p) best = min(best, load(g.orders[p]));
  return best;
}

/// Merges by the lowest rules, where they come first. False when all pieces are finished.
LLMCORE_INLINE bool merge_step(const PairSlots& t, MergeGroup& g, I32x16 best) {
  const Mask16 active = unequal(best, no_rules());
  if (count_of(active) == 0) return false;
  const I32x16 merged = t.results ? gather(t.results, best, active) : best;
  Mask16 before = active, behind = no_lanes();  // this place is before the pair, or behind its left symbol
  I32x16 left = no_symbols(), right = left, last = left, here = load(g.ids[1]), next = load(g.ids[2]);
  I32x16 order = load(g.orders[1]);
  for (int p = 1; p < g.places; ++p) {
    const I32x16 after = load(g.ids[p + 2]), next_order = load(g.orders[p + 1]);
    const Mask16 found = both_of(before, equal(order, best));
    left = select(found, last, left);
    right = select(found, after, right);
    store(g.ids[p], select(found, merged, select(behind, next, here)));
    before = one_without(before, found);
    behind = either_of(behind, found);
    store(g.orders[p], select(behind, next_order, order));
    store(g.at + p, found);
    last = here;
    here = next;
    next = after;
    order = next_order;
  }
  store(g.ids[g.places], select(active, no_symbols(), here));
  store(g.counts, sub(load(g.counts), select(active, set1_i32(1), set1_i32(0))));
  if (fit_in_one(active)) {
    const I32x16 lefts = pack(active, left, merged, no_symbols()), rights = pack(active, merged, right, no_symbols());
    ask(t, lefts, rights, both_there(lefts, rights), g.left);
  } else {
    ask(t, left, merged, both_of(active, unequal(left, no_symbols())), g.left);
    ask(t, merged, right, both_of(active, unequal(right, no_symbols())), g.right);
  }
  store(&g.active, active);
  return true;
}

/// Writes down the rules of the new symbols, and returns the lowest ones of all.
LLMCORE_INLINE I32x16 next_rules(const PairSlots& t, MergeGroup& g) {
  const Mask16 active = load_mask(&g.active);
  I32x16 left = answer(t, g.left), right;
  if (fit_in_one(active)) {
    unpack(active, left, left, right);
  } else {
    right = answer(t, g.right);
  }
  I32x16 best = no_rules();
  --g.places;
  for (int p = 1; p < g.places; ++p) {
    const I32x16 order = select(load_mask(g.at + p), right, select(load_mask(g.at + p + 1), left, load(g.orders[p])));
    store(g.orders[p], order);
    best = min(best, order);
  }
  return best;
}

/// Writes the ids of the pieces one after the other, and returns where they end.
LLMCORE_INLINE uint32_t* finish(const MergeGroup& g, MergePiece* pieces, int count, uint32_t* out) {
  int most = 0;
  for (int lane = 0; lane < count; ++lane) {
    pieces[lane].count = static_cast<uint32_t>(g.counts[lane]);
    most = g.counts[lane] > most ? g.counts[lane] : most;
  }
  if (most > 16) {
    for (int lane = 0; lane < count; ++lane) {
      for (int p = 0; p < g.counts[lane]; ++p) *out++ = static_cast<uint32_t>(g.ids[1 + p][lane]);
    }
    return out;
  }
  I32x16 rows[16];
  for (int p = 0; p < 16; ++p) rows[p] = load(g.ids[1 + p]);
  transpose(rows);
  for (int lane = 0; lane < count; ++lane) {
    store(reinterpret_cast<int32_t*>(out), rows[lane]);
    out += g.counts[lane];
  }
  return out;
}

void merge_kernel(const MergeArgs& a) noexcept {
  const PairSlots t = a.pairs;
  MergeGroup groups[kMergeGroups];
  uint32_t* out = a.ids;
  for (size_t done = 0; done < a.count; done += kMergeGroups * kMergeLanes) {
    MergePiece* const pieces = a.pieces + done;
    const size_t rest = a.count - done;
    const int total = rest < kMergeGroups * kMergeLanes ? static_cast<int>(rest) : kMergeGroups * kMergeLanes;
    const int used = (total + kMergeLanes - 1) / kMergeLanes;
    const auto lanes_of = [total](int i) {
      return total - i * kMergeLanes < kMergeLanes ? total - i * kMergeLanes : kMergeLanes;
    };
    for (int i = 0; i < used; ++i) begin(t, a.symbols, pieces + i * kMergeLanes, lanes_of(i), groups[i]);
    MergeGroup* active[kMergeGroups];
    int count = 0;
    for (int i = 0; i < used; ++i) {
      if (merge_step(t, groups[i], first_rules(groups[i]))) active[count++] = &groups[i];
    }
    while (count > 0) {
      int still = 0;
      for (int i = 0; i < count; ++i) {
        if (merge_step(t, *active[i], next_rules(t, *active[i]))) active[still++] = active[i];
      }
      count = still;
    }
    for (int i = 0; i < used; ++i) out = finish(groups[i], pieces + i * kMergeLanes, lanes_of(i), out);
  }
}

}  // namespace
