#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <iterator>
#include <span>
#include <utility>

#include "base/error.h"
#include "tokenizer/archive.h"
#include "tokenizer/workers.h"

namespace llmcore {
namespace {

// Idle working states kept for the next caller; more than this many threads at once allocate anew.
constexpr size_t kIdleStates = 16;
// Bytes of a text that are worth a thread, and how far from there a place to cut is looked for.
constexpr size_t kStretch = size_t{1} << 16, kSeamWithin = size_t{1} << 12;

bool begins_with_space(std::string_view text, bool metaspace) {
  return text.starts_with(' ') || (metaspace && text.starts_with(kSpaceMark));
}

void reserve_ids(std::string_view text, std::vector<uint32_t>& ids) {
  ids.reserve(ids.size() + text.size() / 4 + 16);  // about what English needs
}

/// Byte places to character places. A token that holds a part of a character covers the character.
void to_characters(std::string_view text, std::vector<Span>& spans, size_t first) {
  struct Counter {
    std::string_view text;
    size_t at = 0;
    uint32_t count = 0;
    uint32_t characters(size_t to) {
      if (to < at) at = count = 0;  // normalisation may have changed the order
      for (; at < to; ++at) count += (static_cast<uint8_t>(text[at]) & 0xC0) != 0x80;
      return count;
    }
  };
  Counter begins{text}, ends{text};
  for (Span& span : std::span(spans).subspan(first)) {
    const uint32_t end = ends.characters(span.end);
    span = {span.begin == span.end ? end : begins.characters(span.begin + 1) - 1, end};
  }
}

}  // namespace

/// Text ready to be encoded: a stretch of the caller's text, or a changed copy. Byte i of it comes from origins[i], or
/// is byte begin + i of the caller's text when there are none.
struct Tokenizer::View {
  std::string_view text;
  size_t begin;
  const Origin* origins;
  const char* readable_end;

  static View of(const MappedText& text, size_t begin) {
    return {text.text, begin, text.mapped ? text.origins.data() : nullptr, text.text.data() + text.text.size()};
  }
  View part(size_t from, size_t to) const {
    return {text.substr(from, to - from), begin + from, origins ? origins + from : nullptr, readable_end};
  }
  Span span(size_t from, size_t to) const {
    if (!origins) return {static_cast<uint32_t>(begin + from), static_cast<uint32_t>(begin + to)};
    if (from == to) return {origins[from].begin, origins[from].begin};
    Span span{origins[from].begin, origins[to - 1].end};
    for (size_t i = from; i < to; ++i) {  // normalisation may have changed the order
      span.begin = std::min(span.begin, origins[i].begin);
      span.end = std::max(span.end, origins[i].end);
    }
    return span;
  }
};

struct Tokenizer::Output {
  std::vector<uint32_t>& ids;
  std::vector<Span>* spans;
  EncodeState& state;
  const Guarded* guarded;
  Dropout* dropout;
  int threads = 1;           // more than one: among which a long stretch is cut up, with
  IdParts* parts = nullptr;  // what was there before it, and what they make of it
  std::vector<Symbol> symbols = {};

