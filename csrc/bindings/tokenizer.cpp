// Binds Tokenizer and training. Python reads the files; what comes in here are flat arrays.

#include "tokenizer/tokenizer.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <span>
#include <utility>

#include "base/error.h"
#include "bindings/bind.h"
#include "bindings/native_call.h"
#include "tokenizer/json_vocabulary.h"
#include "tokenizer/train.h"
#include "tokenizer/workers.h"

namespace py = pybind11;

namespace llmcore {
namespace {

template <class T>
std::vector<T> to_vector(const py::handle& value) {
  const auto array = py::array_t<T, py::array::c_style | py::array::forcecast>::ensure(value);
  if (!array) throw py::error_already_set();
  return {array.data(), array.data() + array.size()};
}

/// A new reference; null is the exception that Python has set.
py::object own(PyObject* made) {
  if (!made) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}

/// The UTF-8 of a Python string, owned by it. Lone surrogates raise UnicodeEncodeError.
std::string_view utf8(const py::str& text) {
  Py_ssize_t size = 0;
  const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
  if (!data) throw py::error_already_set();
  return {data, static_cast<size_t>(size)};
}

/// What users give as text, as UTF-8: with surrogate pairs joined and lone surrogates as U+FFFD. Throws ArgumentError
/// when it is no str.
class Text {
 public:
  explicit Text(py::handle text) : owner_(py::reinterpret_borrow<py::object>(text)) {
    if (!PyUnicode_Check(text.ptr())) {
      const py::str name = py::type::handle_of(text).attr("__name__");
      throw ArgumentError("text: must be str, found " + std::string(name));
    }
    Py_ssize_t size = 0;
    const char* data = PyUnicode_AsUTF8AndSize(text.ptr(), &size);
    if (data) {
      view_ = {data, static_cast<size_t>(size)};
      return;
    }
    if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) throw py::error_already_set();
    PyErr_Clear();
    const py::object units = own(PyUnicode_AsEncodedString(text.ptr(), "utf-16-le", "surrogatepass"));
    owner_ =
        own(PyUnicode_Decode(PyBytes_AS_STRING(units.ptr()), PyBytes_GET_SIZE(units.ptr()), "utf-16-le", "replace"));
    view_ = utf8(py::reinterpret_borrow<py::str>(owner_));
  }
  std::string_view view() const { return view_; }

