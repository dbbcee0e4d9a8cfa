// Merging the symbols of one piece (class Bpe; bpe.cpp builds the tables and looks pieces up).

#include <algorithm>
#include <functional>

#include "base/error.h"
#include "tokenizer/bpe.h"
#include "tokenizer/models.h"
#include "tokenizer/unicode.h"

namespace llmcore {
namespace {

// Symbols that the quadratic merge takes at most, and bytes up to which it beats cutting the piece into parts (measured
// with random letters).
constexpr size_t kFewSymbols = 256;
constexpr size_t kShortPiece = 96;
// Bytes of a part: a power of two, as are the longest tokens of one repeated character. Three quarters of it where a
// part begins with a character of three bytes: then it has a power of two of them, and more seams fall between tokens.
constexpr size_t kPartBytes = 64;
static_assert(kPartBytes <= PieceCache::kBytes && kPartBytes <= kShortPiece);
// What may precede a long run of one character, and runs of symbols that are worth treating as such.
constexpr size_t kBeforeRun = 8, kFewRuns = 64;

/// Whether a text is, a few bytes aside, one character again and again.
bool is_run(std::string_view text) {
  size_t unit = 1;
  while (unit < 4 && unit < text.size() && (static_cast<uint8_t>(text[text.size() - unit]) & 0xC0) == 0x80) ++unit;
  if (text.size() < kBeforeRun + 2 * unit) return false;
  const std::string_view run = text.substr(kBeforeRun);
  return run.substr(unit) == run.substr(0, run.size() - unit);
}

/// Neighbours that are the same symbol.
struct Run {
  Symbol symbol;
  size_t count;
};

[[noreturn]] void throw_no_token(uint8_t byte) {
  throw TokenizerError("tokenizer: no token for byte " + std::to_string(byte));
}

}  // namespace

/// The symbol of one byte.
inline uint32_t Bpe::start_byte(uint8_t byte) const {
  const uint32_t id = byte_symbols_[byte];
  if (id == kNoId) throw_no_token(byte);
  return id;
}

/// Writes symbols of a piece to begin merging with, or their ids alone, and returns how many there are: at most one per
/// byte, but up to CharacterStarts::kWritten more may be written to.
template <class Start>
size_t Bpe::start_symbols(std::string_view piece, Start* starts) const {
  if (spec_.characters) return start_characters(piece, starts);
  const uint8_t* const p = reinterpret_cast<const uint8_t*>(piece.data());
  uint32_t before = CharacterStarts::kNothing;
  size_t n = 0;
  for (size_t i = 0; i < piece.size();) {
    const uint8_t lead = p[i];
    size_t len = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : 3, count = 0;
    if (lead < 0x80) {
      before = lead;
    } else if (CharacterStarts::leads(lead) && len <= piece.size() - i) {
      const uint32_t code = decode_utf8(p + i);
      const uint64_t bytes = others_known_ ? CharacterStarts::as_bytes(byte_symbols_, p + i, len) : 0;
      count = character_starts_.write(code, before, bytes, starts + n);
      before = code;
    } else {  // of four bytes, or a piece begins or ends inside of a character
      len = lead >= 0xF0 && piece.size() - i >= 4 ? 4 : 1;
      before = len == 4 ? decode_utf8(p + i) : CharacterStarts::kNothing;
    }
    if (count == 0) {
      for (; count < len; ++count) set_start(starts[n + count], start_byte(p[i + count]), 1);
    }
    n += count;
    i += len;
  }
  return n;
}
template size_t Bpe::start_symbols(std::string_view piece, Symbol* starts) const;
template size_t Bpe::start_symbols(std::string_view piece, uint32_t* starts) const;

template <class Start>
size_t Bpe::start_characters(std::string_view piece, Start* starts) const {
  const uint8_t* const p = reinterpret_cast<const uint8_t*>(piece.data());
  const uint32_t unknown = spec_.unk_id;
  size_t n = 0;
  for (size_t i = 0; i < piece.size();) {
    const size_t len = std::min<size_t>(utf8_length(p[i]), piece.size() - i);
    const std::string_view one = piece.substr(i, len);
    const bool in_table = CharacterStarts::leads(p[i]) && len == utf8_length(p[i]);
    const size_t count =
        in_table ? character_starts_.write(decode_utf8(p + i), CharacterStarts::kNothing, 0, starts + n) : 0;
    i += len;
    n += count;
    if (count > 0) continue;
    const uint32_t id = len == 1 ? byte_symbols_[p[i - 1]] : words_.find(one, len);
    const auto byte_id = [&](char c) { return spec_.byte_ids[static_cast<uint8_t>(c)]; };
    if (id != kNoId && id != unknown) {
      set_start(starts[n++], id, len);
    } else if (std::all_of(one.begin(), one.end(), [&](char c) { return byte_id(c) != kNoId; })) {
      for (const char c : one) set_start(starts[n++], byte_id(c), 1);
    } else if (unknown == kNoId) {
      throw TokenizerError("tokenizer: no token for a character, and no unknown token");
    } else if (spec_.fuse_unk && n > 0 && id_of(starts[n - 1]) == unknown) {
      lengthen_start(starts[n - 1], len);
    } else {
      set_start(starts[n++], unknown, len);
    }
  }
  return n;
}

void Bpe::start(std::string_view piece, std::vector<Symbol>& symbols) const {
  symbols.resize(piece.size() + CharacterStarts::kWritten);
  symbols.resize(start_symbols(piece, symbols.data()));
}

void Bpe::merge(std::string_view piece, EncodeState& state) const {
  if (piece.size() > kShortPiece && is_run(piece)) {
    start(piece, state.symbols);
    if (merge_runs(state.symbols)) return;
  }
  if (piece.size() > kShortPiece && !bytes_merge_ && merge_parts(piece, state)) return;
  merge_whole(pairs_, piece, state);
}

template <class Pairs>
void Bpe::merge_whole(const Pairs& pairs, std::string_view piece, EncodeState& state) const {
  start(piece, state.symbols);
  if (piece.size() <= kShortPiece) {
    merge_few(pairs, piece, state.symbols);
  } else {
    merge_heap(pairs, state);
  }
}
template void Bpe::merge_whole(const PairRules& pairs, std::string_view piece, EncodeState& state) const;

void Bpe::encode_with_dropout(std::string_view piece, double dropout, std::mt19937_64& random,
                              EncodeState& state) const {
  if (spec_.characters) {
    start(piece, state.symbols);
  } else {
    state.symbols.resize(piece.size());
    // Any merge may be left out, those within a character too.
    for (size_t i = 0; i < piece.size(); ++i) state.symbols[i] = {start_byte(static_cast<uint8_t>(piece[i])), 1};
  }
  merge_with_dropout(pairs_, dropout, random, state.symbols);
}

template <class Pairs>
void Bpe::merge_few(const Pairs& pairs, std::string_view piece, std::vector<Symbol>& symbols) const {
  const auto run = [&](auto merger) {
    merger.start(pairs, byte_pairs_, piece, symbols);
    for (; merger.choose(pairs); merger.settle(pairs)) merger.apply(pairs);
    symbols.resize(merger.finish(symbols.data()));
  };
  if (symbols.size() <= 64) {
    run(Merger<64>());
  } else {
    run(Merger<kFewSymbols>());
  }
}

/// Merges symbols that are few runs of equal ones, run by run: the time it takes grows with their number, not with
/// their length. Leaves the symbols as they are and returns false when there are many runs, or a pair comes about that
/// would have to be merged before the rest of a run.
bool Bpe::merge_runs(std::vector<Symbol>& symbols) const {
  std::vector<Run> runs;
  const auto append = [](std::vector<Run>& to, const Run& run) {
    if (run.count == 0) return;
    if (!to.empty() && to.back().symbol.id == run.symbol.id) {
      to.back().count += run.count;
    } else {
      to.push_back(run);
    }
  };
  for (const Symbol& s : symbols) {
    if (s.id == spec_.unk_id) return false;  // of any length
    append(runs, {s, 1});
    if (runs.size() > kFewRuns) return false;
  }
  const auto order = [&](const Run& left, const Run& right) {
    return pairs_.order(pairs_.find(left.symbol.id, right.symbol.id));
  };
  std::vector<Run> changed;
  while (true) {
    uint32_t lowest = PairTable::kNoRule;
    size_t at = 0, other = 0;  // the runs of the pair
    for (size_t k = 0; k < runs.size(); ++k) {
      for (const size_t right : {k, k + 1}) {
        if (right == runs.size() || (right == k && runs[k].count == 1)) continue;
        const uint32_t rank = order(runs[k], runs[right]);
        if (rank >= lowest) continue;
        lowest = rank;
        at = k;
        other = right;
      }
    }
    if (lowest == PairTable::kNoRule) break;
    const Symbol left = runs[at].symbol, right = runs[other].symbol;
    const uint32_t id = pairs_.result(pairs_.find(left.id, right.id));
    Run whole{{id, left.len + right.len}, 1};
    changed.assign(runs.begin(), runs.begin() + static_cast<std::ptrdiff_t>(at));
    if (at == other) {
      whole.count = runs[at].count / 2;
      const bool first = order(whole, whole) > lowest && order(whole, runs[at]) > lowest &&
                         (at == 0 || order(runs[at - 1], whole) > lowest) &&
                         (at + 1 == runs.size() || order(whole, runs[at + 1]) > lowest);
      if (!first) return false;
      append(changed, whole);
      append(changed, {left, runs[at].count % 2});
    } else {
      append(changed, {left, runs[at].count - 1});
      append(changed, whole);
      append(changed, {right, runs[other].count - 1});
    }
    for (size_t k = other + 1; k < runs.size(); ++k) append(changed, runs[k]);
    runs.swap(changed);
    if (runs.size() > kFewRuns) return false;
  }
  symbols.clear();
  for (const Run& run : runs) symbols.insert(symbols.end(), run.count, run.symbol);
  return true;
}

/// Encodes one part of a piece, or takes it from the cache. False when it has too many symbols.
bool Bpe::encode_part(std::string_view part, EncodeState& state, std::vector<Symbol>& symbols) const {
  // Not where a symbol may be of another length than its token; shorter parts are as soon merged.
  const bool cached = part.size() > kShortKeyBytes && part.size() <= kPartBytes && !unknowns_ && !odd_lengths_;
  const uint64_t hash = cached ? hash_text(part) : 0;
  if (cached) {
    const std::span<const uint32_t> ids = state.merged.find(part, hash);
    if (!ids.empty()) {
      symbols.resize(ids.size());
      for (size_t i = 0; i < ids.size(); ++i) symbols[i] = {ids[i], static_cast<uint32_t>(token(ids[i]).size())};
      return true;
    }
  }
  start(part, symbols);
  if (symbols.size() > kFewSymbols) return false;
  merge_few(pairs_, part, symbols);
  if (cached) state.merged.keep(part, hash, std::span<const Symbol>(symbols));
  return true;
}

/// True when the texts of two neighbours, the second of which begins at `at`, encode to just these two.
bool Bpe::stay_apart(std::string_view piece, size_t at, Symbol left, Symbol right, EncodeState& state) const {
  // A byte that stands for itself between characters merges with nothing; alone, it would be no character.
  if (spec_.characters && (kind(left.id) == TokenKind::kByte || kind(right.id) == TokenKind::kByte)) return true;
  if (pairs_.find(left.id, right.id) != PairTable::kNoRule) return false;
  const std::string_view both = piece.substr(at - left.len, size_t{left.len} + right.len);
  if (!encode_part(both, state, state.pair)) return false;
  return state.pair.size() == 2 && state.pair[0].id == left.id && state.pair[1].id == right.id &&
         state.pair[0].len == left.len;
}

// Symbols are the encoding of a text exactly when every two neighbours are the encoding of their own text: the first
// merge across a border would be made in the text of the two as well, where the same has been merged until then. So a
// long piece is encoded part by part. Where the neighbours at a seam don't stay apart, they are encoded together, with
// more of either side until they do. Returns false when that becomes too much work.
bool Bpe::merge_parts(std::string_view piece, EncodeState& state) const {
  std::vector<Symbol>& out = state.joined;
  std::vector<Symbol>& part = state.part;
  std::vector<Symbol>& middle = state.middle;
  size_t budget = 4 * piece.size();
  out.clear();
  for (size_t at = 0; at < piece.size();) {
    const bool thirds = utf8_length(static_cast<uint8_t>(piece[at])) == 3;
    size_t end = std::min(at + (thirds ? kPartBytes * 3 / 4 : kPartBytes), piece.size());
    while (end < piece.size() && end > at + 1 && (static_cast<uint8_t>(piece[end]) & 0xC0) == 0x80) --end;
    if (!encode_part(piece.substr(at, end - at), state, part)) return false;
    size_t used = 0;  // symbols of the part that went into the middle
    if (!out.empty() && !stay_apart(piece, at, out.back(), part.front(), state)) {
      size_t from = at - out.back().len, to = at + part.front().len;
      out.pop_back();
      used = 1;
      while (true) {
        if (to - from > budget || !encode_part(piece.substr(from, to - from), state, middle)) return false;
        budget -= to - from;
        if (!out.empty() && !stay_apart(piece, from, out.back(), middle.front(), state)) {
          from -= out.back().len;
          out.pop_back();
          continue;
        }
        if (used == part.size() || stay_apart(piece, to, middle.back(), part[used], state)) break;
        // All but the last of the middle is settled.
        for (size_t i = 0; i + 1 < middle.size(); ++i) from += middle[i].len;
        out.insert(out.end(), middle.begin(), middle.end() - 1);
        to += part[used++].len;
      }
      out.insert(out.end(), middle.begin(), middle.end());
    }
    out.insert(out.end(), part.begin() + static_cast<std::ptrdiff_t>(used), part.end());
    at = end;
  }
  state.symbols.swap(out);
  return true;
}

// A doubly linked list of symbols and a heap of (rank, position). An entry is stale when its position was swallowed or
// has another rule by now; stale entries are skipped as they come up.
template <class Pairs>
void Bpe::merge_heap(const Pairs& pairs, EncodeState& state) const {
  std::vector<Symbol>& s = state.symbols;
  const uint32_t n = static_cast<uint32_t>(s.size());
  if (s.size() >= kNoId) throw LimitError("tokenizer: a piece of text is too long");
  std::vector<uint32_t>& rule = state.rules;
  rule.assign(n, PairTable::kNoRule);
  state.prev.resize(n);
  state.next.resize(n);
  state.heap.clear();
  const auto entry = [&](uint32_t i) { return static_cast<uint64_t>(pairs.order(rule[i])) << 32 | i; };
  const auto find = [&](uint32_t left, uint32_t right) {
    return pairs.find(s[left].id, s[right].id, pairs.prefetch(s[left].id, s[right].id));
  };
  for (uint32_t i = 0; i < n; ++i) {
    state.prev[i] = i - 1;
    state.next[i] = i + 1;
    if (i + 1 == n) break;
    rule[i] = find(i, i + 1);
    if (rule[i] != PairTable::kNoRule) state.heap.push_back(entry(i));
  }
  std::make_heap(state.heap.begin(), state.heap.end(), std::greater<>());
  const auto update = [&](uint32_t i, uint32_t right) {
    rule[i] = right < n ? find(i, right) : PairTable::kNoRule;
    if (rule[i] == PairTable::kNoRule) return;
    state.heap.push_back(entry(i));
    std::push_heap(state.heap.begin(), state.heap.end(), std::greater<>());
  };
  while (!state.heap.empty()) {
    const uint64_t top = state.heap.front();
    std::pop_heap(state.heap.begin(), state.heap.end(), std::greater<>());
    state.heap.pop_back();
    const uint32_t i = static_cast<uint32_t>(top);
    if (s[i].len == 0 || rule[i] == PairTable::kNoRule || pairs.order(rule[i]) != top >> 32) continue;
    const uint32_t j = state.next[i], after = state.next[j];
    s[i] = {pairs.result(rule[i]), s[i].len + s[j].len};
    s[j].len = 0;
    state.next[i] = after;
    if (after < n) state.prev[after] = i;
    if (i > 0) update(state.prev[i], i);
    update(i, after);
  }
  s.erase(std::remove_if(s.begin(), s.end(), [](const Symbol& x) { return x.len == 0; }), s.end());
}

}  // namespace llmcore
