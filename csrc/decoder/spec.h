#pragma once
// A pre-norm transformer decoder as data: the native twin of DecoderSpec in python/llmcore/models/spec.py.

#include <cstdint>
#include <string>
#include <vector>

#include "ops/rows.h"

namespace llmcore {

struct DecoderSpec {
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  bool layer_norm = false;  // else RMSNorm
  float norm_eps = 1e-5f;
  Activation activation = Activation::kSilu;
  bool gated_mlp = true;
  bool qk_norm = false;
  std::vector<float> rope_inv_freq;  // empty: no RoPE
  float rope_attention_factor = 1.0f;
  bool rope_interleaved = false;  // pairs (2 i, 2 i + 1), else (i, i + half)
  float embedding_scale = 1.0f;   // of the token embeddings
  bool post_norms = false;        // a norm of what attention and MLP give, before it is added
  float logit_softcap = 0.0f;     // 0: none
  bool learned_positions = false;
  float attention_scale = 1.0f;
  int64_t sliding_window = 0;          // of all layers; 0: none
  std::vector<int64_t> layer_windows;  // of each layer, where they differ; else empty
  int64_t kept_tokens = 0;             // the first tokens, which no window hides
  float attention_softcap = 0.0f;      // 0: none
  std::vector<float> alibi_slopes;     // of each head; empty: no ALiBi
  bool attention_sinks = false;        // a learned logit a head, the slot attention_sinks
  bool tie_word_embeddings = false;

  int64_t qkv_size() const { return (num_heads + 2 * num_kv_heads) * head_dim; }
  int64_t attention_size() const { return num_heads * head_dim; }
};

}  // namespace llmcore
