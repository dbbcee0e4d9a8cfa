// KvPages: keys and values as the KV cache keeps them. paged_attention: a batch of sequences over them.

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <mutex>
#include <vector>

#include "bindings/bind.h"
#include "bindings/native_call.h"
#include "bindings/runtime.h"
#include "kvcache/kv_cache.h"
#include "ops/attention.h"

namespace py = pybind11;

namespace llmcore {
namespace {

const KernelTable& table_of(const std::string& isa) { return isa.empty() ? kernels() : kernels_named(isa); }

// The pages of one layer.
class KvPages {
 public:
  KvPages(int64_t pages, int64_t kv_heads, int64_t head_dim, const std::string& kv_dtype)
      : layout{kv_type_from_name(kv_dtype), kv_heads, head_dim, pages}, dtype(kv_dtype) {
    check_argument(pages >= 1 && pages < (int64_t{1} << 31), "KvPages: pages must be within [1, 2^31)");
    check_argument(kv_heads >= 1 && kv_heads <= (1 << 14), "KvPages: kv_heads must be within [1, 2^14]");
    check_argument(head_dim >= 1 && head_dim <= kMaxHeadDim, "KvPages: head_dim must be within [1, 2^13]");
    memory = Buffer(layout.layer_bytes());
  }
  uint8_t* keys() { return memory.data(); }
  uint8_t* values() { return memory.data() + layout.pages * layout.key_page_bytes(); }
  // That the first `length` tokens of a sequence have pages.
  void check_table(const IdArray& table, int64_t length) const {
    check_dims(table, 1, "a block table");
    check_argument(
        length >= 0 && length < (int64_t{1} << 31) && pages_for(length) <= table.shape(0),
        "a block table of " + std::to_string(table.shape(0)) + " pages holds no " + std::to_string(length) + " tokens");
    for (int64_t i = 0; i < pages_for(length); ++i) {
      check_argument(table.data()[i] >= 0 && table.data()[i] < layout.pages,
                     "a block table's pages must be within [0, " + std::to_string(layout.pages) + "), got " +
                         std::to_string(table.data()[i]));
    }
  }

  // Kept between calls, for making it can cost more than a call; grown when one needs more.
  AttentionWorkspace& workspace_for(const Context& context, int64_t heads, int64_t tokens) {
    if (heads != heads_ || tokens > tokens_ || context.pool.size() != threads_) {
      workspace_ = AttentionWorkspace(context, heads, layout.head_dim, tokens);
      heads_ = heads;
      tokens_ = tokens;
      threads_ = context.pool.size();
    }
    return workspace_;
  }

  KvLayout layout;
  std::string dtype;
  Buffer memory;
  std::mutex mutex;  // of a call without the GIL

