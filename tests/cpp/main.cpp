// llmcore_tests [--list] [--quick] [SUITE | SUITE.NAME ...]
// llmcore_tests --hash [--verbose] [--threads N]      see hash.h
// llmcore_tests --isas                                the instruction sets this CPU can run, best first

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>

#include "check.h"
#include "hash.h"
#include "kernels/select.h"

using namespace llmcore::test;

// A test of the tests: a check that fails must be counted. It takes the failure back, having seen it.
TEST(check, a_failed_check_is_counted) {
  const int before = failures();
  std::cerr.setstate(std::ios::failbit);
  CHECK(1 == 2);
  CHECK_EQ(1, 2);
  CHECK_THROWS(std::exception, static_cast<void>(0));
  std::cerr.clear();
  const int seen = failures() - before;
  failures() = before;
  CHECK_EQ(seen, 3);
}

namespace {

bool chosen(const Test& test, const std::vector<std::string>& wanted) {
  return wanted.empty() || std::any_of(wanted.begin(), wanted.end(), [&](const std::string& w) {
           return w == test.suite || w == test.suite + "." + test.name;
         });
}

bool passes(const Test& test) {
  const int before = failures();
  failures_of_test() = 0;
  try {
    test.run();
  } catch (const std::exception& e) {
    report(false, test.suite.c_str(), 0, test.name + " threw: " + e.what());
  }
  if (failures() == before) return true;
  std::printf("FAILED %s.%s\n", test.suite.c_str(), test.name.c_str());
  return false;
}

int run(const std::vector<std::string>& wanted) {
  int count = 0, failed = 0;
  for (const Test& test : all_tests()) {
    if (!chosen(test, wanted)) continue;
    ++count;
    failed += !passes(test);
  }
  std::printf("%d tests, %d failed (%s)\n", count, failed, llmcore::kernels().name);
  return count == 0 || failed > 0;
}

int print_hash(int threads, bool verbose) {
  const uint64_t hash = hash_of_all(threads, verbose);
  std::printf("%016llx\n", static_cast<unsigned long long>(hash));
  return 0;
}

int print_isas() {
  for (const std::string& name : llmcore::available_isas()) std::puts(name.c_str());
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  bool hash = false, verbose = false, list = false, isas = false;
  int threads = 2;
  std::vector<std::string> wanted;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--hash")
      hash = true;
    else if (argument == "--verbose")
      verbose = true;
    else if (argument == "--list")
      list = true;
    else if (argument == "--isas")
      isas = true;
    else if (argument == "--quick")
      quick() = true;
    else if (argument == "--threads" && i + 1 < argc)
      threads = std::atoi(argv[++i]);
    else
      wanted.push_back(argument);
  }
  try {
    if (hash) return print_hash(threads, verbose);
    if (isas) return print_isas();
  } catch (const std::exception& e) {
    std::fprintf(stderr, "llmcore_tests: %s\n", e.what());
    return 2;
  }
  if (!list) return run(wanted);
  for (const Test& test : all_tests()) std::printf("%s.%s\n", test.suite.c_str(), test.name.c_str());
  return 0;
}
