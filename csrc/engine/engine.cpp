#include "engine/engine.h"

#include <algorithm>
#include <string>

#include "base/error.h"

namespace llmcore {

using Clock = std::chrono::steady_clock;

struct Engine::Sequence {
  int64_t id = 0;
  Request request;
  std::vector<int32_t> tokens;  // prompt, then output
  std::vector<int32_t> pages;
  int64_t computed = 0;  // tokens whose keys and values are in the pages
  int64_t preemptions = 0;
  Clock::time_point submitted = Clock::now();
  Clock::time_point started{};  // of the first step; the epoch before it

  int64_t output_tokens() const { return static_cast<int64_t>(tokens.size() - request.prompt.size()); }
};

Engine::Engine(std::shared_ptr<Decoder> decoder, const EngineLimits& limits)
    : decoder_(std::move(decoder)),
      limits_(limits),
      cache_(decoder_->backend(), decoder_->kv_layout(limits.kv_type, limits.pages), decoder_->spec().num_layers),
      sampler_(kernels(), decoder_->spec().vocab_size, limits.drawable) {
  check_argument(limits.max_model_len >= 1 && limits.max_batch_size >= 1, "engine: limits must be at least 1");
  check_argument(limits.max_step_tokens >= limits.max_batch_size,
                 "engine: a step must hold a token of each running sequence");
  check_argument(
      decoder_->max_tokens() >= limits.max_step_tokens && decoder_->max_logit_rows() >= limits.max_batch_size,
      "engine: the decoder was planned for smaller steps");
  running_.reserve(limits.max_batch_size);
  ids_.reserve(limits.max_step_tokens);
  positions_.reserve(limits.max_step_tokens);
  logit_rows_.reserve(limits.max_batch_size);
  slices_.reserve(limits.max_batch_size);
  members_.reserve(limits.max_batch_size);
  sampled_.reserve(limits.max_batch_size);
}

Engine::~Engine() = default;

int64_t Engine::submit(Request request) {
  const int64_t vocab = decoder_->spec().vocab_size;
  const int64_t length = static_cast<int64_t>(request.prompt.size());
  check_argument(length >= 1, "the prompt is empty: give at least one token");
  check_argument(request.max_tokens >= 1, "max_tokens must be at least 1");
  const auto check_id = [&](int32_t id, const char* what) {
    check_argument(id >= 0 && id < vocab, std::string(what) + " holds id " + std::to_string(id) + ", outside [0, " +
                                              std::to_string(vocab) + ")");
  };
  for (const int32_t id : request.prompt) check_id(id, "the prompt");
  for (const auto& [id, bias] : request.sampling.logit_bias) check_id(id, "logit_bias");
  for (const int32_t id : request.sampling.allowed) check_id(id, "allowed_token_ids");
  const int64_t room = std::min(limits_.max_model_len, limits_.pages * kPageTokens);
  if (length >= room) {
    throw ContextLengthError("the prompt has " + std::to_string(length) + " tokens, but the context holds " +
                             std::to_string(room) +
                             " with at least one of them for the answer; shorten the prompt or "
                             "raise max_model_len");
  }
  request.max_tokens = std::min(request.max_tokens, room - length);
  auto sequence = std::make_unique<Sequence>();
  sequence->id = next_id_++;
  sequence->tokens.reserve(length + request.max_tokens);
  sequence->tokens = request.prompt;
  sequence->pages.reserve(pages_for(length + request.max_tokens));
  sequence->request = std::move(request);
  waiting_.push_back(std::move(sequence));
  return waiting_.back()->id;
}

void Engine::cancel(int64_t id) {
  const auto has_id = [id](const SequencePtr& s) { return s->id == id; };
  if (const auto it = std::find_if(running_.begin(), running_.end(), has_id); it != running_.end()) {
    free_pages(**it);
    running_.erase(it);
  } else {
    std::erase_if(waiting_, has_id);
  }
}

void Engine::free_pages(Sequence& sequence) {
  for (const int32_t page : sequence.pages) cache_.pool().release(page);
  sequence.pages.clear();
  sequence.computed = 0;
}

// Gives the sequence pages for `tokens` tokens, as far as there are free ones.
bool Engine::grow(Sequence& sequence, int64_t tokens) {
  while (static_cast<int64_t>(sequence.pages.size()) < pages_for(tokens)) {
    const int32_t page = cache_.pool().take();
    if (page < 0) return false;
    sequence.pages.push_back(page);
  }
  return true;
}

void Engine::preempt(size_t index) {
  free_pages(*running_[index]);
  ++running_[index]->preemptions;
  waiting_.push_front(std::move(running_[index]));
  running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(index));
  ++counters_.preemptions;
}

// Grows a running sequence, taking pages from newer ones; false when it is itself the newest and had to go.
bool Engine::make_room(Sequence& sequence, int64_t tokens) {
  while (!grow(sequence, tokens)) {
    const bool newest = running_.back().get() == &sequence;
    preempt(running_.size() - 1);
    if (newest) return false;
  }
  return true;
}

