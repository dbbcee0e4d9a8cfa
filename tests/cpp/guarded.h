#pragma once
// Operands between guard pages: a kernel that reads or writes a byte before the first or behind the last element of its
// operand ends the program with SIGSEGV. One edge is exact to the byte, the other is followed by poison (0xff bytes:
// NaN in every float type) that must still be there afterwards; tests try both edges.

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <new>
#include <vector>

#include "check.h"

namespace llmcore::test {

enum class Edge { kFront, kBack };

template <class T>
class Guarded {
 public:
  /// n elements of poison, the first (kFront) or the last (kBack) next to a guard page.
  Guarded(int64_t n, Edge edge) : n_(n) {
    const int64_t page = sysconf(_SC_PAGESIZE), bytes = n * static_cast<int64_t>(sizeof(T));
    room_ = (bytes + page - 1) / page * page;
    begin_ = take(room_, page);
    std::memset(begin_, 0xff, static_cast<size_t>(room_));
    data_ = edge == Edge::kFront ? begin_ : begin_ + room_ - bytes;
  }
  Guarded(const std::vector<T>& values, Edge edge) : Guarded(static_cast<int64_t>(values.size()), edge) {
    if (n_) std::memcpy(data_, values.data(), values.size() * sizeof(T));
  }
  Guarded(const void* values, int64_t n, Edge edge) : Guarded(n, edge) {
    if (n) std::memcpy(data_, values, static_cast<size_t>(n) * sizeof(T));
  }
  ~Guarded() {
    check_poison();
    unused()[room_].push_back(begin_);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return reinterpret_cast<T*>(data_); }
  T& operator[](int64_t i) { return data()[i]; }
  int64_t size() const { return n_; }
  std::vector<T> values() { return std::vector<T>(data(), data() + n_); }

 private:
  // Mappings are kept for the next operand of their size: making one costs more than most kernels.
  static std::map<int64_t, std::vector<uint8_t*>>& unused() {
    static std::map<int64_t, std::vector<uint8_t*>> by_room;
    return by_room;
  }
  static uint8_t* take(int64_t room, int64_t page) {
    std::vector<uint8_t*>& ready = unused()[room];
    if (!ready.empty()) {
      uint8_t* begin = ready.back();
      ready.pop_back();
      return begin;
    }
    void* p = mmap(nullptr, static_cast<size_t>(room + 2 * page), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    uint8_t* begin = static_cast<uint8_t*>(p) + page;
    if (room && mprotect(begin, static_cast<size_t>(room), PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    return begin;
  }
  void check_poison() const {
    const uint8_t* end = data_ + n_ * static_cast<int64_t>(sizeof(T));
    const auto poison = [](uint8_t byte) { return byte == 0xff; };
    report(std::all_of(static_cast<const uint8_t*>(begin_), static_cast<const uint8_t*>(data_), poison) &&
               std::all_of(end, static_cast<const uint8_t*>(begin_ + room_), poison),
           __FILE__, __LINE__, "written beside an operand");
  }

  uint8_t *begin_ = nullptr, *data_ = nullptr;
  int64_t n_, room_ = 0;
};

/// Whether two outputs are the same bits; which NaN a NaN is differs between processors, and nothing depends on it.
inline bool same_bits(const float* a, const float* b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    if (std::memcmp(a + i, b + i, sizeof(float)) != 0 && !(a[i] != a[i] && b[i] != b[i])) return false;
  }
  return true;
}

}  // namespace llmcore::test
