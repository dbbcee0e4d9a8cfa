// Attention over pages in shuffled order, between guard pages, with NaN wherever a row must not look.

#include <cmath>
#include <memory>
#include <numeric>

#include "cases.h"
#include "guarded.h"
#include "ops/attention.h"
#include "random.h"

using namespace llmcore;
using namespace llmcore::test;

namespace {

constexpr int64_t kHeadDims[] = {1, 16, 20, 64, 80, 128};
const char* const kKvNames[] = {"f32", "f16", "bf16", "int12", "int8", "int4"};
constexpr KvType kKvTypes[] = {kKvF32, kKvF16, kKvBF16, kKvInt12, kKvInt8, kKvInt4};

// Tokens [0, tokens) of one head; row r of a block sees [begins[r], ends[r]).
struct Case {
  int64_t head_dim, tokens;
  std::vector<int32_t> begins, ends;
  float softcap = 0.0f;
  bool slopes = false;
  int decades = 0;  // values are from 10^-decades to 10^decades, token by token, and some are 0
};

struct Result {
  std::vector<float> outputs, maxima, sums;
};

int64_t padded(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

// Keys and values of `c` in the pages of one head, written by a table; the lanes of no token hold NaN.
class Pages {
 public:
  Pages(const Case& c, KvType type, const KernelTable& table, Edge edge)
      : layout{type, 1, c.head_dim, (c.tokens + 15) / 16},
        keys(layout.pages * layout.key_page_bytes(), edge),
        values(layout.pages * layout.value_page_bytes(), edge),
        block_table(layout.pages, edge),
        loaded_keys(static_cast<size_t>(c.tokens * c.head_dim)),
        loaded_values(loaded_keys) {
    Random random(static_cast<uint64_t>(c.head_dim * 1000 + c.tokens));
    std::iota(block_table.data(), block_table.data() + layout.pages, 0);
    for (int64_t i = layout.pages - 1; i > 0; --i) std::swap(block_table[i], block_table[random.integer(0, i)]);
    for (int64_t t = 0; t < c.tokens; ++t) {
      Guarded<float> key(random.units(c.head_dim, 2.0f), edge);
      const bool zero = c.decades && t % 11 == 3;
      const double size = c.decades ? std::pow(10.0, c.decades * (static_cast<double>(t * 5 % 13) / 6 - 1)) : 1;
      Guarded<float> value(random.units(c.head_dim, zero ? 0.0f : static_cast<float>(2 * size)), edge);
      const int64_t page = block_table[t / 16];
      table.store_key[type](key.data(), c.head_dim, static_cast<int>(t % 16),
                            keys.data() + page * layout.key_page_bytes());
      table.store_value[type](value.data(), c.head_dim, static_cast<int>(t % 16),
                              values.data() + page * layout.value_page_bytes());
    }
    load_kv(layout, keys.data(), values.data(), block_table.data(), c.tokens, loaded_keys.data(), loaded_values.data());
  }
  double key(int64_t t, int64_t d) { return loaded_keys[static_cast<size_t>(t * layout.head_dim + d)]; }
  double value(int64_t t, int64_t d) { return loaded_values[static_cast<size_t>(t * layout.head_dim + d)]; }

  KvLayout layout;
  Guarded<uint8_t> keys, values;
  Guarded<int32_t> block_table;
  std::vector<float> loaded_keys, loaded_values;
};

// The Walsh-Hadamard transform as defined: element i of a run is the sum of its elements j, less those for which i and
// j have an odd number of bits in common.
template <class Element>
std::vector<Element> hadamard(const std::vector<Element>& x) {
  const auto n = static_cast<int64_t>(x.size()), run = hadamard_run(n);
  std::vector<Element> result(x.size());
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < run; ++j) {
      const Element e = x[static_cast<size_t>(i / run * run + j)];
      result[static_cast<size_t>(i)] += __builtin_parityll(static_cast<uint64_t>(i % run & j)) ? -e : e;
    }
  }
  return result;
}

std::vector<float> query(int64_t row, int64_t head_dim) {
  return Random(static_cast<uint64_t>(70 + row)).units(head_dim);
}

bool scaled(KvType type) { return KvLayout{type}.scaled(); }

