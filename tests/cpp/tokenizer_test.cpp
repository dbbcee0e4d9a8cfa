#include "tokenizer/tokenizer.h"

#include <algorithm>
#include <array>
#include <string>
#include <thread>

#include "base/error.h"
#include "check.h"
#include "kernels/select.h"
#include "random.h"
#include "tokenizer/json_vocabulary.h"

using namespace llmcore;
using namespace llmcore::test;

namespace {

using Alphabet = std::vector<std::string>;

// What the patterns treat apart, in proportions that make every neighbourhood happen.
const Alphabet kHard = {"a",      "b",      "s",      "S",          "t",      "ll",     "re",     "VE",     "A",
                        "B",      " ",      " ",      "  ",         "\n",     "\r\n",   "\t",     "'",      "'s",
                        "'LL",    "!",      "/",      "//",         "1",      "23",     "\u00a0", "\u3000", "\u00df",
                        "\u00c9", "\u0661", "\u00b2", "\u017f",     "\u02b0", "\u0301", "\u65e5", "\u3002", "\u201c",
                        "\u2014", "\u0e01", "\u0e31", "\U0001f600", "\u200d", "\u01c5", "\u0085", "\u30ab", "\u30fb",
                        "\u3099", "\u9fa5", "\u9fa6", "\u4dff",     "\x01",   "\u1100"};
const Alphabet kPlain = {"a",  "the", "word",   "Upper", "camelCase", " ",  " ",     " ",
                         "  ", "\n",  "\n    ", ".",     ",",         "'s", "12345", "("};

std::string random_text(Random& random, const Alphabet& alphabet, int64_t parts) {
  std::string text;
  for (int64_t i = 0; i < parts; ++i) {
    text += alphabet[static_cast<size_t>(random.integer(0, static_cast<int64_t>(alphabet.size()) - 1))];
  }
  return text;
}

/// Bytes (or ASCII characters) and random merges of them, some of the same rank.
BpeSpec random_vocabulary(Random& random, bool characters, bool ranks) {
  BpeSpec spec;
  spec.characters = characters;
  const auto add = [&](const std::string& text, TokenKind kind, uint32_t rank) {
    spec.text.insert(spec.text.end(), text.begin(), text.end());
    spec.text_ends.push_back(static_cast<uint32_t>(spec.text.size()));
    spec.kinds.push_back(static_cast<uint8_t>(kind));
    if (ranks) spec.ranks.push_back(rank);
  };
  std::vector<std::string> made;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    spec.byte_ids.push_back(byte);
    add(std::string(1, static_cast<char>(byte)), characters ? TokenKind::kByte : TokenKind::kNormal, kNoId);
  }
  for (const char* one : {"a", "b", "c", "\u00e9", "\u65e5", " "}) {
    made.emplace_back(one);
    if (characters) add(one, TokenKind::kNormal, kNoId);
  }
  const int64_t merges = random.integer(3, 40);
  for (int64_t i = 0; i < merges; ++i) {
    const auto pick = [&] {
      return made[static_cast<size_t>(random.integer(0, static_cast<int64_t>(made.size()) - 1))];
    };
    const std::string text = pick() + pick();
    if (text.size() > 40 || std::find(made.begin(), made.end(), text) != made.end()) continue;
    made.push_back(text);
    add(text, TokenKind::kNormal, static_cast<uint32_t>(random.integer(0, 30)));
  }
  return spec;
}

