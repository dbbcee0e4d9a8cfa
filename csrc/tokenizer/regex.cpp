// RegexCompiler turns an expression into a program for RegexRun, a backtracking machine whose alternatives lie on a
// stack of its own and whose steps are counted. Regex, at the end, holds the two together.

#include "tokenizer/regex.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "base/error.h"
#include "tokenizer/unicode.h"

namespace llmcore {
namespace {

constexpr uint32_t kLastCode = 0x10FFFF;
constexpr size_t kMaxPattern = 1 << 16;
constexpr size_t kMaxProgram = 1 << 14;
constexpr int kMaxDepth = 64;
constexpr int32_t kNoEnd = 0x7FFFFFFF;
constexpr int32_t kMaxCount = 1000;
// A look behind is tried at every length that its expression may have.
constexpr int32_t kMaxBehind = 64;
constexpr size_t kStepsPerByte = 400;
constexpr size_t kFreeSteps = 1 << 20;
constexpr size_t kMaxStack = 1 << 20;
constexpr size_t kMaxSplits = 256;  // that know what may follow,
constexpr int32_t kNoStarts = -1;   // and what others have for it

enum Assertion : int32_t { kTextBegin, kTextEnd, kTextEndOrNewline, kLineBegin, kLineEnd, kWordEdge, kNoWordEdge };
enum SubKind : int32_t { kAhead, kNotAhead, kBehind, kNotBehind, kAtomic };

}  // namespace

/// Recursive descent over the pattern, whose nesting is bounded. Code is relative, so that it can be repeated by
/// copying.
class RegexCompiler {
 public:
  using Op = Regex::Op;
  using Inst = Regex::Inst;

  RegexCompiler(std::string_view pattern, RegexDialect dialect, Regex& regex)
      : pattern_(pattern), dialect_(dialect), regex_(regex) {
    if (dialect == RegexDialect::kFancy) regex_.words_ = Words::kRust;
  }

  void compile() {
    Code code = alternatives(0);
    if (at_ < pattern_.size()) fail("an unmatched )");
    regex_.may_be_empty_ = code.min == 0;
    code.insts.push_back({Op::kMatch});
    regex_.program_ = std::move(code.insts);
    for (const CodeSet& set : regex_.sets_) set_starts_.push_back(starts_of(set));
    if (regex_.may_be_empty_) {
      regex_.starts_.fill(true);
    } else {
      regex_.starts_ = starts_from(0);
    }
    for (size_t pc = 0; pc < regex_.program_.size(); ++pc) find_choices(pc);
    for (CodeSet& set : regex_.sets_) set.index();
  }

 private:
  struct Code {
    std::vector<Inst> insts;
    int32_t min = 0, max = 0;  // length in characters
    bool one_set = false;      // insts is a single kSet
  };
  struct Flags {
    bool ignore_case = false, dot_all = false, multi_line = false, extended = false;
  };

  [[noreturn]] void fail(const std::string& what) const {
    throw TokenizerError("regular expression: " + what + " at byte " + std::to_string(at_));
  }
  bool more() const { return at_ < pattern_.size(); }
  bool looking_at(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }
  bool take(std::string_view text) {
    if (!looking_at(text)) return false;
    at_ += text.size();
    return true;
  }
  uint32_t take_code() {
    if (!more()) fail("the end");
    const auto* p = reinterpret_cast<const uint8_t*>(pattern_.data()) + at_;
    at_ += utf8_length(*p);
    return decode_utf8(p);
  }

  void append(Code& to, const Code& from) {
    to.insts.insert(to.insts.end(), from.insts.begin(), from.insts.end());
    if (to.insts.size() > kMaxProgram) throw LimitError("regular expression: too large when written out");
    to.min = static_cast<int32_t>(std::min<int64_t>(int64_t{to.min} + from.min, kNoEnd));
    to.max = static_cast<int32_t>(std::min<int64_t>(int64_t{to.max} + from.max, kNoEnd));
    to.one_set = false;
  }

