#include "tokenizer/token_list.h"

#include <bit>

#include "tokenizer/bpe.h"
#include "tokenizer/unicode.h"

namespace llmcore {

void TokenList::add(std::string_view text, uint32_t id) {
  tokens_.push_back({static_cast<uint32_t>(text_.size()), static_cast<uint32_t>(text.size()), id});
  text_ += text;
}

bool TokenList::index() {
  slots_.assign(std::bit_ceil(2 * tokens_.size() + 1), {});
  constexpr size_t kAhead = 16;  // hashes known before their slots are looked at, so that cache misses overlap
  uint64_t hashes[kAhead];
  for (size_t i = 0; i < tokens_.size() + kAhead; ++i) {
    uint64_t& hash = hashes[i % kAhead];
    if (i >= kAhead) {
      Slot& slot = slots_[slot_of(text_of(tokens_[i - kAhead]), hash)];
      if (slot.token != kNoId) return false;
      slot = {static_cast<uint32_t>(hash), static_cast<uint32_t>(i - kAhead)};
    }
    if (i < tokens_.size()) {
      hash = hash_text(text_of(tokens_[i]));
      prefetch(hash);
    }
  }
  return true;
}

size_t TokenList::slot_of(std::string_view text, uint64_t hash) const noexcept {
  size_t at = home_of(hash);
  for (; slots_[at].token != kNoId; at = (at + 1) & (slots_.size() - 1)) {
    if (slots_[at].tag == static_cast<uint32_t>(hash) && text_of(tokens_[slots_[at].token]) == text) break;
  }
  return at;
}

uint32_t TokenList::find(std::string_view text, uint64_t hash) const noexcept {
  const uint32_t token = slots_[slot_of(text, hash)].token;
  return token == kNoId ? kNoId : tokens_[token].id;
}

SpelledTokens spell_bytes(const TokenList& list, std::span<const uint16_t> byte_of, std::span<const AddedText> added,
                          size_t size) {
  SpelledTokens out;
  out.kinds.resize(size);
  std::string bytes;
  bytes.reserve(list.text().size());
  struct Span {
    size_t begin = 0, size = 0;
  };
  std::vector<Span> spans(size);
  const auto put = [&](uint32_t id, size_t begin, TokenKind kind) {
    spans[id] = {begin, bytes.size() - begin};
    out.kinds[id] = static_cast<uint8_t>(kind);
  };
  const auto spell = [&](std::string_view text) {
    for (size_t i = 0; i < text.size(); i += utf8_length(static_cast<uint8_t>(text[i]))) {
      const uint32_t c = decode_utf8(reinterpret_cast<const uint8_t*>(text.data()) + i);
      if (c >= byte_of.size() || byte_of[c] > 255) return false;
      bytes.push_back(static_cast<char>(byte_of[c]));
    }
    return !text.empty();
  };
  for (const TokenList::Token& token : list.tokens()) {
    const std::string_view text = list.text_of(token);
    const size_t begin = bytes.size();
    const bool spelled = spell(text);
    if (!spelled) {
      out.others.push_back(static_cast<uint32_t>(&token - list.tokens().data()));
      bytes.resize(begin);
      bytes += text;
    }
    put(token.id, begin, spelled ? TokenKind::kNormal : TokenKind::kUnused);
  }
  for (const AddedText& token : added) {
    const size_t begin = bytes.size();
    bytes += token.text;
    put(token.id, begin, TokenKind::kAdded);
  }
  out.text.reserve(bytes.size());
  out.ends.reserve(size);
  for (const Span& span : spans) {
    out.text.append(bytes, span.begin, span.size);
    out.ends.push_back(static_cast<uint32_t>(out.text.size()));
  }
  return out;
}

}  // namespace llmcore
