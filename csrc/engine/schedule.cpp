// Which sequences run, which pages they hold, and what a step computes.

#include <algorithm>

#include "engine/draft_model.h"
#include "engine/sequence.h"

namespace llmcore {
namespace {

// While guesses of the draft model don't pay, it is tried again every so many steps.
constexpr int64_t kTried = 256;

}  // namespace

void Engine::insert_waiting(SequencePtr sequence) {
  const auto before = [](const SequencePtr& a, const SequencePtr& b) { return a->before(*b); };
  const auto at = waiting_.empty() || waiting_.back()->before(*sequence)
                      ? waiting_.end()
                      : std::upper_bound(waiting_.begin(), waiting_.end(), sequence, before);
  waiting_.insert(at, std::move(sequence));
}

void Engine::insert_running(SequencePtr sequence) {
  const auto before = [](const SequencePtr& a, const SequencePtr& b) { return a->before(*b); };
  const auto at = std::upper_bound(running_.begin(), running_.end(), sequence, before);
  running_.insert(at, std::move(sequence));
}

Engine::SequencePtr Engine::take_waiting(size_t index) {
  SequencePtr sequence = std::move(waiting_[index]);
  waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(index));
  return sequence;
}

// Gives the pages back, the last first: when pages are short the cache loses ends of texts before their beginnings.
void Engine::free_pages(Sequence& s) {
  note_pages(s);  // a follower has the pages of a step that it wasn't in
  // The last page, which isn't full, for whoever goes on from here or from a little before: the prompt's next turn, the
  // next step of a beam.
  const int64_t rest = s.computed - s.noted * kPageTokens;
  if (limits_.prefix_cache && rest > 0 && s.noted >= s.passed && cache_.pool().holders(s.pages[s.noted]) == 1 &&
      !cache_.pool().kept(s.pages[s.noted])) {
    const int32_t* const tokens = s.tokens.data() + s.noted * kPageTokens;
    cache_.prefixes().insert_start(s.entry, s.request.salt, tokens, rest, s.pages[s.noted]);
  }
  const int64_t kept = std::min(pages_for(decoder_->spec().kept_tokens), s.passed);
  for (int64_t i = static_cast<int64_t>(s.pages.size()) - 1; i >= 0; --i) {
    if (i < kept || i >= s.passed) cache_.pool().release(s.pages[i]);
  }
  s.pages.clear();
  s.computed = s.noted = s.entry = s.passed = s.drafts.computed = 0;
}

// Gives the sequence pages for `tokens` tokens that nobody else writes to, as far as there are free ones.
bool Engine::grow(Sequence& s, int64_t tokens) {
  if (s.computed % kPageTokens != 0 && s.computed / kPageTokens < static_cast<int64_t>(s.pages.size())) {
    int32_t& page = s.pages[s.computed / kPageTokens];
    if (cache_.pool().holders(page) > 1 || cache_.pool().kept(page)) {
      const int32_t own = cache_.prefixes().take();
      if (own < 0) return false;
      cache_.copy_page(page, own);
      if (draft_model_) draft_model_->copy_page(page, own);
      cache_.pool().release(page);
      page = own;
    }
  }
  while (static_cast<int64_t>(s.pages.size()) < pages_for(tokens)) {
    const int32_t page = cache_.prefixes().take();
    if (page < 0) return false;
    s.pages.push_back(page);
  }
  return true;
}

// The last of the running sequences gives its place and its pages back.
void Engine::preempt() {
  SequencePtr last = std::move(running_.back());
  running_.pop_back();
  free_pages(*last);
  ++last->preemptions;
  ++counters_.preemptions;
  insert_waiting(std::move(last));
}

// Grows a running sequence, taking pages from later ones; false when it is itself the last and had to go.
bool Engine::make_room(Sequence& sequence, int64_t tokens) {
  while (!grow(sequence, tokens)) {
    const bool last = running_.back().get() == &sequence;
    preempt();
    if (last) return false;
  }
  return true;
}

// Tokens of the sequence that may come from the prefix cache: not its last, whose logits are wanted, nor those whose
// scores are.
int64_t Engine::cacheable(const Sequence& s) const {
  if (!limits_.prefix_cache || s.computed != s.noted * kPageTokens) return 0;
  return s.request.score_from ? std::min(s.length() - 1, s.scored - 1) : s.length() - 1;
}

