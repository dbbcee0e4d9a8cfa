#include "threading/pool.h"

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "check.h"

#if defined(__linux__)
#include <sys/wait.h>
#include <unistd.h>
#endif
#if defined(__SANITIZE_THREAD__)
#define LLMCORE_TSAN
#endif

using namespace llmcore;
using namespace llmcore::test;

TEST(threading, every_thread_runs_once) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    std::vector<std::atomic<int>> calls(static_cast<size_t>(threads));
    for (int round = 0; round < 200; ++round) {
      pool.run([&](int thread, int of) {
        CHECK_EQ(of, threads);
        ++calls[static_cast<size_t>(thread)];
      });
    }
    for (const auto& count : calls) CHECK_EQ(count.load(), 200);
  }
}

TEST(threading, every_index_is_visited_once) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 15, 16, 17, 1000}) {
      std::vector<int> visits(static_cast<size_t>(count), 0);
      pool.parallel_for(count, 16, [&](int64_t begin, int64_t end, int) {
        CHECK_EQ(begin % 16, 0);
        CHECK(begin < end && end <= count);
        for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
      });
      for (const int v : visits) CHECK_EQ(v, 1);
    }
  }
}

TEST(threading, parallel_parts_visits_everything_once_whoever_does_it) {
  for (const int threads : {1, 2, 3, 80}) {
    ThreadPool pool(threads);
    for (const int64_t count : {0, 1, 15, 16, 17, 100, 4000}) {
      for (const int64_t part : {4, 12, 400}) {
        std::vector<int> visits(static_cast<size_t>(count), 0);
        pool.parallel_parts(count, 4, part, [&](int64_t begin, int64_t end, int thread) {
          CHECK_EQ(begin % 4, 0);
          CHECK(begin < end && end <= count && end - begin <= part && thread >= 0 && thread < threads);
          for (int64_t i = begin; i < end; ++i) ++visits[static_cast<size_t>(i)];
          return true;
        });
        for (const int v : visits) CHECK_EQ(v, 1);
      }
    }
  }
}

TEST(threading, parallel_parts_ends_when_told_and_gives_a_slow_threads_work_away) {
  ThreadPool pool(2);
  std::atomic<int> calls{0};
  pool.parallel_parts(1000, 1, 1, [&](int64_t, int64_t, int) {
    ++calls;
    return false;
  });
  CHECK(calls >= 1 && calls <= 2);
  if (pool.size() < 2) return;  // the system refused a thread
  std::atomic<int> done{0};
  pool.parallel_parts(8, 1, 1, [&](int64_t begin, int64_t, int) {
    while (begin == 0 && done < 7) std::this_thread::yield();  // the first part waits for all others, 3 of them its own
    ++done;
    return true;
  });
  CHECK_EQ(done.load(), 8);
}

// A job's plain writes are the caller's to read without a lock: what TSan watches here.
TEST(threading, results_are_seen_by_the_caller) {
  ThreadPool pool(4);
  std::vector<int64_t> sums(4);
  for (int round = 0; round < 2000; ++round) {
    pool.run([&](int thread, int) { sums[static_cast<size_t>(thread)] += thread + round; });
  }
  for (int64_t thread = 0; thread < 4; ++thread) {
    CHECK_EQ(sums[static_cast<size_t>(thread)], 2000 * thread + 1999 * 1000);
  }
}

TEST(threading, an_exception_of_any_thread_reaches_the_caller_and_the_pool_lives_on) {
  ThreadPool pool(3);
  for (int round = 0; round < 60; ++round) {
    const int culprit = round % 3;
    CHECK_THROWS(std::out_of_range, pool.run([&](int thread, int) {
      if (thread == culprit) throw std::out_of_range("worker");
    }));
    std::atomic<int> calls{0};
    pool.run([&](int, int) { ++calls; });
    CHECK_EQ(calls.load(), 3);
  }
}

TEST(threading, of_many_exceptions_one_reaches_the_caller) {
  ThreadPool pool(4);
  for (int round = 0; round < 50; ++round) {
    std::string said;
    try {
      pool.run([](int thread, int) { throw std::runtime_error(std::to_string(thread)); });
    } catch (const std::runtime_error& e) {
      said = e.what();
    }
    CHECK(said.size() == 1 && said >= "0" && said <= "3");
  }
}

TEST(threading, an_exception_of_the_only_thread_reaches_the_caller) {
  ThreadPool pool(1);
  CHECK_THROWS(std::bad_alloc, pool.run([](int, int) { throw std::bad_alloc(); }));
  int calls = 0;
  pool.run([&](int, int) { ++calls; });
  CHECK_EQ(calls, 1);
}

TEST(threading, pools_beside_one_another_and_beyond_the_cores) {
  std::vector<std::thread> callers;
  std::atomic<int64_t> calls{0};
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      ThreadPool pool(9);
      for (int round = 0; round < 20; ++round) pool.run([&](int, int) { ++calls; });
    });
  }
  for (auto& caller : callers) caller.join();
  CHECK_EQ(calls.load(), 4 * 20 * 9);
}

TEST(threading, callers_of_one_pool_take_turns) {
  ThreadPool pool(3);
  std::vector<int64_t> counts(3);  // not atomic: two jobs at a time would race
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) pool.run([&](int t, int) { ++counts[static_cast<size_t>(t)]; });
    });
  }
  for (auto& caller : callers) caller.join();
  for (const int64_t count : counts) CHECK_EQ(count, 600);
}