// Queries as integer keys take them: int12 the words, the others the codes and their sums.
struct Codes {
  std::vector<int8_t> codes;
  std::vector<int16_t> words;
  std::vector<float> scales;
  std::vector<int32_t> sums;
};

Codes query_codes(int64_t first, int64_t count, int64_t head_dim, KvType type) {
  const int64_t width = padded(head_dim);
  const auto elements = static_cast<size_t>(count * width), rows = static_cast<size_t>(count);
  Codes all{std::vector<int8_t>(elements), std::vector<int16_t>(elements), std::vector<float>(rows),
            std::vector<int32_t>(rows)};
  for (int64_t r = 0; r < count; ++r) {
    std::vector<float> q = query(first + r, head_dim);
    q.resize(static_cast<size_t>(width));
    scalar_table().hadamard(q.data(), head_dim, q.data());
    float* scale = &all.scales[static_cast<size_t>(r)];
    if (type == kKvInt12) {
      scalar_table().quantize_words(q.data(), head_dim, width, all.words.data() + r * width, scale);
    } else {
      scalar_table().quantize_row(q.data(), head_dim, width, width, all.codes.data() + r * width, scale,
                                  &all.sums[static_cast<size_t>(r)], 1);
    }
  }
  return all;
}

// The query as scores take it: over integer keys it is mixed and rounded.
std::vector<double> asked(int64_t row, int64_t head_dim, KvType type) {
  const std::vector<float> q = query(row, head_dim);
  std::vector<double> result(q.begin(), q.end());
  if (!scaled(type)) return result;
  const Codes rounded = query_codes(row, 1, head_dim, type);
  for (size_t d = 0; d < result.size(); ++d) {
    result[d] = static_cast<double>(rounded.scales[0]) * (type == kKvInt12 ? rounded.words[d] : rounded.codes[d]) /
                static_cast<double>(hadamard_run(head_dim));
  }
  return hadamard(result);
}

float slope(int64_t row) { return 0.0625f * static_cast<float>(row % 5 + 1); }

// One split of one block of rows: rows [first, first + count) of the case. They may be shared out among KV heads, all
// of which are the one in the pages.
Result attend(const Case& c, Pages& pages, KvType type, const KernelTable& table, int64_t split, int first, int count,
              Edge edge, int kv_heads = 1) {
  std::vector<std::unique_ptr<Guarded<float>>> queries;
  std::vector<const float*> query_pointers;
  for (int r = 0; r < count; ++r) {
    queries.push_back(std::make_unique<Guarded<float>>(query(first + r, c.head_dim), edge));
    query_pointers.push_back(queries.back()->data());
  }
  Guarded<int32_t> begins(c.begins.data() + first, count, edge), ends(c.ends.data() + first, count, edge);
  std::vector<float> slope_values;
  for (int r = 0; r < count; ++r) slope_values.push_back(slope(first + r));
  Guarded<float> slopes(slope_values, edge), maxima(count, edge), sums(count, edge);
  Guarded<float> outputs(count * padded(c.head_dim), edge);
  Guarded<float> scratch(attention_scratch_floats(count, c.head_dim), edge);
  const Codes rounded = query_codes(first, count, c.head_dim, type);
  Guarded<int8_t> codes(rounded.codes, edge);
  Guarded<int16_t> words(rounded.words, edge);
  Guarded<float> scales(rounded.scales, edge);
  Guarded<int32_t> code_sums(rounded.sums, edge);
  AttentionArgs a{};
  if (type == kKvInt12) {
    a.query_words = words.data();
    a.query_scales = scales.data();
  } else if (scaled(type)) {
    a.query_codes = codes.data();
    a.query_scales = scales.data();
    a.query_sums = code_sums.data();
  } else {
    a.queries = query_pointers.data();
  }
  a.rows = count;
  a.begins = begins.data();
  a.ends = ends.data();
  a.positions = ends.data();
  a.slopes = c.slopes ? slopes.data() : nullptr;
  a.softcap = c.softcap;
  a.head_dim = c.head_dim;
  a.token_begin = split * kSplitTokens;
  a.token_end = std::min<int64_t>(c.tokens, a.token_begin + kSplitTokens);
  a.kv_heads = kv_heads;
  a.pages = pages.block_table.data() + a.token_begin / kPageTokens;
  a.keys = pages.keys.data();
  a.values = pages.values.data();
  a.key_page_stride = pages.layout.key_page_bytes();
  a.value_page_stride = pages.layout.value_page_bytes();
  a.scratch = scratch.data();
  a.outputs = outputs.data();
  a.maxima = maxima.data();
  a.sums = sums.data();
  table.attention[type](a);
  return {outputs.values(), maxima.values(), sums.values()};
}

