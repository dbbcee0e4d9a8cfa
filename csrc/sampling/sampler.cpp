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
constexpr double kLn2 = 0.693147180559945309417;

/// base^exponent by squaring, and no more than `limit`: the same on every system, which pow() isn't.
double power(double base, int64_t exponent, double limit) {
  double result = 1.0;
  for (; exponent > 0 && result < limit; exponent >>= 1) {
    if (exponent & 1) result *= base;
    base = std::min(base * base, limit);
  }
  return std::min(result, limit);
}

}  // namespace

Sampler::Sampler(const KernelTable& table, int64_t vocab, int64_t drawable, int64_t history)
    : table_(table),
      vocab_(vocab),
      drawable_(std::min(vocab, drawable)),
      work_(vocab),
      weights_(vocab),
      keys_(vocab),
      order_(vocab),
      counts_(vocab),
      matches_(history) {}

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
  if (params.dry_multiplier > 0.0f) penalise_repeats(params, history);
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
  const int32_t* end = history.tokens + history.total;
  for (const std::vector<int32_t>& word : params.banned) {
    const int64_t before = static_cast<int64_t>(word.size()) - 1;
    if (before <= history.total - history.prompt && std::equal(word.begin(), word.end() - 1, end - before)) {
      work_[word.back()] = kNever;
    }
  }
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

