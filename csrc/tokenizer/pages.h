#pragma once
// An allocator for tables that are read at random: large ones ask for huge pages. Nearly every look-up in a table of
// some megabytes misses the TLB otherwise, and on a virtual machine that costs more than the cache miss.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace llmcore {

template <class T>
struct PageAllocator {
  using value_type = T;
  static constexpr std::size_t kHugePage = std::size_t{1} << 21;

  PageAllocator() = default;
  template <class U>
  PageAllocator(const PageAllocator<U>&) noexcept {}

  static std::size_t alignment(std::size_t bytes) noexcept { return bytes >= kHugePage / 2 ? kHugePage : 64; }

  T* allocate(std::size_t n) {
    if (n > ~std::size_t{0} / 2 / sizeof(T)) throw std::bad_alloc();
    std::size_t bytes = n * sizeof(T);
    const std::size_t align = alignment(bytes);
    void* p = ::operator new(bytes, std::align_val_t{align});
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    // A wish, not a need: what it returns changes nothing but the speed.
    if (align == kHugePage) static_cast<void>(madvise(p, bytes, MADV_HUGEPAGE));
#endif
    return static_cast<T*>(p);
  }
  void deallocate(T* p, std::size_t n) noexcept { ::operator delete(p, std::align_val_t{alignment(n * sizeof(T))}); }

  friend bool operator==(const PageAllocator&, const PageAllocator&) noexcept { return true; }
};

/// An array of zeros, of which the system makes what is touched: all of it is never cleared in vain.
template <class T>
class ZeroedTable {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  explicit ZeroedTable(std::size_t n) : size_(n) {
#if defined(__linux__)
    // One huge page more than is needed has room for pages on a border.
    void* const map = mmap(nullptr, mapped(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();
    map_ = map;
    const std::size_t past = reinterpret_cast<std::uintptr_t>(map) % kHugePage;
    first_ = reinterpret_cast<T*>(static_cast<char*>(map) + (past == 0 ? 0 : kHugePage - past));
#if defined(MADV_HUGEPAGE)
    static_cast<void>(madvise(first_, n * sizeof(T), MADV_HUGEPAGE));
#endif
#else
    first_ = PageAllocator<T>().allocate(n);
    std::memset(static_cast<void*>(first_), 0, n * sizeof(T));
#endif
  }
  ZeroedTable(const ZeroedTable&) = delete;
  ZeroedTable& operator=(const ZeroedTable&) = delete;
  ~ZeroedTable() {
#if defined(__linux__)
    munmap(map_, mapped());
#else
    PageAllocator<T>().deallocate(first_, size_);
#endif
  }

  std::size_t size() const noexcept { return size_; }
  T& operator[](std::size_t i) noexcept { return first_[i]; }
  const T& operator[](std::size_t i) const noexcept { return first_[i]; }

 private:
  static constexpr std::size_t kHugePage = PageAllocator<T>::kHugePage;
  std::size_t mapped() const noexcept { return size_ * sizeof(T) + kHugePage; }

  T* first_;
  std::size_t size_;
  void* map_ = nullptr;
};

}  // namespace llmcore
