#include "tokenizer/train.h"

#include <algorithm>
#include <unordered_set>

#include "base/error.h"
#include "tokenizer/unicode.h"
#include "tokenizer/workers.h"

namespace llmcore {
namespace {

constexpr size_t kProgressEvery = 256;

size_t character_size(std::string_view text, size_t at) {
  return std::min<size_t>(utf8_length(static_cast<uint8_t>(text[at])), text.size() - at);
}

uint64_t pair_key(uint32_t left, uint32_t right) { return static_cast<uint64_t>(left) << 32 | right; }

/// The corpus as words of symbols, with the count of every pair, and a queue of the pairs.
class Trainer {
  struct Word {
    size_t begin;
    uint32_t size;
    int64_t count;
  };
  struct Candidate {
    int64_t count;
    uint64_t key;
    std::vector<uint32_t> words;  // where the pair stood when it was queued
  };
  struct Rule {
    uint64_t key;
    uint32_t id;
  };

  /// Order of the queue: most frequent first, then by ids or by texts.
  bool before(const Candidate& a, const Candidate& b) const {
    if (a.count != b.count) return a.count > b.count;
    if (!options_.ties_by_text) return a.key < b.key;
    const auto left = [&](const Candidate& c) -> const std::string& { return tokens_[c.key >> 32]; };
    const auto right = [&](const Candidate& c) -> const std::string& { return tokens_[static_cast<uint32_t>(c.key)]; };
    if (const int order = left(a).compare(left(b))) return order > 0;
    return right(a) > right(b);
  }
  auto less() const {
    return [this](const Candidate& a, const Candidate& b) { return before(b, a); };
  }

 public:
  Trainer(const PieceCounts& counts, const TrainOptions& options) : options_(options) {
    add_alphabet();
    add_words(counts);
    for (uint32_t w = 0; w < words_.size(); ++w) {
      const Word& word = words_[w];
      for (uint32_t i = 0; i + 1 < word.size; ++i) {
        const uint64_t key = pair_key(symbols_[word.begin + i], symbols_[word.begin + i + 1]);
        pair_counts_[key] += word.count;
        appeared_.push_back({key, w});
      }
    }
    queue_appeared();
  }

  TrainResult run(const Progress& progress) {
    while (tokens_.size() < options_.vocab_size && !queue_.empty()) {
      std::pop_heap(queue_.begin(), queue_.end(), less());
      Candidate top = std::move(queue_.back());
      queue_.pop_back();
      const int64_t now = pair_counts_[top.key];
      if (now != top.count) {
        top.count = now;
        if (now > 0) push(std::move(top));
        continue;
      }
      if (top.count < std::max<int64_t>(options_.min_frequency, 1)) break;
      merge(top);
      if (progress && tokens_.size() % kProgressEvery == 0) progress(tokens_.size(), options_.vocab_size);
    }
    return {std::move(tokens_), rules()};
  }

 private:
  void push(Candidate candidate) {
    queue_.push_back(std::move(candidate));
    std::push_heap(queue_.begin(), queue_.end(), less());
  }

  void add_alphabet() {
    for (const std::string& text : options_.special) {
      special_.insert(text);
      tokens_.push_back(text);
    }
    for (const std::string& text : options_.alphabet) {
      ids_.insert({text, static_cast<uint32_t>(tokens_.size())});
      tokens_.push_back(text);
    }
  }

  /// Nothing merges with a character that isn't in the alphabet, nor across it.
  void add_words(const PieceCounts& counts) {
    std::string symbol;
    for (const auto& [text, count] : counts) {
      size_t begin = symbols_.size();
      const auto end_word = [&, n = count] {
        if (symbols_.size() > begin) words_.push_back({begin, static_cast<uint32_t>(symbols_.size() - begin), n});
        begin = symbols_.size();
      };
      for (size_t at = 0; at < text.size();) {
        const size_t length = options_.characters ? character_size(text, at) : 1;
        symbol.assign(text, at, length);
        at += length;
        if (const auto found = ids_.find(symbol); found != ids_.end()) {
          symbols_.push_back(found->second);
        } else {
          end_word();
        }
      }
      end_word();
    }
  }

