// Training of a Unigram vocabulary: from all stretches that repeat, by turns the probabilities of the tokens are
// estimated (expectation maximisation over all ways to cut the words) and those tokens dropped whose loss costs least.

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_set>

#include "tokenizer/train.h"
#include "tokenizer/trie.h"
#include "tokenizer/unicode.h"
#include "tokenizer/workers.h"

namespace llmcore {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();
// Of SentencePiece: rounds of estimation between two cuts, what a cut leaves, the count below which a token goes, and
// how much larger than asked for the vocabulary is before the last choice.
constexpr int kRounds = 2;
constexpr double kKept = 0.75, kLowestCount = 0.5, kSpare = 1.1;
// Sums are made in as many parts, whatever the number of threads, so that they are the same.
constexpr size_t kParts = 8;

struct Word {
  std::string_view text;
  double count;
};

double digamma(double x) {
  double result = 0.0;
  for (; x < 7.0; ++x) result -= 1.0 / x;
  x -= 0.5;
  const double xx = 1.0 / (x * x);
  return result + std::log(x) + (1.0 / 24.0) * xx - 7.0 / 960.0 * xx * xx + 31.0 / 8064.0 * xx * xx * xx -
         127.0 / 30720.0 * xx * xx * xx * xx;
}

double log_add(double a, double b) {
  if (a < b) std::swap(a, b);
  return b == kNever ? a : a + std::log1p(std::exp(b - a));
}

size_t character_size(std::string_view text, size_t at) {
  return std::min<size_t>(utf8_length(static_cast<uint8_t>(text[at])), text.size() - at);
}

size_t count_characters(std::string_view text) {
  size_t n = 0;
  for (const char c : text) n += (static_cast<uint8_t>(c) & 0xC0) != 0x80;
  return n;
}

/// The tokens with their scores, and a trie of them.
struct Pieces {
  std::vector<ScoredPiece> list;
  Trie trie;

  void index() {
    std::vector<Trie::Key> keys;
    for (uint32_t i = 0; i < list.size(); ++i) keys.push_back({list[i].text, i});
    trie = Trie(std::move(keys));
  }
  /// Calls `use(begin, end, piece)` for every token in `text`, in order of `begin`, then of `end`.
  template <class Use>
  void for_each(std::string_view text, Use&& use) const {
    for (size_t begin = 0; begin < text.size(); begin += character_size(text, begin)) {
      Trie::Node node = Trie::kRoot;
      for (size_t end = begin; end < text.size();) {
        node = trie.step(node, static_cast<uint8_t>(text[end++]));
        if (node == Trie::kNone) break;
        if (const uint32_t piece = trie.value(node); piece != Trie::kNone) use(begin, end, piece);
      }
    }
  }
};

/// Tokens of the most probable cut, from the last to the first; not the one that is the whole text, if `inner`. Empty
/// when there is none.
struct Cutter {
  struct Node {
    double score;
    size_t begin;
    uint32_t piece;
  };
  std::vector<Node> nodes;

  const std::vector<uint32_t>& cut(const Pieces& pieces, std::string_view text, bool inner) {
    nodes.assign(text.size() + 1, {kNever, 0, 0});
    nodes[0].score = 0.0;
    pieces.for_each(text, [&](size_t begin, size_t end, uint32_t piece) {
      const double score = nodes[begin].score + pieces.list[piece].score;
      if (score > nodes[end].score && !(inner && end - begin == text.size())) nodes[end] = {score, begin, piece};
    });
    found.clear();
    if (nodes[text.size()].score == kNever) return found;
    for (size_t at = text.size(); at > 0; at = nodes[at].begin) found.push_back(nodes[at].piece);
    return found;
  }

  std::vector<uint32_t> found;
};

class UnigramTrainer {
 public:
  /// A word ends where a character isn't in the alphabet.
  UnigramTrainer(const PieceCounts& counts, const UnigramOptions& options) : options_(options) {
    const std::unordered_set<std::string_view> alphabet(options.alphabet.begin(), options.alphabet.end());
    for (const auto& [text, count] : counts) {
      const std::string_view whole = text;
      size_t begin = 0;
      const auto end_word = [&, n = count](size_t end) {
        if (end > begin) words_.push_back({whole.substr(begin, end - begin), static_cast<double>(n)});
      };
      for (size_t at = 0; at < whole.size();) {
        const size_t length = character_size(whole, at);
        if (!alphabet.contains(whole.substr(at, length))) {
          end_word(at);
          begin = at + length;
        }
        at += length;
      }
      end_word(whole.size());
    }
    std::sort(words_.begin(), words_.end(),
              [](const Word& a, const Word& b) { return a.text != b.text ? a.text < b.text : a.count < b.count; });
    seed();
  }

