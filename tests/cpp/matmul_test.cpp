// Matrix products: every table gives the scalar table's bits between guard pages, and the scalar table the right
// numbers.

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "cases.h"
#include "guarded.h"
#include "ops/matmul.h"
#include "quant/matrix.h"
#include "random.h"

using namespace llmcore;
using namespace llmcore::test;

namespace {

struct WeightType {
  Format format;
  int64_t group_size;
  Element scale_type;
  bool zero_points = false;
  bool minima = false;
};

constexpr WeightType kWeightTypes[] = {{Format::kF32, 0, Element::kF32},
                                       {Format::kBF16, 0, Element::kF32},
                                       {Format::kF16, 0, Element::kF32},
                                       {Format::kInt8, 0, Element::kF32},
                                       {Format::kInt8, 32, Element::kF16},
                                       {Format::kInt8, 64, Element::kBF16},
                                       {Format::kInt8, 128, Element::kF32},
                                       {Format::kInt4, 0, Element::kF32},
                                       {Format::kInt4, 32, Element::kF16},
                                       {Format::kInt4, 64, Element::kF32},
                                       {Format::kInt4, 128, Element::kBF16},
                                       {Format::kTernary, 0, Element::kF32},
                                       {Format::kTernary, 32, Element::kBF16},
                                       {Format::kTernary, 64, Element::kF16},
                                       {Format::kTernary, 128, Element::kF32},
                                       {Format::kNf4, 64, Element::kF16},
                                       {Format::kNf4, 0, Element::kF32},
                                       {Format::kTernaryDense, 0, Element::kF32},
                                       {Format::kTernaryDense, 128, Element::kF16},
                                       {Format::kInt8, 0, Element::kF32, true},
                                       {Format::kInt8, 64, Element::kF16, true},
                                       {Format::kInt4, 0, Element::kF32, true},
                                       {Format::kInt4, 32, Element::kF16, true},
                                       {Format::kInt4, 128, Element::kBF16, true},
                                       {Format::kInt8, 64, Element::kInt8},
                                       {Format::kInt4, 32, Element::kInt8},
                                       {Format::kInt4, 32, Element::kInt8, true},
                                       {Format::kInt4, 128, Element::kInt8, true},
                                       {Format::kTernary, 32, Element::kInt8},
                                       {Format::kNf4, 64, Element::kInt8},
                                       {Format::kTernaryDense, 128, Element::kInt8},
                                       {Format::kInt8, 16, Element::kInt8},
                                       {Format::kInt8, 16, Element::kF16},
                                       {Format::kInt4, 16, Element::kInt8},
                                       {Format::kInt4, 16, Element::kInt8, true},
                                       {Format::kTernary, 16, Element::kF16},
                                       {Format::kNf4, 16, Element::kF16},
                                       {Format::kInt4, 32, Element::kF16, true, true},
                                       {Format::kInt8, 32, Element::kF16, true, true},
                                       {Format::kInt8, 32, Element::kInt8, true},
                                       {Format::kInt2, 16, Element::kInt8, true},
                                       {Format::kInt2, 32, Element::kF16},
                                       {Format::kInt3, 16, Element::kInt8},
                                       {Format::kInt3, 0, Element::kF32},
                                       {Format::kInt3, 64, Element::kF16, true},
                                       {Format::kInt5, 32, Element::kInt8, true},
                                       {Format::kInt5, 16, Element::kF16},
                                       {Format::kInt5, 32, Element::kF16, true, true},
                                       {Format::kInt6, 16, Element::kInt8},
                                       {Format::kInt6, 0, Element::kF32},
                                       {Format::kInt6, 128, Element::kF16, true},
                                       {Format::kIq4, 32, Element::kInt8},
                                       {Format::kFp4, 32, Element::kBF16},
                                       {Format::kIq2, 16, Element::kInt8},
                                       {Format::kIq2, 0, Element::kF32},
                                       {Format::kIq3, 32, Element::kInt8},
                                       {Format::kIq3S, 32, Element::kF16}};

// Codes of all values, for what no weights are rounded to.
void set_random_codes(Matrix& w, Random& random) {
  std::vector<int8_t> codes(static_cast<size_t>(w.N() * w.K()));
  for (int8_t& code : codes) code = static_cast<int8_t>(random.integer(-128, 127));
  std::vector<float> scales(static_cast<size_t>(w.N() * w.groups())), minima(scales);
  for (float& scale : scales) scale = static_cast<float>(random.integer(1, 63)) * 0x1p-13f;
  for (float& minimum : minima) minimum = static_cast<float>(random.integer(-63, 63)) * 0x1p-6f;
  if (w.has_units()) {
    const std::vector<float> scale_units(scales.size(), 0x1p-13f), minimum_units(scales.size(), 0x1p-6f);
    w.set_units(0, w.N(), scale_units.data(), minimum_units.data());
  }
  w.set_codes(0, w.N(), codes.data(), scales.data(), minima.data());
}

Matrix random_matrix(const WeightType& type, const Shape& shape) {
  ThreadPool pool(1);
  Random random(static_cast<uint64_t>(shape.N * 1000 + shape.K));
  Matrix w(type.format, shape.N, shape.K, type.group_size, type.scale_type, type.zero_points, type.minima);
  if (w.has_minima() && type.format == Format::kInt8) {
    set_random_codes(w, random);
    return w;
  }
  std::vector<float> values = random.units(shape.N * shape.K, 0.5f);
  for (float& v : values) v += type.zero_points ? 0.3f : 0.0f;  // zero points away from the middle
  w.set_rows(0, shape.N, values.data(), Element::kF32, false, pool);
  return w;
}

// Rows of activations as the kernels take them: float32, and int8 by the scalar table.
struct Activations {
  Activations(const Matrix& w, int64_t M, uint64_t seed)
      : rows(M),
        groups((w.K_padded() + w.activation_group() - 1) / w.activation_group()),
        floats(Random(seed).units(M * w.K())) {
    codes.resize(static_cast<size_t>(M * w.K_padded()));
    scales.resize(static_cast<size_t>(M * groups));
    sums.resize(static_cast<size_t>(M * groups));
    for (int64_t m = 0; m < M; ++m) {
      scalar_table().quantize_row(floats.data() + m * w.K(), w.K(), w.K_padded(), w.activation_group(),
                                  codes.data() + m * w.K_padded(), scales.data() + m, sums.data() + m, M);
    }
  }
  int64_t rows, groups;
  std::vector<float> floats, scales;  // scales and sums: [groups][rows]
  std::vector<int8_t> codes;
  std::vector<int32_t> sums;
};

// One product on one table, every operand between guard pages. Rows of y are N + 1 apart; what lies between is kept.
class Product {
 public:
  Product(const Matrix& w, const Activations& x, int64_t M, const std::vector<float>& bias, Edge edge)
      : w_(w),
        M_(M),
        codes_(w.codes(), w.panels() * w.panel_bytes(), edge),
        scales_(w.scales(), w.nbytes() - w.panels() * w.panel_bytes() - shift_bytes(w), edge),
        shifts_(
            w.shifts() ? reinterpret_cast<const uint8_t*>(w.shifts()) : reinterpret_cast<const uint8_t*>(w.minima()),
            shift_bytes(w), edge),
        x_(x.codes, edge),
        floats_(x.floats, edge),
        x_scales_(x.scales, edge),
        x_sums_(x.sums, edge),
        bias_(bias, edge),
        groups_(x.groups),
        edge_(edge) {}

