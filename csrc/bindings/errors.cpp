// C++ exceptions become the Python classes of the same name, defined in python/llmcore/errors.py.

#include <pybind11/pybind11.h>

#include "base/error.h"
#include "bindings/bind.h"

namespace py = pybind11;

namespace llmcore {
namespace {

void raise(const char* name, const char* message) {
  py::set_error(py::module_::import("llmcore.errors").attr(name), message);
}

}  // namespace

void bind_errors(py::module_&) {
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Interrupted&) {
      if (!PyErr_Occurred()) PyErr_SetNone(PyExc_KeyboardInterrupt);
    } catch (const ArgumentError& e) {
      raise("ArgumentError", e.what());
    } catch (const LimitError& e) {
      raise("LimitError", e.what());
    } catch (const OutOfMemoryError& e) {
      raise("OutOfMemoryError", e.what());
    } catch (const ContextLengthError& e) {
      raise("ContextLengthError", e.what());
    } catch (const NumericError& e) {
      raise("NumericError", e.what());
    } catch (const ClosedError& e) {
      raise("ClosedError", e.what());
    } catch (const BusyError& e) {
      raise("BusyError", e.what());
    } catch (const TokenizerError& e) {
      raise("TokenizerError", e.what());
    } catch (const QuantError& e) {
      raise("QuantError", e.what());
    } catch (const Error& e) {
      raise("LlmcoreError", e.what());
    } catch (const std::bad_alloc&) {
      raise("OutOfMemoryError", "out of memory in native code");
    }
  });
}

}  // namespace llmcore
