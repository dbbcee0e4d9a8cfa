// The kernels, for tests, benches and research.

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>

#include "bindings/bind.h"
#include "bindings/native_call.h"
#include "bindings/runtime.h"
#include "bindings/sampler_params.h"
#include "ops/matmul.h"
#include "ops/rows.h"
#include "sampling/sampler.h"

namespace py = pybind11;

namespace llmcore {
namespace {

// A named table, or the one in use.
const KernelTable& table_of(const std::string& isa) { return isa.empty() ? kernels() : kernels_named(isa); }

// The last call's workspace, if it isn't large, for the next that it fits: one of its own would be cleared before each
// product.
struct KeptWorkspace {
  static constexpr int64_t kMostBytes = 64 << 20;
  std::mutex mutex;  // only ever tried: it may be held by a thread that a fork left behind
  const KernelTable* table = nullptr;
  int64_t threads = 0;
  MatmulWorkspace workspace;

  MatmulWorkspace& plan(const Context& context, int64_t rows, int64_t k) {
    if (table != &context.table || threads != context.pool.size() || !workspace.fits(rows, k)) {
      workspace = MatmulWorkspace();
      workspace = MatmulWorkspace(context, rows, k);
      table = &context.table;
      threads = context.pool.size();
    }
    return workspace;
  }
};

py::array_t<float> matmul_op(const FloatArray& x, const std::shared_ptr<Matrix>& matrix, const py::object& bias,
                             const std::string& isa, const py::object& out) {
  check_dims(x, 2, "x");
  const Matrix& w = *matrix;
  check_argument(x.shape(1) == w.K(),
                 "matmul: x must have K = " + std::to_string(w.K()) + " columns, got " + std::to_string(x.shape(1)));
  const int64_t M = x.shape(0);
  FloatArray bias_array;
  if (!bias.is_none()) {
    bias_array = bias.cast<FloatArray>();
    check_argument(bias_array.ndim() == 1 && bias_array.shape(0) == w.N(), "matmul: bias must be [N]");
  }
  py::array_t<float> y;
  if (out.is_none()) {
    y = py::array_t<float>({M, w.N()});
  } else {
    check_argument(py::isinstance<py::array_t<float, py::array::c_style>>(out), "matmul: out must be float32, C order");
    y = py::reinterpret_borrow<py::array_t<float>>(out);
    check_argument(
        y.ndim() == 2 && y.shape(0) == M && y.shape(1) == w.N() && y.writeable(),
        "matmul: out must be a writable [M, N] = [" + std::to_string(M) + ", " + std::to_string(w.N()) + "]");
  }
  const float *x_data = x.data(), *bias_data = bias.is_none() ? nullptr : bias_array.data();
  float* y_data = y.mutable_data();
  const NativeCall call;
  const std::shared_ptr<ThreadPool> pool = default_pool();
  const Context context{table_of(isa), *pool};
  static KeptWorkspace kept;
  const std::unique_lock lock(kept.mutex, std::try_to_lock);
  MatmulWorkspace own = lock.owns_lock() ? MatmulWorkspace() : MatmulWorkspace(context, M, w.K());
  MatmulWorkspace& workspace = lock.owns_lock() ? kept.plan(context, M, w.K()) : own;
  const std::shared_ptr<const Matrix> stack[] = {matrix};
  matmul(context, workspace, {.x = x_data, .rows = M, .stride = w.K()}, stack, bias_data,
         {.y = y_data, .stride = w.N()});
  if (lock.owns_lock() && workspace.nbytes() > KeptWorkspace::kMostBytes) workspace = MatmulWorkspace();
  return y;
}

// Applies function(table, row in, row out, n) to the rows of x.
template <class Function>
py::array_t<float> by_row(const FloatArray& x, const std::string& isa, Function&& function) {
  check_argument(x.ndim() >= 1 && x.shape(x.ndim() - 1) >= 1, "x must have at least one column");
  py::array_t<float> y(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
  const int64_t n = x.shape(x.ndim() - 1), rows = x.size() / n;
  const float* from = x.data();
  float* to = y.mutable_data();
  const NativeCall call;
  const KernelTable& table = table_of(isa);
  for (int64_t r = 0; r < rows; ++r) function(table, from + r * n, to + r * n, n);
  return y;
}

py::array_t<float> activation_op(const FloatArray& x, const std::string& name, const std::string& isa) {
  const Activation activation = activation_from_name(name);
  return by_row(x, isa, [&](const KernelTable& t, const float* from, float* to, int64_t n) {
    const ActivationKernel kernel = activation_kernel(t, activation);
    default_pool()->parallel_for(
        n, 1024, [&](int64_t begin, int64_t end, int) { kernel(from + begin, nullptr, to + begin, end - begin); });
  });
}

py::array_t<float> rope_op(const FloatArray& x, const IdArray& positions, const std::vector<float>& inv_freq,
                           bool interleaved, const std::string& isa) {
  check_dims(x, 3, "x");
  check_dims(positions, 1, "positions");
  const int64_t T = x.shape(0), heads = x.shape(1), D = x.shape(2), half = static_cast<int64_t>(inv_freq.size());
  check_argument(positions.shape(0) == T && 2 * half <= D,
                 "rope: x must be [T, heads, head_dim], positions [T], and "
                 "inv_freq at most head_dim / 2 long");
  py::array_t<float> y({T, heads, D});
  std::copy(x.data(), x.data() + x.size(), y.mutable_data());
  float* data = y.mutable_data();
  const int32_t* where = positions.data();
  const NativeCall call;
  std::vector<float> cosines(static_cast<size_t>(T * half)), sines(cosines.size());
  rope_tables(inv_freq.data(), half, 1.0f, where, T, cosines.data(), sines.data());
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const KernelTable& table = table_of(isa);
      const auto rope = interleaved ? table.rope_interleaved : table.rope;
      rope(data + (t * heads + h) * D, cosines.data() + t * half, sines.data() + t * half, half);
    }
  }
  return y;
}

py::tuple sample_op(const FloatArray& logits, const py::dict& params, const std::vector<int32_t>& tokens,
                    int64_t prompt, int64_t position, uint64_t sequence) {
  check_dims(logits, 1, "logits");
  const int64_t vocab = logits.shape(0), total = static_cast<int64_t>(tokens.size());
  check_argument(total == 0 || (total == position && prompt >= 0 && prompt <= total),
                 "position must be the number of tokens, and prompt at most that");
  for (const int32_t id : tokens) check_argument(id >= 0 && id < vocab, "tokens must be below the number of logits");
  SamplerParams p = sampler_params(params);
  p.logprobs = 0;
  SamplerHistory history;
  history.tokens = tokens.data();
  history.prompt = total ? prompt : position;
  history.total = position;
  history.sequence = sequence;
  const float* data = logits.data();
  SampledToken token;
  {
    const NativeCall call;
    Sampler sampler(kernels(), vocab, vocab);
    token = sampler.sample(data, p, history);
  }
  return py::make_tuple(token.id, token.logprob);
}

// Tokens without a bit in `mask`, and those beyond it, can't come.
// All ones for each bit that is set, of numbers below 16.
constexpr auto kFourBits = [] {
  std::array<std::array<uint32_t, 4>, 16> masks{};
  for (size_t number = 0; number < 16; ++number) {
    for (size_t bit = 0; bit < 4; ++bit) masks[number][bit] = number >> bit & 1 ? ~uint32_t{0} : 0;
  }
  return masks;
}();

// -infinity where the mask has zeros; without a branch, for masks of text are as good as random.
void keep_bits(float* four, const std::array<uint32_t, 4>& mask) {
  std::array<uint32_t, 4> values;
  std::memcpy(values.data(), four, sizeof values);
  for (size_t i = 0; i < 4; ++i) values[i] = (values[i] & mask[i]) | (0xff800000u & ~mask[i]);
  std::memcpy(four, values.data(), sizeof values);
}

void apply_bitmask(FloatArray logits, const py::array_t<uint32_t, py::array::c_style>& mask) {
  check_dims(logits, 1, "logits");
  const int64_t vocab = logits.shape(0), words = mask.size();
  const uint32_t* bits = mask.data();
  float* row = logits.mutable_data();
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  for (int64_t first = 0; first < vocab; first += 32) {
    const uint32_t word = first / 32 < words ? bits[first / 32] : 0;
    float* of_word = row + first;
    if (vocab - first < 32) {
      for (int64_t i = 0; i < vocab - first; ++i) of_word[i] = word >> i & 1 ? of_word[i] : kNever;
    } else if (word == 0) {
      std::fill(of_word, of_word + 32, kNever);
    } else if (word != ~uint32_t{0}) {
      for (int i = 0; i < 32; i += 4) keep_bits(of_word + i, kFourBits[word >> i & 15]);
    }
  }
}

py::tuple quantize_activations(const FloatArray& x, int64_t group, const std::string& isa) {
  check_dims(x, 2, "x");
  check_argument(group >= 16 && group % 16 == 0, "group must be a positive multiple of 16");
  const int64_t M = x.shape(0), K = x.shape(1), padded = (K + 15) / 16 * 16, groups = (padded + group - 1) / group;
  py::array_t<int8_t> codes({M, padded});
  py::array_t<float> scales({M, groups});
  py::array_t<int32_t> sums({M, groups});
  const KernelTable& table = table_of(isa);
  const FloatEnvironment environment;
  for (int64_t m = 0; m < M; ++m) {
    table.quantize_row(x.data() + m * K, K, padded, group, codes.mutable_data() + m * padded,
                       scales.mutable_data() + m * groups, sums.mutable_data() + m * groups, 1);
  }
  return py::make_tuple(codes, scales, sums);
}

}  // namespace

