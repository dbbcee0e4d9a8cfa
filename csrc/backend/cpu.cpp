#include <cstring>
#include <utility>
#include <vector>

#include "backend/backend.h"
#include "base/error.h"
#include "ops/matmul.h"

namespace llmcore {
namespace {

class CpuBuffer final : public DeviceBuffer {
 public:
  explicit CpuBuffer(int64_t bytes) : buffer_(bytes) {}
  uint8_t* data() override { return buffer_.data(); }
  int64_t size() const override { return buffer_.size(); }

 private:
  Buffer buffer_;
};

class CpuWeight final : public Weight {
 public:
  explicit CpuWeight(std::vector<std::shared_ptr<const Matrix>> matrices) : stack(std::move(matrices)) {
    for (const auto& part : stack) {
      check_argument(part->K() == stack[0]->K(), "a weight's matrices have different numbers of columns");
      length += part->N();
    }
  }
  CpuWeight(const float* values, int64_t n) : vector(n * 4), length(n) {
    std::memcpy(vector.data(), values, static_cast<size_t>(n * 4));
  }
  int64_t rows() const override { return length; }
  int64_t columns() const override { return stack.empty() ? 1 : stack[0]->K(); }
  int64_t nbytes() const override {
    int64_t total = vector.size();
    for (const auto& part : stack) total += part->nbytes();
    return total;
  }

  std::vector<std::shared_ptr<const Matrix>> stack;
  Buffer vector;
  int64_t length = 0;  // rows
};

const auto& stack_of(const Weight& w) { return static_cast<const CpuWeight&>(w).stack; }
const float* vector_of(const Weight* w) { return w ? static_cast<const CpuWeight*>(w)->vector.as<float>() : nullptr; }

class CpuBackend final : public Backend {
 public:
  CpuBackend(int threads, InputType input_type)
      : pool_(threads > 0 ? threads : usable_cores()), context_{kernels(), pool_}, input_type_(input_type) {}

  const char* name() const override { return "cpu"; }
  std::unique_ptr<DeviceBuffer> allocate(int64_t bytes) override { return std::make_unique<CpuBuffer>(bytes); }
  std::shared_ptr<Weight> take_matrix(std::vector<std::shared_ptr<const Matrix>> stack) override {
    return std::make_shared<CpuWeight>(std::move(stack));
  }
  std::shared_ptr<Weight> take_vector(const float* values, int64_t n) override {
    return std::make_shared<CpuWeight>(values, n);
  }

  int64_t plan(const StepLimits& limits) override {
    scratch_ = make_scratch(limits);
    return scratch_.nbytes();
  }
  int64_t planned_bytes(const StepLimits& limits) override { return make_scratch(limits).nbytes(); }

  void for_each_on_host(int64_t count, const std::function<void(int64_t, int)>& function) override {
    pool_.parallel_parts(count, 1, 1, [&](int64_t begin, int64_t end, int thread) {
      for (int64_t i = begin; i < end; ++i) function(i, thread);
      return true;
    });
  }
  int host_threads() const override { return pool_.size(); }
  void set_poll(const Poll* poll) override { context_.poll = poll; }
  const float* read(const float* data, int64_t) override { return data; }

  void embed(const Weight& table, const int32_t* ids, int64_t T, bool accumulate, float* y) override {
    check_argument(stack_of(table).size() == 1, "a table of embeddings must be one matrix");
    llmcore::embed(context_, *stack_of(table)[0], ids, T, accumulate, scratch_.row.as<float>(), y, table.columns());
  }
  void norm(const float* x, int64_t T, const NormWeights& norm, float* y) override {
    const int64_t n = norm.weight->rows();
    norm_rows(context_, x, T, n, norm_of(norm), n, y, n);
  }
  void linear(const Rows& x, const Weight& w, const Weight* bias, float* y) override {
    multiply(x, w, bias, {.y = y, .stride = w.rows()});
  }
  void linear_residual(const Rows& x, const Weight& w, const Weight* bias, float* y) override {
    multiply(x, w, bias, {.y = y, .stride = w.rows(), .add = true});
  }
  void linear_activated(const Rows& x, const Weight& w, const Weight* bias, Activation activation, bool gated,
                        float* y) override {
    multiply(x, w, bias,
             {.y = y,
              .stride = gated ? w.rows() / 2 : w.rows(),
              .activation = activation_kernel(context_.table, activation),
              .gated = gated});
  }
  void linear_largest(const Rows& x, const Weight& w, const Weight* bias, float softcap, int64_t columns,
                      LargestColumns* largest) override {
    multiply(x, w, bias, {.largest = largest, .columns = columns, .softcap = softcap});
  }
  void add(const float* x, int64_t T, int64_t n, float* y) override { add_rows(context_, x, T, n, n, y, n); }
  void scale(float* x, int64_t n, float factor) override {
    pool_.parallel_for(n, 4096,
                       [&](int64_t begin, int64_t end, int) { context_.table.scale(x + begin, factor, end - begin); });
  }
  void softcap(float* x, int64_t n, float cap) override {
    pool_.parallel_for(n, 4096,
                       [&](int64_t begin, int64_t end, int) { context_.table.softcap(x + begin, cap, end - begin); });
  }
  void rope_tables(const float* inv_freq, int64_t half, float factor, const int32_t* positions, int64_t T) override {
    float* cosines = scratch_.tables.as<float>();
    llmcore::rope_tables(inv_freq, half, factor, positions, T, cosines, cosines + T * half);
  }

