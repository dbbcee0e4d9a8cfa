#include "ops/rows.h"

#include <cstring>

#include "base/elementary.h"
#include "base/error.h"

namespace llmcore {
namespace {

// Below this many elements a second thread costs more than it saves.
constexpr int64_t kParallelElements = 1 << 12;

template <class Function>
void for_rows(const Context& context, int64_t T, int64_t n, Function&& function) {
  if (T * n < kParallelElements) {
    function(int64_t{0}, T, 0);
  } else {
    context.pool.parallel_for(T, 1, function);
  }
}

}  // namespace

Activation activation_from_name(const std::string& name) {
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  if (name == "relu2") return Activation::kRelu2;
  throw ArgumentError("activation must be one of silu, gelu, gelu_tanh, relu, relu2, got '" + name.substr(0, 40) + "'");
}

ActivationKernel activation_kernel(const KernelTable& table, Activation activation) {
  return activation == Activation::kSilu       ? table.silu
         : activation == Activation::kGelu     ? table.gelu
         : activation == Activation::kGeluTanh ? table.gelu_tanh
         : activation == Activation::kRelu     ? table.relu
                                               : table.relu2;
}

void norm_rows(const Context& context, const float* x, int64_t T, int64_t x_stride, const Norm& norm, int64_t n,
               float* y, int64_t y_stride) {
  for_rows(context, T, n, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) norm.row(context.table, x + t * x_stride, y + t * y_stride, n);
  });
}

void embed(const Context& context, const Matrix& table, const int32_t* ids, int64_t T, bool accumulate, float* scratch,
           float* y, int64_t y_stride) {
  for (int64_t t = 0; t < T; ++t) {
    check_argument(ids[t] >= 0 && ids[t] < table.N(),
                   "embed: id " + std::to_string(ids[t]) + " is outside [0, " + std::to_string(table.N()) + ")");
    float* out = y + t * y_stride;
    table.decode_row(ids[t], accumulate ? scratch : out);
    if (accumulate) context.table.add(scratch, out, table.K());
  }
}

void add_rows(const Context& context, const float* x, int64_t T, int64_t x_stride, int64_t n, float* y,
              int64_t y_stride) {
  for_rows(context, T, n, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) context.table.add(x + t * x_stride, y + t * y_stride, n);
  });
}

void rope_tables(const float* inv_freq, int64_t half, float factor, const int32_t* positions, int64_t T, float* cosines,
                 float* sines) {
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(positions[t]) * inv_freq[i];
      double sine, cosine;
      exact_sincos(angle, &sine, &cosine);
      cosines[t * half + i] = static_cast<float>(cosine) * factor;
      sines[t * half + i] = static_cast<float>(sine) * factor;
    }
  }
}

}  // namespace llmcore
