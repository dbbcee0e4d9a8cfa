#pragma once
// What one thread has merged, by the text of the piece. Fixed in size: ids and texts lie in a ring, in which new ones
// overwrite the oldest.

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>

#include "tokenizer/tables.h"

namespace llmcore {

class PieceCache {
 public:
  /// Longer pieces aren't kept.
  static constexpr size_t kBytes = 256;

  /// Where a search begins, for a prefetch.
  const void* home_of(uint64_t hash) const noexcept { return &sets_[set_of(hash)]; }

  /// The ids of a piece, valid until the next `keep`; none if it isn't there. `hash` is of the piece, by any function.
  std::span<const uint32_t> find(std::string_view piece, uint64_t hash) const noexcept {
    const Set& set = sets_[set_of(hash)];
    for (size_t way = 0; way < kWays; ++way) {
      const uint64_t place = set.places[way];
      if (set.hashes[way] != hash || (place >> kCountBits & kMask) != piece.size()) continue;
      const uint64_t begin = (place >> 2 * kCountBits) * kUnit;
      if (end_ - begin > kRing) continue;  // overwritten
      const char* const record = ring_.get() + begin % kRing;
      const size_t count = place & kMask;
      if (std::memcmp(record + count * sizeof(uint32_t), piece.data(), piece.size()) != 0) continue;
      return {reinterpret_cast<const uint32_t*>(record), count};
    }
    return {};
  }

  /// A piece that is not there, with its ids or symbols; at most kBytes of both.
  template <class Value>
  void keep(std::string_view piece, uint64_t hash, std::span<const Value> values) noexcept {
    const size_t bytes = (values.size() * sizeof(uint32_t) + piece.size() + kUnit - 1) / kUnit * kUnit;
    uint64_t begin = end_;
    if (begin % kRing + bytes > kRing) begin += kRing - begin % kRing;
    end_ = begin + bytes;
    char* out = ring_.get() + begin % kRing;
    for (const Value& value : values) {
      const uint32_t id = id_of(value);
      std::memcpy(out, &id, sizeof id);
      out += sizeof id;
    }
    std::memcpy(out, piece.data(), piece.size());
    Set& set = sets_[set_of(hash)];
    std::copy_backward(set.hashes.begin(), set.hashes.end() - 1, set.hashes.end());
    std::copy_backward(set.places.begin(), set.places.end() - 1, set.places.end());
    set.hashes[0] = hash;
    set.places[0] = (begin / kUnit) << 2 * kCountBits | piece.size() << kCountBits | values.size();
  }

 private:
  static constexpr size_t kSets = 4096, kWays = 4, kUnit = 8, kCountBits = 9;
  static constexpr uint64_t kRing = uint64_t{1} << 20, kMask = (1 << kCountBits) - 1;
  /// A place: where in the ring's history (46 bits of units: no run is that long), the piece's size, the number of ids.
  struct alignas(64) Set {
    std::array<uint64_t, kWays> hashes{}, places{};
  };
  static size_t set_of(uint64_t hash) noexcept { return hash >> 32 & (kSets - 1); }

  Table<Set> sets_ = Table<Set>(kSets);
  std::unique_ptr<char[]> ring_ = std::make_unique_for_overwrite<char[]>(kRing);
  uint64_t end_ = 0;
};

}  // namespace llmcore
