// What this machine can do at most, for the benches to set their figures against: bytes read per second, and integer
// and float operations per second from registers. Built by ceilings.py for the CPU it runs on; no part of the package.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Runs work(thread), which returns how much it did, on all threads at once; the rate of a pass, the median of `passes`.
template <class Work>
double median_rate(int threads, int passes, Work work) {
  std::vector<double> rates;
  for (int pass = 0; pass < passes; ++pass) {
    std::atomic<int> ready{0};
    std::atomic<bool> go{false};
    std::vector<double> done(static_cast<size_t>(threads));
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; ++t) {
      pool.emplace_back([&, t] {
        ++ready;
        while (!go) std::this_thread::yield();
        done[static_cast<size_t>(t)] = work(t);
      });
    }
    while (ready < threads) std::this_thread::yield();
    const double start = now();
    go = true;
    for (auto& thread : pool) thread.join();
    double total = 0;
    for (const double d : done) total += d;
    rates.push_back(total / (now() - start));
  }
  std::sort(rates.begin(), rates.end());
  return rates[rates.size() / 2];
}

// Twelve independent chains hide the latency of the instruction.
#define CHAINS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

#if defined(__AVX512VNNI__)
#define REGISTER "v"
using Ints = __m512i;
using Floats = __m512;
constexpr double kIntOperations = 128, kFloatOperations = 32;
#define INT_STEP(n) __asm__ volatile("vpdpbusd %1, %1, %0" : "+v"(a##n) : "v"(x));
#define FLOAT_STEP(n) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+v"(a##n) : "v"(x));
#elif defined(__AVX2__) && defined(__FMA__)
#define REGISTER "x"
using Ints = __m256i;
using Floats = __m256;
constexpr double kIntOperations = 64, kFloatOperations = 16;
#define INT_STEP(n)                                                                                 \
  {                                                                                                 \
    Ints t;                                                                                         \
    __asm__ volatile("vpmaddubsw %2, %2, %1\n\tvpaddw %1, %0, %0" : "+x"(a##n), "=&x"(t) : "x"(x)); \
  }
#define FLOAT_STEP(n) __asm__ volatile("vfmadd231ps %1, %1, %0" : "+x"(a##n) : "x"(x));
#elif defined(__ARM_FEATURE_DOTPROD)
#define REGISTER "w"
using Ints = int32x4_t;
using Floats = float32x4_t;
constexpr double kIntOperations = 32, kFloatOperations = 8;
#define INT_STEP(n) __asm__ volatile("sdot %0.4s, %1.16b, %1.16b" : "+w"(a##n) : "w"(x));
#define FLOAT_STEP(n) __asm__ volatile("fmla %0.4s, %1.4s, %1.4s" : "+w"(a##n) : "w"(x));
#else
#define NO_PEAKS
#endif

#ifndef NO_PEAKS
constexpr long kSteps = 10'000'000;
#define DECLARE(n) auto a##n = x;
#define KEEP(n) __asm__ volatile("" : : REGISTER(a##n));  // a place in memory would be used in the loop, too

double int_operations(int) {
  Ints x;
  std::memset(&x, 1, sizeof x);
  CHAINS(DECLARE)
  for (long i = 0; i < kSteps; ++i) {
    CHAINS(INT_STEP)
  }
  CHAINS(KEEP)
  return static_cast<double>(kSteps) * 12 * kIntOperations;
}

double float_operations(int) {
  Floats x;
  std::memset(&x, 0, sizeof x);
  CHAINS(DECLARE)
  for (long i = 0; i < kSteps; ++i) {
    CHAINS(FLOAT_STEP)
  }
  CHAINS(KEEP)
  return static_cast<double>(kSteps) * 12 * kFloatOperations;
}
#endif

uint64_t read_lines(const uint64_t* p, int64_t words) {
  uint64_t s[8] = {};
  for (int64_t i = 0; i < words; i += 8) {
    __builtin_prefetch(p + i + 256);
    for (int j = 0; j < 8; ++j) s[j] ^= p[i + j];
  }
  uint64_t all = 0;
  for (const uint64_t v : s) all ^= v;
  return all;
}

}  // namespace

extern "C" {

// Bytes per second that the threads read together from `bytes` of memory, given out in blocks.
double llmcore_bench_read_rate(int threads, int64_t bytes, int passes) {
  constexpr int64_t kBlock = int64_t{256} << 10;
  const int64_t blocks = bytes / kBlock;
  auto* memory = static_cast<uint64_t*>(std::aligned_alloc(4096, static_cast<size_t>(blocks * kBlock)));
  if (!memory) return 0;
  for (int64_t i = 0; i < blocks * kBlock / 8; ++i) memory[i] = static_cast<uint64_t>(i);
  std::atomic<uint64_t> sink{0};
  std::atomic<int64_t> taken{0};
  const double rate = median_rate(threads, passes, [&](int) {
    double read = 0;
    uint64_t sum = 0;
    for (int64_t i = taken++; i % (blocks + threads) < blocks; i = taken++) {
      sum ^= read_lines(memory + i % (blocks + threads) * (kBlock / 8), kBlock / 8);
      read += kBlock;
    }
    sink ^= sum;
    return read;
  });
  std::free(memory);
  return rate;
}

// int8 multiplications and additions per second; 0 when this CPU's instruction isn't known here.
double llmcore_bench_int8_rate([[maybe_unused]] int threads, [[maybe_unused]] int passes) {
#ifdef NO_PEAKS
  return 0;
#else
  return median_rate(threads, passes, int_operations);
#endif
}

// The same for float32.
double llmcore_bench_float_rate([[maybe_unused]] int threads, [[maybe_unused]] int passes) {
#ifdef NO_PEAKS
  return 0;
#else
  return median_rate(threads, passes, float_operations);
#endif
}
}
