#pragma once
// What an operation runs on: a kernel table, a pool of threads, and a question to ask now and then.

#include <atomic>
#include <functional>

#include "kernels/select.h"
#include "threading/pool.h"

namespace llmcore {

/// Called now and then on the caller's thread during long work; may throw Interrupted.
using Poll = std::function<void()>;

struct Context {
  const KernelTable& table;
  ThreadPool& pool;
  const Poll* poll = nullptr;
};

/// Lets the threads of one operation end early together: all ask go_on() before each part of their work, and the
/// caller's thread, which has the number 0, polls while it asks.
class Interruption {
 public:
  explicit Interruption(const Poll* poll) : poll_(poll) {}
  bool go_on(int thread) {
    if (thread == 0 && poll_ && *poll_) {
      try {
        (*poll_)();
      } catch (...) {
        stopped_ = true;
        throw;
      }
    }
    return !stopped_.load(std::memory_order_relaxed);
  }

 private:
  const Poll* poll_;
  std::atomic<bool> stopped_{false};
};

}  // namespace llmcore
