// The extension's entry point: a list of registrations. Each file beside this one binds one class: it converts,
// releases the GIL, calls, and nothing else.

#include <pybind11/pybind11.h>

#include "bindings/bind.h"

namespace py = pybind11;

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "llmcore's native core; use the llmcore package, not this module.";
  llmcore::bind_exit(m);
  llmcore::bind_errors(m);
  llmcore::bind_runtime(m);
  llmcore::bind_tokenizer(m);
  llmcore::bind_matrix(m);
  llmcore::bind_model(m);
  llmcore::bind_attention(m);
  llmcore::bind_ops(m);
}
