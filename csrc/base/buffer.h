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

/// `count` numbers, zero at first. Many of them take memory only where they are written.
template <class T>
class ZeroArray {
 public:
  explicit ZeroArray(int64_t count) : buffer_(count * static_cast<int64_t>(sizeof(T))), count_(count) {}

  T* data() noexcept { return buffer_.as<T>(); }
  const T* data() const noexcept { return buffer_.as<T>(); }
  int64_t size() const noexcept { return count_; }
  T* begin() noexcept { return data(); }
  T* end() noexcept { return data() + count_; }
  const T* begin() const noexcept { return data(); }
  const T* end() const noexcept { return data() + count_; }
  T& operator[](int64_t i) noexcept { return data()[i]; }
  const T& operator[](int64_t i) const noexcept { return data()[i]; }

 private:
  Buffer buffer_;
  int64_t count_;
};

/// Gives the system back what was freed but the C library keeps; where it has no way to say so, nothing happens.
void release_free_memory() noexcept;

/// Bytes held by all live buffers of the process; for memory accounting and tests.
int64_t allocated_bytes() noexcept;
/// Number of Buffer allocations since the start; a test shows that it does not move during generation.
int64_t allocation_count() noexcept;

}  // namespace llmcore
