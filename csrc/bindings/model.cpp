// Model: a decoder with its weights on a backend. Engine: requests on a model.

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>

#include "bindings/bind.h"
#include "bindings/native_call.h"
#include "bindings/sampler_params.h"
#include "bindings/turn_mutex.h"
#include "engine/engine.h"
#include "engine/forward.h"

namespace py = pybind11;

namespace llmcore {
namespace {

DecoderSpec spec_from_dict(const py::dict& d) {
  DecoderSpec s;
  const auto number = [&](const char* key) { return d[key].cast<int64_t>(); };
  s.hidden_size = number("hidden_size");
  s.num_layers = number("num_layers");
  s.num_heads = number("num_heads");
  s.num_kv_heads = number("num_kv_heads");
  s.head_dim = number("head_dim");
  s.intermediate_size = number("intermediate_size");
  s.vocab_size = number("vocab_size");
  s.max_position_embeddings = number("max_position_embeddings");
  s.layer_norm = d["norm"].cast<std::string>() == "layer_norm";
  s.norm_eps = d["norm_eps"].cast<float>();
  s.activation = activation_from_name(d["activation"].cast<std::string>());
  s.gated_mlp = d["gated_mlp"].cast<bool>();
  s.qk_norm = d["qk_norm"].cast<bool>();
  s.rope_inv_freq = d["rope_inv_freq"].cast<std::vector<float>>();
  s.rope_attention_factor = d["rope_attention_factor"].cast<float>();
  s.rope_interleaved = d["rope_interleaved"].cast<bool>();
  s.embedding_scale = d["embedding_scale"].cast<float>();
  s.post_norms = d["post_norms"].cast<bool>();
  s.logit_softcap = d["logit_softcap"].cast<float>();
  s.learned_positions = d["learned_positions"].cast<bool>();
  s.attention_scale = d["attention_scale"].cast<float>();
  s.sliding_window = number("sliding_window");
  s.layer_windows = d["layer_windows"].cast<std::vector<int64_t>>();
  s.kept_tokens = number("kept_tokens");
  s.attention_softcap = d["attention_softcap"].cast<float>();
  s.alibi_slopes = d["alibi_slopes"].cast<std::vector<float>>();
  s.attention_sinks = d["attention_sinks"].cast<bool>();
  s.tie_word_embeddings = d["tie_word_embeddings"].cast<bool>();
  return s;
}

// The decoder and the lock that its users, the engine and forward(), share.
struct Model {
  std::shared_ptr<Decoder> decoder;
  TurnMutex mutex;
};

// A native call that has the model's turn.
class ModelCall {
 public:
  explicit ModelCall(Model& model) : model_(model), lock_(take()) {}

  void poll() { call_.poll(); }
  /// Lets those who wait for the model have it first.
  void pause() {
    lock_.unlock();
    lock_ = take();
  }

 private:
  std::unique_lock<TurnMutex> take() {
    return model_.mutex.take([this] { poll(); });
  }

