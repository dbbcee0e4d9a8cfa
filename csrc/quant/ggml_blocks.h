#pragma once
// ggml's block types, as .gguf files hold them, and the format that keeps their values exactly. A row is a run of
// blocks; a block has one or two float16 numbers, for groups in it small integers that are multiples of them, and
// codes. Source: the types' public descriptions in ggml.

#include <cstdint>
#include <span>
#include <string>

#include "quant/matrix.h"

namespace llmcore {

/// Codes, scales and minima of a block as its matrix takes them. Scales and minima are bits of the matrix's scale type,
/// or with double quantisation multiples, of which all in a block have the same units.
struct BlockParts {
  uint8_t codes[256];
  uint16_t scales[8], minima[8];
  int8_t scale_multiples[16], minimum_multiples[16];
  uint16_t scale_unit, minimum_unit;
};

struct BlockType {
  const char* name;
  int64_t weights, bytes;  // of a block
  Format format;
  int64_t group_size;
  Element scale_type;
  bool minima;
  void (*unpack)(const uint8_t* block, BlockParts& parts);
};

std::span<const BlockType> block_types();
/// The type of that name ("Q4_K"), or null.
const BlockType* find_block_type(const std::string& name);

}  // namespace llmcore
