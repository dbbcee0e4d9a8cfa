#include "tokenizer/json_vocabulary.h"

#include <bit>
#include <iterator>

#include "tokenizer/mapped_text.h"

namespace llmcore {
namespace {

constexpr uint32_t kMaxId = 1 << 24;

// Reads JSON from its start on. Every function returns whether it went well; after the first that didn't, where the
// cursor is means nothing.
class Cursor {
 public:
  explicit Cursor(std::string_view json) : json_(json) {}
  size_t at() const { return at_; }

  // Whether the next character but for blanks is `c`, which is passed then.
  bool take(char c) {
    skip_blanks();
    if (at_ == json_.size() || json_[at_] != c) return false;
    ++at_;
    return true;
  }

  // A string as it is written, without its quotes.
  bool raw_string(std::string_view& raw, bool& escaped) {
    escaped = false;
    if (!take('"')) return false;
    const size_t begin = at_;
    for (; at_ < json_.size(); ++at_) {
      const auto c = static_cast<unsigned char>(json_[at_]);
      if (c == '"') {
        raw = json_.substr(begin, at_++ - begin);
        return true;
      }
      if (c < 0x20) return false;
      if (c == '\\') {
        escaped = true;
        ++at_;
      }
    }
    return false;
  }

  // A string, a view of the file or of `scratch`.
  bool string(std::string_view& value, std::string& scratch) {
    bool escaped;
    if (!raw_string(value, escaped)) return false;
    if (!escaped) return true;
    scratch.clear();
    if (!unescape(value, scratch)) return false;
    value = scratch;
    return true;
  }

  // A whole number below kMaxId.
  bool id(uint32_t& value) {
    skip_blanks();
    const size_t begin = at_;
    value = 0;
    for (; at_ < json_.size() && json_[at_] >= '0' && json_[at_] <= '9'; ++at_) {
      value = value * 10 + static_cast<uint32_t>(json_[at_] - '0');
      if (value >= kMaxId) return false;
    }
    const bool leading_zero = at_ - begin > 1 && json_[begin] == '0';
    return at_ > begin && !leading_zero;
  }

  // A value of any kind, told by its brackets and strings alone.
  bool skip(std::string_view* value = nullptr) {
    skip_blanks();
    const size_t begin = at_;
    if (!skip_value()) return false;
    if (value) *value = json_.substr(begin, at_ - begin);
    return true;
  }

 private:
  bool skip_value() {
    size_t depth = 0;
    for (;;) {
      std::string_view raw;
      bool escaped;
      skip_blanks();
      if (at_ == json_.size()) return false;
      const char c = json_[at_];
      if (c == '"') {
        if (!raw_string(raw, escaped)) return false;
      } else if (c == '{' || c == '[') {
        ++depth;
        ++at_;
      } else if (c == '}' || c == ']') {
        if (depth == 0) return false;
        --depth;
        ++at_;
      } else {
        ++at_;  // a comma, a colon or a part of a number or name
      }
      if (depth > 0) continue;
      if (c != '"' && c != '}' && c != ']') skip_word();
      return true;
    }
  }
  static bool is_blank(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }
  void skip_blanks() {
    while (at_ < json_.size() && is_blank(json_[at_])) ++at_;
  }
  void skip_word() {
    while (at_ < json_.size() && !is_blank(json_[at_]) && json_[at_] != ',' && json_[at_] != '}' && json_[at_] != ']') {
      ++at_;
    }
  }

  static bool hex(std::string_view raw, size_t at, uint32_t& value) {
    if (raw.size() - at < 4) return false;
    value = 0;
    for (const char c : raw.substr(at, 4)) {
      const char low = static_cast<char>(c | 0x20);
      const int digit = c >= '0' && c <= '9' ? c - '0' : low >= 'a' && low <= 'f' ? low - 'a' + 10 : -1;
      if (digit < 0) return false;
      value = value * 16 + static_cast<uint32_t>(digit);
    }
    return true;
  }
  static bool unescape(std::string_view raw, std::string& out) {
    for (size_t i = 0; i < raw.size(); ++i) {
      if (raw[i] != '\\') {
        out.push_back(raw[i]);
        continue;
      }
      const char c = raw[++i];  // a string doesn't end in an escape
      if (c == 'u') {
        uint32_t code, low;
        if (!hex(raw, i + 1, code)) return false;
        i += 4;
        if (code >= 0xd800 && code < 0xdc00) {
          if (raw.size() - i < 7 || raw[i + 1] != '\\' || raw[i + 2] != 'u' || !hex(raw, i + 3, low)) return false;
          if (low < 0xdc00 || low > 0xdfff) return false;
          code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
          i += 6;
        } else if (code >= 0xdc00 && code < 0xe000) {
          return false;
        }
        append_utf8(out, code);
        continue;
      }
      constexpr std::string_view kShort = "\"\\/bfnrt", kMeaning = "\"\\/\b\f\n\r\t";
      const size_t which = kShort.find(c);
      if (which == std::string_view::npos) return false;
      out.push_back(kMeaning[which]);
    }
    return true;
  }