 private:
  AttentionWorkspace workspace_;
  int64_t heads_ = 0, tokens_ = 0;
  int threads_ = 0;
};

void write(KvPages& p, const FloatArray& k, const FloatArray& v, const IdArray& table, int64_t position,
           const std::string& isa) {
  check_dims(k, 3, "k");
  check_dims(v, 3, "v");
  const int64_t S = k.shape(0);
  for (const FloatArray* a : {&k, &v}) {
    check_argument(
        a->shape(0) == S && a->shape(1) == p.layout.kv_heads && a->shape(2) == p.layout.head_dim,
        "k and v must be [S, " + std::to_string(p.layout.kv_heads) + ", " + std::to_string(p.layout.head_dim) + "]");
  }
  check_argument(position >= 0, "position must not be negative, got " + std::to_string(position));
  p.check_table(table, position + S);
  if (S == 0) return;
  const float *k_data = k.data(), *v_data = v.data();
  const SequenceSlice slice{0, S, position, table.data(), position + S};
  const NativeCall call;
  const std::lock_guard lock(p.mutex);
  const std::shared_ptr<ThreadPool> pool = default_pool();
  const Context context{table_of(isa), *pool};
  store_kv(context, p.layout, p.keys(), p.values(), &slice, 1, k_data, v_data, p.layout.kv_heads * p.layout.head_dim);
}

py::tuple read(KvPages& p, const IdArray& table, int64_t length) {
  p.check_table(table, length);
  py::array_t<float> k({length, p.layout.kv_heads, p.layout.head_dim}),
      v({length, p.layout.kv_heads, p.layout.head_dim});
  load_kv(p.layout, p.keys(), p.values(), table.data(), length, k.mutable_data(), v.mutable_data());
  return py::make_tuple(k, v);
}

// One float32 for each head, or null for None.
const float* of_heads(const py::object& values, int64_t heads, const char* name, FloatArray& kept) {
  if (values.is_none()) return nullptr;
  kept = values.cast<FloatArray>();
  check_argument(kept.ndim() == 1 && kept.shape(0) == heads,
                 std::string(name) + " must be [heads], that is [" + std::to_string(heads) + "]");
  check_argument(std::none_of(kept.data(), kept.data() + heads, [](float x) { return std::isnan(x); }),
                 std::string(name) + " must not have NaN");
  return kept.data();
}

py::array_t<float> attend(KvPages& p, const FloatArray& q, const std::vector<IdArray>& tables,
                          const std::vector<int64_t>& lengths, const std::vector<int64_t>& query_lengths, float scale,
                          bool causal, int64_t window, int64_t keep_first, float softcap, const py::object& slopes,
                          const py::object& sinks, const std::string& isa) {
  check_dims(q, 3, "q");
  const int64_t T = q.shape(0), heads = q.shape(1), D = q.shape(2);
  check_argument(D == p.layout.head_dim && heads >= 1 && heads % p.layout.kv_heads == 0,
                 "q must be [T, heads, " + std::to_string(p.layout.head_dim) + "] with heads a multiple of " +
                     std::to_string(p.layout.kv_heads));
  check_argument(tables.size() == lengths.size() && tables.size() == query_lengths.size(),
                 "block_tables, lengths and query_lengths must be of one length");
  check_argument(window >= 0 && window < (int64_t{1} << 31), "window must be within [0, 2^31)");
  check_argument(keep_first >= 0 && keep_first < (int64_t{1} << 31), "keep_first must be within [0, 2^31)");
  check_argument(softcap >= 0, "softcap must not be negative");
  std::vector<SequenceSlice> slices;
  int64_t rows = 0, longest = 1;
  for (size_t i = 0; i < tables.size(); ++i) {
    check_argument(query_lengths[i] >= 1 && query_lengths[i] <= lengths[i],
                   "attention: a sequence has at least one query and no more than keys, got " +
                       std::to_string(query_lengths[i]) + " of " + std::to_string(lengths[i]));
    p.check_table(tables[i], lengths[i]);
    slices.push_back({rows, query_lengths[i], lengths[i] - query_lengths[i], tables[i].data(), lengths[i]});
    rows += query_lengths[i];
    longest = std::max(longest, lengths[i]);
  }
  check_argument(rows == T, "q has " + std::to_string(T) + " rows, query_lengths add up to " + std::to_string(rows));
  FloatArray slopes_kept, sinks_kept;
  AttentionPattern pattern;
  pattern.causal = causal;
  pattern.window = window;
  pattern.kept = keep_first;
  pattern.softcap = softcap;
  pattern.slopes = of_heads(slopes, heads, "alibi_slopes", slopes_kept);
  pattern.sinks = of_heads(sinks, heads, "sinks", sinks_kept);
  py::array_t<float> out({T, heads, D});
  const float* q_data = q.data();
  float* out_data = out.mutable_data();
  NativeCall call;
  const Poll poll = [&call] { call.poll(); };
  const std::lock_guard lock(p.mutex);
  const std::shared_ptr<ThreadPool> pool = default_pool();
  const Context context{table_of(isa), *pool, &poll};
  std::vector<float> scaled(q_data, q_data + T * heads * D);
  for (float& s : scaled) s *= scale;
  paged_attention(context, p.workspace_for(context, heads, longest), p.layout, p.keys(), p.values(), slices.data(),
                  static_cast<int64_t>(slices.size()), scaled.data(), heads * D, heads, pattern, out_data, heads * D);
  return out;
}

}  // namespace

void bind_attention(py::module_& m) {
  py::class_<KvPages>(m, "KvPages")
      .def(py::init<int64_t, int64_t, int64_t, const std::string&>(), py::arg("pages"), py::arg("kv_heads"),
           py::arg("head_dim"), py::arg("kv_dtype"))
      .def("write", write, py::arg("k"), py::arg("v"), py::arg("block_table"), py::arg("position") = 0,
           py::arg("isa") = "")
      .def("read", read, py::arg("block_table"), py::arg("length"))
      .def("attend", attend, py::arg("q"), py::arg("block_tables"), py::arg("lengths"), py::arg("query_lengths"),
           py::arg("scale"), py::arg("causal") = true, py::arg("window") = 0, py::arg("keep_first") = 0,
           py::arg("softcap") = 0.0f, py::arg("alibi_slopes") = py::none(), py::arg("sinks") = py::none(),
           py::arg("isa") = "")
      .def_property_readonly(
          "shape", [](const KvPages& p) { return std::tuple(p.layout.pages, p.layout.kv_heads, p.layout.head_dim); })
      .def_readonly("kv_dtype", &KvPages::dtype)
      .def_property_readonly("nbytes", [](const KvPages& p) { return p.memory.size(); });
  m.def(
      "kv_page_bytes",
      [](const std::string& kv_dtype, int64_t kv_heads, int64_t head_dim) {
        return KvLayout{kv_type_from_name(kv_dtype), kv_heads, head_dim, 1}.page_bytes();
      },
      py::arg("kv_dtype"), py::arg("kv_heads"), py::arg("head_dim"));
}

}  // namespace llmcore
