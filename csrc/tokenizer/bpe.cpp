#include "tokenizer/bpe.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "tokenizer/unicode.h"

namespace llmcore {
namespace {

constexpr size_t kMaxIds = size_t{1} << 24;
// Symbols that the quadratic merge takes at most, and up to which it beats cutting the piece into parts (measured with
// random letters). Ranks share a word with the symbol's place there.
constexpr size_t kFewSymbols = 256;
constexpr size_t kShortPiece = 96;
constexpr size_t kMaxRanks = size_t{1} << 23;
constexpr size_t kNotTiny = ~size_t{0};
// Bytes of a part: a power of two, as are the longest tokens of one repeated character.
constexpr size_t kPartBytes = 64;
static_assert(kPartBytes <= EncodeState::kLongBytes && kPartBytes <= kShortPiece);

[[noreturn]] void refuse(const std::string& message) { throw TokenizerError("tokenizer: " + message); }

}  // namespace

Bpe::Bpe(BpeSpec spec) : spec_(std::move(spec)) {
  check();
  index_tokens();
  pairs_.reserve(spec_.ranks.empty() ? spec_.merges.size() / 3 : size());
  if (spec_.ranks.empty()) {
    add_explicit_merges();
  } else {
    recover_merges();
  }
  index_byte_pairs();
  const auto is_byte = [&](uint32_t id) { return kind(id) == TokenKind::kByte; };
  bytes_merge_ = spec_.characters && std::any_of(rules_.begin(), rules_.end(), is_byte);
  classify_words();
}

void Bpe::check() const {
  const size_t n = spec_.kinds.size();
  if (n > kMaxIds) throw LimitError("tokenizer: " + std::to_string(n) + " ids; at most " + std::to_string(kMaxIds));
  if (spec_.text_ends.size() != n) refuse("one end of text per id is needed");
  if (spec_.byte_ids.size() != 256) refuse("256 byte ids are needed");
  if (spec_.merges.size() % 3) refuse("merges are triples of ids");
  if (!spec_.ranks.empty() && (spec_.ranks.size() != n || !spec_.merges.empty())) {
    refuse("either merges or one rank per id is needed");
  }
  const auto too_high = [](uint32_t rank) { return rank != kNoId && rank >= kMaxRanks; };
  if (spec_.merges.size() / 3 > kMaxRanks || std::any_of(spec_.ranks.begin(), spec_.ranks.end(), too_high)) {
    throw LimitError("tokenizer: more than " + std::to_string(kMaxRanks) + " merges");
  }
  uint32_t end = 0;
  for (const uint32_t e : spec_.text_ends) {
    if (e < end || e > spec_.text.size()) refuse("ends of text aren't in order");
    end = e;
  }
  if (std::any_of(spec_.kinds.begin(), spec_.kinds.end(), [](uint8_t k) { return k > 4; }))
    refuse("unknown token kind");
  const auto known = [&](uint32_t id) { return id < n; };
  if (!std::all_of(spec_.merges.begin(), spec_.merges.end(), known)) refuse("a merge names an id that isn't there");
  if (!std::all_of(spec_.byte_ids.begin(), spec_.byte_ids.end(),
                   [&](uint32_t id) { return id == kNoId || known(id); })) {
    refuse("a byte id isn't in the vocabulary");
  }
  if (spec_.unk_id != kNoId && !known(spec_.unk_id)) refuse("the unknown token isn't in the vocabulary");
}

void Bpe::index_tokens() {
  std::vector<uint32_t> sizes;
  for (uint32_t id = 0; id < size(); ++id) {
    if (kind(id) == TokenKind::kNormal) sizes.push_back(static_cast<uint32_t>(token(id).size()));
  }
  words_.reserve(sizes);
  for (uint32_t id = 0; id < size(); ++id) {
    if (kind(id) != TokenKind::kNormal) continue;
    if (token(id).empty()) refuse("token " + std::to_string(id) + " is empty");
    if (!words_.insert(token(id), id)) refuse("token " + std::to_string(id) + " has the text of another");
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    const uint32_t character = spec_.characters && byte < 0x80 ? find({&text, 1}) : kNoId;
    const uint32_t id = character != kNoId ? character : spec_.byte_ids[byte];
    byte_symbols_[byte] = spec_.characters && id == kNoId ? spec_.unk_id : id;
  }
}

void Bpe::index_byte_pairs() {
  std::vector<Merge> pairs(size_t{256} * 256);
  for (size_t i = 0; i < pairs.size(); ++i) {
    const uint32_t left = byte_symbols_[i >> 8], right = byte_symbols_[i & 255];
    if (left != kNoId && right != kNoId) pairs[i] = pairs_.find(left, right);
  }
  byte_pairs_ = std::move(pairs);
}

void Bpe::add_explicit_merges() {
  for (size_t i = 0; i < spec_.merges.size(); i += 3) {
    pairs_.insert(spec_.merges[i], spec_.merges[i + 1], {static_cast<uint32_t>(i / 3), spec_.merges[i + 2]});
  }
  rules_ = spec_.merges;
}

// A vocabulary that merges any two neighbours whose concatenation is a token needs just one rule per token: merging
// inside of a stretch doesn't depend on what surrounds it, so a token can only come about the way it does when its own
// text is encoded. Shorter tokens first, every rule that can act inside of a token is known when its turn comes.
// A token that doesn't come down to two symbols can't be reached by merging.
void Bpe::recover_merges() {
  std::vector<uint32_t> order;
  for (uint32_t id = 0; id < size(); ++id) {
    if (kind(id) == TokenKind::kNormal && spec_.ranks[id] != kNoId) order.push_back(id);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return token(a).size() < token(b).size(); });
  EncodeState state;
  std::vector<std::array<uint32_t, 3>> found;
  for (const uint32_t id : order) {
    merge(token(id), state);
    if (state.symbols.size() != 2) continue;
    const uint32_t left = state.symbols[0].id, right = state.symbols[1].id;
    if (kind(left) != TokenKind::kNormal || kind(right) != TokenKind::kNormal) continue;
    pairs_.insert(left, right, {spec_.ranks[id], id});
    found.push_back({left, right, id});
  }
  // Rules written down one by one have no equal ranks. Among equals the longer left side comes first: a run of one
  // character then grows from its left end, as it does when the leftmost of equal pairs is merged first.
  std::stable_sort(found.begin(), found.end(), [&](const auto& a, const auto& b) {
    const uint32_t rank_a = spec_.ranks[a[2]], rank_b = spec_.ranks[b[2]];
    return rank_a != rank_b ? rank_a < rank_b : token(a[0]).size() > token(b[0]).size();
  });
  for (const auto& rule : found) rules_.insert(rules_.end(), rule.begin(), rule.end());
}