 private:
  py::object owner_;
  std::string_view view_;
};

std::vector<std::string_view> views_of(const std::vector<Text>& texts) {
  std::vector<std::string_view> views;
  views.reserve(texts.size());
  for (const Text& text : texts) views.push_back(text.view());
  return views;
}

std::vector<Pattern> to_stages(const py::handle& value) {
  std::vector<Pattern> stages;
  for (const int code : to_vector<int>(value)) {
    check_argument(code >= 0 && code < static_cast<int>(Pattern::kCount), "tokenizer: unknown pre-tokeniser code");
    stages.push_back(static_cast<Pattern>(code));
  }
  return stages;
}

/// (kind, flags, first, second)
std::vector<NormalizerSpec> to_normalizers(const py::handle& value) {
  std::vector<NormalizerSpec> parts;
  for (const py::handle item : value.cast<py::list>()) {
    auto t = item.cast<std::tuple<uint8_t, uint32_t, std::string, std::string>>();
    parts.push_back({static_cast<NormalizerKind>(std::get<0>(t)), std::get<1>(t), std::move(std::get<2>(t)),
                     std::move(std::get<3>(t))});
  }
  return parts;
}

/// (kind, behavior, inverted, dialect, flags, number, text)
std::vector<PreTokenizerSpec> to_pre_tokenizers(const py::handle& value) {
  std::vector<PreTokenizerSpec> parts;
  for (const py::handle item : value.cast<py::list>()) {
    auto t = item.cast<std::tuple<uint8_t, uint8_t, bool, uint8_t, uint32_t, uint32_t, std::string>>();
    check_argument(std::get<1>(t) <= 4 && std::get<3>(t) <= 1, "tokenizer: unknown way to split");
    parts.push_back({static_cast<PreTokenizerKind>(std::get<0>(t)), static_cast<SplitBehavior>(std::get<1>(t)),
                     std::get<2>(t), static_cast<RegexDialect>(std::get<3>(t)), std::get<4>(t), std::get<5>(t),
                     std::move(std::get<6>(t))});
  }
  return parts;
}

ModelSpec to_model(const py::dict& fields) {
  ModelSpec model;
  const int kind = fields["kind"].cast<int>();
  check_argument(kind >= 0 && kind < static_cast<int>(ModelKind::kCount), "tokenizer: unknown kind of model");
  model.kind = static_cast<ModelKind>(kind);
  const std::string_view text = fields["text"].cast<std::string_view>();
  model.text.assign(text.begin(), text.end());
  model.text_ends = to_vector<uint32_t>(fields["text_ends"]);
  model.usable = to_vector<uint8_t>(fields["usable"]);
  model.scores = to_vector<double>(fields["scores"]);
  model.byte_ids = to_vector<uint32_t>(fields["byte_ids"]);
  model.merges = to_vector<uint32_t>(fields["merges"]);
  model.unk_id = fields["unk_id"].cast<uint32_t>();
  model.fuse_unk = fields["fuse_unk"].cast<bool>();
  model.single_precision = fields["single_precision"].cast<bool>();
  model.min_score = fields["min_score"].cast<double>();
  model.max_characters = fields["max_characters"].cast<uint32_t>();
  model.prefix = fields["prefix"].cast<std::string>();
  model.suffix = fields["suffix"].cast<std::string>();
  return model;
}

size_t size_of(std::span<const std::vector<uint32_t>> parts) {
  size_t size = 0;
  for (const std::vector<uint32_t>& ids : parts) size += ids.size();
  return size;
}

/// Ids as a list. The integers are made once and shared by all lists, as Python does with those below 257: making them
/// took several times as long as encoding.
py::list to_list(std::span<const std::vector<uint32_t>> parts) {
  static std::vector<PyObject*>& integers = *new std::vector<PyObject*>();  // by id; guarded by the GIL, never freed
  py::list list(size_of(parts));
  Py_ssize_t at = 0;
  for (const std::vector<uint32_t>& ids : parts) {
    for (const uint32_t id : ids) {
      if (id >= PairLimits::kMaxIds) {  // kNoId
        PyList_SET_ITEM(list.ptr(), at++, own(PyLong_FromUnsignedLong(id)).release().ptr());
        continue;
      }
      if (id >= integers.size()) integers.resize(std::max<size_t>(size_t{id} + 1, 2 * integers.size()));
      PyObject*& integer = integers[id];
      if (!integer) integer = own(PyLong_FromUnsignedLong(id)).release().ptr();
      Py_INCREF(integer);
      PyList_SET_ITEM(list.ptr(), at++, integer);
    }
  }
  return list;
}
py::list to_list(const std::vector<uint32_t>& ids) { return to_list({&ids, 1}); }

py::array_t<uint32_t> to_array(std::vector<uint32_t> ids) {
  constexpr size_t kWorthOwning = size_t{1} << 14;  // fewer are sooner copied
  if (ids.size() < kWorthOwning) {
    py::array_t<uint32_t> array(static_cast<py::ssize_t>(ids.size()));
    std::copy(ids.begin(), ids.end(), array.mutable_data());
    return array;
  }
  auto owner = std::make_unique<std::vector<uint32_t>>(std::move(ids));
  const py::capsule base(owner.get(), [](void* p) { delete static_cast<std::vector<uint32_t>*>(p); });
  const std::vector<uint32_t>& kept = *owner.release();
  return py::array_t<uint32_t>(static_cast<py::ssize_t>(kept.size()), kept.data(), base);
}

/// The ids of a list as an array, or None when one of them is no integer of 32 bits: then NumPy says what is wrong.
py::object list_to_array(const py::list& list) {
  std::vector<uint32_t> ids(list.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    PyObject* const item = PyList_GET_ITEM(list.ptr(), static_cast<Py_ssize_t>(i));
    if (!PyLong_CheckExact(item)) return py::none();
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(item, &overflow);
    if (overflow != 0 || value < 0 || value > 0xFFFFFFFF) return py::none();
    ids[i] = static_cast<uint32_t>(value);
  }
  return to_array(std::move(ids));
}

void read_bpe(const py::dict& fields, BpeSpec& bpe) {
  const std::string_view text = fields["text"].cast<std::string_view>();
  bpe.text.assign(text.begin(), text.end());
  bpe.text_ends = to_vector<uint32_t>(fields["text_ends"]);
  bpe.kinds = to_vector<uint8_t>(fields["kinds"]);
  bpe.byte_ids = to_vector<uint32_t>(fields["byte_ids"]);
  bpe.characters = fields["characters"].cast<bool>();
  bpe.whole_words = fields["whole_words"].cast<bool>();
  bpe.unk_id = fields["unk_id"].cast<uint32_t>();
  bpe.fuse_unk = fields["fuse_unk"].cast<bool>();
  bpe.merges = to_vector<uint32_t>(fields["merges"]);
  bpe.ranks = to_vector<uint32_t>(fields["ranks"]);
}

/// With an archive, which is of a vocabulary without another model, `fields` are those of the pipeline alone.
std::shared_ptr<Tokenizer> make_tokenizer(const py::dict& fields, const py::object& archive) {
  TokenizerSpec spec;
  if (archive.is_none()) {
    read_bpe(fields, spec.bpe);
    if (!fields["model"].is_none()) spec.model = to_model(fields["model"]);
    const std::string_view decoded = fields["decoded"].cast<std::string_view>();
    spec.decoded.assign(decoded.begin(), decoded.end());
    spec.decoded_ends = to_vector<uint32_t>(fields["decoded_ends"]);
  }
  spec.stages = to_stages(fields["stages"]);
  spec.normalizers = to_normalizers(fields["normalizers"]);
  spec.pre_tokenizers = to_pre_tokenizers(fields["pre_tokenizers"]);
  for (const py::handle item : fields["added"].cast<py::list>()) {
    const auto t = item.cast<std::tuple<std::string, uint32_t, bool, bool, bool, bool, bool, bool>>();
    spec.added.push_back({std::get<0>(t), std::get<1>(t), std::get<2>(t), std::get<3>(t), std::get<4>(t),
                          std::get<5>(t), std::get<6>(t), std::get<7>(t)});
  }
  spec.prefix_ids = to_vector<uint32_t>(fields["prefix_ids"]);
  spec.suffix_ids = to_vector<uint32_t>(fields["suffix_ids"]);
  const int space_prefix = fields["space_prefix"].cast<int>();
  check_argument(space_prefix >= 0 && space_prefix <= 2, "tokenizer: unknown kind of space prefix");
  spec.space_prefix = static_cast<SpacePrefix>(space_prefix);
  const int first_space = fields["first_space"].cast<int>();
  check_argument(first_space >= 0 && first_space < static_cast<int>(FirstSpace::kCount),
                 "tokenizer: unknown rule for the first space");
  spec.first_space = static_cast<FirstSpace>(first_space);
  spec.prefix_even_if_space = fields["prefix_even_if_space"].cast<bool>();
  spec.prefix_before_added = fields["prefix_before_added"].cast<bool>();
  spec.metaspace = fields["metaspace"].cast<bool>();
  if (archive.is_none()) {
    const GilRelease release;
    return std::make_shared<Tokenizer>(std::move(spec));
  }
  const py::buffer_info saved = archive.cast<py::buffer>().request();
  const GilRelease release;
  const std::string_view data(static_cast<const char*>(saved.ptr), static_cast<size_t>(saved.size * saved.itemsize));
  return std::make_shared<Tokenizer>(std::move(spec), data);
}

std::vector<uint32_t> encode(const Tokenizer& self, const py::object& value, bool add_special, bool allow_control) {
  const Text text(value);
  std::vector<uint32_t> ids;
  const GilRelease release;
  self.encode(text.view(), add_special, allow_control, ids);
  return ids;
}

py::tuple encode_spans(const Tokenizer& self, const py::object& value, bool add_special, bool allow_control,
                       const Guarded* guarded = nullptr) {
  const Text text(value);
  std::vector<uint32_t> ids;
  std::vector<Span> spans;
  {
    const GilRelease release;
    self.encode(text.view(), add_special, allow_control, ids, &spans, guarded);
  }
  py::list places(spans.size());
  for (size_t i = 0; i < spans.size(); ++i) places[i] = py::make_tuple(spans[i].begin, spans[i].end);
  return py::make_tuple(to_list(ids), places);
}

std::vector<IdParts> encode_each(const Tokenizer& self, const py::list& texts, bool add_special, bool allow_control,
                                 int threads) {
  const std::vector<Text> owners(texts.begin(), texts.end());
  const std::vector<std::string_view> views = views_of(owners);
  const GilRelease release;
  return self.encode_batch(views, add_special, allow_control, threads);
}

py::list encode_batch(const Tokenizer& self, const py::list& texts, bool add_special, bool allow_control, int threads) {
  const std::vector<IdParts> ids = encode_each(self, texts, add_special, allow_control, threads);
  py::list result(ids.size());
  for (size_t i = 0; i < ids.size(); ++i) result[i] = to_list(ids[i]);
  return result;
}

py::tuple encode_batch_arrays(const Tokenizer& self, const py::list& texts, bool add_special, bool allow_control,
                              int threads) {
  const std::vector<IdParts> each = encode_each(self, texts, add_special, allow_control, threads);
  py::array_t<int64_t> ends(static_cast<py::ssize_t>(each.size()));
  std::vector<std::pair<const std::vector<uint32_t>*, size_t>> places;
  size_t total = 0;
  for (size_t i = 0; i < each.size(); ++i) {
    for (const std::vector<uint32_t>& part : each[i]) {
      places.emplace_back(&part, total);
      total += part.size();
    }
    ends.mutable_data()[i] = static_cast<int64_t>(total);
  }
  py::array_t<uint32_t> ids(static_cast<py::ssize_t>(total));
  uint32_t* out = ids.mutable_data();
  {
    const GilRelease release;
    const int copiers = total < (1 << 16) ? 1 : threads;  // few ids aren't worth a thread
    for_tasks(places.size(), copiers, [&](size_t i, size_t) {
      const auto& [part, begin] = places[i];
      std::copy(part->begin(), part->end(), out + begin);
    });
  }
  return py::make_tuple(ids, ends);
}

py::bytes decode(const Tokenizer& self, const py::array_t<uint32_t, py::array::c_style>& ids,
                 const std::vector<uint32_t>& skip_ids) {
  std::vector<bool> skip(skip_ids.empty() ? 0 : self.size());
  for (const uint32_t id : skip_ids) skip.at(id) = true;
  std::string out;
  {
    const GilRelease release;
    self.decode(ids.data(), static_cast<size_t>(ids.size()), skip, out);
  }
  return out;
}

Progress to_progress(const py::object& progress) {
  return [&progress](size_t done, size_t total) {
    const GilAcquire acquire;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (!progress.is_none()) progress(done, total);
  };
}

py::dict train(const PieceCounter& counter, size_t vocab_size, int64_t min_frequency, std::vector<std::string> special,
               std::vector<std::string> alphabet, bool characters, bool ties_by_text, const py::object& progress) {
  TrainOptions options{vocab_size, min_frequency, std::move(special), std::move(alphabet), characters, ties_by_text};
  TrainResult result;
  {
    const Progress told = to_progress(progress);
    const GilRelease release;
    result = train_bpe(counter.counts(), options, told);
  }
  py::list tokens;
  for (const std::string& token : result.tokens) tokens.append(py::bytes(token));
  py::dict out;
  out["tokens"] = tokens;
  out["merges"] = to_array(std::move(result.merges));
  return out;
}

py::list train_unigram_pieces(const PieceCounter& counter, size_t size, std::vector<std::string> alphabet, int threads,
                              const py::object& progress) {
  UnigramOptions options;
  options.size = size;
  options.alphabet = std::move(alphabet);
  options.threads = threads;
  std::vector<ScoredPiece> result;
  {
    const Progress told = to_progress(progress);
    const GilRelease release;
    result = train_unigram(counter.counts(), options, told);
  }
  py::list pieces;
  for (const ScoredPiece& piece : result) pieces.append(py::make_tuple(py::bytes(piece.text), piece.score));
  return pieces;
}

/// Text of ids that come one at a time: a character is given out when it is whole.
class DecodeStream {
 public:
  /// `errors`: what is no UTF-8 becomes, as for bytes.decode.
  DecodeStream(std::shared_ptr<const Tokenizer> tokenizer, const std::vector<uint32_t>& skipped, std::string errors)
      : tokenizer_(std::move(tokenizer)), errors_(std::move(errors)), begun_(!tokenizer_->drops_first_space()) {
    skipped_.resize(skipped.empty() ? 0 : tokenizer_->size());
    for (const uint32_t id : skipped) skipped_.at(id) = true;
  }

