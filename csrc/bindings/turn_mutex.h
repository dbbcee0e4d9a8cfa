#pragma once
// A mutex that threads get in the order in which they asked for it, and that tells a thread that holds it already, or a
// process that was forked while somebody held it.

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
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
  /// where the holder stayed in the process that was forked.
  void lock() {
    State& s = state();
    std::unique_lock guard(s.mutex);
    if (s.owner == std::this_thread::get_id()) {
      throw BusyError("the model is at work for the call from inside of which this one came: wait for its end");
    }
    const uint64_t turn = s.asked++;
    s.changed.wait(guard, [&] { return turn == s.served; });
    s.owner = std::this_thread::get_id();
  }
  bool try_lock() {
    State& s = state();
    const std::lock_guard guard(s.mutex);
    if (s.asked != s.served) return false;
    ++s.asked;
    s.owner = std::this_thread::get_id();
    return true;
  }
  void unlock() {
    State& s = *state_;
    {
      const std::lock_guard guard(s.mutex);
      s.owner = {};
      ++s.served;
    }
    s.changed.notify_all();
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    uint64_t asked = 0, served = 0;
    std::thread::id owner;
    int64_t generation = fork_generation();
  };

  // After a fork a new one takes the place of what the parent's threads may be inside of; that one is never freed.
  State& state() {
    State* s = state_;
    if (s->generation == fork_generation()) return *s;
    if (s->asked != s->served) throw ClosedError("the process was forked while the model was at work: load it here");
    State* const fresh = new State;
    if (state_.compare_exchange_strong(s, fresh)) return *fresh;
    delete fresh;
    return *s;
  }

  std::atomic<State*> state_;
};

}  // namespace llmcore