void Bpe::classify_words() {
  EncodeState state;
  for (uint32_t id = 0; id < size(); ++id) {
    if (kind(id) != TokenKind::kNormal) continue;
    const std::string_view text = token(id);
    bool itself = spec_.whole_words;
    if (!itself) {
      encode_symbols(text, state);
      itself = state.symbols.size() == 1 && state.symbols[0].id == id;
    }
    if (itself) words_.mark_word(text);
    for (size_t i = 1; i < text.size() && !joins_before_space_; ++i) {
      joins_before_space_ = text[i] == ' ' && text[i - 1] != ' ';
    }
  }
}

void Bpe::start_symbols(std::string_view piece, std::vector<Symbol>& symbols) const {
  if (spec_.characters) return start_characters(piece, symbols);
  symbols.resize(piece.size());
  for (size_t i = 0; i < piece.size(); ++i) {
    const uint8_t byte = static_cast<uint8_t>(piece[i]);
    if (byte_symbols_[byte] == kNoId) refuse("no token for byte " + std::to_string(byte));
    symbols[i] = {byte_symbols_[byte], 1};
  }
}

void Bpe::start_characters(std::string_view piece, std::vector<Symbol>& symbols) const {
  symbols.clear();
  for (size_t i = 0; i < piece.size();) {
    const size_t len = std::min<size_t>(utf8_length(static_cast<uint8_t>(piece[i])), piece.size() - i);
    const std::string_view one = piece.substr(i, len);
    const uint32_t id = len == 1 ? byte_symbols_[static_cast<uint8_t>(piece[i])] : words_.find(one, piece.size() - i);
    const auto byte_id = [&](char c) { return spec_.byte_ids[static_cast<uint8_t>(c)]; };
    if (id != kNoId && id != spec_.unk_id) {
      symbols.push_back({id, static_cast<uint32_t>(len)});
    } else if (std::all_of(one.begin(), one.end(), [&](char c) { return byte_id(c) != kNoId; })) {
      for (const char c : one) symbols.push_back({byte_id(c), 1});
    } else if (spec_.unk_id == kNoId) {
      refuse("no token for a character, and no unknown token");
    } else if (spec_.fuse_unk && !symbols.empty() && symbols.back().id == spec_.unk_id) {
      symbols.back().len += static_cast<uint32_t>(len);
    } else {
      symbols.push_back({spec_.unk_id, static_cast<uint32_t>(len)});
    }
    i += len;
  }
}