  py::object step(int64_t id) {
    const auto size = static_cast<int64_t>(tokenizer_->size());
    const auto at = static_cast<uint32_t>(id);
    if (id < 0 || id >= size || tokenizer_->bpe().kind(at) == TokenKind::kGap) {
      throw ArgumentError("decode: id " + std::to_string(id) + " is not in the vocabulary of " + std::to_string(size) +
                          " ids");
    }
    if (at < skipped_.size() && skipped_[at]) return py::str();
    if (!begun_) {
      begun_ = tokenizer_->append_first(at, pending_);
      return take(pending_, false);
    }
    const std::string_view text = tokenizer_->token(at);
    if (pending_.empty()) return take(text, false);
    return take(pending_.append(text), false);
  }
  py::object finish() { return take(std::string(pending_), true); }

 private:
  py::object take(std::string_view data, bool last) {
    Py_ssize_t used = 0;
    PyObject* text = PyUnicode_DecodeUTF8Stateful(data.data(), static_cast<Py_ssize_t>(data.size()), errors_.c_str(),
                                                  last ? nullptr : &used);
    if (!text) throw py::error_already_set();
    pending_ = last ? std::string() : std::string(data.substr(static_cast<size_t>(used)));
    return py::reinterpret_steal<py::object>(text);
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<bool> skipped_;
  std::string pending_;  // of a character that isn't whole yet
  std::string errors_;
  bool begun_;
};

/// A token as Python has it.
py::str to_str(std::string_view token) {
  return own(PyUnicode_DecodeUTF8(token.data(), static_cast<Py_ssize_t>(token.size()), "surrogatepass"));
}

/// The tokens of a vocabulary that Python has parsed.
TokenList to_token_list(const py::dict& vocab) {
  TokenList list;
  for (const auto& [token, id] : vocab) {
    const py::object text = own(PyUnicode_AsEncodedString(token.ptr(), "utf-8", "surrogatepass"));
    list.add(text.cast<std::string_view>(), id.cast<uint32_t>());
  }
  list.index();
  return list;
}

/// Whether every token is UTF-8, of characters that Python has, too.
bool all_utf8(const TokenList& list) {
  for (const TokenList::Token& token : list.tokens()) {
    if (token.size > 0 && (list.text()[token.begin] & 0xC0) == 0x80) return false;  // the rest of another's character
  }
  const std::string_view text = list.text();
  PyObject* const made = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr);
  if (!made) PyErr_Clear();
  Py_XDECREF(made);
  return made;
}

/// (rest, tokens, merges), or None: see json_vocabulary.h.
py::object json_vocabulary(const py::bytes& json, size_t max_tokens, size_t max_merges) {
  const std::string_view data = json;
  JsonVocabulary read;
  const auto parse = [&] {
    const GilRelease release;
    return read_json_vocabulary(data, max_tokens, max_merges, read);
  };
  if (!parse() || !all_utf8(read.tokens)) return py::none();
  return py::make_tuple(py::bytes(read.rest), py::cast(std::move(read.tokens)), to_array(std::move(read.merges)));
}

/// (bytes of all, their ends, kinds, tokens that aren't spelled in the alphabet): see token_list.h.
py::tuple spell_bytes_of(const TokenList& list, const py::array_t<uint16_t, py::array::c_style>& byte_of,
                         const py::dict& added, size_t size) {
  std::vector<AddedText> texts;
  for (const auto& [id, text] : added) texts.push_back({id.cast<uint32_t>(), text.cast<std::string_view>()});
  const auto is_inside = [&](const auto& token) { return token.id < size; };
  check_argument(std::ranges::all_of(list.tokens(), is_inside) && std::ranges::all_of(texts, is_inside),
                 "vocabulary: an id is out of range");
  SpelledTokens spelled = spell_bytes(list, {byte_of.data(), static_cast<size_t>(byte_of.size())}, texts, size);
  py::list others;
  for (const uint32_t token : spelled.others) others.append(to_str(list.text_of(list.tokens()[token])));
  const py::bytearray kinds(reinterpret_cast<const char*>(spelled.kinds.data()), spelled.kinds.size());
  return py::make_tuple(py::bytes(spelled.text), to_array(std::move(spelled.ends)), kinds, others);
}

/// Merges of a tokenizer.json ("left right" or [left, right]) as ids, [n * 3], or None when one of them is not what it
/// should be or stands there twice: then it is read again, slowly, to say which. `skip`: characters of the right side
/// that the result lacks. A merge whose result `left_out` names by id is left out.
py::object resolve_merges(const py::list& items, const py::dict& vocab, size_t skip, std::vector<uint32_t> left_out) {
  std::sort(left_out.begin(), left_out.end());
  const auto id_of = [&](PyObject* token) -> uint32_t {
    PyObject* found = PyDict_GetItemWithError(vocab.ptr(), token);
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    return found ? static_cast<uint32_t>(PyLong_AsUnsignedLong(found)) : kNoId;
  };
  std::vector<uint32_t> ids;
  std::vector<uint64_t> pairs;
  ids.reserve(3 * items.size());
  pairs.reserve(items.size());
  for (const py::handle item : items) {
    py::object left, right;
    if (PyUnicode_Check(item.ptr())) {
      const Py_ssize_t size = PyUnicode_GET_LENGTH(item.ptr());
      const Py_ssize_t space = PyUnicode_FindChar(item.ptr(), ' ', 0, size, 1);
      if (space <= 0 || space + 1 >= size || PyUnicode_FindChar(item.ptr(), ' ', space + 1, size, 1) >= 0)
        return py::none();
      left = own(PyUnicode_Substring(item.ptr(), 0, space));
      right = own(PyUnicode_Substring(item.ptr(), space + 1, size));
    } else if (PyList_Check(item.ptr()) && PyList_GET_SIZE(item.ptr()) == 2) {
      left = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(item.ptr(), 0));
      right = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(item.ptr(), 1));
      const auto text = [](const py::object& o) {
        return PyUnicode_Check(o.ptr()) && PyUnicode_GET_LENGTH(o.ptr()) > 0;
      };
      if (!text(left) || !text(right)) return py::none();
    } else {
      return py::none();
    }
    const uint32_t a = id_of(left.ptr()), b = id_of(right.ptr());
    if (skip)
      right = own(PyUnicode_Substring(right.ptr(), static_cast<Py_ssize_t>(skip), PyUnicode_GET_LENGTH(right.ptr())));
    const uint32_t c = id_of(own(PyUnicode_Concat(left.ptr(), right.ptr())).ptr());
    if (a == kNoId || b == kNoId || c == kNoId) return py::none();
    pairs.push_back(static_cast<uint64_t>(a) << 32 | b);
    if (!std::binary_search(left_out.begin(), left_out.end(), c)) ids.insert(ids.end(), {a, b, c});
  }
  std::sort(pairs.begin(), pairs.end());
  if (std::adjacent_find(pairs.begin(), pairs.end()) != pairs.end()) return py::none();
  return to_array(std::move(ids));
}

}  // namespace

