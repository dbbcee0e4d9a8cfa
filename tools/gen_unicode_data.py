"""Writes csrc/tokenizer/unicode_data.cpp: what normalisers, pre-tokenisers and regular expressions ask of Unicode.

    pip install unicodedata2==16.0.0 regex==2026.11.19 tokenizers==0.23.3
    python tools/gen_unicode_data.py > csrc/tokenizer/unicode_data.cpp

Categories and case pairs are Unicode 16's; scripts and grapheme breaks are those of the `regex` package. The rest is
asked of Hugging Face tokenizers one code point at a time, because each of its parts knows another version of Unicode,
and ids are only equal when ours knows the same.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterable

import regex
import tokenizers
import unicodedata2
from regex import _regex_core
from tokenizers import normalizers, pre_tokenizers

PINNED = {"unicodedata2": "16.0.0", "regex": "2026.11.19", "tokenizers": "0.23.3"}
BLOCK = 128
GROUPS = {"L": "ultmo", "M": "nce", "N": "dlo", "P": "cdseifo", "S": "mcko", "Z": "slp", "C": "cfson"}
CODES = [code for code in range(0x110000) if not 0xD800 <= code < 0xE000]
# In the order of `Category` in csrc/tokenizer/unicode_data.h.
CATEGORIES = [group + kind for group, kinds in GROUPS.items() for kind in kinds]
HANGUL = range(0xAC00, 0xD7A4)


def rows(values: Iterable[object], width: int = 30) -> str:
    """`values` as the lines of a C++ initialiser."""
    items = [str(value) for value in values]
    return "\n".join(",".join(items[i : i + width]) + "," for i in range(0, len(items), width))


def two_stage(name: str, value_of: dict[int, int], default: int = 0) -> None:
    """Prints a table of one byte per code point."""
    blocks: dict[tuple[int, ...], int] = {}
    index = []
    for start in range(0, 0x110000, BLOCK):
        block = tuple(value_of.get(code, default) for code in range(start, start + BLOCK))
        index.append(blocks.setdefault(block, len(blocks)))
    data = [value for block in blocks for value in block]
    print(f"const uint16_t k{name}Index[{len(index)}] = {{\n{rows(index)}\n}};")
    print(f"const uint8_t k{name}Blocks[{len(data)}] = {{\n{rows(data)}\n}};\n")


def bert(**wanted: bool) -> normalizers.Normalizer:
    """BERT's normalizer with all off but `wanted`."""
    options = dict.fromkeys(("clean_text", "handle_chinese_chars", "strip_accents", "lowercase"), False)
    return normalizers.BertNormalizer(**{**options, **wanted})


def traits() -> dict[int, int]:
    """The bits of `CodeTrait` in csrc/tokenizer/unicode_data.h."""
    seconds = {second for _, second, _ in compositions()} | set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3))
    joining = seconds | combining_classes().keys()
    nfc = normalizers.NFC()
    isolated = pre_tokenizers.Punctuation("isolated")
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.Whitespace()
    clean, accents, chinese = bert(clean_text=True), bert(strip_accents=True), bert(handle_chinese_chars=True)
    strip = normalizers.StripAccents()

    def pieces(splitter: pre_tokenizers.PreTokenizer, code: int) -> int:
        return len(splitter.pre_tokenize_str("a" + chr(code) + "a"))

    tests: list[Callable[[int], bool]] = [
        lambda c: clean.normalize_str(chr(c)) == "",
        lambda c: pieces(isolated, c) == 3,
        lambda c: accents.normalize_str(chr(c)) == "",
        lambda c: strip.normalize_str(chr(c)) == "",
        lambda c: pieces(digits, c) == 3,
        lambda c: pieces(words, c) == 1,
        lambda c: chinese.normalize_str(chr(c)) != chr(c),
        lambda c: c in joining or nfc.normalize_str(chr(c)) != chr(c),
    ]
    return {code: sum(bool(test(code)) << bit for bit, test in enumerate(tests)) for code in CODES}


