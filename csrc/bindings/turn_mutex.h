#pragma once
// A mutex that threads get in the order in which they asked for it, and that tells a thread that holds it already.

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

#include "base/error.h"

namespace llmcore {

class TurnMutex {
 public:
  /// Throws BusyError on the thread that holds it: Python called from inside of a native call came back.
  void lock() {
    std::unique_lock guard(mutex_);
    if (owner_ == std::this_thread::get_id()) {
      throw BusyError("the model is at work for the call from inside of which this one came: wait for its end");
    }
    const uint64_t turn = asked_++;
    changed_.wait(guard, [&] { return turn == served_; });
    owner_ = std::this_thread::get_id();
  }
  bool try_lock() {
    const std::lock_guard guard(mutex_);
    if (asked_ != served_) return false;
    ++asked_;
    owner_ = std::this_thread::get_id();
    return true;
  }
  void unlock() {
    {
      const std::lock_guard guard(mutex_);
      owner_ = {};
      ++served_;
    }
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t asked_ = 0, served_ = 0;
  std::thread::id owner_;
};

}  // namespace llmcore