  std::vector<ScoredPiece> run(const Progress& progress) {
    const double first = static_cast<double>(pieces_.list.size());
    const size_t wanted = static_cast<size_t>(kSpare * static_cast<double>(options_.size));
    const auto tell = [&] {
      if (!progress) return;
      const double now = static_cast<double>(pieces_.list.size()),
                   last = static_cast<double>(std::max(wanted, size_t{1}));
      const double share = now <= last ? 1.0 : std::log(first / now) / std::log(first / last);
      progress(static_cast<size_t>(share * static_cast<double>(options_.size)), options_.size);
    };
    while (true) {
      for (int round = 0; round < kRounds; ++round) {
        tell();
        estimate();
      }
      if (pieces_.list.size() <= wanted) break;
      const size_t before = pieces_.list.size();
      drop(std::max(wanted, static_cast<size_t>(kKept * static_cast<double>(before))));
      if (pieces_.list.size() == before) break;
    }
    return finish();
  }

 private:
  /// All stretches that repeat: the longest of those that stand in the same words, and whole words.
  void seed() {
    struct Suffix {
      std::string_view text;
      uint32_t word;
    };
    std::vector<Suffix> suffixes;
    std::vector<std::pair<std::string_view, double>> found;
    for (uint32_t w = 0; w < words_.size(); ++w) {
      const std::string_view text = words_[w].text;
      std::vector<size_t> starts;
      for (size_t at = 0; at < text.size(); at += character_size(text, at)) starts.push_back(at);
      starts.push_back(text.size());
      const size_t n = starts.size() - 1;
      for (size_t i = 0; i < n; ++i) {
        const size_t end = starts[std::min(n, i + options_.max_characters)];
        suffixes.push_back({text.substr(starts[i], end - starts[i]), w});
      }
      if (n >= 2 && n <= options_.max_characters && words_[w].count >= 2) found.emplace_back(text, words_[w].count);
    }
    std::sort(suffixes.begin(), suffixes.end(), [](const Suffix& a, const Suffix& b) {
      const int order = a.text.compare(b.text);
      return order != 0 ? order < 0 : a.word < b.word;
    });
    std::vector<double> before(suffixes.size() + 1, 0.0);
    for (size_t i = 0; i < suffixes.size(); ++i) before[i + 1] = before[i] + words_[suffixes[i].word].count;
    struct Open {
      size_t length, first;
    };
    std::vector<Open> open;
    for (size_t i = 1; i <= suffixes.size(); ++i) {
      size_t common = 0;
      if (i < suffixes.size()) {
        const std::string_view a = suffixes[i - 1].text, b = suffixes[i].text;
        while (common < std::min(a.size(), b.size()) && a[common] == b[common]) ++common;
        while (common < a.size() && common > 0 && (static_cast<uint8_t>(a[common]) & 0xC0) == 0x80) --common;
      }
      size_t begin = i - 1;
      while (!open.empty() && open.back().length > common) {
        begin = open.back().first;
        const std::string_view text = suffixes[begin].text.substr(0, open.back().length);
        if (count_characters(text) >= 2) found.emplace_back(text, before[i] - before[begin]);
        open.pop_back();
      }
      if (common > 0 && (open.empty() || open.back().length < common)) open.push_back({common, begin});
    }
    // A word may have been found twice.
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first < b.first : a.second > b.second;
    });
    found.erase(
        std::unique(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.first == b.first; }),
        found.end());
    for (auto& [text, count] : found) count *= static_cast<double>(count_characters(text));
    std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
    if (found.size() > options_.seeds) found.resize(options_.seeds);

    std::unordered_map<std::string_view, double, TextHash> characters;
    for (const std::string& character : options_.alphabet) characters[character] = 0.0;
    for (const Word& word : words_) {
      for (size_t at = 0; at < word.text.size(); at += character_size(word.text, at)) {
        const auto one = characters.find(word.text.substr(at, character_size(word.text, at)));
        if (one != characters.end()) one->second += word.count;
      }
    }
    for (const std::string& character : options_.alphabet) {
      pieces_.list.push_back({character, std::max(1.0, characters[character])});
    }
    for (const auto& [text, weight] : found) pieces_.list.push_back({std::string(text), weight});
    double total = 0.0;
    for (const ScoredPiece& piece : pieces_.list) total += piece.score;
    for (ScoredPiece& piece : pieces_.list) piece.score = std::log(piece.score / total);
    pieces_.index();
  }

  /// Adds up `use(words from .. to, sums)` over all words: one sum per token.
  template <class Use>
  std::vector<double> sum(Use&& use) const {
    std::array<std::vector<double>, kParts> sums;
    std::atomic<size_t> next{0};
    for_tasks(kParts, options_.threads, [&](size_t part, size_t) {
      sums[part].assign(pieces_.list.size(), 0.0);
      use(part * words_.size() / kParts, (part + 1) * words_.size() / kParts, sums[part]);
    });
    for (size_t part = 1; part < kParts; ++part) {
      for (size_t i = 0; i < sums[0].size(); ++i) sums[0][i] += sums[part][i];
    }
    return std::move(sums[0]);
  }

  /// How often each token is expected over all ways to cut each word, weighted by their probabilities.
  void expect(const Word& word, std::vector<double>& sums) const {
    const size_t n = word.text.size();
    std::vector<double> forward(n + 1, kNever), backward(n + 1, kNever);
    struct Edge {
      size_t begin, end;
      uint32_t piece;
    };
    std::vector<Edge> edges;
    forward[0] = backward[n] = 0.0;
    pieces_.for_each(word.text, [&](size_t begin, size_t end, uint32_t piece) {
      if (forward[begin] == kNever) return;  // nothing leads here
      forward[end] = log_add(forward[end], forward[begin] + pieces_.list[piece].score);
      edges.push_back({begin, end, piece});
    });
    for (size_t i = edges.size(); i-- > 0;) {
      const auto& [begin, end, piece] = edges[i];
      if (backward[end] == kNever) continue;
      const double score = pieces_.list[piece].score;
      backward[begin] = log_add(backward[begin], backward[end] + score);
      sums[piece] += word.count * std::exp(forward[begin] + score + backward[end] - forward[n]);
    }
  }

  void estimate() {
    const std::vector<double> expected = sum([&](size_t from, size_t to, std::vector<double>& sums) {
      for (size_t w = from; w < to; ++w) expect(words_[w], sums);
    });
    std::vector<ScoredPiece> kept;
    double total = 0.0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const bool needed = i < options_.alphabet.size();
      if (expected[i] < kLowestCount && !needed) continue;
      const double count = std::max(expected[i], kLowestCount);
      kept.push_back({std::move(pieces_.list[i].text), count});
      total += count;
    }
    const double log_total = digamma(total);
    for (ScoredPiece& piece : kept) piece.score = digamma(piece.score) - log_total;
    pieces_.list = std::move(kept);
    pieces_.index();
  }

  /// Leaves `size` tokens: those of the alphabet, those that can't be spelled by others, and those whose loss would
  /// make the words the least probable.
  void drop(size_t size) {
    const std::vector<double> counts = sum([&](size_t from, size_t to, std::vector<double>& sums) {
      Cutter cutter;
      for (size_t w = from; w < to; ++w) {
        for (const uint32_t piece : cutter.cut(pieces_, words_[w].text, false)) sums[piece] += words_[w].count;
      }
    });
    const double total = std::accumulate(counts.begin(), counts.end(), 0.0), log_total = std::log(total);
    struct Loss {
      double loss;
      size_t piece;
    };
    std::vector<Loss> losses;
    std::vector<ScoredPiece> kept;
    Cutter cutter;
    for (size_t i = 0; i < counts.size(); ++i) {
      ScoredPiece& piece = pieces_.list[i];
      if (i < options_.alphabet.size()) {
        kept.push_back(piece);
        continue;
      }
      const std::vector<uint32_t>& others = cutter.cut(pieces_, piece.text, true);
      if (others.empty()) {
        losses.push_back({std::numeric_limits<double>::infinity(), i});
        continue;
      }
      // Never used, or worse than its own parts.
      if (counts[i] == 0.0 || cutter.nodes[piece.text.size()].score > piece.score) continue;
      // What is lost in the logarithm when its parts take its place.
      const double log_total_without = std::log(total + counts[i] * static_cast<double>(others.size() - 1));
      double without = 0.0;
      for (const uint32_t other : others) without += std::log(counts[other] + counts[i]) - log_total_without;
      losses.push_back({counts[i] / total * (std::log(counts[i]) - log_total - without), i});
    }
    std::stable_sort(losses.begin(), losses.end(), [](const Loss& a, const Loss& b) { return a.loss > b.loss; });
    for (const Loss& loss : losses) {
      if (kept.size() >= size) break;
      kept.push_back(pieces_.list[loss.piece]);
    }
    pieces_.list = std::move(kept);
    pieces_.index();
  }

  std::vector<ScoredPiece> finish() {
    std::vector<ScoredPiece>& list = pieces_.list;
    const auto begin = list.begin(), others = begin + static_cast<std::ptrdiff_t>(options_.alphabet.size());
    const auto by_score = [](const ScoredPiece& a, const ScoredPiece& b) {
      return a.score != b.score ? a.score > b.score : a.text < b.text;
    };
    std::sort(others, list.end(), by_score);
    if (list.size() > options_.size) list.resize(options_.size);
    std::sort(list.begin(), list.end(), by_score);
    return std::move(list);
  }

  const UnigramOptions& options_;
  std::vector<Word> words_;
  Pieces pieces_;
};

}  // namespace

std::vector<ScoredPiece> train_unigram(const PieceCounts& counts, const UnigramOptions& options,
                                       const Progress& progress) {
  return UnigramTrainer(counts, options).run(progress);
}

}  // namespace llmcore
