#pragma once
// What surrounds a native call: the GIL released, our floating-point environment, and a poll for signals.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <chrono>

#include "base/error.h"
#include "base/float_environment.h"

namespace llmcore {

/// The GIL released. Once Python is at its end (bind_exit), a thread that would take it again waits for the end of the
/// process instead: Python would unwind its stack, which ends the process badly.
class GilRelease {
 public:
  GilRelease() noexcept;
  ~GilRelease();
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

/// The GIL taken again for a while, with the same care.
class GilAcquire {
 public:
  GilAcquire() = default;

 private:
  struct Wait {
    Wait() noexcept;
  } wait_;
  pybind11::gil_scoped_acquire acquire_;
};

class NativeCall {
 public:
  NativeCall() = default;

  /// Every 20 ms takes the GIL and lets Python's signal handlers run; a raised exception becomes Interrupted.
  void poll() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(20)) return;
    last_ = now;
    const GilAcquire acquire;
    if (PyErr_CheckSignals() != 0) throw Interrupted();
  }

 private:
  GilRelease release_;
  FloatEnvironment environment_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

using FloatArray = pybind11::array_t<float, pybind11::array::c_style | pybind11::array::forcecast>;
using IdArray = pybind11::array_t<int32_t, pybind11::array::c_style | pybind11::array::forcecast>;

inline void check_dims(const pybind11::array& a, int dims, const char* name) {
  check_argument(a.ndim() == dims, std::string(name) + " must have " + std::to_string(dims) + " dimensions, got " +
                                       std::to_string(a.ndim()));
}

}  // namespace llmcore