  // The panels are given to the kernel in shares of `share`.
  std::vector<float> run(const KernelTable& table, int64_t share) {
    Guarded<float> y(M_ * (w_.N() + 1) - 1, edge_);
    Guarded<uint8_t> scratch(table.matmul_scratch_bytes(w_.K_padded()), edge_);
    MatmulArgs a = arguments();
    a.y = y.data();
    a.scratch = scratch.data();
    for (a.panel_begin = 0; a.panel_begin < w_.panels(); a.panel_begin = a.panel_end) {
      a.panel_end = std::min(a.panel_begin + share, w_.panels());
      table.matmul[static_cast<int>(w_.format())](a);
    }
    return y.values();
  }

  // Row m alone, where the operands of all lie.
  std::vector<float> run_row(const KernelTable& table, int64_t m) {
    Guarded<float> y(w_.N(), edge_);
    Guarded<uint8_t> scratch(table.matmul_scratch_bytes(w_.K_padded()), edge_);
    MatmulArgs a = arguments();
    a.M = 1;
    a.x += m * a.x_stride;
    a.x_scales += m;
    a.x_sums += m;
    a.xf += m * a.xf_stride;
    a.y = y.data();
    a.scratch = scratch.data();
    a.panel_end = w_.panels();
    table.matmul[static_cast<int>(w_.format())](a);
    return y.values();
  }

