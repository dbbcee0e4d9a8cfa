// llmcore_tests            runs every test; exits with 1 if one fails
// llmcore_tests --isas     the instruction sets that this CPU can run, one a line
// llmcore_tests --digest   one line: a hash of logits and generated tokens of every weight format, under LLMCORE_ISA

#include <cinttypes>
#include <cstdio>
#include <exception>
#include <string>

#include "cpp/check.h"
#include "cpp/tiny_decoder.h"
#include "kernels/select.h"

namespace {

int run_all() {
  int failed = 0;
  for (const auto& test : llmcore::test::tests()) {
    try {
      test.run();
    } catch (const std::exception& error) {
      std::printf("FAILED %s\n  %s\n", test.name, error.what());
      ++failed;
    }
  }
  std::printf("%zu tests, %d failed (%s)\n", llmcore::test::tests().size(), failed, llmcore::kernels().name);
  return failed == 0 ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) try {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "--isas") {
    for (const std::string& name : llmcore::available_isas()) std::printf("%s\n", name.c_str());
    return 0;
  }
  if (what == "--digest") {
    std::printf("%016" PRIx64 "\n", llmcore::test::digest_of_everything());
    return 0;
  }
  return run_all();
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 2;
}