/// Merging by its definition: the lowest rank, and the leftmost of those, until there is none.
std::vector<uint32_t> merge_by_definition(const Bpe& bpe, const BpeSpec& spec, std::string_view text) {
  std::vector<uint32_t> ids;
  std::vector<std::string> symbols;
  for (size_t i = 0; i < text.size();) {
    const uint8_t lead = static_cast<uint8_t>(text[i]);
    const size_t len = !spec.characters || lead < 0x80 ? 1 : lead < 0xE0 ? 2 : 3;
    symbols.emplace_back(text.substr(i, len));
    i += len;
  }
  while (symbols.size() > 1) {
    size_t best = 0;
    uint32_t rank = kNoId;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      const uint32_t id = bpe.find(symbols[i] + symbols[i + 1]);
      if (id != kNoId && spec.ranks[id] < rank) {
        best = i;
        rank = spec.ranks[id];
      }
    }
    if (rank == kNoId) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  for (const std::string& symbol : symbols) {
    const uint32_t id = bpe.find(symbol);
    if (id != kNoId) {
      ids.push_back(id);
    } else {
      for (const char c : symbol) ids.push_back(static_cast<uint8_t>(c));
    }
  }
  return ids;
}

TokenizerSpec small_tokenizer(Random& random) {
  TokenizerSpec spec;
  spec.bpe = random_vocabulary(random, false, true);
  spec.stages = {Pattern::kLlama3};
  spec.added.push_back({"<|end|>", 3, true});
  return spec;
}

}  // namespace

TEST(tokenizer, windows_find_what_the_scalar_scanners_find) {
  Random random(1);
  std::vector<size_t> fast, slow;
  const int cases = quick() ? 300 : 4000;
  for (int i = 0; i < cases; ++i) {
    const std::string text = random_text(random, i % 2 ? kHard : kPlain, random.integer(1, 250));
    for (int pattern = 0; pattern < static_cast<int>(Pattern::kCount); ++pattern) {
      split_pieces({static_cast<Pattern>(pattern)}, text, fast);
      split_pieces_one_by_one(static_cast<Pattern>(pattern), text, slow);
      if (fast == slow) continue;
      const Note note("pattern " + std::to_string(pattern) + ", text " + text);
      CHECK(fast == slow);
    }
  }
}

TEST(tokenizer, windows_at_every_distance_from_a_long_run) {
  std::vector<size_t> fast, slow;
  for (const std::string& one : kHard) {
    for (const std::string& run : {std::string(" "), std::string("a"), std::string("\n"), std::string("!"), one}) {
      for (int length = 50; length < 80; ++length) {
        std::string text;
        for (int i = 0; i < length; ++i) text += run;
        text += one + "b 'll c" + std::string(70, 'd') + run + one;
        for (int pattern = 0; pattern < static_cast<int>(Pattern::kCount); ++pattern) {
          split_pieces({static_cast<Pattern>(pattern)}, text, fast);
          split_pieces_one_by_one(static_cast<Pattern>(pattern), text, slow);
          if (fast == slow) continue;
          const Note note("pattern " + std::to_string(pattern) + ", text " + text);
          CHECK(fast == slow);
        }
      }
    }
  }
}

// What begins at a seam is cut as if nothing stood before it, and the other way round.
TEST(tokenizer, seams_cut_a_text_where_its_pieces_do) {
  Random random(11);
  std::vector<size_t> whole, left, right;
  size_t seams = 0;
  for (int i = 0; i < (quick() ? 300 : 4000); ++i) {
    const std::string text = random_text(random, i % 2 ? kHard : kPlain, random.integer(2, 40));
    for (int pattern = 0; pattern < static_cast<int>(Pattern::kCount); ++pattern) {
      const std::vector<Pattern> stages{static_cast<Pattern>(pattern)};
      split_pieces(stages, text, whole);
      const size_t from = static_cast<size_t>(random.integer(0, static_cast<int64_t>(text.size())));
      const size_t at = find_seam(stages, text, from, from + 100);
      if (at == text.size()) continue;
      ++seams;
      split_pieces(stages, text.substr(0, at), left);
      split_pieces(stages, text.substr(at), right);
      for (const size_t end : right) left.push_back(at + end);
      if (left == whole) continue;
      const Note note("pattern " + std::to_string(pattern) + ", seam " + std::to_string(at) + ", text " + text);
      CHECK(left == whole);
    }
  }
  CHECK(seams > 500);
}

