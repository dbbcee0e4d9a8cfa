#pragma once
// The test harness: TEST(name) { ... } registers a test, CHECK(condition) fails it, main.cpp runs them all.

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace llmcore::test {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> all;
  return all;
}

struct Register {
  Register(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(bool ok, const char* file, int line, const std::string& what) {
  if (!ok) throw Failure(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

#define TEST(name)                                                     \
  static void name();                                                  \
  static const llmcore::test::Register registered_##name(#name, name); \
  static void name()
#define CHECK(condition) llmcore::test::check((condition), __FILE__, __LINE__, #condition)
#define CHECK_SAID(condition, said) llmcore::test::check((condition), __FILE__, __LINE__, (said))
#define CHECK_THROWS(expression, Error)                \
  do {                                                 \
    bool thrown = false;                               \
    try {                                              \
      static_cast<void>(expression);                   \
    } catch (const Error&) {                           \
      thrown = true;                                   \
    }                                                  \
    CHECK_SAID(thrown, #expression " throws " #Error); \
  } while (false)

/// Numbers that are the same on every machine: an integer recurrence, scaled by a power of two.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed * 2862933555777941757u + 3037000493u) {}
  /// In [-1, 1), a multiple of 2^-23.
  float next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<float>(static_cast<int32_t>(state_ >> 40) - (1 << 23)) * (1.0f / (1 << 23));
  }
  std::vector<float> take(int64_t n, float factor = 1.0f) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& v : values) v = next() * factor;
    return values;
  }

 private:
  uint64_t state_;
};

/// FNV-1a over bytes: two runs agree in every bit when their digests do.
class Digest {
 public:
  void add(const void* data, size_t bytes) {
    for (size_t i = 0; i < bytes; ++i) value_ = (value_ ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211u;
  }
  template <class T>
  void add(const std::vector<T>& values) {
    add(values.data(), values.size() * sizeof(T));
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 14695981039346656037u;
};

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace llmcore::test