  /// `cased`: the set already has what differs by case alone, or never gets it.
  Code of_set(CodeSet set, bool cased = false) {
    set.finish();
    if (flags_.ignore_case && !cased) set.add_cases();
    const auto same = [&](const CodeSet& known) {
      return std::equal(known.ranges().begin(), known.ranges().end(), set.ranges().begin(), set.ranges().end(),
                        [](const auto& a, const auto& b) { return a.first == b.first && a.last == b.last; });
    };
    const auto found = std::find_if(regex_.sets_.begin(), regex_.sets_.end(), same);
    const auto index = static_cast<int32_t>(found - regex_.sets_.begin());
    if (found == regex_.sets_.end()) {
      if (regex_.sets_.size() == 1024) throw LimitError("regular expression: more than 1,024 sets of characters");
      regex_.sets_.push_back(std::move(set));
    }
    return {{{Op::kSet, index}}, 1, 1, true};
  }
  Code of_code(uint32_t code) {
    CodeSet set;
    set.add(code, code);
    return of_set(std::move(set));
  }
  static Code of_assertion(int32_t kind) { return {{{Op::kAssert, kind}}, 0, 0, false}; }

  Code alternatives(int depth) {
    if (depth > kMaxDepth) throw LimitError("regular expression: nested too deep");
    const Flags outer = flags_;
    std::vector<Code> branches{sequence(depth)};
    while (take("|")) branches.push_back(sequence(depth));
    flags_ = outer;
    Code code = std::move(branches.back());
    for (size_t i = branches.size() - 1; i-- > 0;) {
      Code first = std::move(branches[i]);
      const auto skip = static_cast<int32_t>(first.insts.size());
      Code both{{{Op::kSplit, 1, skip + 2}}, 0, 0, false};
      const int32_t min = std::min(first.min, code.min), max = std::max(first.max, code.max);
      append(both, first);
      both.insts.push_back({Op::kJump, static_cast<int32_t>(code.insts.size()) + 1});
      append(both, code);
      both.min = min;
      both.max = max;
      code = std::move(both);
    }
    return code;
  }

  Code sequence(int depth) {
    Code code;
    bool single = true, any = false;
    while (more() && !looking_at("|") && !looking_at(")")) {
      if (flags_.extended && skip_blank()) continue;
      Code item = repeated(depth);
      single = single && !any && item.one_set;
      any = true;
      append(code, item);
    }
    code.one_set = single && any;
    return code;
  }

  bool skip_blank() {
    if (take("#")) {
      while (more() && pattern_[at_] != '\n') ++at_;
      return true;
    }
    return take(" ") || take("\n") || take("\t") || take("\r");
  }

  Code repeated(int depth) {
    Code code = atom(depth);
    while (more()) {
      int32_t min = 0, max = kNoEnd;
      bool braces = false;
      const size_t before = at_;
      if (take("*")) {
      } else if (take("+")) {
        min = 1;
      } else if (take("?")) {
        max = 1;
      } else if (looking_at("{")) {
        if (!counts(min, max)) {
          at_ = before;
          break;
        }
        braces = true;
      } else {
        break;
      }
      const bool lazy = take("?");
      const bool possessive = !lazy && !(braces && dialect_ == RegexDialect::kOniguruma) && take("+");
      code = repeat(code, min, max, lazy);
      if (possessive) code = sub(kAtomic, code);
    }
    return code;
  }

  bool counts(int32_t& min, int32_t& max) {
    take("{");
    const auto number = [&](int32_t& value) {
      const size_t from = at_;
      int64_t n = 0;
      while (more() && pattern_[at_] >= '0' && pattern_[at_] <= '9')
        n = std::min<int64_t>(n * 10 + (pattern_[at_++] - '0'), 1 << 20);
      if (at_ > from) value = static_cast<int32_t>(n);
      return at_ > from;
    };
    const bool first = number(min);
    if (!first) min = 0;
    bool second = false;
    if (take(",")) {
      second = number(max);
    } else {
      max = min;
    }
    if (!take("}") || (!first && !second)) return false;
    if (min > kMaxCount || (max != kNoEnd && max > kMaxCount))
      throw LimitError("regular expression: a count above 1,000");
    if (max < min) fail("a range of counts that is upside down");
    return true;
  }