  void prepare_qkv(float* qkv, int64_t T, int64_t heads, const Weight* q_norm, const Weight* k_norm, float eps,
                   int64_t half, bool interleaved, float scale, const KvLayout& layout, uint8_t* keys, uint8_t* values,
                   Slices slices) override {
    const int64_t D = layout.head_dim, stride = (heads + 2 * layout.kv_heads) * D;
    const float *cosines = scratch_.tables.as<float>(), *sines = cosines + T * half;
    const KernelTable& table = context_.table;
    const auto rope = interleaved ? table.rope_interleaved : table.rope;
    const auto prepare = [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        for (int64_t h = 0; h < heads + layout.kv_heads; ++h) {
          float* head = qkv + t * stride + h * D;
          const Weight* norm = h < heads ? q_norm : k_norm;
          if (norm) table.rms_norm(head, vector_of(norm), eps, head, D);
          if (half) rope(head, cosines + t * half, sines + t * half, half);
          if (h < heads) table.scale(head, scale, D);
        }
      }
    };
    if (T < 4) {
      prepare(0, T, 0);
    } else {
      pool_.parallel_for(T, 1, prepare);
    }
    const float* k = qkv + heads * D;
    store_kv(context_, layout, keys, values, slices.data, slices.count, k, k + layout.kv_heads * D, stride);
  }

  void attend(const float* qkv, int64_t heads, const KvLayout& layout, const uint8_t* keys, const uint8_t* values,
              Slices slices, const LayerAttention& layer, float* out) override {
    AttentionPattern pattern;
    pattern.window = layer.window;
    pattern.kept = layer.kept;
    pattern.softcap = layer.softcap;
    pattern.slopes = vector_of(layer.slopes);
    pattern.sinks = vector_of(layer.sinks);
    paged_attention(context_, scratch_.attention, layout, keys, values, slices.data, slices.count, qkv,
                    (heads + 2 * layout.kv_heads) * layout.head_dim, heads, pattern, out, heads * layout.head_dim);
  }

  void copy(const uint8_t* from, int64_t bytes, uint8_t* to) override {
    std::memcpy(to, from, static_cast<size_t>(bytes));
  }

  void download(const uint8_t* from, int64_t bytes, uint8_t* host) override { copy(from, bytes, host); }
  void upload(const uint8_t* host, int64_t bytes, uint8_t* to) override { copy(host, bytes, to); }

  void gather_rows(const float* x, const int32_t* rows, int64_t count, int64_t n, float* y) override {
    for (int64_t i = 0; i < count; ++i) std::memcpy(y + i * n, x + rows[i] * n, static_cast<size_t>(n * 4));
  }

 private:
  struct Scratch {
    MatmulWorkspace matmul;
    AttentionWorkspace attention;
    Buffer row, tables;
    int64_t nbytes() const { return matmul.nbytes() + attention.nbytes() + row.size() + tables.size(); }
  };
  Scratch make_scratch(const StepLimits& limits) {
    return {MatmulWorkspace(context_, limits.max_tokens, limits.max_columns, limits.max_logit_rows, input_type_),
            AttentionWorkspace(context_, limits.num_heads, limits.head_dim, limits.max_model_len),
            Buffer(limits.max_columns * 4), Buffer(limits.max_tokens * limits.head_dim * 4)};
  }
  static Norm norm_of(const NormWeights& norm) {
    return {vector_of(norm.weight), vector_of(norm.bias), norm.eps, norm.centered};
  }
  void multiply(const Rows& x, const Weight& w, const Weight* bias, const MatmulOutput& output) {
    const Norm norm = x.norm ? norm_of(*x.norm) : Norm{};
    matmul(context_, scratch_.matmul, {x.x, x.T, w.columns(), x.norm ? &norm : nullptr, x.normed}, stack_of(w),
           vector_of(bias), output);
  }

  ThreadPool pool_;
  Context context_;
  InputType input_type_;
  Scratch scratch_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads, InputType input_type) {
  return std::make_unique<CpuBackend>(threads, input_type);
}

}  // namespace llmcore
