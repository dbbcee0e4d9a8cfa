#include "engine/forward.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"
#include "kvcache/kv_cache.h"

namespace llmcore {
namespace {

void check(const Decoder& decoder, const std::vector<ForwardSequence>& sequences, int64_t chunk) {
  check_argument(chunk >= 0, "chunk_size must not be negative, got " + std::to_string(chunk));
  const DecoderSpec& spec = decoder.spec();
  for (const ForwardSequence& s : sequences) {
    check_argument(s.length >= 1, "forward: each sequence needs at least one token");
    if (s.length > spec.max_position_embeddings) {
      throw ContextLengthError("forward: " + std::to_string(s.length) + " tokens, but the model's context holds " +
                               std::to_string(spec.max_position_embeddings));
    }
    for (int64_t i = 0; i < s.length; ++i) {
      check_argument(s.ids[i] >= 0 && s.ids[i] < spec.vocab_size,
                     "forward: id " + std::to_string(s.ids[i]) + " at position " + std::to_string(i) +
                         " is outside [0, " + std::to_string(spec.vocab_size) + ")");
    }
  }
}

}  // namespace

void forward(Decoder& decoder, KvType kv_type, const std::vector<ForwardSequence>& sequences, int64_t chunk,
             const Poll& poll) {
  check(decoder, sequences, chunk);
  if (sequences.empty()) return;
  int64_t pages = 0;
  for (const ForwardSequence& s : sequences) pages += pages_for(s.length);
  KvCache cache(decoder.backend(), decoder.kv_layout(kv_type, pages), decoder.spec().num_layers);
  std::vector<std::vector<int32_t>> tables;
  for (const ForwardSequence& s : sequences) {
    auto& table = tables.emplace_back();
    for (int64_t i = 0; i < pages_for(s.length); ++i) table.push_back(cache.pool().take());
  }

  const int64_t vocab = decoder.spec().vocab_size;
  std::vector<int64_t> done(sequences.size(), 0);
  std::vector<int32_t> ids, positions, rows;
  std::vector<SequenceSlice> slices;
  std::vector<float*> targets;
  for (;;) {
    ids.clear();
    positions.clear();
    slices.clear();
    targets.clear();
    for (size_t i = 0; i < sequences.size(); ++i) {
      const ForwardSequence& s = sequences[i];
      int64_t tokens = std::min(s.length - done[i], decoder.max_tokens() - static_cast<int64_t>(ids.size()));
      if (chunk) tokens = std::min(tokens, chunk);
      if (tokens == 0) continue;
      slices.push_back({static_cast<int64_t>(ids.size()), tokens, done[i], tables[i].data()});
      for (int64_t t = done[i]; t < done[i] + tokens; ++t) {
        ids.push_back(s.ids[t]);
        positions.push_back(static_cast<int32_t>(t));
        targets.push_back(s.logits + t * vocab);
      }
      done[i] += tokens;
    }
    if (ids.empty()) return;
    const int64_t total = static_cast<int64_t>(ids.size());
    decoder.forward({ids.data(), positions.data(), total, {slices.data(), static_cast<int64_t>(slices.size())}}, cache,
                    poll);
    for (int64_t begin = 0; begin < total; begin += decoder.max_logit_rows()) {
      const int64_t count = std::min(decoder.max_logit_rows(), total - begin);
      rows.clear();
      for (int64_t i = 0; i < count; ++i) rows.push_back(static_cast<int32_t>(begin + i));
      const float* logits = decoder.backend().read(decoder.logits(rows.data(), count), count * vocab);
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(targets[begin + i], logits + i * vocab, static_cast<size_t>(vocab) * sizeof(float));
      }
      if (poll) poll();
    }
  }
}

}  // namespace llmcore