bool same(const Result& a, const Result& b) {
  return a.outputs.size() == b.outputs.size() && a.sums.size() == b.sums.size() &&
         same_bits(a.outputs.data(), b.outputs.data(), static_cast<int64_t>(a.outputs.size())) &&
         same_bits(a.maxima.data(), b.maxima.data(), static_cast<int64_t>(a.maxima.size())) &&
         same_bits(a.sums.data(), b.sums.data(), static_cast<int64_t>(a.sums.size()));
}

// A block of decoding or prefilling rows, the last of which sees all tokens.
Case block(int64_t head_dim, int64_t tokens, int64_t rows, int64_t window) {
  Case c{head_dim, tokens, {}, {}};
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t end = std::max<int64_t>(1, tokens - rows + 1 + r);
    c.begins.push_back(static_cast<int32_t>(window ? std::max<int64_t>(0, end - window) : 0));
    c.ends.push_back(static_cast<int32_t>(end));
  }
  return c;
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const int64_t head_dim : kHeadDims) {
    for (int64_t rows = 1; rows <= 8; ++rows) {
      const int64_t tokens = 9 + 7 * rows;
      all.push_back(block(head_dim, tokens, rows, 0));
      all.push_back(block(head_dim, tokens, rows, 5));
    }
    all.push_back(block(head_dim, 1, 1, 0));
    all.push_back(block(head_dim, 16, 4, 0));
    all.push_back(block(head_dim, 256, 8, 0));
    all.push_back(block(head_dim, 257, 8, 0));
    all.push_back(block(head_dim, 100, kMaxQueryBlock, head_dim == 20 ? 37 : 0));
    all.push_back(block(head_dim, 270, 27, 0));
    all.push_back(block(head_dim, 40, 5, 0));
    all.back().softcap = 0.75f;
    all.push_back(block(head_dim, 290, 7, 60));
    all.back().slopes = true;
    all.push_back(block(head_dim, 530, 5, 300));
    all.push_back(block(head_dim, 270, 8, 9));  // some rows see nothing of the first split, some nothing but it
    for (const int decades : {4, 10}) {
      all.push_back(block(head_dim, 290, 30, 100));
      all.back().decades = decades;
    }
    all.push_back({head_dim, 300, {290, 3, 261, 0, 17, 299, 100, 256}, {291, 4, 300, 300, 18, 300, 256, 257}});
  }
  return all;
}

std::string describe(const Case& c, KvType type) {
  return std::string(kKvNames[type]) + " pages, head_dim " + std::to_string(c.head_dim) + ", " +
         std::to_string(c.tokens) + " tokens, " + std::to_string(c.begins.size()) + " rows";
}

}  // namespace

TEST(attention, every_table_gives_the_scalar_bits) {
  int64_t index = 0;
  for (const Case& c : cases()) {
    for (const KvType type : kKvTypes) {
      if (left_out(index++)) continue;
      NOTE(describe(c, type));
      const Edge edge = index / kNumKvTypes % 2 ? Edge::kFront : Edge::kBack;
      const int rows = static_cast<int>(c.begins.size());
      Pages expected_pages(c, type, scalar_table(), edge);
      for (const KernelTable* table : other_tables()) {
        NOTE(table->name);
        Pages pages(c, type, *table, edge);
        CHECK(pages.keys.values() == expected_pages.keys.values());
        CHECK(pages.values.values() == expected_pages.values.values());
        for (int64_t split = 0; split * kSplitTokens < c.tokens; ++split) {
          CHECK(same(attend(c, pages, type, *table, split, 0, rows, edge),
                     attend(c, pages, type, scalar_table(), split, 0, rows, edge)));
        }
      }
    }
  }
}

