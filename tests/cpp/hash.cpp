#include "hash.h"

#include <algorithm>
#include <cstdio>

#include "check.h"
#include "engine/forward.h"

namespace llmcore::test {
namespace {

struct Case {
  const char* name;
  Style style;
  Format format;
  int64_t group_size;
  KvType kv_type;
  int64_t tokens, layers;
};

// The long cases cross a split of attention (256 tokens); the rest are short, for emulators without a fused
// multiply-add run them too.
constexpr Case kCases[] = {
    {"llama f32, f32 pages", Style::kLlama, Format::kF32, 0, kKvF32, 24, 2},
    {"mistral f32, f16 pages, long", Style::kMistral, Format::kF32, 0, kKvF16, 279, 1},
    {"qwen3 bf16, bf16 pages", Style::kQwen3, Format::kBF16, 0, kKvBF16, 24, 2},
    {"gpt2 f16, f16 pages", Style::kGpt2, Format::kF16, 0, kKvF16, 24, 2},
    {"qwen3 int8 a row, f32 pages", Style::kQwen3, Format::kInt8, 0, kKvF32, 24, 2},
    {"llama int8 in groups of 32, f16 pages", Style::kLlama, Format::kInt8, 32, kKvF16, 24, 2},
    {"llama int4 in groups of 32, f16 pages, long", Style::kLlama, Format::kInt4, 32, kKvF16, 279, 1},
    {"llama int4 in groups of 32, int12 pages, long", Style::kLlama, Format::kInt4, 32, kKvInt12, 279, 1},
    {"qwen3 f32, int8 pages", Style::kQwen3, Format::kF32, 0, kKvInt8, 24, 2},
    {"llama int8 a row, int4 pages, long", Style::kLlama, Format::kInt8, 0, kKvInt4, 279, 1},
    {"gemma2 f32, f16 pages", Style::kGemma2, Format::kF32, 0, kKvF16, 30, 2},
    {"sinks f32, f32 pages", Style::kSinks, Format::kF32, 0, kKvF32, 30, 1},
    {"gpt2 int4 a row, bf16 pages", Style::kGpt2, Format::kInt4, 0, kKvBF16, 24, 2},
    {"llama ternary a row, f16 pages", Style::kLlama, Format::kTernary, 0, kKvF16, 24, 2},
    {"qwen3 ternary in groups of 64, f32 pages", Style::kQwen3, Format::kTernary, 64, kKvF32, 24, 2},
};

// Of all logits of two sequences of different lengths.
void hash_logits(Decoder& decoder, KvType kv_type, int64_t tokens, const Cut& cut, Hash& hash) {
  const int64_t vocab = decoder.spec().vocab_size;
  const std::vector<int32_t> first = random_ids(1, tokens, vocab), second = random_ids(2, tokens / 3 + 1, vocab);
  std::vector<float> logits(static_cast<size_t>((first.size() + second.size()) * static_cast<size_t>(vocab)));
  const int64_t lengths[] = {static_cast<int64_t>(first.size()), static_cast<int64_t>(second.size())};
  forward(decoder, kv_type,
          {{first.data(), lengths[0], logits.data()}, {second.data(), lengths[1], logits.data() + lengths[0] * vocab}},
          cut.chunk, {});
  hash.add(logits.data(), static_cast<int64_t>(logits.size() * sizeof(float)));
}

Request request(int64_t index, int64_t vocab) {
  Request r;
  r.prompt = random_ids(static_cast<uint64_t>(10 + index), 3 + 9 * index, vocab);
  r.max_tokens = 12;
  r.sequence = static_cast<uint64_t>(index);
  r.sampling.seed = 77;
  r.sampling.logprobs = 3;
  r.sampling.temperature = index == 0 ? 0.0f : 0.9f;
  r.sampling.top_p = index == 1 ? 0.8f : 1.0f;
  r.sampling.top_k = index == 2 ? 20 : 0;
  r.sampling.min_p = index == 3 ? 0.02f : 0.0f;
  r.sampling.repetition_penalty = index == 4 ? 1.2f : 1.0f;
  return r;
}

// Of the tokens and log-probabilities of five requests.
void hash_generation(const std::shared_ptr<Decoder>& decoder, const EngineLimits& limits, Hash& hash) {
  constexpr int64_t kRequests = 5;
  Engine engine(decoder, limits);
  std::vector<Hash> streams(kRequests);
  const int64_t first = engine.submit(request(0, decoder->spec().vocab_size));
  for (int64_t i = 1; i < kRequests; ++i) engine.submit(request(i, decoder->spec().vocab_size));
  while (!engine.idle()) {
    for (const Output& output : engine.step({})) {
      Hash& stream = streams[static_cast<size_t>(output.request - first)];
      stream.add(output.token.id);
      stream.add(output.token.logprob);
      for (const auto& [id, logprob] : output.token.top) {
        stream.add(id);
        stream.add(logprob);
      }
      stream.add(static_cast<int32_t>(output.finish));
    }
  }
  for (const Hash& stream : streams) hash.add(stream.value());
}

}  // namespace

uint64_t hash_of(TinyModel model, KvType kv_type, int64_t tokens, const Cut& cut) {
  model.threads = cut.threads;
  model.max_logit_rows = cut.max_batch_size;
  const auto decoder = make_decoder(model);
  Hash hash;
  hash_logits(*decoder, kv_type, tokens, cut, hash);
  EngineLimits limits = engine_limits(model, cut.pages, kv_type);
  if (cut.chunk) limits.max_step_tokens = std::max(cut.chunk, cut.max_batch_size);
  hash_generation(decoder, limits, hash);
  return hash.value();
}

uint64_t hash_of_all(int threads, bool verbose) {
  Hash all;
  for (const Case& c : kCases) {
    TinyModel model;
    model.style = c.style;
    model.format = c.format;
    model.group_size = c.group_size;
    model.num_layers = c.layers;
    Cut cut;
    cut.threads = threads;
    const uint64_t hash = hash_of(model, c.kv_type, c.tokens, cut);
    if (verbose) std::printf("%016llx  %s\n", static_cast<unsigned long long>(hash), c.name);
    all.add(hash);
  }
  return all.value();
}

}  // namespace llmcore::test

