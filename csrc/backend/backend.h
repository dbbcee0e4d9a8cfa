#pragma once
// What the decoder runs on (law 5). A backend owns memory and executes fused operations on it; the decoder and the
// engine know no other interface, so that a second device is a second implementation of this class and no edit above
// it.
//
// Pointers of type float* and uint8_t* named here are the backend's own memory; tokens, positions and slices are host
// memory, valid during the call. Operations are in order; read() waits for them. Activations are float32, row-major.

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/buffer.h"
#include "ops/attention.h"
#include "ops/context.h"
#include "ops/matmul.h"
#include "ops/rows.h"
#include "quant/matrix.h"

namespace llmcore {

/// Memory of a backend; freed with the object.
class DeviceBuffer {
 public:
  virtual ~DeviceBuffer() = default;
  virtual uint8_t* data() = 0;
  virtual int64_t size() const = 0;
  float* floats() { return reinterpret_cast<float*>(data()); }
};

/// A weight matrix or a vector of weights as the backend keeps it.
class Weight {
 public:
  virtual ~Weight() = default;
  virtual int64_t rows() const = 0;
  virtual int64_t columns() const = 0;
  virtual int64_t nbytes() const = 0;
};

/// The sizes that a plan needs: nothing is allocated after it.
struct StepLimits {
  int64_t max_tokens = 0;  // of one step, over all sequences
  int64_t max_logit_rows = 0;
  int64_t max_columns = 0;  // the widest input of a matrix product
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  int64_t max_model_len = 0;  // tokens of one sequence
};

struct Slices {
  const SequenceSlice* data = nullptr;
  int64_t count = 0;
};

/// AttentionPattern (ops/attention.h) of one layer of a decoder, its vectors where the backend keeps them.
struct LayerAttention {
  int64_t window = 0;
  int64_t kept = 0;
  float softcap = 0.0f;
  const Weight* slopes = nullptr;
  const Weight* sinks = nullptr;
};

/// A norm of each row: RMS or, centered, LayerNorm with an optional bias.
struct NormWeights {
  const Weight* weight = nullptr;
  const Weight* bias = nullptr;
  float eps = 0.0f;
  bool centered = false;
};

/// What a matrix product reads: x [T, columns], normed first where a norm is given; `normed`, of the same size, is
/// memory for that.
struct Rows {
  const float* x = nullptr;
  int64_t T = 0;
  const NormWeights* norm = nullptr;
  float* normed = nullptr;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;

  virtual std::unique_ptr<DeviceBuffer> allocate(int64_t bytes) = 0;
  /// One matrix, or several that are stacked by rows, each in a format of its own. Throws ArgumentError when they have
  /// different columns.
  virtual std::shared_ptr<Weight> take_matrix(std::vector<std::shared_ptr<const Matrix>> stack) = 0;
  virtual std::shared_ptr<Weight> take_vector(const float* values, int64_t n) = 0;
  /// Plans the scratch memory of the operations below; returns its bytes.
  virtual int64_t plan(const StepLimits& limits) = 0;
  /// The bytes that this would take.
  virtual int64_t planned_bytes(const StepLimits& limits) = 0;
  /// What long operations call now and then, on the caller's thread, from here on; it may throw Interrupted out of
  /// them. Null: nothing.
  virtual void set_poll(const Poll* poll) = 0;
  /// Calls function(index, thread) for each index of [0, count) on threads of the host, thread < host_threads().
  virtual void for_each_on_host(int64_t count, const std::function<void(int64_t, int)>& function) = 0;
  virtual int host_threads() const = 0;
  /// Host memory that holds `data[0, n)`, after all operations so far; valid until the next operation.
  virtual const float* read(const float* data, int64_t n) = 0;

  /// y[t] (+)= table[ids[t]]; the table is one matrix.
  virtual void embed(const Weight& table, const int32_t* ids, int64_t T, bool accumulate, float* y) = 0;
  /// y = norm(x), both [T, columns]; y may be x.
  virtual void norm(const float* x, int64_t T, const NormWeights& norm, float* y) = 0;
  /// y = x W^T + bias, y [T, rows of W].
  virtual void linear(const Rows& x, const Weight& w, const Weight* bias, float* y) = 0;
  /// y += x W^T + bias
  virtual void linear_residual(const Rows& x, const Weight& w, const Weight* bias, float* y) = 0;
  /// y = f(x W^T + bias) or, gated, f of the first half of the columns times the second half.
  virtual void linear_activated(const Rows& x, const Weight& w, const Weight* bias, Activation activation, bool gated,
                                float* y) = 0;
  /// Of each row of y = softcap(x W^T + bias), of its first `columns`, as many of the largest as `largest` [rows]
  /// wants; softcap 0: none. In host memory.
  virtual void linear_largest(const Rows& x, const Weight& w, const Weight* bias, float softcap, int64_t columns,
                              LargestColumns* largest) = 0;
  /// y += x, both [T, n].
  virtual void add(const float* x, int64_t T, int64_t n, float* y) = 0;
  /// x *= factor, n elements.
  virtual void scale(float* x, int64_t n, float factor) = 0;
  /// x = cap * tanh(x / cap), n elements.
  virtual void softcap(float* x, int64_t n, float cap) = 0;
  /// Makes the cosines and sines of the tokens of this step, for attend().
  virtual void rope_tables(const float* inv_freq, int64_t half, float factor, const int32_t* positions, int64_t T) = 0;
  /// Norms the heads of q and k where weights are given, rotates the first 2 * half elements of each (half 0: none;
  /// element i with i + half or, interleaved, 2 i with 2 i + 1),
  /// scales q, and writes k and v into their pages. qkv: [T, (heads + 2 kv_heads) * head_dim], changed in place.
  virtual void prepare_qkv(float* qkv, int64_t T, int64_t heads, const Weight* q_norm, const Weight* k_norm, float eps,
                           int64_t half, bool interleaved, float scale, const KvLayout& layout, uint8_t* keys,
                           uint8_t* values, Slices slices) = 0;
  /// out: [T, heads * head_dim]
  virtual void attend(const float* qkv, int64_t heads, const KvLayout& layout, const uint8_t* keys,
                      const uint8_t* values, Slices slices, const LayerAttention& layer, float* out) = 0;
  /// Copies bytes within the backend's memory.
  virtual void copy(const uint8_t* from, int64_t bytes, uint8_t* to) = 0;
  /// Between the backend's memory and the host's.
  virtual void download(const uint8_t* from, int64_t bytes, uint8_t* host) = 0;
  virtual void upload(const uint8_t* host, int64_t bytes, uint8_t* to) = 0;
  /// y[i] = x[rows[i]], n columns.
  virtual void gather_rows(const float* x, const int32_t* rows, int64_t count, int64_t n, float* y) = 0;
};

/// The built-in backend. `threads` 0: as many as the process may use.
std::unique_ptr<Backend> make_cpu_backend(int threads, InputType input_type = InputType::kInt8);

}  // namespace llmcore
