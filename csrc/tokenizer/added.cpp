#include "tokenizer/added.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "tokenizer/tables.h"
#include "tokenizer/unicode.h"
#include "tokenizer/unicode_data.h"

namespace llmcore {
namespace {

// Bounds the work per byte of text, as every position may walk down the trie this far.
constexpr size_t kMaxContent = 1024;
constexpr uint32_t kNone = 0xFFFFFFFFu;

const uint8_t* bytes(std::string_view text) { return reinterpret_cast<const uint8_t*>(text.data()); }

size_t char_before(std::string_view text, size_t at) {
  do --at;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80);
  return at;
}

/// Eight times each of the bytes that are set, if they are few.
std::vector<uint64_t> repeated(const std::array<bool, 256>& set) {
  constexpr std::ptrdiff_t kFew = 6;
  std::vector<uint64_t> found;
  if (std::count(set.begin(), set.end(), true) > kFew) return found;
  for (uint64_t byte = 0; byte < 256; ++byte) {
    if (set[byte]) found.push_back(byte * 0x0101010101010101u);
  }
  return found;
}

/// Bit 7 of each byte of `word` that is one of `bytes`, and of some of those after such a one.
uint64_t bytes_in(uint64_t word, const std::vector<uint64_t>& bytes) {
  uint64_t found = 0;
  for (const uint64_t repeated : bytes) {
    const uint64_t zero = word ^ repeated;
    found |= (zero - 0x0101010101010101u) & ~zero;
  }
  return found & 0x8080808080808080u;
}

// Hugging Face's \w.
bool is_word_char(std::string_view text, size_t at) { return traits_of(decode_utf8(bytes(text) + at)) & kRustWord; }

}  // namespace

bool Guard::allows(const AddedToken& token, size_t from, size_t to) const noexcept {
  if (!guarded) return true;
  const auto& [stretches, also] = *guarded;
  if (!token.control && !std::binary_search(also.begin(), also.end(), token.id)) return true;
  size_t first = begin + from, last = begin + to;
  if (origins) {
    first = origins[from].begin;
    last = first + 1;
    for (size_t i = from; i < to; ++i) {  // normalisation may have changed the order
      first = std::min<size_t>(first, origins[i].begin);
      last = std::max<size_t>(last, origins[i].end);
    }
  }
  const auto next = std::upper_bound(stretches.begin(), stretches.end(), first);
  const bool inside = (next - stretches.begin()) % 2 != 0;
  return !inside && (next == stretches.end() || *next >= last);
}

void AddedMatcher::add(const AddedToken& token) {
  if (token.content.empty()) throw LimitError("tokenizer: an added token is empty");
  if (token.content.size() > kMaxContent) {
    throw LimitError("tokenizer: an added token has " + std::to_string(token.content.size()) + " bytes; at most " +
                     std::to_string(kMaxContent));
  }
  tokens_.push_back(token);
}

// Sorted contents make the trie level by level: a node is a range of tokens that share `depth` bytes.
void AddedMatcher::build() {
  std::stable_sort(tokens_.begin(), tokens_.end(), [](const auto& a, const auto& b) { return a.content < b.content; });
  struct Range {
    size_t begin, end, depth;
  };
  std::vector<Range> ranges{{0, tokens_.size(), 0}};
  nodes_.assign(1, {});
  edges_.clear();
  for (size_t n = 0; n < ranges.size(); ++n) {
    auto [i, end, depth] = ranges[n];
    for (; i < end && tokens_[i].content.size() == depth; ++i) nodes_[n].token = static_cast<uint32_t>(i);
    nodes_[n].first_child = static_cast<uint32_t>(edges_.size());
    while (i < end) {
      const char byte = tokens_[i].content[depth];
      size_t j = i;
      while (j < end && tokens_[j].content[depth] == byte) ++j;
      edges_.push_back({static_cast<uint8_t>(byte), static_cast<uint32_t>(ranges.size())});
      ranges.push_back({i, j, depth + 1});
      nodes_.push_back({});
      if (n == 0) starts_[static_cast<uint8_t>(byte)] = true;
      i = j;
    }
    nodes_[n].children = static_cast<uint32_t>(edges_.size()) - nodes_[n].first_child;
  }
  std::array<bool, 256> second{};
  bool one_byte = false;
  for (const AddedToken& token : tokens_) {
    one_byte = one_byte || token.content.size() == 1;
    if (!one_byte) second[static_cast<uint8_t>(token.content[1])] = true;
  }
  firsts_ = repeated(starts_);
  seconds_ = one_byte ? std::vector<uint64_t>() : repeated(second);
}

/// The first place from `at` on where a token may begin; the end of the text if there is none.
size_t AddedMatcher::next_start(std::string_view text, size_t at) const noexcept {
  static_assert(std::endian::native == std::endian::little);
  for (; !firsts_.empty() && at + 9 <= text.size(); at += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + at, 8);
    uint64_t found = bytes_in(word, firsts_);
    if (found == 0) continue;
    std::memcpy(&word, text.data() + at + 1, 8);
    if (!seconds_.empty()) found &= bytes_in(word, seconds_);
    if (found != 0) return at + static_cast<size_t>(std::countr_zero(found)) / 8;
  }
  while (at < text.size() && !starts_[static_cast<uint8_t>(text[at])]) ++at;
  return at;
}

uint32_t AddedMatcher::longest_match(std::string_view text, size_t at, const Guard& guard) const noexcept {
  const size_t begin = at;
  uint32_t node = 0, found = kNone;
  while (true) {
    const uint32_t token = nodes_[node].token;
    if (token != kNone && guard.allows(tokens_[token], begin, at)) found = token;
    if (at == text.size()) return found;
    const uint8_t byte = static_cast<uint8_t>(text[at++]);
    const Edge* first = edges_.data() + nodes_[node].first_child;
    const Edge* last = first + nodes_[node].children;
    const Edge* edge = std::lower_bound(first, last, byte, [](const Edge& e, uint8_t b) { return e.byte < b; });
    if (edge == last || edge->byte != byte) return found;
    node = edge->node;
  }
}

void AddedMatcher::split(std::string_view whole, size_t begin, size_t end, const Guard& guard,
                         std::vector<Segment>& segments) const {
  const std::string_view text = whole.substr(0, end);
  size_t done = begin;
  for (size_t at = begin; !empty() && (at = next_start(text, at)) < end;) {
    const uint32_t match = longest_match(text, at, guard);
    if (match == kNone) {
      ++at;
      continue;
    }
    // As in Hugging Face's library, what a token takes along on its right may be another's, which is found all the
    // same.
    const AddedToken& token = tokens_[match];
    size_t from = at, to = at + token.content.size();
    at = to;
    if (token.single_word) {
      if (from > begin && is_word_char(text, char_before(text, from))) continue;
      if (to < end && is_word_char(text, to)) continue;
    }
    if (token.strip_left) {
      from = std::max(from, done);
      to = std::max(from, to);
      while (from > done && (char_at(bytes(text) + char_before(text, from)).cls & kSpace))
        from = char_before(text, from);
    }
    if (token.strip_right) {
      while (to < end && (char_at(bytes(text) + to).cls & kSpace)) to += char_at(bytes(text) + to).len;
    }
    if (from > done) segments.push_back({done, from, kNoId});
    segments.push_back({from, to, token.id});
    done = to;
  }
  if (done < end) segments.push_back({done, end, kNoId});
}

}  // namespace llmcore
