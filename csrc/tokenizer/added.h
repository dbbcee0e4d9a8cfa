#pragma once
// Added tokens: strings that are found in text before encoding, leftmost first and longest among those, with the flags
// that Hugging Face tokenizers give them.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/mapped_text.h"

namespace llmcore {

struct AddedToken {
  std::string content;
  uint32_t id = 0;
  bool control = false;      // found only when the caller allows control tokens
  bool single_word = false;  // not next to a letter, digit or underscore
  bool strip_left = false;   // takes the white space before it
  bool strip_right = false;  // takes the white space after it
  bool normalized = false;   // looked for after normalisation, and after the others,
  bool exact = false;        // without being normalised itself
};

/// A stretch of text: one added token, or (id == kNoId) text to encode.
struct Segment {
  size_t begin, end;
  uint32_t id;
};

/// Stretches that no control token may hold any of, in bytes of the caller's text.
struct Guarded {
  std::vector<uint32_t> stretches;  // where each begins and ends, in order
  std::vector<uint32_t> also;       // ids of further tokens that count as control tokens here, in order
};

/// Byte i of a text that is searched comes from the bytes origins[i] of the caller's, or is its byte begin + i when
/// there are none.
struct Guard {
  const Guarded* guarded = nullptr;
  const Origin* origins = nullptr;
  size_t begin = 0;

  bool allows(const AddedToken& token, size_t from, size_t to) const noexcept;
};

class AddedMatcher {
 public:
  /// Throws LimitError for an empty or oversized token.
  void add(const AddedToken& token);
  void build();
  bool empty() const noexcept { return tokens_.empty(); }

  /// Appends the segments of text[begin, end); what stands outside of the stretch isn't looked at.
  void split(std::string_view text, size_t begin, size_t end, const Guard& guard, std::vector<Segment>& segments) const;

 private:
  struct Node {
    uint32_t first_child = 0, children = 0;  // in edges_, ordered by byte
    uint32_t token = 0xFFFFFFFFu;            // index in tokens_
  };
  struct Edge {
    uint8_t byte;
    uint32_t node;
  };
  size_t next_start(std::string_view text, size_t at) const noexcept;
  uint32_t longest_match(std::string_view text, size_t at, const Guard& guard) const noexcept;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_;
  std::vector<Edge> edges_;
  std::array<bool, 256> starts_{};
  // What `starts_` has, and the bytes that come second, eight times each; none where they aren't few. No second ones
  // where a token has but one byte, either.
  std::vector<uint64_t> firsts_, seconds_;
};

}  // namespace llmcore
