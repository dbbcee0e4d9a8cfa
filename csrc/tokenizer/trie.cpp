#include "tokenizer/trie.h"

#include <algorithm>

namespace llmcore {

/// A base at which all of `labels` have a free unit.
uint32_t Trie::place(const std::vector<uint8_t>& labels) {
  const auto free = [&](uint32_t at) { return at >= units_.size() || (at != 0 && units_[at].parent == kNone); };
  while (!free(first_free_)) ++first_free_;
  size_t tried = 0;
  for (uint32_t at = first_free_;; ++at) {
    if (!free(at)) continue;
    const uint32_t base = at ^ labels[0];
    if (std::all_of(labels.begin(), labels.end(), [&](uint8_t label) { return free(base ^ label); })) return base;
    // A stretch that is nearly full is given up.
    if (++tried == 256) first_free_ = std::max(first_free_, at);
  }
}

// Level by level: a node is a range of keys that share `depth` bytes.
Trie::Trie(std::vector<Key> keys) {
  std::sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) { return a.text < b.text; });
  struct Range {
    size_t begin, end, depth;
    uint32_t node;
  };
  std::vector<Range> ranges{{0, keys.size(), 0, kRoot}};
  std::vector<uint8_t> labels;
  for (size_t n = 0; n < ranges.size(); ++n) {
    Range range = ranges[n];
    while (range.begin < range.end && keys[range.begin].text.size() == range.depth) {
      units_[range.node].value = keys[range.begin++].value;
    }
    if (range.begin == range.end) continue;
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(keys[i].text[range.depth]); };
    labels.clear();
    for (size_t i = range.begin; i < range.end; ++i) {
      if (labels.empty() || labels.back() != byte(i)) labels.push_back(byte(i));
    }
    const uint32_t base = place(labels);
    units_[range.node].base = base;
    for (size_t i = range.begin; i < range.end;) {
      size_t j = i;
      while (j < range.end && byte(j) == byte(i)) ++j;
      const uint32_t child = base ^ byte(i);
      if (child >= units_.size()) units_.resize((child | 255) + 1);
      units_[child].parent = range.node;
      ranges.push_back({i, j, range.depth + 1, child});
      i = j;
    }
  }
}

}  // namespace llmcore