  Code repeat(const Code& body, int32_t min, int32_t max, bool lazy) {
    const auto times = [](int32_t length, int32_t n) {
      return static_cast<int32_t>(std::min<int64_t>(int64_t{length} * n, kNoEnd));
    };
    if (body.one_set && !lazy) {
      return {{{Op::kRepeat, body.insts[0].a, min, max}}, min, max, false};
    }
    Code code;
    for (int32_t i = 0; i < min; ++i) append(code, body);
    const auto size = static_cast<int32_t>(body.insts.size());
    const auto choice = [&](int32_t go, int32_t skip) {
      return lazy ? Inst{Op::kSplit, skip, go} : Inst{Op::kSplit, go, skip};
    };
    if (max == kNoEnd) {
      const bool guarded = body.min == 0;
      const int32_t slot = guarded ? regex_.slots_++ : 0;
      const int32_t extra = guarded ? 2 : 0;
      code.insts.push_back(choice(1, size + extra + 2));
      if (guarded) code.insts.push_back({Op::kMark, slot});
      append(code, body);
      if (guarded) code.insts.push_back({Op::kCheck, slot});
      code.insts.push_back({Op::kJump, -(size + extra + 1)});
    } else {
      for (int32_t i = min; i < max; ++i) {
        code.insts.push_back(choice(1, (max - i) * (size + 1)));
        append(code, body);
      }
    }
    code.min = times(body.min, min);
    code.max = max == kNoEnd ? (body.max == 0 ? 0 : kNoEnd) : times(body.max, max);
    code.one_set = false;
    return code;
  }

  Code sub(int32_t kind, const Code& body) {
    Code code{{{Op::kSub, kind, static_cast<int32_t>(body.insts.size()) + 1, 0}}, 0, 0, false};
    if (kind == kBehind || kind == kNotBehind) {
      if (body.max > kMaxBehind) throw LimitError("regular expression: a look behind of more than 64 characters");
      // Both lengths in one field.
      code.insts[0].c = body.min << 8 | body.max;
    }
    append(code, body);
    code.insts.push_back({Op::kMatch});
    if (kind != kAtomic) code.min = code.max = 0;
    return code;
  }

  Code group(int depth) {
    if (!take("?")) return closed(depth);
    if (take(":")) return closed(depth);
    if (take("=")) return sub(kAhead, closed(depth));
    if (take("!")) return sub(kNotAhead, closed(depth));
    if (take("<=")) return sub(kBehind, closed(depth));
    if (take("<!")) return sub(kNotBehind, closed(depth));
    if (take(">")) return sub(kAtomic, closed(depth));
    if (take("#")) {
      while (more() && pattern_[at_] != ')') ++at_;
      if (!take(")")) fail("a comment without end");
      return {};
    }
    if (take("<") || take("P<")) {
      while (more() && pattern_[at_] != '>') ++at_;
      if (!take(">")) fail("a name without end");
      return closed(depth);
    }
    bool on = true;
    Flags flags = flags_;
    while (more()) {
      const char c = pattern_[at_++];
      if (c == '-') {
        on = false;
      } else if (c == 'i') {
        flags.ignore_case = on;
      } else if (c == 'm') {
        (dialect_ == RegexDialect::kOniguruma ? flags.dot_all : flags.multi_line) = on;
      } else if (c == 's' && dialect_ == RegexDialect::kFancy) {
        flags.dot_all = on;
      } else if (c == 'x') {
        flags.extended = on;
      } else if (c == ')') {
        flags_ = flags;  // for the rest of the enclosing group
        return {};
      } else if (c == ':') {
        const Flags outer = flags_;
        flags_ = flags;
        Code code = closed(depth);
        flags_ = outer;
        return code;
      } else {
        break;
      }
    }
    fail("a group of a kind that isn't supported");
  }

  Code closed(int depth) {
    Code code = alternatives(depth + 1);
    if (!take(")")) fail("a group without )");
    return code;
  }

  Code atom(int depth) {
    if (take("(")) return group(depth);
    if (take("[")) return of_set(bracket(depth), true);
    if (take(".")) {
      CodeSet set;
      if (!flags_.dot_all) set.add('\n', '\n');
      set.finish();
      set.invert();
      return of_set(std::move(set), true);
    }
    const bool lines = dialect_ == RegexDialect::kOniguruma || flags_.multi_line;
    if (take("^")) return of_assertion(lines ? kLineBegin : kTextBegin);
    if (take("$")) return of_assertion(lines ? kLineEnd : kTextEnd);
    if (looking_at("*") || looking_at("+") || looking_at("?")) fail("nothing to repeat");
    if (take("\\")) return escape();
    return of_code(take_code());
  }

