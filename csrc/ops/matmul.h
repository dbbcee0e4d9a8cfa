#pragma once
// y = x W^T (+ bias): x [M, K] float32, W [N, K] packed, y [M, N] float32.
// For integer formats a row of x is quantised to int8 with one scale per group of k (Matrix::activation_group), so a
// row's result depends on that row and W alone.

#include <cstdint>

#include "base/buffer.h"
#include "ops/context.h"
#include "quant/matrix.h"

namespace llmcore {

/// Memory a product needs beside its operands, planned once so that generation allocates nothing.
class MatmulWorkspace {
 public:
  MatmulWorkspace() = default;
  MatmulWorkspace(const Context& context, int64_t max_rows, int64_t max_k);
  bool fits(int64_t rows, int64_t k) const { return rows <= max_rows_ && k <= max_k_; }
  int64_t nbytes() const { return codes_.size() + scales_.size() + sums_.size() + ordered_.size() + scratch_.size(); }
  int64_t max_rows() const { return max_rows_; }

 private:
  friend void matmul(const Context&, MatmulWorkspace&, const float*, int64_t, int64_t, const Matrix&, const float*,
                     float*, int64_t);
  int64_t max_rows_ = 0, max_k_ = 0, stride_ = 0, groups_ = 0, scratch_stride_ = 0;
  Buffer codes_, scales_, sums_;
  Buffer ordered_;  // of each thread: a row in the order of the weights' columns
  Buffer scratch_;
};

/// Strides in elements. `bias` [N] or null. Throws ArgumentError when the workspace is too small.
void matmul(const Context& context, MatmulWorkspace& workspace, const float* x, int64_t M, int64_t x_stride,
            const Matrix& w, const float* bias, float* y, int64_t y_stride);

}  // namespace llmcore
