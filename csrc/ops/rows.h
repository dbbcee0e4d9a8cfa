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

/// y[t] = x[t] / rms(x[t]) * weight; x, y: [T, n].
void rms_norm(const Context& context, const float* x, int64_t T, int64_t x_stride, const float* weight, int64_t n,
              float eps, float* y, int64_t y_stride);
/// As above with mean and bias (null for none).
void layer_norm(const Context& context, const float* x, int64_t T, int64_t x_stride, const float* weight,
                const float* bias, int64_t n, float eps, float* y, int64_t y_stride);
/// y = f(x[:, :n]) or, gated, f(x[:, :n]) * x[:, n:2n]; y: [T, n].
void activate(const Context& context, Activation activation, bool gated, const float* x, int64_t T, int64_t x_stride,
              int64_t n, float* y, int64_t y_stride);
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
