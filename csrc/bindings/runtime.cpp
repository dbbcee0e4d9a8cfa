// isa(), threads, memory counters, and a measurement of the machine's read bandwidth.

#include "bindings/runtime.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "base/buffer.h"
#include "base/elementary.h"
#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "bindings/bind.h"
#include "bindings/native_call.h"
#include "kernels/select.h"

namespace py = pybind11;

namespace llmcore {
namespace {

std::mutex g_mutex;  // waited for with the GIL, too, so whoever holds it may not wait for the GIL
std::shared_ptr<ThreadPool> g_pool;
int g_threads = 0;

#if !defined(_WIN32)
// A fork waits for whoever holds the mutex: the child finds it free, and what it guards whole.
[[maybe_unused]] const int g_forks_wait =
    pthread_atfork([] { g_mutex.lock(); }, [] { g_mutex.unlock(); }, [] { g_mutex.unlock(); });
#endif

int threads_from_environment() {
  const char* text = std::getenv("LLMCORE_NUM_THREADS");
  if (!text || !*text) return usable_cores();
  char* end = nullptr;
  const long n = std::strtol(text, &end, 10);
  check_argument(*end == 0 && n >= 1 && n <= 1024, "LLMCORE_NUM_THREADS must be an integer within [1, 1024], got '" +
                                                       std::string(text).substr(0, 40) + "'");
  return static_cast<int>(n);
}

// Sums a buffer far larger than the caches, a share per thread; the best of the passes that fit the time.
double measure_read_bandwidth(int threads, double seconds, int64_t bytes) {
  NativeCall call;
  ThreadPool pool(threads > 0 ? threads : usable_cores());
  Buffer buffer(bytes);
  std::fill(buffer.as<uint64_t>(), buffer.as<uint64_t>() + bytes / 8, 1);
  std::atomic<uint64_t> sink{0};
  const auto pass = [&] {
    const auto begin = std::chrono::steady_clock::now();
    pool.parallel_for(bytes / 4096, 1, [&](int64_t from, int64_t to, int) {
      const uint64_t* p = buffer.as<uint64_t>();
      uint64_t s[8] = {};
      for (int64_t i = from * 512; i < to * 512; i += 8) {
        __builtin_prefetch(p + i + 512);
        for (int j = 0; j < 8; ++j) s[j] ^= p[i + j];
      }
      for (int j = 1; j < 8; ++j) s[0] ^= s[j];
      sink ^= s[0];
    });
    return static_cast<double>(bytes) / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  };
  std::vector<double> rates;
  const auto start = std::chrono::steady_clock::now();
  do {
    call.poll();
    rates.push_back(pass());
  } while (std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds);
  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2];
}

// base ** exponent for base > 0, the same bits on every system.
double exact_pow(double base, double exponent) { return exact_exp(exponent * exact_log(base)); }

}  // namespace

std::shared_ptr<ThreadPool> default_pool() {
  const std::lock_guard lock(g_mutex);
  if (!g_pool) g_pool = std::make_shared<ThreadPool>(g_threads > 0 ? g_threads : threads_from_environment());
  return g_pool;
}

void set_default_threads(int threads) {
  check_argument(threads >= 1 && threads <= 1024, "threads must be within [1, 1024], got " + std::to_string(threads));
  const GilRelease release;
  std::shared_ptr<ThreadPool> before;  // goes once the mutex is free
  const std::lock_guard lock(g_mutex);
  g_threads = threads;
  g_pool.swap(before);
}

void bind_runtime(py::module_& m) {
  m.def("isa", [] { return std::string(kernels().name); });
  m.def("available_isas", &available_isas);
  m.def("usable_cores", [] { return usable_cores(); });
  m.def("set_num_threads", &set_default_threads, py::arg("threads"));
  m.def("get_num_threads", [] {
    const std::lock_guard lock(g_mutex);
    return g_threads > 0 ? g_threads : threads_from_environment();
  });
  m.def("release_free_memory", &release_free_memory);
  m.def("allocated_bytes", &allocated_bytes);
  m.def("allocation_count", &allocation_count);
  m.def("measure_read_bandwidth", &measure_read_bandwidth, py::arg("threads") = 0, py::arg("seconds") = 0.5,
        py::arg("nbytes") = int64_t{512} << 20);
  m.def("exact_pow", &exact_pow, py::arg("base"), py::arg("exponent"));
#if defined(__clang__)
  m.attr("compiler") = "clang " __clang_version__;
#elif defined(__GNUC__)
  m.attr("compiler") = "gcc " __VERSION__;
#else
  m.attr("compiler") = "unknown";
#endif
}

}  // namespace llmcore