  NativeCall call_;
  Model& model_;
  std::unique_lock<TurnMutex> lock_;
};

InputType input_type(bool float_activations) { return float_activations ? InputType::kFloat32 : InputType::kInt8; }

std::shared_ptr<Model> make_model(const py::dict& spec, const py::dict& weights, int threads, bool float_activations) {
  auto model = std::make_shared<Model>();
  std::shared_ptr<Backend> backend = make_cpu_backend(threads, input_type(float_activations));
  Weights slots;
  for (const auto& [key, value] : weights) {
    std::shared_ptr<Weight> weight;
    if (py::isinstance<Matrix>(value)) {
      weight = backend->take_matrix({value.cast<std::shared_ptr<Matrix>>()});
    } else if (py::isinstance<py::tuple>(value)) {
      std::vector<std::shared_ptr<const Matrix>> stack;
      for (const auto& part : value.cast<py::tuple>()) stack.push_back(part.cast<std::shared_ptr<Matrix>>());
      check_argument(!stack.empty(), "a weight of no matrices");
      weight = backend->take_matrix(std::move(stack));
    } else {
      const auto vector = value.cast<FloatArray>();
      check_dims(vector, 1, "a vector weight");
      weight = backend->take_vector(vector.data(), vector.shape(0));
    }
    slots.emplace(key.cast<std::string>(), std::move(weight));
  }
  model->decoder = std::make_shared<Decoder>(spec_from_dict(spec), std::move(backend), std::move(slots));
  return model;
}

py::list forward_model(Model& model, const std::vector<IdArray>& sequences, const std::string& kv_dtype,
                       int64_t chunk_size, const py::object& probe) {
  const int64_t vocab = model.decoder->spec().vocab_size;
  py::list results;
  std::vector<ForwardSequence> work;
  for (const IdArray& ids : sequences) {
    check_dims(ids, 1, "ids");
    py::array_t<float> out({static_cast<int64_t>(ids.shape(0)), vocab});
    work.push_back({ids.data(), ids.shape(0), out.mutable_data()});
    results.append(std::move(out));
  }
  const KvType kv_type = kv_type_from_name(kv_dtype);
  Probe native_probe;
  if (!probe.is_none()) {
    native_probe = [&probe](const std::string& name, const float* data, int64_t rows, int64_t columns) {
      const GilAcquire acquire;
      probe(name, py::array_t<float>({rows, columns}, data));
    };
  }
  {
    ModelCall call(model);
    const auto poll = [&call] { call.poll(); };
    const auto pause = [&] {
      if (probe.is_none()) call.pause();  // others would be probed
    };
    model.decoder->set_probe(std::move(native_probe));
    const auto clear = [](Decoder* d) { d->set_probe(nullptr); };
    const std::unique_ptr<Decoder, decltype(clear)> cleared(probe.is_none() ? nullptr : model.decoder.get(), clear);
    forward(*model.decoder, kv_type, work, chunk_size, poll, pause);
  }
  return results;
}

Pooling pooling_from_name(const std::string& name) {
  if (name == "mean") return Pooling::kMean;
  if (name == "last") return Pooling::kLast;
  if (name == "cls") return Pooling::kCls;
  throw ArgumentError("pooling must be mean, last or cls, got " + name);
}

struct PyEngine {
  std::shared_ptr<Model> model;
  std::unique_ptr<Engine> engine;
  std::shared_ptr<Model> draft;  // null: none
  TurnMutex mutex;               // of the engine; what works with the models takes theirs after it
  std::atomic<bool> interrupted = false;

  PyEngine(std::shared_ptr<Model> m, std::unique_ptr<Engine> e, std::shared_ptr<Model> d)
      : model(std::move(m)), engine(std::move(e)), draft(std::move(d)) {}

  void poll() const {
    if (interrupted.load(std::memory_order_relaxed)) throw Interrupted();
  }
};

// The engine and its models, which other engines may share: those in the order of their addresses.
class EngineTurn {
 public:
  template <class Poll>
  EngineTurn(PyEngine& e, const Poll& poll) {
    engine_ = e.mutex.take(poll);
    Model* first = e.model.get();
    Model* second = e.draft.get();
    if (second && std::less<>()(second, first)) std::swap(first, second);
    first_ = first->mutex.take(poll);
    if (second && second != first) second_ = second->mutex.take(poll);
  }

