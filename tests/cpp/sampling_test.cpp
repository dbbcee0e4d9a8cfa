#include "sampling/sampler.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "check.h"
#include "kernels/select.h"
#include "random.h"
#include "sampling/philox.h"

using namespace llmcore;
using namespace llmcore::test;

namespace {

constexpr int64_t kVocab = 300;

SampledToken draw(Sampler& sampler, const std::vector<float>& logits, const SamplerParams& params, int64_t position) {
  const std::vector<int32_t> tokens(static_cast<size_t>(position), 1);
  return sampler.sample(logits.data(), params, {tokens.data(), 1, position, 0, nullptr, 0, nullptr});
}

SamplerParams seeded(uint64_t seed) {
  SamplerParams params;
  params.seed = seed;
  return params;
}

std::array<uint32_t, 4> words(uint32_t a, uint32_t b, uint32_t c, uint32_t d) { return {a, b, c, d}; }

}  // namespace

// The known answers that Random123 publishes for philox4x32-10 (tests/kat_vectors).
TEST(sampling, philox_gives_the_published_numbers) {
  CHECK(philox(0, 0, 0) == words(0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8));
  const uint64_t ones = ~uint64_t{0};
  CHECK(philox(ones, ones, ones) == words(0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd));
  CHECK(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, 0x0370734413198a2e) ==
        words(0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1));
}

TEST(sampling, uniform_numbers_fill_their_range_evenly) {
  constexpr int kDraws = 40'000, kBins = 20;
  int counts[kBins] = {};
  for (uint64_t i = 0; i < kDraws; ++i) {
    const double u = philox_uniform(3, i, 0);
    CHECK(u >= 0.0 && u < 1.0);
    ++counts[static_cast<int>(u * kBins)];
  }
  double chi2 = 0;
  for (const int count : counts) chi2 += std::pow(count - kDraws / kBins, 2) / (kDraws / kBins);
  CHECK(chi2 < 50);  // 19 degrees of freedom: above 50 once in 10,000; the numbers are fixed
}

TEST(sampling, drawn_tokens_have_the_probabilities_of_their_logits) {
  const std::vector<float> logits = {0.0f, 1.0f, 2.0f, -1.0f};
  Sampler sampler(kernels(), 4, 4);
  constexpr int64_t kDraws = 4000;
  int counts[4] = {};
  for (int64_t i = 1; i <= kDraws; ++i) ++counts[draw(sampler, logits, seeded(5), i).id];
  double total = 0;
  for (const float x : logits) total += std::exp(x);
  for (size_t i = 0; i < 4; ++i) {
    const double p = std::exp(logits[i]) / total;
    CHECK(std::fabs(counts[i] - p * kDraws) < 4 * std::sqrt(kDraws * p * (1 - p)));
  }
}

TEST(sampling, filters_leave_only_what_they_should) {
  Random random(9);
  const std::vector<float> logits = random.units(kVocab, 5.0f);
  std::vector<int32_t> order(kVocab);
  for (int32_t i = 0; i < kVocab; ++i) order[static_cast<size_t>(i)] = i;
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
  const auto rank = [&](int32_t id) { return std::find(order.begin(), order.end(), id) - order.begin(); };
  Sampler sampler(kernels(), kVocab, kVocab);
  SamplerParams top_k = seeded(1), top_p = top_k, min_p = top_k, allowed = top_k;
  top_k.top_k = 5;
  top_p.top_p = 1e-6f;
  min_p.min_p = 0.5f;  // of the best: within ln 2 of its logit
  allowed.allowed = {7};
  const float best = logits[static_cast<size_t>(order[0])];
  for (int64_t i = 1; i < 300; ++i) {
    CHECK(rank(draw(sampler, logits, top_k, i).id) < 5);
    CHECK_EQ(rank(draw(sampler, logits, top_p, i).id), 0);
    CHECK(logits[static_cast<size_t>(draw(sampler, logits, min_p, i).id)] >= best - 0.694f);
    CHECK_EQ(draw(sampler, logits, allowed, i).id, 7);
  }
}

TEST(sampling, greedy_takes_the_first_of_equals) {
  std::vector<float> logits(kVocab, -1.0f);
  logits[40] = logits[90] = 2.0f;
  Sampler sampler(kernels(), kVocab, kVocab);
  SamplerParams greedy;
  greedy.temperature = 0.0f;
  CHECK_EQ(draw(sampler, logits, greedy, 1).id, 40);
}

TEST(sampling, padding_of_the_vocabulary_is_never_drawn) {
  std::vector<float> logits(kVocab, 0.0f);
  for (size_t i = 200; i < kVocab; ++i) logits[i] = 50.0f;
  Sampler sampler(kernels(), kVocab, 200);
  SamplerParams greedy;
  greedy.temperature = 0.0f;
  CHECK(draw(sampler, logits, greedy, 1).id < 200);
  for (int64_t i = 1; i < 100; ++i) CHECK(draw(sampler, logits, {}, i).id < 200);
}

TEST(sampling, a_draw_does_not_depend_on_earlier_draws) {
  const std::vector<float> logits = Random(2).units(kVocab, 3.0f);
  Sampler used(kernels(), kVocab, kVocab), fresh(kernels(), kVocab, kVocab);
  SamplerParams params = seeded(4);
  params.top_p = 0.9f;
  params.repetition_penalty = 1.3f;
  params.presence_penalty = 0.2f;
  for (int64_t i = 1; i < 50; ++i) draw(used, logits, params, i);
  CHECK_EQ(draw(used, logits, params, 60).id, draw(fresh, logits, params, 60).id);
}

TEST(sampling, logits_that_are_nan_are_a_typed_error) {
  std::vector<float> logits(kVocab, 0.0f);
  logits[123] = NAN;
  Sampler sampler(kernels(), kVocab, kVocab);
  CHECK_THROWS(NumericError, draw(sampler, logits, {}, 1));
  logits[123] = 0.0f;
  CHECK(draw(sampler, logits, {}, 1).id >= 0);
}