// DRY ("don't repeat yourself"; by p-e-w, 2024): a token that would make a sequence at the end, which the text has
// already had, longer still, loses multiplier * base^(length - allowed_length). Sequences don't go across breakers.
void Sampler::penalise_repeats(const SamplerParams& params, const SamplerHistory& history) {
  const auto breaks = [&](int32_t id) {
    return std::binary_search(params.dry_breakers.begin(), params.dry_breakers.end(), id);
  };
  const int64_t last_n = params.dry_penalty_last_n;
  const int64_t n = last_n < 0 ? history.total : std::min(last_n, history.total);
  const auto back = [end = history.tokens + history.total - 1](int64_t i) { return end[-i]; };  // from the last token
  int64_t unbroken = 0;
  while (unbroken < n && !breaks(back(unbroken))) ++unbroken;
  const int64_t allowed = params.dry_allowed_length;
  if (unbroken < allowed) return;
  if (static_cast<int64_t>(matches_.size()) < n) matches_.resize(n);
  // The Z function of the reversed text: how many tokens before and at -i equal those at the end.
  for (int64_t i = 1, left = 0, right = 0; i < n; ++i) {
    int64_t length = i < right ? std::min<int64_t>(right - i, matches_[i - left]) : 0;
    while (i + length < n && back(length) == back(i + length)) ++length;
    if (i + length > right) left = i, right = i + length;
    matches_[i] = static_cast<int32_t>(length);
    const int32_t next = back(i - 1);
    length = std::min(length, unbroken);
    if (length >= allowed && !breaks(next)) counts_[next] = std::max(counts_[next], static_cast<int32_t>(length));
  }
  for (int64_t i = 1; i < n; ++i) {
    int32_t& length = counts_[back(i - 1)];
    if (length == 0) continue;
    const double penalty = params.dry_multiplier * power(params.dry_base, length - allowed, 1e30);
    work_[back(i - 1)] -= static_cast<float>(std::min(penalty, 1e30));
    length = 0;
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

// The temperature, or one within `dynatemp_range` of it that grows with the entropy, as in llama.cpp.
float Sampler::temperature(const SamplerParams& params) {
  const float maximum = *std::max_element(work_.begin(), work_.end());
  if (params.dynatemp_range <= 0.0f || !std::isfinite(maximum)) return params.temperature;
  for (int64_t i = 0; i < vocab_; ++i) weights_[i] = work_[i] - maximum;
  table_.exp(weights_.data(), weights_.data(), vocab_);
  double total = 0.0, weighted = 0.0;
  int64_t candidates = 0;
  for (int64_t i = 0; i < vocab_; ++i) {
    if (work_[i] == kNever) continue;
    ++candidates;
    total += weights_[i];
    weighted += static_cast<double>(weights_[i]) * (work_[i] - maximum);
  }
  if (candidates < 2) return params.temperature;
  const double entropy = exact_log(total) - weighted / total;
  const double share = std::clamp(entropy / exact_log(static_cast<double>(candidates)), 0.0, 1.0);
  const double exponent = params.dynatemp_exponent;
  const double least = std::max(0.0f, params.temperature - params.dynatemp_range);
  const double most = static_cast<double>(params.temperature) + params.dynatemp_range;
  const double part = exponent == 0.0 ? 1.0 : share == 0.0 ? 0.0 : exact_exp(exponent * exact_log(share));
  return static_cast<float>(least + (most - least) * part);
}

// Sets the weights of all but the first `count` ids of order_ to 0.
void Sampler::keep_front(int64_t count) {
  std::fill(keys_.begin(), keys_.end(), 0.0f);
  for (int64_t i = 0; i < count; ++i) keys_[order_[i]] = weights_[order_[i]];
  std::swap(keys_, weights_);
}

// Locally typical sampling (Meister et al., 2023): keeps the tokens whose surprise is nearest to the entropy, as few as
// hold the mass.
void Sampler::keep_typical(double mass) {
  const float maximum = *std::max_element(work_.begin(), work_.end());
  double total = 0.0, weighted = 0.0;
  for (int64_t i = 0; i < vocab_; ++i) {
    if (weights_[i] <= 0.0f) continue;
    total += weights_[i];
    weighted += static_cast<double>(weights_[i]) * (work_[i] - maximum);
  }
  const double mean = weighted / total;  // entropy and surprise both less the logarithm of the total
  for (int64_t i = 0; i < vocab_; ++i) {
    keys_[i] = weights_[i] > 0.0f ? -std::fabs(static_cast<float>((work_[i] - maximum) - mean)) : kNever;
  }
  int64_t kept = 0;
  for (int64_t count = std::min<int64_t>(256, vocab_);; count = std::min(count * 8, vocab_)) {
    best(keys_.data(), count);
    double reached = 0.0;
    for (kept = 0; kept < count && weights_[order_[kept]] > 0.0f && (kept == 0 || reached < mass * total); ++kept) {
      reached += weights_[order_[kept]];
    }
    if (kept < count || count == vocab_) break;
  }
  keep_front(kept);
}

int32_t Sampler::draw(const SamplerParams& params, const SamplerHistory& history) {
  const uint64_t position = static_cast<uint64_t>(history.total);
  const double u = philox_uniform(params.seed, position, history.sequence);
  if (params.top_n_sigma > 0.0f) keep_within_sigmas(params.top_n_sigma);
  const float inverse = 1.0f / temperature(params);
  if (std::isfinite(inverse)) {
    table_.scale(work_.data(), inverse, vocab_);
  }
  const float maximum = *std::max_element(work_.begin(), work_.end());
  if (!std::isfinite(inverse) || !std::isfinite(maximum)) return argmax(work_.data());
  for (int64_t i = 0; i < vocab_; ++i) weights_[i] = work_[i] - maximum;
  table_.exp(weights_.data(), weights_.data(), vocab_);
  if (params.mirostat != 0) return draw_mirostat(params, history.state, u);
  if (params.min_p > 0.0f) {  // of the largest probability, whose weight is 1
    for (int64_t i = 0; i < vocab_; ++i) weights_[i] = weights_[i] < params.min_p ? 0.0f : weights_[i];
  }
  const bool top_k = params.top_k > 0 && params.top_k < vocab_;
  if (params.typical_p < 1.0f) {
    if (top_k) {
      best(weights_.data(), params.top_k);
      keep_front(params.top_k);
    }
    keep_typical(params.typical_p);
  }
  const bool xtc = params.xtc_probability > 0.0f && params.xtc_threshold <= 0.5f &&
                   philox_uniform(params.seed, position, history.sequence, 1) < params.xtc_probability;
  if (!top_k && !xtc && params.top_p >= 1.0f) return draw_from_all(u);

  int64_t kept = 0;
  if (!top_k && params.top_p >= 1.0f) {  // XTC alone: it needs no order
    for (int64_t i = 0; i < vocab_; ++i) {
      if (weights_[i] > 0.0f) order_[kept++] = static_cast<int32_t>(i);
    }
  } else {
    // Sorting a whole vocabulary is seldom needed: take the best few, and more only while they don't reach top_p.
    double total = 0.0;
    if (!top_k) {
      for (const float w : weights_) total += w;
    }
    int64_t count = top_k ? params.top_k : std::min<int64_t>(256, vocab_);
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
  }
  double mass = 0.0;
  for (int64_t i = 0; i < kept; ++i) mass += weights_[order_[i]];
  if (xtc) {
    // "Exclude top choices" (by p-e-w, 2024): of the tokens that reach the threshold only the least likely stays.
    const double threshold = params.xtc_threshold * mass;
    const auto reaches = [&](int32_t id) { return weights_[id] >= threshold; };
    int32_t least = -1;
    for (int64_t i = 0; i < kept; ++i) {
      const int32_t id = order_[i];
      if (reaches(id) &&
          (least < 0 || weights_[id] < weights_[least] || (weights_[id] == weights_[least] && id > least)))
        least = id;
    }
    const auto excluded = [&](int32_t id) { return id != least && reaches(id); };
    kept = std::remove_if(order_.begin(), order_.begin() + kept, excluded) - order_.begin();
    mass = 0.0;
    for (int64_t i = 0; i < kept; ++i) mass += weights_[order_[i]];
  }
  const double target = u * mass;
  double reached = 0.0;
  for (int64_t i = 0; i < kept; ++i) {
    reached += weights_[order_[i]];
    if (reached > target) return order_[i];
  }
  return order_[kept - 1];
}

// Mirostat (Basu et al., 2021), both versions with llama.cpp's constants: bounds the surprise of a token, in bits, and
// moves the bound so that the tokens' mean comes near tau.
int32_t Sampler::draw_mirostat(const SamplerParams& params, SamplerState* state, double u) {
  SamplerState fresh;
  std::optional<double>& bound = (state ? *state : fresh).surprise;
  const double bits = bound.value_or(2.0 * params.mirostat_tau);
  if (params.mirostat == 1) {
    const int64_t count = mirostat_top_k(bits);
    best(weights_.data(), count);
    keep_front(count);
  } else {
    double total = 0.0;
    for (const float w : weights_) total += w;
    const double least = total * exact_exp(-bits * kLn2);
    if (least > 1.0) {  // not even the best is within the bound: it alone stays
      order_[0] = argmax(work_.data());
      keep_front(1);
    } else {
      for (float& w : weights_) {
        if (w < least) w = 0.0f;
      }
    }
  }
  const int32_t id = draw_from_all(u);
  double mass = 0.0;
  for (const float w : weights_) mass += w;
  const double surprise = exact_log(mass / weights_[id]) / kLn2;
  bound = bits - params.mirostat_eta * (surprise - params.mirostat_tau);
  return id;
}

// How many of the best tokens keep the surprise within `bits`, if their probabilities follow Zipf's law, whose exponent
// is estimated from the best hundred.
int64_t Sampler::mirostat_top_k(double bits) {
  const int64_t count = std::min<int64_t>(100, vocab_);
  best(weights_.data(), count);
  double products = 0.0, squares = 0.0;
  for (int64_t i = 0; i + 1 < count && weights_[order_[i + 1]] > 0.0f; ++i) {
    const double t = exact_log(static_cast<double>(i + 2) / static_cast<double>(i + 1));
    products += t * exact_log(static_cast<double>(weights_[order_[i]]) / weights_[order_[i + 1]]);
    squares += t * t;
  }
  const double n = static_cast<double>(vocab_);
  const double exponent = squares > 0.0 ? products / squares : 0.0;
  if (exponent < 1e-6) return vocab_;
  const double epsilon = exponent - 1.0, two_to_bits = exact_exp(bits * kLn2);
  const double ratio = std::fabs(epsilon) < 1e-9 ? two_to_bits / exact_log(n)
                                                 : epsilon * two_to_bits / (1.0 - exact_exp(-epsilon * exact_log(n)));
  const double k = exact_exp(exact_log(ratio) / exponent);
  return k < n ? std::max<int64_t>(1, static_cast<int64_t>(k)) : vocab_;  // a k that isn't a number keeps all
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