  /// Queues the pairs that appeared since the last call, each with the words it appeared in.
  void queue_appeared() {
    std::sort(appeared_.begin(), appeared_.end());
    appeared_.erase(std::unique(appeared_.begin(), appeared_.end()), appeared_.end());
    for (size_t i = 0; i < appeared_.size();) {
      Candidate candidate{pair_counts_[appeared_[i].first], appeared_[i].first, {}};
      for (; i < appeared_.size() && appeared_[i].first == candidate.key; ++i) {
        candidate.words.push_back(appeared_[i].second);
      }
      if (candidate.count > 0) push(std::move(candidate));
    }
    appeared_.clear();
  }

  void merge(const Candidate& top) {
    const uint32_t left = static_cast<uint32_t>(top.key >> 32), right = static_cast<uint32_t>(top.key);
    std::string text = tokens_[left] + tokens_[right];
    if (special_.contains(text)) return;
    const auto [found, is_new] = ids_.insert({text, static_cast<uint32_t>(tokens_.size())});
    const uint32_t id = found->second;
    if (is_new) tokens_.push_back(std::move(text));
    rules_.push_back({top.key, id});
    for (const uint32_t w : top.words) merge_word(w, left, right, id);
    queue_appeared();
  }

  void merge_word(uint32_t w, uint32_t left, uint32_t right, uint32_t id) {
    Word& word = words_[w];
    uint32_t* s = symbols_.data() + word.begin;
    uint32_t out = 0;
    for (uint32_t i = 0; i < word.size; ++i) {
      if (i + 1 == word.size || s[i] != left || s[i + 1] != right) {
        s[out++] = s[i];
        continue;
      }
      if (out > 0) {
        pair_counts_[pair_key(s[out - 1], left)] -= word.count;
        appear(pair_key(s[out - 1], id), w);
      }
      if (i + 2 < word.size) {
        pair_counts_[pair_key(right, s[i + 2])] -= word.count;
        appear(pair_key(id, s[i + 2]), w);
      }
      s[out++] = id;
      ++i;
    }
    word.size = out;
  }

  void appear(uint64_t key, uint32_t w) {
    pair_counts_[key] += words_[w].count;
    appeared_.push_back({key, w});
  }

  /// A pair that was merged twice keeps its last place.
  std::vector<uint32_t> rules() const {
    std::unordered_map<uint64_t, size_t> last;
    for (size_t i = 0; i < rules_.size(); ++i) last[rules_[i].key] = i;
    std::vector<uint32_t> flat;
    for (size_t i = 0; i < rules_.size(); ++i) {
      const Rule& rule = rules_[i];
      if (last[rule.key] != i) continue;
      flat.insert(flat.end(), {static_cast<uint32_t>(rule.key >> 32), static_cast<uint32_t>(rule.key), rule.id});
    }
    return flat;
  }

  struct KeyHash {
    size_t operator()(uint64_t key) const noexcept { return mix(key, 0x9E3779B97F4A7C15u); }
  };

