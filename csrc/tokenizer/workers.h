#pragma once
// Tasks on threads of their own: texts to encode or to count, parts of a sum. Not for the steps of a model, whose pool
// is csrc/threading.

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace llmcore {

/// Threads that `for_tasks` takes for so many tasks.
inline size_t worker_count(size_t tasks, int threads) noexcept {
  return std::clamp<size_t>(static_cast<size_t>(std::max(threads, 1)), 1, std::max<size_t>(tasks, 1));
}

/// Calls `work(task, worker)` for every task below `tasks`, in any order. The first exception ends it and comes out
/// here.
template <class Work>
void for_tasks(size_t tasks, int threads, const Work& work) {
  std::atomic<size_t> next{0};
  std::mutex failure_mutex;
  std::exception_ptr failure;
  const auto run = [&](size_t worker) {
    try {
      for (size_t task = next++; task < tasks; task = next++) work(task, worker);
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = tasks;
    }
  };
  {
    std::vector<std::jthread> pool;
    for (size_t worker = 1; worker < worker_count(tasks, threads); ++worker) pool.emplace_back(run, worker);
    run(0);
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace llmcore
