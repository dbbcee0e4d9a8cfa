#pragma once
// One registration function per bound class or group of functions.

#include <pybind11/pybind11.h>

namespace llmcore {

void bind_exit(pybind11::module_& m);
void bind_errors(pybind11::module_& m);
void bind_tokenizer(pybind11::module_& m);
void bind_runtime(pybind11::module_& m);
void bind_matrix(pybind11::module_& m);
void bind_model(pybind11::module_& m);
void bind_attention(pybind11::module_& m);
void bind_ops(pybind11::module_& m);

}  // namespace llmcore
