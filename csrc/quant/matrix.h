#pragma once
// A packed weight matrix [N, K] in one of the formats of formats.h.
//
//   codes:   panels of 16 rows; a panel is K_padded / step lines of 64 bytes (integers, quant/lines.h) or K lines of
//            16 elements (floats: element r of line k is w[row r, k]).
//   scales:  per row: float32 [N padded to 16]. Per group: float16 (or bfloat16 or float32, for checkpoints that hold
//            such) [panel][group][16 rows]. Double quantisation: int8 [panel][group][16], then float16 units
//            [panel][ceil(groups / 8)][16], and scale = int8 * unit. A format's factor belongs to the scale of a group.
//   shifts:  with zero points, float16 integers laid out as the scales: weight = scale * (code - zero code + shift).
//            Or minima instead, float16 or with double quantisation laid out as the scales: weight = scale * code -
//            minimum, for code 0 up.
//   order:   codes may lie in an order of their own: column k of them is column order[k] of the weights.
//   padding: rows beyond N and k beyond K hold the zero code; their scales are 0.

#include <cstdint>

#include "base/buffer.h"
#include "quant/formats.h"
#include "threading/pool.h"

namespace llmcore {

/// Activations of a matrix with one scale per row are quantised in groups of this many k.
constexpr int64_t kDefaultActivationGroup = 256;

/// Element type of an array that comes in, or of scales. kInt8, of scales alone, is double quantisation.
enum class Element : int { kF32, kBF16, kF16, kInt8 };

/// Groups that share a unit.
constexpr int64_t kGroupsPerUnit = 8;

struct BlockType;  // quant/ggml_blocks.h

class Matrix {
 public:
  Matrix() = default;
  /// group_size: 0 for one scale per row (always float32), else 16, 32, 64 or 128 (integer formats alone) with scales
  /// of type `scale_type`. zero_points: each scale has one (int8 and int4), or a minimum with `minima` and where scales
  /// are int8. Throws ArgumentError, LimitError, OutOfMemoryError.
  Matrix(Format format, int64_t N, int64_t K, int64_t group_size, Element scale_type = Element::kF16,
         bool zero_points = false, bool minima = false);

  /// Encodes `rows` rows from `first_row` on. values: [rows, K] of `element`, or [K, rows] when transposed. search:
  /// each scale is the one of some near the format's own that leaves the smallest squared error.
  void set_rows(int64_t first_row, int64_t rows, const void* values, Element element, bool transposed, ThreadPool& pool,
                bool search = false);
  /// Takes codes as they are: signed values [rows, K] around the format's zero, scales [rows, groups] float32 (groups
  /// is 1 per row). zero_points: [rows, groups] integers that are subtracted from them, or minima, for a matrix that
  /// has such. Throws QuantError when a code or zero point is out of range or the scale type can't hold a scale or
  /// minimum exactly.
  void set_codes(int64_t first_row, int64_t rows, const int8_t* codes, const float* scales,
                 const float* zero_points = nullptr);

  /// What scales and minima are multiples of, before set_codes: [rows, ceil(groups / 8)] float32 that float16 holds.
  void set_units(int64_t first_row, int64_t rows, const float* scale_units, const float* minimum_units = nullptr);

  /// Takes blocks [rows, K / weights of a block] as a .gguf file holds them, exactly. The matrix must be of the kind
  /// that the type names.
  void set_blocks(int64_t first_row, int64_t rows, const uint8_t* blocks, const BlockType& type, ThreadPool& pool);

  /// The order of the columns, a permutation of [0, K), before rows are set (GPTQ's desc_act: columns of a group
  /// needn't lie side by side). Codes are set and read in this order, weights in their own. Throws QuantError.
  void set_order(const int32_t* order);

  /// The packed bytes, to fill from a file; check() afterwards throws QuantError for codes that the format doesn't
  /// have.
  Buffer& codes_buffer() { return codes_; }
  Buffer& scales_buffer() { return scales_; }
  Buffer& shifts_buffer() { return shifts_; }
  void check() const;