  Code escape() {
    if (!more()) fail("a \\ at the end");
    if (take("A")) return of_assertion(kTextBegin);
    if (take("z")) return of_assertion(kTextEnd);
    if (take("Z")) return of_assertion(kTextEndOrNewline);
    if (take("b")) return of_assertion(kWordEdge);
    if (take("B")) return of_assertion(kNoWordEdge);
    if (take("R")) {
      CodeSet newlines;
      newlines.add('\n', '\r');
      newlines.add(0x85, 0x85);
      newlines.add(0x2028, 0x2029);
      Code pair = of_code('\r');
      append(pair, of_code('\n'));
      const Code one = of_set(std::move(newlines));
      Code both{{{Op::kSplit, 1, 4}}, 0, 0, false};
      append(both, pair);
      both.insts.push_back({Op::kJump, 2});
      append(both, one);
      both.min = 1;
      both.max = 2;
      return sub(kAtomic, both);
    }
    CodeSet set;
    if (class_escape(set, false)) return of_set(std::move(set), dialect_ == RegexDialect::kOniguruma);
    return of_code(code_escape());
  }

  /// \s \d \w \h \p and their opposites; false when it is something else.
  bool class_escape(CodeSet& set, bool in_brackets) {
    const char c = pattern_[at_];
    switch (c) {
      case 's':
      case 'S':
        set = space_set();
        break;
      case 'd':
      case 'D':
        set = property_set("nd");
        break;
      case 'w':
      case 'W':
        set = word_set(in_brackets && regex_.words_ == Words::kOniguruma ? Words::kOnigurumaInBrackets : regex_.words_);
        break;
      case 'h':
      case 'H':
        if (dialect_ != RegexDialect::kOniguruma) return false;
        set.add('0', '9');
        set.add('A', 'F');
        set.add('a', 'f');
        break;
      case 'N':
        if (dialect_ != RegexDialect::kOniguruma) return false;
        set.add('\n', '\n');
        break;
      case 'p':
      case 'P': {
        ++at_;
        std::string_view name;
        if (take("{")) {
          const size_t end = pattern_.find('}', at_);
          if (end == pattern_.npos) fail("a property without }");
          name = pattern_.substr(at_, end - at_);
          at_ = end + 1;
        } else {
          if (!more()) fail("a property without a name");
          name = pattern_.substr(at_++, 1);
        }
        set = property_set(name);
        if (c == 'P') set.invert();
        return true;
      }
      default:
        return false;
    }
    ++at_;
    set.finish();
    if (c == 'S' || c == 'D' || c == 'W' || c == 'H' || c == 'N') set.invert();
    return true;
  }

