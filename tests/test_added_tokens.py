"""Added tokens in odd places, against Hugging Face tokenizers: the same ids, before and after saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmcore import Tokenizer, TokenizerError

tokenizers = pytest.importorskip("tokenizers")

MARK = "\u2581"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
ALPHABET = {char: i for i, char in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
METASPACE = {"type": "Metaspace", "replacement": MARK, "prepend_scheme": "always", "split": True}
TO_SPACES = [
    {"type": "Replace", "pattern": {"String": MARK}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]


def added(content: str, id: int, **flags: bool) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": id, "content": content, **plain, **flags}


def file_of(vocab: dict[str, int], tokens: list[dict[str, Any]], **parts: Any) -> dict[str, Any]:
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": None, "fuse_unk": False, "byte_fallback": False}
    around = {"normalizer": None, "pre_tokenizer": BYTE_LEVEL, "post_processor": None, "decoder": BYTE_LEVEL}
    own = {name: parts.pop(name) for name in list(parts) if name not in around}
    return {"version": "1.0", "added_tokens": tokens, **around, **parts, "model": model | own}


def fallback(normalizer: object, tokens: list[dict[str, Any]]) -> dict[str, Any]:
    vocab = BYTES | {MARK: 256, "a": 257, "<unk>": 258}
    decoder = {"type": "Sequence", "decoders": TO_SPACES}
    rest = {"pre_tokenizer": None, "decoder": decoder, "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    return file_of(vocab, tokens, normalizer=normalizer, **rest)


def marked(tokens: list[dict[str, Any]], mark: str = MARK, **parts: Any) -> dict[str, Any]:
    """As `fallback`, with a piece that no rule makes; `mark` has the place of the mark's."""
    root = fallback(REPLACE, tokens)
    root["model"]["vocab"] = BYTES | {mark: 256, "a": 257, "<unk>": 258, f"{MARK}a": 259}
    return {**root, "model": root["model"] | parts}


def metaspace(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    vocab = {"<unk>": 0, MARK: 1, "a": 2, "b": 3}
    return file_of(vocab, tokens, pre_tokenizer=METASPACE, decoder=METASPACE, unk_token="<unk>")


PREPEND = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": MARK}, REPLACE]}
NORMALIZED = [added("\n\n", 259, normalized=True), added(" th", 260, normalized=True)]
LINES = ["?\n\nM", "\n\nM", " \n\n", " the", "a the", "the th"]
BESIDE = [
    "\u200d",
    "\u200c",
    "\u0301",
    "_",
    "\u203f",
    "\u24b6",
    "\u00b2",
    "\U0001f130",
    "\u00aa",
    "\uff3f",
    "\u00ad",
    "\u0663",
    "-",
    " ",
]
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "normalized, spaces replaced": (fallback(REPLACE, NORMALIZED), LINES),
    "normalized, a space before": (fallback(PREPEND, NORMALIZED), LINES),
    "bytes that are special": (fallback(REPLACE, [added("<0x41>", 0x41, special=True)]), ["A a", "aA" * 70, "<0x41>"]),
    "words": (
        file_of(ALPHABET, [added("<X>", 256, single_word=True)]),
        [text for beside in BESIDE for text in (beside + "<X>", "<X>" + beside)],
    ),
    "what one takes along begins another": (
        file_of(ALPHABET, [added("<e>", 256, rstrip=True), added(" lead", 257)]),
        ["<e> lead", "<e>  lead", "<e>   leader", "<e> <e> lead"],
    ),
    "takes its own along": (file_of(ALPHABET, [added("  ", 256, rstrip=True)]), ["a    b", "a     b", "   "]),
    "takes along on both sides": (
        file_of(ALPHABET, [added("<e>", 256, rstrip=True), added("<l>", 257, lstrip=True)]),
        ["<e> <l>", "a <e>  <l> b", "<e>   <l>"],
    ),
    "takes no marks along": (
        marked([added("<l>", 260, lstrip=True, normalized=True), added("<r>", 261, rstrip=True, normalized=True)]),
        ["a <l>a", f"a{MARK}<l>a", "a\n <l>a", "a<r> a", f"a<r>{MARK}a", "a<r>\n a", "<r> <l>"],
    ),
    "one word to the mark's normaliser": (marked([], ignore_merges=True), ["a a", " a", "a", f"{MARK}a", " a a"]),
    "no mark": (marked([added("<x>", 260)], mark="b"), ["a a", " ", "a<x> b", f"{MARK}{MARK}"]),
    "outside, a character": (metaspace([added("\u00e9", 4, single_word=True)]), ["a\u00e9b", "\u00e9 a", "a b"]),
    "outside, two letters": (
        file_of(ALPHABET, [added("ab", 256, single_word=True)], ignore_merges=True),
        ["ab1 1ab 1 ab", "ab", "xab"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_ids_are_those_of_hugging_face(name: str, tmp_path: Path) -> None:
    root, texts = CASES[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(root))
    ours, theirs = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    ours.save(tmp_path / "saved.json")
    again, theirs_again = (
        Tokenizer.load(tmp_path / "saved.json"),
        tokenizers.Tokenizer.from_file(str(tmp_path / "saved.json")),
    )
    for text in texts:
        expected = theirs.encode(text).ids
        ids, offsets = ours.encode_with_offsets(text, allow_special=True)
        assert ids == ours.encode(text, allow_special=True) == expected, text
        assert len(offsets) == len(ids)
        assert again.encode(text, allow_special=True) == theirs_again.encode(text).ids == expected, text
        assert again.decode(ids) == ours.decode(ids)


def test_a_byte_of_the_alphabet_is_no_control_token(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file_of(ALPHABET, [added("\u010a", ALPHABET["\u010a"], special=True)])))
    with pytest.raises(TokenizerError, match="byte 10"):
        Tokenizer.load(path)


WRONG: dict[str, dict[str, Any]] = {
    "unk_token": metaspace([]) | {"model": metaspace([])["model"] | {"unk_token": {}}},
    "normalizer": file_of(ALPHABET, [], normalizer={"type": []}),
    "pre_tokenizer": file_of(ALPHABET, [], pre_tokenizer={"type": {}}),
    "decoder": file_of(ALPHABET, [], decoder={"type": {}}),
    "no type": file_of(ALPHABET, [], pre_tokenizer={}),
    "behavior": file_of(ALPHABET, [], pre_tokenizer={"type": "Punctuation", "behavior": []}),
    "prepend_scheme": metaspace([]) | {"pre_tokenizer": METASPACE | {"prepend_scheme": {}}},
    "template": file_of(
        ALPHABET,
        [],
        post_processor={
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": []}}, {"Sequence": {"id": "A"}}],
            "special_tokens": {},
        },
    ),
    "word pieces": {"model": {"type": "WordPiece", "unk_token": [], "vocab": {"a": 0}}},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_part_of_the_wrong_type_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(WRONG[name]))
    if name == "word pieces":  # a text without a piece for it is an error then, as without an unknown token
        assert Tokenizer.load(path).encode("a") == [0]
        return
    with pytest.raises(TokenizerError):
        Tokenizer.load(path)