void Bpe::merge(std::string_view piece, EncodeState& state) const {
  if (piece.size() > kShortPiece && !bytes_merge_ && merge_parts(piece, state)) return;
  start_symbols(piece, state.symbols);
  if (piece.size() <= kShortPiece) {
    merge_few(piece, state.symbols);
  } else {
    merge_heap(state);
  }
}

// The lowest rank is found by looking at all of them, several at a time; a symbol that is swallowed keeps its place.
void Bpe::merge_few(std::string_view piece, std::vector<Symbol>& symbols) const {
  using Lanes __attribute__((vector_size(16))) = int32_t;
  constexpr int32_t kNever = 0x7FFFFFFF;
  const size_t n = symbols.size();
  if (n < 2) return;
  Symbol* const s = symbols.data();
  alignas(16) int32_t order[kFewSymbols];  // of joining symbol i and the one after it: rank, then place
  uint32_t joined[kFewSymbols];
  uint16_t before[kFewSymbols + 1], after[kFewSymbols];
  const auto set = [&](size_t i, const Merge& m) {
    order[i] = m.rank == kNoId ? kNever : static_cast<int32_t>(m.rank << 8 | static_cast<uint32_t>(i));
    joined[i] = m.id;
  };
  size_t at = 0;
  for (size_t i = 0; i < n; ++i) {
    before[i] = static_cast<uint16_t>(i - 1);
    after[i] = static_cast<uint16_t>(i + 1);
    if (i + 1 == n) break;
    const bool bytes = s[i].len == 1 && s[i + 1].len == 1 && !byte_pairs_.empty();
    const auto byte = [&](size_t where) { return static_cast<size_t>(static_cast<uint8_t>(piece[where])); };
    set(i, bytes ? byte_pairs_[byte(at) << 8 | byte(at + 1)] : pairs_.find(s[i].id, s[i + 1].id));
    at += s[i].len;
  }
  const size_t padded = (n - 1 + 7) & ~size_t{7};
  for (size_t i = n - 1; i < padded; ++i) order[i] = kNever;
  while (true) {
    Lanes low, low2;
    std::memcpy(&low, order, sizeof low);
    std::memcpy(&low2, order + 4, sizeof low);
    for (size_t i = 8; i < padded; i += 8) {
      Lanes x, y;
      std::memcpy(&x, order + i, sizeof x);
      std::memcpy(&y, order + i + 4, sizeof y);
      low = x < low ? x : low;
      low2 = y < low2 ? y : low2;
    }
    low = low2 < low ? low2 : low;
    const int32_t best = std::min(std::min(low[0], low[1]), std::min(low[2], low[3]));
    if (best == kNever) break;
    const size_t i = static_cast<size_t>(best & 0xFF), j = after[i], next = after[j];
    s[i] = {joined[i], s[i].len + s[j].len};
    s[j].len = 0;
    order[j] = kNever;
    after[i] = static_cast<uint16_t>(next);
    before[next] = static_cast<uint16_t>(i);
    if (i > 0) set(before[i], pairs_.find(s[before[i]].id, s[i].id));
    set(i, next < n ? pairs_.find(s[i].id, s[next].id) : Merge{});
  }
  size_t count = 0;
  for (size_t i = 0; i < n; i = after[i]) s[count++] = s[i];
  symbols.resize(count);
}