using namespace llmcore;
using namespace llmcore::test;

namespace {

// Every way of cutting the work up, against one thread and whole prompts.
void check_cuts(const TinyModel& model, KvType kv_type, int64_t tokens) {
  const uint64_t expected = hash_of(model, kv_type, tokens, {1, 0, 5, 64});
  for (const int threads : {1, 2, 4}) {
    for (const int64_t chunk : {1, 3, 16, 0}) {
      if (quick() && (threads == 4 || chunk == 1)) continue;
      NOTE(std::to_string(threads) + " threads, chunks of " + std::to_string(chunk));
      CHECK_EQ(hash_of(model, kv_type, tokens, {threads, chunk, 4, 64}), expected);
    }
  }
  for (const int64_t batch : {1, 2, 3, 7}) {
    NOTE("batches of " + std::to_string(batch));
    CHECK_EQ(hash_of(model, kv_type, tokens, {2, 0, batch, 64}), expected);
  }
  NOTE("pages for hardly one request");
  CHECK_EQ(hash_of(model, kv_type, tokens, {2, 0, 5, 4}), expected);
}

}  // namespace

TEST(hash, no_cut_of_the_work_shows_in_f32) {
  TinyModel model;
  model.num_layers = 1;
  check_cuts(model, kKvF32, quick() ? 40 : 270);
}

TEST(hash, no_cut_of_the_work_shows_in_int4) {
  TinyModel model;
  model.style = Style::kQwen3;
  model.format = Format::kInt4;
  model.group_size = 32;
  check_cuts(model, kKvF16, 50);
}

TEST(hash, no_cut_of_the_work_shows_in_int8_with_a_window) {
  TinyModel model;
  model.style = Style::kMistral;
  model.format = Format::kInt8;
  model.num_layers = 1;
  check_cuts(model, kKvBF16, quick() ? 110 : 270);
}

TEST(hash, no_cut_of_the_work_shows_in_integer_pages) {
  TinyModel model;
  model.num_layers = 1;
  check_cuts(model, kKvInt12, quick() ? 24 : 270);
  check_cuts(model, kKvInt8, quick() ? 40 : 270);
  check_cuts(model, kKvInt4, quick() ? 24 : 50);
}

TEST(hash, no_cut_of_the_work_shows_in_gemma2_and_with_sinks) {
  TinyModel model;
  model.style = Style::kGemma2;
  check_cuts(model, kKvF16, 40);
  model.style = Style::kSinks;
  model.num_layers = 1;
  check_cuts(model, kKvInt8, quick() ? 40 : 270);
}

TEST(hash, one_bit_of_one_weight_shows) {
  TinyModel model;
  const uint64_t expected = hash_of(model, kKvF32, 20, {});
  model.nudged = true;
  CHECK(hash_of(model, kKvF32, 20, {}) != expected);
}
