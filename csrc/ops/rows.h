#pragma once
// Operations row by row: norms, activations, embedding lookup, RoPE. x and y are float32, strides in elements.

#include <cstdint>
#include <string>

#include "ops/context.h"
#include "quant/matrix.h"

namespace llmcore {

enum class Activation : int { kSilu, kGelu, kGeluTanh, kRelu, kRelu2 };
/// Throws ArgumentError naming the activations there are.
Activation activation_from_name(const std::string& name);

/// f(x) elementwise, times `up` where that is not null; x, up and y: n floats.
using ActivationKernel = void (*)(const float* x, const float* up, float* y, int64_t n) noexcept;
ActivationKernel activation_kernel(const KernelTable& table, Activation activation);

/// x / rms(x) * weight or, centered, (x - mean(x)) / deviation(x) * weight + bias (null for none), row by row.
struct Norm {
  const float* weight = nullptr;
  const float* bias = nullptr;
  float eps = 0.0f;
  bool centered = false;
  void row(const KernelTable& table, const float* x, float* y, int64_t n) const {
    if (centered) {
      table.layer_norm(x, weight, bias, eps, y, n);
    } else {
      table.rms_norm(x, weight, eps, y, n);
    }
  }
};
/// y[t] = norm(x[t]); x, y: [T, n].
void norm_rows(const Context& context, const float* x, int64_t T, int64_t x_stride, const Norm& norm, int64_t n,
               float* y, int64_t y_stride);
/// y[t] (+)= table[ids[t]]; ids within the table were checked by the caller's constructor or engine, and are again
/// here.
void embed(const Context& context, const Matrix& table, const int32_t* ids, int64_t T, bool accumulate, float* scratch,
           float* y, int64_t y_stride);
/// y += x; both [T, n].
void add_rows(const Context& context, const float* x, int64_t T, int64_t x_stride, int64_t n, float* y,
              int64_t y_stride);
/// cosines, sines: [T, half] of positions[t] * inv_freq[i] (the product rounded to float32, as PyTorch does) times
/// factor.
void rope_tables(const float* inv_freq, int64_t half, float factor, const int32_t* positions, int64_t T, float* cosines,
                 float* sines);

}  // namespace llmcore
