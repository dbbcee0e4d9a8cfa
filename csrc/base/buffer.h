#pragma once
// Owned, zero-filled, aligned memory. Large buffers ask for huge pages, which the weight streams need (TLB reach).

#include <cstddef>
#include <cstdint>

namespace llmcore {

class Buffer {
 public:
  Buffer() = default;
  /// Throws OutOfMemoryError. `bytes` may be 0. Contents are zero.
  explicit Buffer(int64_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  uint8_t* data() noexcept { return data_; }
  const uint8_t* data() const noexcept { return data_; }
  int64_t size() const noexcept { return size_; }
  template <class T>
  T* as() noexcept {
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  const T* as() const noexcept {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

/// Bytes held by all live buffers of the process; for memory accounting and tests.
int64_t allocated_bytes() noexcept;
/// Number of Buffer allocations since the start; a test shows that it does not move during generation.
int64_t allocation_count() noexcept;

}  // namespace llmcore