TEST(threading, pools_come_and_go) {
  const int rounds = quick() ? 20 : 300;
  std::atomic<int> calls{0};
  for (int i = 0; i < rounds; ++i) {
    ThreadPool idle(4), used(2);
    used.run([&](int, int) { ++calls; });
  }
  CHECK_EQ(calls.load(), 2 * rounds);
}

TEST(threading, workers_that_have_parked_wake_up) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    std::atomic<int> calls{0};
    pool.run([&](int, int) { ++calls; });
    CHECK_EQ(calls.load(), 3);
  }
}

TEST(threading, a_thread_count_out_of_range_is_refused) {
  CHECK_THROWS(ArgumentError, ThreadPool(0));
  CHECK_THROWS(ArgumentError, ThreadPool(1025));
}

TEST(threading, at_least_one_core_is_usable) { CHECK(usable_cores() >= 1); }

#if defined(__linux__)
TEST(threading, the_least_quota_on_the_way_up_bounds_the_cores) {
  namespace fs = std::filesystem;
  const fs::path root = fs::temp_directory_path() / ("llmcore_cgroups_" + std::to_string(getpid()));
  const int all = usable_cores(root.string());  // nothing there: no quota
  const struct {
    const char* group;
    std::vector<std::pair<const char*, const char*>> files;  // of /sys/fs/cgroup
    int cores;
  } cases[] = {
      {"0::/a/b", {{"cpu.max", "50000 100000"}}, 1},
      {"0::/a/b", {{"a/cpu.max", "50000 100000"}, {"a/b/cpu.max", "max 100000"}}, 1},
      {"0::/a/b", {{"cpu.max", "9000000 1000"}, {"a/b/cpu.max", "100000 100000"}}, 1},
      {"0::/a/b", {{"a/b/cpu.max", "110000 100000"}}, std::min(all, 2)},
      {"0::/a/b", {{"a/cpu.max", "9000000 1000"}, {"other/cpu.max", "50000 100000"}}, all},
      {"0::/a/b", {{"a/cpu.max", "-1 100000"}, {"a/b/cpu.max", "1 0"}}, all},
      {"0::/../a", {{"a/cpu.max", "50000 100000"}, {"../a/cpu.max", "50000 100000"}}, all},
      {"a\n0:\n::a\n", {}, all},
      {"5:memory:/b\n4:cpu,cpuacct:/a/b\n0::/b",
       {{"cpu/a/cpu.cfs_quota_us", "50000"}, {"cpu/a/cpu.cfs_period_us", "100000"}},
       1},
      {"5:cpuset:/a\n4:cpu:/b",
       {{"cpu/a/cpu.cfs_quota_us", "50000"}, {"cpu/a/cpu.cfs_period_us", "100000"}, {"cpu/b/cpu.cfs_quota_us", "-1"}},
       all},
  };
  for (const auto& [group, files, cores] : cases) {
    const Note note(group);
    const auto write = [](const fs::path& path, const char* text) {
      fs::create_directories(path.parent_path());
      std::ofstream(path) << text << "\n";
    };
    fs::create_directories(root / "sys/fs/cgroup");
    write(root / "proc/self/cgroup", group);
    for (const auto& [name, text] : files) write(root / "sys/fs/cgroup" / name, text);
    CHECK_EQ(usable_cores(root.string()), cores);
    fs::remove_all(root);
  }
}
#endif

#if defined(__linux__) && !defined(LLMCORE_TSAN)  // TSan doesn't follow threads made after a fork
TEST(threading, a_forked_child_rebuilds_the_pool_and_the_parents_lives_on) {
  ThreadPool pool(3), untouched(2);
  std::atomic<int> calls{0};
  pool.run([&](int, int) { ++calls; });
  const pid_t child = fork();
  if (child == 0) {
    alarm(300);  // a child that waits for threads it hasn't got must not wait for ever
    calls = 0;
    for (int i = 0; i < 10; ++i) pool.run([&](int, int) { ++calls; });
    _exit(calls == 30 ? 0 : 1);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  pool.run([&](int, int) { ++calls; });
  CHECK_EQ(calls.load(), 6);
}

TEST(threading, a_forked_child_may_drop_a_pool) {
  auto pool = std::make_unique<ThreadPool>(3);
  pool->run([](int, int) {});
  const pid_t child = fork();
  if (child == 0) {
    alarm(300);
    pool.reset();
    _exit(0);
  }
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST(threading, threads_of_a_forked_child_may_use_the_pool_first_all_at_once) {
  constexpr int kCallers = 4, kRuns = 3;
  ThreadPool pool(3);
  pool.run([](int, int) {});
  for (int round = 0; round < (quick() ? 20 : 100); ++round) {
    const pid_t child = fork();
    if (child == 0) {
      alarm(60);
      std::atomic<int> ready{0}, calls{0};
      std::vector<std::thread> callers;
      for (int i = 0; i < kCallers; ++i) {
        callers.emplace_back([&] {
          ++ready;
          while (ready < kCallers) std::this_thread::yield();
          for (int run = 0; run < kRuns; ++run) pool.run([&](int, int) { ++calls; });
        });
      }
      for (auto& caller : callers) caller.join();
      _exit(calls == kCallers * kRuns * pool.size() ? 0 : 1);
    }
    int status = -1;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    if (status != 0) return;
  }
}
#endif