TEST(attention, a_row_does_not_depend_on_the_rows_beside_it) {
  int64_t index = 0;
  for (const Case& c : cases()) {
    if (left_out(index++)) continue;
    const KvType type = kKvTypes[index % kNumKvTypes];
    NOTE(describe(c, type));
    Pages pages(c, type, scalar_table(), Edge::kBack);
    const int rows = static_cast<int>(c.begins.size());
    for (const std::string& isa : available_isas()) {
      NOTE(isa);
      for (int64_t split = 0; split * kSplitTokens < c.tokens; ++split) {
        const Result all = attend(c, pages, type, kernels_named(isa), split, 0, rows, Edge::kBack);
        for (int r = 0; r < rows; ++r) {
          const Result one = attend(c, pages, type, kernels_named(isa), split, r, 1, Edge::kBack);
          CHECK(same_bits(one.outputs.data(), all.outputs.data() + r * padded(c.head_dim), padded(c.head_dim)));
          CHECK(same_bits(one.maxima.data(), &all.maxima[static_cast<size_t>(r)], 1));
          CHECK(same_bits(one.sums.data(), &all.sums[static_cast<size_t>(r)], 1));
        }
      }
    }
  }
}

TEST(attention, a_row_does_not_depend_on_the_heads_beside_its_own) {
  int64_t index = 0;
  for (const Case& c : cases()) {
    const int rows = static_cast<int>(c.begins.size());
    if (left_out(index++)) continue;
    const KvType type = kKvTypes[index % kNumKvTypes];
    NOTE(describe(c, type));
    Pages pages(c, type, scalar_table(), Edge::kBack);
    for (const std::string& isa : available_isas()) {
      NOTE(isa);
      for (int64_t split = 0; split * kSplitTokens < c.tokens; ++split) {
        const Result one = attend(c, pages, type, kernels_named(isa), split, 0, rows, Edge::kBack);
        for (const int kv_heads : {2, 3, 4, rows}) {
          if (rows % kv_heads) continue;
          CHECK(same(attend(c, pages, type, kernels_named(isa), split, 0, rows, Edge::kBack, kv_heads), one));
        }
      }
    }
  }
}

// What a row does not see is NaN here, in every token: its result must not show it. Of what it sees, one NaN makes it
// NaN.
TEST(attention, a_row_shows_nan_where_it_sees_it) {
  const Case c{20, 300, {37, 40, 100}, {38, 90, 290}};
  constexpr uint32_t kNans[] = {0x7fc00000, 0xffffffff, 0x7f800001};
  for (const std::string& isa : available_isas()) {
    NOTE(isa);
    for (const KvType type : kKvTypes) {
      NOTE(describe(c, type));
      Pages pages(c, type, scalar_table(), Edge::kBack), poisoned(c, type, scalar_table(), Edge::kBack);
      const auto poison = [&](int64_t t, bool keys, bool values, uint32_t bits) {
        float nan;
        std::memcpy(&nan, &bits, 4);
        const std::vector<float> bad(20, nan);
        const int lane = static_cast<int>(t % 16);
        const int64_t page = pages.block_table[t / 16];
        if (keys) {
          scalar_table().store_key[type](bad.data(), 20, lane,
                                         poisoned.keys.data() + page * pages.layout.key_page_bytes());
        }
        if (values) {
          scalar_table().store_value[type](bad.data(), 20, lane,
                                           poisoned.values.data() + page * pages.layout.value_page_bytes());
        }
      };
      const auto restore = [&]() {
        std::memcpy(poisoned.keys.data(), pages.keys.data(), static_cast<size_t>(pages.keys.size()));
        std::memcpy(poisoned.values.data(), pages.values.data(), static_cast<size_t>(pages.values.size()));
      };
      for (int r = 0; r < 3; ++r) {
        const int32_t begin = c.begins[static_cast<size_t>(r)], end = c.ends[static_cast<size_t>(r)];
        restore();
        for (int64_t t = 0; t < c.tokens; ++t) {
          if (t < begin || t >= end) poison(t, true, true, kNans[t % 3]);
        }
        for (const int64_t split : {0, 1}) {
          const Result clean = attend(c, pages, type, kernels_named(isa), split, r, 1, Edge::kBack);
          CHECK(same(attend(c, poisoned, type, kernels_named(isa), split, r, 1, Edge::kBack), clean));
          CHECK(clean.sums[0] == clean.sums[0]);
        }
        for (const uint32_t bits : kNans) {
          for (const bool keys : {true, false}) {
            restore();
            poison((begin + end) / 2, keys, !keys, bits);
            const int64_t split = (begin + end) / 2 / kSplitTokens;
            const Result bad = attend(c, poisoned, type, kernels_named(isa), split, r, 1, Edge::kBack);
            // Of float values, just the outputs.
            CHECK(bad.sums[0] != bad.sums[0] || (!keys && !scaled(type) && bad.outputs[0] != bad.outputs[0]));
          }
        }
      }
    }
  }
}

