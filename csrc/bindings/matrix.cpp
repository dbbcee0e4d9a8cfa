// Matrix: a packed weight.

#include <memory>
#include <optional>
#include <vector>

#include <pybind11/stl.h>

#include "bindings/bind.h"
#include "bindings/native_call.h"
#include "bindings/runtime.h"
#include "quant/ggml_blocks.h"
#include "quant/matrix.h"

namespace py = pybind11;

namespace llmcore {
namespace {

using Int8Array = py::array_t<int8_t, py::array::c_style>;

Element scale_type_from_name(const std::string& name) {
  if (name == "f32") return Element::kF32;
  if (name == "bf16") return Element::kBF16;
  if (name == "int8") return Element::kInt8;
  check_argument(name == "f16", "scales must be one of f16, bf16, f32, int8, got '" + name.substr(0, 40) + "'");
  return Element::kF16;
}

const char* element_name(Element element) {
  const char* const names[] = {"f32", "bf16", "f16", "int8"};
  return names[static_cast<int>(element)];
}

// values: [rows, K], or [K, rows] when transposed; float32, float16, or uint16 that holds bfloat16.
void set_rows(Matrix& m, int64_t first_row, const py::array& values, bool transposed, bool search) {
  check_dims(values, 2, "values");
  check_argument(values.flags() & py::array::c_style, "values must be C-contiguous");
  Element element;
  const char kind = values.dtype().kind();
  const auto size = values.dtype().itemsize();
  if (kind == 'f' && size == 4) {
    element = Element::kF32;
  } else if (kind == 'f' && size == 2) {
    element = Element::kF16;
  } else if (kind == 'u' && size == 2) {
    element = Element::kBF16;
  } else {
    throw ArgumentError("values must be float32, float16, or uint16 holding bfloat16");
  }
  const int64_t rows = values.shape(transposed ? 1 : 0), columns = values.shape(transposed ? 0 : 1);
  check_argument(columns == m.K(),
                 "values must have K = " + std::to_string(m.K()) + " columns, got " + std::to_string(columns));
  const void* data = values.data();
  const NativeCall call;
  m.set_rows(first_row, rows, data, element, transposed, *default_pool(), search);
}

void set_codes(Matrix& m, int64_t first_row, const Int8Array& codes, const FloatArray& scales,
               const std::optional<FloatArray>& zero_points) {
  check_dims(codes, 2, "codes");
  check_dims(scales, 2, "scales");
  check_argument(codes.shape(1) == m.K() && scales.shape(1) == m.groups() && scales.shape(0) == codes.shape(0),
                 "codes must be [rows, K] and scales [rows, groups]");
  if (zero_points) {
    check_dims(*zero_points, 2, "zero_points");
    check_argument(zero_points->shape(0) == scales.shape(0) && zero_points->shape(1) == scales.shape(1),
                   "zero_points must be [rows, groups]");
  }
  const int64_t rows = codes.shape(0);
  const NativeCall call;
  m.set_codes(first_row, rows, codes.data(), scales.data(), zero_points ? zero_points->data() : nullptr);
}

const BlockType& block_type(const std::string& name) {
  const BlockType* type = find_block_type(name);
  check_argument(type != nullptr, "no ggml block type of this name: " + name.substr(0, 40));
  return *type;
}

// blocks: uint8 [rows, bytes of a row].
void set_blocks(Matrix& m, int64_t first_row, const py::array_t<uint8_t, py::array::c_style>& blocks,
                const std::string& name) {
  const BlockType& type = block_type(name);
  check_dims(blocks, 2, "blocks");
  const int64_t bytes = m.K() / type.weights * type.bytes, rows = blocks.shape(0);
  check_argument(blocks.shape(1) == bytes, "blocks must be [rows, " + std::to_string(bytes) + "] for this matrix");
  const NativeCall call;
  m.set_blocks(first_row, rows, blocks.data(), type, *default_pool());
}

void set_units(Matrix& m, int64_t first_row, const FloatArray& scale_units,
               const std::optional<FloatArray>& minimum_units) {
  const int64_t units = (m.groups() + kGroupsPerUnit - 1) / kGroupsPerUnit;
  for (const FloatArray* array : {&scale_units, minimum_units ? &*minimum_units : &scale_units}) {
    check_dims(*array, 2, "units");
    check_argument(array->shape(0) == scale_units.shape(0) && array->shape(1) == units,
                   "units must be [rows, " + std::to_string(units) + "]");
  }
  m.set_units(first_row, scale_units.shape(0), scale_units.data(), minimum_units ? minimum_units->data() : nullptr);
}

using Order = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

void set_order(Matrix& m, const Order& order) {
  check_dims(order, 1, "order");
  check_argument(order.shape(0) == m.K(), "order must be [K]");
  m.set_order(order.data());
}

py::object order(const Matrix& m) {
  if (!m.order()) return py::none();
  return py::array_t<int32_t>(m.K(), m.order());
}

py::array_t<float> dequantize(const Matrix& m) {
  py::array_t<float> out({m.N(), m.K()});
  float* data = out.mutable_data();
  {
    const NativeCall call;
    default_pool()->parallel_for(m.N(), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t n = begin; n < end; ++n) m.decode_row(n, data + n * m.K());
    });
  }
  return out;
}