// Replaces what the sequence would compute next by pages of the prefix cache.
void Engine::adopt_cached(Sequence& s) {
  const int64_t usable = cacheable(s);
  while ((s.noted + 1) * kPageTokens <= usable) {
    const int32_t page = cache_.prefixes().find(s.entry, s.request.salt, s.tokens.data() + s.computed);
    if (page < 0) return;
    cache_.pool().share(page);
    if (s.noted < static_cast<int64_t>(s.pages.size())) {
      cache_.pool().release(s.pages[s.noted]);
      s.pages[s.noted] = page;
    } else {
      s.pages.push_back(page);
    }
    s.entry = cache_.prefixes().serial(page);
    ++s.noted;
    s.computed += kPageTokens;
    count_cached(s, kPageTokens);
  }
}

// After that, a page that begins as the sequence goes on. `grow` makes a copy of it, so one more page must be free.
void Engine::adopt_start(Sequence& s) {
  const int64_t usable = std::min(cacheable(s) - s.computed, kPageTokens - int64_t{1});
  if (usable <= 0 || s.noted < static_cast<int64_t>(s.pages.size())) return;
  const PrefixCache::Start start =
      cache_.prefixes().find_start(s.entry, s.request.salt, s.tokens.data() + s.computed, usable);
  if (start.page < 0) return;
  cache_.pool().share(start.page);
  s.pages.push_back(start.page);
  s.computed += start.tokens;
  count_cached(s, start.tokens);
}

void Engine::count_cached(Sequence& s, int64_t tokens) {
  if (s.preemptions > 0) return;  // its own, found again
  s.cached_tokens += tokens;
  counters_.prefix_hit_tokens += tokens;
}

// Tells the prefix cache of pages that are complete now, and gives back those that no layer will look at again.
void Engine::note_pages(Sequence& s) {
  while (limits_.prefix_cache && (s.noted + 1) * kPageTokens <= s.computed) {
    s.entry =
        cache_.prefixes().insert(s.entry, s.request.salt, s.tokens.data() + s.noted * kPageTokens, s.pages[s.noted]);
    ++s.noted;
  }
  if (window_ == 0) return;
  const int64_t kept = pages_for(decoder_->spec().kept_tokens);
  const int64_t passed = std::max<int64_t>(0, s.computed + 1 - window_) / kPageTokens;
  for (int64_t i = std::max(s.passed, kept); i < passed; ++i) {
    cache_.pool().release(s.pages[i]);
    s.pages[i] = 0;  // any page: it is not looked at
  }
  s.passed = std::max(s.passed, passed);
}

// Whether a running sequence must make place for `sequence`.
bool Engine::yields_to(const Sequence& sequence) const {
  return !running_.empty() && running_.back()->request.priority > sequence.request.priority;
}

// Lets waiting requests run while there is a place for them and pages for their tokens so far.
void Engine::admit() {
  for (size_t i = 0; i < waiting_.size();) {
    Sequence& s = *waiting_[i];
    if (s.leader) {
      ++i;
      continue;
    }
    int64_t places = static_cast<int64_t>(running_.size());
    for (const SequencePtr& other : running_) places += other->followers;
    if (places >= limits_.max_batch_size) {
      if (!yields_to(s)) return;
      preempt();
      continue;
    }
    const int64_t cached = s.cached_tokens, hits = counters_.prefix_hit_tokens;
    adopt_cached(s);
    const int64_t wanted = pages_for(s.length() + 1) - static_cast<int64_t>(s.pages.size());
    if (wanted > cache_.pool().free()) {
      free_pages(s);
      s.cached_tokens = cached;
      counters_.prefix_hit_tokens = hits;
      if (!yields_to(s)) return;
      preempt();
      continue;
    }
    if (wanted < cache_.pool().free()) adopt_start(s);
    grow(s, s.length());
    insert_running(take_waiting(i));
  }
}

// The draft model guesses for all decoding sequences at once, as many tokens as the step, the pages and max_tokens
// allow; each has a token of the step for sure.
void Engine::draft_all(const Poll& poll) {
  const bool pays = 100.0 * accepted_share_ >= static_cast<double>(least_accepted_);
  if (!pays && counters_.steps % kTried != 0) return;
  int64_t guesses = guesses_left_;
  std::vector<DraftModel::Wish> wishes;
  for (const SequencePtr& s : running_) {
    if (s->missing() != 1 || s->output_tokens() == 0 || s->drafts.paused()) continue;
    const int64_t left = s->request.max_tokens - s->output_tokens() - 1;
    const int64_t reach = draft_model_->decoder().spec().max_position_embeddings - s->length();
    const int64_t most = std::min({limits_.draft_tokens, guesses, left, reach});
    if (most <= 0 || !grow(*s, s->length() + most)) continue;
    wishes.push_back({s.get(), most});
    guesses -= most;
  }
  if (wishes.empty()) return;
  const auto begin = std::chrono::steady_clock::now();
  const int64_t rounds = draft_model_->guess(wishes, samplers_[0], poll);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  const double each = taken.count() / static_cast<double>(rounds);
  guess_seconds_ = guess_seconds_ == 0 ? each : 0.9 * guess_seconds_ + 0.1 * each;
}

