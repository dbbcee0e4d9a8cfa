#pragma once
// An allocator for tables that are read at random: large ones ask for huge pages. Nearly every look-up in a table of
// some megabytes misses the TLB otherwise, and on a virtual machine that costs more than the cache miss.

#include <cstddef>
#include <memory>
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

/// So many of T, whose memory isn't touched: for what is written before it is read.
template <class T>
auto unset_pages(std::size_t n) {
  static_assert(std::is_trivially_default_constructible_v<T> && std::is_trivially_destructible_v<T>);
  const auto free = [n](T* p) { PageAllocator<T>().deallocate(p, n); };
  return std::unique_ptr<T[], decltype(free)>(PageAllocator<T>().allocate(n), free);
}

}  // namespace llmcore
