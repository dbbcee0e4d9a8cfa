#pragma once
// A pool of threads that all run one function, each on its static share. Workers spin briefly for the next job, then
// park, so an idle pool costs nothing. Results never depend on the number of threads (law 6): a share is whole rows.

#include <atomic>
#include <cstdint>
#include <string>
#include <type_traits>

namespace llmcore {

/// Counts the forks that lie between this process and the one that began: what threads held before the last, they hold
/// no longer.
int64_t fork_generation();

/// What `current` points at, or, after a fork, the new State that takes its place: threads that stayed in the parent
/// may be inside of the old one, which is never freed. A State keeps the fork_generation() that it was made in.
template <class State>
State& of_this_process(std::atomic<State*>& current) {
  State* state = current;
  if (state->generation == fork_generation()) return *state;
  State* const fresh = new State;
  if (current.compare_exchange_strong(state, fresh)) return *fresh;
  delete fresh;
  return *state;
}

class ThreadPool {
 public:
  /// At least 1 thread, the caller's own included. Where the system refuses threads, fewer are used.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const noexcept { return threads_.load(std::memory_order_relaxed); }

  /// Calls function(thread, threads) once on every thread and returns when all are done. One call at a time; a second
  /// caller waits. The first exception thrown by any thread reaches the caller, and the pool lives on.
  template <class Function>
  void run(Function&& function) {
    using Callable = std::remove_reference_t<Function>;
    run_erased([](void* context, int thread, int threads) { (*static_cast<Callable*>(context))(thread, threads); },
               const_cast<void*>(static_cast<const void*>(&function)));
  }

  /// Calls function(begin, end, thread) with the static share [begin, end) of [0, count), in multiples of `quantum`.
  template <class Function>
  void parallel_for(int64_t count, int64_t quantum, Function&& function) {
    const int64_t units = (count + quantum - 1) / quantum;
    if (units <= 1 || size() == 1) {
      if (count > 0) function(int64_t{0}, count, 0);
      return;
    }
    run([&](int thread, int threads) {
      const int64_t begin = units * thread / threads * quantum;
      int64_t end = units * (thread + 1) / threads * quantum;
      if (end > count) end = count;
      if (begin < end) function(begin, end, thread);
    });
  }

  /// parallel_for in parts of at most `part` (a multiple of `quantum`): a thread that is through with its own share
  /// helps the others with theirs, for another program may hold up any of them. function(begin, end, thread) returns
  /// whether to go on.
  template <class Function>
  void parallel_parts(int64_t count, int64_t quantum, int64_t part, Function&& function) {
    struct alignas(64) Share {
      std::atomic<int64_t> next;
      int64_t end;
    };
    constexpr int64_t kMostShares = 64;  // more threads than that begin in pairs
    Share all[kMostShares];
    const int64_t units = (count + quantum - 1) / quantum;
    const int64_t threads = size() < kMostShares ? size() : kMostShares;
    const int shares = static_cast<int>(units < threads ? units : threads);
    const auto work = [&](int thread) {
      for (int i = 0; i < shares; ++i) {
        Share& share = all[(thread + i) % shares];
        for (;;) {
          const int64_t begin = share.next.fetch_add(part, std::memory_order_relaxed);
          if (begin >= share.end) break;
          if (!function(begin, begin + part < share.end ? begin + part : share.end, thread)) return;
        }
      }
    };
    for (int i = 0; i < shares; ++i) {
      all[i].next.store(units * i / shares * quantum, std::memory_order_relaxed);
      const int64_t end = units * (i + 1) / shares * quantum;
      all[i].end = end < count ? end : count;
    }
    if (shares <= 1) {
      if (count > 0) work(0);
      return;
    }
    run([&](int thread, int) { work(thread); });
  }

 private:
  struct State;
  using Job = void (*)(void* context, int thread, int threads);
  void run_erased(Job job, void* context);
  void start(State& state);

  std::atomic<int> threads_;
  std::atomic<State*> state_;
};

/// Cores this process may use: its affinity mask, cut by the CPU quota of its cgroup and those above; at least 1.
/// `root` comes before /proc and /sys, in tests.
int usable_cores(const std::string& root = "");

}  // namespace llmcore