  std::string_view json_;
  size_t at_ = 0;
};

bool read_tokens(Cursor& json, size_t most, JsonVocabulary& out) {
  if (!json.take('{')) return false;
  std::string scratch;
  do {
    std::string_view text;
    uint32_t id;
    if (out.tokens.size() == most || !json.string(text, scratch) || !json.take(':') || !json.id(id)) return false;
    out.tokens.add(text, id);
  } while (json.take(','));
  return json.take('}') && out.tokens.index();
}

bool read_pair(Cursor& json, std::string_view& left, std::string_view& right, std::string (&scratch)[2]) {
  if (json.take('[')) {
    return json.string(left, scratch[0]) && json.take(',') && json.string(right, scratch[1]) && json.take(']') &&
           !left.empty() && !right.empty();
  }
  std::string_view both;
  if (!json.string(both, scratch[0])) return false;
  const size_t blank = both.find(' ');
  if (blank == 0 || blank + 1 >= both.size() || both.find(' ', blank + 1) != std::string_view::npos) return false;
  left = both.substr(0, blank);
  right = both.substr(blank + 1);
  return true;
}

// Merges of which the left side, the right and what they make are looked up together, so that cache misses overlap.
class Lookups {
 public:
  Lookups(const TokenList& tokens, std::vector<uint32_t>& ids) : tokens_(tokens), ids_(ids) {}

  void add(std::string_view left, std::string_view right) {
    const size_t begin = text_.size(), middle = begin + left.size();
    text_.append(left).append(right);
    const std::string_view whole = std::string_view(text_).substr(begin);
    const size_t places[][2] = {{begin, left.size()}, {middle, right.size()}, {begin, whole.size()}};
    const std::string_view texts[] = {left, right, whole};
    for (int i = 0; i < 3; ++i) {
      Wanted& wanted = wanted_[count_++];
      wanted = {places[i][0], places[i][1], hash_text(texts[i])};
      tokens_.prefetch(wanted.hash);
    }
  }
  bool full() const { return count_ == std::size(wanted_); }
  // Whether all are tokens, whose ids are added to the others.
  bool finish() {
    bool known = true;
    for (size_t i = 0; i < count_; ++i) {
      const Wanted& wanted = wanted_[i];
      ids_.push_back(tokens_.find(std::string_view(text_).substr(wanted.begin, wanted.size), wanted.hash));
      known &= ids_.back() != kNoId;
    }
    text_.clear();
    count_ = 0;
    return known;
  }

 private:
  struct Wanted {
    size_t begin, size;
    uint64_t hash;
  };
  const TokenList& tokens_;
  std::vector<uint32_t>& ids_;
  std::string text_;
  Wanted wanted_[3 * 16];
  size_t count_ = 0;
};

bool read_merges(Cursor& json, size_t most, JsonVocabulary& out) {
  if (!json.take('[')) return false;
  std::string scratch[2];
  Lookups lookups(out.tokens, out.merges);
  size_t count = 0;
  do {
    std::string_view left, right;
    if (count++ == most || !read_pair(json, left, right, scratch)) return false;
    lookups.add(left, right);
    if (lookups.full() && !lookups.finish()) return false;
  } while (json.take(','));
  return lookups.finish() && json.take(']');
}

// Whether a pair of ids is there twice.
bool repeated(const std::vector<uint32_t>& merges) {
  constexpr uint64_t kFree = ~uint64_t{0};
  std::vector<uint64_t> seen(std::bit_ceil(merges.size() + 1), kFree);  // some two thirds stay free
  for (size_t i = 0; i < merges.size(); i += 3) {
    const uint64_t pair = static_cast<uint64_t>(merges[i]) << 32 | merges[i + 1];
    size_t at = (pair * 0x9e3779b97f4a7c15u) >> 32 & (seen.size() - 1);
    for (; seen[at] != kFree; at = (at + 1) & (seen.size() - 1)) {
      if (seen[at] == pair) return true;
    }
    seen[at] = pair;
  }
  return false;
}

// The keys of an object: calls value(key) with the cursor at each value.
template <class Value>
bool for_keys(Cursor& json, Value value) {
  if (!json.take('{')) return false;
  do {
    std::string_view key;
    bool escaped;
    if (!json.raw_string(key, escaped) || escaped || !json.take(':') || !value(key)) return false;
  } while (json.take(','));
  return json.take('}');
}

}  // namespace

bool read_json_vocabulary(std::string_view json, size_t max_tokens, size_t max_merges, JsonVocabulary& out) {
  out = {};
  Cursor cursor(json);
  struct {
    size_t begin = 0, end = 0;
  } vocab, merges;
  const auto of_model = [&](std::string_view key) {
    const size_t begin = cursor.at();
    if (key == "vocab") {
      if (vocab.end || !read_tokens(cursor, max_tokens, out)) return false;
      vocab = {begin, cursor.at()};
      return true;
    }
    if (key == "merges") {
      if (!vocab.end || merges.end || !read_merges(cursor, max_merges, out)) return false;
      merges = {begin, cursor.at()};
      return true;
    }
    std::string_view value;
    if (!cursor.skip(&value)) return false;
    // A prefix of tokens within words changes what merges make.
    return key != "continuing_subword_prefix" || value == "null" || value == "\"\"";
  };
  const bool read = for_keys(
      cursor, [&](std::string_view key) { return key == "model" ? for_keys(cursor, of_model) : cursor.skip(); });
  if (!read || !merges.end || repeated(out.merges)) return false;
  out.rest.append(json.substr(0, vocab.begin)).append("{}").append(json.substr(vocab.end, merges.begin - vocab.end));
  out.rest.append("[]").append(json.substr(merges.end));
  return true;
}

}  // namespace llmcore
