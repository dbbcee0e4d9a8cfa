#pragma once
// A mutex that threads get in the order in which they asked for it, and that tells a thread that holds it already, or a
// process that was forked while somebody held it.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <set>
#include <thread>

#include "base/error.h"
#include "threading/pool.h"

namespace llmcore {

class TurnMutex {
 public:
  TurnMutex() : state_(new State) {}
  ~TurnMutex() { delete state_; }
  TurnMutex(const TurnMutex&) = delete;
  TurnMutex& operator=(const TurnMutex&) = delete;

  /// Throws BusyError on the thread that holds it (Python called from inside of a native call came back), ClosedError
  /// where the holder stayed in the process that was forked. poll() is called now and then while it waits; what that
  /// throws gives the turn up.
  template <class Poll>
  void lock(const Poll& poll) {
    State& s = state();
    std::unique_lock guard(s.mutex);
    if (s.owner == std::this_thread::get_id()) {
      throw BusyError("the model is at work for the call from inside of which this one came: wait for its end");
    }
    const uint64_t turn = s.asked++;
    while (!s.changed.wait_for(guard, std::chrono::milliseconds(20), [&] { return turn == s.served; })) {
      guard.unlock();
      try {
        poll();
      } catch (...) {
        guard.lock();
        if (turn == s.served) {
          s.pass();
        } else {
          s.left.insert(turn);
        }
        throw;
      }
      guard.lock();
    }
    s.owner = std::this_thread::get_id();
  }
  void lock() {
    lock([] {});
  }
  /// Held until the end of what is returned.
  template <class Poll>
  [[nodiscard]] std::unique_lock<TurnMutex> take(const Poll& poll) {
    lock(poll);
    return {*this, std::adopt_lock};
  }
  void unlock() {
    State& s = *state_;
    const std::lock_guard guard(s.mutex);
    s.owner = {};
    s.pass();
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    uint64_t asked = 0, served = 0;
    std::set<uint64_t> left;  // turns that were given up before they came
    std::thread::id owner;
    int64_t generation = fork_generation();

    /// To the next turn.
    void pass() {
      do {
        ++served;
      } while (left.erase(served) > 0);
      changed.notify_all();
    }
  };

  State& state() {
    const State* const s = state_;
    if (s->generation != fork_generation() && s->asked != s->served) {
      throw ClosedError("the process was forked while the model was at work: load it here");
    }
    return of_this_process(state_);
  }

  std::atomic<State*> state_;
};

}  // namespace llmcore