// Guesses the next tokens, as many as the step, the pages and max_tokens allow.
int64_t Engine::draft(Sequence& s) {
  s.drafts.clear();
  const int64_t most = std::min({limits_.draft_tokens, guesses_left_, s.request.max_tokens - s.output_tokens() - 1});
  if (most <= 0) return 0;
  s.drafts.guess(s.tokens, most);
  const int64_t drafted = static_cast<int64_t>(s.drafts.tokens().size());
  if (drafted > 0 && !grow(s, s.length() + drafted)) s.drafts.clear();
  return static_cast<int64_t>(s.drafts.tokens().size());
}

void Engine::add_slice(Sequence& s, int64_t tokens, int64_t drafted) {
  if (s.started == Sequence::Clock::time_point{}) s.started = Sequence::Clock::now();
  const int64_t row = static_cast<int64_t>(ids_.size());
  slices_.push_back({row, tokens + drafted, s.computed, s.pages.data(), s.computed + tokens + drafted});
  members_.push_back(&s);
  for (int64_t i = 0; i < tokens + drafted; ++i) {
    ids_.push_back(i < tokens ? s.tokens[s.computed + i] : s.drafts.tokens()[i - tokens]);
    positions_.push_back(static_cast<int32_t>(s.computed + i));
  }
  const auto add_rows = [&](int64_t first, int64_t count, bool scores) {
    rows_.push_back({&s, static_cast<int64_t>(logit_rows_.size()), count, first, scores, -1});
    for (int64_t i = 0; i < count; ++i) logit_rows_.push_back(static_cast<int32_t>(row + first - s.computed + i));
  };
  if (s.request.score_from) {
    const int64_t first = std::max(s.computed, s.scored - 1), end = std::min(s.computed + tokens, s.prompt() - 1);
    if (first < end) {
      add_rows(first, end - first, true);
      extra_left_ -= end - first;
    }
  }
  if (s.computed + tokens == s.length()) add_rows(s.length() - 1, 1 + drafted, false);
  extra_left_ -= drafted;
  guesses_left_ -= drafted;
}

// Fills the batch: decoding sequences first, then prompts.
void Engine::schedule(const Poll& poll) {
  for (auto* list : {&ids_, &positions_, &logit_rows_}) list->clear();
  slices_.clear();
  members_.clear();
  rows_.clear();
  extra_left_ = extra_rows_;
  for (size_t i = 0; i < running_.size();) {
    Sequence& s = *running_[i];
    if (make_room(s, s.length())) ++i;
  }
  admit();
  // Each decoding sequence has a token of the step for sure; of the rest, guesses leave half to prompts.
  int64_t budget = limits_.max_step_tokens;
  bool prompts = false, scores = false;
  guesses_left_ = budget;
  for (const SequencePtr& s : running_) {
    s->drafts.clear();
    const bool decodes = s->missing() == 1;
    guesses_left_ -= decodes;
    prompts |= !decodes;
    scores |= !decodes && s->request.score_from;
  }
  guesses_left_ = std::min(prompts ? guesses_left_ / 2 : guesses_left_, scores ? extra_left_ / 2 : extra_left_);
  if (draft_model_) draft_all(poll);
  for (const SequencePtr& s : running_) {
    if (s->missing() != 1) continue;
    int64_t drafted = static_cast<int64_t>(s->drafts.tokens().size());
    if (!draft_model_ && s->output_tokens() > 0) drafted = draft(*s);
    add_slice(*s, 1, drafted);
    budget -= 1 + drafted;
  }
  for (const SequencePtr& s : running_) {
    if (budget == 0) return;
    if (s->missing() == 1) continue;
    adopt_cached(*s);
    int64_t tokens = std::min(s->missing(), budget);
    if (s->request.score_from) {  // a row of logits for each token that is scored
      tokens = std::min(tokens, std::max(s->computed, s->scored - 1) + extra_left_ - s->computed);
      if (tokens <= 0) continue;
    }
    add_slice(*s, tokens, 0);
    budget -= tokens;
  }
}

}  // namespace llmcore
