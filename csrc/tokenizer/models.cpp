#include "tokenizer/models.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <queue>
#include <type_traits>

#include "base/error.h"
#include "tokenizer/unicode.h"

namespace llmcore {
namespace {

constexpr double kUnknownPenalty = 10.0;
// What each further byte of a token that the user gave is worth; learned ones cost something.
constexpr double kGivenByte = 0.1;
// SentencePiece takes sums beyond this off all that are still needed, lest they lose what tells them apart.
constexpr float kResetBeyond = 100000.0f;

size_t character_length(std::string_view text, size_t at) {
  return std::min<size_t>(utf8_length(static_cast<uint8_t>(text[at])), text.size() - at);
}

/// What the models share: the trie of usable tokens, and what becomes of characters that have none.
class TrieModel : public PieceModel {
 public:
  explicit TrieModel(ModelSpec spec) : spec_(std::move(spec)) {
    const size_t n = spec_.text_ends.size();
    if (n > PairTable::kMaxIds)
      throw LimitError("tokenizer: " + std::to_string(n) + " ids; at most " + std::to_string(PairTable::kMaxIds));
    if (spec_.usable.size() != n) throw TokenizerError("tokenizer: one end of text per id is needed");
    if (spec_.unk_id != kNoId && spec_.unk_id >= n)
      throw TokenizerError("tokenizer: the unknown token isn't in the vocabulary");
    const auto known = [&](uint32_t id) { return id == kNoId || id < n; };
    if (!std::all_of(spec_.byte_ids.begin(), spec_.byte_ids.end(), known) ||
        (!spec_.byte_ids.empty() && spec_.byte_ids.size() != 256)) {
      throw TokenizerError("tokenizer: a byte id isn't in the vocabulary");
    }
    uint32_t end = 0;
    for (const uint32_t e : spec_.text_ends) {
      if (e < end || e > spec_.text.size()) throw TokenizerError("tokenizer: ends of text aren't in order");
      end = e;
    }
    std::vector<Trie::Key> keys;
    for (uint32_t id = 0; id < n; ++id) {
      if (spec_.usable[id] && !token(id).empty()) keys.push_back({token(id), id});
    }
    trie_ = Trie(std::move(keys));
  }

 protected:
  std::string_view token(uint32_t id) const noexcept {
    const uint32_t begin = id ? spec_.text_ends[id - 1] : 0;
    return {spec_.text.data() + begin, spec_.text_ends[id] - begin};
  }
  uint32_t find(std::string_view text) const noexcept {
    const Trie::Node node = trie_.walk(Trie::kRoot, text);
    return node == Trie::kNone ? kNoId : trie_.value(node);
  }
  bool all_bytes(std::string_view text) const noexcept {
    return !spec_.byte_ids.empty() && std::all_of(text.begin(), text.end(), [&](char c) {
      return spec_.byte_ids[static_cast<uint8_t>(c)] != kNoId;
    });
  }
  void push_bytes(std::string_view text, std::vector<Symbol>& out) const {
    for (const char c : text) out.push_back({spec_.byte_ids[static_cast<uint8_t>(c)], 1});
  }
  [[noreturn]] static void no_unknown() {
    throw TokenizerError("tokenizer: no token for a character, and no unknown token");
  }

  ModelSpec spec_;
  Trie trie_;
};

/// `Number` is what scores are added up in.
template <class Number>
class Unigram final : public TrieModel {
 public:
  explicit Unigram(ModelSpec spec) : TrieModel(std::move(spec)) {
    if (spec_.scores.size() != spec_.usable.size()) throw TokenizerError("tokenizer: one score per id is needed");
    scores_.reserve(spec_.scores.size());
    for (uint32_t id = 0; id < spec_.scores.size(); ++id) {
      if (!std::isfinite(spec_.scores[id])) throw TokenizerError("tokenizer: a score isn't finite");
      const size_t length = token(id).size();
      longest_ = std::max(longest_, length);
      const double given = kGivenByte * (static_cast<double>(length) - 1.0);
      scores_.push_back(static_cast<Number>(spec_.usable[id] == 2 ? given : spec_.scores[id]));
    }
    unknown_ = static_cast<Number>(static_cast<Number>(spec_.min_score) - static_cast<Number>(kUnknownPenalty));
  }

