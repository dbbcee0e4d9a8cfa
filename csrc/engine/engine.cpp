#include "engine/engine.h"

#include <algorithm>
#include <array>
#include <string>

#include "base/error.h"
#include "engine/draft_model.h"
#include "engine/sequence.h"

namespace llmcore {
namespace {

// Tokens that any layer may still look at behind a query, the kept ones aside; 0: all.
int64_t widest_window(const DecoderSpec& spec) {
  if (spec.layer_windows.empty()) return spec.sliding_window;
  const auto& windows = spec.layer_windows;
  if (std::find(windows.begin(), windows.end(), 0) != windows.end()) return 0;
  return *std::max_element(windows.begin(), windows.end());
}

// Below these shares of accepted guesses, the time that a step of more rows takes is not won back.
constexpr int64_t kLeastAccepted = 25, kRowPercent = 10;

// Tokens that requests draw before reserve() takes pages from them again.
constexpr int64_t kTokensBetween = 16;

// Rows of fewer logits in all are read by one thread.
constexpr int64_t kSharedLogits = 4096;

}  // namespace

Engine::Engine(std::shared_ptr<Decoder> decoder, const EngineLimits& limits, std::shared_ptr<Decoder> draft)
    : decoder_(std::move(decoder)),
      limits_(limits),
      cache_(decoder_->backend(), decoder_->kv_layout(limits.kv_type, limits.pages), decoder_->spec().num_layers),
      window_(widest_window(decoder_->spec())),
      extra_rows_(decoder_->max_logit_rows() - limits.max_batch_size),
      edited_(decoder_->spec().vocab_size) {
  check_argument(limits.max_model_len >= 1 && limits.max_batch_size >= 1, "engine: limits must be at least 1");
  check_argument(limits.draft_tokens >= 0, "engine: draft_tokens must not be negative");
  check_argument(limits.max_step_tokens >= limits.max_batch_size,
                 "engine: a step must hold a token of each running sequence");
  check_argument(
      decoder_->max_tokens() >= limits.max_step_tokens && decoder_->max_logit_rows() >= limits.max_batch_size,
      "engine: the decoder was planned for smaller steps");
  for (int i = 0; i < decoder_->backend().host_threads(); ++i) {
    samplers_.emplace_back(kernels(), decoder_->spec().vocab_size, limits.drawable, limits.max_model_len);
  }
  running_.reserve(limits.max_batch_size + 1);
  drawn_.reserve(limits.max_batch_size + extra_rows_);
  largest_.reserve(limits.max_batch_size + extra_rows_);
  ids_.reserve(limits.max_step_tokens);
  positions_.reserve(limits.max_step_tokens);
  logit_rows_.reserve(limits.max_batch_size + extra_rows_);
  rows_.reserve(2 * limits.max_batch_size);
  slices_.reserve(limits.max_batch_size);
  members_.reserve(limits.max_batch_size);
  least_accepted_ = kLeastAccepted;
  if (!draft) return;
  draft_model_ = std::make_unique<DraftModel>(std::move(draft), limits_, decoder_->spec().vocab_size);
}

Engine::~Engine() = default;

void Engine::check(const Request& request) const {
  const int64_t vocab = decoder_->spec().vocab_size;
  const int64_t length = static_cast<int64_t>(request.prompt.size());
  check_argument(length >= 1, "the prompt is empty: give at least one token");
  check_argument(request.max_tokens >= 1, "max_tokens must be at least 1");
  check_argument(request.n >= 1, "n must be at least 1");
  check_argument(request.score_from >= 0, "score_from must not be negative");
  check_argument(request.score_from == 0 || extra_rows_ > 0, "engine: planned without rows for scores of a prompt");
  const auto check_id = [&](int32_t id, const char* what) {
    check_argument(id >= 0 && id < vocab, std::string(what) + " holds id " + std::to_string(id) + ", outside [0, " +
                                              std::to_string(vocab) + ")");
  };
  for (const int32_t id : request.prompt) check_id(id, "the prompt");
  for (const auto& [id, bias] : request.sampling.logit_bias) check_id(id, "logit_bias");
  for (const int32_t id : request.sampling.allowed) check_id(id, "allowed_token_ids");
  for (const std::vector<int32_t>& word : request.sampling.banned) {
    check_argument(!word.empty(), "bad_words holds an empty sequence");
    for (const int32_t id : word) check_id(id, "bad_words");
  }
  const int64_t room = std::min(limits_.max_model_len, limits_.pages * kPageTokens);
  if (length >= room) {
    throw ContextLengthError("the prompt has " + std::to_string(length) + " tokens, but the context holds " +
                             std::to_string(room) + " with at least one of them for the answer");
  }
}

int64_t Engine::submit(Request request) {
  check(request);
  const int64_t length = static_cast<int64_t>(request.prompt.size());
  const int64_t room = std::min(limits_.max_model_len, limits_.pages * kPageTokens);
  request.max_tokens = std::min(request.max_tokens, room - length);
  const int64_t first = next_id_;
  try {
    add(std::move(request));
  } catch (...) {  // memory is short
    for (int64_t id = first; id < next_id_; ++id) cancel(id);
    throw;
  }
  return first;
}

void Engine::add(Request request) {
  const int64_t length = static_cast<int64_t>(request.prompt.size());
  Sequence* leader = nullptr;
  for (int64_t i = 0; i < request.n; ++i) {
    auto sequence = std::make_unique<Sequence>();
    sequence->id = next_id_++;
    sequence->request = request;
    sequence->request.sequence += static_cast<uint64_t>(i);
    sequence->tokens.reserve(length + request.max_tokens);
    sequence->tokens = request.prompt;
    sequence->pages.reserve(pages_for(length + request.max_tokens));
    sequence->drafts.reserve(limits_.draft_tokens);
    sequence->scored = std::max<int64_t>(1, request.score_from);
    if (leader) {
      sequence->request.score_from = 0;  // the prompt's scores come once
      sequence->leader = leader;
      ++leader->followers;
    } else {
      leader = sequence.get();
    }
    insert_waiting(std::move(sequence));
  }
}

PageTables Engine::reserve(const std::vector<int64_t>& lengths) {
  const int64_t room = std::min(limits_.max_model_len, limits_.pages * kPageTokens);
  PageTables tables;
  for (const int64_t length : lengths) {
    check_argument(length >= 1, "a text has no tokens");
    if (length > room) {
      throw ContextLengthError("a text has " + std::to_string(length) + " tokens, but the context holds " +
                               std::to_string(room));
    }
    tables.emplace_back(pages_for(length));
  }
  PagePool& pool = cache_.pool();
  size_t taken = 0;
  for (; taken < tables.size(); ++taken) {
    const int64_t pages = static_cast<int64_t>(tables[taken].size());
    const int64_t awaited = waiting_.empty() ? 0 : pages_for(waiting_.front()->length() + 1);
    if (pages + awaited > pool.free()) {
      if (taken > 0) break;
      if (!idle()) {
        if (pages > pool.total() - lent_ || counters_.tokens < reserved_at_ + kTokensBetween) return {};
        reserved_at_ = counters_.tokens;
        while (pages > pool.free() && !running_.empty()) preempt();
      }
      if (pages > pool.free()) return {};
    }
    for (int32_t& page : tables[taken]) page = cache_.prefixes().take();
    lent_ += pages;
  }
  tables.resize(taken);
  return tables;
}

void Engine::release(const PageTables& tables) {
  for (const std::vector<int32_t>& table : tables) {
    for (const int32_t page : table) cache_.pool().release(page);
    lent_ -= static_cast<int64_t>(table.size());
  }
}

void Engine::cancel(int64_t id) {
  const auto has_id = [id](const SequencePtr& s) { return s->id == id; };
  if (const auto it = std::find_if(running_.begin(), running_.end(), has_id); it != running_.end()) {
    forget(**it);
    running_.erase(it);
  } else if (const auto at = std::find_if(waiting_.begin(), waiting_.end(), has_id); at != waiting_.end()) {
    forget(**at);
    waiting_.erase(at);
  }
}

// What must be undone before a sequence is destroyed.
void Engine::forget(Sequence& sequence) {
  free_pages(sequence);
  if (sequence.leader) --sequence.leader->followers;
  if (sequence.followers == 0) return;
  for (const SequencePtr& s : waiting_) {
    if (s->leader == &sequence) s->leader = nullptr;
  }
}

std::vector<Output> Engine::step(const Poll& poll, const LogitsEditor& editor) {
  std::vector<Output> outputs;
  schedule(poll);
  if (ids_.empty()) return outputs;
  const Batch batch{ids_.data(),
                    positions_.data(),
                    static_cast<int64_t>(ids_.size()),
                    {slices_.data(), static_cast<int64_t>(slices_.size())}};
  const auto begin = std::chrono::steady_clock::now();
  decoder_->forward(batch, cache_, poll);
  if (draft_model_) weigh_guesses(std::chrono::steady_clock::now() - begin);
  for (size_t i = 0; i < members_.size(); ++i) {
    members_[i]->computed += slices_[i].tokens - static_cast<int64_t>(members_[i]->drafts.tokens().size());
  }
  ++counters_.steps;
  if (!rows_.empty()) read_rows(outputs, editor);
  for (Sequence* s : members_) note_pages(*s);
  for (const Output& output : outputs) {
    if (output.finish != FinishReason::kNone) cancel(output.request);
  }
  return outputs;
}

// What the draft model guesses must be right often enough to win back the time it takes. Only time depends on it.
void Engine::weigh_guesses(std::chrono::duration<double> step) {
  if (guess_seconds_ == 0) return;
  step_seconds_ = step_seconds_ == 0 ? step.count() : 0.9 * step_seconds_ + 0.1 * step.count();
  least_accepted_ = kRowPercent + static_cast<int64_t>(100.0 * std::min(guess_seconds_ / step_seconds_, 1.0));
}

void Engine::read_rows(std::vector<Output>& outputs, const LogitsEditor& editor) {
  const int64_t vocab = decoder_->spec().vocab_size, count = static_cast<int64_t>(logit_rows_.size());
  const float* logits = nullptr;  // [count, vocab]
  if (!draw_from_largest(editor)) {
    logits = decoder_->backend().read(decoder_->logits(logit_rows_.data(), count), count * vocab);
    draw_ahead(logits, editor);
  }
  for (const Rows& rows : rows_) {
    if (rows.scores) {
      score(rows, logits + rows.row * vocab, outputs);
    } else {
      sample(rows, logits + rows.row * vocab, editor, outputs);
    }
  }
}

// Where few logits decide the tokens of all rows, the largest, none are written. Not where one isn't a number: the
// sampler knows what to say then.
bool Engine::draw_from_largest(const LogitsEditor& editor) {
  largest_.resize(logit_rows_.size());
  for (const Rows& rows : rows_) {
    const Sequence& s = *rows.sequence;
    const Request& r = s.request;
    const bool masked = !r.stop_ids.empty() && s.output_tokens() < r.min_tokens;
    const int32_t deciding = r.sampling.deciding();
    if (rows.scores || s.followers > 0 || (r.edits_logits && editor) || masked || deciding < 1 ||
        deciding > LargestColumns::kMost || deciding >= limits_.drawable) {
      return false;
    }
    for (int64_t i = 0; i < rows.rows; ++i) largest_[rows.row + i].wanted = deciding;
  }
  const int64_t count = static_cast<int64_t>(logit_rows_.size());
  decoder_->largest_logits(logit_rows_.data(), count, limits_.drawable, largest_.data());
  const auto usable = [](const LargestColumns& row) { return row.sound && row.found > 0; };
  if (!std::all_of(largest_.begin(), largest_.end(), usable)) return false;
  drawn_.resize(logit_rows_.size());
  std::array<Candidate, LargestColumns::kMost> candidates;
  for (Rows& rows : rows_) {
    const Sequence& s = *rows.sequence;
    for (int64_t i = 0; i < rows.rows; ++i) {
      const LargestColumns& row = largest_[rows.row + i];
      for (int32_t j = 0; j < row.found; ++j) candidates[j] = {row.best[j].column, row.best[j].value};
      const SamplerHistory history{.total = s.length() + i, .sequence = s.request.sequence};
      const std::span<const Candidate> found(candidates.data(), static_cast<size_t>(row.found));
      drawn_[rows.row + i] = {samplers_[0].sample(found, s.request.sampling, history), nullptr};
    }
    rows.drawn = rows.row;
  }
  return true;
}

// Draws the tokens of sequences that have one row and nothing that must happen in order, all threads at once.
void Engine::draw_ahead(const float* logits, const LogitsEditor& editor) {
  drawn_.clear();
  for (Rows& rows : rows_) {
    const Request& r = rows.sequence->request;
    if (rows.scores || rows.rows > 1 || rows.sequence->followers > 0 || (r.edits_logits && editor)) continue;
    rows.drawn = static_cast<int64_t>(drawn_.size());
    drawn_.emplace_back();
  }
  const int64_t vocab = decoder_->spec().vocab_size;
  if (static_cast<int64_t>(drawn_.size()) * vocab < kSharedLogits) {
    for (Rows& rows : rows_) rows.drawn = -1;
    return;
  }
  decoder_->backend().for_each_on_host(static_cast<int64_t>(rows_.size()), [&](int64_t i, int thread) {
    const Rows& rows = rows_[i];
    if (rows.drawn < 0) return;
    try {
      drawn_[rows.drawn].token = draw(*rows.sequence, logits + rows.row * vocab, samplers_[thread]);
    } catch (...) {
      drawn_[rows.drawn].error = std::current_exception();
    }
  });
}

Output Engine::make_output(const Sequence& s) const {
  Output output;
  output.request = s.id;
  output.queue_time = std::chrono::duration<double>(s.started - s.submitted).count();
  output.preemptions = s.preemptions;
  output.cached_tokens = s.cached_tokens;
  return output;
}

void Engine::score(const Rows& rows, const float* logits, std::vector<Output>& outputs) {
  Sequence& s = *rows.sequence;
  Output output = make_output(s);
  output.has_token = false;
  try {
    for (int64_t i = 0; i < rows.rows; ++i) {
      const int32_t next = s.tokens[rows.position + i + 1];
      output.scores.push_back(
          samplers_[0].logprobs(logits + i * decoder_->spec().vocab_size, next, s.request.score_logprobs));
    }
    s.scored = rows.position + rows.rows + 1;
  } catch (const NumericError& e) {
    output.finish = FinishReason::kError;
    output.error = e.what();
  }
  outputs.push_back(std::move(output));
}

// Draws the next token, and as long as it is the one that was guessed, the one after it from the row of the guess.
void Engine::sample(const Rows& rows, const float* logits, const LogitsEditor& editor, std::vector<Output>& outputs) {
  const int64_t vocab = decoder_->spec().vocab_size;
  Sequence& s = *rows.sequence;
  if (!outputs.empty() && outputs.back().request == s.id && outputs.back().finish != FinishReason::kNone) return;
  if (s.followers > 0) fork(s, logits, editor, outputs);
  const std::vector<int32_t>& guesses = s.drafts.tokens();
  int64_t accepted = 0;
  for (int64_t i = 0; i < rows.rows; ++i) {
    outputs.push_back(sample_row(s, logits + i * vocab, editor, rows.drawn < 0 ? nullptr : &drawn_[rows.drawn + i]));
    const Output& output = outputs.back();
    if (i + 1 == rows.rows || output.token.id != guesses[i] || output.finish != FinishReason::kNone) break;
    ++accepted;
  }
  if (guesses.empty()) return;
  s.computed += accepted;
  s.drafts.computed = std::min(s.drafts.computed, s.computed);
  accepted_share_ = 0.98 * accepted_share_ + 0.02 * static_cast<double>(accepted) / static_cast<double>(guesses.size());
  s.drafts.note(static_cast<int64_t>(guesses.size()), accepted, least_accepted_);
  counters_.drafted += static_cast<int64_t>(guesses.size());
  counters_.accepted += accepted;
}

SampledToken Engine::draw(Sequence& s, const float* logits, Sampler& sampler) {
  const Request& r = s.request;
  SamplerHistory history{s.tokens.data(), s.prompt(), s.length(), r.sequence, nullptr, 0, &s.sampler};
  if (s.output_tokens() < r.min_tokens) {
    history.banned = r.stop_ids.data();
    history.banned_count = static_cast<int64_t>(r.stop_ids.size());
  }
  return sampler.sample(logits, r.sampling, history);
}

Output Engine::sample_row(Sequence& s, const float* logits, const LogitsEditor& editor, Drawn* drawn) {
  const Request& r = s.request;
  Output output = make_output(s);
  try {
    const float* row = logits;
    if (r.edits_logits && editor) {
      std::copy(logits, logits + decoder_->spec().vocab_size, edited_.begin());
      editor(s.id, s.tokens, s.prompt(), edited_.data());
      row = edited_.data();
    }
    if (drawn && drawn->error) std::rethrow_exception(drawn->error);
    output.token = drawn ? std::move(drawn->token) : draw(s, row, samplers_[0]);
    if (row != logits && r.sampling.logprobs >= 0) {  // those of the model
      output.token = samplers_[0].logprobs(logits, output.token.id, r.sampling.logprobs);
    }
    s.tokens.push_back(output.token.id);
    output.finish = finish_reason(s, output.token.id);
    ++counters_.tokens;
  } catch (const std::exception& e) {  // this request's alone
    output.finish = FinishReason::kError;
    output.error = e.what();
  }
  return output;
}

// The leader's prompt is computed: its followers share the pages and draw from the same logits, as far as there are
// places. The others run later, like any request that finds its prompt in the prefix cache.
void Engine::fork(Sequence& leader, const float* logits, const LogitsEditor& editor, std::vector<Output>& outputs) {
  leader.followers = 0;
  for (size_t i = 0; i < waiting_.size();) {
    Sequence& s = *waiting_[i];
    if (s.leader != &leader) {
      ++i;
      continue;
    }
    s.leader = nullptr;
    if (static_cast<int64_t>(running_.size()) >= limits_.max_batch_size) {
      ++i;
      continue;
    }
    s.pages.assign(leader.pages.begin(), leader.pages.end());
    s.computed = leader.computed;
    s.noted = leader.noted;
    s.entry = leader.entry;
    s.passed = leader.passed;
    s.started = leader.started;
    s.cached_tokens = leader.cached_tokens;
    const int64_t kept = std::min(pages_for(decoder_->spec().kept_tokens), s.passed);
    for (int64_t page = 0; page < static_cast<int64_t>(s.pages.size()); ++page) {
      if (page < kept || page >= s.passed) cache_.pool().share(s.pages[page]);
    }
    SequencePtr follower = take_waiting(i);
    outputs.push_back(sample_row(*follower, logits, editor));
    insert_running(std::move(follower));
  }
}

FinishReason Engine::finish_reason(const Sequence& s, int32_t token) const {
  const auto& stops = s.request.stop_ids;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) return FinishReason::kStop;
  return s.output_tokens() >= s.request.max_tokens ? FinishReason::kLength : FinishReason::kNone;
}

