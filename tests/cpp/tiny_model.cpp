#include "tiny_model.h"

#include "quant/half.h"
#include "random.h"

namespace llmcore::test {
namespace {

DecoderSpec spec_of(const TinyModel& m) {
  const bool gpt2 = m.style == Style::kGpt2;
  DecoderSpec s;
  s.hidden_size = m.hidden_size;
  s.num_layers = m.num_layers;
  s.num_heads = 4;
  s.num_kv_heads = gpt2 ? 4 : 2;
  s.head_dim = m.head_dim;
  s.intermediate_size = 2 * m.hidden_size + 8;
  s.vocab_size = m.vocab_size;
  s.max_position_embeddings = m.max_model_len;
  s.layer_norm = gpt2;
  s.activation = gpt2 ? Activation::kGeluTanh : Activation::kSilu;
  s.gated_mlp = !gpt2;
  s.qk_norm = m.style == Style::kQwen3;
  s.learned_positions = gpt2;
  s.tie_word_embeddings = gpt2;
  s.attention_scale = 0.25f;
  s.sliding_window = m.style == Style::kMistral ? 21 : 0;
  if (m.style == Style::kGemma2) {
    s.post_norms = true;
    s.embedding_scale = 6.5f;
    s.attention_softcap = 2.0f;
    s.logit_softcap = 3.0f;
    for (int64_t i = 0; i < m.num_layers; ++i) s.layer_windows.push_back(i % 2 ? 0 : 19);
  }
  if (m.style == Style::kSinks) {
    s.attention_sinks = true;
    s.alibi_slopes = {0.5f, 0.25f, 0.125f, 0.0625f};
    s.sliding_window = 21;
    s.kept_tokens = 3;
    s.rope_interleaved = true;
  }
  float frequency = 1.0f;
  for (int64_t i = 0; !gpt2 && i < m.head_dim / 2; ++i, frequency *= 0.375f) s.rope_inv_freq.push_back(frequency);
  return s;
}

// Draws weights slot by slot; every slot has its own stream, so that a model's weights don't depend on the order.
class WeightMaker {
 public:
  WeightMaker(const TinyModel& model, Backend& backend) : model_(model), backend_(backend), pool_(1) {}

  void matrix(const std::string& slot, int64_t rows, int64_t columns, bool nudged = false) {
    std::vector<float> values = stream(slot).units(rows * columns, 0.25f);
    if (nudged) values[0] = bits_float(float_bits(values[0]) ^ (1u << 12));
    auto made = std::make_shared<Matrix>(model_.format, rows, columns, model_.group_size);
    made->set_rows(0, rows, values.data(), Element::kF32, false, pool_);
    weights_[slot] = backend_.take_matrix({made});
  }
  void vector(const std::string& slot, int64_t n, float centre) {
    std::vector<float> values = stream(slot).units(n, 0.25f);
    for (float& v : values) v += centre;
    weights_[slot] = backend_.take_vector(values.data(), n);
  }
  Weights take() { return std::move(weights_); }

 private:
  static Random stream(const std::string& slot) {
    uint64_t seed = 0;
    for (const char c : slot) seed = seed * 257 + static_cast<unsigned char>(c);
    return Random(seed);
  }

  const TinyModel& model_;
  Backend& backend_;
  ThreadPool pool_;
  Weights weights_;
};

Weights make_weights(const TinyModel& model, const DecoderSpec& s, Backend& backend) {
  WeightMaker make(model, backend);
  const int64_t H = s.hidden_size;
  const bool biased = s.layer_norm;
  const auto linear = [&](const std::string& slot, int64_t rows, int64_t columns, bool nudged = false) {
    make.matrix(slot, rows, columns, nudged);
    if (biased) make.vector(slot + "_bias", rows, 0.0f);
  };
  const auto norm = [&](const std::string& slot, int64_t n) {
    make.vector(slot, n, 1.0f);
    if (biased) make.vector(slot + "_bias", n, 0.0f);
  };
  make.matrix("embedding", s.vocab_size, H);
  if (s.learned_positions) make.matrix("position_embedding", s.max_position_embeddings, H);
  if (!s.tie_word_embeddings) make.matrix("lm_head", s.vocab_size, H);
  norm("final_norm", H);
  for (int64_t i = 0; i < s.num_layers; ++i) {
    const std::string p = "layers." + std::to_string(i) + ".";
    norm(p + "attention_norm", H);
    linear(p + "qkv", s.qkv_size(), H);
    if (s.post_norms) norm(p + "attention_post_norm", H);
    if (s.post_norms) norm(p + "mlp_post_norm", H);
    if (s.attention_sinks) make.vector(p + "attention_sinks", s.num_heads, 1.0f);
    if (s.qk_norm) make.vector(p + "q_norm", s.head_dim, 1.0f);
    if (s.qk_norm) make.vector(p + "k_norm", s.head_dim, 1.0f);
    linear(p + "attention_output", H, s.attention_size());
    norm(p + "mlp_norm", H);
    linear(p + (s.gated_mlp ? "gate_up" : "up"), s.gated_mlp ? 2 * s.intermediate_size : s.intermediate_size, H);
    linear(p + "down", H, s.intermediate_size, model.nudged && i + 1 == s.num_layers);
  }
  return make.take();
}

}  // namespace

std::shared_ptr<Decoder> make_decoder(const TinyModel& model) {
  std::shared_ptr<Backend> backend = make_cpu_backend(model.threads);
  DecoderSpec spec = spec_of(model);
  Weights weights = make_weights(model, spec, *backend);
  auto decoder = std::make_shared<Decoder>(std::move(spec), std::move(backend), std::move(weights));
  decoder->plan(model.max_tokens, model.max_logit_rows, model.max_model_len);
  return decoder;
}

std::vector<int32_t> random_ids(uint64_t seed, int64_t count, int64_t vocab) {
  Random random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(count));
  for (int32_t& id : ids) id = static_cast<int32_t>(random.integer(0, vocab - 1));
  return ids;
}

EngineLimits engine_limits(const TinyModel& model, int64_t pages, KvType kv_type) {
  EngineLimits limits;
  limits.max_model_len = model.max_model_len;
  limits.max_batch_size = model.max_logit_rows;
  limits.max_step_tokens = model.max_tokens;
  limits.pages = pages;
  limits.kv_type = kv_type;
  limits.drawable = model.vocab_size;
  return limits;
}

}  // namespace llmcore::test