  void encode(std::string_view piece, std::vector<Symbol>& out) const override {
    // Most pieces are words; those need no memory of the heap.
    constexpr size_t kFew = 64;
    Node few[kFew + 1];
    std::vector<Node> many;
    Node* ends = few;
    if (piece.size() > kFew) {
      many.resize(piece.size() + 1);
      ends = many.data();
    }
    const auto offer = [&](size_t begin, size_t end, uint32_t id, Number score) {
      Node& node = ends[end];
      if (node.begin == kNoId || score > node.score) node = {id, static_cast<uint32_t>(begin), score};
    };
    for (size_t at = 0; at < piece.size();) {
      const size_t length = character_length(piece, at);
      if constexpr (std::is_same_v<Number, float>) {
        if (std::abs(ends[at].score) > kResetBeyond) reset(ends + at, std::min(longest_, piece.size() - at));
      }
      const Number here = ends[at].score;
      bool single = false;
      Trie::Node node = Trie::kRoot;
      for (size_t end = at; end < piece.size();) {
        node = trie_.step(node, static_cast<uint8_t>(piece[end++]));
        if (node == Trie::kNone) break;
        const uint32_t id = trie_.value(node);
        if (id == Trie::kNone) continue;
        offer(at, end, id, static_cast<Number>(scores_[id] + here));
        single = single || end - at == length;
      }
      if (!single) offer(at, at + length, spec_.unk_id, static_cast<Number>(unknown_ + here));
      at += length;
    }
    const size_t first = out.size();
    for (size_t end = piece.size(); end > 0;) {
      const Node& node = ends[end];
      const bool fuses = spec_.fuse_unk && node.id == spec_.unk_id && out.size() > first && out.back().id == node.id;
      const auto length = static_cast<uint32_t>(end - node.begin);
      if (fuses) {
        out.back().len += length;
      } else {
        out.push_back({node.id, length});
      }
      end = node.begin;
    }
    std::reverse(out.begin() + static_cast<std::ptrdiff_t>(first), out.end());
    resolve_unknown(piece, first, out);
  }

 private:
  struct Node {  // the best cut that ends here, and its last token
    uint32_t id = kNoId;
    uint32_t begin = kNoId;
    Number score = 0;
  };

  /// From here on sums count from this one.
  static void reset(Node* here, size_t reach) noexcept {
    const Number offset = here->score;
    for (size_t i = 0; i <= reach; ++i) {
      if (i == 0 || here[i].begin != kNoId) here[i].score -= offset;
    }
  }

  /// Unknown stretches become tokens of that text, bytes, or stay unknown.
  void resolve_unknown(std::string_view piece, size_t first, std::vector<Symbol>& out) const {
    const auto unknown = [&](const Symbol& s) { return s.id == spec_.unk_id; };
    if (std::none_of(out.begin() + static_cast<std::ptrdiff_t>(first), out.end(), unknown)) return;
    const std::vector<Symbol> cut(out.begin() + static_cast<std::ptrdiff_t>(first), out.end());
    out.resize(first);
    size_t at = 0;
    for (Symbol s : cut) {
      const std::string_view text = piece.substr(at, s.len);
      at += s.len;
      if (unknown(s)) {
        if (const uint32_t id = find(text); id != kNoId) {
          s.id = id;
        } else if (all_bytes(text)) {
          push_bytes(text, out);
          continue;
        } else if (spec_.unk_id == kNoId) {
          no_unknown();
        }
      }
      out.push_back(s);
    }
  }

  std::vector<Number> scores_;
  Number unknown_ = 0;
  size_t longest_ = 4;  // bytes of a token, or of an unknown character
};

class WordPiece final : public TrieModel {
 public:
  explicit WordPiece(ModelSpec spec) : TrieModel(std::move(spec)), inner_(trie_.walk(Trie::kRoot, spec_.prefix)) {}

  void encode(std::string_view piece, std::vector<Symbol>& out) const override {
    const auto leads = [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; };
    const size_t first = out.size();
    bool known = static_cast<size_t>(std::count_if(piece.begin(), piece.end(), leads)) <= spec_.max_characters;
    for (size_t at = 0; at < piece.size() && known;) {
      Trie::Node node = at == 0 ? Trie::Node{Trie::kRoot} : inner_;
      uint32_t best = kNoId;
      size_t best_end = at;
      for (size_t end = at; end < piece.size() && node != Trie::kNone;) {
        node = trie_.step(node, static_cast<uint8_t>(piece[end++]));
        if (node == Trie::kNone || trie_.value(node) == Trie::kNone) continue;
        best = trie_.value(node);
        best_end = end;
      }
      known = best != kNoId;
      if (known) out.push_back({best, static_cast<uint32_t>(best_end - at)});
      at = best_end;
    }
    if (known) return;
    out.resize(first);
    if (spec_.unk_id == kNoId) no_unknown();
    out.push_back({spec_.unk_id, static_cast<uint32_t>(piece.size())});
  }

 private:
  Trie::Node inner_;
};

class WordLevel final : public TrieModel {
 public:
  using TrieModel::TrieModel;

