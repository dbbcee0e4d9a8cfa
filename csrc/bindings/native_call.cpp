#include "bindings/native_call.h"

#include <atomic>
#include <thread>

#include "bindings/bind.h"

namespace py = pybind11;

namespace llmcore {
namespace {

std::atomic<int> g_released{0};
std::atomic<bool> g_exiting{false};
std::thread::id g_last_thread;  // goes on when g_exiting is set

// For those that had looked at g_exiting just before it was set, and wait for the GIL.
constexpr std::chrono::milliseconds kGrace{20};

void wait_for_exit() noexcept {
  while (g_exiting.load(std::memory_order_acquire) && std::this_thread::get_id() != g_last_thread) {
    std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

}  // namespace

GilRelease::GilRelease() noexcept : state_(PyEval_SaveThread()) { ++g_released; }

GilRelease::~GilRelease() {
  wait_for_exit();
  PyEval_RestoreThread(state_);
  --g_released;
}

GilAcquire::Wait::Wait() noexcept { wait_for_exit(); }

void bind_exit(py::module_&) {
  const auto begin_exit = [] {
    g_last_thread = std::this_thread::get_id();
    g_exiting.store(true, std::memory_order_release);
    if (g_released == 0) return;
    const GilRelease release;
    std::this_thread::sleep_for(kGrace);
  };
  py::module_::import("atexit").attr("register")(py::cpp_function(begin_exit));
}

}  // namespace llmcore
