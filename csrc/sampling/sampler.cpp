#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>

#include "base/elementary.h"
#include "base/error.h"
#include "sampling/philox.h"

namespace llmcore {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();

}  // namespace

Sampler::Sampler(const KernelTable& table, int64_t vocab, int64_t drawable)
    : table_(table),
      vocab_(vocab),
      drawable_(std::min(vocab, drawable)),
      work_(vocab),
      weights_(vocab),
      order_(vocab),
      counts_(vocab) {}

int32_t Sampler::argmax(const float* logits) const {
  int32_t best = 0;
  for (int64_t i = 1; i < vocab_; ++i) {
    if (logits[i] > logits[best]) best = static_cast<int32_t>(i);
  }
  return best;
}

// Brings the ids of the `count` largest values to the front of order_, largest first, ties by id.
void Sampler::best(const float* values, int64_t count) {
  std::iota(order_.begin(), order_.end(), 0);
  const auto before = [values](int32_t a, int32_t b) { return values[a] != values[b] ? values[a] > values[b] : a < b; };
  if (count < vocab_) std::nth_element(order_.begin(), order_.begin() + count, order_.end(), before);
  std::sort(order_.begin(), order_.begin() + std::min(count, vocab_), before);
}

SampledToken Sampler::logprobs(const float* logits, int32_t id, int32_t count) {
  float maximum, sum;
  table_.softmax_statistics(logits, 1.0f, vocab_, &maximum, &sum);
  const double log_sum = exact_log(sum);
  const auto of = [&](int32_t i) { return static_cast<float>(static_cast<double>(logits[i]) - maximum - log_sum); };
  SampledToken out{id, of(id), {}};
  if (count > 0) {
    const int64_t n = std::min<int64_t>(count, vocab_);
    best(logits, n);
    for (int64_t i = 0; i < n; ++i) out.top.emplace_back(order_[i], of(order_[i]));
  }
  return out;
}

SampledToken Sampler::sample(const float* logits, const SamplerParams& params, const SamplerHistory& history) {
  float maximum, sum;
  table_.softmax_statistics(logits, 1.0f, vocab_, &maximum, &sum);
  std::copy(logits, logits + vocab_, work_.begin());
  restrict_to(params, history);
  if (!(sum > 0) || !std::isfinite(sum)) return sample_infinite(logits, params);
  penalise(params, history);
  const int32_t id = params.temperature == 0.0f ? argmax(work_.data()) : draw(params, history);
  if (work_[id] == kNever) throw NumericError("no token is left to draw: every id is masked");
  if (params.logprobs < 0) return {id, 0.0f, {}};
  return logprobs(logits, id, params.logprobs);
}

// Logits that no softmax takes: of the ids that may come, +infinity is certain, the lowest id first; NaN anywhere, or
// no +infinity that may come, is an error.
SampledToken Sampler::sample_infinite(const float* logits, const SamplerParams& params) const {
  const bool nan = std::any_of(logits, logits + vocab_, [](float x) { return std::isnan(x); });
  const int32_t id = argmax(work_.data());
  if (nan || work_[id] != -kNever) {
    throw NumericError(
        "the model's logits hold NaN or infinity, so no token can be drawn; its weights or their quantisation are "
        "broken");
  }
  SampledToken out{id, 0.0f, {}};
  if (params.logprobs > 0) out.top.emplace_back(id, 0.0f);
  return out;
}

void Sampler::restrict_to(const SamplerParams& params, const SamplerHistory& history) {
  if (!params.allowed.empty()) {
    std::fill(weights_.begin(), weights_.end(), kNever);
    for (const int32_t id : params.allowed) weights_[id] = work_[id];
    std::swap(weights_, work_);
  }
  std::fill(work_.begin() + drawable_, work_.end(), kNever);
  for (const auto& [id, bias] : params.logit_bias) work_[id] += bias;
  for (int64_t i = 0; i < history.banned_count; ++i) work_[history.banned[i]] = kNever;
}

