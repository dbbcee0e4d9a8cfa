#pragma once
// The vocabulary and the merges of a tokenizer.json, read where they stand: nearly all of the file, and of one form.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "tokenizer/token_list.h"

namespace llmcore {

struct JsonVocabulary {
  std::string rest;              // the file with {} for the vocabulary and [] for the merges
  TokenList tokens;              // in UTF-8 if the file is
  std::vector<uint32_t> merges;  // ids: left, right and result of each
};

/// Whether `json` has model.vocab, an object of at most `max_tokens` different tokens with ids, and model.merges, an
/// array of at most `max_merges` different pairs of them ("left right" or ["left", "right"]) whose concatenation is a
/// token. What isn't so, or is written in a way that hardly any file is, is for a parser that says what is wrong.
/// `rest` is for such a parser, too: if it isn't JSON, nothing here has a meaning.
bool read_json_vocabulary(std::string_view json, size_t max_tokens, size_t max_merges, JsonVocabulary& out);

}  // namespace llmcore