/// Merges one part of a piece, or takes it from the cache.
bool Bpe::encode_part(std::string_view part, EncodeState& state, std::vector<Symbol>& symbols) const {
  EncodeState::LongSlot* slot = nullptr;
  uint64_t hash = 0;
  if (part.size() > kShortKeyBytes && part.size() <= EncodeState::kLongBytes) {
    hash = hash_text(part);
    slot = &state.long_cache.data[hash >> 32 & (EncodeState::kLongSlots - 1)];
    if (slot->hash == hash && std::string_view(slot->text.data(), slot->size) == part) {
      symbols.resize(slot->count);
      for (size_t i = 0; i < symbols.size(); ++i) {
        symbols[i] = {slot->ids[i], static_cast<uint32_t>(token(slot->ids[i]).size())};
      }
      return true;
    }
  }
  start_symbols(part, symbols);
  if (symbols.size() > kFewSymbols) return false;
  merge_few(part, symbols);
  const auto is_unknown = [&](const Symbol& s) { return s.id == spec_.unk_id; };
  if (slot && symbols.size() <= EncodeState::kLongIds && std::none_of(symbols.begin(), symbols.end(), is_unknown)) {
    slot->hash = hash;
    slot->size = static_cast<uint8_t>(part.size());
    slot->count = static_cast<uint8_t>(symbols.size());
    std::copy(part.begin(), part.end(), slot->text.begin());
    for (size_t i = 0; i < symbols.size(); ++i) slot->ids[i] = symbols[i].id;
  }
  return true;
}

