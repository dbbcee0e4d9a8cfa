#include "base/error.h"

namespace llmcore {

void check_argument(bool condition, const std::string& message) {
  if (!condition) throw ArgumentError(message);
}

}  // namespace llmcore
