#include "engine/forward.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/error.h"

namespace llmcore {
namespace {

template <class Sequence>
void check(const Decoder& decoder, const std::vector<Sequence>& sequences, int64_t chunk) {
  check_argument(chunk >= 0, "chunk_size must not be negative, got " + std::to_string(chunk));
  const DecoderSpec& spec = decoder.spec();
  for (const Sequence& s : sequences) {
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

// Tokens [first, first + count) of a sequence, in the rows of the decoder's last step from `row` on.
struct Part {
  size_t sequence;
  int64_t first, count, row;
};

// Runs the layers over all sequences; `take(parts, tokens)` after each step, and `pause` between two.
template <class Sequence, class Take>
void run(Decoder& decoder, KvCache& cache, const PageTables& tables, const std::vector<Sequence>& sequences,
         int64_t chunk, const Poll& poll, const Poll& pause, const Take& take) {
  std::vector<int64_t> done(sequences.size(), 0);
  std::vector<int32_t> ids, positions;
  std::vector<SequenceSlice> slices;
  std::vector<Part> parts;
  bool begun = false;
  for (;;) {
    if (pause && begun) pause();
    begun = true;
    ids.clear();
    positions.clear();
    slices.clear();
    parts.clear();
    for (size_t i = 0; i < sequences.size(); ++i) {
      const Sequence& s = sequences[i];
      int64_t tokens = std::min(s.length - done[i], decoder.max_tokens() - static_cast<int64_t>(ids.size()));
      if (chunk) tokens = std::min(tokens, chunk);
      if (tokens == 0) continue;
      const int64_t row = static_cast<int64_t>(ids.size());
      slices.push_back({row, tokens, done[i], tables[i].data()});
      parts.push_back({i, done[i], tokens, row});
      for (int64_t t = done[i]; t < done[i] + tokens; ++t) {
        ids.push_back(s.ids[t]);
        positions.push_back(static_cast<int32_t>(t));
      }
      done[i] += tokens;
    }
    if (ids.empty()) return;
    const int64_t total = static_cast<int64_t>(ids.size());
    decoder.forward({ids.data(), positions.data(), total, {slices.data(), static_cast<int64_t>(slices.size())}}, cache,
                    poll);
    take(parts, total);
  }
}

}  // namespace

void forward(Decoder& decoder, KvType kv_type, const std::vector<ForwardSequence>& sequences, int64_t chunk,
             const Poll& poll, const Poll& pause) {
  check(decoder, sequences, chunk);
  if (sequences.empty()) return;
  int64_t pages = 0;
  for (const ForwardSequence& s : sequences) pages += pages_for(s.length);
  KvCache cache(decoder.backend(), decoder.kv_layout(kv_type, pages), decoder.spec().num_layers);
  PageTables tables;
  for (const ForwardSequence& s : sequences) {
    auto& table = tables.emplace_back();
    for (int64_t i = 0; i < pages_for(s.length); ++i) table.push_back(cache.pool().take());
  }
  const int64_t vocab = decoder.spec().vocab_size;
  std::vector<int32_t> rows;
  std::vector<float*> targets;
  run(decoder, cache, tables, sequences, chunk, poll, pause, [&](const std::vector<Part>& parts, int64_t total) {
    targets.clear();
    for (const Part& part : parts) {
      for (int64_t i = 0; i < part.count; ++i) {
        targets.push_back(sequences[part.sequence].logits + (part.first + i) * vocab);
      }
    }
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
  });
}

void embed(Decoder& decoder, KvCache& cache, const PageTables& tables, const std::vector<EmbedSequence>& sequences,
           Pooling pooling, const Poll& poll, const Poll& pause) {
  check(decoder, sequences, 0);
  const int64_t hidden = decoder.spec().hidden_size;
  run(decoder, cache, tables, sequences, 0, poll, pause, [&](const std::vector<Part>& parts, int64_t total) {
    const float* states = decoder.backend().read(decoder.hidden(), total * hidden);
    for (const Part& part : parts) {
      const EmbedSequence& s = sequences[part.sequence];
      for (int64_t i = 0; i < part.count; ++i) {
        const int64_t token = part.first + i;
        const bool taken = pooling == Pooling::kMean || token == (pooling == Pooling::kCls ? 0 : s.length - 1);
        if (!taken) continue;
        const float* row = states + (part.row + i) * hidden;
        for (int64_t h = 0; h < hidden; ++h) s.sum[h] += row[h];
      }
    }
  });
  if (pooling != Pooling::kMean) return;
  for (const EmbedSequence& s : sequences) {
    for (int64_t h = 0; h < hidden; ++h) s.sum[h] /= static_cast<double>(s.length);
  }
}

}  // namespace llmcore
