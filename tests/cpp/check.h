#pragma once
// The checks of the C++ tests, small enough that no framework has to be installed on any machine or emulator.
//
//   TEST(half, keeps_every_half) { CHECK(...); CHECK_EQ(a, b); CHECK_THROWS(ArgumentError, f()); }
//
// A failed check is reported with the notes of the NOTEs around it, and the test goes on; a test fails when any check
// did.

#include <cstdint>
#include <iostream>
#include <mutex>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace llmcore::test {

struct Test {
  std::string suite, name;
  void (*run)();
};

inline std::vector<Test>& all_tests() {
  static std::vector<Test> tests;
  return tests;
}
inline int& failures() {
  static int count = 0;
  return count;
}
/// Failures of the running test, of which only the first are printed.
inline int& failures_of_test() {
  static int count = 0;
  return count;
}
inline std::vector<std::string>& notes() {
  static std::vector<std::string> stack;
  return stack;
}
/// Set by --quick: fewer random cases, for emulators and sanitizers.
inline bool& quick() {
  static bool value = false;
  return value;
}

struct Registration {
  Registration(const char* suite, const char* name, void (*run)()) { all_tests().push_back({suite, name, run}); }
};

/// What was being tried, shown with a failure; holds until the end of the block.
struct Note {
  explicit Note(std::string text) { notes().push_back(std::move(text)); }
  ~Note() { notes().pop_back(); }
};

/// Any thread may call it.
inline void report(bool passed, const char* file, int line, const std::string& what) {
  constexpr int kShown = 10;
  static std::mutex mutex;
  if (passed) return;
  const std::lock_guard lock(mutex);
  ++failures();
  if (++failures_of_test() > kShown) return;
  std::cerr << file << ":" << line << ": " << what;
  for (const std::string& note : notes()) std::cerr << "\n    with " << note;
  std::cerr << (failures_of_test() == kShown ? "\n    further failures aren't shown\n" : "\n");
}

template <class A, class B>
void report_equal(const A& a, const B& b, const char* file, int line, const char* text) {
  if (a == b) return;
  std::ostringstream what;
  what << text << ": " << +a << " is not " << +b;
  report(false, file, line, what.str());
}

}  // namespace llmcore::test

#define LLMCORE_JOIN_(a, b) a##b
#define LLMCORE_JOIN(a, b) LLMCORE_JOIN_(a, b)
#define TEST(suite, name)                                                                      \
  static void suite##_##name();                                                                \
  static const ::llmcore::test::Registration registered_##name(#suite, #name, suite##_##name); \
  static void suite##_##name()
#define NOTE(text) const ::llmcore::test::Note LLMCORE_JOIN(note_, __LINE__)(text)
#define CHECK(condition) ::llmcore::test::report(static_cast<bool>(condition), __FILE__, __LINE__, #condition)
#define CHECK_EQ(a, b) ::llmcore::test::report_equal(a, b, __FILE__, __LINE__, #a " == " #b)
#define CHECK_THROWS(Type, ...)                                                               \
  do {                                                                                        \
    bool thrown = false;                                                                      \
    try {                                                                                     \
      __VA_ARGS__;                                                                            \
    } catch (const Type&) {                                                                   \
      thrown = true;                                                                          \
    }                                                                                         \
    ::llmcore::test::report(thrown, __FILE__, __LINE__, #__VA_ARGS__ " should throw " #Type); \
  } while (false)