  /// The character behind a backslash.
  uint32_t code_escape() {
    const char c = pattern_[at_];
    const auto hex = [&](size_t least, size_t most) {
      uint32_t value = 0;
      size_t n = 0;
      for (; n < most && more(); ++n, ++at_) {
        const char d = pattern_[at_];
        const int digit = d >= '0' && d <= '9'   ? d - '0'
                          : d >= 'a' && d <= 'f' ? d - 'a' + 10
                          : d >= 'A' && d <= 'F' ? d - 'A' + 10
                                                 : -1;
        if (digit < 0) break;
        value = value * 16 + static_cast<uint32_t>(digit);
      }
      if (n < least || value > kLastCode || (value >= 0xD800 && value < 0xE000)) fail("a number that is no character");
      return value;
    };
    if (c == 'x' || c == 'u' || c == 'U') {
      ++at_;
      if (take("{")) {
        const uint32_t value = hex(1, 8);
        if (!take("}")) fail("a number without }");
        return value;
      }
      return c == 'x' ? hex(1, 2) : c == 'u' ? hex(4, 4) : hex(8, 8);
    }
    constexpr std::string_view kNames = "nrtfvae0";
    constexpr std::string_view kCodes("\n\r\t\f\v\a\x1B\0", 8);
    const size_t named = kNames.find(c);
    if (named != kNames.npos) {
      ++at_;
      return static_cast<uint8_t>(kCodes[named]);
    }
    if ((c >= '1' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      fail(std::string("\\") + c + ", which isn't supported");
    }
    return take_code();
  }

  /// What stands between [ and ].
  CodeSet bracket(int depth) {
    if (depth > kMaxDepth) throw LimitError("regular expression: nested too deep");
    const bool inverted = take("^");
    CodeSet all, set;
    bool first = true, intersected = false;
    const auto close_part = [&] {
      set.finish();
      if (flags_.ignore_case) set.add_cases();
      if (intersected) {
        all.intersect(set);
      } else {
        all = std::move(set);
      }
      set = CodeSet();
    };
    while (true) {
      if (!more()) fail("a [ without ]");
      if (!first && take("]")) break;
      first = false;
      if (take("&&")) {
        close_part();
        intersected = true;
        continue;
      }
      if (dialect_ == RegexDialect::kFancy && (looking_at("--") || looking_at("~~"))) {
        fail("a difference of sets, which isn't supported");
      }
      if (looking_at("[:")) {
        const size_t end = pattern_.find(":]", at_);
        if (end != pattern_.npos) {
          set.add(posix_class(pattern_.substr(at_ + 2, end - at_ - 2)));
          at_ = end + 2;
          continue;
        }
      }
      if (take("[")) {
        set.add(bracket(depth + 1));
        continue;
      }
      uint32_t from = 0;
      if (take("\\")) {
        if (!more()) fail("a \\ at the end");
        CodeSet named;
        if (class_escape(named, true)) {
          set.add(named);
          continue;
        }
        from = take("b") ? 8 : code_escape();
      } else {
        from = take_code();
      }
      uint32_t to = from;
      if (looking_at("-") && at_ + 1 < pattern_.size() && pattern_[at_ + 1] != ']' && pattern_[at_ + 1] != '[') {
        const size_t before = at_;
        take("-");
        if (take("\\")) {
          CodeSet named;
          if (more() && class_escape(named, true)) {  // then the - stands for itself
            at_ = before;
            take("-");
            set.add(from, from);
            set.add('-', '-');
            continue;
          }
          to = code_escape();
        } else {
          to = take_code();
        }
        if (to < from) fail("a range that is upside down");
      }
      set.add(from, to);
    }
    close_part();
    if (inverted) all.invert();
    return all;
  }

  /// What [:name:] stands for: characters of ASCII alone in Rust.
  CodeSet posix_class(std::string_view name) const {
    if (dialect_ != RegexDialect::kFancy) return property_set(name, true);
    const bool inverted = name.starts_with('^');
    CodeSet set = property_set(name.substr(inverted), true), ascii;
    ascii.add(0, 0x7F);
    ascii.finish();
    set.intersect(ascii);
    if (inverted) set.invert();
    return set;
  }

  /// The bytes that what stands at `from` may begin with: all of them where it may match nothing.
  Regex::Bytes starts_from(size_t from) const {
    Regex::Bytes starts{};
    const auto add = [&](int32_t set) {
      const Regex::Bytes& more = set_starts_[static_cast<size_t>(set)];
      for (size_t byte = 0; byte < starts.size(); ++byte) starts[byte] |= more[byte];
    };
    std::vector<bool> seen(regex_.program_.size());
    std::vector<size_t> pending{from};
    while (!pending.empty()) {
      const size_t pc = pending.back();
      pending.pop_back();
      if (seen[pc]) continue;
      seen[pc] = true;
      const Inst& inst = regex_.program_[pc];
      const auto go = [&](int32_t offset) { pending.push_back(pc + static_cast<size_t>(offset)); };
      switch (inst.op) {
        case Op::kSet:
          add(inst.a);
          break;
        case Op::kRepeat:
          add(inst.a);
          if (inst.b == 0) go(1);
          break;
        case Op::kSplit:
          go(inst.a);
          go(inst.b);
          break;
        case Op::kJump:
          go(inst.a);
          break;
        case Op::kSub:  // what looks ahead or behind is left out
          go(inst.a == kAtomic ? 1 : inst.b + 1);
          break;
        case Op::kMatch:
          starts.fill(true);
          return starts;
        default:
          go(1);
      }
    }
    return starts;
  }

  /// Lets a kSplit know what its two choices may begin with, if that isn't everything.
  void find_choices(size_t pc) {
    Inst& inst = regex_.program_[pc];
    if (inst.op != Op::kSplit) return;
    inst.c = kNoStarts;
    if (regex_.splits_.size() == kMaxSplits) return;
    const auto at = [&](int32_t offset) { return starts_from(pc + static_cast<size_t>(offset)); };
    const Regex::Starts starts{at(inst.a), at(inst.b)};
    const auto all = [](const Regex::Bytes& bytes) {
      return std::all_of(bytes.begin(), bytes.end(), [](bool b) { return b; });
    };
    if (all(starts.first) && all(starts.other)) return;
    inst.c = static_cast<int32_t>(regex_.splits_.size());
    regex_.splits_.push_back(starts);
  }

  static Regex::Bytes starts_of(const CodeSet& set) {
    Regex::Bytes starts{};
    const auto lead = [](uint32_t code) -> uint32_t {
      return code < 0x80      ? code
             : code < 0x800   ? 0xC0 | code >> 6
             : code < 0x10000 ? 0xE0 | code >> 12
                              : 0xF0 | code >> 18;
    };
    for (const auto& r : set.ranges()) {
      for (uint32_t byte = lead(r.first); byte <= lead(r.last); ++byte) starts[byte] = true;
    }
    return starts;
  }

  std::string_view pattern_;
  RegexDialect dialect_;
  Regex& regex_;
  std::vector<Regex::Bytes> set_starts_;  // bytes that characters of each set may begin with
  size_t at_ = 0;
  Flags flags_;
};

/// One search through a text.
class RegexRun {
 public:
  RegexRun(const Regex& regex, std::string_view text)
      : regex_(regex),
        text_(text),
        bytes_(reinterpret_cast<const uint8_t*>(text.data())),
        slots_(static_cast<size_t>(regex.slots_), kNowhere),
        steps_left_(kFreeSteps + kStepsPerByte * text.size()) {}

