#include "threading/pool.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
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

#if defined(__linux__)
// Nothing of <iostream>, whose code would make the library a tenth larger.
template <class Use>
void for_lines(const std::string& path, const Use& use) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "re"), std::fclose);
  char line[4096];
  while (file && std::fgets(line, sizeof line, file.get())) {
    std::string text = line;
    while (text.ends_with('\n')) text.pop_back();
    use(std::move(text));
  }
}

std::string first_line(const std::string& path) {
  std::string first;
  for_lines(path, [&](std::string&& line) {
    if (first.empty()) first = std::move(line);
  });
  return first;
}

// The cores' worth of time that one cgroup has; infinity: no limit.
double quota_of(const std::string& group) {
  double quota = 0, period = 0;
  // Version 2: "max 100000" or "50000 100000".
  if (std::sscanf(first_line(group + "/cpu.max").c_str(), "%lf %lf", &quota, &period) != 2) {
    std::sscanf(first_line(group + "/cpu.cfs_quota_us").c_str(), "%lf", &quota);
    std::sscanf(first_line(group + "/cpu.cfs_period_us").c_str(), "%lf", &period);
  }
  return quota > 0 && period > 0 ? quota / period : std::numeric_limits<double>::infinity();
}

// The least that this process's cgroup and those above it have.
double cpu_quota(const std::string& root) {
  const std::string version_2 = root + "/sys/fs/cgroup", version_1 = version_2 + "/cpu";
  double least = std::min(quota_of(version_2), quota_of(version_1));
  for_lines(root + "/proc/self/cgroup", [&](const std::string& line) {  // "0::/a/b", version 1: "4:cpu,cpuacct:/a/b"
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) return;
    std::string controllers = line.substr(first, second - first + 1);
    controllers.front() = controllers.back() = ',';
    if (controllers != ",," && controllers.find(",cpu,") == std::string::npos) return;
    std::string group = line.substr(second + 1);
    if (group.find("/..") != std::string::npos) return;  // outside of the tree that is seen here
    for (; group.starts_with('/'); group.resize(group.rfind('/'))) {
      least = std::min(least, quota_of((controllers == ",," ? version_2 : version_1) + group));
    }
  });
  return least;
}
#endif

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

int usable_cores([[maybe_unused]] const std::string& root) {
  int cores = static_cast<int>(std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) cores = CPU_COUNT(&set);
  const double quota = cpu_quota(root);
  if (quota < cores) cores = static_cast<int>(std::ceil(quota));
#endif
  return cores < 1 ? 1 : cores;
}

}  // namespace llmcore
