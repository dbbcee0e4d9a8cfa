#include "ops/matmul.h"

#include <algorithm>
#include <cmath>

#include "base/checked.h"

namespace llmcore {
namespace {

// Products that a thread takes at a time: some 10 microseconds of reading for one row, and at most 10 milliseconds of a
// slow thread for many, which then polls.
constexpr int64_t kPartProducts = int64_t{1} << 27;
constexpr int64_t kPartRowProducts = int64_t{1} << 20;
// Products that an epilogue works on are kept in a tile of each thread: so many rows by as many columns as fit.
constexpr int64_t kTileRows = 512, kTileFloats = int64_t{1} << 17;

using Product = LargestColumns::Product;

bool comes_before(const Product& a, const Product& b) {
  return a.value != b.value ? a.value > b.value : a.column < b.column;
}

// While products are looked at, in any order, the best are a heap with the last of them in front.
bool takes(const LargestColumns& to, const Product& product) {
  if (to.found == to.wanted) return comes_before(product, to.best[0]);
  return product.value > -INFINITY;
}

void add(LargestColumns& to, const Product& product) {
  if (!takes(to, product)) return;
  const auto begin = to.best.begin();
  if (to.found == to.wanted) std::pop_heap(begin, begin + to.found--, comes_before);
  to.best[to.found++] = product;
  std::push_heap(begin, begin + to.found, comes_before);
}

// Takes n products into account, those from column `first` on.
void update_largest(const float* products, int64_t n, int64_t first, int64_t columns, LargestColumns& to) {
  constexpr int64_t kLanes = 8, kBlock = 64;
  const int64_t counted = std::clamp(columns - first, int64_t{0}, n);
  uint32_t unsound[kLanes] = {};
  const auto look = [&](int64_t i, int64_t lane) { unsound[lane] |= !(products[i] < INFINITY); };
  int64_t i = 0;
  for (; i + kBlock <= counted; i += kBlock) {
    float tops[kLanes];
    std::fill_n(tops, kLanes, -INFINITY);
    for (int64_t j = i; j < i + kBlock; j += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        look(j + lane, lane);
        tops[lane] = products[j + lane] > tops[lane] ? products[j + lane] : tops[lane];
      }
    }
    if (!takes(to, {*std::max_element(tops, tops + kLanes), static_cast<int32_t>(first + i)})) continue;
    for (int64_t j = i; j < i + kBlock; ++j) add(to, {products[j], static_cast<int32_t>(first + j)});
  }
  for (; i < n; ++i) {
    look(i, 0);
    if (i < counted) add(to, {products[i], static_cast<int32_t>(first + i)});
  }
  to.sound &= std::none_of(unsound, unsound + kLanes, [](uint32_t lane) { return lane != 0; });
}

}  // namespace

static_assert(kRowsPerPanel == kPanelRows && kMaxActivationGroup % kDefaultActivationGroup == 0);
static_assert(static_cast<int>(Format::kNf4) == kNf4 && static_cast<int>(Format::kF32) == kF32);
static_assert(static_cast<int>(Format::kIq3S) == kIq3S && static_cast<int>(Format::kInt2) == kInt2);
static_assert([] {
  for (unsigned field = 0; field < 27; ++field) {
    if (kTrits[field] != (field % 3 | field / 3 % 3 << 2 | field / 9 << 4)) return false;
  }
  return static_cast<int>(Format::kTernaryDense) == kTernaryDense;
}());

MatmulWorkspace::MatmulWorkspace(const Context& context, int64_t max_rows, int64_t max_k, int64_t max_ranked_rows,
                                 InputType input_type)
    : max_rows_(max_rows),
      max_k_(max_k),
      max_ranked_rows_(max_ranked_rows),
      stride_(round_up(max_k, 64)),
      input_type_(input_type) {
  const int64_t groups = ceil_div(max_k, 16), threads = context.pool.size();
  for (Codes& input : inputs_) {
    input.codes = Buffer(checked_mul(max_rows, stride_));
    input.scales = Buffer(checked_mul(max_rows, groups * 4));
    input.sums = Buffer(checked_mul(max_rows, groups * 4));
  }
  row_ = Buffer(checked_mul(2 * stride_ * 4, threads));
  scratch_stride_ = round_up(context.table.matmul_scratch_bytes(stride_), 64);
  scratch_ = Buffer(checked_mul(scratch_stride_, threads));
  tile_ = Buffer(checked_mul(kTileFloats * 4, threads));
  largest_ = Buffer(checked_mul(max_ranked_rows * static_cast<int64_t>(sizeof(LargestColumns)), threads));
  if (input_type == InputType::kFloat32) values_ = Buffer(checked_mul((1 + kPanelRows) * stride_ * 4, threads));
}

