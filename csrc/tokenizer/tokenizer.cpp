#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <span>
#include <thread>

#include "base/error.h"

namespace llmcore {
namespace {

constexpr std::string_view kMetaspace = "\xE2\x96\x81";
// Idle working states kept for the next caller; more than this many threads at once allocate anew.
constexpr size_t kIdleStates = 16;

bool begins_with_space(std::string_view text, bool metaspace) {
  return text.starts_with(' ') || (metaspace && text.starts_with(kMetaspace));
}

/// Byte places to character places. A token that holds a part of a character covers the character.
void to_characters(std::string_view text, std::vector<Span>& spans, size_t first) {
  const auto leads = [&](size_t& at, uint32_t& count, size_t to) {
    for (; at < to; ++at) count += (static_cast<uint8_t>(text[at]) & 0xC0) != 0x80;
  };
  size_t begin_at = 0, end_at = 0;
  uint32_t begin_count = 0, end_count = 0;
  for (Span& span : std::span(spans).subspan(first)) {
    if (span.begin == span.end) {
      leads(end_at, end_count, span.end);
      span = {end_count, end_count};
      continue;
    }
    leads(begin_at, begin_count, span.begin + 1);
    leads(end_at, end_count, span.end);
    span = {begin_count - 1, end_count};
  }
}

}  // namespace

/// Text ready to be encoded: a stretch of the caller's text, or a normalised copy in Output::buffer. Byte i of it is
/// byte origin[i] of the caller's text, or begin + i when there is no origin.
struct Tokenizer::View {
  std::string_view text;
  size_t begin;
  const uint32_t* origin;
  const char* readable_end;

  size_t place(size_t i) const { return origin ? origin[i] : begin + i; }
};

struct Tokenizer::Output {
  std::vector<uint32_t>& ids;
  std::vector<Span>* spans;
  EncodeState& state;
  const std::vector<uint32_t>* guarded;
  std::string buffer;
  std::vector<uint32_t> origin;