 private:
  MatmulArgs arguments() {
    MatmulArgs a{};
    a.codes = codes_.data();
    a.panel_bytes = w_.panel_bytes();
    a.scales = scales_.data();
    constexpr ScaleType kTypes[] = {kScaleF32, kScaleBF16, kScaleF16, kScaleInt8};
    a.scale_type = kTypes[static_cast<int>(w_.scale_type())];
    a.per_row = w_.per_row();
    a.shifts = w_.shifts() ? reinterpret_cast<const uint16_t*>(shifts_.data()) : nullptr;
    const int64_t multiples = w_.panels() * kRowsPerPanel * w_.groups();
    if (w_.has_units()) a.scale_units = reinterpret_cast<const uint16_t*>(scales_.data() + multiples);
    if (w_.has_minima()) {
      a.minima = shifts_.data();
      if (w_.has_units()) a.minimum_units = reinterpret_cast<const uint16_t*>(shifts_.data() + multiples);
    }
    a.zero = w_.zero();
    a.levels = w_.levels();
    a.factor = w_.factor();
    a.K = w_.K_padded();
    a.N = w_.N();
    a.M = M_;
    a.x = x_.data();
    a.x_stride = w_.K_padded();
    a.x_scales = x_scales_.data();
    a.x_sums = x_sums_.data();
    a.x_scale_stride = M_;
    a.x_group = w_.activation_group();
    a.x_groups = groups_;
    a.xf = floats_.data();
    a.xf_stride = w_.K();
    a.y_stride = w_.N() + 1;
    a.bias = bias_.size() ? bias_.data() : nullptr;
    return a;
  }

  static int64_t shift_bytes(const Matrix& w) {
    if (!w.has_zero_points()) return 0;
    const int64_t units = (w.groups() + kGroupsPerUnit - 1) / kGroupsPerUnit;
    return w.panels() * kRowsPerPanel * (w.has_units() ? w.groups() + 2 * units : 2 * w.groups());
  }