int64_t MatmulWorkspace::nbytes() const {
  int64_t total = largest_.size() + values_.size() + row_.size() + scratch_.size() + tile_.size();
  for (const Codes& input : inputs_) total += input.codes.size() + input.scales.size() + input.sums.size();
  return total;
}

// One product: what its steps share.
class MatmulCall {
 public:
  MatmulCall(const Context& context, MatmulWorkspace& ws, const MatmulInput& input, const MatmulOutput& output)
      : context_(context), ws_(ws), input_(input), output_(output) {}

  /// Columns [0, columns) of y from the rows of one matrix or, gated, of two; a run begins at row `begin` of its
  /// matrix.
  struct Run {
    const Matrix* w;
    int64_t begin;
    const float* bias;
  };
  void operator()(std::span<const Run> runs, int64_t columns, int64_t first_column = 0) {
    std::array<MatmulArgs, 2> args{};
    for (size_t i = 0; i < runs.size(); ++i) {
      args[i] = input_for(*runs[i].w, i);
      add_weight(*runs[i].w, args[i]);
      args[i].bias = runs[i].bias;
    }
    const bool tiled = output_.add || output_.activation || output_.largest;
    const int64_t quantum = context_.table.panel_quantum, M = input_.rows, panels = ceil_div(columns, kPanelRows);
    const int64_t streams = static_cast<int64_t>(runs.size());
    const int64_t products = std::min(kPartProducts / M, kPartRowProducts);
    int64_t part = products / (args[0].K * kPanelRows);
    const int64_t row_block = tiled ? std::min(M, kTileRows) : M;
    // The rows of a second half may begin within a panel, so that one panel more is touched.
    if (tiled) part = std::min(part, kTileFloats / (streams * row_block * kPanelRows) - 1);
    part = std::max(quantum, part / quantum * quantum);
    Interruption interruption(context_.poll);
    context_.pool.parallel_parts(panels, quantum, part, [&](int64_t begin, int64_t end, int thread) {
      if (!interruption.go_on(thread)) return false;
      const int64_t first = begin * kPanelRows, width = std::min(end * kPanelRows, columns) - first;
      const int64_t tile_stride = (end - begin + 1) * kPanelRows;
      float* tile = ws_.tile_.as<float>() + thread * kTileFloats;
      for (int64_t m = 0; m < M; m += row_block) {
        const int64_t rows = std::min(row_block, M - m);
        float* at[2] = {};
        for (int64_t i = 0; i < streams; ++i) {
          MatmulArgs share = rows_of(args[i], m, rows);
          share.scratch = ws_.scratch_.data() + thread * ws_.scratch_stride_;
          share.panel_begin = (runs[i].begin + first) / kPanelRows;
          share.panel_end = ceil_div(runs[i].begin + first + width, kPanelRows);
          if (tiled) {
            share.y = tile + i * row_block * tile_stride;
            share.y_stride = tile_stride;
            share.y_begin = share.panel_begin * kPanelRows;
            at[i] = share.y + runs[i].begin + first - share.y_begin;
          } else {
            share.y = output_.y + m * output_.stride + first_column;
            share.y_stride = output_.stride;
            share.y_begin = runs[i].begin;
          }
          multiply(*runs[i].w, share, thread);
        }
        for (int64_t r = 0; tiled && r < rows; ++r) {
          finish_row(at[0] + r * tile_stride, at[1] ? at[1] + r * tile_stride : nullptr, m + r, first_column + first,
                     width, thread);
        }
      }
      return true;
    });
  }