void Sampler::penalise(const SamplerParams& params, const SamplerHistory& history) {
  if (params.repetition_penalty != 1.0f) {
    for (int64_t i = 0; i < history.total; ++i) {
      const int32_t id = history.tokens[i];
      if (counts_[id]++) continue;
      float& logit = work_[id];
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
    for (int64_t i = 0; i < history.total; ++i) counts_[history.tokens[i]] = 0;
  }
  if (params.presence_penalty != 0.0f || params.frequency_penalty != 0.0f) {
    for (int64_t i = history.prompt; i < history.total; ++i) {
      const int32_t id = history.tokens[i];
      work_[id] -= params.frequency_penalty + (counts_[id]++ ? 0.0f : params.presence_penalty);
    }
    for (int64_t i = history.prompt; i < history.total; ++i) counts_[history.tokens[i]] = 0;
  }
}

// Drops logits further below the largest than `count` standard deviations of those that may come.
void Sampler::keep_within_sigmas(float count) {
  const float maximum = *std::max_element(work_.begin(), work_.end());
  if (!std::isfinite(maximum)) return;
  double sum = 0.0, squares = 0.0;
  int64_t finite = 0;
  for (const float x : work_) {
    if (x == kNever) continue;
    sum += x;
    ++finite;
  }
  const double mean = sum / static_cast<double>(finite);
  for (const float x : work_) {
    if (x != kNever) squares += (x - mean) * (x - mean);
  }
  const double least = maximum - count * std::sqrt(squares / static_cast<double>(finite));
  for (float& x : work_) {
    if (x < least) x = kNever;
  }
}

int32_t Sampler::draw(const SamplerParams& params, const SamplerHistory& history) {
  const double u = philox_uniform(params.seed, static_cast<uint64_t>(history.total), history.sequence);
  if (params.top_n_sigma > 0.0f) keep_within_sigmas(params.top_n_sigma);
  const float inverse = 1.0f / params.temperature;
  if (std::isfinite(inverse)) {
    table_.scale(work_.data(), inverse, vocab_);
  }
  const float maximum = *std::max_element(work_.begin(), work_.end());
  if (!std::isfinite(inverse) || !std::isfinite(maximum)) return argmax(work_.data());
  for (int64_t i = 0; i < vocab_; ++i) weights_[i] = work_[i] - maximum;
  table_.exp(weights_.data(), weights_.data(), vocab_);
  if (params.min_p > 0.0f) {  // of the largest probability, whose weight is 1
    for (int64_t i = 0; i < vocab_; ++i) weights_[i] = weights_[i] < params.min_p ? 0.0f : weights_[i];
  }
  const bool top_k = params.top_k > 0 && params.top_k < vocab_;
  if (!top_k && params.top_p >= 1.0f) return draw_from_all(u);

  // Sorting a whole vocabulary is seldom needed: take the best few, and more only while they don't reach top_p.
  double total = 0.0;
  if (!top_k) {
    for (const float w : weights_) total += w;
  }
  int64_t count = top_k ? params.top_k : std::min<int64_t>(256, vocab_);
  int64_t kept = 0;
  for (;;) {
    best(weights_.data(), count);
    if (top_k) {
      total = 0.0;
      for (int64_t i = 0; i < count; ++i) total += weights_[order_[i]];
    }
    const double limit = params.top_p >= 1.0f ? total : total * params.top_p;
    double reached = 0.0;
    for (kept = 0; kept < count && weights_[order_[kept]] > 0.0f && (kept == 0 || reached < limit); ++kept) {
      reached += weights_[order_[kept]];
    }
    if (top_k || kept < count || count == vocab_) break;
    count = std::min(count * 8, vocab_);
  }
  double mass = 0.0;
  for (int64_t i = 0; i < kept; ++i) mass += weights_[order_[i]];
  const double target = u * mass;
  double reached = 0.0;
  for (int64_t i = 0; i < kept; ++i) {
    reached += weights_[order_[i]];
    if (reached > target) return order_[i];
  }
  return order_[kept - 1];
}

// Without a filter the cumulative distribution runs in the order of ids.
int32_t Sampler::draw_from_all(double u) const {
  double total = 0.0;
  for (const float w : weights_) total += w;
  const double target = u * total;
  double reached = 0.0;
  int32_t last = 0;
  for (int64_t i = 0; i < vocab_; ++i) {
    if (weights_[i] == 0.0f) continue;
    reached += weights_[i];
    last = static_cast<int32_t>(i);
    if (reached > target) break;
  }
  return last;
}

}  // namespace llmcore
