#pragma once
// Executes a DecoderSpec on a backend: one decoder for every architecture (law 2).

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "decoder/spec.h"
#include "kvcache/kv_cache.h"

namespace llmcore {

/// Weights by slot name ("embedding", "layers.0.qkv", ...; python/llmcore/models/spec.py lists them).
using Weights = std::map<std::string, std::shared_ptr<Weight>>;

/// Tokens of one step, over all its sequences; host memory, valid during the call.
struct Batch {
  const int32_t* ids = nullptr;
  const int32_t* positions = nullptr;
  int64_t tokens = 0;
  Slices slices;
};

/// Sees an activation by name ("embeddings", "layers.0.attention_norm", ..., "logits"): float32 [rows, columns].
using Probe = std::function<void(const std::string& name, const float* data, int64_t rows, int64_t columns)>;

class Decoder {
 public:
  /// Checks every weight's shape against the spec. Throws ArgumentError, OutOfMemoryError.
  Decoder(DecoderSpec spec, std::shared_ptr<Backend> backend, Weights weights);

  const DecoderSpec& spec() const { return spec_; }
  Backend& backend() { return *backend_; }
  /// Allocates the activations of a step of at most max_tokens tokens and max_logit_rows rows of logits, or of what was
  /// planned before where that is more.
  void plan(int64_t max_tokens, int64_t max_logit_rows, int64_t max_model_len);
  int64_t max_tokens() const { return max_tokens_; }
  int64_t max_logit_rows() const { return max_logit_rows_; }
  int64_t activation_bytes() const { return activation_bytes_; }
  /// What they would be after plan().
  int64_t planned_bytes(int64_t max_tokens, int64_t max_logit_rows, int64_t max_model_len) const;
  /// The same of a decoder that isn't there yet.
  static int64_t planned_bytes(const DecoderSpec& spec, Backend& backend, int64_t max_tokens, int64_t max_logit_rows,
                               int64_t max_model_len);
  int64_t weight_bytes() const;
  /// Bytes of weights that one decoded token reads.
  int64_t bytes_per_token() const;
  KvLayout kv_layout(KvType type, int64_t pages) const;

  /// Runs the layers over a batch; keys and values go to `cache`.
  void forward(const Batch& batch, KvCache& cache, const Poll& poll);
  /// The last forward()'s rows [tokens, hidden] after the final norm, in the backend's memory.
  const float* hidden() const { return normed_; }
  /// Logits [count, vocab] of rows of the last forward(), in the backend's memory; count <= max_logit_rows.
  const float* logits(const int32_t* rows, int64_t count);

  /// Of each of those rows as many of the largest logits of the first `columns` as it wants; no logits are written.
  void largest_logits(const int32_t* rows, int64_t count, int64_t columns, LargestColumns* largest);

  void set_probe(Probe probe) { probe_ = std::move(probe); }

 private:
  struct Layer {
    NormWeights attention_norm, attention_post_norm, mlp_norm,
        mlp_post_norm;  // post: without weights where there is none
    const Weight *qkv, *qkv_bias, *q_norm, *k_norm, *attention_output, *attention_output_bias, *up, *up_bias, *down,
        *down_bias;
    LayerAttention attention;
  };
  // Where the activations lie, in floats, and what the backend plans for.
  struct Plan {
    int64_t max_tokens, max_logit_rows, max_model_len;
    int64_t x, normed, qkv, attention, activated, head_rows, logits, floats;
    StepLimits limits;
  };
  static Plan make_plan(const DecoderSpec& spec, int64_t max_tokens, int64_t max_logit_rows, int64_t max_model_len);
  bool larger(int64_t max_tokens, int64_t max_logit_rows, int64_t max_model_len) const;
  const Weight* matrix(const std::string& slot, int64_t rows, int64_t columns, bool required = true) const;
  const Weight* vector(const std::string& slot, int64_t n, bool required) const;
  static void check_spec(const DecoderSpec& s);
  NormWeights norm(const std::string& slot) const;
  void add_projection(const float* x, int64_t T, const Weight& w, const Weight* bias, const NormWeights& post_norm);
  Rows head_rows(const int32_t* rows, int64_t count);
  void run_layer(int64_t index, const Batch& batch, KvCache& cache);
  void probe(const char* name, int64_t layer, const float* data, int64_t rows, int64_t columns);

  DecoderSpec spec_;
  std::shared_ptr<Backend> backend_;
  Weights weights_;
  std::vector<Layer> layers_;
  std::shared_ptr<Weight> slopes_;
  const Weight *embedding_ = nullptr, *position_embedding_ = nullptr, *lm_head_ = nullptr, *lm_head_bias_ = nullptr;
  NormWeights final_norm_;
  int64_t max_tokens_ = 0, max_logit_rows_ = 0, max_model_len_ = 0, activation_bytes_ = 0;
  std::unique_ptr<DeviceBuffer> memory_;
  float *x_ = nullptr, *normed_ = nullptr, *qkv_ = nullptr, *attention_ = nullptr, *activated_ = nullptr,
        *head_rows_ = nullptr, *logits_ = nullptr;
  Probe probe_;
};

}  // namespace llmcore
