#include "decoder/decoder.h"

#include <algorithm>
#include <set>

#include "base/checked.h"

namespace llmcore {

Decoder::Decoder(DecoderSpec spec, std::shared_ptr<Backend> backend, Weights weights)
    : spec_(std::move(spec)), backend_(std::move(backend)), weights_(std::move(weights)) {
  check_spec(spec_);
  const DecoderSpec& s = spec_;
  const int64_t H = s.hidden_size, up_rows = s.gated_mlp ? 2 * s.intermediate_size : s.intermediate_size;
  embedding_ = matrix("embedding", s.vocab_size, H);
  if (s.learned_positions) position_embedding_ = matrix("position_embedding", s.max_position_embeddings, H);
  final_norm_ = norm("final_norm");
  lm_head_ = s.tie_word_embeddings ? embedding_ : matrix("lm_head", s.vocab_size, H);
  lm_head_bias_ = vector("lm_head_bias", s.vocab_size, false);
  if (!s.alibi_slopes.empty()) slopes_ = backend_->take_vector(s.alibi_slopes.data(), s.num_heads);
  for (int64_t i = 0; i < s.num_layers; ++i) {
    const std::string p = "layers." + std::to_string(i) + ".";
    const std::string up = p + (s.gated_mlp ? "gate_up" : "up");
    layers_.push_back({
        .attention_norm = norm(p + "attention_norm"),
        .attention_post_norm = s.post_norms ? norm(p + "attention_post_norm") : NormWeights{},
        .mlp_norm = norm(p + "mlp_norm"),
        .mlp_post_norm = s.post_norms ? norm(p + "mlp_post_norm") : NormWeights{},
        .qkv = matrix(p + "qkv", s.qkv_size(), H),
        .qkv_bias = vector(p + "qkv_bias", s.qkv_size(), false),
        .q_norm = s.qk_norm ? vector(p + "q_norm", s.head_dim, true) : nullptr,
        .k_norm = s.qk_norm ? vector(p + "k_norm", s.head_dim, true) : nullptr,
        .attention_output = matrix(p + "attention_output", H, s.attention_size()),
        .attention_output_bias = vector(p + "attention_output_bias", H, false),
        .up = matrix(up, up_rows, H),
        .up_bias = vector(up + "_bias", up_rows, false),
        .down = matrix(p + "down", H, s.intermediate_size),
        .down_bias = vector(p + "down_bias", H, false),
        .attention = {.window = s.layer_windows.empty() ? s.sliding_window : s.layer_windows[i],
                      .kept = s.kept_tokens,
                      .softcap = s.attention_softcap,
                      .slopes = slopes_.get(),
                      .sinks = s.attention_sinks ? vector(p + "attention_sinks", s.num_heads, true) : nullptr},
    });
  }
}

void Decoder::check_spec(const DecoderSpec& s) {
  const auto at_least_one = [](int64_t value, const char* name) {
    check_argument(value >= 1 && value < (int64_t{1} << 31),
                   std::string("decoder: ") + name + " must be within [1, 2^31), got " + std::to_string(value));
  };
  at_least_one(s.hidden_size, "hidden_size");
  at_least_one(s.num_layers, "num_layers");
  at_least_one(s.num_heads, "num_heads");
  at_least_one(s.num_kv_heads, "num_kv_heads");
  at_least_one(s.head_dim, "head_dim");
  check_argument(s.head_dim <= kMaxHeadDim, "decoder: head_dim must be at most " + std::to_string(kMaxHeadDim) +
                                                ", got " + std::to_string(s.head_dim));
  at_least_one(s.intermediate_size, "intermediate_size");
  at_least_one(s.vocab_size, "vocab_size");
  at_least_one(s.max_position_embeddings, "max_position_embeddings");
  check_argument(s.num_heads % s.num_kv_heads == 0, "decoder: num_heads must be a multiple of num_kv_heads");
  check_argument(static_cast<int64_t>(s.rope_inv_freq.size()) * 2 <= s.head_dim,
                 "decoder: RoPE turns more elements than a head has");
  check_argument(s.sliding_window >= 0, "decoder: sliding_window must not be negative");
  check_argument(s.layer_windows.empty() || static_cast<int64_t>(s.layer_windows.size()) == s.num_layers,
                 "decoder: layer_windows must have one entry a layer");
  for (const int64_t window : s.layer_windows) {
    check_argument(window >= 0, "decoder: layer_windows must not be negative");
  }
  check_argument(s.kept_tokens >= 0, "decoder: kept_tokens must not be negative");
  check_argument(s.attention_softcap >= 0, "decoder: attention_softcap must not be negative");
  check_argument(s.logit_softcap >= 0, "decoder: logit_softcap must not be negative");
  check_argument(s.alibi_slopes.empty() || static_cast<int64_t>(s.alibi_slopes.size()) == s.num_heads,
                 "decoder: alibi_slopes must have one entry a head");
}

const Weight* Decoder::matrix(const std::string& slot, int64_t rows, int64_t columns, bool required) const {
  const auto found = weights_.find(slot);
  if (found == weights_.end()) {
    check_argument(!required, "decoder: the weight '" + slot + "' is missing");
    return nullptr;
  }
  const Weight& w = *found->second;
  check_argument(w.rows() == rows && w.columns() == columns,
                 "decoder: '" + slot + "' must be [" + std::to_string(rows) + ", " + std::to_string(columns) +
                     "], got [" + std::to_string(w.rows()) + ", " + std::to_string(w.columns()) + "]");
  return &w;
}

const Weight* Decoder::vector(const std::string& slot, int64_t n, bool required) const {
  return matrix(slot, n, 1, required);
}

NormWeights Decoder::norm(const std::string& slot) const {
  return {vector(slot, spec_.hidden_size, true), vector(slot + "_bias", spec_.hidden_size, false), spec_.norm_eps,
          spec_.layer_norm};
}

int64_t Decoder::weight_bytes() const {
  std::set<const Weight*> seen;
  int64_t total = 0;
  for (const auto& [slot, weight] : weights_) {
    if (seen.insert(weight.get()).second) total += weight->nbytes();
  }
  return total;
}

int64_t Decoder::bytes_per_token() const {
  int64_t total = weight_bytes();
  // Of the embeddings a token reads one row, unless the head is tied to them.
  const auto only_a_row = [&](const Weight* table) {
    if (table && table != lm_head_) total -= table->nbytes() - table->nbytes() / table->rows();
  };
  only_a_row(embedding_);
  only_a_row(position_embedding_);
  return total;
}

KvLayout Decoder::kv_layout(KvType type, int64_t pages) const {
  return {type, spec_.num_kv_heads, spec_.head_dim, pages};
}

Decoder::Plan Decoder::make_plan(const DecoderSpec& s, int64_t max_tokens, int64_t max_logit_rows,
                                 int64_t max_model_len) {
  check_argument(max_tokens >= 1 && max_logit_rows >= 1 && max_model_len >= 1,
                 "decoder: a plan needs at least one token");
  Plan p{};
  p.max_tokens = max_tokens;
  p.max_logit_rows = max_logit_rows;
  p.max_model_len = max_model_len;
  const auto reserve = [&](int64_t rows, int64_t columns) {
    const int64_t at = p.floats;
    p.floats = checked_add(p.floats, round_up(checked_mul(rows, columns), 16));
    return at;
  };
  p.x = reserve(p.max_tokens, s.hidden_size);
  p.normed = reserve(p.max_tokens, s.hidden_size);
  p.qkv = reserve(p.max_tokens, s.qkv_size());
  p.attention = reserve(p.max_tokens, s.attention_size());
  p.activated = reserve(p.max_tokens, s.intermediate_size);
  p.head_rows = reserve(p.max_logit_rows, s.hidden_size);
  p.logits = reserve(p.max_logit_rows, s.vocab_size);
  p.limits = {.max_tokens = std::max(p.max_tokens, p.max_logit_rows),
              .max_logit_rows = p.max_logit_rows,
              .max_columns = std::max({s.hidden_size, s.attention_size(), s.intermediate_size}),
              .num_heads = s.num_heads,
              .head_dim = s.head_dim,
              .max_model_len = p.max_model_len};
  return p;
}

int64_t Decoder::planned_bytes(const DecoderSpec& spec, Backend& backend, int64_t max_tokens, int64_t max_logit_rows,
                               int64_t max_model_len) {
  check_spec(spec);
  const Plan p = make_plan(spec, max_tokens, max_logit_rows, max_model_len);
  return checked_add(checked_mul(p.floats, 4), backend.planned_bytes(p.limits));
}

bool Decoder::larger(int64_t max_tokens, int64_t max_logit_rows, int64_t max_model_len) const {
  return max_tokens > max_tokens_ || max_logit_rows > max_logit_rows_ || max_model_len > max_model_len_;
}

int64_t Decoder::planned_bytes(int64_t max_tokens, int64_t max_logit_rows, int64_t max_model_len) const {
  if (!larger(max_tokens, max_logit_rows, max_model_len)) return activation_bytes_;
  return planned_bytes(spec_, *backend_, std::max(max_tokens, max_tokens_), std::max(max_logit_rows, max_logit_rows_),
                       std::max(max_model_len, max_model_len_));
}

void Decoder::plan(int64_t max_tokens, int64_t max_logit_rows, int64_t max_model_len) {
  if (!larger(max_tokens, max_logit_rows, max_model_len)) return;
  const Plan p = make_plan(spec_, std::max(max_tokens, max_tokens_), std::max(max_logit_rows, max_logit_rows_),
                           std::max(max_model_len, max_model_len_));
  // What fails leaves the plan that there is.
  auto memory = backend_->allocate(checked_mul(p.floats, 4));
  activation_bytes_ = memory->size() + backend_->plan(p.limits);
  memory_ = std::move(memory);
  float* const base = memory_->floats();
  x_ = base + p.x;
  normed_ = base + p.normed;
  qkv_ = base + p.qkv;
  attention_ = base + p.attention;
  activated_ = base + p.activated;
  head_rows_ = base + p.head_rows;
  logits_ = base + p.logits;
  max_tokens_ = p.max_tokens;
  max_logit_rows_ = p.max_logit_rows;
  max_model_len_ = p.max_model_len;
}

void Decoder::probe(const char* name, int64_t layer, const float* data, int64_t rows, int64_t columns) {
  if (!probe_) return;
  const std::string full = layer < 0 ? name : "layers." + std::to_string(layer) + "." + name;
  probe_(full, backend_->read(data, rows * columns), rows, columns);
}

void Decoder::forward(const Batch& batch, KvCache& cache, const Poll& poll) {
  const int64_t T = batch.tokens, H = spec_.hidden_size;
  check_argument(T >= 1 && T <= max_tokens_,
                 "decoder: a step of " + std::to_string(T) + " tokens, planned for " + std::to_string(max_tokens_));
  backend_->embed(*embedding_, batch.ids, T, false, x_);
  if (spec_.embedding_scale != 1.0f) backend_->scale(x_, T * H, spec_.embedding_scale);
  probe("token_embeddings", -1, x_, T, H);
  if (position_embedding_) backend_->embed(*position_embedding_, batch.positions, T, true, x_);
  probe("embeddings", -1, x_, T, H);
  const int64_t half = static_cast<int64_t>(spec_.rope_inv_freq.size());
  if (half) {
    backend_->rope_tables(spec_.rope_inv_freq.data(), half, spec_.rope_attention_factor, batch.positions, T);
  }
  backend_->set_poll(&poll);
  const auto clear = [](Backend* backend) { backend->set_poll(nullptr); };
  const std::unique_ptr<Backend, decltype(clear)> cleared(backend_.get(), clear);
  for (int64_t i = 0; i < spec_.num_layers; ++i) {
    if (poll) poll();
    run_layer(i, batch, cache);
  }
  backend_->norm(x_, T, final_norm_, normed_);
  probe("final_norm", -1, normed_, T, H);
}

// x_ += x W^T + bias, normed first where there is a post-norm.
void Decoder::add_projection(const float* x, int64_t T, const Weight& w, const Weight* bias,
                             const NormWeights& post_norm) {
  if (!post_norm.weight) return backend_->linear_residual({x, T}, w, bias, x_);
  backend_->linear({x, T}, w, bias, normed_);
  backend_->norm(normed_, T, post_norm, normed_);
  backend_->add(normed_, T, spec_.hidden_size, x_);
}

void Decoder::run_layer(int64_t index, const Batch& batch, KvCache& cache) {
  const DecoderSpec& s = spec_;
  const Layer& w = layers_[index];
  const int64_t T = batch.tokens, H = s.hidden_size, half = static_cast<int64_t>(s.rope_inv_freq.size());
  const Rows attention_rows{x_, T, &w.attention_norm, normed_}, mlp_rows{x_, T, &w.mlp_norm, normed_};
  if (probe_) {
    backend_->norm(x_, T, w.attention_norm, normed_);
    probe("attention_norm", index, normed_, T, H);
  }
  backend_->linear(attention_rows, *w.qkv, w.qkv_bias, qkv_);
  probe("qkv", index, qkv_, T, s.qkv_size());
  backend_->prepare_qkv(qkv_, T, s.num_heads, w.q_norm, w.k_norm, s.norm_eps, half, s.rope_interleaved,
                        s.attention_scale, cache.layout(), cache.keys(index), cache.values(index), batch.slices);
  probe("rotated_qkv", index, qkv_, T, s.qkv_size());
  backend_->attend(qkv_, s.num_heads, cache.layout(), cache.keys(index), cache.values(index), batch.slices, w.attention,
                   attention_);
  probe("attention", index, attention_, T, s.attention_size());
  add_projection(attention_, T, *w.attention_output, w.attention_output_bias, w.attention_post_norm);
  probe("attention_residual", index, x_, T, H);

  if (probe_) {
    const int64_t up_rows = w.up->rows();
    backend_->norm(x_, T, w.mlp_norm, normed_);
    probe("mlp_norm", index, normed_, T, H);
    const std::unique_ptr<DeviceBuffer> up = backend_->allocate(checked_mul(T * up_rows, 4));
    backend_->linear(mlp_rows, *w.up, w.up_bias, up->floats());
    probe(s.gated_mlp ? "gate_up" : "up", index, up->floats(), T, up_rows);
  }
  backend_->linear_activated(mlp_rows, *w.up, w.up_bias, s.activation, s.gated_mlp, activated_);
  probe("activation", index, activated_, T, s.intermediate_size);
  add_projection(activated_, T, *w.down, w.down_bias, w.mlp_post_norm);
  probe("output", index, x_, T, H);
}

Rows Decoder::head_rows(const int32_t* rows, int64_t count) {
  check_argument(count >= 1 && count <= max_logit_rows_, "decoder: logits of " + std::to_string(count) +
                                                             " rows, planned for " + std::to_string(max_logit_rows_));
  backend_->gather_rows(normed_, rows, count, spec_.hidden_size, head_rows_);
  return {head_rows_, count};
}

const float* Decoder::logits(const int32_t* rows, int64_t count) {
  backend_->linear(head_rows(rows, count), *lm_head_, lm_head_bias_, logits_);
  if (spec_.logit_softcap > 0) backend_->softcap(logits_, count * spec_.vocab_size, spec_.logit_softcap);
  probe("logits", -1, logits_, count, spec_.vocab_size);
  return logits_;
}

void Decoder::largest_logits(const int32_t* rows, int64_t count, int64_t columns, LargestColumns* largest) {
  const Rows from = head_rows(rows, count);
  backend_->linear_largest(from, *lm_head_, lm_head_bias_, spec_.logit_softcap, columns, largest);
}

}  // namespace llmcore