  const Matrix& w_;
  int64_t M_;
  Guarded<uint8_t> codes_, scales_, shifts_;
  Guarded<int8_t> x_;
  Guarded<float> floats_, x_scales_;
  Guarded<int32_t> x_sums_;
  Guarded<float> bias_;
  int64_t groups_;
  Edge edge_;
};

void compare_tables(const Matrix& w, int64_t M, Edge edge, bool biased) {
  const Activations x(w, M, static_cast<uint64_t>(M));
  Product product(w, x, M, biased ? Random(9).units(w.N()) : std::vector<float>(), edge);
  const std::vector<float> expected = product.run(scalar_table(), w.panels());
  for (const KernelTable* table : other_tables()) {
    NOTE(table->name);
    for (const int64_t share : {w.panels(), int64_t{1}}) {
      const std::vector<float> got = product.run(*table, share);
      CHECK(same_bits(got.data(), expected.data(), static_cast<int64_t>(expected.size())));
    }
  }
}

// The same arithmetic in double, from the codes that the kernel reads.
double exact_product(const Matrix& w, const Activations& x, int64_t m, int64_t n) {
  double sum = 0;
  if (!is_integer(w.format())) {
    std::vector<float> row(static_cast<size_t>(w.K()));
    w.decode_row(n, row.data());
    for (int64_t k = 0; k < w.K(); ++k) sum += static_cast<double>(row[k]) * x.floats[m * w.K() + k];
    return sum;
  }
  std::vector<int8_t> codes(static_cast<size_t>(w.K()));
  std::vector<float> scales(static_cast<size_t>(w.groups())), zero_points(scales.size()), minima(scales.size());
  w.read_codes(n, codes.data(), scales.data(), zero_points.data(), minima.data());
  for (int64_t k = 0; k < w.K(); ++k) {
    const int64_t group = k / w.activation_group();
    const int64_t own = w.per_row() ? 0 : group;
    const double code = codes[k] - static_cast<double>(zero_points[own]);
    const double weight = static_cast<double>(scales[own]) * code - static_cast<double>(minima[own]);
    sum += weight * x.scales[group * x.rows + m] * x.codes[m * w.K_padded() + k];
  }
  return sum;
}

}  // namespace

TEST(matmul, every_table_gives_the_scalar_bits) {
  int64_t index = 0;
  for (const WeightType& type : kWeightTypes) {
    for (const Shape& shape : kMatrices) {
      if (left_out(index++, 3)) continue;
      const Matrix w = random_matrix(type, shape);
      NOTE(std::string(format_name(type.format)) + " in groups of " + std::to_string(type.group_size) + ", " +
           to_string(shape));
      for (const int64_t M : kRows) {
        if (left_out(M)) continue;
        NOTE("M " + std::to_string(M));
        compare_tables(w, M, M % 2 ? Edge::kFront : Edge::kBack, M % 3 == 0);
      }
    }
  }
}

TEST(matmul, both_ends_of_every_operand_are_kept) {
  for (const WeightType& type : kWeightTypes) {
    const Matrix w = random_matrix(type, {37, 161});
    NOTE(std::string(format_name(type.format)) + " in groups of " + std::to_string(type.group_size));
    for (const int64_t M : {1, 14}) {
      for (const Edge edge : {Edge::kFront, Edge::kBack}) compare_tables(w, M, edge, true);
    }
  }
}

// Largest codes by largest activations of one sign: a kernel whose 16-bit sums saturate shows here.
TEST(matmul, extreme_codes_do_not_saturate) {
  for (const Format format : {Format::kInt8, Format::kInt4, Format::kTernary}) {
    NOTE(format_name(format));
    const int zero = format == Format::kInt8 ? 128 : format == Format::kInt4 ? 8 : 1;
    const int highest = format == Format::kTernary ? 1 : zero - 1;
    constexpr int64_t N = 18, K = 512;
    for (const int code : {-zero, highest}) {
      for (const float activation : {1.0f, -1.0f}) {
        Matrix w(format, N, K, 0);
        const std::vector<int8_t> codes(static_cast<size_t>(N * K), static_cast<int8_t>(code));
        w.set_codes(0, N, codes.data(), std::vector<float>(static_cast<size_t>(N), 1.0f).data());
        Activations x(w, 3, 1);
        x.codes.assign(x.codes.size(), static_cast<int8_t>(activation * 127));
        x.sums.assign(x.sums.size(), static_cast<int32_t>(activation * 127 * static_cast<float>(w.activation_group())));
        x.scales.assign(x.scales.size(), 1.0f);
        Product product(w, x, 3, {}, Edge::kBack);
        for (const std::string& isa : available_isas()) {
          NOTE(isa);
          for (const float y : product.run(kernels_named(isa), w.panels())) {
            if (y == y) CHECK_EQ(y, static_cast<float>(code) * 127.0f * activation * static_cast<float>(K));
          }
        }
      }
    }
  }
}

