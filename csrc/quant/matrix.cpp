#include "quant/matrix.h"

#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "base/checked.h"
#include "quant/half.h"

namespace llmcore {
namespace {

// The unsigned code 255 times 127, summed over a row, must fit int32.
constexpr int64_t kMaxK = int64_t{1} << 24;
constexpr int64_t kMaxGroup = 128;
static_assert(255 * 127 * kMaxGroup < (int64_t{1} << 31) && 255 * 127 * kDefaultActivationGroup < (int64_t{1} << 31));

// All integer formats pad k alike, so that a row of activations serves any of them.
int64_t padded_k(Format f, int64_t K) { return is_integer(f) ? round_up(K, 16) : K; }

float element_at(const void* values, Element element, int64_t i) {
  switch (element) {
    case Element::kF32:
      return static_cast<const float*>(values)[i];
    case Element::kBF16:
      return bfloat_to_float(static_cast<const uint16_t*>(values)[i]);
    default:
      return half_to_float(static_cast<const uint16_t*>(values)[i]);
  }
}

// out[k] = values[first + k * stride]
void read_floats(const void* values, Element element, int64_t first, int64_t stride, int64_t n, float* out) {
  if (stride == 1 && element == Element::kF32) {
    std::memcpy(out, static_cast<const float*>(values) + first, static_cast<size_t>(n) * sizeof(float));
  } else if (stride == 1 && element == Element::kBF16) {
    const uint16_t* from = static_cast<const uint16_t*>(values) + first;
    for (int64_t k = 0; k < n; ++k) out[k] = bfloat_to_float(from[k]);
  } else if (stride == 1) {
    const uint16_t* from = static_cast<const uint16_t*>(values) + first;
    for (int64_t k = 0; k < n; ++k) out[k] = half_to_float(from[k]);
  } else {
    for (int64_t k = 0; k < n; ++k) out[k] = element_at(values, element, first + k * stride);
  }
}

// codes[k] = round(w[k] * inverse) + zero, half to even, within [lowest, highest]. A NaN gives some code in range.
void round_codes(const float* w, int64_t n, float inverse, int zero, int lowest, int highest, uint8_t* codes) {
  const float low = static_cast<float>(lowest - zero), high = static_cast<float>(highest - zero);
  for (int64_t k = 0; k < n; ++k) {
    float x = w[k] * inverse;
    x = x > low ? x : low;
    x = x < high ? x : high;
    const uint32_t rounded = float_bits(x + 12582912.0f);  // 1.5 * 2^23: the integer is in the last bits
    codes[k] = static_cast<uint8_t>(rounded + static_cast<uint32_t>(zero));
  }
}

float inverse_of(float scale) { return std::fabs(1.0f / scale) < 1e38f ? 1.0f / scale : 0.0f; }

// The codes nearest to w * inverse.
template <class Codec>
void choose_codes(const float* w, int64_t n, float inverse, int zero, uint8_t* codes) {
  if constexpr (kHasLevels<Codec>) {
    float between[Codec::kMaxCode];  // twice the middle of two neighbouring levels
    for (unsigned i = 0; i < Codec::kMaxCode; ++i)
      between[i] = static_cast<float>(Codec::level(i) + Codec::level(i + 1));
    for (int64_t k = 0; k < n; ++k) {
      const float x = 2.0f * w[k] * inverse;
      unsigned code = 0;
      for (const float b : between) code += x > b;
      codes[k] = static_cast<uint8_t>(code);
    }
  } else {
    round_codes(w, n, inverse, zero, Codec::kMinCode, Codec::kMaxCode, codes);
  }
}

// Sum of (w - scale * value)^2.
template <class Codec>
double squared_error(const float* w, int64_t n, float scale, int zero, uint8_t* codes) {
  choose_codes<Codec>(w, n, inverse_of(scale), zero, codes);
  double sum = 0.0;
  for (int64_t k = 0; k < n; ++k) {
    const int value = value_of<Codec>(codes[k]) + Codec::kZero - zero;
    const double error = static_cast<double>(w[k]) - static_cast<double>(scale) * value;
    sum += error * error;
  }
  return sum;
}

constexpr int kSearchSteps = 24;
constexpr float kSearchFactor = 0.025f;  // of the scale: from 0.55 to 1.15 of it

// The largest numbers of the types of scales, where those of huge weights end; their codes saturate.
constexpr float kMaxHalf = 65504.0f, kMaxBfloat = 0x1.fep127f, kMaxFloat = 0x1.fffffep127f;

float within(float x, float limit) { return x > limit ? limit : x < -limit ? -limit : x; }

// The smallest float16 from x >= 0 on: 127 units reach what they were chosen for even where float16 is coarse.
uint16_t half_from(float x) {
  x = within(x, kMaxHalf);
  const uint16_t half = float_to_half(x);
  return half_to_float(half) < x ? static_cast<uint16_t>(half + 1) : half;
}

// Bytes of a row's scales, and of its zero points or minima.
int64_t scale_bytes(int64_t K, int64_t group_size, Element type) {
  const int64_t groups = group_size ? ceil_div(K, group_size) : 1;
  if (type == Element::kInt8) return groups + 2 * ceil_div(groups, kGroupsPerUnit);
  return groups * (type == Element::kF32 ? 4 : 2);
}
int64_t shift_bytes(int64_t K, int64_t group_size, Element scale_type) {
  return scale_bytes(K, group_size, scale_type == Element::kInt8 ? Element::kInt8 : Element::kF16);
}

}  // namespace

int64_t matrix_bytes(Format format, int64_t N, int64_t K, int64_t group_size, bool zero_points, Element scale_type) {
  const int64_t rows = round_up(N, kRowsPerPanel);
  (void)checked_mul(K, 4 * kRowsPerPanel);  // of the widest format
  int64_t bytes = checked_mul(rows / kRowsPerPanel, panel_bytes(format, padded_k(format, K)));
  if (is_integer(format)) {
    const int64_t scales = scale_bytes(K, group_size, group_size ? scale_type : Element::kF32);
    bytes = checked_add(bytes, checked_mul(rows, scales));
    if (zero_points) bytes = checked_add(bytes, checked_mul(rows, shift_bytes(K, group_size, scale_type)));
  }
  return bytes;
}

Matrix::Matrix(Format format, int64_t N, int64_t K, int64_t group_size, Element scale_type, bool zero_points,
               bool minima)
    : format_(format),
      scale_type_(group_size ? scale_type : Element::kF32),
      minima_(minima),
      N_(N),
      K_(K),
      group_size_(group_size) {
  check_argument(N >= 1 && K >= 1,
                 "matrix: N and K must be at least 1, got [" + std::to_string(N) + ", " + std::to_string(K) + "]");
  if (N > (int64_t{1} << 31) || K > kMaxK) {
    throw LimitError("matrix: [" + std::to_string(N) + ", " + std::to_string(K) + "] is beyond [2^31, 2^24]");
  }
  check_argument(group_size == 0 || group_size == 16 || group_size == 32 || group_size == 64 || group_size == 128,
                 "group_size must be 16, 32, 64, 128 or 0 (one scale per row), got " + std::to_string(group_size));
  check_argument(is_integer(format) || group_size == 0,
                 std::string("group_size must be 0 for the format ") + format_name(format));
  check_argument(format != Format::kTernaryDense || group_size == 0 || group_size == TritLines::kGroup,
                 "group_size must be 128 or 0 (one scale per row) for ternary_dense");
  check_argument(!zero_points || llmcore::has_zero_points(format),
                 std::string("the format ") + format_name(format) + " has no zero points");
  check_argument(scale_type != Element::kInt8 || (is_integer(format) && group_size != 0),
                 "double quantisation needs an integer format with groups");
  check_argument(!minima || (zero_points && group_size != 0), "minima take the place of zero points of groups");
  K_padded_ = padded_k(format, K);
  panel_bytes_ = llmcore::panel_bytes(format, K_padded_);
  codes_ = Buffer(checked_mul(panels(), panel_bytes_));
  if (is_integer(format)) {
    const int64_t rows = panels() * kRowsPerPanel;
    scales_ = Buffer(checked_mul(rows, scale_bytes(K, group_size, scale_type_)));
    if (zero_points) shifts_ = Buffer(checked_mul(rows, shift_bytes(K, group_size, scale_type_)));
    visit_codec(format, [&]<class Codec>() {  // rows of padding hold the zero code
      if (N_ % kRowsPerPanel) {
        Codec::Layout::fill(codes_.data() + (panels() - 1) * panel_bytes_, Codec::kZero, K_padded_);
      }
    });
  }
}

int64_t Matrix::scale_index(int64_t n, int64_t group) const {
  return ((n / kRowsPerPanel) * groups() + group) * kRowsPerPanel + n % kRowsPerPanel;
}

int64_t Matrix::unit_index(int64_t n, int64_t group) const {
  const int64_t units = ceil_div(groups(), kGroupsPerUnit);
  return ((n / kRowsPerPanel) * units + group / kGroupsPerUnit) * kRowsPerPanel + n % kRowsPerPanel;
}

float Matrix::multiple(const Buffer& multiples, int64_t n, int64_t group) const {
  const int8_t factor = multiples.as<int8_t>()[scale_index(n, group)];
  return half_to_float(units(multiples)[unit_index(n, group)]) * static_cast<float>(factor);
}

float Matrix::store_multiple(Buffer& multiples, int64_t n, int64_t group, float value) {
  const float unit = half_to_float(units(multiples)[unit_index(n, group)]);
  float factor = std::nearbyint(value * inverse_of(unit));
  if (!std::isfinite(unit)) factor = value < 0.0f ? -1.0f : 1.0f;  // the scale says so, too
  factor = factor > 127.0f ? 127.0f : factor > -127.0f ? factor : -127.0f;
  if (factor == 0.0f && unit != 0.0f && value != 0.0f) factor = value / unit > 0.0f ? 1.0f : -1.0f;
  multiples.as<int8_t>()[scale_index(n, group)] = static_cast<int8_t>(factor);
  return multiple(multiples, n, group);
}

float Matrix::scale(int64_t n, int64_t group) const {
  const float own =
      has_units() ? multiple(scales_, n, group) : element_at(scales_.data(), scale_type_, scale_index(n, group));
  return factor() * own;
}

const uint8_t* Matrix::levels() const {
  if (!is_integer(format_)) return nullptr;
  return visit_codec(format_, []<class Codec>() -> const uint8_t* {
    if constexpr (kHasLevels<Codec>) {
      static constexpr std::array<uint8_t, 16> kLevels = [] {
        std::array<uint8_t, 16> levels{};
        for (unsigned code = 0; code <= Codec::kMaxCode; ++code) {
          levels[code] = static_cast<uint8_t>(Codec::level(code) - Codec::level(0));
        }
        return levels;
      }();
      return kLevels.data();
    } else {
      return nullptr;
    }
  });
}

int32_t Matrix::zero() const {
  if (!is_integer(format_) || has_minima()) return 0;
  return visit_codec(format_, []<class Codec>() {
    if constexpr (kHasLevels<Codec>) return -Codec::level(0);
    return Codec::kZero;
  });
}

float Matrix::factor() const {
  if (!is_integer(format_) || per_row()) return 1.0f;
  return visit_codec(format_, []<class Codec>() { return factor_of<Codec>(); });
}

float Matrix::store_scale(int64_t n, int64_t group, float value) {
  const int64_t i = scale_index(n, group);
  value /= factor();
  switch (scale_type_) {
    case Element::kInt8:
      store_multiple(scales_, n, group, value);
      break;
    case Element::kF32:
      scales_.as<float>()[i] = value;
      break;
    case Element::kBF16:
      scales_.as<uint16_t>()[i] = float_to_bfloat(value);
      break;
    default:
      scales_.as<uint16_t>()[i] = float_to_half(value);
  }
  return scale(n, group);
}

float Matrix::largest_scale() const {
  if (scale_type_ == Element::kF16) return kMaxHalf * factor();
  return scale_type_ == Element::kBF16 ? kMaxBfloat : kMaxFloat;
}

float Matrix::shift(int64_t n, int64_t group) const {
  if (has_minima()) return visit_codec(format_, []<class Codec>() { return static_cast<float>(Codec::kZero); });
  return has_zero_points() ? half_to_float(shifts_.as<uint16_t>()[scale_index(n, group)]) : 0.0f;
}

float Matrix::minimum(int64_t n, int64_t group) const {
  if (!has_minima()) return 0.0f;
  return has_units() ? multiple(shifts_, n, group) : half_to_float(shifts_.as<uint16_t>()[scale_index(n, group)]);
}

float Matrix::store_minimum(int64_t n, int64_t group, float value) {
  if (has_units()) return store_multiple(shifts_, n, group, value);
  shifts_.as<uint16_t>()[scale_index(n, group)] = float_to_half(value);
  return minimum(n, group);
}

// The units that the largest scale and minimum of their groups take 127 of.
template <class Codec>
void Matrix::choose_units(int64_t n, const float* w) {
  for (int64_t first = 0; first < groups(); first += kGroupsPerUnit) {
    float top_scale = 0.0f, top_minimum = 0.0f, poison = 0.0f;
    for (int64_t g = first; g < first + kGroupsPerUnit && g < groups(); ++g) {
      const int64_t begin = g * group_size_, size = begin + group_size_ < K_ ? group_size_ : K_ - begin;
      const Range r = range(w + begin, size);
      const float scale = has_minima() ? (r.highest - r.lowest) / static_cast<float>(Codec::kMaxCode)
                                       : std::fabs(Codec::choose_scale(r, w + begin, size));
      top_scale = scale > top_scale ? scale : top_scale;
      top_minimum = -r.lowest > top_minimum ? -r.lowest : top_minimum;
      poison += r.poison;
    }
    const int64_t i = unit_index(n, first);
    units(scales_)[i] = half_from(top_scale / (127.0f * factor()) + poison);
    if (has_minima()) units(shifts_)[i] = half_from(top_minimum / 127.0f);
  }
}

template <class Codec>
void Matrix::encode_row(int64_t n, float* w, uint8_t* codes, bool search) {
  const int64_t width = per_row() ? K_ : group_size_;
  if (has_units()) choose_units<Codec>(n, w);
  for (int64_t g = 0; g < groups(); ++g) {
    const int64_t begin = g * width, end = begin + width < K_ ? begin + width : K_;
    const Range r = range(w + begin, end - begin);
    constexpr int kSteps = Codec::kMaxCode - Codec::kMinCode;
    float scale = has_zero_points() ? (r.highest - r.lowest) / static_cast<float>(kSteps)
                                    : Codec::choose_scale(r, w + begin, end - begin);
    if (has_minima()) {
      const float minimum = store_minimum(n, g, within(-r.lowest, kMaxHalf * (has_units() ? 127.0f : 1.0f)));
      for (int64_t k = begin; k < end; ++k) w[k] += minimum;
      scale = (r.highest + minimum) / static_cast<float>(kSteps);
    }
    // The code that stands for 0 at a scale.
    const auto zero_at = [&](float s) {
      if (has_minima()) return 0;
      const float steps = has_zero_points() ? std::nearbyint(-r.lowest / s) : -1.0f;
      if (!(steps >= 0.0f)) return Codec::kZero;  // or the scale is 0 or not finite
      return Codec::kMinCode + (steps < static_cast<float>(kSteps) ? static_cast<int>(steps) : kSteps);
    };
    scale = within(scale, largest_scale());
    scale += r.poison;  // the scale says so then, and nothing fails silently
    float stored = store_scale(n, g, scale);
    if (search && std::isfinite(stored) && stored != 0.0f) {
      const auto error_of = [&](float s) {
        return squared_error<Codec>(w + begin, end - begin, s, zero_at(s), codes + begin);
      };
      float best = stored;
      double least = error_of(stored);
      for (int step = -6; step <= kSearchSteps - 6; ++step) {
        const float tried = store_scale(n, g, scale * (1.0f - kSearchFactor * static_cast<float>(step)));
        const double error = error_of(tried);
        if (error < least) {
          least = error;
          best = tried;
        }
      }
      stored = store_scale(n, g, best);
    }
    const int zero = zero_at(stored);
    choose_codes<Codec>(w + begin, end - begin, inverse_of(stored), zero, codes + begin);
    if (has_zero_points() && !has_minima())
      shifts_.as<uint16_t>()[scale_index(n, g)] = float_to_half(static_cast<float>(Codec::kZero - zero));
  }
  for (int64_t k = K_; k < K_padded_; ++k) codes[k] = Codec::kZero;
  uint8_t* panel = codes_.data() + n / kRowsPerPanel * panel_bytes_;
  Codec::Layout::put_row(panel, static_cast<int>(n % kRowsPerPanel), codes, K_padded_);
}

void Matrix::set_order(const int32_t* order) {
  check_argument(is_integer(format_), "matrix: an order of columns needs an integer format");
  std::vector<bool> seen(static_cast<size_t>(K_));
  for (int64_t k = 0; k < K_; ++k) {
    if (order[k] < 0 || order[k] >= K_ || seen[static_cast<size_t>(order[k])]) {
      throw QuantError("the order of the columns is no permutation of them");
    }
    seen[static_cast<size_t>(order[k])] = true;
  }
  order_ = Buffer(K_ * 4);
  std::memcpy(order_.data(), order, static_cast<size_t>(K_) * 4);
}

void Matrix::check() const {
  if (!is_integer(format_)) return;
  visit_codec(format_, [&]<class Codec>() {
    for (int64_t i = 0; shifts() && i < shifts_.size() / 2; ++i) {
      const float zero = static_cast<float>(Codec::kZero) - half_to_float(shifts_.as<uint16_t>()[i]);
      if (!(zero >= 0.0f && zero <= static_cast<float>(Codec::kMaxCode + 1)) || zero != std::nearbyint(zero)) {
        throw QuantError(std::string("packed zero points are out of range for ") + Codec::kName);
      }
    }
    for (int64_t panel = 0; panel < panels(); ++panel) {
      if (!Codec::Layout::check(codes_.data() + panel * panel_bytes_, Codec::kMaxCode, K_padded_)) {
        throw QuantError(std::string("packed codes are out of range for ") + Codec::kName);
      }
    }
  });
}

void Matrix::check_rows(int64_t first_row, int64_t rows) const {
  check_argument(first_row >= 0 && rows >= 0 && first_row <= N_ && rows <= N_ - first_row,
                 "matrix: rows [" + std::to_string(first_row) + ", " + std::to_string(first_row) + " + " +
                     std::to_string(rows) + ") are outside its " + std::to_string(N_) + " rows");
}

void Matrix::set_rows(int64_t first_row, int64_t rows, const void* values, Element element, bool transposed,
                      ThreadPool& pool, bool search) {
  check_rows(first_row, rows);
  check_argument(!has_minima() || format_ != Format::kInt8, "matrix: int8 with minima takes codes, not weights");
  pool.parallel_for(rows, 1, [&](int64_t begin, int64_t end, int) {
    std::vector<float> w(static_cast<size_t>(K_)), ordered(order() ? w.size() : 0);
    std::vector<uint8_t> codes(static_cast<size_t>(K_padded_));
    for (int64_t r = begin; r < end; ++r) {
      if (format_ == Format::kF16 && element == Element::kF16 && !transposed) {  // bits as they are
        const int64_t row = first_row + r;
        uint16_t* out = reinterpret_cast<uint16_t*>(codes_.data() + row / kRowsPerPanel * panel_bytes_);
        const uint16_t* from = static_cast<const uint16_t*>(values) + r * K_;
        for (int64_t k = 0; k < K_; ++k) out[k * kRowsPerPanel + row % kRowsPerPanel] = from[k];
        continue;
      }
      read_floats(values, element, transposed ? r : r * K_, transposed ? rows : 1, K_, w.data());
      if (order()) {
        for (int64_t k = 0; k < K_; ++k) ordered[static_cast<size_t>(k)] = w[static_cast<size_t>(order()[k])];
        w.swap(ordered);
      }
      const int64_t n = first_row + r;
      uint8_t* panel = codes_.data() + n / kRowsPerPanel * panel_bytes_;
      const int64_t lane = n % kRowsPerPanel;
      switch (format_) {
        case Format::kF32:
          for (int64_t k = 0; k < K_; ++k) reinterpret_cast<float*>(panel)[k * kRowsPerPanel + lane] = w[k];
          break;
        case Format::kBF16:
          for (int64_t k = 0; k < K_; ++k) {
            reinterpret_cast<uint16_t*>(panel)[k * kRowsPerPanel + lane] = float_to_bfloat(w[k]);
          }
          break;
        case Format::kF16:
          for (int64_t k = 0; k < K_; ++k) {
            reinterpret_cast<uint16_t*>(panel)[k * kRowsPerPanel + lane] = float_to_half(w[k]);
          }
          break;
        default:
          visit_codec(format_, [&]<class Codec>() { encode_row<Codec>(n, w.data(), codes.data(), search); });
      }
    }
  });
}

void Matrix::set_codes(int64_t first_row, int64_t rows, const int8_t* codes, const float* scales,
                       const float* zero_points) {
  check_argument(has_zero_points() == (zero_points != nullptr), "matrix: zero points belong to a matrix that has them");
  check_rows(first_row, rows);
  check_argument(is_integer(format_), "matrix: codes need an integer format");
  visit_codec(format_, [&]<class Codec>() {
    std::vector<uint8_t> row(static_cast<size_t>(K_padded_), static_cast<uint8_t>(Codec::kZero));
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t n = first_row + r;
      for (int64_t g = 0; g < groups(); ++g) {
        const float wanted = scales[r * groups() + g];
        if (store_scale(n, g, wanted) != wanted && wanted == wanted) {
          throw QuantError("scale " + std::to_string(wanted) + " of row " + std::to_string(n) + ", group " +
                           std::to_string(g) + " can't be kept exactly");
        }
        if (!zero_points) continue;
        if (has_minima()) {
          const float minimum = zero_points[r * groups() + g];
          if (store_minimum(n, g, minimum) == minimum || minimum != minimum) continue;
          throw QuantError("minimum " + std::to_string(minimum) + " of row " + std::to_string(n) + ", group " +
                           std::to_string(g) + " can't be kept exactly");
        }
        const float zero = zero_points[r * groups() + g] + static_cast<float>(Codec::kZero);
        if (!(zero >= 0.0f && zero <= static_cast<float>(Codec::kMaxCode + 1)) || zero != std::nearbyint(zero)) {
          throw QuantError("zero point " + std::to_string(zero_points[r * groups() + g]) + " of row " +
                           std::to_string(n) + ", group " + std::to_string(g) + " is out of range for " + Codec::kName);
        }
        shifts_.as<uint16_t>()[scale_index(n, g)] = float_to_half(-zero_points[r * groups() + g]);
      }
      for (int64_t k = 0; k < K_; ++k) {
        int code = codes[r * K_ + k] + Codec::kZero;
        if constexpr (kHasLevels<Codec>) {
          code = 0;
          while (code <= Codec::kMaxCode && Codec::level(static_cast<unsigned>(code)) != codes[r * K_ + k]) ++code;
        }
        if (code < 0 || code > Codec::kMaxCode) {
          throw QuantError("code " + std::to_string(codes[r * K_ + k]) + " at row " + std::to_string(n) + ", column " +
                           std::to_string(k) + " is out of range for " + Codec::kName);
        }
        row[k] = static_cast<uint8_t>(code);
      }
      uint8_t* panel = codes_.data() + n / kRowsPerPanel * panel_bytes_;
      Codec::Layout::put_row(panel, static_cast<int>(n % kRowsPerPanel), row.data(), K_padded_);
    }
  });
}