  /// out: [K] float32, the exact value of row n.
  void decode_row(int64_t n, float* out) const;
  /// Copies row n of the quantised codes (signed) to codes [K], its scales to scales [groups], its zero points, or
  /// zeros, to zero_points [groups] and its minima, or zeros, to minima [groups]: weight = scale * (code - zero point)
  /// - minimum.
  void read_codes(int64_t n, int8_t* codes, float* scales, float* zero_points = nullptr, float* minima = nullptr) const;

  Format format() const { return format_; }
  int64_t N() const { return N_; }
  int64_t K() const { return K_; }
  int64_t K_padded() const { return K_padded_; }
  int64_t panels() const { return (N_ + kRowsPerPanel - 1) / kRowsPerPanel; }
  int64_t panel_bytes() const { return panel_bytes_; }
  int64_t group_size() const { return group_size_; }
  bool per_row() const { return group_size_ == 0; }
  int64_t groups() const { return per_row() ? 1 : (K_ + group_size_ - 1) / group_size_; }
  int64_t activation_group() const { return per_row() ? kDefaultActivationGroup : group_size_; }
  Element scale_type() const { return scale_type_; }
  bool has_zero_points() const { return shifts_.size() > 0; }
  bool has_units() const { return scale_type_ == Element::kInt8; }
  bool has_minima() const { return has_zero_points() && (has_units() || minima_); }
  int64_t nbytes() const { return codes_.size() + scales_.size() + shifts_.size() + order_.size(); }
  /// What a code is multiplied as: itself (null), or the level of that number, [16] from 0 up; of which zero() stands
  /// for 0. And what the scales of groups are to be multiplied by.
  const uint8_t* levels() const;
  int32_t zero() const;
  float factor() const;
  const uint8_t* codes() const { return codes_.data(); }
  const void* scales() const { return scales_.data(); }
  const uint16_t* shifts() const { return has_zero_points() && !has_minima() ? shifts_.as<uint16_t>() : nullptr; }
  const uint16_t* scale_units() const { return has_units() ? units(scales_) : nullptr; }
  /// int8 multiples of minimum_units(), or float16 where there are none.
  const void* minima() const { return has_minima() ? shifts_.data() : nullptr; }
  const uint16_t* minimum_units() const { return has_minima() && has_units() ? units(shifts_) : nullptr; }
  const int32_t* order() const { return order_.size() ? order_.as<int32_t>() : nullptr; }
  bool empty() const { return N_ == 0; }

 private:
  template <class Codec>
  void encode_row(int64_t n, float* w, uint8_t* codes, bool search);  // changes w
  void check_rows(int64_t first_row, int64_t rows) const;
  int64_t scale_index(int64_t n, int64_t group) const;
  float scale(int64_t n, int64_t group) const;
  float largest_scale() const;
  float store_scale(int64_t n, int64_t group, float scale);
  float shift(int64_t n, int64_t group) const;
  float minimum(int64_t n, int64_t group) const;
  float store_minimum(int64_t n, int64_t group, float minimum);
  int64_t unit_index(int64_t n, int64_t group) const;
  // Behind the multiples.
  int64_t first_unit() const { return panels() * kRowsPerPanel * groups() / 2; }
  const uint16_t* units(const Buffer& multiples) const { return multiples.as<uint16_t>() + first_unit(); }
  uint16_t* units(Buffer& multiples) const { return multiples.as<uint16_t>() + first_unit(); }
  float multiple(const Buffer& multiples, int64_t n, int64_t group) const;
  float store_multiple(Buffer& multiples, int64_t n, int64_t group, float value);
  template <class Codec>
  void choose_units(int64_t n, const float* w);

  Format format_ = Format::kF32;
  Element scale_type_ = Element::kF32;
  bool minima_ = false;
  int64_t N_ = 0, K_ = 0, K_padded_ = 0, group_size_ = 0, panel_bytes_ = 0;
  Buffer codes_, scales_, shifts_, order_;
};

/// Bytes a matrix will take, before it is made.
int64_t matrix_bytes(Format format, int64_t N, int64_t K, int64_t group_size, bool zero_points = false,
                     Element scale_type = Element::kF16);

}  // namespace llmcore