  void encode(std::string_view piece, std::vector<Symbol>& out) const override {
    const uint32_t found = find(piece);
    if (found == kNoId && spec_.unk_id == kNoId) no_unknown();
    out.push_back({found == kNoId ? spec_.unk_id : found, static_cast<uint32_t>(piece.size())});
  }
};

class AffixBpe final : public TrieModel {
 public:
  explicit AffixBpe(ModelSpec spec) : TrieModel(std::move(spec)) {
    if (spec_.merges.size() % 3) throw TokenizerError("tokenizer: merges are triples of ids");
    if (spec_.merges.size() / 3 > PairTable::kMaxRules) throw LimitError("tokenizer: too many merges");
    PairRules pairs(spec_.merges.size() / 3);
    for (size_t i = 0; i < spec_.merges.size(); i += 3) {
      for (size_t j = i; j < i + 3; ++j) {
        if (spec_.merges[j] >= spec_.usable.size())
          throw TokenizerError("tokenizer: a merge names an id that isn't there");
      }
      pairs.insert(spec_.merges[i], spec_.merges[i + 1], static_cast<uint32_t>(i / 3), spec_.merges[i + 2]);
    }
    pairs_ = PairTable(pairs);
  }

  void encode(std::string_view piece, std::vector<Symbol>& out) const override {
    std::vector<Symbol> symbols;
    for (size_t at = 0; at < piece.size();) {
      const size_t length = character_length(piece, at);
      const std::string_view one = piece.substr(at, length);
      std::string spelled;
      if (at > 0) spelled += spec_.prefix;
      spelled += one;
      if (at + length == piece.size()) spelled += spec_.suffix;
      at += length;
      const auto size = static_cast<uint32_t>(length);
      if (const uint32_t id = find(spelled); id != kNoId) {
        symbols.push_back({id, size});
      } else if (all_bytes(spelled) && spelled.size() == length) {
        push_bytes(one, symbols);
      } else if (spec_.unk_id == kNoId) {
        no_unknown();
      } else if (spec_.fuse_unk && !symbols.empty() && symbols.back().id == spec_.unk_id) {
        symbols.back().len += size;
      } else {
        symbols.push_back({spec_.unk_id, size});
      }
    }
    std::mt19937_64 unused;
    merge_with_dropout(pairs_, 0.0, unused, symbols);
    out.insert(out.end(), symbols.begin(), symbols.end());
  }

 private:
  PairTable pairs_;
};

}  // namespace

void merge_with_dropout(const PairTable& pairs, double rate, std::mt19937_64& random, std::vector<Symbol>& symbols) {
  struct Candidate {
    uint32_t order, at, right_id, rule;
    bool operator>(const Candidate& other) const { return order != other.order ? order > other.order : at > other.at; }
  };
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  std::vector<Candidate> left_out;
  const auto n = static_cast<uint32_t>(symbols.size());
  std::vector<uint32_t> before(n), after(n);
  for (uint32_t i = 0; i < n; ++i) {
    before[i] = i - 1;
    after[i] = i + 1;
  }
  const auto offer = [&](uint32_t i) {
    if (after[i] >= n) return;
    const uint32_t right = symbols[after[i]].id, rule = pairs.find(symbols[i].id, right);
    if (rule != PairTable::kNoRule) queue.push({pairs.order(rule), i, right, rule});
  };
  for (uint32_t i = 0; i < n; ++i) offer(i);
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    if (rate > 0.0 && uniform(random) < rate) {
      left_out.push_back(top);
      continue;
    }
    for (const Candidate& c : left_out) queue.push(c);
    left_out.clear();
    const uint32_t i = top.at, j = after[i];
    if (symbols[i].len == 0 || j >= n || symbols[j].id != top.right_id ||
        pairs.find(symbols[i].id, top.right_id) != top.rule) {
      continue;
    }
    symbols[i] = {pairs.result(top.rule), symbols[i].len + symbols[j].len};
    symbols[j].len = 0;
    after[i] = after[j];
    if (after[i] < n) before[after[i]] = i;
    if (i > 0) offer(before[i]);
    offer(i);
  }
  std::erase_if(symbols, [](const Symbol& s) { return s.len == 0; });
}

std::unique_ptr<PieceModel> make_model(ModelSpec spec) {
  switch (spec.kind) {
    case ModelKind::kUnigram:
      if (spec.single_precision) return std::make_unique<Unigram<float>>(std::move(spec));
      return std::make_unique<Unigram<double>>(std::move(spec));
    case ModelKind::kWordPiece:
      return std::make_unique<WordPiece>(std::move(spec));
    case ModelKind::kWordLevel:
      return std::make_unique<WordLevel>(std::move(spec));
    case ModelKind::kAffixBpe:
      return std::make_unique<AffixBpe>(std::move(spec));
    default:
      return nullptr;
  }
}

}  // namespace llmcore
