#pragma once
// Requests to batches to tokens. A step takes up to max_step_tokens tokens: one of each running sequence first, then
// chunks of prompts in order of arrival. When pages run out the newest sequence gives its own back and is computed
// again later, with the same bits. One caller at a time; the binding holds a lock.

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "decoder/decoder.h"
#include "kvcache/kv_cache.h"
#include "sampling/sampler.h"

namespace llmcore {

struct EngineLimits {
  int64_t max_model_len = 0;    // tokens of one sequence, prompt and output
  int64_t max_batch_size = 0;   // sequences that run at once
  int64_t max_step_tokens = 0;  // tokens of one step
  int64_t pages = 0;            // of the KV cache
  KvType kv_type = kKvF32;
  int64_t drawable = 0;  // ids from here on are padding of the vocabulary, never drawn
};

enum class FinishReason : int { kNone, kStop, kLength, kError };

struct Request {
  std::vector<int32_t> prompt;
  SamplerParams sampling;
  uint64_t sequence = 0;  // index among the n of a request
  int64_t max_tokens = 0;
  int64_t min_tokens = 0;
  std::vector<int32_t> stop_ids;  // these end the sequence, and are part of the output
};

struct Output {
  int64_t request = 0;
  SampledToken token;
  FinishReason finish = FinishReason::kNone;
  std::string error;      // with kError
  double queue_time = 0;  // seconds from submit() to the first step that computed a part of the prompt
  int64_t preemptions = 0;
};

struct EngineStats {
  int64_t pages_total = 0, pages_free = 0, running = 0, waiting = 0, preemptions = 0, steps = 0, tokens = 0;
};

class Engine {
 public:
  Engine(std::shared_ptr<Decoder> decoder, const EngineLimits& limits);
  ~Engine();

  /// Admits a request and returns its id. Throws ArgumentError, ContextLengthError (it can never fit).
  int64_t submit(Request request);
  /// Forgets a request and frees its pages; unknown ids are ignored (it may have finished).
  void cancel(int64_t id);
  bool idle() const { return running_.empty() && waiting_.empty(); }
  /// One step. An exception from `poll` leaves the engine as it was before the step.
  std::vector<Output> step(const Poll& poll);
  EngineStats stats() const;
  const EngineLimits& limits() const { return limits_; }
  int64_t kv_bytes() const { return cache_.nbytes(); }

 private:
  struct Sequence;
  using SequencePtr = std::unique_ptr<Sequence>;
  bool grow(Sequence& sequence, int64_t tokens);
  bool make_room(Sequence& sequence, int64_t tokens);
  void preempt(size_t index);
  void free_pages(Sequence& sequence);
  void admit();
  void schedule();
  void add_slice(Sequence& sequence, int64_t tokens);
  void sample(std::vector<Output>& outputs);
  FinishReason finish_reason(const Sequence& sequence, int32_t token) const;

  std::shared_ptr<Decoder> decoder_;
  EngineLimits limits_;
  KvCache cache_;
  Sampler sampler_;
  int64_t next_id_ = 1;
  std::vector<SequencePtr> running_;  // in order of arrival
  std::deque<SequencePtr> waiting_;
  EngineStats counters_;
  // The batch of the current step; capacity reserved at construction.
  std::vector<int32_t> ids_, positions_, logit_rows_;
  std::vector<SequenceSlice> slices_;
  std::vector<Sequence*> members_, sampled_;
};

}  // namespace llmcore
