#include "tokenizer/pretokenize.h"

#include <algorithm>

#include "base/error.h"
#include "tokenizer/normalize.h"
#include "tokenizer/unicode_data.h"

namespace llmcore {
namespace {

bool is_space(uint32_t code) { return (class_of(code) & kSpace) != 0; }

/// Cuts at every character that `test` holds for; the others stay together.
template <class Cuts, class Test>
void cut_characters(std::string_view piece, Cuts& cuts, Test test) {
  const auto* p = reinterpret_cast<const uint8_t*>(piece.data());
  size_t begin = 0;
  for (size_t i = 0; i < piece.size();) {
    const size_t next = i + utf8_length(p[i]);
    if (test(decode_utf8(p + i))) {
      if (i > begin) cuts.push_back({begin, i, false});
      cuts.push_back({i, next, true});
      begin = next;
    }
    i = next;
  }
  if (piece.size() > begin) cuts.push_back({begin, piece.size(), false});
}

/// Gives a match to its neighbours, as the behaviour says; what is left of `cuts` are the pieces.
template <class Cuts>
void behave(Cuts& cuts, SplitBehavior behavior) {
  bool last = false;
  switch (behavior) {
    case SplitBehavior::kIsolated:
      return;
    case SplitBehavior::kRemoved:
      std::erase_if(cuts, [](const auto& cut) { return cut.match; });
      return;
    case SplitBehavior::kMergedWithPrevious:
    case SplitBehavior::kContiguous: {
      auto kept = cuts.begin();
      for (const auto cut : cuts) {
        const bool joins = behavior == SplitBehavior::kContiguous ? cut.match == last : cut.match && !last;
        if (joins && kept != cuts.begin()) {
          kept[-1].end = cut.end;
        } else {
          *kept++ = cut;
        }
        last = cut.match;
      }
      cuts.erase(kept, cuts.end());
      return;
    }
    case SplitBehavior::kMergedWithNext: {
      auto kept = cuts.end();
      for (auto at = cuts.end(); at != cuts.begin();) {
        const auto cut = *--at;
        if (cut.match && !last && kept != cuts.end()) {
          kept->begin = cut.begin;
        } else {
          *--kept = cut;
        }
        last = cut.match;
      }
      cuts.erase(cuts.begin(), kept);
      return;
    }
  }
}

}  // namespace

PreTokenizer::PreTokenizer(PreTokenizerSpec spec) : spec_(std::move(spec)) {
  check_argument(spec_.kind < PreTokenizerKind::kCount, "tokenizer: unknown pre-tokeniser code");
  if (spec_.kind == PreTokenizerKind::kSplitRegex) regex_ = std::make_shared<Regex>(spec_.text, spec_.dialect);
  if (spec_.kind == PreTokenizerKind::kScan || spec_.kind == PreTokenizerKind::kByteLevel) {
    check_argument(spec_.number < static_cast<uint32_t>(Pattern::kCount), "tokenizer: unknown pattern code");
  }
  switch (spec_.kind) {
    case PreTokenizerKind::kMetaspace:
      spec_.behavior = SplitBehavior::kMergedWithNext;
      break;
    case PreTokenizerKind::kWhitespace:
    case PreTokenizerKind::kWhitespaceSplit:
    case PreTokenizerKind::kBert:
    case PreTokenizerKind::kUnicodeScripts:
      spec_.behavior = SplitBehavior::kRemoved;
      break;
    default:
      break;
  }
  if (spec_.kind == PreTokenizerKind::kFixedLength && spec_.number == 0) {
    throw TokenizerError("pre_tokenizer: FixedLength of 0 characters");
  }
}

/// `matches` is working memory.
void PreTokenizer::find(std::string_view piece, std::vector<Regex::Match>& matches, std::vector<Cut>& cuts) const {
  const auto* p = reinterpret_cast<const uint8_t*>(piece.data());
  size_t done = 0;
  const auto push_match = [&](size_t begin, size_t end) {
    if (begin > done) cuts.push_back({done, begin, false});
    cuts.push_back({begin, end, true});
    done = end;
  };
  const auto push_rest = [&] {
    if (piece.size() > done) cuts.push_back({done, piece.size(), false});
  };
  switch (spec_.kind) {
    case PreTokenizerKind::kScan:
    case PreTokenizerKind::kByteLevel: {
      std::vector<size_t> ends;
      split_pieces({static_cast<Pattern>(spec_.number)}, piece, ends);
      for (size_t i = 0; i < ends.size(); ++i) cuts.push_back({i ? ends[i - 1] : 0, ends[i], true});
      return;
    }
    case PreTokenizerKind::kSplitText:
    case PreTokenizerKind::kMetaspace:
      for (size_t at = 0; !spec_.text.empty() && (at = piece.find(spec_.text, done)) != piece.npos;) {
        push_match(at, at + spec_.text.size());
      }
      return push_rest();
    case PreTokenizerKind::kSplitRegex:
      matches.clear();
      regex_->find_all(piece, matches);
      for (const Regex::Match& m : matches) push_match(m.begin, m.end);
      return push_rest();
    case PreTokenizerKind::kWhitespace: {
      // A run of word characters, or of what is neither that nor white space.
      const auto kind = [&](size_t i) {
        const uint32_t code = decode_utf8(p + i);
        return (traits_of(code) & kRustWord) ? 1 : is_space(code) ? 0 : 2;
      };
      for (size_t i = 0; i < piece.size();) {
        const int first = kind(i);
        size_t end = i + utf8_length(p[i]);
        while (end < piece.size() && kind(end) == first) end += utf8_length(p[end]);
        cuts.push_back({i, end, first == 0});
        i = end;
      }
      return;
    }
    case PreTokenizerKind::kWhitespaceSplit:
      return cut_characters(piece, cuts, is_space);
    case PreTokenizerKind::kPunctuation:
      return cut_characters(piece, cuts, [](uint32_t code) { return (traits_of(code) & kBertPunct) != 0; });
    case PreTokenizerKind::kDigits:
      return cut_characters(piece, cuts, [](uint32_t code) { return (traits_of(code) & kNumeric) != 0; });
    case PreTokenizerKind::kBert:
      cut_characters(piece, cuts, [](uint32_t code) { return is_space(code) || (traits_of(code) & kBertPunct); });
      for (Cut& cut : cuts) cut.match = cut.match && is_space(decode_utf8(p + cut.begin));
      return;
    case PreTokenizerKind::kUnicodeScripts: {
      size_t begin = 0;
      uint8_t last = 0;
      for (size_t i = 0; i < piece.size(); i += utf8_length(p[i])) {
        const uint8_t script = hf_script_of(decode_utf8(p + i));
        if (script && script != last && i > begin) {
          cuts.push_back({begin, i, last == 0});  // what stands before the first script is dropped
          begin = i;
        }
        if (script) last = script;
      }
      if (piece.size() > begin) cuts.push_back({begin, piece.size(), last == 0});
      return;
    }
    case PreTokenizerKind::kFixedLength:
      for (size_t i = 0; i < piece.size();) {
        size_t end = i;
        for (uint32_t n = 0; n < spec_.number && end < piece.size(); ++n) end += utf8_length(p[end]);
        cuts.push_back({i, end, true});
        i = end;
      }
      return;
    case PreTokenizerKind::kCount:
      return;
  }
}

/// Puts before pieces, and replaces in them, what ByteLevel and Metaspace want there.
void PreTokenizer::rewrite(Pieces& pieces) const {
  const bool metaspace = spec_.kind == PreTokenizerKind::kMetaspace;
  const bool always = spec_.flags & (metaspace ? kMetaspaceAlways : kByteLevelPrefix);
  const bool first = metaspace && (spec_.flags & kMetaspaceFirst);
  const MappedText& in = pieces.text;
  Pieces out{in.like(), {}};
  size_t begin = 0;
  for (const uint32_t end : pieces.ends) {
    const std::string_view piece = std::string_view(in.text).substr(begin, end - begin);
    const Origin origin = in.origin(begin);
    const bool wanted = always || (first && begin == 0 && origin.begin == 0);
    const bool there = piece.starts_with(' ') || (metaspace && piece.starts_with(spec_.text));
    const std::string_view mark = metaspace ? std::string_view(spec_.text) : " ";
    if (wanted && !there) out.text.push(mark, origin);
    size_t done = begin;
    for (size_t i = begin; metaspace && i < end; ++i) {
      if (in.text[i] != ' ') continue;
      out.text.push(in, done, i);
      out.text.push(mark, in.origin(i));
      done = i + 1;
    }
    out.text.push(in, done, end);
    out.ends.push_back(static_cast<uint32_t>(out.text.text.size()));
    begin = end;
  }
  pieces = std::move(out);
}

/// Cuts every piece, and drops what the behaviour removes.
void PreTokenizer::cut(Pieces& pieces) const {
  std::vector<Regex::Match> matches;
  std::vector<Cut> cuts;
  std::vector<uint32_t> ends;
  MappedText kept = pieces.text.like();
  size_t begin = 0, copied = 0, gone = 0;
  const auto drop = [&](size_t from, size_t to) {
    if (from == to) return;
    kept.push(pieces.text, copied, from);
    copied = to;
    gone += to - from;
  };
  for (const uint32_t end : pieces.ends) {
    cuts.clear();
    find(std::string_view(pieces.text.text).substr(begin, end - begin), matches, cuts);
    for (Cut& c : cuts) c.match = c.match != spec_.inverted;
    behave(cuts, spec_.behavior);
    size_t at = begin;
    for (const Cut& c : cuts) {
      if (c.begin == c.end) continue;
      drop(at, begin + c.begin);
      at = begin + c.end;
      ends.push_back(static_cast<uint32_t>(at - gone));
    }
    drop(at, end);
    begin = end;
  }
  if (gone > 0) {
    kept.push(pieces.text, copied, pieces.text.text.size());
    pieces.text = std::move(kept);
  }
  pieces.ends = std::move(ends);
}

void PreTokenizer::apply(Pieces& pieces) const {
  const bool metaspace = spec_.kind == PreTokenizerKind::kMetaspace, bytes = spec_.kind == PreTokenizerKind::kByteLevel;
  if (metaspace || (bytes && (spec_.flags & kByteLevelPrefix))) rewrite(pieces);
  const bool whole = (metaspace && !(spec_.flags & kMetaspaceSplit)) ||
                     (bytes && spec_.number == static_cast<uint32_t>(Pattern::kNone));
  if (!whole) cut(pieces);
  if (!bytes || !(spec_.flags & kByteLevelSpell)) return;
  // Each byte becomes one or two; the ends move with them.
  Pieces out{pieces.text.like(), {}};
  size_t at = 0;
  for (const uint32_t end : pieces.ends) {
    for (; at < end; ++at) {
      out.text.push(byte_character(static_cast<uint8_t>(pieces.text.text[at])), pieces.text.origin(at));
    }
    out.ends.push_back(static_cast<uint32_t>(out.text.text.size()));
  }
  pieces = std::move(out);
}

}  // namespace llmcore
