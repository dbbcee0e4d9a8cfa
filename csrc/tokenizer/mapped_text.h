#pragma once
// Text on its way through normalisers and pre-tokenisers, which knows where each of its bytes came from.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/unicode.h"

namespace llmcore {

inline void append_utf8(std::string& out, uint32_t code) {
  const auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

/// A stretch of the source text, in bytes.
struct Origin {
  uint32_t begin, end;
};

/// `origins`, when `mapped`, has an entry for each byte of `text`.
struct MappedText {
  std::string text;
  std::vector<Origin> origins;
  bool mapped = false;

  MappedText() = default;
  /// A copy of `source` that stands at byte `begin` of the caller's text.
  MappedText(std::string_view source, size_t begin, bool with_origins) : text(source), mapped(with_origins) {
    if (!mapped) return;
    origins.reserve(text.size());
    for (size_t i = 0; i < text.size();) {
      const size_t length = utf8_length(static_cast<uint8_t>(text[i]));
      const Origin whole{static_cast<uint32_t>(begin + i), static_cast<uint32_t>(begin + i + length)};
      origins.insert(origins.end(), length, whole);
      i += length;
    }
  }
  MappedText(const MappedText& from, size_t begin, size_t end)
      : text(from.text, begin, end - begin), mapped(from.mapped) {
    if (mapped)
      origins.assign(from.origins.begin() + static_cast<std::ptrdiff_t>(begin),
                     from.origins.begin() + static_cast<std::ptrdiff_t>(end));
  }

  const uint8_t* bytes() const noexcept { return reinterpret_cast<const uint8_t*>(text.data()); }
  Origin origin(size_t i) const noexcept { return mapped ? origins[i] : Origin{0, 0}; }

  void push(uint32_t code, Origin origin) {
    append_utf8(text, code);
    if (mapped) origins.resize(text.size(), origin);
  }
  void push(std::string_view more, Origin origin) {
    text.append(more);
    if (mapped) origins.resize(text.size(), origin);
  }
  /// Bytes of another text with their origins.
  void push(const MappedText& from, size_t begin, size_t end) {
    text.append(from.text, begin, end - begin);
    if (mapped)
      origins.insert(origins.end(), from.origins.begin() + static_cast<std::ptrdiff_t>(begin),
                     from.origins.begin() + static_cast<std::ptrdiff_t>(end));
  }
  /// An empty text that keeps origins if this one does.
  MappedText like() const {
    MappedText other;
    other.mapped = mapped;
    other.text.reserve(text.size());
    if (mapped) other.origins.reserve(text.size());
    return other;
  }
};

}  // namespace llmcore