def onigurumas(expression: str) -> set[int]:
    """The code points that Oniguruma, as tokenizers has it, matches `expression` with."""
    everything = "".join(map(chr, CODES))
    kept = normalizers.Replace(tokenizers.Regex(expression), "").normalize_str(everything)
    return set(CODES) - set(map(ord, kept))


def properties() -> None:
    """Prints the properties that categories don't give."""
    names = ("alphabetic", "lowercase", "uppercase", "emoji", "extendedpictographic")
    entries = []
    for name in names:
        ranges: list[list[int]] = []
        for code in sorted(onigurumas(rf"\p{{{name}}}")):
            if ranges and code == ranges[-1][1] + 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
        variable = f"k{name.capitalize()}"
        print(f"static const uint32_t {variable}[{len(ranges)}][2] = {{")
        print(rows((f"{{{a},{b}}}" for a, b in ranges), 12) + "\n};")
        entries.append(f'{{"{name}",{len(ranges)},{variable}}}')
    print(f"const NamedRanges kProperties[{len(names)}] = {{{','.join(entries)}}};")
    print(f"const size_t kPropertyCount = {len(names)};\n")


def graphemes(category: dict[int, int]) -> dict[int, int]:
    """`GraphemeBreak` by code point; nothing is known of what Unicode 16 hasn't assigned."""
    kinds = {
        1: regex.compile(r"[\p{GCB=Extend}\p{GCB=SpacingMark}]"),
        2: regex.compile(r"\p{GCB=ZWJ}"),
        3: regex.compile(r"\p{GCB=Prepend}"),
        4: regex.compile(r"[\p{GCB=Control}\p{GCB=CR}\p{GCB=LF}]"),
    }
    pictographs, unassigned = onigurumas(r"\p{Extended_Pictographic}"), CATEGORIES.index("Cn")

    def kind(code: int) -> int:
        if code in pictographs:
            return 5
        found = (k for k, e in kinds.items() if e.match(chr(code)))
        return 0 if category[code] == unassigned else next(found, 0)

    return {code: kind(code) for code in CODES}


def scripts() -> tuple[dict[int, int], dict[str, int]]:
    """The script of each code point, as the place of its first name, and all names -> that place."""
    values: dict[str, int] = _regex_core.PROPERTIES["SCRIPT"][1]
    name_of: dict[int, str] = {}
    for name, value in values.items():
        name_of.setdefault(value, name)
    places = {value: place for place, value in enumerate(name_of)}
    found = {}
    for value, name in name_of.items():
        one = regex.compile(rf"\p{{Script={name}}}")
        found.update({code: places[value] for code in CODES if one.match(chr(code))})
    return found, {name.lower(): places[value] for name, value in values.items()}


def hf_scripts(script: dict[int, int]) -> dict[int, int]:
    """The class of each code point for UnicodeScripts: 0 goes with everything, equal numbers with each other."""
    splitter = pre_tokenizers.UnicodeScripts()

    def same(a: int, b: int) -> bool:
        return len(splitter.pre_tokenize_str(chr(a) + chr(b))) == 1

    found: dict[int, int] = {}
    leaders: list[int] = []
    usual: dict[int, int] = {}
    for code in CODES:
        if same(0x61, code) and same(0x431, code):
            continue
        place = usual.get(script[code])
        if place is None or not same(leaders[place], code):
            place = next((i for i, leader in enumerate(leaders) if same(leader, code)), len(leaders))
            if place == len(leaders):
                leaders.append(code)
            usual.setdefault(script[code], place)
        found[code] = place + 1
    return found


ARRAYS: list[str] = []


def mappings(name: str, change: Callable[[str], str], skip: Iterable[int] = ()) -> None:
    """Prints what single code points become, as three arrays: code points, ends, and what they become one by one."""
    codes, ends, text = [], [], []
    left_out = set(skip)
    for code in CODES:
        changed = change(chr(code))
        if changed != chr(code) and code not in left_out:
            codes.append(code)
            text += map(ord, changed)
            ends.append(len(text))
    print(f"const CodeMap k{name} = {{{len(codes)}, k{name}Codes, k{name}Ends, k{name}Text}};")
    for suffix, values, kind in (("Codes", codes, "uint32_t"), ("Ends", ends, "uint16_t"), ("Text", text, "uint32_t")):
        ARRAYS.append(f"static const {kind} k{name}{suffix}[{len(values)}] = {{\n{rows(values)}\n}};")


