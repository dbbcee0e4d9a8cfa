#include "sampling/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <string>

#include "base/checked.h"
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

constexpr int64_t kLanes = 8;  // running values, so that a loop is not one chain of operations

/// The largest of n values, NaN left out; -infinity of none.
float largest(const float* x, int64_t n) {
  float top[kLanes];
  std::fill(top, top + kLanes, kNever);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) top[j] = x[i + j] > top[j] ? x[i + j] : top[j];
  }
  for (; i < n; ++i) top[0] = x[i] > top[0] ? x[i] : top[0];
  return *std::max_element(top, top + kLanes);
}

/// Whether one of n values is no number.
bool any_nan(const float* x, int64_t n) {
  uint32_t found[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) found[j] |= x[i + j] != x[i + j];
  }
  for (; i < n; ++i) found[0] |= x[i] != x[i];
  return std::any_of(found, found + kLanes, [](uint32_t lane) { return lane != 0; });
}

/// Their sum, in an order of its own.
double sum_of(const float* x, int64_t n) {
  double sums[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) sums[j] += x[i + j];
  }
  for (; i < n; ++i) sums[0] += x[i];
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

}  // namespace

Sampler::Sampler(const KernelTable& table, int64_t vocab, int64_t drawable, int64_t history)
    : table_(table),
      vocab_(vocab),
      drawable_(std::min(vocab, drawable)),
      count_(vocab),
      ids_(vocab),
      work_(vocab),
      weights_(vocab),
      keys_(vocab),
      order_(vocab),
      counts_(vocab),
      block_tops_(ceil_div(vocab, kLeastBlock)),
      selected_(block_tops_.size()),
      block_sums_(ceil_div(vocab, kSumBlock)),
      bucket_masses_(kBuckets),
      matches_(history) {}

int64_t Sampler::argmax(const float* values) const {
  const float top = largest(values, count_);
  const int64_t i = std::find(values, values + count_, top) - values;
  return i < count_ ? i : 0;
}

// Brings the places of the `count` largest values to the front of order_, largest first, ties by place.
// Few are sought among those alone that reach the count-th largest of the maxima of blocks of places.
void Sampler::best(const float* values, int64_t count) {
  count = std::min(count, count_);
  if (count < 1) return;
  int64_t block = 512;
  while (block > kLeastBlock && ceil_div(count_, block) < 4 * count) block /= 2;
  const int64_t blocks = ceil_div(count_, block);
  int64_t found = 0;
  if (blocks < 2 * count) {
    std::iota(order_.begin(), order_.end(), 0);
    found = count_;
  } else {
    const auto size_of = [&](int64_t b) { return std::min(block, count_ - b * block); };
    for (int64_t b = 0; b < blocks; ++b) block_tops_[b] = largest(values + b * block, size_of(b));
    const auto tops = std::copy_n(block_tops_.begin(), blocks, selected_.begin());
    std::nth_element(selected_.begin(), selected_.begin() + (count - 1), tops, std::greater<float>());
    const float least = selected_[count - 1];
    for (int64_t b = 0; b < blocks; ++b) {
      if (!(block_tops_[b] >= least)) continue;
      for (int64_t i = b * block; i < b * block + size_of(b); ++i) {
        order_[found] = static_cast<int32_t>(i);
        found += values[i] >= least;
      }
    }
  }
  const auto before = [values](int32_t a, int32_t b) { return values[a] != values[b] ? values[a] > values[b] : a < b; };
  const auto end = order_.begin() + found;
  if (count < found) std::nth_element(order_.begin(), order_.begin() + count, end, before);
  std::sort(order_.begin(), order_.begin() + count, before);
}

SampledToken Sampler::logprobs(const float* logits, int32_t id, int32_t count) {
  count_ = vocab_;
  float maximum, sum;
  table_.softmax_statistics(logits, 1.0f, vocab_, &maximum, &sum);
  const double log_sum = exact_log(sum);
  const auto of = [&](int32_t i) { return static_cast<float>(static_cast<double>(logits[i]) - maximum - log_sum); };
  SampledToken out{id, of(id), {}};
  if (count > 0) {
    const int64_t n = std::min<int64_t>(count, drawable_);
    count_ = drawable_;
    best(logits, n);
    for (int64_t i = 0; i < n; ++i) out.top.emplace_back(order_[i], of(order_[i]));
  }
  return out;
}

SampledToken Sampler::sample(const float* logits, const SamplerParams& params, const SamplerHistory& history) {
  count_ = vocab_;
  const bool finite = std::isfinite(largest(logits, vocab_)) && !any_nan(logits, vocab_);
  std::copy(logits, logits + vocab_, work_.begin());
  restrict_to(params, history);
  if (!finite) return sample_infinite(logits, params);
  penalise(params, history);
  if (params.dry_multiplier > 0.0f) penalise_repeats(params, history);
  const int64_t place = params.temperature == 0.0f ? argmax(work_.data()) : draw(params, history);
  if (work_[place] == kNever) throw NumericError("no token is left to draw: every id is masked");
  const int32_t id = id_at(place);
  if (params.logprobs < 0) return {id, 0.0f, {}};
  return logprobs(logits, id, params.logprobs);
}

