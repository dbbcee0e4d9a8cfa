#pragma once
// Requests to batches to tokens. A step takes up to max_step_tokens tokens: those of the decoding sequences first, then
// chunks of prompts, each list by priority and order of arrival. When pages run out the last sequence in that order
// gives its own back and is computed again later, with the same bits. One caller at a time; the binding holds a lock.

#include <chrono>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/buffer.h"
#include "decoder/decoder.h"
#include "engine/forward.h"
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
  bool prefix_cache = true;
  int64_t draft_tokens = 0;  // guessed and verified in one step; 0: none
};

enum class FinishReason : int { kNone, kStop, kLength, kError };

struct Request {
  std::vector<int32_t> prompt;
  SamplerParams sampling;
  int64_t n = 1;          // sequences, which compute the prompt once
  uint64_t sequence = 0;  // index of the first of them
  int64_t max_tokens = 0;
  int64_t min_tokens = 0;
  std::vector<int32_t> stop_ids;  // these end the sequence, and are part of the output
  int64_t priority = 0;           // the lowest runs first, and is preempted last
  CacheSalt salt;
  int64_t score_from = 0;      // prompt tokens from this position on get log-probabilities; 0: none
  int32_t score_logprobs = 0;  // with so many alternatives
  bool edits_logits = false;   // the step's LogitsEditor sees its logits before the sampler does
};

struct Output {
  int64_t request = 0;
  bool has_token = true;  // false: only `scores`
  SampledToken token;
  FinishReason finish = FinishReason::kNone;
  std::string error;      // with kError
  double queue_time = 0;  // seconds from submit() to the first step that computed a part of the prompt
  int64_t preemptions = 0;
  int64_t cached_tokens = 0;         // of the prompt, found in the prefix cache
  std::vector<SampledToken> scores;  // of the prompt's next tokens, in order
};

struct EngineStats {
  int64_t pages_total = 0, pages_free = 0, running = 0, waiting = 0, preemptions = 0, steps = 0, tokens = 0,
          prefix_hit_tokens = 0, drafted = 0, accepted = 0;
};

/// Changes a row of logits [vocab] before a sampler sees it; tokens: prompt, then output. What it throws ends the
/// request with kError.
using LogitsEditor =
    std::function<void(int64_t request, const std::vector<int32_t>& tokens, int64_t prompt, float* logits)>;

class DraftModel;

class Engine {
 public:
  /// `draft`: a smaller model that guesses tokens; null: they are guessed from the sequence's own text.
  Engine(std::shared_ptr<Decoder> decoder, const EngineLimits& limits, std::shared_ptr<Decoder> draft = nullptr);
  ~Engine();

  /// What submit() would throw, from any thread.
  void check(const Request& request) const;
  /// Admits a request and returns the id of its first sequence; the others follow without a gap. Throws ArgumentError,
  /// ContextLengthError (it can never fit).
  int64_t submit(Request request);
  /// Forgets a sequence and frees its pages; unknown ids are ignored (it may have finished).
  void cancel(int64_t id);
  bool idle() const { return running_.empty() && waiting_.empty(); }
  /// One step. An exception from `poll` leaves the engine as it was before the step.
  std::vector<Output> step(const Poll& poll, const LogitsEditor& editor = nullptr);
  EngineStats stats() const;
  /// Pages of the cache for other work: those of texts of the first of these lengths, as many as are free and the
  /// request that waits longest can do without. For the first one requests give theirs back, but only after they have
  /// drawn some tokens since the last time; none, then, until they have. Throws ContextLengthError.
  PageTables reserve(const std::vector<int64_t>& lengths);
  void release(const PageTables& tables);
  KvCache& cache() { return cache_; }
  /// What the prefix cache holds of a text: the bytes of its first pages, one after the other.
  std::vector<uint8_t> export_prefix(const std::vector<int32_t>& tokens, const CacheSalt& salt);
  /// Puts such pages into the prefix cache, as many as there is room for, and returns how many it has of them then.
  int64_t import_prefix(const std::vector<int32_t>& tokens, const CacheSalt& salt, const uint8_t* data, int64_t pages);
  int64_t page_bytes() const { return cache_.page_bytes(); }
  const EngineLimits& limits() const { return limits_; }
  int64_t kv_bytes() const;