TEST(attention, a_row_that_sees_nothing_of_a_split_has_no_weight_there) {
  const Case c{16, 300, {290, 261, 0}, {291, 300, 300}};
  for (const KvType type : kKvTypes) {
    NOTE(describe(c, type));
    Pages pages(c, type, scalar_table(), Edge::kBack);
    for (const std::string& isa : available_isas()) {
      NOTE(isa);
      for (const int rows : {2, 3}) {  // alone, and beside a row that sees something
        const Result result = attend(c, pages, type, kernels_named(isa), 0, 0, rows, Edge::kBack);
        for (size_t r = 0; r < 2; ++r) {
          CHECK_EQ(result.maxima[r], -INFINITY);
          CHECK_EQ(result.sums[r], 0.0f);
          for (size_t d = 0; d < 16; ++d) CHECK_EQ(result.outputs[r * 16 + d], 0.0f);
        }
      }
    }
  }
}

// Splits folded, against softmax in double over the elements that the pages hold.
TEST(attention, the_result_is_right) {
  std::vector<Case> some = {block(20, 40, 3, 0),  block(80, 300, 2, 0), block(64, 530, 2, 300), block(64, 300, 2, 0),
                            block(20, 300, 2, 0), block(64, 530, 3, 0), block(64, 530, 3, 0)};
  some[3].softcap = 1.5f;
  some[4].slopes = true;
  some[5].decades = 4;
  some[6].decades = 15;
  for (const Case& c : some) {
    for (const KvType type : kKvTypes) {
      if (c.decades > 4 && type == kKvF16) continue;  // which ends at 65,504
      NOTE(describe(c, type));
      Pages pages(c, type, scalar_table(), Edge::kBack);
      for (int r = 0; r < static_cast<int>(c.begins.size()); ++r) {
        const int64_t begin = c.begins[static_cast<size_t>(r)], end = c.ends[static_cast<size_t>(r)];
        std::vector<float> state(static_cast<size_t>(padded(c.head_dim))), out(static_cast<size_t>(c.head_dim));
        float maximum = -INFINITY, sum = 0.0f;
        for (int64_t split = begin / kSplitTokens; split * kSplitTokens < end; ++split) {
          const Result part = attend(c, pages, type, scalar_table(), split, r, 1, Edge::kBack);
          scalar_table().attention_fold(1, part.outputs.data(), part.maxima.data(), part.sums.data(), state.data(),
                                        &maximum, &sum, c.head_dim);
        }
        scalar_table().attention_finish(state.data(), sum, out.data(), c.head_dim);
        const double mass = maximum + std::log2(static_cast<double>(sum));
        const std::vector<double> q = asked(r, c.head_dim, type);
        std::vector<double> expected(static_cast<size_t>(c.head_dim), 0.0);
        double total = 0, largest = 2, heaviest = 0;  // of weights, values and weighted values
        for (int64_t t = begin; t < end; ++t) {
          double score = 0;
          for (int64_t d = 0; d < c.head_dim; ++d) score += q[static_cast<size_t>(d)] * pages.key(t, d);
          if (c.softcap > 0) score = c.softcap * std::tanh(score / c.softcap);
          if (c.slopes) score -= slope(r) * static_cast<double>(end - t);
          total += std::exp(score);
          for (int64_t d = 0; d < c.head_dim; ++d) {
            const double weighted = std::exp(score) * pages.value(t, d);
            expected[d] += weighted;
            largest = std::max(largest, std::fabs(pages.value(t, d)));
            heaviest = std::max(heaviest, std::fabs(weighted));
          }
        }
        CHECK(std::fabs(mass - std::log2(total)) <= 4.0 * static_cast<double>(c.head_dim * c.head_dim) * 0x1p-22);
        // Scores below 2 * head_dim in magnitude with relative error head_dim * 2^-24. Weights of integer values are
        // off by half an 8,128th of the largest with its value; of int12, where many are equal, half a 4,096th, but
        // hardly all in one direction.
        double bound = 2.0 * largest * static_cast<double>(c.head_dim * c.head_dim + c.tokens) * 0x1p-24;
        if (scaled(type)) bound += static_cast<double>(end - begin) / 2 * heaviest / total / 8128;
        for (int64_t d = 0; d < c.head_dim; ++d) CHECK(std::fabs(out[d] - expected[d] / total) <= bound);
      }
    }
  }
}