std::vector<uint8_t> Engine::export_prefix(const std::vector<int32_t>& tokens, const CacheSalt& salt) {
  std::vector<int32_t> pages;
  int64_t entry = 0;
  const int64_t whole = static_cast<int64_t>(tokens.size()) / kPageTokens;
  for (int64_t i = 0; i < whole; ++i) {
    const int32_t page = cache_.prefixes().find(entry, salt, tokens.data() + i * kPageTokens);
    if (page < 0) break;
    pages.push_back(page);
    entry = cache_.prefixes().serial(page);
  }
  std::vector<uint8_t> bytes(pages.size() * static_cast<size_t>(cache_.page_bytes()));
  for (size_t i = 0; i < pages.size(); ++i) {
    cache_.read_page(pages[i], bytes.data() + i * static_cast<size_t>(cache_.page_bytes()));
  }
  return bytes;
}

int64_t Engine::import_prefix(const std::vector<int32_t>& tokens, const CacheSalt& salt, const uint8_t* data,
                              int64_t pages) {
  check_argument(limits_.prefix_cache, "engine: there is no prefix cache to put pages into");
  check_argument(pages >= 0 && pages * kPageTokens <= static_cast<int64_t>(tokens.size()),
                 "engine: more pages than the tokens fill");
  // Each page stays held until all are in, so that none of them makes place for a later one.
  std::vector<int32_t> held;
  int64_t entry = 0;
  for (int64_t i = 0; i < pages; ++i) {
    const int32_t* of_page = tokens.data() + i * kPageTokens;
    int32_t page = cache_.prefixes().find(entry, salt, of_page);
    if (page >= 0) {
      cache_.pool().share(page);
    } else {
      page = cache_.prefixes().take();
      if (page < 0) break;
      cache_.write_page(page, data + i * cache_.page_bytes());
      cache_.prefixes().insert(entry, salt, of_page, page);
    }
    held.push_back(page);
    entry = cache_.prefixes().serial(page);
  }
  for (size_t i = held.size(); i-- > 0;) cache_.pool().release(held[i]);
  return static_cast<int64_t>(held.size());
}

int64_t Engine::kv_bytes() const { return cache_.nbytes() + (draft_model_ ? draft_model_->kv_bytes() : 0); }

EngineStats Engine::stats() const {
  EngineStats s = counters_;
  s.pages_total = cache_.pool().total();
  s.pages_free = cache_.pool().free();
  s.running = static_cast<int64_t>(running_.size());
  s.waiting = static_cast<int64_t>(waiting_.size());
  return s;
}

}  // namespace llmcore
