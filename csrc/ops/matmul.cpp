#include "ops/matmul.h"

#include <algorithm>

#include "base/checked.h"

namespace llmcore {
namespace {

// Products that a thread takes at a time: some 10 microseconds of reading for one row, and at most 10 milliseconds of a
// slow thread for many, which then polls.
constexpr int64_t kPartProducts = int64_t{1} << 27;
constexpr int64_t kPartRowProducts = int64_t{1} << 20;

}  // namespace

static_assert(kRowsPerPanel == kPanelRows);
static_assert(static_cast<int>(Format::kNf4) == kNf4 && static_cast<int>(Format::kF32) == kF32);
template <class Codec>
constexpr bool has_levels(const uint8_t (&levels)[16], int zero) {
  for (unsigned code = 0; code <= Codec::kMaxCode; ++code) {
    if (Codec::level(code) != levels[code] - zero) return false;
  }
  return true;
}
static_assert(has_levels<Nf4>(kNf4Levels, kNf4Zero) && has_levels<Iq4>(kIq4Levels, kIq4Zero) &&
              has_levels<Fp4>(kFp4Levels, kFp4Zero));
static_assert(static_cast<int>(Format::kFp4) == kFp4 && static_cast<int>(Format::kInt2) == kInt2);
static_assert([] {
  for (unsigned field = 0; field < 27; ++field) {
    if (kTrits[field] != (field % 3 | field / 3 % 3 << 2 | field / 9 << 4)) return false;
  }
  return static_cast<int>(Format::kTernaryDense) == kTernaryDense;
}());

MatmulWorkspace::MatmulWorkspace(const Context& context, int64_t max_rows, int64_t max_k)
    : max_rows_(max_rows), max_k_(max_k), stride_(round_up(max_k, 64)), groups_(ceil_div(max_k, 16)) {
  codes_ = Buffer(checked_mul(max_rows, stride_));
  scales_ = Buffer(checked_mul(max_rows, groups_ * 4));
  sums_ = Buffer(checked_mul(max_rows, groups_ * 4));
  ordered_ = Buffer(checked_mul(stride_ * 4, context.pool.size()));
  scratch_stride_ = round_up(context.table.matmul_scratch_bytes(stride_), 64);
  scratch_ = Buffer(checked_mul(scratch_stride_, context.pool.size()));
}

void matmul(const Context& context, MatmulWorkspace& ws, const float* x, int64_t M, int64_t x_stride, const Matrix& w,
            const float* bias, float* y, int64_t y_stride) {
  check_argument(M >= 0 && x_stride >= w.K() && y_stride >= w.N(), "matmul: row strides are shorter than the rows");
  check_argument(ws.fits(M, w.K()), "matmul: the workspace was planned for fewer rows or columns");
  if (M == 0) return;
  MatmulArgs a{};
  a.codes = w.codes();
  a.panel_bytes = w.panel_bytes();
  a.scales = w.scales();
  constexpr ScaleType kScaleTypes[] = {kScaleF32, kScaleBF16, kScaleF16, kScaleInt8};  // by Element
  a.scale_type = kScaleTypes[static_cast<int>(w.scale_type())];
  a.per_row = w.per_row();
  a.shifts = w.shifts();
  a.scale_units = w.scale_units();
  a.minima = w.minima();
  a.minimum_units = w.minimum_units();
  a.K = w.K_padded();
  a.N = w.N();
  a.M = M;
  a.y = y;
  a.y_stride = y_stride;
  a.bias = bias;
  if (is_integer(w.format())) {
    a.x_group = w.activation_group();
    a.x_groups = ceil_div(w.K_padded(), a.x_group);
    a.x = ws.codes_.as<int8_t>();
    a.x_stride = ws.stride_;
    a.x_scales = ws.scales_.as<float>();
    a.x_sums = ws.sums_.as<int32_t>();
    const auto quantize = [&](int64_t begin, int64_t end, int thread) {
      for (int64_t m = begin; m < end; ++m) {
        const float* row = x + m * x_stride;
        if (const int32_t* order = w.order()) {
          float* ordered = ws.ordered_.as<float>() + thread * ws.stride_;
          for (int64_t k = 0; k < w.K(); ++k) ordered[k] = row[order[k]];
          row = ordered;
        }
        context.table.quantize_row(row, w.K(), w.K_padded(), a.x_group, ws.codes_.as<int8_t>() + m * ws.stride_,
                                   ws.scales_.as<float>() + m * a.x_groups, ws.sums_.as<int32_t>() + m * a.x_groups);
      }
    };
    if (M < 8) {
      quantize(0, M, 0);
    } else {
      context.pool.parallel_for(M, 1, quantize);
    }
  } else {
    a.xf = x;
    a.xf_stride = x_stride;
  }
  const auto kernel = context.table.matmul[static_cast<int>(w.format())];
  const int64_t quantum = context.table.panel_quantum;
  const int64_t products = std::min(kPartProducts / a.M, kPartRowProducts);
  const int64_t part = std::max(quantum, products / (a.K * kPanelRows) / quantum * quantum);
  Interruption interruption(context.poll);
  context.pool.parallel_parts(w.panels(), quantum, part, [&](int64_t begin, int64_t end, int thread) {
    if (!interruption.go_on(thread)) return false;
    MatmulArgs share = a;
    share.scratch = ws.scratch_.data() + thread * ws.scratch_stride_;
    share.panel_begin = begin;
    share.panel_end = end;
    kernel(share);
    return true;
  });
}

}  // namespace llmcore