TEST(attention, the_hadamard_transform_is_as_defined_and_gives_the_scalar_bits) {
  for (const int64_t n : {1, 2, 7, 12, 16, 24, 48, 64, 80, 96, 112, 128, 192, 256}) {
    NOTE("head_dim " + std::to_string(n));
    const std::vector<float> x = query(n, n);
    const std::vector<double> expected = hadamard(std::vector<double>(x.begin(), x.end()));
    const auto transformed = [&](const KernelTable& table) {
      Guarded<float> in(x, Edge::kBack), out(padded(n), Edge::kBack);
      table.hadamard(in.data(), n, out.data());
      return out.values();
    };
    const std::vector<float> found = transformed(scalar_table());
    double most = 0;
    for (const float e : x) most = std::max(most, static_cast<double>(std::fabs(e)));
    for (size_t i = 0; i < expected.size(); ++i) {
      CHECK(std::fabs(found[i] - expected[i]) <= most * static_cast<double>(hadamard_run(n)) * 9 * 0x1p-24);
    }
    for (const KernelTable* table : other_tables()) {
      NOTE(table->name);
      const std::vector<float> other = transformed(*table);
      CHECK(same_bits(other.data(), found.data(), static_cast<size_t>(n)));
    }
  }
}

// What an integer page holds is the nearest code to each element (of keys, to what they are mixed to), and a bad
// element makes its token's head NaN.
TEST(attention, integer_pages_hold_the_nearest_codes) {
  for (const KvType type : {kKvInt12, kKvInt8, kKvInt4}) {
    for (const int64_t head_dim : kHeadDims) {
      NOTE(std::string(kKvNames[type]) + ", head_dim " + std::to_string(head_dim));
      const KvLayout layout{type, 1, head_dim, 1};
      std::vector<uint8_t> keys(static_cast<size_t>(layout.key_page_bytes()), 0xff);
      std::vector<uint8_t> values(static_cast<size_t>(layout.value_page_bytes()), 0xff);
      std::vector<std::vector<float>> given;
      for (int t = 0; t < 16; ++t) {
        given.push_back(Random(static_cast<uint64_t>(t + 1)).units(head_dim, t == 3 ? 0.0f : 3.0f));
        if (t == 5) given.back()[static_cast<size_t>(head_dim / 2)] = t % 2 ? INFINITY : NAN;
        scalar_table().store_key[type](given.back().data(), head_dim, t, keys.data());
        scalar_table().store_value[type](given.back().data(), head_dim, t, values.data());
      }
      std::vector<float> k(static_cast<size_t>(16 * head_dim)), v(k);
      const int32_t table[] = {0};
      load_kv(layout, keys.data(), values.data(), table, 16, k.data(), v.data());
      for (int t = 0; t < 16; ++t) {
        const auto check_nearest = [&](const std::vector<double>& x, const std::vector<double>& held) {
          double top = 0;
          for (const double e : x) top = std::max(top, std::fabs(e));
          const double steps = type == kKvInt12 ? 4094.0 : type == kKvInt8 ? 254.0 : 16.0;
          const double half_step = top / steps * (1 + steps * 0x1p-21);  // and what float32 rounds
          for (size_t d = 0; d < x.size(); ++d) {
            // int4 has 7 steps on one side and 8 on the other.
            const double allowed = half_step * (type == kKvInt4 && std::fabs(x[d]) > 7 * top / 8 ? 2 : 1);
            CHECK(t == 5 ? held[d] != held[d] : std::fabs(held[d] - x[d]) <= allowed);
          }
        };
        const auto part = [&](const std::vector<float>& all) {
          return std::vector<double>(all.begin() + t * head_dim, all.begin() + (t + 1) * head_dim);
        };
        const std::vector<double> x(given[static_cast<size_t>(t)].begin(), given[static_cast<size_t>(t)].end());
        check_nearest(x, part(v));
        check_nearest(hadamard(x), hadamard(part(k)));
      }
    }
  }
}