TEST(tokenizer, many_pieces_merged_at_once_are_merged_as_each_alone) {
  Random random(7);
  const int vocabularies = quick() ? 20 : 200;
  for (int v = 0; v < vocabularies; ++v) {
    const Bpe bpe(random_vocabulary(random, v % 2 == 1, v % 4 < 2));
    EncodeState state, other;
    for (int i = 0; i < 10; ++i) {
      // Groups that are full or not, pieces too long for them, and some that occur again.
      const Alphabet alphabet = i % 2 ? Alphabet{"a", "b", "c"} : Alphabet{"a", "b", "c", "\u00e9", "\u65e5", " ", "x"};
      std::string text;
      std::vector<uint32_t> ends, ids, expected;
      for (int64_t pieces = random.integer(1, i % 3 ? 40 : 400); pieces > 0; --pieces) {
        const std::string piece = random_text(random, alphabet, random.integer(1, i % 5 ? 12 : 70));
        text += piece;
        ends.push_back(static_cast<uint32_t>(text.size()));
        bpe.encode_symbols(piece, other);
        for (const Symbol& s : other.symbols) expected.push_back(s.id);
      }
      bpe.encode_pieces(text.data(), ends, text.data() + text.size(), state, ids);
      const Note note("vocabulary " + std::to_string(v) + ", text " + text);
      CHECK(ids == expected);
    }
  }
}