void bind_ops(py::module_& m) {
  m.def("matmul", matmul_op, py::arg("x"), py::arg("w"), py::arg("bias") = py::none(), py::arg("isa") = "",
        py::arg("out") = py::none());
  m.def(
      "rms_norm",
      [](const FloatArray& x, const FloatArray& weight, float eps, const std::string& isa) {
        check_argument(x.ndim() >= 1 && weight.ndim() == 1 && weight.shape(0) == x.shape(x.ndim() - 1),
                       "rms_norm: weight must be [n] for x [..., n]");
        return by_row(x, isa, [w = weight.data(), eps](const KernelTable& t, const float* from, float* to, int64_t n) {
          t.rms_norm(from, w, eps, to, n);
        });
      },
      py::arg("x"), py::arg("weight"), py::arg("eps") = 1e-5f, py::arg("isa") = "");
  m.def(
      "layer_norm",
      [](const FloatArray& x, const FloatArray& weight, const FloatArray& bias, float eps, const std::string& isa) {
        check_argument(x.ndim() >= 1 && weight.ndim() == 1 && weight.shape(0) == x.shape(x.ndim() - 1) &&
                           bias.ndim() == 1 && bias.shape(0) == weight.shape(0),
                       "layer_norm: weight and bias must be [n] for x [..., n]");
        return by_row(x, isa,
                      [w = weight.data(), b = bias.data(), eps](const KernelTable& t, const float* from, float* to,
                                                                int64_t n) { t.layer_norm(from, w, b, eps, to, n); });
      },
      py::arg("x"), py::arg("weight"), py::arg("bias"), py::arg("eps") = 1e-5f, py::arg("isa") = "");
  m.def(
      "softmax",
      [](const FloatArray& x, const std::string& isa) {
        return by_row(x, isa,
                      [](const KernelTable& t, const float* from, float* to, int64_t n) { t.softmax(from, to, n); });
      },
      py::arg("x"), py::arg("isa") = "");
  m.def(
      "exp",
      [](const FloatArray& x, const std::string& isa) {
        return by_row(x, isa,
                      [](const KernelTable& t, const float* from, float* to, int64_t n) { t.exp(from, to, n); });
      },
      py::arg("x"), py::arg("isa") = "");
  m.def("activation", activation_op, py::arg("x"), py::arg("name"), py::arg("isa") = "");
  m.def("rope", rope_op, py::arg("x"), py::arg("positions"), py::arg("inv_freq"), py::arg("interleaved") = false,
        py::arg("isa") = "");
  m.def("sample", sample_op, py::arg("logits"), py::arg("params"), py::arg("tokens"), py::arg("prompt"),
        py::arg("position"), py::arg("sequence"));
  m.def("apply_bitmask", apply_bitmask, py::arg("logits").noconvert(), py::arg("mask").noconvert());
  m.def("quantize_activations", quantize_activations, py::arg("x"), py::arg("group"), py::arg("isa") = "");
}

}  // namespace llmcore