/// True when the texts of two neighbours, the second of which begins at `at`, encode to just these two.
bool Bpe::stay_apart(std::string_view piece, size_t at, Symbol left, Symbol right, EncodeState& state) const {
  // A byte that stands for itself between characters merges with nothing; alone, it would be no character.
  if (spec_.characters && (kind(left.id) == TokenKind::kByte || kind(right.id) == TokenKind::kByte)) return true;
  if (pairs_.find(left.id, right.id).rank != kNoId) return false;
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
  std::vector<Symbol> middle;
  size_t budget = 4 * piece.size();
  out.clear();
  for (size_t at = 0; at < piece.size();) {
    size_t end = std::min(at + kPartBytes, piece.size());
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
void Bpe::merge_heap(EncodeState& state) const {
  std::vector<Symbol>& s = state.symbols;
  const uint32_t n = static_cast<uint32_t>(s.size());
  if (s.size() >= kNoId) throw LimitError("tokenizer: a piece of text is too long");
  std::vector<Merge>& rule = state.next_merge;
  rule.assign(n, {});
  state.prev.resize(n);
  state.next.resize(n);
  state.heap.clear();
  const auto entry = [&](uint32_t i) { return static_cast<uint64_t>(rule[i].rank) << 32 | i; };
  for (uint32_t i = 0; i < n; ++i) {
    state.prev[i] = i - 1;
    state.next[i] = i + 1;
    if (i + 1 == n) break;
    rule[i] = pairs_.find(s[i].id, s[i + 1].id);
    if (rule[i].rank != kNoId) state.heap.push_back(entry(i));
  }
  std::make_heap(state.heap.begin(), state.heap.end(), std::greater<>());
  const auto update = [&](uint32_t i, uint32_t right) {
    rule[i] = right < n ? pairs_.find(s[i].id, s[right].id) : Merge{};
    if (rule[i].rank == kNoId) return;
    state.heap.push_back(entry(i));
    std::push_heap(state.heap.begin(), state.heap.end(), std::greater<>());
  };
  while (!state.heap.empty()) {
    std::pop_heap(state.heap.begin(), state.heap.end(), std::greater<>());
    const uint64_t top = state.heap.back();
    state.heap.pop_back();
    const uint32_t i = static_cast<uint32_t>(top);
    if (s[i].len == 0 || rule[i].rank != top >> 32) continue;
    const uint32_t j = state.next[i], after = state.next[j];
    s[i] = {rule[i].id, s[i].len + s[j].len};
    s[j].len = 0;
    state.next[i] = after;
    if (after < n) state.prev[after] = i;
    if (i > 0) update(state.prev[i], i);
    update(i, after);
  }
  s.erase(std::remove_if(s.begin(), s.end(), [](const Symbol& x) { return x.len == 0; }), s.end());
}

void Bpe::encode_symbols(std::string_view piece, EncodeState& state) const {
  if (spec_.whole_words) {
    const uint32_t id = words_.find_word(piece, piece.size());
    if (id != kNoId) {
      state.symbols.assign(1, {id, static_cast<uint32_t>(piece.size())});
      return;
    }
  }
  merge(piece, state);
}

// In three steps, a block of pieces at a time: keys, with a prefetch each, as the table is larger than the caches; then
// the table; then what isn't there, whose place in the thread's cache has been prefetched meanwhile.
void Bpe::encode_pieces(const char* text, const std::vector<uint32_t>& ends, const char* readable_end,
                        EncodeState& state, std::vector<uint32_t>& ids) const {
  constexpr size_t kBlock = 64;
  std::array<ShortKey, kBlock> keys;
  std::array<size_t, kBlock> homes;
  std::array<uint32_t, kBlock> found;
  for (size_t block = 0, begin = 0; block < ends.size(); block += kBlock) {
    const size_t n = std::min(kBlock, ends.size() - block);
    size_t at = begin;
    for (size_t i = 0; i < n; ++i) {
      const size_t size = ends[block + i] - at;
      if (size <= kShortKeyBytes) {
        keys[i] = short_key(text + at, size, static_cast<size_t>(readable_end - text) - at);
        homes[i] = size <= WordTable::kTinyBytes ? words_.prefetch_tiny(keys[i]) : kNotTiny;
      } else {
        homes[i] = kNotTiny;
      }
      at += size;
    }
    size_t rare = 0;
    for (size_t i = 0; i < n; ++i) {
      found[i] = homes[i] == kNotTiny ? kNoId : words_.find_tiny_word(keys[i], homes[i]);
      if (found[i] != kNoId) continue;
      ++rare;
      if (homes[i] != kNotTiny) __builtin_prefetch(&state.slot(keys[i]));
    }
    if (rare == 0) {
      ids.insert(ids.end(), found.begin(), found.begin() + static_cast<std::ptrdiff_t>(n));
      begin = at;
      continue;
    }
    for (size_t i = 0; i < n; ++i) {
      const size_t end = ends[block + i];
      if (found[i] != kNoId) {
        ids.push_back(found[i]);
      } else {
        encode_rare({text + begin, end - begin}, static_cast<size_t>(readable_end - text) - begin, state, ids);
      }
      begin = end;
    }
  }
}

/// A piece that is no short word of the vocabulary.
void Bpe::encode_rare(std::string_view piece, size_t readable, EncodeState& state, std::vector<uint32_t>& ids) const {
  if (piece.size() > WordTable::kTinyBytes) {
    const uint32_t id = words_.find_word(piece, readable);
    if (id != kNoId) {
      ids.push_back(id);
      return;
    }
  }
  if (piece.size() > kShortKeyBytes) {
    if (piece.size() <= kPartBytes) {
      encode_part(piece, state, state.symbols);
    } else {
      merge(piece, state);
    }
    for (const Symbol& s : state.symbols) ids.push_back(s.id);
    return;
  }
  const ShortKey key = short_key(piece.data(), piece.size(), readable);
  EncodeState::CacheSlot& slot = state.slot(key);
  if (slot.key != key) {
    start_symbols(piece, state.symbols);
    merge_few(piece, state.symbols);
    if (state.symbols.size() > EncodeState::kCacheIds) {
      for (const Symbol& s : state.symbols) ids.push_back(s.id);
      return;
    }
    slot.key = key;
    slot.count = static_cast<uint32_t>(state.symbols.size());
    for (size_t i = 0; i < slot.count; ++i) slot.ids[i] = state.symbols[i].id;
  }
  ids.insert(ids.end(), slot.ids.begin(), slot.ids.begin() + slot.count);
}

}  // namespace llmcore