// |error| <= (steps + 2) * 2^-24 * sum of |terms|: one rounding for each fma, scale and sum.
TEST(matmul, the_scalar_table_is_right_within_its_roundings) {
  for (const WeightType& type : kWeightTypes) {
    NOTE(std::string(format_name(type.format)) + " in groups of " + std::to_string(type.group_size));
    for (const Shape& shape : {Shape{5, 7}, Shape{33, 300}}) {
      const Matrix w = random_matrix(type, shape);
      const Activations x(w, 3, 4);
      Product product(w, x, 3, {}, Edge::kBack);
      const std::vector<float> y = product.run(scalar_table(), w.panels());
      const double bound = 0x1p-24 * static_cast<double>(shape.K + 3) * static_cast<double>(shape.K) * 0.6;
      for (int64_t m = 0; m < 3; ++m) {
        for (int64_t n = 0; n < w.N(); ++n) {
          CHECK(std::fabs(y[static_cast<size_t>(m * (w.N() + 1) + n)] - exact_product(w, x, m, n)) <= bound);
        }
      }
    }
  }
}

TEST(matmul, a_row_does_not_depend_on_the_rows_beside_it) {
  for (const WeightType& type : kWeightTypes) {
    NOTE(std::string(format_name(type.format)) + " in groups of " + std::to_string(type.group_size));
    const Matrix w = random_matrix(type, {70, 400});
    constexpr int64_t kMany = 33;
    const Activations many(w, kMany, 3);
    for (const std::string& isa : available_isas()) {
      NOTE(isa);
      Product product(w, many, kMany, {}, Edge::kBack);
      const std::vector<float> all = product.run(kernels_named(isa), w.panels());
      for (const int64_t m : {0, 1, 7, 32}) {
        const std::vector<float> y = product.run_row(kernels_named(isa), m);
        CHECK(same_bits(y.data(), all.data() + m * (w.N() + 1), w.N()));
      }
    }
  }
}

// --- ops/matmul.h: what stands before and after a product ------------------------------------------------------------

namespace {

std::vector<float> random_floats(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random.integer(-1000, 1000)) / 300.0f;
  return values;
}

// The steps one by one, on rows of their own.
struct Steps {
  const Context& context;
  Stack w;
  const Norm* norm;
  const float* bias;

  std::vector<float> product(const std::vector<float>& x, int64_t M) const {
    const int64_t K = w[0]->K();
    std::vector<float> y, normed(x);
    for (int64_t m = 0; norm && m < M; ++m) norm->row(context.table, x.data() + m * K, normed.data() + m * K, K);
    for (int64_t m = 0; m < M; ++m) {
      const float* own_bias = bias;
      for (const auto& part : w) {
        std::vector<float> row(static_cast<size_t>(part->N()));
        MatmulWorkspace workspace(context, 1, K);
        matmul(context, workspace, {.x = normed.data() + m * K, .rows = 1, .stride = K}, {&part, 1}, own_bias,
               {.y = row.data(), .stride = part->N()});
        y.insert(y.end(), row.begin(), row.end());
        if (own_bias) own_bias += part->N();
      }
    }
    return y;
  }
};

}  // namespace