namespace {

/// Rules of pairs of random ids; of which those of lower numbers make ids of lower numbers, if `in_order`.
PairTable random_pairs(Random& random, uint32_t symbols, uint32_t rules, bool in_order) {
  PairRules pairs(rules);
  const auto id = [&](uint32_t below) { return static_cast<uint32_t>(random.integer(0, below - 1)); };
  for (uint32_t i = 0; i < rules; ++i) {
    const uint32_t made = symbols + i;
    pairs.insert(id(made), id(i % 2 ? made : symbols), i, in_order ? made : symbols + (i * 7 + 3) % rules);
  }
  return PairTable(pairs);
}

std::vector<uint32_t> merged_one_by_one(const PairTable& pairs, std::vector<uint32_t> ids) {
  while (true) {
    size_t best = ids.size();
    uint32_t lowest = PairTable::kNoRule;
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      const uint32_t rule = pairs.find(ids[i], ids[i + 1]);
      if (rule >= lowest) continue;
      lowest = rule;
      best = i;
    }
    if (best == ids.size()) return ids;
    ids[best] = pairs.result(lowest);
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

}  // namespace

TEST(tokenizer, kernels_merge_as_one_by_one) {
  Random random(8);
  for (const std::string& isa : available_isas()) {
    const KernelTable& table = kernels_named(isa);
    if (table.merge == nullptr) continue;
    for (int v = 0; v < (quick() ? 20 : 300); ++v) {
      const uint32_t symbols = static_cast<uint32_t>(random.integer(1, 12));
      const uint32_t rules = static_cast<uint32_t>(random.integer(1, 300));
      const PairTable pairs = random_pairs(random, symbols, rules, v % 2 == 0);
      std::vector<uint32_t> starts, expected;
      std::vector<MergePiece> pieces;
      std::vector<size_t> counts;
      const int64_t longest = v % 3 ? kMergeSymbols : 16;
      for (int64_t n = random.integer(1, v % 5 ? 50 : 400); n > 0; --n) {
        std::vector<uint32_t> piece(static_cast<size_t>(random.integer(1, longest)));
        for (uint32_t& id : piece) id = static_cast<uint32_t>(random.integer(0, symbols - 1));
        pieces.push_back({static_cast<uint32_t>(starts.size()), static_cast<uint32_t>(piece.size())});
        starts.insert(starts.end(), piece.begin(), piece.end());
        const std::vector<uint32_t> ids = merged_one_by_one(pairs, piece);
        expected.insert(expected.end(), ids.begin(), ids.end());
        counts.push_back(ids.size());
      }
      std::vector<uint32_t> ids(starts.size() + kMergeLanes);
      table.merge({pairs.view(), starts.data(), pieces.data(), pieces.size(), ids.data()});
      ids.resize(expected.size());
      const Note note(isa + ", vocabulary " + std::to_string(v));
      CHECK(ids == expected);
      for (size_t i = 0; i < pieces.size(); ++i) CHECK_EQ(size_t{pieces[i].count}, counts[i]);
    }
  }
}

TEST(tokenizer, merging_follows_its_definition) {
  Random random(2);
  const int vocabularies = quick() ? 20 : 200;
  for (int v = 0; v < vocabularies; ++v) {
    const BpeSpec spec = random_vocabulary(random, v % 2 == 1, true);
    const Bpe bpe(spec);
    EncodeState state;
    for (int i = 0; i < 20; ++i) {
      const Alphabet alphabet = i % 3 ? Alphabet{"a", "b", "c"} : Alphabet{"a", "a", "b", "\u00e9", "\u65e5", " ", "x"};
      // Short pieces, and such as are merged in parts.
      std::string text = random_text(random, alphabet, i % 2 ? random.integer(1, 20) : random.integer(90, 400));
      if (i % 4 == 0) {  // a run of one character
        const std::string one = random_text(random, alphabet, 1);
        text = random_text(random, alphabet, random.integer(0, 2));
        for (int64_t n = random.integer(90, 400); n > 0; --n) text += one;
      }
      std::vector<uint32_t> ids;
      bpe.encode_pieces(text.data(), {static_cast<uint32_t>(text.size())}, text.data() + text.size(), state, ids);
      const Note note("vocabulary " + std::to_string(v) + ", text " + text);
      CHECK(ids == merge_by_definition(bpe, spec, text));
      bpe.encode_symbols(text, state);
      size_t length = 0;
      for (const Symbol& s : state.symbols) length += s.len;
      CHECK_EQ(length, text.size());
      CHECK_EQ(state.symbols.size(), ids.size());
    }
  }
}

namespace {

void encode_again_and_again(Random& random, const Alphabet& alphabet, int64_t longest) {
  const Bpe bpe(random_vocabulary(random, false, true));
  EncodeState state, plain;
  std::vector<std::string> known;
  std::vector<std::vector<uint32_t>> alone;
  const int rounds = 300;  // so many that the cache grows to its end and old pieces come after that
  for (int round = 0; round < rounds; ++round) {
    for (int i = 0; i < 400; ++i) {
      known.push_back(random_text(random, alphabet, random.integer(1, i % 10 ? longest : 200)));
      bpe.encode_symbols(known.back(), plain);
      alone.emplace_back();
      for (const Symbol& symbol : plain.symbols) alone.back().push_back(symbol.id);
    }
    std::string text;
    std::vector<uint32_t> ends, expected;
    for (int64_t n = random.integer(1, 3000); n > 0; --n) {
      // Old ones and new ones, some of them often.
      const int64_t last = static_cast<int64_t>(known.size()) - 1;
      const size_t i = static_cast<size_t>(random.integer(n % 3 ? std::max<int64_t>(0, last - 50) : 0, last));
      for (int64_t times = random.integer(1, 2); times > 0; --times) {
        text += known[i];
        ends.push_back(static_cast<uint32_t>(text.size()));
        expected.insert(expected.end(), alone[i].begin(), alone[i].end());
      }
    }
    std::vector<uint32_t> ids;
    bpe.encode_pieces(text.data(), ends, text.data() + text.size(), state, ids);
    const Note note("round " + std::to_string(round));
    CHECK(ids == expected);
  }
}

}  // namespace

/// Pieces again and again, in one batch and in later ones, more of them than the caches hold: the ids are those of
/// every piece alone.
TEST(tokenizer, caches_change_no_ids) {
  Random random(7);
  encode_again_and_again(random, {"a", "b", "c", "\u00e9", "\u65e5"}, 8);
  encode_again_and_again(random, {"d", "e", "f", "g", "h", "i", "j", "k"}, 15);  // a byte is an id: up to 15 of a piece
}

/// Rules that join bytes of characters in any way and order, across their borders too: whatever a character begins as,
/// the result is that of its bytes.
TEST(tokenizer, characters_begin_as_their_bytes_would) {
  Random random(5);
  const Alphabet alphabet{"\u3042", "\u3044", "\u30fc", "\u043e", "\u043f",    "\u0440",
                          "\u00e9", "\u65e5", "a",      " ",      "\U0001f600"};
  const int vocabularies = quick() ? 100 : 2000;
  for (int v = 0; v < vocabularies; ++v) {
    BpeSpec spec;
    const auto add = [&](const std::string& text, uint32_t rank) {
      spec.text.insert(spec.text.end(), text.begin(), text.end());
      spec.text_ends.push_back(static_cast<uint32_t>(spec.text.size()));
      spec.kinds.push_back(static_cast<uint8_t>(TokenKind::kNormal));
      spec.ranks.push_back(rank);
    };
    for (uint32_t byte = 0; byte < 256; ++byte) {
      spec.byte_ids.push_back(byte);
      add(std::string(1, static_cast<char>(byte)), kNoId);
    }
    // Stretches of texts, so that many rules can act; in half of the vocabularies longer ones come later, as in trained
    // ones.
    std::vector<std::string> made;
    for (int64_t i = 0, n = random.integer(10, 120); i < n; ++i) {
      const std::string text = random_text(random, alphabet, 3);
      const int64_t size = random.integer(2, std::min<int64_t>(6, static_cast<int64_t>(text.size())));
      made.push_back(text.substr(static_cast<size_t>(random.integer(0, static_cast<int64_t>(text.size()) - size)),
                                 static_cast<size_t>(size)));
    }
    const auto shorter = [](const std::string& a, const std::string& b) { return a.size() < b.size(); };
    if (v % 2) std::stable_sort(made.begin(), made.end(), shorter);
    std::vector<std::string> seen;
    for (const std::string& text : made) {
      if (std::find(seen.begin(), seen.end(), text) != seen.end()) continue;
      add(text, static_cast<uint32_t>(v % 3 ? seen.size() : static_cast<size_t>(random.integer(0, 20))));
      seen.push_back(text);
    }
    const Bpe bpe(spec);
    EncodeState state;
    for (int i = 0; i < 30; ++i) {
      std::string text = random_text(random, alphabet, i % 5 ? random.integer(1, 8) : random.integer(20, 80));
      if (i % 7 == 0) text = text.substr(static_cast<size_t>(random.integer(0, 2)) % text.size());  // cut anywhere
      std::vector<uint32_t> ids;
      bpe.encode_pieces(text.data(), {static_cast<uint32_t>(text.size())}, text.data() + text.size(), state, ids);
      const Note note("vocabulary " + std::to_string(v) + ", text " + text);
      CHECK(ids == merge_by_definition(bpe, spec, text));
    }
  }
}

/// Valid UTF-8 of anything: the characters that parts of pipelines look for more often than others.
std::string random_text(Random& random, int64_t length) {
  static const std::array<uint32_t, 16> favourites{' ',    'a',   'B',  '1',    '\n',   '\r',   0x301,  0x200D,
                                                   0x2581, 0x130, 0xDF, 0x1100, 0x1161, 0x11A8, 0xAC00, 0x1F600};
  std::string text;
  for (int64_t i = 0; i < length; ++i) {
    uint32_t code = static_cast<uint32_t>(random.integer(1, 0x10FFFF));
    if (random.integer(0, 3) != 0 || (code >= 0xD800 && code < 0xE000)) code = favourites[random.bits() % 16];
    append_utf8(text, code);
  }
  return text;
}

TEST(tokenizer, random_expressions_match_within_the_text_or_are_refused) {
  static const std::array<const char*, 28> parts{
      "a", "b*",  "[a-z]", "[^\\s\\p{L}]", "\\p{L}", "\\s+",         "(",   ")",       "|", "?",
      "+", "*",   "{2}",   "{1,3}",        "(?:",    "(?=",          "(?!", "(?<=",    ".", "^",
      "$", "\\b", "\\R",   "(?i:",         "++",     "[[:alpha:]&&", "]",   "\\x{301}"};
  Random random(77);
  int compiled = 0;
  for (int i = 0; i < (quick() ? 2000 : 6000); ++i) {
    std::string pattern;
    for (int64_t n = random.integer(1, 9); n > 0; --n) pattern += parts[random.bits() % parts.size()];
    NOTE(pattern);
    const std::string text = random_text(random, random.integer(0, 40));
    try {
      const Regex regex(pattern, random.bits() % 2 ? RegexDialect::kFancy : RegexDialect::kOniguruma);
      ++compiled;
      std::vector<Regex::Match> matches;
      regex.find_all(text, matches);
      size_t last = 0;
      for (const Regex::Match& m : matches) {
        CHECK(m.begin >= last && m.end >= m.begin && m.end <= text.size());
        last = m.end;
      }
    } catch (const TokenizerError&) {
    } catch (const LimitError&) {
    }
  }
  CHECK(compiled > 200);
}

TEST(tokenizer, every_part_keeps_text_valid_and_its_origins_in_order) {
  Random random(78);
  const auto is_valid = [](const MappedText& text, size_t limit) {
    if (text.origins.size() != text.text.size()) return false;
    for (const Origin& o : text.origins) {
      if (o.begin > o.end || o.end > limit) return false;
    }
    for (size_t i = 0; i < text.text.size();) {
      const size_t length = utf8_length(static_cast<uint8_t>(text.text[i]));
      for (size_t k = 1; k < length; ++k) {
        if (i + k >= text.text.size() || (static_cast<uint8_t>(text.text[i + k]) & 0xC0) != 0x80) return false;
      }
      i += length;
    }
    return true;
  };
  for (int i = 0; i < (quick() ? 1000 : 4000); ++i) {
    const std::string source = random_text(random, random.integer(0, 60));
    MappedText text(source, 0, true);
    std::vector<Normalizer> normalizers;
    for (int64_t n = random.integer(1, 3); n > 0; --n) {
      const auto kind = static_cast<NormalizerKind>(random.bits() % static_cast<uint32_t>(NormalizerKind::kCount));
      const bool pattern = kind == NormalizerKind::kReplace || kind == NormalizerKind::kReplaceRegex;
      const bool mark = kind == NormalizerKind::kPrepend;
      normalizers.emplace_back(
          NormalizerSpec{kind, random.bits() & 15, pattern || mark ? "a" : "", pattern ? "bc" : ""});
    }
    normalize(normalizers, text);
    CHECK(is_valid(text, source.size()));
    Pieces pieces{std::move(text), {}};
    if (!pieces.text.text.empty()) pieces.ends.push_back(static_cast<uint32_t>(pieces.text.text.size()));
    for (int64_t n = random.integer(1, 3); n > 0; --n) {
      PreTokenizerSpec spec;
      spec.kind = static_cast<PreTokenizerKind>(random.bits() % static_cast<uint32_t>(PreTokenizerKind::kCount));
      spec.behavior = static_cast<SplitBehavior>(random.bits() % 5);
      spec.inverted = random.bits() % 2;
      spec.flags = random.bits() & 7;
      spec.number = 1;
      spec.text = spec.kind == PreTokenizerKind::kSplitRegex  ? "[a-z]+|\\s"
                  : spec.kind == PreTokenizerKind::kMetaspace ? "_"
                                                              : "a";
      PreTokenizer(spec).apply(pieces);
      CHECK(is_valid(pieces.text, source.size()));
      CHECK_EQ(pieces.ends.empty() ? 0 : pieces.ends.back(), pieces.text.text.size());
      CHECK(std::is_sorted(pieces.ends.begin(), pieces.ends.end()));
    }
  }
}

TEST(tokenizer, sixteen_threads_encode_at_once) {
  Random random(3);
  const Tokenizer tokenizer(small_tokenizer(random));
  std::vector<std::string> texts;
  for (int i = 0; i < 64; ++i) texts.push_back(random_text(random, i % 2 ? kHard : kPlain, 200) + "<|end|>abcabc");
  std::vector<std::vector<uint32_t>> expected(texts.size());
  for (size_t i = 0; i < texts.size(); ++i) tokenizer.encode(texts[i], true, true, expected[i]);
  std::vector<std::jthread> threads;
  std::array<int, 16> wrong{};
  for (size_t t = 0; t < wrong.size(); ++t) {
    threads.emplace_back([&, t] {
      std::vector<uint32_t> ids;
      for (size_t i = 0; i < 4 * texts.size(); ++i) {
        ids.clear();
        const size_t at = (i * 7 + t * 5) % texts.size();
        tokenizer.encode(texts[at], true, true, ids);
        wrong[t] += ids != expected[at];
      }
    });
  }
  threads.clear();
  for (const int count : wrong) CHECK_EQ(count, 0);
}

TEST(tokenizer, threads_share_a_long_text) {
  Random random(4);
  const Tokenizer tokenizer(small_tokenizer(random));
  std::string text = random_text(random, kPlain, 150'000) + "<|end|>";
  text += random_text(random, kHard, 100'000) + random_text(random, {"d", "e", "f", "g", "h", " "}, 100'000);
  std::vector<uint32_t> expected;
  tokenizer.encode(text, true, true, expected);
  for (const int threads : {2, 3, 7}) {
    const std::vector<IdParts> parts = tokenizer.encode_batch({text}, true, true, threads);
    CHECK(parts[0].size() > 2);
    std::vector<uint32_t> ids;
    for (const std::vector<uint32_t>& part : parts[0]) ids.insert(ids.end(), part.begin(), part.end());
    CHECK(ids == expected);
  }
}

// What is damaged is refused, or read as it stands, within the bounds of the text.
TEST(tokenizer, a_damaged_vocabulary_is_read_within_its_bounds) {
  const std::string whole =
      R"({"added_tokens": [{"id": 9}], "model": {"type": "BPE", "vocab": {"a": 0, "\u00e9": 1, "\ud83d\ude00\n" : 2, )"
      R"("aa":3, "a\u00e9": 4, "a\ud83d\ude00\n": 5}, "merges": ["a a", ["a", "\u00e9"], "a \ud83d\ude00\n"]}})";
  JsonVocabulary read;
  CHECK(read_json_vocabulary(whole, 6, 3, read));
  CHECK(read.merges == (std::vector<uint32_t>{0, 0, 3, 0, 1, 4, 0, 2, 5}));
  CHECK_EQ(read.tokens.size(), size_t{6});
  CHECK(read.tokens.text_of(read.tokens.tokens()[2]) == "\U0001f600\n");
  CHECK(read.rest == R"({"added_tokens": [{"id": 9}], "model": {"type": "BPE", "vocab":{}, "merges":[]}})");
  CHECK(!read_json_vocabulary(whole, 5, 3, read));
  CHECK(!read_json_vocabulary(whole, 6, 2, read));

  Random random(11);
  const auto below = [&](size_t n) { return static_cast<size_t>(random.integer(0, static_cast<int64_t>(n) - 1)); };
  const std::string signs = "\"\\{}[],: u0a\x80";
  for (size_t size = 0; size < whole.size(); ++size) CHECK(!read_json_vocabulary(whole.substr(0, size), 9, 9, read));
  for (int i = 0; i < 3000; ++i) {
    std::string text = whole;
    for (size_t changes = below(3) + 1; changes > 0; --changes) {
      text.replace(below(text.size()), below(3), 1, signs[below(signs.size())]);
    }
    if (read_json_vocabulary(text, 9, 9, read)) CHECK_EQ(read.merges.size() % 3, size_t{0});
  }
}
