#pragma once
// Products of float32 rows x [M, K] with a packed weight W [N, K], and what stands before and after them in a layer: a
// norm of x, a bias, an activation, a sum. A row's result depends on that row and W alone.
//
// For integer formats a row of x is quantised to int8 with one scale per group of k (Matrix::activation_group), or,
// with InputType::kFloat32, stays as it is and meets the exact values of the weights: slow, to compare with.

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "base/buffer.h"
#include "ops/context.h"
#include "ops/rows.h"
#include "quant/matrix.h"

namespace llmcore {

/// A weight: matrices of one K, one below another.
using Stack = std::span<const std::shared_ptr<const Matrix>>;

enum class InputType : int { kInt8, kFloat32 };

struct MatmulInput {
  const float* x = nullptr;
  int64_t rows = 0;
  int64_t stride = 0;          // in elements
  const Norm* norm = nullptr;  // of each row; null: none
  float* normed = nullptr;     // with a norm: [rows, K], where the normed rows may be kept
};

/// The largest of a row's products above -infinity, of equal ones the first.
struct LargestColumns {
  struct Product {
    float value;
    int32_t column;
  };
  static constexpr int32_t kMost = 128;

  int32_t wanted = 1;               // from 1 to kMost
  int32_t found = 0;                // fewer than wanted where there are no more
  bool sound = true;                // whether no product is NaN or +infinity
  std::array<Product, kMost> best;  // the largest first
};

/// y = f(x W^T + bias), y [M, N]; f is the identity unless an activation is given.
struct MatmulOutput {
  float* y = nullptr;
  int64_t stride = 0;                     // in elements
  bool add = false;                       // y += instead
  ActivationKernel activation = nullptr;  // not with `add`
  // y [M, N / 2] = activation(first half of the rows of W) * second half. The halves are two matrices, or one.
  bool gated = false;
  // [M]: instead of y, of the first `columns`, after softcap * tanh(product / softcap) where that isn't 0. Each says
  // how many it wants.
  LargestColumns* largest = nullptr;
  int64_t columns = 0;
  float softcap = 0.0f;
};

/// Memory a product needs beside its operands, planned once so that generation allocates nothing.
class MatmulWorkspace {
 public:
  MatmulWorkspace() = default;
  /// `max_ranked_rows`: of those whose largest products are asked for.
  MatmulWorkspace(const Context& context, int64_t max_rows, int64_t max_k, int64_t max_ranked_rows = 0,
                  InputType input_type = InputType::kInt8);
  bool fits(int64_t rows, int64_t k, bool ranked = false) const {
    return rows <= (ranked ? std::min(max_rows_, max_ranked_rows_) : max_rows_) && k <= max_k_;
  }
  int64_t nbytes() const;

 private:
  friend class MatmulCall;
  struct Codes {
    Buffer codes, scales, sums;
  };
  int64_t max_rows_ = 0, max_k_ = 0, max_ranked_rows_ = 0, stride_ = 0, scratch_stride_ = 0;
  std::array<Codes, 2> inputs_;  // of the two halves of a gated product, where they want different groups
  Buffer row_;                   // of each thread: a row normed, and one in the order of the weights' columns
  Buffer scratch_, tile_;        // of each thread
  Buffer largest_;               // of each thread and row
  InputType input_type_ = InputType::kInt8;
  Buffer values_;  // of each thread: a row and a panel of weights as float32
};

/// `bias` [N] or null. Throws ArgumentError when the workspace is too small or the halves of a gated product are cut
/// otherwise.
void matmul(const Context& context, MatmulWorkspace& workspace, const MatmulInput& input, Stack w, const float* bias,
            const MatmulOutput& output);

}  // namespace llmcore
