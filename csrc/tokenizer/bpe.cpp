#include "tokenizer/bpe.h"

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "tokenizer/unicode.h"

namespace llmcore {
namespace {

// Above this many symbols the quadratic scan loses to the heap (measured with random letters).
constexpr size_t kShortPiece = 40;
constexpr size_t kMaxIds = size_t{1} << 24;

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
  all_.reserve(size());
  for (uint32_t id = 0; id < size(); ++id) {
    if (kind(id) != TokenKind::kNormal) continue;
    if (token(id).empty()) refuse("token " + std::to_string(id) + " is empty");
    if (!all_.insert(token(id), id)) refuse("token " + std::to_string(id) + " has the text of another");
  }
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
    start_symbols(token(id), state.symbols);
    if (state.symbols.size() < 2) continue;
    merge(state);
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
  words_.reserve(size());
  EncodeState state;
  for (uint32_t id = 0; id < size(); ++id) {
    if (kind(id) != TokenKind::kNormal) continue;
    const std::string_view text = token(id);
    bool itself = spec_.whole_words;
    if (!itself) {
      encode_symbols(text, state);
      itself = state.symbols.size() == 1 && state.symbols[0].id == id;
    }
    if (itself) words_.insert(text, id);
    for (size_t i = 1; i < text.size() && !joins_before_space_; ++i) {
      joins_before_space_ = text[i] == ' ' && text[i - 1] != ' ';
    }
  }
}

void Bpe::start_symbols(std::string_view piece, std::vector<Symbol>& symbols) const {
  symbols.clear();
  const auto push_byte = [&](char c) {
    const uint32_t id = spec_.byte_ids[static_cast<uint8_t>(c)];
    if (id == kNoId) refuse("no token for byte " + std::to_string(static_cast<uint8_t>(c)));
    symbols.push_back({id, 1});
  };
  if (!spec_.characters) {
    for (const char c : piece) push_byte(c);
    return;
  }
  for (size_t i = 0; i < piece.size();) {
    const size_t len = std::min<size_t>(utf8_length(static_cast<uint8_t>(piece[i])), piece.size() - i);
    const std::string_view one = piece.substr(i, len);
    const uint32_t id = all_.find(one, piece.size() - i);
    const auto has_byte = [&](char c) { return spec_.byte_ids[static_cast<uint8_t>(c)] != kNoId; };
    if (id != kNoId) {
      symbols.push_back({id, static_cast<uint32_t>(len)});
    } else if (std::all_of(one.begin(), one.end(), has_byte)) {
      for (const char c : one) push_byte(c);
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

void Bpe::merge(EncodeState& state) const {
  if (state.symbols.size() < 2) return;
  if (state.symbols.size() <= kShortPiece) {
    merge_short(state);
  } else {
    merge_long(state);
  }
}

void Bpe::merge_short(EncodeState& state) const {
  std::vector<Symbol>& s = state.symbols;
  size_t n = s.size();
  std::array<Merge, kShortPiece> rule;  // rule[i] joins s[i] and s[i + 1]
  for (size_t i = 0; i + 1 < n; ++i) rule[i] = pairs_.find(s[i].id, s[i + 1].id);
  while (n > 1) {
    size_t best = 0;
    for (size_t i = 1; i + 1 < n; ++i) {
      if (rule[i].rank < rule[best].rank) best = i;
    }
    if (rule[best].rank == kNoId) break;
    s[best] = {rule[best].id, s[best].len + s[best + 1].len};
    --n;
    for (size_t i = best + 1; i < n; ++i) s[i] = s[i + 1];
    for (size_t i = best + 1; i + 1 < n; ++i) rule[i] = rule[i + 1];
    if (best > 0) rule[best - 1] = pairs_.find(s[best - 1].id, s[best].id);
    if (best + 1 < n) rule[best] = pairs_.find(s[best].id, s[best + 1].id);
  }
  s.resize(n);
}

// A doubly linked list of symbols and a heap of (rank, position). An entry is stale when its position was swallowed or
// has another rule by now; stale entries are skipped as they come up.
void Bpe::merge_long(EncodeState& state) const {
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
    const uint32_t id = words_.find(piece, piece.size());
    if (id != kNoId) {
      state.symbols.assign(1, {id, static_cast<uint32_t>(piece.size())});
      return;
    }
  }
  start_symbols(piece, state.symbols);
  merge(state);
}

void Bpe::encode_piece(std::string_view piece, size_t readable, EncodeState& state, std::vector<uint32_t>& ids) const {
  if (piece.size() > kShortKeyBytes) {
    const uint32_t id = words_.find_long(piece);
    if (id != kNoId) {
      ids.push_back(id);
      return;
    }
    start_symbols(piece, state.symbols);
    merge(state);
    for (const Symbol& s : state.symbols) ids.push_back(s.id);
    return;
  }
  const ShortKey key = short_key(piece.data(), piece.size(), readable);
  const uint32_t id = words_.find_short(key);
  if (id != kNoId) {
    ids.push_back(id);
    return;
  }
  EncodeState::CacheSlot& slot = state.cache[key.hash() >> 32 & (EncodeState::kCacheSlots - 1)];
  if (slot.key == key) {
    ids.insert(ids.end(), slot.ids.begin(), slot.ids.begin() + slot.count);
    return;
  }
  start_symbols(piece, state.symbols);
  merge(state);
  for (const Symbol& s : state.symbols) ids.push_back(s.id);
  if (state.symbols.size() > EncodeState::kCacheIds) return;
  slot.key = key;
  slot.count = static_cast<uint32_t>(state.symbols.size());
  for (size_t i = 0; i < slot.count; ++i) slot.ids[i] = state.symbols[i].id;
}

}  // namespace llmcore