TEST(matmul, fused_steps_give_the_bits_of_steps_one_by_one) {
  const auto make = [](const WeightType& type, const Shape& shape) {
    return std::make_shared<const Matrix>(random_matrix(type, shape));
  };
  const WeightType int4{Format::kInt4, 32, Element::kF16}, int6{Format::kInt6, 16, Element::kInt8},
      f32{Format::kF32, 0, Element::kF32}, f16{Format::kF16, 0, Element::kF32}, int8{Format::kInt8, 0, Element::kF32};
  constexpr int64_t K = 96;
  const std::vector<std::vector<std::shared_ptr<const Matrix>>> stacks = {
      {make(int8, {64, K})},
      {make(int4, {74, K})},  // halves that end within a panel
      {make(f32, {90, K})},
      {make(int4, {37, K}), make(int4, {37, K})},
      {make(int6, {37, K}), make(int4, {37, K})},  // that want different groups
      {make(f16, {40, K}), make(int8, {40, K})},
      {make(int4, {2400, K})},
  };
  ThreadPool pool(2);
  const std::vector<float> weight = random_floats(K, 1), norm_bias = random_floats(K, 2);
  for (const std::string& isa : available_isas()) {
    NOTE(isa);
    const Context context{kernels_named(isa), pool};
    for (size_t i = 0; i < stacks.size(); ++i) {
      for (const int64_t M : {1, 3, 9, 513}) {
        NOTE("stack " + std::to_string(i) + ", rows " + std::to_string(M));
        const Stack w = stacks[i];
        int64_t N = 0;
        for (const auto& part : w) N += part->N();
        if (M > 9 && i > 1) continue;
        const std::vector<float> x = random_floats(M * K, 3), bias = random_floats(N, 4),
                                 before = random_floats(M * N, 5);
        for (const bool normed : {false, true}) {
          const Norm norm{weight.data(), norm_bias.data(), 1e-5f, true};
          const Steps steps{context, w, normed ? &norm : nullptr, bias.data()};
          const std::vector<float> product = steps.product(x, M);
          std::vector<float> memory(static_cast<size_t>(M * K));
          const MatmulInput input{x.data(), M, K, steps.norm, memory.data()};
          MatmulWorkspace workspace(context, M, K);

          std::vector<float> y(static_cast<size_t>(M * N));
          matmul(context, workspace, input, w, bias.data(), {.y = y.data(), .stride = N});
          CHECK(same_bits(y.data(), product.data(), M * N));

          std::vector<float> sum = before, expected = before;
          matmul(context, workspace, input, w, bias.data(), {.y = sum.data(), .stride = N, .add = true});
          context.table.add(product.data(), expected.data(), M * N);
          CHECK(same_bits(sum.data(), expected.data(), M * N));

          const int64_t half = N / 2;
          std::vector<float> gated(static_cast<size_t>(M * half)), gate(gated);
          matmul(context, workspace, input, w, bias.data(),
                 {.y = gated.data(), .stride = half, .activation = context.table.silu, .gated = true});
          for (int64_t m = 0; m < M; ++m) {
            context.table.silu(product.data() + m * N, product.data() + m * N + half, gate.data() + m * half, half);
          }
          CHECK(same_bits(gated.data(), gate.data(), M * half));

          std::vector<float> activated(product.size()), each(product.size());
          matmul(context, workspace, input, w, bias.data(),
                 {.y = activated.data(), .stride = N, .activation = context.table.gelu});
          context.table.gelu(product.data(), nullptr, each.data(), M * N);
          CHECK(same_bits(activated.data(), each.data(), M * N));
        }
      }
    }
  }
}

TEST(matmul, a_gated_product_wants_two_halves) {
  const auto part = [](int64_t N) {
    return std::make_shared<const Matrix>(random_matrix({Format::kInt4, 32, Element::kF16}, {N, 32}));
  };
  ThreadPool pool(1);
  const Context context{scalar_table(), pool};
  const std::vector<std::shared_ptr<const Matrix>> odd = {part(7)}, unequal = {part(6), part(8)};
  std::vector<float> x(32), y(32);
  MatmulWorkspace workspace(context, 1, 32);
  for (const Stack w : {Stack(odd), Stack(unequal)}) {
    CHECK_THROWS(ArgumentError, matmul(context, workspace, {.x = x.data(), .rows = 1, .stride = 32}, w, nullptr,
                                       {.y = y.data(), .stride = 32, .activation = context.table.silu, .gated = true}));
  }
}