  struct Sequence;

 private:
  using SequencePtr = std::unique_ptr<Sequence>;
  // Rows of logits of one sequence: `rows` from `row` on. Scores: the tokens after `position`; else the next token.
  struct Rows {
    Sequence* sequence;
    int64_t row, rows, position;
    bool scores;
    int64_t drawn;  // its first row's token in drawn_; -1: not there
  };
  // A token that was drawn, or why it couldn't be.
  struct Drawn {
    SampledToken token;
    std::exception_ptr error;
  };

  void add(Request request);
  bool grow(Sequence& sequence, int64_t tokens);
  bool make_room(Sequence& sequence, int64_t tokens);
  void preempt();
  int64_t cacheable(const Sequence& sequence) const;
  void adopt_cached(Sequence& sequence);
  void adopt_start(Sequence& sequence);
  void count_cached(Sequence& sequence, int64_t tokens);
  void note_pages(Sequence& sequence);
  void free_pages(Sequence& sequence);
  void forget(Sequence& sequence);
  void insert_waiting(SequencePtr sequence);
  void insert_running(SequencePtr sequence);
  SequencePtr take_waiting(size_t index);
  bool yields_to(const Sequence& sequence) const;
  void admit();
  void schedule(const Poll& poll);
  void draft_all(const Poll& poll);
  void weigh_guesses(std::chrono::duration<double> step);
  int64_t draft(Sequence& sequence);
  void add_slice(Sequence& sequence, int64_t tokens, int64_t drafted);
  void read_rows(std::vector<Output>& outputs, const LogitsEditor& editor);
  void score(const Rows& rows, const float* logits, std::vector<Output>& outputs);
  bool draw_from_largest(const LogitsEditor& editor);
  void draw_ahead(const float* logits, const LogitsEditor& editor);
  SampledToken draw(Sequence& sequence, const float* logits, Sampler& sampler);
  void sample(const Rows& rows, const float* logits, const LogitsEditor& editor, std::vector<Output>& outputs);
  Output sample_row(Sequence& sequence, const float* logits, const LogitsEditor& editor, Drawn* drawn = nullptr);
  void fork(Sequence& leader, const float* logits, const LogitsEditor& editor, std::vector<Output>& outputs);
  Output make_output(const Sequence& sequence) const;
  FinishReason finish_reason(const Sequence& sequence, int32_t token) const;

  std::shared_ptr<Decoder> decoder_;
  EngineLimits limits_;
  KvCache cache_;
  std::vector<Sampler> samplers_;  // of each thread of the host
  std::unique_ptr<DraftModel> draft_model_;
  double step_seconds_ = 0,
         guess_seconds_ = 0;    // of a forward pass, and of a token that the draft model guesses: lately
  double accepted_share_ = 1;   // of its guesses, lately
  int64_t least_accepted_ = 0;  // per cent of the guesses, below which they don't pay
  int64_t window_ = 0;          // tokens that a layer may still look at; 0: all
  int64_t extra_rows_ = 0;      // of logits in a step, beyond one for each sequence
  int64_t next_id_ = 1;
  std::vector<SequencePtr> running_;  // by priority, then arrival
  std::deque<SequencePtr> waiting_;   // the same
  EngineStats counters_;
  int64_t lent_ = 0;         // pages that reserve() gave
  int64_t reserved_at_ = 0;  // counters_.tokens when it last took what requests could have had
  // The batch of the current step; capacity reserved at construction.
  std::vector<int32_t> ids_, positions_, logit_rows_;
  std::vector<SequenceSlice> slices_;
  std::vector<Sequence*> members_;
  std::vector<Rows> rows_;
  std::vector<Drawn> drawn_;
  std::vector<LargestColumns> largest_;
  ZeroArray<float> edited_;
  int64_t extra_left_ = 0;    // of extra_rows_
  int64_t guesses_left_ = 0;  // tokens of the step that guesses may take
};

}  // namespace llmcore
