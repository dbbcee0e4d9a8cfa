#include "threading/pool.h"

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "base/error.h"
#include "base/float_environment.h"

namespace llmcore {
namespace {

constexpr int kSpins = 4000;  // some 20 to 50 microseconds, longer than the gap between two operations of a layer

std::atomic<int64_t> g_fork_generation{0};
#if !defined(_WIN32)  // from the start: in a first use, another thread's fork could come between
[[maybe_unused]] const int g_watched = pthread_atfork(nullptr, nullptr, [] { ++g_fork_generation; });
#endif

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

}  // namespace

int64_t fork_generation() { return g_fork_generation; }

struct ThreadPool::State {
  const int64_t generation = fork_generation();
  std::vector<std::thread> workers;
  std::mutex run_mutex;

  std::mutex mutex;
  std::condition_variable wake;
  std::condition_variable done;
  std::atomic<int64_t> epoch{0};
  std::atomic<int> sleepers{0};
  std::atomic<int> pending{0};
  std::atomic<bool> caller_parked{false};
  std::atomic<bool> stop{false};

  Job job = nullptr;
  void* context = nullptr;
  int threads = 0;  // 0: not started yet
  std::exception_ptr error;

  void work(int thread) {
    const FloatEnvironment environment;
    int64_t seen = 0;
    for (;;) {
      wait_for_job(seen);
      if (stop) return;
      ++seen;
      call(thread);
      if (pending.fetch_sub(1) == 1 && caller_parked) {
        const std::lock_guard lock(mutex);
        done.notify_one();
      }
    }
  }

  void wait_for_job(int64_t seen) {
    for (int i = 0; i < kSpins; ++i) {
      if (epoch.load(std::memory_order_acquire) != seen || stop) return;
      relax();
    }
    std::unique_lock lock(mutex);
    ++sleepers;
    wake.wait(lock, [&] { return epoch != seen || stop; });
    --sleepers;
  }

  void call(int thread) {
    try {
      job(context, thread, threads);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!error) error = std::current_exception();
    }
  }

  void wait_until_done() {
    for (int i = 0; i < kSpins; ++i) {
      if (pending.load(std::memory_order_acquire) == 0) return;
      relax();
    }
    std::unique_lock lock(mutex);
    // An exchange and no store: a worker takes `pending` down, then looks here, while this sets the flag, then looks at
    // `pending`; one of the two must see the other. Emulators have been seen to let a load pass an earlier store.
    caller_parked.exchange(true);
    done.wait(lock, [&] { return pending == 0; });
    caller_parked = false;
  }
};

ThreadPool::ThreadPool(int threads) : threads_(threads), state_(nullptr) {
  check_argument(threads >= 1 && threads <= 1024, "threads must be within [1, 1024], got " + std::to_string(threads));
  state_ = new State;
  start(*state_);
}

void ThreadPool::start(State& s) {
  const int threads = threads_;
  try {
    s.workers.reserve(static_cast<size_t>(threads));
    for (int i = 1; i < threads; ++i) s.workers.emplace_back([&s, i] { s.work(i); });
  } catch (const std::exception&) {  // no thread, or no memory for one
  }
  s.threads = static_cast<int>(s.workers.size()) + 1;
  threads_ = s.threads;
}

ThreadPool::~ThreadPool() {
  State* const s = state_;
  if (s->generation != fork_generation()) return;  // the threads stayed in the parent
  {
    const std::lock_guard lock(s->mutex);
    s->stop = true;
    s->wake.notify_all();
  }
  for (auto& worker : s->workers) worker.join();
  delete s;
}

void ThreadPool::run_erased(Job job, void* context) {
  State& s = of_this_process(state_);
  const std::lock_guard run_lock(s.run_mutex);
  if (s.threads == 0) start(s);
  if (s.threads == 1) {
    job(context, 0, 1);
    return;
  }
  s.job = job;
  s.context = context;
  s.error = nullptr;
  s.pending = s.threads - 1;
  ++s.epoch;
  if (s.sleepers > 0) {
    const std::lock_guard lock(s.mutex);
    s.wake.notify_all();
  }
  s.call(0);
  s.wait_until_done();
  if (s.error) std::rethrow_exception(s.error);
}

int usable_cores() {
  int cores = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
  double quota = 0, period = 0;
  if (std::FILE* f = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(f, "%lf %lf", &quota, &period) != 2) quota = 0;
    std::fclose(f);
  } else {
    if (std::FILE* q = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "r")) {
      if (std::fscanf(q, "%lf", &quota) != 1) quota = 0;
      std::fclose(q);
    }
    if (std::FILE* p = std::fopen("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "r")) {
      if (std::fscanf(p, "%lf", &period) != 1) period = 0;
      std::fclose(p);
    }
  }
  if (quota > 0 && period > 0) {
    const int allowed = static_cast<int>((quota + period - 1) / period);
    if (allowed < cores) cores = allowed;
  }
#endif
  return cores < 1 ? 1 : cores;
}

}  // namespace llmcore