  bool mapped() const { return spans || guarded; }
  void push(uint32_t id, Span span) {
    ids.push_back(id);
    if (spans) spans->push_back(span);
  }
};

namespace {
Bpe read_vocabulary(std::string_view data) {
  ArchiveReader in(data);
  return Bpe(in);
}
}  // namespace

Tokenizer::Tokenizer(TokenizerSpec spec) : Tokenizer(std::move(spec), Bpe(std::move(spec.bpe))) {}

Tokenizer::Tokenizer(TokenizerSpec spec, std::string_view vocabulary)
    : Tokenizer(std::move(spec), read_vocabulary(vocabulary)) {}

std::string Tokenizer::save_vocabulary() const {
  ArchiveWriter out;
  bpe_.save(out);
  return out.finish();
}

Tokenizer::Tokenizer(TokenizerSpec&& spec, Bpe bpe)
    : bpe_(std::move(bpe)), spec_(std::move(spec)), model_(make_model(std::move(spec_.model))) {
  for (const std::vector<uint32_t>* ids : {&spec_.prefix_ids, &spec_.suffix_ids}) {
    for (const uint32_t id : *ids) {
      if (id >= size()) throw TokenizerError("tokenizer: the template names id " + std::to_string(id) + ", not there");
    }
  }
  if (!spec_.decoded_ends.empty() && spec_.decoded_ends.size() != size()) {
    throw TokenizerError("tokenizer: one end of decoded text per id is needed");
  }
  uint32_t end = 0;
  for (const uint32_t e : spec_.decoded_ends) {
    if (e < end || e > spec_.decoded.size()) throw TokenizerError("tokenizer: ends of decoded text aren't in order");
    end = e;
  }
  const auto for_blanks = [](Pattern stage) { return stage == Pattern::kNone || stage == Pattern::kSpaceRuns; };
  cut_by_bytes_ = bpe_.refines() && std::all_of(spec_.stages.begin(), spec_.stages.end(), for_blanks);
  for (NormalizerSpec& part : spec_.normalizers) normalizers_.emplace_back(std::move(part));
  for (PreTokenizerSpec& part : spec_.pre_tokenizers) {
    const bool first = part.kind == PreTokenizerKind::kMetaspace && (part.flags & kMetaspaceFirst);
    needs_origins_ = needs_origins_ || first;
    pre_tokenizers_.emplace_back(std::move(part));
  }
  for (AddedToken& token : spec_.added) {
    if (token.id >= size()) throw TokenizerError("tokenizer: added id " + std::to_string(token.id) + " is not there");
    if (token.normalized && !token.exact) token.content = normalized(token.content);
    if (token.content.empty()) continue;  // of a token that normalisation takes away
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

std::string_view Tokenizer::token(uint32_t id) const noexcept {
  if (spec_.decoded_ends.empty()) return bpe_.token(id);
  const uint32_t begin = id ? spec_.decoded_ends[id - 1] : 0;
  return {spec_.decoded.data() + begin, spec_.decoded_ends[id] - begin};
}

std::string Tokenizer::normalized(std::string_view text) const {
  MappedText changed(text, 0, false);
  normalize(normalizers_, changed);
  return std::move(changed.text);
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

/// `part` with the space before it and the spaces for marks that SentencePiece's vocabularies want.
Tokenizer::View Tokenizer::prefixed(const View& part, bool mapped, MappedText& changed) const {
  const bool wanted = spec_.space_prefix == SpacePrefix::kEverySegment ||
                      (spec_.space_prefix == SpacePrefix::kTextStart && part.begin == 0);
  const bool prefix = wanted && (spec_.prefix_even_if_space || !begins_with_space(part.text, spec_.metaspace));
  size_t mark = spec_.metaspace ? part.text.find(kSpaceMark) : part.text.npos;
  if (!prefix && mark == part.text.npos) return part;
  changed.mapped = mapped;
  changed.text.reserve(part.text.size() + 1);
  const auto keep = [&](size_t from, size_t to) {
    changed.text.append(part.text, from, to - from);
    for (size_t i = from; changed.mapped && i < to; ++i) {
      const Span whole = part.span(i, i + 1);
      changed.origins.push_back({whole.begin, whole.end});
    }
  };
  if (prefix) {
    const Span first = part.span(0, part.text.empty() ? 0 : 1);  // as if it were a part of what follows
    changed.push(' ', {first.begin, first.end});
  }
  size_t done = 0;
  for (; mark != part.text.npos; mark = part.text.find(kSpaceMark, done)) {
    keep(done, mark);
    done = mark + kSpaceMark.size();
    const Span whole = part.span(mark, done);
    changed.push(' ', {whole.begin, whole.end});
  }
  keep(done, part.text.size());
  return View::of(changed, part.begin);
}

void Tokenizer::push_symbols(const View& view, size_t begin, const std::vector<Symbol>& symbols, Output& out) const {
  for (const Symbol& s : symbols) {
    out.push(s.id, out.spans ? view.span(begin, begin + s.len) : Span{0, 0});
    begin += s.len;
  }
}

/// Cuts with scanners; a long text on several threads, each of which has stretches of it.
void Tokenizer::encode_scanned(const View& view, Output& out) const {
  std::vector<size_t> begins{0};
  for (size_t at = 0; out.threads > 1 && view.text.size() - at > 2 * kStretch;) {
    at += kStretch;
    const size_t seam = find_seam(spec_.stages, view.text, at, at + kSeamWithin);
    if (seam < view.text.size()) begins.push_back(at = seam);
  }
  if (begins.size() == 1) return encode_stretch(view, out);
  begins.push_back(view.text.size());
  IdParts& parts = *out.parts;
  parts.push_back(std::exchange(out.ids, {}));
  const size_t first = parts.size(), count = begins.size() - 1;
  parts.resize(first + count);
  for_tasks(count, out.threads, [&](size_t i, size_t) {
    const View stretch = view.part(begins[i], begins[i + 1]);
    reserve_ids(stretch.text, parts[first + i]);
    std::unique_ptr<EncodeState> state = borrow();
    Output own{parts[first + i], nullptr, *state, out.guarded, nullptr};
    encode_stretch(stretch, own);
    give_back(std::move(state));
  });
}

/// A batch of pieces at a time.
void Tokenizer::encode_stretch(const View& view, Output& out) const {
  EncodeState& state = out.state;
  for (size_t at = 0; at < view.text.size();) {
    const std::string_view rest = view.text.substr(at);
    const bool whole = !out.spans && !out.dropout;
    if (cut_by_bytes_ && !out.dropout) {
      bpe_.cut(rest, state.batch.ends);
    } else {
      state.batch.next(spec_.stages, rest);
      if (!out.dropout) bpe_.refine(rest.data(), state.batch.ends, state.finer);
    }
    if (whole) bpe_.encode_pieces(rest.data(), state.batch.ends, view.readable_end, state, out.ids);
    size_t begin = 0;
    for (size_t i = 0; !whole && i < state.batch.ends.size(); ++i) {
      const size_t end = state.batch.ends[i];
      const std::string_view piece = rest.substr(begin, end - begin);
      if (out.dropout) {
        bpe_.encode_with_dropout(piece, out.dropout->rate, out.dropout->random, state);
      } else {
        bpe_.encode_symbols(piece, state);
      }
      push_symbols(view, at + begin, state.symbols, out);
      begin = end;
    }
    at += state.batch.ends.back();
  }
}

/// Cuts with pre-tokenisers, which may change what they cut, and encodes with whatever model there is.
void Tokenizer::encode_cut(const View& view, Output& out) const {
  Pieces pieces;
  MappedText& text = pieces.text;
  text.mapped = out.mapped() || needs_origins_;
  text.text = view.text;
  for (size_t i = 0; text.mapped && i < view.text.size(); ++i) {
    const Span whole = view.span(i, i + 1);
    text.origins.push_back({whole.begin, whole.end});
  }
  pieces.ends.assign(1, static_cast<uint32_t>(view.text.size()));
  for (const PreTokenizer& part : pre_tokenizers_) part.apply(pieces);
  const View cut = View::of(text, view.begin);
  if (!model_ && !out.spans && !out.dropout) {
    bpe_.encode_pieces(cut.text.data(), pieces.ends, cut.readable_end, out.state, out.ids);
    return;
  }
  PieceCache& known = out.state.merged;  // here of the model's: places aren't kept
  size_t begin = 0;
  for (const uint32_t end : pieces.ends) {
    const std::string_view piece = cut.text.substr(begin, end - begin);
    std::vector<Symbol>& symbols = model_ ? out.symbols : out.state.symbols;
    if (model_) {
      const bool kept = !out.spans && piece.size() <= PieceCache::kBytes;
      const uint64_t hash = kept ? hash_text(piece) : 0;
      if (kept) {
        if (const std::span<const uint32_t> ids = known.find(piece, hash); !ids.empty()) {
          out.ids.insert(out.ids.end(), ids.begin(), ids.end());
          begin = end;
          continue;
        }
      }
      symbols.clear();
      model_->encode(piece, symbols);
      if (kept) known.keep(piece, hash, std::span<const Symbol>(symbols));
    } else if (out.dropout) {
      bpe_.encode_with_dropout(piece, out.dropout->rate, out.dropout->random, out.state);
    } else {
      bpe_.encode_symbols(piece, out.state);
    }
    push_symbols(cut, begin, symbols, out);
    begin = end;
  }
}

void Tokenizer::encode_part(const View& view, Output& out) const {
  if (view.text.empty()) return;
  if (model_ || !pre_tokenizers_.empty()) {
    encode_cut(view, out);
  } else if (spec_.prefix_before_added) {
    encode_scanned(view, out);
  } else {
    MappedText with_prefix;
    encode_scanned(prefixed(view, out.mapped(), with_prefix), out);
  }
}

void Tokenizer::encode_segment(View view, bool allow_control, Output& out) const {
  MappedText changed;
  const auto leaves = [&](const Normalizer& n) { return n.leaves(view.text); };
  if (!std::all_of(normalizers_.begin(), normalizers_.end(), leaves)) {
    changed = MappedText(view.text, view.begin, out.mapped() || needs_origins_);
    normalize(normalizers_, changed);
    view = View::of(changed, view.begin);
  }
  MappedText with_prefix;
  if (spec_.prefix_before_added) view = prefixed(view, out.mapped(), with_prefix);
  const AddedMatcher& matcher = normalized_[allow_control];
  if (matcher.empty()) return encode_part(view, out);
  std::vector<Segment> segments;
  matcher.split(view.text, 0, view.text.size(), {out.guarded, view.origins, view.begin}, segments);
  for (const Segment& s : segments) {
    if (s.id != kNoId) {
      out.push(s.id, view.span(s.begin, s.end));
    } else {
      encode_part(view.part(s.begin, s.end), out);
    }
  }
}

void Tokenizer::encode_text(std::string_view text, bool add_special, bool allow_control, Output& out) const {
  if (text.size() >= kNoId) throw LimitError("tokenizer: a text of 4 GiB or more; encode it in parts");
  if (add_special) {
    for (const uint32_t id : spec_.prefix_ids) out.push(id, {0, 0});
  }
  const char* const end = text.data() + text.size();
  for (const Segment& s : split_added(text, allow_control, out.guarded)) {
    if (s.id != kNoId) {
      out.push(s.id, {static_cast<uint32_t>(s.begin), static_cast<uint32_t>(s.end)});
    } else {
      encode_segment({text.substr(s.begin, s.end - s.begin), s.begin, nullptr, end}, allow_control, out);
    }
  }
  if (add_special) {
    for (const uint32_t id : spec_.suffix_ids) out.push(id, {0, 0});
  }
}

void Tokenizer::encode(std::string_view text, bool add_special, bool allow_control, std::vector<uint32_t>& ids,
                       std::vector<Span>* spans, const Guarded* guarded, Dropout* dropout) const {
  if (dropout && model_) throw TokenizerError("dropout is for byte-pair vocabularies");
  reserve_ids(text, ids);
  const size_t first = spans ? spans->size() : 0;
  std::unique_ptr<EncodeState> state = borrow();
  Output out{ids, spans, *state, guarded, dropout};
  encode_text(text, add_special, allow_control, out);
  if (spans) to_characters(text, *spans, first);
  give_back(std::move(state));
}

std::vector<IdParts> Tokenizer::encode_batch(const std::vector<std::string_view>& texts, bool add_special,
                                             bool allow_control, int threads) const {
  std::vector<IdParts> results(texts.size());
  // Threads that get no text of their own help with the long ones.
  const size_t sharers = worker_count(texts.size(), threads);
  const int each = std::max(threads, 1) / static_cast<int>(sharers);
  for_tasks(texts.size(), threads, [&](size_t i, size_t) {
    std::vector<uint32_t> ids;
    if (each == 1 || texts[i].size() <= 2 * kStretch) reserve_ids(texts[i], ids);
    std::unique_ptr<EncodeState> state = borrow();
    Output out{ids, nullptr, *state, nullptr, nullptr, each, &results[i]};
    encode_text(texts[i], add_special, allow_control, out);
    give_back(std::move(state));
    results[i].push_back(std::move(ids));
  });
  return results;
}

bool Tokenizer::append_first(uint32_t id, std::string& out) const {
  const std::string_view text = token(id);
  const FirstSpace drops = spec_.first_space;
  const size_t before = out.size();
  const bool byte = drops != FirstSpace::kOfText && id == bpe_.byte_ids()[' '];
  if (byte || !text.starts_with(' ')) {
    out.append(text);
  } else if (drops == FirstSpace::kAllOfToken) {
    std::copy_if(text.begin(), text.end(), std::back_inserter(out), [](char c) { return c != ' '; });
  } else {
    out.append(text.substr(drops != FirstSpace::kKept));
  }
  return drops == FirstSpace::kOfTokens ? out.size() > before : !text.empty();
}

void Tokenizer::decode(const uint32_t* ids, size_t count, const std::vector<bool>& skip, std::string& out) const {
  const auto skipped = [&](uint32_t id) { return id < skip.size() && skip[id]; };
  size_t bytes = out.size();
  for (size_t i = 0; i < count; ++i) {
    const uint32_t id = ids[i];
    if (id >= size() || bpe_.kind(id) == TokenKind::kGap) {
      throw ArgumentError("decode: id " + std::to_string(id) + " at position " + std::to_string(i) +
                          " is not in the vocabulary of " + std::to_string(size()) + " ids");
    }
    if (!skipped(id)) bytes += token(id).size();
  }
  out.reserve(bytes);
  bool begun = !drops_first_space();
  for (size_t i = 0; i < count; ++i) {
    if (skipped(ids[i])) continue;
    if (begun) {
      out.append(token(ids[i]));
    } else {
      begun = append_first(ids[i], out);
    }
  }
}

std::vector<Segment> Tokenizer::split_added(std::string_view text, bool allow_control, const Guarded* guarded) const {
  std::vector<Segment> segments;
  raw_[allow_control].split(text, 0, text.size(), {guarded}, segments);
  return segments;
}

std::vector<std::string> Tokenizer::pieces(std::string_view text) const {
  Pieces pieces{MappedText(text, 0, true), {}};
  normalize(normalizers_, pieces.text);
  const std::string_view normal = pieces.text.text;
  if (!normal.empty()) pieces.ends.push_back(static_cast<uint32_t>(normal.size()));
  if (pre_tokenizers_.empty()) {
    std::vector<size_t> ends;
    split_pieces(spec_.stages, normal, ends);
    pieces.ends.assign(ends.begin(), ends.end());
  }
  for (const PreTokenizer& part : pre_tokenizers_) part.apply(pieces);
  std::vector<std::string> found;
  size_t begin = 0;
  for (const uint32_t end : pieces.ends) {
    found.push_back(pieces.text.text.substr(begin, end - begin));
    begin = end;
  }
  return found;
}

}  // namespace llmcore