  /// Before the first run, and what all threads found after the last.
  void begin_largest() {
    for (int thread = 0; thread < context_.pool.size(); ++thread) {
      for (int64_t m = 0; m < input_.rows; ++m) clear(largest_of(thread)[m], output_.largest[m].wanted);
    }
  }
  void end_largest() {
    for (int64_t m = 0; m < input_.rows; ++m) {
      LargestColumns& to = output_.largest[m];
      clear(to, to.wanted);
      for (int thread = 0; thread < context_.pool.size(); ++thread) {
        const LargestColumns& found = largest_of(thread)[m];
        for (int32_t i = 0; i < found.found; ++i) add(to, found.best[i]);
        to.sound &= found.sound;
      }
      std::sort_heap(to.best.begin(), to.best.begin() + to.found, comes_before);
    }
  }

 private:
  // What becomes of row m's products from column `first` on; `up`: those of the second half.
  void finish_row(float* products, const float* up, int64_t m, int64_t first, int64_t width, int thread) const {
    if (output_.largest) {
      if (output_.softcap > 0) context_.table.softcap(products, output_.softcap, width);
      return update_largest(products, width, first, output_.columns, largest_of(thread)[m]);
    }
    float* y = output_.y + m * output_.stride + first;
    if (output_.add) return context_.table.add(products, y, width);
    output_.activation(products, up, y, width);
  }
  static void clear(LargestColumns& to, int32_t wanted) {
    to.wanted = wanted;
    to.found = 0;
    to.sound = true;
  }
  LargestColumns* largest_of(int thread) const {
    return ws_.largest_.as<LargestColumns>() + thread * ws_.max_ranked_rows_;
  }
  bool takes_codes(const Matrix& w) const { return is_integer(w.format()) && ws_.input_type_ == InputType::kInt8; }
  void multiply(const Matrix& w, const MatmulArgs& a, int thread) const {
    const auto& kernels = context_.table.matmul;
    if (takes_codes(w) || !is_integer(w.format())) return kernels[static_cast<int>(w.format())](a);
    float *row = ws_.values_.as<float>() + thread * (1 + kPanelRows) * ws_.stride_, *panel = row + ws_.stride_;
    MatmulArgs share = a;
    share.codes = reinterpret_cast<const uint8_t*>(panel);
    share.panel_bytes = 0;
    share.K = w.K();
    for (int64_t p = a.panel_begin; p < a.panel_end; ++p) {
      for (int64_t lane = 0; lane < kPanelRows; ++lane) {
        const int64_t n = p * kPanelRows + lane;
        if (n < w.N()) w.decode_row(n, row);
        for (int64_t k = 0; k < w.K(); ++k) panel[k * kPanelRows + lane] = n < w.N() ? row[k] : 0.0f;
      }
      share.panel_begin = p;
      share.panel_end = p + 1;
      kernels[kF32](share);
    }
  }
  bool takes_same_input(const Matrix& a, const Matrix& b) const {
    return takes_codes(a) == takes_codes(b) && a.activation_group() == b.activation_group() &&
           a.K_padded() == b.K_padded() && a.order() == b.order();
  }
  static MatmulArgs rows_of(const MatmulArgs& a, int64_t m, int64_t rows) {
    MatmulArgs share = a;
    share.M = rows;
    if (a.x) {
      share.x = a.x + m * a.x_stride;
      share.x_scales = a.x_scales + m;
      share.x_sums = a.x_sums + m;
    } else {
      share.xf = a.xf + m * a.xf_stride;
    }
    return share;
  }

  static void add_weight(const Matrix& w, MatmulArgs& a) {
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
    a.zero = w.zero();
    a.levels = w.levels();
    a.factor = w.factor();
    a.K = w.K_padded();
    a.N = w.N();
  }

  // Row m of the input, normed where that is asked for.
  const float* normed_row(int64_t m, int64_t K, float* to) const {
    const float* row = input_.x + m * input_.stride;
    if (!input_.norm) return row;
    input_.norm->row(context_.table, row, to, K);
    return to;
  }

  template <class Function>
  void for_rows(Function&& function) const {
    if (input_.rows < 8) {
      function(0, input_.rows, 0);
    } else {
      context_.pool.parallel_for(input_.rows, 1, function);
    }
  }

