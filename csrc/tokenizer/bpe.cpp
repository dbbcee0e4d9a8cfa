// Bpe: building and saving its tables, then a batch of pieces from text to ids: the cache, the vocabulary, and merging
// of what is in neither. merge.cpp has the merging of one piece, merger.h that of several in turns.

#include "tokenizer/bpe.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>
#include <type_traits>
#include <utility>

#include "base/error.h"
#include "kernels/select.h"
#include "tokenizer/archive.h"

namespace llmcore {
namespace {

constexpr size_t kMaxIds = PairTable::kMaxIds;

/// Of a piece that has a key.
bool is_ascii(const ShortKey& key) noexcept { return key.hi != 0 && ((key.lo | key.hi) & 0x8080808080808080u) == 0; }

std::string_view piece_of(const char* text, const uint32_t* ends, size_t first, size_t i) noexcept {
  const size_t begin = i ? ends[i - 1] : first;
  return {text + begin, ends[i] - begin};
}

[[noreturn]] void refuse(const std::string& message) { throw TokenizerError("tokenizer: " + message); }

}  // namespace

Bpe::Bpe(BpeSpec spec) : spec_(std::move(spec)) {
  check();
  index_tokens();
  pairs_ = PairTable(spec_.ranks.empty() ? explicit_merges() : recovered_merges());
  index_byte_pairs();
  const auto is_byte = [&](uint32_t id) { return kind(id) == TokenKind::kByte; };
  bytes_merge_ = spec_.characters && std::any_of(rules_.begin(), rules_.end(), is_byte);
  find_unknowns();
  if (spec_.characters) {
    index_characters();
  } else {
    index_merged_characters();
  }
  classify_words();
  find_neighbours();
}

void Bpe::save(ArchiveWriter& out) const {
  const std::array<uint32_t, 7> flags{spec_.characters,    spec_.whole_words, spec_.unk_id, spec_.fuse_unk,
                                      joins_before_space_, refines_,          bytes_merge_};
  out.put(flags);
  out.put(spec_.text);
  out.put(spec_.text_ends);
  out.put(spec_.kinds);
  out.put(spec_.byte_ids);
  out.put(spec_.ranks);
  words_.save(out);
  pairs_.save(out);
  out.put(byte_pairs_);
  out.put(byte_symbols_);
  character_starts_.save(out);
  out.put(rules_);
  out.put(neighbours_);
}

Bpe::Bpe(ArchiveReader& in) {
  std::vector<uint32_t> flags, byte_symbols;
  in.get(flags);
  in.get(spec_.text);
  in.get(spec_.text_ends);
  in.get(spec_.kinds);
  in.get(spec_.byte_ids);
  in.get(spec_.ranks);
  check();
  words_.load(in, {spec_.text.data(), spec_.text.size()});
  pairs_.load(in);
  in.get(byte_pairs_);
  in.get(byte_symbols);
  const bool whole_starts = character_starts_.load(in);
  in.get(rules_);
  in.get(neighbours_);
  const size_t pairs = size_t{256} * 256;
  if (flags.size() != 7 || byte_symbols.size() != 256 || byte_pairs_.size() != pairs || !whole_starts ||
      (flags[5] && neighbours_.size() != pairs)) {
    refuse("a damaged archive");
  }
  spec_.characters = flags[0];
  spec_.whole_words = flags[1];
  spec_.unk_id = flags[2];
  spec_.fuse_unk = flags[3];
  joins_before_space_ = flags[4];
  refines_ = flags[5];
  bytes_merge_ = flags[6];
  std::copy(byte_symbols.begin(), byte_symbols.end(), byte_symbols_.begin());
  find_unknowns();
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
  const auto too_high = [](uint32_t rank) { return rank != kNoId && rank >= PairTable::kMaxRules; };
  if (spec_.merges.size() / 3 > PairTable::kMaxRules || std::any_of(spec_.ranks.begin(), spec_.ranks.end(), too_high)) {
    throw LimitError("tokenizer: more than " + std::to_string(PairTable::kMaxRules) + " merges");
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
  words_.reserve(sizes, spec_.text.data());
  constexpr uint32_t kAhead = 16;
  for (uint32_t id = 0; id < size(); ++id) {
    if (id + kAhead < size()) words_.prefetch(token(id + kAhead));
    if (kind(id) != TokenKind::kNormal) continue;
    if (token(id).empty()) refuse("token " + std::to_string(id) + " is empty");
    if (!words_.insert(token(id), id, spec_.whole_words))
      refuse("token " + std::to_string(id) + " has the text of another");
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    const uint32_t character = spec_.characters && byte < 0x80 ? find({&text, 1}) : kNoId;
    const uint32_t id = character != kNoId ? character : spec_.byte_ids[byte];
    byte_symbols_[byte] = spec_.characters && id == kNoId ? spec_.unk_id : id;
  }
}

void Bpe::find_unknowns() {
  const std::vector<uint32_t>& ids = spec_.byte_ids;
  unknowns_ = spec_.characters && std::find(ids.begin(), ids.end(), kNoId) != ids.end();
  for (size_t byte = 0; byte < 256; ++byte) {
    if (ids[byte] != kNoId) odd_lengths_ |= token(ids[byte]) != std::string(1, static_cast<char>(byte));
  }
  const auto known = [&](uint32_t id) { return id != kNoId && id != spec_.unk_id; };
  ascii_known_ = std::all_of(byte_symbols_.begin(), byte_symbols_.begin() + 0x80, known);
  others_known_ = std::all_of(byte_symbols_.begin() + 0x80, byte_symbols_.end(), known);
}

void Bpe::index_byte_pairs() {
  BytePairs pairs(size_t{256} * 256, PairTable::kNoRule);
  for (size_t i = 0; i < pairs.size(); ++i) {
    const uint32_t left = byte_symbols_[i >> 8], right = byte_symbols_[i & 255];
    if (left != kNoId && right != kNoId) pairs[i] = pairs_.find(left, right);
  }
  byte_pairs_ = std::move(pairs);
}

PairRules Bpe::explicit_merges() {
  PairRules pairs(spec_.merges.size() / 3);
  for (size_t i = 0; i < spec_.merges.size(); i += 3) {
    pairs.insert(spec_.merges[i], spec_.merges[i + 1], static_cast<uint32_t>(i / 3), spec_.merges[i + 2]);
  }
  rules_ = spec_.merges;
  return pairs;
}

// A vocabulary that merges any two neighbours whose concatenation is a token needs just one rule per token: merging
// inside of a stretch doesn't depend on what surrounds it, so a token can only come about the way it does when its own
// text is encoded. Shorter tokens first, every rule that can act inside of a token is known when its turn comes.
// A token that doesn't come down to two symbols can't be reached by merging.
PairRules Bpe::recovered_merges() {
  PairRules pairs(size());
  std::vector<uint32_t> order;
  for (uint32_t id = 0; id < size(); ++id) {
    if (kind(id) == TokenKind::kNormal && spec_.ranks[id] != kNoId) order.push_back(id);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return token(a).size() < token(b).size(); });
  EncodeState state;
  std::vector<std::array<uint32_t, 3>> found;
  for (const uint32_t id : order) {
    merge_whole(pairs, token(id), state);
    if (state.symbols.size() != 2) continue;
    const uint32_t left = state.symbols[0].id, right = state.symbols[1].id;
    if (kind(left) != TokenKind::kNormal || kind(right) != TokenKind::kNormal) continue;
    pairs.insert(left, right, spec_.ranks[id], id);
    found.push_back({left, right, id});
  }
  // Rules written down one by one have no equal ranks. Among equals the longer left side comes first: a run of one
  // character then grows from its left end, as it does when the leftmost of equal pairs is merged first.
  std::stable_sort(found.begin(), found.end(), [&](const auto& a, const auto& b) {
    const uint32_t rank_a = spec_.ranks[a[2]], rank_b = spec_.ranks[b[2]];
    return rank_a != rank_b ? rank_a < rank_b : token(a[0]).size() > token(b[0]).size();
  });
  for (const auto& rule : found) rules_.insert(rules_.end(), rule.begin(), rule.end());
  return pairs;
}

void Bpe::classify_words() {
  EncodeState state;
  for (uint32_t id = 0; id < size(); ++id) {
    if (kind(id) != TokenKind::kNormal) continue;
    const std::string_view text = token(id);
    if (!spec_.whole_words) {  // else all are marked
      encode_symbols(text, state);
      if (state.symbols.size() == 1 && state.symbols[0].id == id) words_.mark_word(text);
    }
    for (size_t i = 1; i < text.size() && !joins_before_space_; ++i) {
      joins_before_space_ = text[i] == ' ' && text[i - 1] != ' ';
    }
  }
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

void Bpe::find_neighbours() {
  refines_ = spec_.characters && !spec_.whole_words && (!unknowns_ || !spec_.fuse_unk);
  if (!refines_) return;
  neighbours_.assign(size_t{256} * 256, 0);
  for (uint32_t id = 0; id < size(); ++id) {
    const std::string_view text = token(id);
    if (kind(id) != TokenKind::kNormal) continue;
    for (size_t i = 1; i < text.size(); ++i) {
      neighbours_[static_cast<size_t>(static_cast<uint8_t>(text[i - 1])) << 8 | static_cast<uint8_t>(text[i])] = 1;
    }
  }
  // A place inside of a character is none to cut at, whether or not a token has the character.
  for (size_t left = 0; left < 256; ++left) {
    for (size_t right = 0x80; right < 0xC0; ++right) neighbours_[left << 8 | right] = 1;
  }
}

void Bpe::refine(const char* text, std::vector<uint32_t>& ends, std::vector<uint32_t>& finer) const {
  if (!refines_) return;
  finer.clear();
  const uint8_t* const p = reinterpret_cast<const uint8_t*>(text);
  uint32_t at = 0;
  for (const uint32_t end : ends) {
    finer.resize(finer.size() + (end - at));
    uint32_t* out = finer.data() + finer.size() - (end - at);
    uint32_t* const begin = out;
    for (uint32_t i = at + 1; i < end; ++i) {
      *out = i;
      out += 1 - neighbours_[static_cast<size_t>(p[i - 1]) << 8 | p[i]];
    }
    *out++ = end;
    finer.resize(finer.size() - (end - at) + static_cast<size_t>(out - begin));
    at = end;
  }
  ends.swap(finer);
}

void Bpe::cut(std::string_view text, std::vector<uint32_t>& ends) const {
  ends.resize(kPieceBatch);
  const uint8_t* const p = reinterpret_cast<const uint8_t*>(text.data());
  uint32_t* out = ends.data();
  const uint32_t* const last = ends.data() + kPieceBatch - 64;
  size_t i = 1, both = p[0];  // the two bytes before place i
  while (i < text.size() && out < last) {
    for (const size_t stop = std::min(i + 64, text.size()); i < stop; ++i) {
      both = (both << 8 | p[i]) & 0xFFFF;
      *out = static_cast<uint32_t>(i);
      out += 1 - neighbours_[both];
    }
  }
  if (i >= text.size()) *out++ = static_cast<uint32_t>(text.size());
  ends.resize(static_cast<size_t>(out - ends.data()));
}

void Bpe::encode_pieces(const char* text, const std::vector<uint32_t>& ends, const char* readable_end,
                        EncodeState& state, std::vector<uint32_t>& ids) const {
  for (size_t i = 0; i < ends.size(); i += kPieceBatch) {
    const size_t n = std::min(kPieceBatch, ends.size() - i);
    encode_block(text, ends.data() + i, n, i ? ends[i - 1] : 0, readable_end, state, ids);
  }
}

void EncodeState::grow() {
  const size_t before = line_mask + 1;
  if (before == kMostLines || taken < before / (before == kFirstLines ? 4 : 2)) return;
  const size_t count = before == kFirstLines ? kMoreLines : kMostLines;
  line_mask = count - 1;
  for (size_t i = 0; i < before; ++i) {
    const Line from = lines[i];
    // All that it holds goes to these lines, and nothing else does.
    for (size_t to = i; to < count; to += before) std::memset(&lines[to], 0, sizeof(Line));
    if (from.slots[0].hi == 0) continue;
    if (from.wide()) {
      line(from.slots[0].key().hash()) = from;
      continue;
    }
    for (const Slot& slot : {from.slots[1], from.slots[0]}) {  // the one in front last, as it was taken
      if (slot.hi == 0) continue;
      Line& to = line(slot.key().hash());
      to.slots[1] = to.slots[0];
      to.slots[0] = slot;
    }
  }
}

// In steps, as look-ups are cache misses: keys of all pieces, with a prefetch each; then the thread's cache; then what
// isn't there, in the vocabulary or by merging, many pieces at once; then all ids are put together.
void Bpe::encode_block(const char* text, const uint32_t* ends, size_t n, size_t first, const char* readable_end,
                       EncodeState& state, std::vector<uint32_t>& ids) const {
  constexpr size_t kAhead = 192;  // pieces whose slots are prefetched: few enough that they stay in the nearest cache
  const size_t readable = static_cast<size_t>(readable_end - text);
  state.misses.clear();
  state.grow();
  size_t staged = 0;
  for (size_t from = 0; from < n; from += kAhead) {
    const size_t to = std::min(n, from + kAhead);
    std::array<uint32_t, kAhead> longer;  // pieces that have no key: which they are can't be foreseen
    size_t longer_count = 0, begin = from ? ends[from - 1] : first;
    for (size_t i = from; i < to; ++i) {
      const size_t size = ends[i] - begin;
      ShortKey key = EncodeState::kNoKey;
      if (size <= kShortKeyBytes) [[likely]] {
        key = short_key(text + begin, size, readable - begin);
      } else {
        longer[longer_count++] = static_cast<uint32_t>(i);
      }
      state.keys[i] = key;
      state.hashes[i] = key.hash();
      __builtin_prefetch(&state.line(state.hashes[i]));
      begin = ends[i];
    }
    for (size_t i = from; i < to; ++i) {
      const ShortKey key = state.keys[i];
      EncodeState::Line& line = state.line(state.hashes[i]);
      EncodeState::Slot& slot = line.slots[0];
      if (!slot.holds(key)) {
        if (!line.slots[1].holds(key)) {
          add_miss(i, staged, state);
          continue;
        }
        line.swap();
      }
      if (slot.count() - 1 < EncodeState::kIds) {
        std::memcpy(state.staged.data() + staged, slot.ids.data(), sizeof slot.ids);
      } else if (line.wide()) {
        std::memcpy(state.staged.data() + staged, line.ids_of(slot), EncodeState::kWideIds * sizeof(uint32_t));
      } else {
        add_miss(i, staged, state);
        continue;
      }
      staged += slot.count();
    }
    for (size_t k = 0; k < longer_count; ++k) {
      const size_t i = longer[k];
      const std::string_view piece = piece_of(text, ends, first, i);
      state.hashes[i] = piece.size() <= PieceCache::kBytes ? hash_text(piece) : 0;
      words_.prefetch_filter(state.hashes[i]);
    }
  }
  size_t count = ids.size();
  if (state.misses.empty()) {
    ids.insert(ids.end(), state.staged.begin(), state.staged.begin() + static_cast<std::ptrdiff_t>(staged));
    return;
  }
  find_misses(text, ends, first, state);
  merge_misses(text, ends, first, state);
  size_t total = staged;
  for (const EncodeState::Miss& miss : state.misses) total += state.misses[miss.same].count;
  ids.resize(count + total + EncodeState::kSpare);
  // A few at a time: what is too many is overwritten.
  const auto append = [&](const uint32_t* from, size_t many) {
    uint32_t* const out = ids.data() + count;
    std::memcpy(out, from, EncodeState::kSpare * sizeof *from);
    for (size_t k = EncodeState::kSpare; k < many; k += EncodeState::kSpare) {
      std::memcpy(out + k, from + k, EncodeState::kSpare * sizeof *from);
    }
    count += many;
  };
  size_t done = 0;
  for (const EncodeState::Miss& miss : state.misses) {
    append(state.staged.data() + done, miss.at - done);
    done = miss.at;
    const EncodeState::Miss& same = state.misses[miss.same];
    append(state.results.data() + same.begin, same.count);
  }
  append(state.staged.data() + done, staged - done);
  ids.resize(count);
}

/// Notes a piece of the batch that isn't in the cache, with a slot that says so for the pieces of the same text after
/// it. What had to be merged and loses its slot goes to the ring.
void Bpe::add_miss(size_t i, size_t at, EncodeState& state) const {
  const uint32_t index = static_cast<uint32_t>(state.misses.size());
  const ShortKey& key = state.keys[i];
  const uint64_t hash = state.hashes[i];
  state.misses.push_back({static_cast<uint32_t>(i), static_cast<uint32_t>(at), index, 0, 0});
  if (key.hi == 0) return;
  EncodeState::Line& line = state.line(hash);
  EncodeState::Slot& slot = line.slots[0];
  words_.prefetch_filter(hash);
  if (!slot.holds(key)) {
    const bool wide = line.wide();
    const EncodeState::Slot& last = line.slots[wide ? 0 : 1];
    state.taken += last.hi == 0;
    if (last.count() > 1 && last.count() != EncodeState::kElsewhere) {
      const ShortKey old = last.key();
      const std::array<uint64_t, 2> bytes{old.lo, old.hi};
      const std::string_view text(reinterpret_cast<const char*>(bytes.data()), old.hi >> 56);
      std::array<uint32_t, EncodeState::kWideIds> ids;
      std::memcpy(ids.data(), line.ids_of(last), last.count() * sizeof(uint32_t));
      if (state.merged.find(text, old.hash()).empty()) {
        state.merged.keep(text, old.hash(), std::span<const uint32_t>(ids.data(), last.count()));
      }
    }
    line.slots[1] = wide ? EncodeState::Slot{} : slot;
    slot = {key.lo, key.hi | EncodeState::kPending << 60, {index}};
  } else if (slot.count() == EncodeState::kPending) {
    state.misses.back().same = slot.ids[0];
  } else {
    slot.hi = key.hi | EncodeState::kPending << 60;
    slot.ids[0] = index;
  }
}

/// Looks for the batch's misses in the vocabulary and in the ring of what was merged before, sorted into two lists
/// first, as a branch on which it is can't be foreseen. What isn't there is left in `unmerged`, or merged at once if it
/// is long.
void Bpe::find_misses(const char* text, const uint32_t* ends, size_t first, EncodeState& state) const {
  state.results_used = 0;
  state.words.resize(state.misses.size());
  state.unmerged.resize(state.misses.size());
  size_t words = 0, others = 0;
  for (size_t index = 0; index < state.misses.size(); ++index) {
    const EncodeState::Miss& miss = state.misses[index];
    const size_t size = piece_of(text, ends, first, miss.piece).size();
    const uint64_t hash = state.hashes[miss.piece];
    const bool own = miss.same == index, word = size <= PieceCache::kBytes && words_.may_have_word(hash);
    __builtin_prefetch(word ? words_.home_of(hash, size) : state.merged.home_of(hash));
    state.words[words] = state.unmerged[others] = static_cast<uint32_t>(index);
    words += own && word;
    others += own && !word;
  }
  for (size_t n = 0; n < words; ++n) {
    EncodeState::Miss& miss = state.misses[state.words[n]];
    const ShortKey& key = state.keys[miss.piece];
    const uint64_t hash = state.hashes[miss.piece];
    const uint32_t id = key.hi != 0 ? words_.find_short_word(key, hash)
                                    : words_.find_long_word(piece_of(text, ends, first, miss.piece), hash);
    if (id != kNoId) {
      *place_ids(state, miss, 1) = id;
      settle(state, miss, 1);
    } else {
      __builtin_prefetch(state.merged.home_of(hash));
      state.unmerged[others++] = state.words[n];
    }
  }
  size_t left = 0;
  for (size_t n = 0; n < others; ++n) {
    EncodeState::Miss& miss = state.misses[state.unmerged[n]];
    const std::string_view piece = piece_of(text, ends, first, miss.piece);
    if (piece.size() > PieceCache::kBytes) {
      encode_symbols(piece, state);
      settle(state, miss, state.symbols);
      continue;
    }
    const std::span<const uint32_t> kept = state.merged.find(piece, state.hashes[miss.piece]);
    std::copy(kept.begin(), kept.end(), place_ids(state, miss, kept.size()));
    if (kept.empty()) {
      state.unmerged[left++] = state.unmerged[n];
    } else {
      settle(state, miss, kept.size());
    }
  }
  state.unmerged.resize(left);
}

/// Where the ids of a miss go, at most that many.
uint32_t* Bpe::place_ids(EncodeState& state, EncodeState::Miss& miss, size_t most) {
  miss.begin = static_cast<uint32_t>(state.results_used);
  const size_t needed = state.results_used + most + EncodeState::kSpare;
  if (state.results.size() < needed) state.results.resize(2 * needed);
  return state.results.data() + miss.begin;
}

/// The ids of a miss are placed; if they fit there, they also go to the cache of short pieces. Many have a line for
/// themselves, if it is free. Only what is pending is written: an earlier miss of the same text may have settled it,
/// and a line that ids fill is not to be taken for one with a second slot.
void Bpe::settle(EncodeState& state, EncodeState::Miss& miss, size_t count) {
  miss.count = static_cast<uint32_t>(count);
  state.results_used += count;
  const ShortKey& key = state.keys[miss.piece];
  if (key.hi == 0) return;
  const uint32_t* const ids = state.results.data() + miss.begin;
  EncodeState::Line& line = state.line(state.hashes[miss.piece]);
  for (EncodeState::Slot& slot : line.slots) {
    if (!slot.holds(key) || slot.count() != EncodeState::kPending) continue;
    const bool fits = count <= EncodeState::kIds;
    const bool wide =
        !fits && count <= EncodeState::kWideIds && line.slots[1].hi == 0 && (count < 8 || ids[7] >> 24 == 0);
    slot.hi = key.hi | (fits || wide ? uint64_t{count} : EncodeState::kElsewhere) << 60;
    std::memcpy(slot.ids.data(), ids, sizeof slot.ids);
    if (!wide) continue;
    std::array<uint32_t, EncodeState::kWideIds> all{};
    std::copy(ids, ids + count, all.begin());
    std::memcpy(line.ids_of(slot), all.data(), sizeof all);
    return;
  }
}

void Bpe::settle(EncodeState& state, EncodeState::Miss& miss, const std::vector<Symbol>& symbols) {
  uint32_t* out = place_ids(state, miss, symbols.size());
  for (const Symbol& symbol : symbols) *out++ = symbol.id;
  settle(state, miss, symbols.size());
}

/// What was merged is kept in the ring, if it has no place in the cache of short pieces.
void Bpe::keep(EncodeState& state, const EncodeState::Miss& miss, std::string_view piece) {
  const ShortKey& key = state.keys[miss.piece];
  const EncodeState::Line& line = state.line(state.hashes[miss.piece]);
  if (key.hi != 0 && (miss.count <= EncodeState::kIds || (line.wide() && line.slots[0].holds(key)))) return;
  state.merged.keep(piece, state.hashes[miss.piece],
                    std::span<const uint32_t>(state.results.data() + miss.begin, miss.count));
}

/// Merges those of few symbols many at once, pieces of equal length together. The others stay unmerged.
void Bpe::merge_short_misses(const char* text, const uint32_t* ends, size_t first, EncodeState& state) const {
  if (state.unmerged.empty()) return;
  EncodeState::Short& few = state.few;
  few.pieces.clear();
  few.misses.clear();
  const size_t most = state.unmerged.size() * kMergeSymbols + state.starts.size();
  if (few.symbols.size() < most) few.symbols.resize(most);
  std::array<uint32_t, kMergeSymbols + 2> places{};  // by number of symbols
  size_t used = 0, left = 0;
  for (const uint32_t index : state.unmerged) {
    const EncodeState::Miss& miss = state.misses[index];
    const std::string_view piece = piece_of(text, ends, first, miss.piece);
    const ShortKey& key = state.keys[miss.piece];
    uint32_t* const out = few.symbols.data() + used;
    size_t n = piece.size();
    if (ascii_known_ && is_ascii(key)) {
      // As many as there can be: the end of a loop over those that there are can't be foreseen.
      for (size_t i = 0; i < 8; ++i) out[i] = byte_symbols_[key.lo >> 8 * i & 0xFF];
      for (size_t i = 0; i < 8; ++i) out[8 + i] = byte_symbols_[key.hi >> 8 * i & 0xFF];
    } else {
      n = start_symbols(piece, out);
      if (n > kMergeSymbols) {
        state.unmerged[left++] = index;
        continue;
      }
    }
    few.pieces.push_back({static_cast<uint32_t>(used), static_cast<uint32_t>(n)});
    few.misses.push_back(index);
    ++places[n + 1];
    used += n;
  }
  state.unmerged.resize(left);
  std::partial_sum(places.begin(), places.end(), places.begin());
  few.sorted.resize(few.pieces.size());
  few.sorted_misses.resize(few.pieces.size());
  for (size_t i = 0; i < few.pieces.size(); ++i) {
    const uint32_t place = places[few.pieces[i].count]++;
    few.sorted[place] = few.pieces[i];
    few.sorted_misses[place] = few.misses[i];
  }
  const size_t needed = state.results_used + used + EncodeState::kSpare;
  static_assert(EncodeState::kSpare >= kMergeLanes);
  if (state.results.size() < needed) state.results.resize(2 * needed);
  kernels().merge({pairs_.view(), few.symbols.data(), few.sorted.data(), few.sorted.size(),
                   state.results.data() + state.results_used});
  for (size_t i = 0; i < few.sorted.size(); ++i) {
    EncodeState::Miss& miss = state.misses[few.sorted_misses[i]];
    miss.begin = static_cast<uint32_t>(state.results_used);
    settle(state, miss, few.sorted[i].count);
    keep(state, miss, piece_of(text, ends, first, miss.piece));
  }
}

/// Merges what is in neither: pieces in the lanes take turns, and the next one takes the lane of one that is finished.
void Bpe::merge_misses(const char* text, const uint32_t* ends, size_t first, EncodeState& state) const {
  if (kernels().merge != nullptr && !pairs_.has_equal_ranks()) merge_short_misses(text, ends, first, state);
  const auto finish = [&](const EncodeState::Lane& lane) {
    EncodeState::Miss& miss = state.misses[lane.miss];
    settle(state, miss, lane.merger.finish(place_ids(state, miss, lane.merger.size())));
    keep(state, miss, piece_of(text, ends, first, miss.piece));
  };
  size_t next = 0;
  const auto fill = [&](EncodeState::Lane& lane) {
    while (next < state.unmerged.size()) {
      lane.miss = state.unmerged[next++];
      EncodeState::Miss& miss = state.misses[lane.miss];
      const std::string_view piece = piece_of(text, ends, first, miss.piece);
      if (ascii_known_ && is_ascii(state.keys[miss.piece])) {
        lane.merger.start_ascii(pairs_, byte_pairs_, byte_symbols_, piece);
        return true;
      }
      const size_t n = start_symbols(piece, state.starts.data());
      if (n <= EncodeState::kLaneSymbols) {
        lane.merger.start(pairs_, byte_pairs_, piece, {state.starts.data(), n});
        return true;
      }
      merge(piece, state);
      settle(state, miss, state.symbols);
      keep(state, miss, piece);
    }
    return false;
  };
  std::array<EncodeState::Lane*, EncodeState::kLanes> active;
  size_t count = 0;
  while (count < active.size() && fill(state.lanes[count])) {
    active[count] = &state.lanes[count];
    ++count;
  }
  while (count > 0) {
    size_t still = 0;
    for (size_t i = 0; i < count; ++i) {
      EncodeState::Lane& lane = *active[i];
      bool merges = lane.merger.choose(pairs_);
      while (!merges) {
        finish(lane);
        if (!fill(lane)) break;
        merges = lane.merger.choose(pairs_);
      }
      if (merges) active[still++] = &lane;
    }
    count = still;
    for (size_t i = 0; i < count; ++i) active[i]->merger.apply(pairs_);
    for (size_t i = 0; i < count; ++i) active[i]->merger.settle(pairs_);
  }
}

}  // namespace llmcore
