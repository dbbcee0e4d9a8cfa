#pragma once
// The process-wide pool behind llmcore.ops and packing; models have pools of their own.

#include <memory>

#include "threading/pool.h"

namespace llmcore {

/// Held for as long as it is used: set_default_threads puts another in its place. To be let go without the GIL, for the
/// last to do so waits for the threads to end.
std::shared_ptr<ThreadPool> default_pool();
void set_default_threads(int threads);

}  // namespace llmcore