  // The input as `w` wants it; what is there already, for this matrix or another, is taken.
  const MatmulArgs& input_for(const Matrix& w, size_t slot) {
    for (const Prepared& prepared : prepared_) {
      if (prepared.w && takes_same_input(*prepared.w, w)) return prepared.args;
    }
    prepared_[slot] = {&w, prepare_input(w, ws_.inputs_[slot])};
    return prepared_[slot].args;
  }

  MatmulArgs prepare_input(const Matrix& w, MatmulWorkspace::Codes& to) const {
    const int64_t K = w.K();
    MatmulArgs a{};
    if (!takes_codes(w)) {
      a.xf = input_.x;
      a.xf_stride = input_.stride;
      if (!input_.norm) return a;
      for_rows([&](int64_t begin, int64_t end, int) {
        for (int64_t m = begin; m < end; ++m) normed_row(m, K, input_.normed + m * K);
      });
      a.xf = input_.normed;
      a.xf_stride = K;
      return a;
    }
    int8_t* codes = to.codes.as<int8_t>();
    float* scales = to.scales.as<float>();
    int32_t* sums = to.sums.as<int32_t>();
    a.x_group = w.activation_group();
    a.x_groups = ceil_div(w.K_padded(), a.x_group);
    a.x = codes;
    a.x_stride = ws_.stride_;
    a.x_scales = scales;
    a.x_sums = sums;
    a.x_scale_stride = input_.rows;
    for_rows([&](int64_t begin, int64_t end, int thread) {
      float *own = ws_.row_.as<float>() + 2 * thread * ws_.stride_, *ordered = own + ws_.stride_;
      for (int64_t m = begin; m < end; ++m) {
        const float* row = normed_row(m, K, own);
        if (const int32_t* order = w.order()) {
          for (int64_t k = 0; k < K; ++k) ordered[k] = row[order[k]];
          row = ordered;
        }
        context_.table.quantize_row(row, K, w.K_padded(), a.x_group, codes + m * ws_.stride_, scales + m, sums + m,
                                    a.x_scale_stride);
      }
    });
    return a;
  }

  const Context& context_;
  MatmulWorkspace& ws_;
  const MatmulInput& input_;
  const MatmulOutput& output_;
  struct Prepared {
    const Matrix* w = nullptr;
    MatmulArgs args{};
  };
  std::array<Prepared, 2> prepared_;
};

void matmul(const Context& context, MatmulWorkspace& ws, const MatmulInput& input, Stack w, const float* bias,
            const MatmulOutput& output) {
  check_argument(!w.empty(), "matmul: there is no matrix");
  const int64_t K = w[0]->K();
  int64_t N = 0;
  for (const auto& part : w) N += part->N();
  const int64_t columns = output.gated ? N / 2 : N;
  check_argument(input.rows >= 0 && input.stride >= K && (output.largest || output.stride >= columns),
                 "matmul: row strides are shorter than the rows");
  check_argument(ws.fits(input.rows, K, output.largest), "matmul: the workspace was planned for fewer rows or columns");
  const auto countable = [](const LargestColumns& row) {
    return row.wanted >= 1 && row.wanted <= LargestColumns::kMost;
  };
  check_argument(
      !output.largest || std::all_of(output.largest, output.largest + input.rows, countable),
      "matmul: the number of largest products must be within [1, " + std::to_string(LargestColumns::kMost) + "]");
  if (input.rows == 0) return;
  MatmulCall call(context, ws, input, output);
  if (output.gated) {
    const bool two = w.size() == 2 && w[0]->N() == columns;
    check_argument(N % 2 == 0 && (two || w.size() == 1), "matmul: a gated weight must be one matrix, or two halves");
    const std::array<MatmulCall::Run, 2> halves{{{w[0].get(), 0, bias},
                                                 two ? MatmulCall::Run{w[1].get(), 0, bias ? bias + columns : nullptr}
                                                     : MatmulCall::Run{w[0].get(), columns, bias}}};
    return call(halves, columns);
  }
  if (output.largest) call.begin_largest();
  int64_t first = 0;
  for (const auto& part : w) {
    const MatmulCall::Run run{part.get(), 0, bias ? bias + first : nullptr};
    call({&run, 1}, part->N(), first);
    first += part->N();
  }
  if (output.largest) call.end_largest();
}

}  // namespace llmcore
