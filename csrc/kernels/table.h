#pragma once
// The kernel table: what an ISA offers. Kernels allocate nothing, check nothing, throw nothing; ops/ has checked.
// Plain C types only, for ISA objects include this file.

#include <stdint.h>

#include "kernels/pairs.h"
#include "kernels/text.h"

namespace llmcore {

constexpr int kPanelRows = 16;            // weight rows that are interleaved, one per vector lane
constexpr int kMaxActivationGroup = 256;  // that MatmulArgs::x_group divides
constexpr int kPageTokens = 16;           // tokens of a KV page, one per vector lane
constexpr int kSplitTokens = 256;         // attention is split here, whatever the batch or thread count
constexpr int kMaxQueryBlock = 96;        // query rows that share one reading of the keys
constexpr int kMaxHeadDim = 1 << 13;

// Storage formats of a weight matrix; csrc/quant/formats.h describes each. The order is the index of the table.
enum WeightFormat : int {
  kF32,
  kBF16,
  kF16,
  kInt8,
  kInt4,
  kTernary,
  kNf4,
  kTernaryDense,
  kInt2,
  kInt3,
  kInt5,
  kInt6,
  kIq4,
  kFp4,
  kIq2,
  kIq3,
  kIq3S,
  kNumWeightFormats
};
// The codes of the three weights in a field of ternary_dense (quant/ternary_dense.h), two bits each.
constexpr uint8_t kTrits[32] = {0,  1,  2,  4,  5,  6,  8,  9,  10, 16, 17, 18, 20, 21, 22, 24,
                                25, 26, 32, 33, 34, 36, 37, 38, 40, 41, 42, 0,  0,  0,  0,  0};
enum ScaleType : int { kScaleF32, kScaleF16, kScaleBF16, kScaleInt8 };
constexpr int kUnitGroups = 8;  // groups whose int8 scales are multiples of one unit
// What keys and values are stored as. A line is 16 elements: of keys one head_dim of 16 tokens, of values 16 head_dims
// of one token. The lines of a page's head lie one after another, [head_dim] of keys, [16 tokens][head_dim / 16] of
// values; the integer types add 16 float32 scales, one a token. int12: element = scale * code, code in [-2047, 2047].
// int8: the same in [-127, 127]. int4: element = scale * (code - 8). Their lines are in quant/lines.h: keys are a
// panel, a row for each token; values a panel for every 16 head_dims, a row for each of these and k the token. Integer
// keys are rounded after a Walsh-Hadamard transform, which keeps products with queries that went through it, too, and
// spreads an element that is larger than the others over all of its run: the elements are those of hadamard(key) /
// hadamard_run. A key near the end of float32's range becomes NaN.
enum KvType : int { kKvF32, kKvF16, kKvBF16, kKvInt12, kKvInt8, kKvInt4, kNumKvTypes };
constexpr int kMaxWordCode = 2047;  // of int12
// What its codes are multiplied by has magnitudes of this sum at most, but for rounding, so that products add up in 32
// bits.
constexpr int64_t kMaxWordSum = int64_t{1} << 20;
static_assert((kMaxWordSum + kSplitTokens) * kMaxWordCode < (int64_t{1} << 31));

// y[m, n] = sum_k x[m, k] * w[n, k] (+ bias[n]) for the panels [panel_begin, panel_end) of 16 rows n.
struct MatmulArgs {
  const uint8_t* codes;  // packed panels, quant/matrix.h
  int64_t panel_bytes;   // from a panel to the next
  const void* scales;    // per row: [N padded] float32; else [panel][group][16] of scale_type
  int scale_type;
  bool per_row;            // one scale for a whole row
  const uint16_t* shifts;  // float16 integers, laid out as the scales: what is added to each code; null: none
  // int8 scales are multiples of float16 units, [panel][group / kUnitGroups][16].
  const uint16_t* scale_units;
  // Laid out as the scales: weight = scale * code - minimum, the zero code being 0 then; null: none. int8 multiples of
  // minimum_units, float16 where those are null.
  const void* minima;
  const uint16_t* minimum_units;
  int32_t zero;           // what stands for 0 and is taken off what codes are multiplied as; 0 with minima
  const uint8_t* levels;  // [16]: what codes are multiplied as, where a format has levels
  float factor;           // a power of two that scales of groups are to be multiplied by
  int64_t K;              // padded to the format's step
  int64_t N;
  int64_t M;
  // Integer formats: rows of int8 activations with a scale and a sum for each group of x_group elements.
  const int8_t* x;
  int64_t x_stride;
  const float* x_scales;   // [x_groups][x_scale_stride]: tiles read those of a group's M rows together
  const int32_t* x_sums;   // the same
  int64_t x_scale_stride;  // from a group to the next
  int64_t x_group;
  int64_t x_groups;
  // Float formats: rows of float32, K long (zero-padded).
  const float* xf;
  int64_t xf_stride;
  float* y;
  int64_t y_stride;
  int64_t y_begin;    // the column that y begins at
  const float* bias;  // or null
  int64_t panel_begin;
  int64_t panel_end;
  uint8_t* scratch;  // matmul_scratch_bytes(K), per thread
};

// Attention of one block of query rows over one split of kSplitTokens tokens. The rows fall into kv_heads equal runs,
// one after another, each of which shares a KV head.
struct AttentionArgs {
  const float* const* queries;  // [rows] -> [head_dim], already scaled; integer types read what follows instead:
  const int8_t* query_codes;    // [rows][head_dim padded to 16], of `hadamard`, rounded by quantize_row
  const float* query_scales;    // [rows]
  const int32_t* query_sums;    // [rows]
  const int16_t* query_words;   // int12, instead of codes and sums: the same, rounded by quantize_words
  int rows;                     // at most kMaxQueryBlock
  int kv_heads;
  const int32_t* begins;     // [rows] first visible token
  const int32_t* ends;       // [rows] one past the last visible token
  const int32_t* positions;  // [rows] of the queries themselves; read with slopes only
  const float* slopes;       // [rows] of ALiBi: score -= slope * distance; or null
  float softcap;             // score = softcap * tanh(score / softcap); 0: none
  int64_t head_dim;
  int64_t token_begin;   // the split's first token, a multiple of kSplitTokens
  int64_t token_end;     // at most token_begin + kSplitTokens; beyond it nothing is read
  const int32_t* pages;  // page numbers, from that of the split's first token
  const uint8_t* keys;   // pages of this layer, from the first head on
  const uint8_t* values;
  int64_t key_page_stride;  // bytes from a page to the next
  int64_t value_page_stride;
  int64_t key_head_stride;  // and from a head to the next
  int64_t value_head_stride;
  const int32_t* next_pages;  // what this thread goes on with, to be prefetched: next_count pages of keys
  const uint8_t* next_keys;
  int64_t next_count;
  float* scratch;  // attention_scratch_floats(rows, head_dim)
  float* outputs;  // [rows][head_dim padded to 16], not yet divided by the sum
  float* maxima;   // [rows] weights are 2^(score * kLog2E - maximum); -infinity when no token of the split is visible
  float* sums;     // [rows]; 0 then
};

constexpr float kLog2E = 1.44269504088896341f;
constexpr int kScoreStride = kSplitTokens + 16;  // of a row's scores: rows that lie one cache set apart
constexpr int kTilePages = 4;                    // pages that are worked on together

/// Scores of all rows, four numbers of each row, some pages as float32.
constexpr int64_t attention_scratch_floats(int64_t rows, int64_t head_dim) {
  return rows * (kScoreStride + 4) + kTilePages * kPageTokens * ((head_dim + 15) / 16 * 16);
}

/// How many neighbours of a head's integer keys, and of the queries for them, are mixed: the largest power of two that
/// divides head_dim.
constexpr int64_t hadamard_run(int64_t head_dim) { return head_dim & -head_dim; }

struct KernelTable {
  const char* name;
  // Panels of a matrix that should be given to a thread together.
  int panel_quantum;
  void (*matmul[kNumWeightFormats])(const MatmulArgs&) noexcept;
  int64_t (*matmul_scratch_bytes)(int64_t K) noexcept;
  // x: [n] -> codes [n padded], scales and sums per group, `stride` apart. NaN or infinity in a group makes its scale
  // NaN.
  void (*quantize_row)(const float* x, int64_t n, int64_t n_padded, int64_t group, int8_t* codes, float* scales,
                       int32_t* sums, int64_t stride) noexcept;
  // x: [n] -> words [n padded], of magnitudes of at most kMaxWordSum / n padded, and their scale. NaN or infinity makes
  // the scale NaN.
  void (*quantize_words)(const float* x, int64_t n, int64_t n_padded, int16_t* words, float* scale) noexcept;
  // The Walsh-Hadamard transform of every run of hadamard_run(n) elements, not divided by anything: twice applied it
  // multiplies by hadamard_run(n). x: [n] -> out: [n padded to 16], which may be x.
  void (*hadamard)(const float* x, int64_t n, float* out) noexcept;
  void (*rms_norm)(const float* x, const float* weight, float eps, float* y, int64_t n) noexcept;
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, float* y, int64_t n) noexcept;
  void (*softmax)(const float* x, float* y, int64_t n) noexcept;
  // Rotates x[i] and x[i + half] by (cos[i], sin[i]), i < half.
  void (*rope)(float* x, const float* cosines, const float* sines, int64_t half) noexcept;
  // Rotates x[2 i] and x[2 i + 1] by (cos[i], sin[i]), i < half.
  void (*rope_interleaved)(float* x, const float* cosines, const float* sines, int64_t half) noexcept;
  void (*add)(const float* x, float* y, int64_t n) noexcept;                    // y += x
  void (*scale)(float* x, float factor, int64_t n) noexcept;                    // x *= factor
  void (*softcap)(float* x, float cap, int64_t n) noexcept;                     // x = cap * tanh(x / cap)
  void (*silu)(const float* x, const float* up, float* y, int64_t n) noexcept;  // y = silu(x) [* up if not null]
  void (*gelu_tanh)(const float* x, const float* up, float* y, int64_t n) noexcept;
  void (*gelu)(const float* x, const float* up, float* y, int64_t n) noexcept;
  void (*relu)(const float* x, const float* up, float* y, int64_t n) noexcept;
  void (*relu2)(const float* x, const float* up, float* y, int64_t n) noexcept;
  void (*exp)(const float* x, float* y, int64_t n) noexcept;
  // max of x, and the sum of exp((x - max) * factor) in 16 lanes; NaN in x makes the sum NaN.
  void (*softmax_statistics)(const float* x, float factor, int64_t n, float* maximum, float* sum) noexcept;
  // Stores one token's key head [head_dim] (transposed into its lane) and value head.
  void (*store_key[kNumKvTypes])(const float* key, int64_t head_dim, int lane, uint8_t* page) noexcept;
  void (*store_value[kNumKvTypes])(const float* value, int64_t head_dim, int lane, uint8_t* page) noexcept;
  void (*attention[kNumKvTypes])(const AttentionArgs&) noexcept;
  // Adds a split to the states of rows: splits in ascending order, and one without a visible token changes nothing. A
  // state's weights are 2^(score * kLog2E - maximum); it starts at maximum -infinity, sum 0. Outputs, of the split and
  // of the state, are [rows][head_dim padded to 16].
  void (*attention_fold)(int rows, const float* outputs, const float* split_maxima, const float* split_sums,
                         float* states, float* maxima, float* sums, int64_t head_dim) noexcept;
  // out[d] = state[d] * (1 / sum)
  void (*attention_finish)(const float* state, float sum, float* out, int64_t head_dim) noexcept;
  // Finds pieces of text until a window finds none, or fewer than kWindowBytes more ends have room.
  WindowKernel window[kNumWindowPatterns];
  // Merges pieces of at most kMergeSymbols symbols. Null where they are merged one by one (tokenizer/merger.h).
  void (*merge)(const MergeArgs& args) noexcept;
};

}  // namespace llmcore