SampledToken Sampler::sample(std::span<const Candidate> candidates, const SamplerParams& params,
                             const SamplerHistory& history) {
  count_ = static_cast<int64_t>(candidates.size());
  std::iota(order_.begin(), order_.begin() + count_, 0);
  std::sort(order_.begin(), order_.begin() + count_,
            [&](int32_t a, int32_t b) { return candidates[a].id < candidates[b].id; });
  for (int64_t i = 0; i < count_; ++i) {
    ids_[i] = candidates[order_[i]].id;
    work_[i] = candidates[order_[i]].logit;
  }
  const int64_t place =
      params.temperature == 0.0f ? argmax(work_.data()) : draw_at(params.temperature, params, history);
  return {id_at(place), 0.0f, {}};
}

// Logits that no softmax takes: of the ids that may come, +infinity is certain, the lowest id first; NaN anywhere, or
// no +infinity that may come, is an error.
SampledToken Sampler::sample_infinite(const float* logits, const SamplerParams& params) const {
  const auto id = static_cast<int32_t>(argmax(work_.data()));
  if (any_nan(logits, vocab_) || work_[id] != -kNever) {
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
  const float maximum = largest(work_.data(), vocab_);
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
  if (params.dynatemp_range <= 0.0f) return params.temperature;
  const float maximum = largest(work_.data(), vocab_);
  if (!std::isfinite(maximum)) return params.temperature;
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

// Sets the weights of all but the first `count` places of order_ to 0.
void Sampler::keep_front(int64_t count) {
  std::fill(keys_.begin(), keys_.end(), 0.0f);
  for (int64_t i = 0; i < count; ++i) keys_[order_[i]] = weights_[order_[i]];
  std::swap(keys_, weights_);
}

// Only the places of the `count` largest logits stay, or of one if all are -infinity.
void Sampler::keep_top(int64_t count) {
  best(work_.data(), count);
  while (count > 1 && work_[order_[count - 1]] == kNever) --count;
  std::sort(order_.begin(), order_.begin() + count);
  for (int64_t i = 0; i < count; ++i) {  // the logits come from further behind
    ids_[i] = order_[i];
    work_[i] = work_[order_[i]];
  }
  count_ = count;
}

// Locally typical sampling (Meister et al., 2023): keeps the tokens whose surprise is nearest to the entropy, as few as
// hold the mass.
void Sampler::keep_typical(double mass) {
  const float maximum = largest(work_.data(), count_);
  double total = 0.0, weighted = 0.0;
  for (int64_t i = 0; i < count_; ++i) {
    if (weights_[i] <= 0.0f) continue;
    total += weights_[i];
    weighted += static_cast<double>(weights_[i]) * (work_[i] - maximum);
  }
  const double mean = weighted / total;  // entropy and surprise both less the logarithm of the total
  for (int64_t i = 0; i < count_; ++i) {
    keys_[i] = weights_[i] > 0.0f ? std::fabs(static_cast<float>((work_[i] - maximum) - mean)) : -kNever;
  }
  keep_mass(keys_.data(), false, mass * total);
}

// Keeps the weights in the order of their keys (0 and up, to 1 with the largest first; ties by place) until they reach
// `mass`, at least one, and sets the others to 0. The keys may be the weights. They fall into buckets by their first
// bits, so that those alone are sorted where the mass is reached.
void Sampler::keep_mass(const float* keys, bool largest_first, double mass) {
  constexpr int32_t kOne = static_cast<int32_t>(std::bit_cast<uint32_t>(1.0f) >> kBucketShift);
  const auto bucket_of = [=](int64_t i) {
    const int32_t bucket = static_cast<int32_t>(std::bit_cast<uint32_t>(keys[i]) >> kBucketShift);
    return largest_first ? kOne - bucket : bucket;
  };
  const int32_t buckets = largest_first ? kOne + 1 : kBuckets;
  std::fill(bucket_masses_.begin(), bucket_masses_.begin() + buckets, 0.0);
  for (int64_t i = 0; i < count_; ++i) bucket_masses_[bucket_of(i)] += weights_[i];
  double reached = 0.0;
  int32_t cut = 0;
  while (cut < buckets && (bucket_masses_[cut] == 0.0 || reached + bucket_masses_[cut] < mass)) {
    reached += bucket_masses_[cut++];
  }
  int64_t members = 0;
  for (int64_t i = 0; i < count_; ++i) {
    const int32_t bucket = bucket_of(i);
    order_[members] = static_cast<int32_t>(i);
    members += bucket == cut && weights_[i] > 0.0f;
    weights_[i] = bucket > cut ? 0.0f : weights_[i];
  }
  const auto before = [=](int32_t a, int32_t b) {
    return keys[a] == keys[b] ? a < b : largest_first == (keys[a] > keys[b]);
  };
  std::sort(order_.begin(), order_.begin() + members, before);
  int64_t kept = 0;
  while (kept < members && (reached < mass || (kept == 0 && reached == 0.0))) reached += weights_[order_[kept++]];
  for (; kept < members; ++kept) weights_[order_[kept]] = 0.0f;
}

int64_t Sampler::draw(const SamplerParams& params, const SamplerHistory& history) {
  if (params.top_n_sigma > 0.0f) keep_within_sigmas(params.top_n_sigma);
  const float heat = temperature(params);
  if (params.top_k > 0 && params.top_k < vocab_ && params.mirostat == 0) keep_top(params.top_k);
  return draw_at(heat, params, history);
}

int64_t Sampler::draw_at(float temperature, const SamplerParams& params, const SamplerHistory& history) {
  const uint64_t position = static_cast<uint64_t>(history.total);
  const double u = philox_uniform(params.seed, position, history.sequence);
  const float inverse = 1.0f / temperature;
  if (std::isfinite(inverse)) table_.scale(work_.data(), inverse, count_);
  const float maximum = largest(work_.data(), count_);
  if (!std::isfinite(inverse) || !std::isfinite(maximum)) return argmax(work_.data());
  for (int64_t i = 0; i < count_; ++i) weights_[i] = work_[i] - maximum;
  table_.exp(weights_.data(), weights_.data(), count_);
  if (params.mirostat != 0) return draw_mirostat(params, history.state, u);
  if (params.min_p > 0.0f) {  // of the largest probability, whose weight is 1
    for (int64_t i = 0; i < count_; ++i) weights_[i] = weights_[i] < params.min_p ? 0.0f : weights_[i];
  }
  if (params.typical_p < 1.0f) keep_typical(params.typical_p);
  if (params.top_p < 1.0f) keep_mass(weights_.data(), true, sum_of(weights_.data(), count_) * params.top_p);
  const bool xtc = params.xtc_probability > 0.0f && params.xtc_threshold <= 0.5f &&
                   philox_uniform(params.seed, position, history.sequence, 1) < params.xtc_probability;
  if (xtc) exclude_top_choices(params.xtc_threshold);
  return draw_from_all(u);
}

// "Exclude top choices" (by p-e-w, 2024): of the tokens that reach the threshold only the least likely stays.
void Sampler::exclude_top_choices(double share) {
  const double threshold = share * sum_of(weights_.data(), count_);
  const auto reaches = [&](int64_t i) { return weights_[i] > 0.0f && weights_[i] >= threshold; };
  int64_t least = -1;
  for (int64_t i = 0; i < count_; ++i) {
    if (reaches(i) && (least < 0 || weights_[i] <= weights_[least])) least = i;
  }
  for (int64_t i = 0; i < count_; ++i) {
    if (i != least && reaches(i)) weights_[i] = 0.0f;
  }
}

// Mirostat (Basu et al., 2021), both versions with llama.cpp's constants: bounds the surprise of a token, in bits, and
// moves the bound so that the tokens' mean comes near tau.
int64_t Sampler::draw_mirostat(const SamplerParams& params, SamplerState* state, double u) {
  SamplerState fresh;
  std::optional<double>& bound = (state ? *state : fresh).surprise;
  const double bits = bound.value_or(2.0 * params.mirostat_tau);
  if (params.mirostat == 1) {
    const int64_t count = mirostat_top_k(bits);
    best(weights_.data(), count);
    keep_front(count);
  } else {
    const double least = sum_of(weights_.data(), vocab_) * exact_exp(-bits * kLn2);
    if (least > 1.0) {  // not even the best is within the bound: it alone stays
      order_[0] = static_cast<int32_t>(argmax(work_.data()));
      keep_front(1);
    } else {
      for (float& w : weights_) {
        if (w < least) w = 0.0f;
      }
    }
  }
  const int64_t place = draw_from_all(u);
  const double surprise = exact_log(sum_of(weights_.data(), vocab_) / weights_[place]) / kLn2;
  bound = bits - params.mirostat_eta * (surprise - params.mirostat_tau);
  return place;
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

// The cumulative distribution runs in the order of ids.
int64_t Sampler::draw_from_all(double u) {
  const int64_t blocks = ceil_div(count_, kSumBlock);
  const auto size_of = [&](int64_t b) { return std::min(kSumBlock, count_ - b * kSumBlock); };
  double total = 0.0;
  for (int64_t b = 0; b < blocks; ++b) total += block_sums_[b] = sum_of(weights_.data() + b * kSumBlock, size_of(b));
  const double target = u * total;
  // The block where the sum goes past the target, or the last that has a weight.
  double reached = 0.0, after = 0.0;
  int64_t block = 0;
  for (int64_t b = 0; b < blocks && !(after > target); ++b) {
    if (block_sums_[b] == 0.0) continue;
    block = b;
    reached = after;
    after += block_sums_[b];
  }
  int64_t last = 0;
  for (int64_t i = block * kSumBlock; i < block * kSumBlock + size_of(block) && !(reached > target); ++i) {
    if (weights_[i] == 0.0f) continue;
    reached += weights_[i];
    last = i;
  }
  return last;
}

}  // namespace llmcore
