#include "cpp/tiny_decoder.h"

#include <map>
#include <string>
#include <utility>

#include "cpp/check.h"
#include "engine/engine.h"
#include "engine/forward.h"

namespace llmcore::test {
namespace {

DecoderSpec tiny_spec() {
  DecoderSpec spec;
  spec.hidden_size = 96;
  spec.num_layers = 2;
  spec.num_heads = 6;
  spec.num_kv_heads = 3;
  spec.head_dim = 20;
  spec.intermediate_size = 136;
  spec.vocab_size = kTinyVocab;
  spec.max_position_embeddings = kTinyContext;
  spec.qk_norm = true;
  // Powers of two and their thirds: the same on every machine without a libm.
  for (int i = 0; i < 10; ++i)
    spec.rope_inv_freq.push_back(1.0f / static_cast<float>((i % 2 ? 3 : 1) * (1 << (i / 2))));
  spec.attention_scale = 0.25f;
  return spec;
}

class Builder {
 public:
  Builder(Format format, int64_t group_size, int threads)
      : format_(format), group_size_(group_size), backend_(make_cpu_backend(threads)), pool_(1), numbers_(1) {}

  void matrix(const std::string& slot, int64_t N, int64_t K) {
    auto packed = std::make_shared<Matrix>(format_, N, K, group_size_);
    const std::vector<float> values = numbers_.take(N * K, 0.25f);
    packed->set_rows(0, N, values.data(), Element::kF32, false, pool_);
    weights_.emplace(slot, backend_->take_matrix(std::move(packed)));
  }
  void norm(const std::string& slot, int64_t n) {
    std::vector<float> values = numbers_.take(n, 0.125f);
    for (float& v : values) v += 1.0f;
    weights_.emplace(slot, backend_->take_vector(values.data(), n));
  }
  std::shared_ptr<Decoder> finish(DecoderSpec spec) {
    auto decoder = std::make_shared<Decoder>(std::move(spec), std::move(backend_), std::move(weights_));
    decoder->plan(64, 16, kTinyContext);
    return decoder;
  }

 private:
  Format format_;
  int64_t group_size_;
  std::shared_ptr<Backend> backend_;
  ThreadPool pool_;
  Numbers numbers_;
  Weights weights_;
};

}  // namespace

std::shared_ptr<Decoder> tiny_decoder(Format format, int64_t group_size, int threads) {
  const DecoderSpec spec = tiny_spec();
  Builder builder(format, group_size, threads);
  builder.matrix("embedding", spec.vocab_size, spec.hidden_size);
  for (int64_t i = 0; i < spec.num_layers; ++i) {
    const std::string layer = "layers." + std::to_string(i) + ".";
    builder.norm(layer + "attention_norm", spec.hidden_size);
    builder.matrix(layer + "qkv", spec.qkv_size(), spec.hidden_size);
    builder.norm(layer + "q_norm", spec.head_dim);
    builder.norm(layer + "k_norm", spec.head_dim);
    builder.matrix(layer + "attention_output", spec.hidden_size, spec.attention_size());
    builder.norm(layer + "mlp_norm", spec.hidden_size);
    builder.matrix(layer + "gate_up", 2 * spec.intermediate_size, spec.hidden_size);
    builder.matrix(layer + "down", spec.hidden_size, spec.intermediate_size);
  }
  builder.norm("final_norm", spec.hidden_size);
  builder.matrix("lm_head", spec.vocab_size, spec.hidden_size);
  return builder.finish(spec);
}

std::vector<int32_t> tiny_prompt(int64_t tokens, uint64_t seed) {
  Numbers numbers(seed);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens; ++i) ids.push_back(static_cast<int32_t>((numbers.next() + 1.0f) * (kTinyVocab / 2)));
  return ids;
}

std::vector<std::vector<float>> tiny_logits(Decoder& decoder, KvType kv_type,
                                            const std::vector<std::vector<int32_t>>& sequences, int64_t chunk) {
  std::vector<std::vector<float>> logits;
  std::vector<ForwardSequence> work;
  for (const auto& ids : sequences) logits.emplace_back(ids.size() * kTinyVocab);
  for (size_t i = 0; i < sequences.size(); ++i) {
    work.push_back({sequences[i].data(), static_cast<int64_t>(sequences[i].size()), logits[i].data()});
  }
  forward(decoder, kv_type, work, chunk, nullptr);
  return logits;
}

std::vector<Generated> tiny_generate(const std::shared_ptr<Decoder>& decoder,
                                     const std::vector<std::vector<int32_t>>& prompts, int64_t tokens, int64_t pages) {
  EngineLimits limits;
  limits.max_model_len = kTinyContext;
  limits.max_batch_size = 8;
  limits.max_step_tokens = 16;
  limits.pages = pages;
  limits.drawable = kTinyVocab;
  Engine engine(decoder, limits);
  std::map<int64_t, size_t> index;
  for (const auto& prompt : prompts) {
    Request request;
    request.prompt = prompt;
    request.max_tokens = tokens;
    request.sampling.temperature = 0.8f;
    request.sampling.top_p = 0.95f;
    request.sampling.seed = 7;
    request.sampling.logprobs = 0;
    const size_t position = index.size();
    index[engine.submit(std::move(request))] = position;
  }
  std::vector<Generated> results(prompts.size());
  while (!engine.idle()) {
    for (const Output& output : engine.step(nullptr)) {
      Generated& result = results[index.at(output.request)];
      CHECK_SAID(output.error.empty(), output.error);
      result.ids.push_back(output.token.id);
      result.logprobs.push_back(output.token.logprob);
    }
  }
  CHECK(engine.stats().pages_free == engine.stats().pages_total);
  return results;
}

uint64_t digest_of_everything() {
  Digest digest;
  const std::pair<Format, int64_t> formats[] = {{Format::kF32, 0},    {Format::kBF16, 0},  {Format::kF16, 0},
                                                {Format::kInt8, 0},   {Format::kInt8, 32}, {Format::kInt4, 64},
                                                {Format::kTernary, 0}};
  for (const auto& [format, group_size] : formats) {
    const auto decoder = tiny_decoder(format, group_size, 2);
    for (const KvType kv_type : {kKvF32, kKvF16, kKvBF16}) {
      for (const auto& logits : tiny_logits(*decoder, kv_type, {tiny_prompt(41, 2), tiny_prompt(7, 3)}, 0)) {
        digest.add(logits);
      }
    }
    for (const Generated& g : tiny_generate(decoder, {tiny_prompt(19, 4), tiny_prompt(3, 5)}, 12, 64)) {
      digest.add(g.ids);
      digest.add(g.logprobs);
    }
  }
  return digest.value();
}

}  // namespace llmcore::test
