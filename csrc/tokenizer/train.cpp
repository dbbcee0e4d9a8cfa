#include "tokenizer/train.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <unordered_set>

#include "base/error.h"

namespace llmcore {
namespace {

constexpr size_t kProgressEvery = 256;

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
  Trainer(const PieceCounter::Counts& counts, const TrainOptions& options) : options_(options) {
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

  TrainResult run(const std::function<void(size_t, size_t)>& progress) {
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
    for (const uint8_t byte : options_.byte_order) {
      byte_ids_[byte] = static_cast<uint32_t>(tokens_.size());
      tokens_.emplace_back(1, static_cast<char>(byte));
      ids_.insert({tokens_.back(), byte_ids_[byte]});
    }
  }

  void add_words(const PieceCounter::Counts& counts) {
    for (const auto& [text, count] : counts) {
      words_.push_back({symbols_.size(), static_cast<uint32_t>(text.size()), count});
      for (const char c : text) symbols_.push_back(byte_ids_[static_cast<uint8_t>(c)]);
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
  std::array<uint32_t, 256> byte_ids_{};
  std::vector<uint32_t> symbols_;
  std::vector<Word> words_;
  std::unordered_map<uint64_t, int64_t, KeyHash> pair_counts_;
  std::vector<std::pair<uint64_t, uint32_t>> appeared_;
  std::vector<Candidate> queue_;
  std::vector<Rule> rules_;
};

}  // namespace

void PieceCounter::count(std::string_view text, bool by_line, Counts& counts, std::vector<size_t>& ends) const {
  while (!text.empty()) {
    const size_t newline = by_line ? text.find('\n') : text.npos;
    const std::string_view part = text.substr(0, newline == text.npos ? text.npos : newline + 1);
    split_pieces(stages_, part, ends);
    size_t begin = 0;
    for (const size_t end : ends) {
      const std::string_view piece = part.substr(begin, end - begin);
      if (const auto found = counts.find(piece); found != counts.end()) {
        ++found->second;
      } else {
        counts.emplace(piece, 1);
      }
      begin = end;
    }
    text.remove_prefix(part.size());
  }
}

void PieceCounter::add(const std::vector<std::string_view>& texts, bool by_line, int threads) {
  const size_t workers =
      std::clamp<size_t>(static_cast<size_t>(std::max(threads, 1)), 1, std::max<size_t>(texts.size(), 1));
  std::vector<Counts> counts(workers);
  std::atomic<size_t> next{0};
  std::mutex failure_mutex;
  std::exception_ptr failure;
  const auto work = [&](size_t worker) {
    try {
      std::vector<size_t> ends;
      for (size_t i = next++; i < texts.size(); i = next++) count(texts[i], by_line, counts[worker], ends);
    } catch (...) {
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> pool;
    for (size_t i = 1; i < workers; ++i) pool.emplace_back(work, i);
    work(0);
  }
  if (failure) std::rethrow_exception(failure);
  for (Counts& part : counts) {
    if (counts_.empty()) {
      counts_.swap(part);
      continue;
    }
    for (const auto& [text, n] : part) counts_[text] += n;
  }
}

TrainResult train_bpe(const PieceCounter::Counts& counts, const TrainOptions& options,
                      const std::function<void(size_t, size_t)>& progress) {
  check_argument(options.vocab_size >= options.special.size() + 256,
                 "train: vocab_size must be at least 256 bytes and the special tokens, " +
                     std::to_string(options.special.size() + 256));
  return Trainer(counts, options).run(progress);
}

}  // namespace llmcore