  void push(uint32_t id, size_t begin, size_t end) {
    ids.push_back(id);
    if (spans) spans->push_back({static_cast<uint32_t>(begin), static_cast<uint32_t>(end)});
  }
};

Tokenizer::Tokenizer(TokenizerSpec spec) : bpe_(std::move(spec.bpe)), spec_(std::move(spec)) {
  for (const std::vector<uint32_t>* ids : {&spec_.prefix_ids, &spec_.suffix_ids}) {
    for (const uint32_t id : *ids) {
      if (id >= size()) throw TokenizerError("tokenizer: the template names id " + std::to_string(id) + ", not there");
    }
  }
  for (const AddedToken& token : spec_.added) {
    if (token.id >= size()) throw TokenizerError("tokenizer: added id " + std::to_string(token.id) + " is not there");
    for (const int allow : {0, 1}) {
      if (token.control && !allow) continue;
      (token.normalized ? normalized_ : raw_)[allow].add(token);
    }
  }
  for (const int allow : {0, 1}) {
    raw_[allow].build();
    normalized_[allow].build();
  }
}

std::unique_ptr<EncodeState> Tokenizer::borrow() const {
  {
    const std::lock_guard lock(states_mutex_);
    if (!states_.empty()) {
      std::unique_ptr<EncodeState> state = std::move(states_.back());
      states_.pop_back();
      return state;
    }
  }
  return std::make_unique<EncodeState>();
}

void Tokenizer::give_back(std::unique_ptr<EncodeState> state) const {
  const std::lock_guard lock(states_mutex_);
  if (states_.size() < kIdleStates) states_.push_back(std::move(state));
}

Tokenizer::View Tokenizer::normalise(const View& part, Output& out) const {
  const bool wanted = spec_.space_prefix == SpacePrefix::kEverySegment ||
                      (spec_.space_prefix == SpacePrefix::kTextStart && part.begin == 0);
  const bool prefix = wanted && (spec_.prefix_even_if_space || !begins_with_space(part.text, spec_.metaspace));
  size_t mark = spec_.metaspace ? part.text.find(kMetaspace) : part.text.npos;
  if (!prefix && mark == part.text.npos) return part;
  out.buffer.assign(prefix ? 1 : 0, ' ');
  const bool mapped = out.spans || out.guarded;
  out.origin.assign(mapped && prefix ? 1 : 0, static_cast<uint32_t>(part.begin));
  const auto note = [&](size_t from, size_t to) {
    for (size_t i = from; mapped && i < to; ++i) out.origin.push_back(static_cast<uint32_t>(part.begin + i));
  };
  size_t done = 0;
  for (; mark != part.text.npos; mark = part.text.find(kMetaspace, done)) {
    out.buffer.append(part.text, done, mark - done).push_back(' ');
    note(done, mark + 1);
    done = mark + kMetaspace.size();
  }
  out.buffer.append(part.text, done);
  note(done, part.text.size() + 1);
  return {out.buffer, part.begin, mapped ? out.origin.data() : nullptr, out.buffer.data() + out.buffer.size()};
}

void Tokenizer::encode_plain(const View& view, Output& out) const {
  EncodeState& state = out.state;
  for (size_t at = 0; at < view.text.size();) {
    const std::string_view rest = view.text.substr(at);
    state.batch.next(spec_.stages, rest);
    bpe_.refine(rest.data(), state.batch.ends, state.finer);
    if (!out.spans) bpe_.encode_pieces(rest.data(), state.batch.ends, view.readable_end, state, out.ids);
    size_t begin = 0;
    for (size_t i = 0; out.spans && i < state.batch.ends.size(); ++i) {
      const size_t end = state.batch.ends[i];
      bpe_.encode_symbols(rest.substr(begin, end - begin), state);
      for (const Symbol& s : state.symbols) {
        out.push(s.id, view.place(at + begin), view.place(at + begin + s.len));
        begin += s.len;
      }
    }
    at += state.batch.ends.back();
  }
}

void Tokenizer::encode_segment(View view, bool allow_control, Output& out) const {
  if (spec_.prefix_before_added) view = normalise(view, out);
  const AddedMatcher& matcher = normalized_[allow_control];
  if (matcher.empty()) {
    encode_plain(spec_.prefix_before_added ? view : normalise(view, out), out);
    return;
  }
  std::vector<Segment> segments;
  matcher.split(view.text, 0, view.text.size(), {out.guarded, view.origin, view.begin}, segments);
  for (const Segment& s : segments) {
    if (s.id != kNoId) {
      out.push(s.id, view.place(s.begin), view.place(s.end));
      continue;
    }
    const View part{view.text.substr(s.begin, s.end - s.begin), view.begin + s.begin,
                    view.origin ? view.origin + s.begin : nullptr, view.readable_end};
    encode_plain(spec_.prefix_before_added ? part : normalise(part, out), out);
  }
}

void Tokenizer::encode(std::string_view text, bool add_special, bool allow_control, std::vector<uint32_t>& ids,
                       std::vector<Span>* spans, const std::vector<uint32_t>* guarded) const {
  if (text.size() >= kNoId) throw LimitError("tokenizer: a text of 4 GiB or more; encode it in parts");
  std::unique_ptr<EncodeState> state = borrow();
  Output out{ids, spans, *state, guarded, {}, {}};
  if (add_special) {
    for (const uint32_t id : spec_.prefix_ids) out.push(id, 0, 0);
  }
  const size_t first = spans ? spans->size() : 0;
  const char* const end = text.data() + text.size();
  for (const Segment& s : split_added(text, allow_control, guarded)) {
    if (s.id != kNoId) {
      out.push(s.id, s.begin, s.end);
    } else {
      encode_segment({text.substr(s.begin, s.end - s.begin), s.begin, nullptr, end}, allow_control, out);
    }
  }
  if (spans) to_characters(text, *spans, first);
  if (add_special) {
    for (const uint32_t id : spec_.suffix_ids) out.push(id, 0, 0);
  }
  give_back(std::move(state));
}

std::vector<std::vector<uint32_t>> Tokenizer::encode_batch(const std::vector<std::string_view>& texts, bool add_special,
                                                           bool allow_control, int threads) const {
  std::vector<std::vector<uint32_t>> results(texts.size());
  std::atomic<size_t> next{0};
  std::mutex failure_mutex;
  std::exception_ptr failure;
  const auto work = [&] {
    try {
      for (size_t i = next++; i < texts.size(); i = next++) encode(texts[i], add_special, allow_control, results[i]);
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
      next = texts.size();
    }
  };
  {
    std::vector<std::jthread> pool;
    const size_t wanted = std::min<size_t>(texts.size(), static_cast<size_t>(std::max(threads, 1)));
    for (size_t i = 1; i < wanted; ++i) pool.emplace_back(work);
    work();
  }
  if (failure) std::rethrow_exception(failure);
  return results;
}

void Tokenizer::decode(const uint32_t* ids, size_t count, const std::vector<bool>& skip, std::string& out) const {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t id = ids[i];
    if (id >= size() || bpe_.kind(id) == TokenKind::kGap) {
      throw ArgumentError("decode: id " + std::to_string(id) + " at position " + std::to_string(i) +
                          " is not in the vocabulary of " + std::to_string(size()) + " ids");
    }
    if (id < skip.size() && skip[id]) continue;
    out.append(bpe_.token(id));
  }
}

std::vector<Segment> Tokenizer::split_added(std::string_view text, bool allow_control,
                                            const std::vector<uint32_t>* guarded) const {
  std::vector<Segment> segments;
  raw_[allow_control].split(text, 0, text.size(), {guarded}, segments);
  return segments;
}

std::vector<size_t> Tokenizer::pieces(std::string_view text) const {
  std::vector<size_t> ends;
  split_pieces(spec_.stages, text, ends);
  return ends;
}

}  // namespace llmcore
