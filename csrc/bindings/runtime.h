#pragma once
// The process-wide pool behind llmcore.ops and packing; models have pools of their own.

#include "threading/pool.h"

namespace llmcore {

ThreadPool& default_pool();
void set_default_threads(int threads);

}  // namespace llmcore
