// The promise of the runtime, at its core: bits that don't depend on batch, threads, chunks or a shortage of pages.

#include "cpp/check.h"
#include "cpp/tiny_decoder.h"

namespace llmcore::test {
namespace {

const std::vector<std::vector<int32_t>> kSequences = {tiny_prompt(45, 11), tiny_prompt(1, 12), tiny_prompt(70, 13)};

std::vector<std::vector<float>> alone(Decoder& decoder) {
  std::vector<std::vector<float>> logits;
  for (const auto& sequence : kSequences) logits.push_back(tiny_logits(decoder, kKvF32, {sequence}, 0)[0]);
  return logits;
}

}  // namespace

TEST(logits_do_not_depend_on_the_batch) {
  for (const Format format : {Format::kF32, Format::kInt8, Format::kInt4}) {
    const auto decoder = tiny_decoder(format, format == Format::kInt4 ? 32 : 0, 1);
    CHECK(tiny_logits(*decoder, kKvF32, kSequences, 0) == alone(*decoder));
  }
}

TEST(logits_do_not_depend_on_the_chunk) {
  const auto decoder = tiny_decoder(Format::kInt8, 0, 1);
  const auto whole = alone(*decoder);
  for (const int64_t chunk : {1, 3, 16}) CHECK(tiny_logits(*decoder, kKvF32, kSequences, chunk) == whole);
}

TEST(logits_do_not_depend_on_the_chunk_beyond_a_split_of_attention) {
  const auto decoder = tiny_decoder(Format::kF32, 0, 1);
  const std::vector<std::vector<int32_t>> sequence = {tiny_prompt(kSplitTokens + 9, 14)};
  CHECK(tiny_logits(*decoder, kKvF16, sequence, 0) == tiny_logits(*decoder, kKvF16, sequence, 7));
}

TEST(logits_do_not_depend_on_the_threads) {
  const auto one = alone(*tiny_decoder(Format::kInt4, 64, 1));
  for (const int threads : {2, 3}) CHECK(alone(*tiny_decoder(Format::kInt4, 64, threads)) == one);
}

TEST(logits_depend_on_the_weights) {
  // The negative control: a comparison that can't fail would pass here too.
  CHECK(alone(*tiny_decoder(Format::kInt8, 0, 1)) != alone(*tiny_decoder(Format::kInt8, 32, 1)));
}

TEST(generation_survives_preemption_with_the_same_bits) {
  const auto decoder = tiny_decoder(Format::kF32, 0, 1);
  const std::vector<std::vector<int32_t>> prompts = {tiny_prompt(30, 21), tiny_prompt(30, 22), tiny_prompt(30, 23)};
  const auto roomy = tiny_generate(decoder, prompts, 40, 64);
  const auto tight = tiny_generate(decoder, prompts, 40, 7);  // three sequences of five pages don't fit
  for (size_t i = 0; i < prompts.size(); ++i) {
    CHECK(roomy[i].ids.size() == 40);
    CHECK(roomy[i].ids == tight[i].ids);
    CHECK(same_bits(roomy[i].logprobs, tight[i].logprobs));
  }
}

}  // namespace llmcore::test