void Matrix::decode_row(int64_t n, float* out) const {
  const uint8_t* panel = codes_.data() + n / kRowsPerPanel * panel_bytes_;
  const int64_t lane = n % kRowsPerPanel;
  switch (format_) {
    case Format::kF32:
      for (int64_t k = 0; k < K_; ++k) out[k] = reinterpret_cast<const float*>(panel)[k * kRowsPerPanel + lane];
      return;
    case Format::kBF16:
      for (int64_t k = 0; k < K_; ++k) {
        out[k] = bfloat_to_float(reinterpret_cast<const uint16_t*>(panel)[k * kRowsPerPanel + lane]);
      }
      return;
    case Format::kF16:
      for (int64_t k = 0; k < K_; ++k) {
        out[k] = half_to_float(reinterpret_cast<const uint16_t*>(panel)[k * kRowsPerPanel + lane]);
      }
      return;
    default:
      visit_codec(format_, [&]<class Codec>() {
        const int64_t width = per_row() ? K_ : group_size_;
        for (int64_t k = 0; k < K_; ++k) {
          const int code = value_of<Codec>(Codec::Layout::get(panel, static_cast<int>(lane), k, K_padded_));
          const float stored = scale(n, k / width) * (static_cast<float>(code) + shift(n, k / width));
          out[order() ? order()[k] : k] = has_minima() ? stored - minimum(n, k / width) : stored;
        }
      });
  }
}