def combining_classes() -> dict[int, int]:
    """Canonical combining classes, 0 where the normaliser doesn't know the code point yet."""
    nfd = normalizers.NFD()
    found = {}
    for code in CODES:
        own = unicodedata2.combining(chr(code))
        if not own:
            continue
        other = "\u0334" if own > 1 else "\u0301"  # classes 1 and 230
        pair = "a" + chr(code) + other if own > 1 else "a" + other + chr(code)
        if nfd.normalize_str(pair) != pair:
            found[code] = own
    return found


def compositions() -> list[tuple[int, int, int]]:
    """(first, second, whole) of canonical composition, without Hangul syllables."""
    nfc = normalizers.NFC()
    found = []
    for code in CODES:
        parts = unicodedata2.decomposition(chr(code)).split()
        if len(parts) != 2 or parts[0].startswith("<"):
            continue
        first, second = (int(part, 16) for part in parts)
        if nfc.normalize_str(chr(first) + chr(second)) == chr(code):
            found.append((first, second, code))
    return sorted(found)


def case_pairs() -> list[tuple[int, int]]:
    """(code, folded) for every code point whose simple case folding is another."""
    found = []
    for code in CODES:
        folded = chr(code).casefold()
        if len(folded) == 1 and folded != chr(code) and unicodedata2.category(chr(code)) != "Cn":
            found.append((code, ord(folded)))
    return found


def main() -> int:
    """Prints the tables, or says which version is missing."""
    have = {
        "unicodedata2": unicodedata2.unidata_version,
        "regex": regex.__version__,
        "tokenizers": tokenizers.__version__,
    }
    if have != PINNED:
        print(f"need {PINNED}, found {have}", file=sys.stderr)
        return 1
    print("// Generated by tools/gen_unicode_data.py; don't edit.")
    print('\n#include "tokenizer/unicode_data.h"\n\nnamespace llmcore {\n\n// clang-format off')
    two_stage("Trait", traits())
    category = {code: CATEGORIES.index(unicodedata2.category(chr(code))) for code in CODES}
    breaks = graphemes(category)
    two_stage("Category", {c: category[c] | breaks[c] << 5 for c in CODES}, CATEGORIES.index("Cs"))
    properties()
    script, names = scripts()
    two_stage("Script", script)
    two_stage("HfScript", hf_scripts(script))
    two_stage("Combining", combining_classes())
    print(f"const ScriptName kScriptNames[{len(names)}] = {{")
    print(rows((f'{{"{name}", {value}}}' for name, value in sorted(names.items())), 6) + "\n};")
    print(f"const size_t kScriptNameCount = {len(names)};\n")
    pairs = compositions()
    print(f"const Composition kCompositions[{len(pairs)}] = {{")
    print(rows((f"{{{a}, {b}, {c}}}" for a, b, c in pairs), 10) + "\n};")
    print(f"const size_t kCompositionCount = {len(pairs)};\n")
    folds = case_pairs()
    print(f"const CasePair kCasePairs[{len(folds)}] = {{\n{rows((f'{{{a}, {b}}}' for a, b in folds), 12)}\n}};")
    print(f"const size_t kCasePairCount = {len(folds)};\n")
    maps = io.StringIO()
    with contextlib.redirect_stdout(maps):
        mappings("Canonical", normalizers.NFD().normalize_str, HANGUL)
        mappings("Compatible", normalizers.NFKD().normalize_str, HANGUL)
        mappings("LowerCase", normalizers.Lowercase().normalize_str)
    print("\n\n".join(ARRAYS))
    print("\n" + maps.getvalue(), end="")
    print("// clang-format on\n\n}  // namespace llmcore")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
