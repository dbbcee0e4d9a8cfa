#pragma once
// Logits to token. Order: bias and masks, penalties, top_n_sigma (there as in llama.cpp), temperature, min_p, top_k,
// top_p, draw (as vLLM).
// Log-probabilities are those of the model's own logits, before all of it. A sampler never sees a model.

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/table.h"

namespace llmcore {

struct SamplerParams {
  float temperature = 1.0f;  // 0: greedy
  float top_p = 1.0f;
  int32_t top_k = 0;  // 0: off
  float min_p = 0.0f;
  float top_n_sigma = 0.0f;         // 0: off
  float repetition_penalty = 1.0f;  // over prompt and output
  float presence_penalty = 0.0f;    // over output
  float frequency_penalty = 0.0f;   // over output
  uint64_t seed = 0;
  int32_t logprobs = -1;  // alternatives to report beside the token; -1: no log-probabilities at all
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> allowed;  // empty: all
};

/// What the sampler knows of a sequence.
struct SamplerHistory {
  const int32_t* tokens = nullptr;  // prompt, then output
  int64_t prompt = 0;
  int64_t total = 0;
  uint64_t sequence = 0;            // of the request, for n > 1
  const int32_t* banned = nullptr;  // ids that may not come now (end of sequence before min_tokens)
  int64_t banned_count = 0;
};

struct SampledToken {
  int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;  // best first; ties by id
};

class Sampler {
 public:
  /// Ids from `drawable` on are padding of the vocabulary: they have logits, but never come.
  Sampler(const KernelTable& table, int64_t vocab, int64_t drawable);
  /// logits: [vocab]; +infinity wins. Throws NumericError on NaN, or when nothing is left to draw.
  SampledToken sample(const float* logits, const SamplerParams& params, const SamplerHistory& history);
  /// Log-probability of `id`, and of the `count` best.
  SampledToken logprobs(const float* logits, int32_t id, int32_t count);

 private:
  SampledToken sample_infinite(const float* logits, const SamplerParams& params) const;
  void penalise(const SamplerParams& params, const SamplerHistory& history);
  void restrict_to(const SamplerParams& params, const SamplerHistory& history);
  void keep_within_sigmas(float count);
  int32_t draw(const SamplerParams& params, const SamplerHistory& history);
  int32_t draw_from_all(double u) const;
  void best(const float* values, int64_t count);
  int32_t argmax(const float* logits) const;

  const KernelTable& table_;
  int64_t vocab_, drawable_;
  std::vector<float> work_;
  std::vector<float> weights_;
  std::vector<int32_t> order_;   // ids, the best of them sorted in front
  std::vector<int32_t> counts_;  // per id, zero between calls
};

}  // namespace llmcore
