#pragma once
// Logits to token. Order: bias, masks and bad words, penalties, DRY, top_n_sigma, temperature (which may follow the
// entropy), then mirostat, or min_p, top_k, typical_p, top_p, XTC; draw, in the order of ids. vLLM's order for what
// vLLM has, the others beside what they are beside in llama.cpp. Log-probabilities are those of the model's own logits,
// before all of it. A sampler never sees a model.

#include <cstdint>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "base/buffer.h"
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
  float typical_p = 1.0f;           // 1: off
  float xtc_probability = 0.0f;     // 0: off
  float xtc_threshold = 0.1f;       // above 0.5: off
  float dynatemp_range = 0.0f;      // 0: off
  float dynatemp_exponent = 1.0f;
  int32_t mirostat = 0;  // 0: off; version 1 or 2
  float mirostat_tau = 5.0f;
  float mirostat_eta = 0.1f;
  float dry_multiplier = 0.0f;  // 0: off
  float dry_base = 1.75f;
  int32_t dry_allowed_length = 2;
  int32_t dry_penalty_last_n = -1;           // tokens looked at; -1: all
  std::vector<int32_t> dry_breakers;         // ids, sorted, that no repeated sequence goes across
  std::vector<std::vector<int32_t>> banned;  // sequences of ids that the output may not hold
  uint64_t seed = 0;
  int32_t logprobs = -1;  // alternatives to report beside the token; -1: no log-probabilities at all
  std::vector<std::pair<int32_t, float>> logit_bias;
  std::vector<int32_t> allowed;  // empty: all

  /// How many of the largest logits decide the token; 0: all of them do, or something else is asked about them.
  int32_t deciding() const {
    const bool plain = logprobs < 0 && top_n_sigma == 0.0f && repetition_penalty == 1.0f && presence_penalty == 0.0f &&
                       frequency_penalty == 0.0f && dry_multiplier == 0.0f && banned.empty() && logit_bias.empty() &&
                       allowed.empty();
    if (!plain) return 0;
    if (temperature == 0.0f) return 1;
    return dynatemp_range > 0.0f || mirostat != 0 ? 0 : top_k;
  }
};

/// What a sampler carries from one token of a sequence to the next.
struct SamplerState {
  std::optional<double> surprise;  // mirostat's bound, in bits
};

/// What the sampler knows of a sequence.
struct SamplerHistory {
  const int32_t* tokens = nullptr;  // prompt, then output
  int64_t prompt = 0;
  int64_t total = 0;
  uint64_t sequence = 0;            // of the request, for n > 1
  const int32_t* banned = nullptr;  // ids that may not come now (end of sequence before min_tokens)
  int64_t banned_count = 0;
  SamplerState* state = nullptr;  // null: the token is the first
};

/// A token that may come, and its logit.
struct Candidate {
  int32_t id;
  float logit;
};

struct SampledToken {
  int32_t id = 0;
  float logprob = 0;
  std::vector<std::pair<int32_t, float>> top;  // best first; ties by id
};

class Sampler {
 public:
  /// Ids from `drawable` on are padding of the vocabulary: they have logits, but never come. `history`: tokens of the
  /// longest sequence, for which room is made now.
  Sampler(const KernelTable& table, int64_t vocab, int64_t drawable, int64_t history = 0);
  /// logits: [vocab]; +infinity wins. Throws NumericError on NaN, or when nothing is left to draw.
  SampledToken sample(const float* logits, const SamplerParams& params, const SamplerHistory& history);
  /// The same token from the `params.deciding()` largest finite logits (fewer if there are no more, at least one), of
  /// equal ones those of the lowest ids, in any order.
  SampledToken sample(std::span<const Candidate> largest, const SamplerParams& params, const SamplerHistory& history);
  /// Log-probability of `id`, and of the `count` best.
  SampledToken logprobs(const float* logits, int32_t id, int32_t count);

 private:
  SampledToken sample_infinite(const float* logits, const SamplerParams& params) const;
  void penalise(const SamplerParams& params, const SamplerHistory& history);
  void restrict_to(const SamplerParams& params, const SamplerHistory& history);
  void penalise_repeats(const SamplerParams& params, const SamplerHistory& history);
  void keep_within_sigmas(float count);
  float temperature(const SamplerParams& params);
  void keep_front(int64_t count);
  void keep_top(int64_t count);
  void keep_typical(double mass);
  void keep_mass(const float* keys, bool largest_first, double mass);
  void exclude_top_choices(double share);
  int64_t draw(const SamplerParams& params, const SamplerHistory& history);
  int64_t draw_at(float temperature, const SamplerParams& params, const SamplerHistory& history);
  int64_t draw_from_all(double u);
  int64_t draw_mirostat(const SamplerParams& params, SamplerState* state, double u);
  int64_t mirostat_top_k(double bits);
  void best(const float* values, int64_t count);
  int64_t argmax(const float* values) const;
  int32_t id_at(int64_t place) const { return count_ < vocab_ ? ids_[place] : static_cast<int32_t>(place); }

  static constexpr int64_t kLeastBlock = 8, kSumBlock = 256;
  // Of numbers from 0 up by their first bits: eight of the exponent and four more.
  static constexpr int kBucketShift = 19, kBuckets = 1 << (31 - kBucketShift);

  const KernelTable& table_;
  int64_t vocab_, drawable_;
  int64_t count_;  // places of what may still come: all ids, or those of ids_, in their order
  ZeroArray<int32_t> ids_;
  ZeroArray<float> work_, weights_, keys_;  // by place: logits, their exponentials, and what these are sorted by
  ZeroArray<int32_t> order_;                // places, the best of them sorted in front
  ZeroArray<int32_t> counts_;               // per id, zero between calls
  std::vector<float> block_tops_, selected_;
  std::vector<double> block_sums_;
  std::vector<double> bucket_masses_;
  std::vector<int32_t> matches_;  // per token of the history
};

}  // namespace llmcore