py::tuple codes(const Matrix& m) {
  py::array_t<int8_t> q({m.N(), m.K()});
  py::array_t<float> scales({m.N(), m.groups()}), zero_points({m.N(), m.groups()}), minima({m.N(), m.groups()});
  for (int64_t n = 0; n < m.N(); ++n) {
    const int64_t at = n * m.groups();
    m.read_codes(n, q.mutable_data() + n * m.K(), scales.mutable_data() + at, zero_points.mutable_data() + at,
                 minima.mutable_data() + at);
  }
  return py::make_tuple(q, scales, zero_points, minima);
}

// The bytes themselves; the array keeps its matrix alive.
py::array_t<uint8_t> raw(Buffer& buffer, const py::object& owner) {
  return py::array_t<uint8_t>({buffer.size()}, {int64_t{1}}, buffer.data(), owner);
}

}  // namespace

void bind_matrix(py::module_& m) {
  py::class_<Matrix, std::shared_ptr<Matrix>>(m, "Matrix")
      .def(py::init([](const std::string& format, int64_t N, int64_t K, int64_t group_size, const std::string& scales,
                       bool zero_points, bool minima) {
             return std::make_shared<Matrix>(format_from_name(format), N, K, group_size, scale_type_from_name(scales),
                                             zero_points, minima);
           }),
           py::arg("format"), py::arg("N"), py::arg("K"), py::arg("group_size") = 0, py::arg("scales") = "f16",
           py::arg("zero_points") = false, py::arg("minima") = false)
      .def("set_rows", set_rows, py::arg("first_row"), py::arg("values"), py::arg("transposed") = false,
           py::arg("search") = false)
      .def("set_codes", set_codes, py::arg("first_row"), py::arg("codes"), py::arg("scales"),
           py::arg("zero_points") = py::none())
      .def("set_blocks", set_blocks, py::arg("first_row"), py::arg("blocks").noconvert(), py::arg("type"))
      .def("set_units", set_units, py::arg("first_row"), py::arg("scales"), py::arg("minima") = py::none())
      .def("set_order", set_order, py::arg("order"))
      .def_property_readonly("order", order)
      .def("dequantize", dequantize)
      .def("codes", codes)
      .def("check", &Matrix::check)
      .def_property_readonly("raw_codes",
                             [](const py::object& self) { return raw(self.cast<Matrix&>().codes_buffer(), self); })
      .def_property_readonly("raw_scales",
                             [](const py::object& self) { return raw(self.cast<Matrix&>().scales_buffer(), self); })
      .def_property_readonly("raw_shifts",
                             [](const py::object& self) { return raw(self.cast<Matrix&>().shifts_buffer(), self); })
      .def_property_readonly("has_zero_points", &Matrix::has_zero_points)
      .def_property_readonly("has_minima", &Matrix::has_minima)
      .def_property_readonly("scale_type", [](const Matrix& w) { return element_name(w.scale_type()); })
      .def_property_readonly("format", [](const Matrix& w) { return format_name(w.format()); })
      .def_property_readonly("shape", [](const Matrix& w) { return py::make_tuple(w.N(), w.K()); })
      .def_property_readonly("group_size", &Matrix::group_size)
      .def_property_readonly("activation_group", &Matrix::activation_group)
      .def_property_readonly("nbytes", &Matrix::nbytes);
  m.def(
      "matrix_bytes",
      [](const std::string& format, int64_t N, int64_t K, int64_t group_size, bool zero_points,
         const std::string& scales) {
        return matrix_bytes(format_from_name(format), N, K, group_size, zero_points, scale_type_from_name(scales));
      },
      py::arg("format"), py::arg("N"), py::arg("K"), py::arg("group_size") = 0, py::arg("zero_points") = false,
      py::arg("scales") = "f16");
  // Name, weights and bytes of a block, and what its matrix is made with.
  m.def("block_types", [] {
    py::dict types;
    for (const BlockType& type : block_types()) {
      py::dict home;
      home["format"] = format_name(type.format);
      home["group_size"] = type.group_size;
      home["scales"] = element_name(type.scale_type);
      home["zero_points"] = type.minima;
      home["minima"] = type.minima;
      types[type.name] = py::make_tuple(type.weights, type.bytes, home);
    }
    return types;
  });
}

}  // namespace llmcore