// Lets waiting requests run while there is a place for them and pages for their tokens so far.
void Engine::admit() {
  while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < limits_.max_batch_size) {
    const int64_t wanted = pages_for(static_cast<int64_t>(waiting_.front()->tokens.size()) + 1);
    if (wanted > cache_.pool().free()) return;
    running_.push_back(std::move(waiting_.front()));
    waiting_.pop_front();
    grow(*running_.back(), static_cast<int64_t>(running_.back()->tokens.size()));
  }
}

void Engine::add_slice(Sequence& sequence, int64_t tokens) {
  if (sequence.started == Clock::time_point{}) sequence.started = Clock::now();
  slices_.push_back({static_cast<int64_t>(ids_.size()), tokens, sequence.computed, sequence.pages.data()});
  members_.push_back(&sequence);
  for (int64_t i = sequence.computed; i < sequence.computed + tokens; ++i) {
    ids_.push_back(sequence.tokens[i]);
    positions_.push_back(static_cast<int32_t>(i));
  }
  if (sequence.computed + tokens == static_cast<int64_t>(sequence.tokens.size())) {
    logit_rows_.push_back(static_cast<int32_t>(ids_.size()) - 1);
    sampled_.push_back(&sequence);
  }
}

// Fills the batch: decoding sequences first, one token each, then prompts in order of arrival.
void Engine::schedule() {
  for (auto* list : {&ids_, &positions_, &logit_rows_}) list->clear();
  slices_.clear();
  members_.clear();
  sampled_.clear();
  const auto missing = [](const Sequence& s) { return static_cast<int64_t>(s.tokens.size()) - s.computed; };
  for (size_t i = 0; i < running_.size();) {
    Sequence& s = *running_[i];
    if (make_room(s, static_cast<int64_t>(s.tokens.size()))) ++i;
  }
  admit();
  int64_t budget = limits_.max_step_tokens;
  for (const bool decoding : {true, false}) {
    for (const SequencePtr& s : running_) {
      if ((missing(*s) == 1) != decoding || budget == 0) continue;
      const int64_t tokens = std::min(missing(*s), budget);
      add_slice(*s, tokens);
      budget -= tokens;
    }
  }
}

std::vector<Output> Engine::step(const Poll& poll) {
  std::vector<Output> outputs;
  schedule();
  if (ids_.empty()) return outputs;
  const Batch batch{ids_.data(),
                    positions_.data(),
                    static_cast<int64_t>(ids_.size()),
                    {slices_.data(), static_cast<int64_t>(slices_.size())}};
  decoder_->forward(batch, cache_, poll);
  for (size_t i = 0; i < members_.size(); ++i) members_[i]->computed += slices_[i].tokens;
  ++counters_.steps;
  if (!sampled_.empty()) sample(outputs);
  return outputs;
}

void Engine::sample(std::vector<Output>& outputs) {
  const int64_t vocab = decoder_->spec().vocab_size, count = static_cast<int64_t>(sampled_.size());
  const float* logits = decoder_->backend().read(decoder_->logits(logit_rows_.data(), count), count * vocab);
  for (int64_t i = 0; i < count; ++i) {
    Sequence& s = *sampled_[i];
    const Request& r = s.request;
    SamplerHistory history{s.tokens.data(), static_cast<int64_t>(r.prompt.size()),
                           static_cast<int64_t>(s.tokens.size()), r.sequence};
    if (s.output_tokens() < r.min_tokens) {
      history.banned = r.stop_ids.data();
      history.banned_count = static_cast<int64_t>(r.stop_ids.size());
    }
    const double queue_time = std::chrono::duration<double>(s.started - s.submitted).count();
    Output output{s.id, {}, FinishReason::kNone, {}, queue_time, s.preemptions};
    try {
      output.token = sampler_.sample(logits + i * vocab, r.sampling, history);
      s.tokens.push_back(output.token.id);
      output.finish = finish_reason(s, output.token.id);
      ++counters_.tokens;
    } catch (const NumericError& e) {  // this request's alone
      output.finish = FinishReason::kError;
      output.error = e.what();
    }
    outputs.push_back(std::move(output));
  }
  for (const Output& output : outputs) {
    if (output.finish != FinishReason::kNone) cancel(output.request);
  }
}

FinishReason Engine::finish_reason(const Sequence& s, int32_t token) const {
  const auto& stops = s.request.stop_ids;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) return FinishReason::kStop;
  return s.output_tokens() >= s.request.max_tokens ? FinishReason::kLength : FinishReason::kNone;
}

EngineStats Engine::stats() const {
  EngineStats s = counters_;
  auto& pool = const_cast<KvCache&>(cache_).pool();
  s.pages_total = pool.total();
  s.pages_free = pool.free();
  s.running = static_cast<int64_t>(running_.size());
  s.waiting = static_cast<int64_t>(waiting_.size());
  return s;
}

}  // namespace llmcore