  bool match_at(size_t begin, size_t& end) {
    std::fill(slots_.begin(), slots_.end(), kNowhere);
    return run(0, begin, end);
  }

 private:
  static constexpr size_t kNowhere = ~size_t{0};
  enum class Kind : uint8_t { kGo, kRepeat, kSlot };
  struct Choice {
    Kind kind;
    uint32_t pc;          // or the slot
    size_t at, at_least;  // or what the slot held; kRepeat: places from `at` down to `at_least`
  };

  void step() {
    if (steps_left_-- == 0) {
      throw LimitError("regular expression: matching a text of " + std::to_string(text_.size()) +
                       " bytes takes out of proportion many steps");
    }
  }
  void push(Choice choice) {
    if (stack_.size() == kMaxStack) throw LimitError("regular expression: more than 1,048,576 choices open at once");
    stack_.push_back(choice);
  }
  size_t before(size_t at) const {
    do --at;
    while ((bytes_[at] & 0xC0) == 0x80);
    return at;
  }

  bool holds(int32_t assertion, size_t at) const {
    const auto word = [&](size_t i) { return is_word(decode_utf8(bytes_ + i), regex_.words_); };
    switch (assertion) {
      case kTextBegin:
        return at == 0;
      case kTextEnd:
        return at == text_.size();
      case kTextEndOrNewline:
        return at == text_.size() || (at + 1 == text_.size() && text_[at] == '\n');
      case kLineBegin:
        return at == 0 || (text_[at - 1] == '\n' && at < text_.size());
      case kLineEnd:
        return at == text_.size() || text_[at] == '\n';
      default: {
        const bool left = at > 0 && word(before(at)), right = at < text_.size() && word(at);
        return (left != right) == (assertion == kWordEdge);
      }
    }
  }

  bool sub_matches(const Regex::Inst& inst, size_t body, size_t at, size_t& end) {
    if (inst.a != kBehind && inst.a != kNotBehind) return run(body, at, end);
    size_t from = at;
    const int32_t least = inst.c >> 8, most = inst.c & 255;
    for (int32_t length = 0; length <= most; ++length) {
      if (length >= least && run(body, from, end, at)) return true;
      if (from == 0) return false;
      from = before(from);
    }
    return false;
  }

