#pragma once
// A mutex that threads get in the order in which they asked for it, and that tells a thread that asked for it already,
// or a process that was forked while somebody held it.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <list>
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

  /// Throws BusyError where it is `entered`, ClosedError where the holder stayed in the process that was forked. poll()
  /// is called now and then while it waits; what that throws gives the turn up.
  template <class Poll>
  void lock(const Poll& poll) {
    State& s = state();
    std::unique_lock guard(s.mutex);
    if (s.has_this_thread()) {
      throw BusyError("the model is at work for the call from inside of which this one came: wait for its end");
    }
    const auto turn = s.turns.insert(s.turns.end(), std::this_thread::get_id());
    while (!s.changed.wait_for(guard, std::chrono::milliseconds(20), [&] { return turn == s.turns.begin(); })) {
      guard.unlock();
      try {
        poll();
        if (s.generation != fork_generation()) refuse();
      } catch (...) {
        if (s.generation != fork_generation()) throw;  // another thread of that process may hold s.mutex
        guard.lock();
        s.turns.erase(turn);
        s.changed.notify_all();
        throw;
      }
      guard.lock();
    }
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
    s.turns.pop_front();
    s.changed.notify_all();
  }
  /// Whether this thread holds it or waits for it: Python that was called from inside of such a call, a signal's
  /// handler for one.
  bool entered() const {
    State& s = *state_;
    if (s.generation != fork_generation()) return false;
    const std::lock_guard guard(s.mutex);
    return s.has_this_thread();
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::list<std::thread::id> turns;  // who holds it, then those who wait for it
    int64_t generation = fork_generation();

    bool has_this_thread() const {
      return std::find(turns.begin(), turns.end(), std::this_thread::get_id()) != turns.end();
    }
  };

  [[noreturn]] static void refuse() {
    throw ClosedError("the process was forked while the model was at work: load it here");
  }
  State& state() {
    const State* const s = state_;
    if (s->generation != fork_generation() && !s->turns.empty()) refuse();
    return of_this_process(state_);
  }

  std::atomic<State*> state_;
};

}  // namespace llmcore