void Matrix::set_units(int64_t first_row, int64_t rows, const float* scale_units, const float* minimum_units) {
  check_rows(first_row, rows);
  check_argument(has_units() && has_minima() == (minimum_units != nullptr),
                 "matrix: units belong to double quantisation, and units of minima to a matrix that has minima");
  const int64_t count = ceil_div(groups(), kGroupsPerUnit);
  const auto set = [&](Buffer& multiples, int64_t r, int64_t u, float unit) {
    if (half_to_float(float_to_half(unit)) != unit && unit == unit) {
      throw QuantError("unit " + std::to_string(unit) + " of row " + std::to_string(first_row + r) +
                       " is no float16 number");
    }
    units(multiples)[unit_index(first_row + r, u * kGroupsPerUnit)] = float_to_half(unit);
  };
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t u = 0; u < count; ++u) {
      set(scales_, r, u, scale_units[r * count + u]);
      if (minimum_units) set(shifts_, r, u, minimum_units[r * count + u]);
    }
  }
}

void Matrix::read_codes(int64_t n, int8_t* codes, float* scales, float* zero_points, float* minima) const {
  check_argument(is_integer(format_), "matrix: codes need an integer format");
  const uint8_t* panel = codes_.data() + n / kRowsPerPanel * panel_bytes_;
  visit_codec(format_, [&]<class Codec>() {
    for (int64_t k = 0; k < K_; ++k) {
      const unsigned code = Codec::Layout::get(panel, static_cast<int>(n % kRowsPerPanel), k, K_padded_);
      codes[k] = static_cast<int8_t>(value_of<Codec>(code));
    }
  });
  for (int64_t g = 0; g < groups(); ++g) {
    scales[g] = scale(n, g);
    if (zero_points) zero_points[g] = 0.0f - shift(n, g);
    if (minima) minima[g] = minimum(n, g);
  }
}

}  // namespace llmcore