// Some rows don't see the first split, some not the last; one has a sink, and one isn't finite.
TEST(attention, folding_splits_gives_the_scalar_bits) {
  for (const int64_t head_dim : kHeadDims) {
    for (const auto& [rows, splits] : {std::pair<int64_t, int64_t>{1, 1}, {1, 5}, {16, 2}, {19, 3}}) {
      NOTE("head_dim " + std::to_string(head_dim) + ", " + std::to_string(rows) + " rows, " + std::to_string(splits) +
           " splits");
      Random random(static_cast<uint64_t>(head_dim + splits));
      std::vector<float> maxima = random.units(splits * rows, 8.0f), sums = random.units(splits * rows, 0.5f);
      for (float& sum : sums) sum += 1.0f;
      const auto hide = [&](size_t at) {
        maxima[at] = -INFINITY;
        sums[at] = 0.0f;
      };
      for (int64_t r = 0; r < rows && splits > 1; r += 2) hide(static_cast<size_t>(r));
      for (int64_t r = 1; r < rows && splits > 1; r += 4) hide(static_cast<size_t>((splits - 1) * rows + r));
      constexpr int64_t kSink = 3, kNan = 5;
      if (rows > kNan) maxima[kNan] = sums[kNan] = NAN;
      const int64_t width = padded(head_dim);
      const std::vector<float> outputs = random.units(splits * rows * width);
      // Rows [begin, end) of all, folded together.
      const auto fold = [&](const KernelTable& table, int64_t begin, int64_t end, Edge edge) {
        const int64_t count = end - begin;
        Guarded<float> states(std::vector<float>(static_cast<size_t>(count * width)), edge);
        Guarded<float> tops(std::vector<float>(static_cast<size_t>(count), -INFINITY), edge);
        Guarded<float> totals(std::vector<float>(static_cast<size_t>(count)), edge);
        if (begin <= kSink && kSink < end) {
          tops.data()[kSink - begin] = 0.5f;
          totals.data()[kSink - begin] = 1.0f;
        }
        for (int64_t at = begin; at < splits * rows; at += rows) {
          const auto part = [&](const std::vector<float>& all, int64_t size) {
            return Guarded<float>(std::vector<float>(all.begin() + at * size, all.begin() + (at + count) * size), edge);
          };
          table.attention_fold(static_cast<int>(count), part(outputs, width).data(), part(maxima, 1).data(),
                               part(sums, 1).data(), states.data(), tops.data(), totals.data(), head_dim);
        }
        Guarded<float> out(count * head_dim, edge);
        for (int64_t r = 0; r < count; ++r) {
          table.attention_finish(states.data() + r * width, totals.data()[r], out.data() + r * head_dim, head_dim);
        }
        return out.values();
      };
      for (const Edge edge : {Edge::kFront, Edge::kBack}) {
        const std::vector<float> expected = fold(scalar_table(), 0, rows, edge);
        for (const KernelTable* table : other_tables()) {
          NOTE(table->name);
          CHECK(same_bits(fold(*table, 0, rows, edge).data(), expected.data(), rows * head_dim));
        }
        for (int64_t r = 0; r < rows; ++r) {
          const std::vector<float> alone = fold(scalar_table(), r, r + 1, edge);
          CHECK(same_bits(alone.data(), expected.data() + r * head_dim, head_dim));
          CHECK(std::isnan(alone[0]) == (rows > kNan && r == kNan));
        }
      }
    }
  }
}
