#include "base/buffer.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "base/checked.h"

namespace llmcore {
namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kMapped = 1 << 18;

std::atomic<int64_t> g_bytes{0};
std::atomic<int64_t> g_count{0};

// Large buffers come from mmap so that they are zero without a memset, in huge pages (those of neighbouring mappings,
// which the system joins, lie across their borders), and given back at once.
uint8_t* allocate(int64_t bytes) {
#if defined(__linux__)
  if (bytes >= kMapped) {
    void* p = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);
    return static_cast<uint8_t*>(p);
  }
#endif
  void* p = ::operator new(static_cast<size_t>(bytes), std::align_val_t(kAlignment), std::nothrow);
  if (p) std::memset(p, 0, static_cast<size_t>(bytes));
  return static_cast<uint8_t*>(p);
}

void release(uint8_t* p, int64_t bytes) noexcept {
#if defined(__linux__)
  if (bytes >= kMapped) {
    munmap(p, static_cast<size_t>(bytes));
    return;
  }
#endif
  ::operator delete(p, std::align_val_t(kAlignment));
}

int64_t capacity(int64_t bytes) { return round_up(bytes, kAlignment); }

}  // namespace

Buffer::Buffer(int64_t bytes) {
  check_argument(bytes >= 0, "buffer: the size must not be negative, got " + std::to_string(bytes));
  if (bytes == 0) return;
  if (bytes > (int64_t{1} << 46)) throw OutOfMemoryError("buffer: " + std::to_string(bytes) + " bytes asked for");
  data_ = allocate(capacity(bytes));
  if (!data_) throw OutOfMemoryError("out of memory: " + std::to_string(bytes) + " bytes could not be allocated");
  size_ = bytes;
  g_bytes += size_;
  ++g_count;
}

Buffer::~Buffer() {
  if (data_) {
    release(data_, capacity(size_));
    g_bytes -= size_;
  }
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void release_free_memory() noexcept {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

int64_t allocated_bytes() noexcept { return g_bytes; }
int64_t allocation_count() noexcept { return g_count; }

}  // namespace llmcore