  /// Runs from `pc`; a match must end at `wanted` if that is given. What nested runs leave on the stack is theirs.
  bool run(size_t pc, size_t at, size_t& end, size_t wanted = kNowhere) {
    const size_t base = stack_.size();
    while (true) {
      step();
      const Regex::Inst& inst = regex_.program_[pc];
      bool ok = true;
      switch (inst.op) {
        case Regex::Op::kSet:
          ok = at < text_.size() && regex_.sets_[static_cast<size_t>(inst.a)].has(decode_utf8(bytes_ + at));
          if (ok) at += utf8_length(bytes_[at]);
          ++pc;
          break;
        case Regex::Op::kRepeat:
          ok = repeat(inst, pc, at);
          ++pc;
          break;
        case Regex::Op::kSplit: {
          bool first = true, other = true;
          if (inst.c != kNoStarts && at < text_.size()) {
            const Regex::Starts& starts = regex_.splits_[static_cast<size_t>(inst.c)];
            first = starts.first[bytes_[at]];
            other = starts.other[bytes_[at]];
          }
          if (first && other) push({Kind::kGo, static_cast<uint32_t>(pc + static_cast<size_t>(inst.b)), at, 0});
          ok = first || other;
          pc += static_cast<size_t>(first ? inst.a : inst.b);
          break;
        }
        case Regex::Op::kJump:
          pc += static_cast<size_t>(static_cast<std::ptrdiff_t>(inst.a));
          break;
        case Regex::Op::kAssert:
          ok = holds(inst.a, at);
          ++pc;
          break;
        case Regex::Op::kSub: {
          size_t reached = at;
          const size_t body = pc + 1;
          const size_t open = stack_.size();
          const bool found = sub_matches(inst, body, at, reached);
          stack_.resize(open);
          ok = found == (inst.a != kNotAhead && inst.a != kNotBehind);
          if (ok && inst.a == kAtomic) at = reached;
          pc = body + static_cast<size_t>(inst.b);
          break;
        }
        case Regex::Op::kMark: {
          size_t& slot = slots_[static_cast<size_t>(inst.a)];
          push({Kind::kSlot, static_cast<uint32_t>(inst.a), slot, 0});
          slot = at;
          ++pc;
          break;
        }
        case Regex::Op::kCheck:  // a round that matched nothing isn't followed by another
          pc += slots_[static_cast<size_t>(inst.a)] == at ? 2 : 1;
          break;
        case Regex::Op::kMatch:
          ok = wanted == kNowhere || at == wanted;
          if (ok) {
            end = at;
            stack_.resize(base);
            return true;
          }
          break;
      }
      if (!ok && !back(base, pc, at)) return false;
    }
  }

  bool repeat(const Regex::Inst& inst, size_t pc, size_t& at) {
    const CodeSet& set = regex_.sets_[static_cast<size_t>(inst.a)];
    size_t least = at;
    int32_t count = 0;
    for (; count < inst.c && at < text_.size() && set.has(decode_utf8(bytes_ + at)); ++count) {
      at += utf8_length(bytes_[at]);
      if (count + 1 == inst.b) least = at;
      if ((count & 7) == 7) step();
    }
    if (count < inst.b) return false;
    if (at > least) push({Kind::kRepeat, static_cast<uint32_t>(pc + 1), before(at), least});
    return true;
  }

  /// Goes back to the last choice above `base`; false when there is none.
  bool back(size_t base, size_t& pc, size_t& at) {
    while (stack_.size() > base) {
      Choice& choice = stack_.back();
      if (choice.kind == Kind::kSlot) {
        slots_[choice.pc] = choice.at;
        stack_.pop_back();
        continue;
      }
      pc = choice.pc;
      at = choice.at;
      if (choice.kind == Kind::kRepeat && at > choice.at_least) {
        choice.at = before(at);
      } else {
        stack_.pop_back();
      }
      return true;
    }
    return false;
  }

  const Regex& regex_;
  std::string_view text_;
  const uint8_t* bytes_;
  std::vector<Choice> stack_;
  std::vector<size_t> slots_;
  size_t steps_left_;
};

Regex::Regex(std::string_view pattern, RegexDialect dialect) {
  if (pattern.size() > kMaxPattern) throw LimitError("regular expression: more than 65,536 bytes");
  RegexCompiler(pattern, dialect, *this).compile();
}

void Regex::find_all(std::string_view text, std::vector<Match>& matches) const {
  RegexRun run(*this, text);
  size_t last_end = ~size_t{0};
  for (size_t at = 0; at <= text.size();) {
    const bool possible = at == text.size() ? may_be_empty_ : starts_[static_cast<uint8_t>(text[at])];
    size_t end = at;
    if (possible && run.match_at(at, end)) {
      const bool empty = end == at;
      if (!empty || at != last_end) {
        matches.push_back({at, end});
        last_end = end;
      }
      if (!empty) {
        at = end;
        continue;
      }
    }
    at += at < text.size() ? utf8_length(static_cast<uint8_t>(text[at])) : 1;
  }
}

}  // namespace llmcore