void bind_tokenizer(py::module_& m) {
  py::class_<Tokenizer, std::shared_ptr<Tokenizer>>(m, "Tokenizer")
      .def(py::init(&make_tokenizer), py::arg("fields"), py::arg("archive") = py::none())
      .def_property_readonly("size", &Tokenizer::size)
      .def("encode", [](const Tokenizer& self, const py::object& text, bool add_special,
                        bool allow_control) { return to_list(encode(self, text, add_special, allow_control)); })
      .def("encode_array", [](const Tokenizer& self, const py::object& text, bool add_special,
                              bool allow_control) { return to_array(encode(self, text, add_special, allow_control)); })
      .def("encode_dropout",
           [](const Tokenizer& self, const py::object& value, bool add_special, bool allow_control, double rate,
              uint64_t seed) {
             const Text text(value);
             std::vector<uint32_t> ids;
             Dropout dropout{rate, std::mt19937_64(seed)};
             {
               const GilRelease release;
               self.encode(text.view(), add_special, allow_control, ids, nullptr, nullptr, &dropout);
             }
             return to_list(ids);
           })
      .def("normalized",
           [](const Tokenizer& self, const py::str& text) {
             const std::string_view view = utf8(text);
             std::string changed;
             {
               const GilRelease release;
               changed = self.normalized(view);
             }
             return py::str(changed);
           })
      .def("encode_guarded",
           [](const Tokenizer& self, const py::object& value, std::vector<uint32_t> stretches,
              std::vector<uint32_t> also) {
             const Guarded guarded{std::move(stretches), std::move(also)};
             const Text text(value);
             std::vector<uint32_t> ids;
             {
               const GilRelease release;
               self.encode(text.view(), false, true, ids, nullptr, &guarded);
             }
             return to_list(ids);
           })
      .def("encode_spans", [](const Tokenizer& self, const py::object& text, bool add_special,
                              bool allow_control) { return encode_spans(self, text, add_special, allow_control); })
      .def("encode_guarded_spans",
           [](const Tokenizer& self, const py::object& text, std::vector<uint32_t> stretches,
              std::vector<uint32_t> also) {
             const Guarded guarded{std::move(stretches), std::move(also)};
             return encode_spans(self, text, false, true, &guarded);
           })
      .def("encode_batch", &encode_batch)
      .def("encode_batch_arrays", &encode_batch_arrays)
      .def("decode", &decode)
      .def("token",
           [](const Tokenizer& self, uint32_t id) -> py::object {
             if (id >= self.size() || self.bpe().kind(id) == TokenKind::kGap) return py::none();
             return py::bytes(std::string(self.token(id)));
           })
      .def("find",
           [](const Tokenizer& self, std::string_view text) -> py::object {
             const uint32_t id = self.bpe().find(text);
             return id == kNoId ? py::object(py::none()) : py::object(py::int_(id));
           })
      .def_property_readonly("joins_before_space",
                             [](const Tokenizer& self) { return self.bpe().joins_before_space(); })
      .def("save_vocabulary", [](const Tokenizer& self) { return py::bytes(self.save_vocabulary()); })
      .def_property_readonly("kinds",
                             [](const Tokenizer& self) {
                               const std::vector<uint8_t>& kinds = self.bpe().kinds();
                               return py::bytes(reinterpret_cast<const char*>(kinds.data()), kinds.size());
                             })
      .def_property_readonly("byte_ids", [](const Tokenizer& self) { return to_list(self.bpe().byte_ids()); })
      .def_property_readonly("ranks", [](const Tokenizer& self) { return to_array(self.bpe().ranks()); })
      .def_property_readonly("merges", [](const Tokenizer& self) { return to_array(self.bpe().merges()); })
      .def("split_added",
           [](const Tokenizer& self, const py::str& text, bool allow_control, std::vector<uint32_t> stretches) {
             const Guarded guarded{std::move(stretches), {}};
             py::list parts;
             const std::string_view view = utf8(text);
             for (const Segment& s : self.split_added(view, allow_control, &guarded)) {
               const py::object id = s.id == kNoId ? py::object(py::none()) : py::object(py::int_(s.id));
               parts.append(py::make_tuple(py::str(view.data() + s.begin, s.end - s.begin), id));
             }
             return parts;
           })
      .def("pieces", [](const Tokenizer& self, const py::str& text) { return self.pieces(utf8(text)); });

  py::class_<DecodeStream>(m, "DecodeStream")
      .def(py::init<std::shared_ptr<Tokenizer>, const std::vector<uint32_t>&, std::string>(), py::arg("tokenizer"),
           py::arg("skipped"), py::arg("errors"))
      .def("step", &DecodeStream::step)
      .def("finish", &DecodeStream::finish);
  m.def("resolve_merges", &resolve_merges);
  py::class_<TokenList>(m, "TokenList")
      .def(py::init(&to_token_list))
      .def("__len__", &TokenList::size)
      .def(
          "get",
          [](const TokenList& self, const py::str& token, const py::object& otherwise) -> py::object {
            const py::object text = own(PyUnicode_AsEncodedString(token.ptr(), "utf-8", "surrogatepass"));
            const uint32_t id = self.find(text.cast<std::string_view>());
            return id == kNoId ? otherwise : py::int_(id);
          },
          py::arg("token"), py::arg("otherwise") = py::none())
      .def("ids",
           [](const TokenList& self) {
             std::vector<uint32_t> ids;
             ids.reserve(self.size());
             for (const TokenList::Token& token : self.tokens()) ids.push_back(token.id);
             return to_array(std::move(ids));
           })
      .def("to_dict",
           [](const TokenList& self) {
             py::dict vocab;
             for (const TokenList::Token& token : self.tokens()) vocab[to_str(self.text_of(token))] = token.id;
             return vocab;
           })
      .def("spell_bytes", &spell_bytes_of);
  m.def("json_vocabulary", &json_vocabulary);
  m.def("list_to_array", &list_to_array);
  py::class_<Regex>(m, "Regex")
      .def(py::init([](std::string_view pattern, int dialect) {
        return std::make_unique<Regex>(pattern, dialect ? RegexDialect::kFancy : RegexDialect::kOniguruma);
      }))
      .def("find_all",
           [](const Regex& self, const py::str& text) {
             std::vector<Regex::Match> matches;
             self.find_all(utf8(text), matches);
             py::list places;
             for (const auto& [begin, end] : matches) places.append(py::make_tuple(begin, end));
             return places;
           })
      .def("replace", [](const Regex& self, const py::str& text, std::string_view by) {
        const std::string_view view = utf8(text);
        std::vector<Regex::Match> matches;
        self.find_all(view, matches);
        std::string out;
        size_t done = 0;
        for (const auto& [begin, end] : matches) {
          out.append(view, done, begin - done).append(by);
          done = end;
        }
        return py::str(out.append(view, done));
      });

  py::class_<PieceCounter>(m, "PieceCounter")
      .def(py::init([](const py::object& stages) { return std::make_unique<PieceCounter>(to_stages(stages)); }))
      .def("add",
           [](PieceCounter& self, const py::list& texts, int unit, int threads) {
             check_argument(unit >= 0 && unit <= static_cast<int>(TextUnit::kSentences), "unit: must be 0, 1 or 2");
             const std::vector<Text> owners(texts.begin(), texts.end());
             const std::vector<std::string_view> views = views_of(owners);
             const GilRelease release;
             self.add(views, static_cast<TextUnit>(unit), threads);
           })
      .def_property_readonly("size", [](const PieceCounter& self) { return self.counts().size(); })
      .def("characters",
           [](const PieceCounter& self, double coverage) {
             py::list found;
             for (const std::string& one : frequent_characters(self.counts(), coverage)) found.append(py::bytes(one));
             return found;
           })
      .def("train", &train, py::arg("vocab_size"), py::arg("min_frequency"), py::arg("special"), py::arg("alphabet"),
           py::arg("characters"), py::arg("ties_by_text"), py::arg("progress"))
      .def("train_unigram", &train_unigram_pieces, py::arg("size"), py::arg("alphabet"), py::arg("threads"),
           py::arg("progress"));
}

}  // namespace llmcore