  const TrainOptions& options_;
  std::vector<std::string> tokens_;
  std::unordered_map<std::string, uint32_t> ids_;
  std::unordered_set<std::string> special_;
  std::vector<uint32_t> symbols_;
  std::vector<Word> words_;
  std::unordered_map<uint64_t, int64_t, KeyHash> pair_counts_;
  std::vector<std::pair<uint64_t, uint32_t>> appeared_;
  std::vector<Candidate> queue_;
  std::vector<Rule> rules_;
};

}  // namespace

std::vector<std::string> frequent_characters(const PieceCounts& counts, double coverage) {
  std::unordered_map<std::string_view, int64_t, TextHash> found;
  int64_t total = 0;
  for (const auto& [text, count] : counts) {
    const std::string_view view = text;
    for (size_t at = 0; at < view.size();) {
      const size_t length = character_size(view, at);
      found[view.substr(at, length)] += count;
      total += count;
      at += length;
    }
  }
  std::vector<std::pair<std::string_view, int64_t>> kept(found.begin(), found.end());
  // UTF-8 sorts as code points do.
  const auto shown = [](std::string_view c) { return c == " " ? kSpaceMark : c; };
  std::sort(kept.begin(), kept.end(), [&](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : shown(a.first) < shown(b.first);
  });
  int64_t covered = 0;
  size_t n = 0;
  while (n < kept.size() && static_cast<double>(covered) < coverage * static_cast<double>(total)) {
    covered += kept[n++].second;
  }
  kept.resize(n);
  std::sort(kept.begin(), kept.end(), [&](const auto& a, const auto& b) { return shown(a.first) < shown(b.first); });
  std::vector<std::string> characters;
  for (const auto& [character, count] : kept) characters.emplace_back(character);
  return characters;
}

struct PieceCounter::Scratch {
  std::vector<size_t> ends;
  std::string sentence;
};

void PieceCounter::count_pieces(std::string_view text, PieceCounts& counts, Scratch& scratch) const {
  split_pieces(stages_, text, scratch.ends);
  size_t begin = 0;
  for (const size_t end : scratch.ends) {
    const std::string_view piece = text.substr(begin, end - begin);
    if (const auto found = counts.find(piece); found != counts.end()) {
      ++found->second;
    } else {
      counts.emplace(piece, 1);
    }
    begin = end;
  }
}

void PieceCounter::count(std::string_view text, TextUnit unit, PieceCounts& counts, Scratch& scratch) const {
  if (unit == TextUnit::kWhole) return count_pieces(text, counts, scratch);
  while (!text.empty()) {
    const size_t newline = text.find('\n');
    std::string_view line = text.substr(0, newline == text.npos ? text.npos : newline + 1);
    text.remove_prefix(line.size());
    if (unit == TextUnit::kSentences) {
      while (line.ends_with('\n') || line.ends_with('\r')) line.remove_suffix(1);
      if (line.empty()) continue;
      std::string& sentence = scratch.sentence;
      sentence.clear();
      if (!line.starts_with(' ') && !line.starts_with(kSpaceMark)) sentence.push_back(' ');
      for (size_t mark; !line.empty(); line.remove_prefix(mark == line.npos ? line.size() : mark + kSpaceMark.size())) {
        mark = line.find(kSpaceMark);
        sentence.append(line.substr(0, mark));
        if (mark != line.npos) sentence.push_back(' ');
      }
      line = sentence;
    }
    count_pieces(line, counts, scratch);
  }
}

void PieceCounter::add(const std::vector<std::string_view>& texts, TextUnit unit, int threads) {
  const size_t workers = worker_count(texts.size(), threads);
  std::vector<PieceCounts> counts(workers);
  std::vector<Scratch> scratch(workers);
  for_tasks(texts.size(), threads,
            [&](size_t i, size_t worker) { count(texts[i], unit, counts[worker], scratch[worker]); });
  for (PieceCounts& part : counts) {
    if (counts_.empty()) {
      counts_.swap(part);
      continue;
    }
    for (const auto& [text, n] : part) counts_[text] += n;
  }
}

TrainResult train_bpe(const PieceCounts& counts, const TrainOptions& options, const Progress& progress) {
  const size_t fewest = options.special.size() + options.alphabet.size();
  check_argument(options.vocab_size >= fewest,
                 "train: vocab_size must be at least the special tokens and the alphabet, " + std::to_string(fewest));
  return Trainer(counts, options).run(progress);
}

}  // namespace llmcore
