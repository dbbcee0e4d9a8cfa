#pragma once
// A small decoder with odd sizes and made-up weights, the same numbers on every machine.

#include <cstdint>
#include <memory>
#include <vector>

#include "decoder/decoder.h"

namespace llmcore::test {

constexpr int64_t kTinyVocab = 257;
constexpr int64_t kTinyContext = 320;

/// Weights in `format`, with a scale per `group_size` elements (0: per row).
std::shared_ptr<Decoder> tiny_decoder(Format format, int64_t group_size, int threads);

std::vector<int32_t> tiny_prompt(int64_t tokens, uint64_t seed);

/// Logits of the sequences, run together, `chunk` tokens a step (0: all).
std::vector<std::vector<float>> tiny_logits(Decoder& decoder, KvType kv_type,
                                            const std::vector<std::vector<int32_t>>& sequences, int64_t chunk);

/// The ids and logprobs that the engine draws for the prompts in one batch, each with `tokens` tokens.
struct Generated {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
};
std::vector<Generated> tiny_generate(const std::shared_ptr<Decoder>& decoder,
                                     const std::vector<std::vector<int32_t>>& prompts, int64_t tokens, int64_t pages);

/// A hash of logits and generated tokens over all weight formats and KV types.
uint64_t digest_of_everything();

}  // namespace llmcore::test
