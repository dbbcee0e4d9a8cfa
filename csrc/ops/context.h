#pragma once
// What an operation runs on: a kernel table and a pool of threads.

#include "kernels/select.h"
#include "threading/pool.h"

namespace llmcore {

struct Context {
  const KernelTable& table;
  ThreadPool& pool;
};

}  // namespace llmcore