 private:
  std::unique_lock<TurnMutex> engine_, first_, second_;
};

std::unique_ptr<PyEngine> make_engine(std::shared_ptr<Model> model, int64_t max_model_len, int64_t max_batch_size,
                                      int64_t max_step_tokens, int64_t pages, const std::string& kv_dtype,
                                      int64_t drawable, bool prefix_cache, int64_t draft_tokens,
                                      std::shared_ptr<Model> draft) {
  const EngineLimits limits{max_model_len, max_batch_size, max_step_tokens, pages, kv_type_from_name(kv_dtype),
                            drawable,      prefix_cache,   draft_tokens};
  auto engine = std::make_unique<Engine>(model->decoder, limits, draft ? draft->decoder : nullptr);
  return std::make_unique<PyEngine>(std::move(model), std::move(engine), std::move(draft));
}

Request make_request(std::vector<int32_t> prompt, const py::dict& p) {
  Request r;
  r.prompt = std::move(prompt);
  r.n = p["n"].cast<int64_t>();
  r.priority = p["priority"].cast<int64_t>();
  const auto salt = p["salt"].cast<std::pair<uint64_t, uint64_t>>();
  r.salt = {salt.first, salt.second};
  r.score_from = p["score_from"].cast<int64_t>();
  r.score_logprobs = p["score_logprobs"].cast<int32_t>();
  r.edits_logits = p["edits_logits"].cast<bool>();
  r.max_tokens = p["max_tokens"].cast<int64_t>();
  r.min_tokens = p["min_tokens"].cast<int64_t>();
  r.stop_ids = p["stop_ids"].cast<std::vector<int32_t>>();
  r.sampling = sampler_params(p);
  return r;
}

int64_t submit(PyEngine& e, const Request& request) {
  const NativeCall call;
  const std::lock_guard lock(e.mutex);
  return e.engine->submit(request);
}

py::tuple scored(const SampledToken& token) { return py::make_tuple(token.id, token.logprob, token.top); }

// [(request, token or None, logprob, [(id, logprob)], finish, error, queue_time, preemptions, cached_tokens, scores)],
// or nothing where interrupt() was called since resume(): the step is undone then.
py::list step(PyEngine& e, const py::object& editor) {
  std::vector<Output> outputs;
  LogitsEditor native_editor;
  if (!editor.is_none()) {
    native_editor = [&](int64_t request, const std::vector<int32_t>& tokens, int64_t prompt, float* logits) {
      const int64_t vocab = e.model->decoder->spec().vocab_size;
      const GilAcquire acquire;
      try {
        const py::array_t<float> copy(vocab, logits);  // which Python may keep, but not resize through what it gets
        const py::array_t<float> row(vocab, copy.data(), copy);
        editor(request, py::array_t<int32_t>(static_cast<int64_t>(tokens.size()), tokens.data()), prompt, row);
        check_argument(copy.size() == vocab, "the row of logits was resized");
        std::memcpy(logits, copy.data(), static_cast<size_t>(vocab) * sizeof(float));
      } catch (const py::error_already_set& error) {
        throw ArgumentError(error.what());
      }
    };
  }
  {
    const NativeCall call;
    try {
      const auto poll = [&e] { e.poll(); };
      const EngineTurn turn(e, poll);
      outputs = e.engine->step(poll, native_editor);
    } catch (const Interrupted&) {
    }
  }
  py::list results;
  for (const Output& o : outputs) {
    py::list scores;
    for (const SampledToken& token : o.scores) scores.append(scored(token));
    py::object token = py::none();
    if (o.has_token) token = py::int_(o.token.id);
    results.append(py::make_tuple(o.request, token, o.token.logprob, o.token.top, static_cast<int>(o.finish), o.error,
                                  o.queue_time, o.preemptions, o.cached_tokens, scores));
  }
  return results;
}

// float32 [n, hidden]. The pages are what `reserve` gave; the engine goes on beside this, between two steps.
py::array_t<float> embed_texts(PyEngine& e, const std::vector<IdArray>& sequences, const PageTables& tables,
                               const std::string& pooling_name, bool normalize) {
  const int64_t hidden = e.model->decoder->spec().hidden_size, count = static_cast<int64_t>(sequences.size());
  const Pooling pooling = pooling_from_name(pooling_name);
  std::vector<double> sums(static_cast<size_t>(count * hidden), 0.0);
  std::vector<EmbedSequence> work;
  check_argument(tables.size() == sequences.size(), "embed: pages for each sequence are needed");
  for (const IdArray& ids : sequences) {
    check_dims(ids, 1, "ids");
    const std::vector<int32_t>& pages = tables[work.size()];
    check_argument(static_cast<int64_t>(pages.size()) == pages_for(ids.shape(0)),
                   "embed: the pages don't fit the text");
    for (const int32_t page : pages)
      check_argument(page >= 0 && page < e.engine->limits().pages, "embed: no such page");
    work.push_back({ids.data(), ids.shape(0), sums.data() + static_cast<int64_t>(work.size()) * hidden});
  }
  py::array_t<float> out({count, hidden});
  float* to = out.mutable_data();
  ModelCall call(*e.model);
  embed(
      *e.model->decoder, e.engine->cache(), tables, work, pooling, [&call] { call.poll(); }, [&call] { call.pause(); });
  for (int64_t i = 0; i < count; ++i) {
    const double* row = sums.data() + i * hidden;
    double squares = 0.0;
    for (int64_t h = 0; h < hidden; ++h) squares += row[h] * row[h];
    if (!std::isfinite(squares)) {
      throw NumericError("an embedding holds NaN or infinity; the model's weights or their quantisation are broken");
    }
    const double scale = normalize && squares > 0.0 ? 1.0 / std::sqrt(squares) : 1.0;
    for (int64_t h = 0; h < hidden; ++h) to[i * hidden + h] = static_cast<float>(row[h] * scale);
  }
  return out;
}

py::array_t<uint8_t> export_prefix(PyEngine& e, const std::vector<int32_t>& tokens,
                                   const std::pair<uint64_t, uint64_t>& salt) {
  std::vector<uint8_t> bytes;
  {
    const NativeCall call;
    const EngineTurn turn(e, [] {});
    bytes = e.engine->export_prefix(tokens, {salt.first, salt.second});
  }
  return py::array_t<uint8_t>(static_cast<int64_t>(bytes.size()), bytes.data());
}

int64_t import_prefix(PyEngine& e, const std::vector<int32_t>& tokens, const std::pair<uint64_t, uint64_t>& salt,
                      const py::array_t<uint8_t, py::array::c_style>& data) {
  check_argument(data.size() % e.engine->page_bytes() == 0, "the bytes are no whole pages");
  const uint8_t* bytes = data.data();
  const int64_t pages = data.size() / e.engine->page_bytes();
  const NativeCall call;
  const EngineTurn turn(e, [] {});
  return e.engine->import_prefix(tokens, {salt.first, salt.second}, bytes, pages);
}

py::dict stats(PyEngine& e) {
  EngineStats s;
  {
    const NativeCall call;
    const std::lock_guard lock(e.mutex);
    s = e.engine->stats();
  }
  py::dict d;
  d["kv_pages_total"] = s.pages_total;
  d["kv_pages_free"] = s.pages_free;
  d["requests_running"] = s.running;
  d["requests_waiting"] = s.waiting;
  d["prefix_hit_tokens"] = s.prefix_hit_tokens;
  d["preemptions"] = s.preemptions;
  d["steps"] = s.steps;
  d["generated_tokens"] = s.tokens;
  d["drafted_tokens"] = s.drafted;
  d["accepted_tokens"] = s.accepted;
  return d;
}

}  // namespace

void bind_model(py::module_& m) {
  py::class_<Model, std::shared_ptr<Model>>(m, "Model")
      .def(py::init(&make_model), py::arg("spec"), py::arg("weights"), py::arg("threads") = 0,
           py::arg("float_activations") = false)
      .def(
          "plan",
          [](Model& model, int64_t max_tokens, int64_t max_logit_rows, int64_t max_model_len) {
            const ModelCall call(model);
            model.decoder->plan(max_tokens, max_logit_rows, max_model_len);
          },
          py::arg("max_tokens"), py::arg("max_logit_rows"), py::arg("max_model_len"))
      .def(
          "planned_bytes",
          [](Model& model, int64_t max_tokens, int64_t max_logit_rows, int64_t max_model_len) {
            const ModelCall call(model);
            return model.decoder->planned_bytes(max_tokens, max_logit_rows, max_model_len);
          },
          py::arg("max_tokens"), py::arg("max_logit_rows"), py::arg("max_model_len"))
      .def("forward", forward_model, py::arg("sequences"), py::arg("kv_dtype"), py::arg("chunk_size") = 0,
           py::arg("probe") = py::none())
      .def_property_readonly("entered", [](const Model& model) { return model.mutex.entered(); })
      .def_property_readonly("weight_bytes", [](const Model& model) { return model.decoder->weight_bytes(); })
      .def_property_readonly("activation_bytes", [](const Model& model) { return model.decoder->activation_bytes(); })
      .def_property_readonly("bytes_per_token", [](const Model& model) { return model.decoder->bytes_per_token(); });
  m.def(
      "planned_bytes",
      [](const py::dict& spec, int threads, bool float_activations, int64_t max_tokens, int64_t max_logit_rows,
         int64_t max_model_len) {
        const DecoderSpec native = spec_from_dict(spec);
        const NativeCall call;
        const auto backend = make_cpu_backend(threads, input_type(float_activations));
        return Decoder::planned_bytes(native, *backend, max_tokens, max_logit_rows, max_model_len);
      },
      py::arg("spec"), py::arg("threads"), py::arg("float_activations"), py::arg("max_tokens"),
      py::arg("max_logit_rows"), py::arg("max_model_len"));

  py::class_<Request>(m, "Request").def(py::init(&make_request), py::arg("prompt"), py::arg("params"));

  py::class_<PyEngine>(m, "Engine")
      .def(py::init(&make_engine), py::arg("model"), py::arg("max_model_len"), py::arg("max_batch_size"),
           py::arg("max_step_tokens"), py::arg("pages"), py::arg("kv_dtype"), py::arg("drawable"),
           py::arg("prefix_cache") = true, py::arg("draft_tokens") = 0, py::arg("draft") = nullptr)
      .def(
          "check", [](const PyEngine& e, const Request& request) { e.engine->check(request); }, py::arg("request"))
      .def("submit", submit, py::arg("request"))
      .def(
          "cancel",
          [](PyEngine& e, int64_t id) {
            const NativeCall call;
            const std::lock_guard lock(e.mutex);
            e.engine->cancel(id);
          },
          py::arg("request"))
      .def("step", step, py::arg("editor") = py::none())
      .def(
          "reserve",
          [](PyEngine& e, const std::vector<int64_t>& lengths) {
            const NativeCall call;
            const std::lock_guard lock(e.mutex);
            return e.engine->reserve(lengths);
          },
          py::arg("lengths"))
      .def(
          "release",
          [](PyEngine& e, const PageTables& tables) {
            const NativeCall call;
            const std::lock_guard lock(e.mutex);
            e.engine->release(tables);
          },
          py::arg("tables"))
      .def("embed", embed_texts, py::arg("sequences"), py::arg("tables"), py::arg("pooling"), py::arg("normalize"))
      .def("interrupt", [](PyEngine& e) { e.interrupted = true; })
      .def("resume", [](PyEngine& e) { e.interrupted = false; })
      .def("export_prefix", export_prefix, py::arg("tokens"), py::arg("salt"))
      .def("import_prefix", import_prefix, py::arg("tokens"), py::arg("salt"), py::arg("data").noconvert())
      .def_property_readonly("page_bytes", [](const PyEngine& e) { return e.engine->page_bytes(); })
      .def("stats", stats)
      .def_property_readonly("kv_bytes", [](const PyEngine& e) { return e.engine->kv_bytes(); });
}

}  // namespace llmcore