TEST(matmul, the_largest_of_each_row_is_found_without_writing_the_row) {
  constexpr int64_t K = 32, M = 5;
  ThreadPool pool(2);
  Random random(9);
  std::vector<std::shared_ptr<const Matrix>> stack;
  for (const int64_t N : {300, 1021}) {  // few different rows, so that many are as large
    Matrix w(Format::kF32, N, K, 0);
    const std::vector<float> distinct = random_floats(7 * K, 11);
    std::vector<float> values;
    for (int64_t n = 0; n < N; ++n) {
      const auto row = distinct.begin() + random.integer(0, 6) * K;
      values.insert(values.end(), row, row + K);
    }
    w.set_rows(0, N, values.data(), Element::kF32, false, pool);
    stack.push_back(std::make_shared<const Matrix>(std::move(w)));
  }
  constexpr int64_t N = 1321;
  const std::vector<float> x = random_floats(M * K, 12);
  for (const std::string& isa : available_isas()) {
    const Context context{kernels_named(isa), pool};
    MatmulWorkspace workspace(context, M, K, M);
    for (const float bad : {0.0f, NAN, INFINITY, -INFINITY}) {
      for (const float softcap : {0.0f, 0.25f}) {  // so small that most products become the cap itself
        NOTE(isa + ", bias " + std::to_string(bad) + ", softcap " + std::to_string(softcap));
        std::vector<float> bias(N), y(M * N);
        bias[1300] = bad;
        const MatmulInput input{.x = x.data(), .rows = M, .stride = K};
        matmul(context, workspace, input, stack, bias.data(), {.y = y.data(), .stride = N});
        if (softcap > 0) context.table.softcap(y.data(), softcap, M * N);
        for (const int64_t columns : {int64_t{1}, int64_t{17}, int64_t{1305}, N}) {
          std::vector<LargestColumns> largest(M);
          for (int64_t m = 0; m < M; ++m) largest[m].wanted = std::array{1, 2, 7, 50, 128}[m];
          matmul(context, workspace, input, stack, bias.data(),
                 {.largest = largest.data(), .columns = columns, .softcap = softcap});
          for (int64_t m = 0; m < M; ++m) {
            const bool sound = bad == 0.0f || bad == -INFINITY || (softcap > 0 && bad == INFINITY);
            CHECK_EQ(largest[m].sound, sound);
            if (!sound) continue;
            const float* row = y.data() + m * N;
            std::vector<int32_t> order;
            for (int32_t n = 0; n < columns; ++n) {
              if (row[n] > -INFINITY) order.push_back(n);
            }
            std::ranges::stable_sort(order, [row](int32_t a, int32_t b) { return row[a] > row[b]; });
            order.resize(std::min<size_t>(order.size(), static_cast<size_t>(largest[m].wanted)));
            CHECK_EQ(static_cast<size_t>(largest[m].found), order.size());
            for (size_t i = 0; i < order.size(); ++i) {
              CHECK_EQ(largest[m].best[i].column, order[i]);
              CHECK_EQ(largest[m].best[i].value, row[order[i]]);
            }
          }
        }
      }
    }
    std::vector<float> bias(N, -INFINITY);
    std::vector<LargestColumns> largest(M);
    const auto run = [&] {
      matmul(context, workspace, {.x = x.data(), .rows = M, .stride = K}, stack, bias.data(),
             {.largest = largest.data(), .columns = N});
    };
    run();
    for (const LargestColumns& each : largest) CHECK(each.sound && each.found == 0);
    for (const int32_t wanted : {0, LargestColumns::kMost + 1}) {
      largest[M - 1].wanted = wanted;
      CHECK_THROWS(ArgumentError, run());
    }
  }
}
