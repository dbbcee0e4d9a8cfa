#pragma once
// A packed weight matrix [N, K] in one of the formats of formats.h.
//
//   codes:   panels of 16 rows; a panel is K_padded / step lines of 64 bytes (integers, quant/lines.h) or K lines of
//            16 elements (floats: element r of line k is w[row r, k]).
//   scales:  per row: float32 [N padded to 16]. Per group: float16 (or bfloat16 or float32, for checkpoints that hold
//            such) [panel][group][16 rows].
//   shifts:  with zero points, float16 integers laid out as the scales: weight = scale * (code - zero code + shift).
//   padding: rows beyond N and k beyond K hold the zero code; their scales are 0.

#include <cstdint>

#include "base/buffer.h"
#include "quant/formats.h"
#include "threading/pool.h"

namespace llmcore {

/// Activations of a matrix with one scale per row are quantised in groups of this many k.
constexpr int64_t kDefaultActivationGroup = 128;

/// Element type of an array that comes in, or of scales.
enum class Element : int { kF32, kBF16, kF16 };

class Matrix {
 public:
  Matrix() = default;
  /// group_size: 0 for one scale per row (always float32), else 32, 64 or 128 (integer formats alone) with scales of
  /// type `scale_type`. zero_points: each scale has one (int8 and int4). Throws ArgumentError, LimitError,
  /// OutOfMemoryError.
  Matrix(Format format, int64_t N, int64_t K, int64_t group_size, Element scale_type = Element::kF16,
         bool zero_points = false);

  /// Encodes `rows` rows from `first_row` on. values: [rows, K] of `element`, or [K, rows] when transposed. search:
  /// each scale is the one of some near the format's own that leaves the smallest squared error.
  void set_rows(int64_t first_row, int64_t rows, const void* values, Element element, bool transposed, ThreadPool& pool,
                bool search = false);
  /// Takes codes as they are: signed values [rows, K] around the format's zero, scales [rows, groups] float32 (groups
  /// is 1 per row). zero_points: [rows, groups] integers that are subtracted from them, for a matrix that has such.
  /// Throws QuantError when a code or zero point is out of range or the scale type can't hold a scale exactly.
  void set_codes(int64_t first_row, int64_t rows, const int8_t* codes, const float* scales,
                 const float* zero_points = nullptr);

  /// The packed bytes, to fill from a file; check() afterwards throws QuantError for codes that the format doesn't
  /// have.
  Buffer& codes_buffer() { return codes_; }
  Buffer& scales_buffer() { return scales_; }
  Buffer& shifts_buffer() { return shifts_; }
  void check() const;

  /// out: [K] float32, the exact value of row n.
  void decode_row(int64_t n, float* out) const;
  /// Copies row n of the quantised codes (signed) to codes [K], its scales to scales [groups], and its zero points, or
  /// zeros, to zero_points [groups]: weight = scale * (code - zero point).
  void read_codes(int64_t n, int8_t* codes, float* scales, float* zero_points = nullptr) const;

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
  int64_t nbytes() const { return codes_.size() + scales_.size() + shifts_.size(); }
  const uint8_t* codes() const { return codes_.data(); }
  const void* scales() const { return scales_.data(); }
  const uint16_t* shifts() const { return has_zero_points() ? shifts_.as<uint16_t>() : nullptr; }
  bool empty() const { return N_ == 0; }

 private:
  template <class Codec>
  void encode_row(int64_t n, const float* w, uint8_t* codes, bool search);
  void check_rows(int64_t first_row, int64_t rows) const;
  int64_t scale_index(int64_t n, int64_t group) const;
  float scale(int64_t n, int64_t group) const;
  float store_scale(int64_t n, int64_t group, float scale);
  float shift(int64_t n, int64_t group) const;

  Format format_ = Format::kF32;
  Element scale_type_ = Element::kF32;
  int64_t N_ = 0, K_ = 0, K_padded_ = 0, group_size_ = 0, panel_bytes_ = 0;
  Buffer codes_, scales_, shifts_;
};

/// Bytes a matrix will take, before it is made.
int64_t matrix_bytes(Format format, int64_t N, int64_t K, int64_t group_size, bool zero_points = false);

}  // namespace llmcore
