"""Tokenizer files that are broken, hostile or beyond what can be reproduced: typed errors that name the place."""

from __future__ import annotations

import base64
import copy
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcore.errors import ArgumentError, LimitError, LlmcoreError, StorageError, TokenizerError
from llmcore.tokenizer import Tokenizer
from llmcore.vocab import bytelevel

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def good() -> dict[str, Any]:
    """A small tokenizer.json that loads."""
    vocab = {char: i for i, char in enumerate(bytelevel.alphabet())}
    vocab |= {"ab": 256, "abc": 257}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": 258, "content": "<s>", **special}, {"id": 259, "content": "<s>>", **special}],
        "normalizer": None,
        "pre_tokenizer": split,
        "post_processor": None,
        "decoder": split,
        "model": {"type": "BPE", "vocab": vocab, "merges": ["a b", ["ab", "c"]]},
    }


def load(root: dict[str, Any], tmp_path: Path) -> Tokenizer:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(root), encoding="utf-8")
    return Tokenizer.load(path)


def model(**fields: Any) -> Edit:
    return lambda root: root["model"].update(fields)


def vocab(**fields: Any) -> Edit:
    return lambda root: root["model"]["vocab"].update(fields)


def part(name: str, value: Any) -> Edit:
    return lambda root: root.update({name: value})


def regex(pattern: str) -> Edit:
    return part(
        "pre_tokenizer", {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    )


def added(**fields: Any) -> Edit:
    return lambda root: root["added_tokens"][0].update(fields)


def nest(root: dict[str, Any]) -> None:
    for _ in range(20):
        root["normalizer"] = {"type": "Sequence", "normalizers": [root["normalizer"] or {"type": "NFC"}]}


EDITS: dict[str, tuple[Edit, type[LlmcoreError], str]] = {
    "no model": (lambda root: root.pop("model"), TokenizerError, "model"),
    "unknown model": (model(type="LSTM"), TokenizerError, "LSTM"),
    "unigram without scores": (model(type="Unigram"), TokenizerError, "array"),
    "unigram score": (model(type="Unigram", vocab=[["a", "b"]]), TokenizerError, r"vocab\[0\]"),
    "unigram score of nothing": (model(type="Unigram", vocab=[["a", float("nan")]]), TokenizerError, "finite|NaN"),
    "unigram score below all floats": (model(type="Unigram", vocab=[["a", -(10**390)]]), TokenizerError, "probability"),
    "unigram score above 0": (model(type="Unigram", vocab=[["a", 1.5]]), TokenizerError, "1.5"),
    "unigram token twice": (model(type="Unigram", vocab=[["a", 0], ["a", -1]]), TokenizerError, "twice"),
    "unigram unknown id": (model(type="Unigram", vocab=[["a", 0]], unk_id=1), TokenizerError, "unk_id"),
    "word limit": (model(type="WordPiece", max_input_chars_per_word="x"), TokenizerError, "max_input"),
    "vocab is a list": (model(vocab=[]), TokenizerError, "vocab"),
    "merge of an unknown token": (model(merges=["a b", "ab zz"]), TokenizerError, r"merges\[1\]"),
    "merge to an unknown token": (model(merges=["b a"]), TokenizerError, r"merges\[0\]"),
    "merge of one": (model(merges=["a"]), TokenizerError, r"merges\[0\]"),
    "merge of three": (model(merges=["a b c"]), TokenizerError, r"merges\[0\]"),
    "list merge of one": (model(merges=[["a"]]), TokenizerError, r"merges\[0\]"),
    "list merge of three": (model(merges=[["a", "b", "c"]]), TokenizerError, r"merges\[0\]"),
    "merge of numbers": (model(merges=[[1, 2]]), TokenizerError, r"merges\[0\]"),
    "merge twice": (model(merges=["a b", "a b"]), TokenizerError, "twice"),
    "one id twice": (vocab(abc=256), TokenizerError, "256"),
    "negative id": (vocab(abc=-1), TokenizerError, "abc"),
    "float id": (vocab(abc=257.0), TokenizerError, "abc"),
    "string id": (vocab(abc="257"), TokenizerError, "abc"),
    "huge id": (vocab(abc=4_000_000_000), LimitError, "abc"),
    "sparse id": (vocab(abc=10_000_000), LimitError, "proportion"),
    "id beyond 64 bits": (vocab(abc=1 << 63), LimitError, "abc"),
    "outside of the byte alphabet": (vocab(**{"a b": 300}), TokenizerError, "byte alphabet"),
    "empty added token": (added(content=""), TokenizerError, "empty"),
    "added token of a megabyte": (added(content="x" * (1 << 20)), LimitError, "bytes"),
    "added id collides": (added(id=5), TokenizerError, "5"),
    "added twice": (added(content="<s>>"), TokenizerError, "added before"),
    "long pattern": (regex("a" * 1_000_000), LimitError, "65,536"),
    "large pattern": (regex("(?:(?:(?:ab){100}){100}){100}"), LimitError, "large"),
    "nested pattern": (regex("(" * 10_000 + "a" + ")" * 10_000), LimitError, "deep"),
    "back-reference": (regex(r"(a)\1"), TokenizerError, "supported"),
    "unknown property": (regex(r"\p{Klingon}"), TokenizerError, "Klingon"),
    "open group": (regex("(a"), TokenizerError, r"\)"),
    "open set": (regex("[a"), TokenizerError, r"\]"),
    "nothing to repeat": (regex("*a"), TokenizerError, "repeat"),
    "unknown behaviour": (
        part("pre_tokenizer", {"type": "Split", "pattern": {"String": "a"}, "behavior": "Eaten"}),
        TokenizerError,
        "Eaten",
    ),
    "fixed length of nothing": (part("pre_tokenizer", {"type": "FixedLength", "length": 0}), TokenizerError, "length"),
    "replaces nothing": (
        part("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "x"}),
        TokenizerError,
        "nothing",
    ),
    "character map": (part("normalizer", {"type": "Precompiled", "precompiled_charsmap": "!"}), TokenizerError, "64"),
    "short character map": (
        part("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        TokenizerError,
        "character map",
    ),
    "unknown pre-tokenizer": (part("pre_tokenizer", {"type": "Magic"}), TokenizerError, "Magic"),
    "unknown normalizer": (part("normalizer", {"type": "Magic"}), TokenizerError, "Magic"),
    "unknown decoder": (part("decoder", {"type": "Magic"}), TokenizerError, "Magic"),
    "unknown post-processor": (part("post_processor", {"type": "X"}), TokenizerError, "X"),
    "many normalizers": (
        part("normalizer", {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 100_000}),
        LimitError,
        "normalizer",
    ),
    "nested normalizers": (nest, LimitError, "normalizer|nested"),
    "template without its token": (
        part(
            "post_processor",
            {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "q"}}], "special_tokens": {}},
        ),
        TokenizerError,
        "q",
    ),
    "template with an unknown id": (
        part(
            "post_processor",
            {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "q"}}, {"Sequence": {"id": "A"}}],
                "special_tokens": {"q": {"id": "q", "ids": [9999], "tokens": ["q"]}},
            },
        ),
        TokenizerError,
        "9999",
    ),
    "dropout": (model(dropout=0.1), TokenizerError, "dropout"),
}


@pytest.mark.parametrize("name", EDITS)
def test_broken_tokenizer_json(good: dict[str, Any], tmp_path: Path, name: str) -> None:
    edit, error, match = EDITS[name]
    root = copy.deepcopy(good)
    edit(root)
    with pytest.raises(error, match=match) as caught:
        load(root, tmp_path)
    assert len(str(caught.value).encode()) <= 1024


def test_normalizer_that_grows_text(good: dict[str, Any], tmp_path: Path) -> None:
    root = copy.deepcopy(good)
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    root["normalizer"] = {"type": "Sequence", "normalizers": [double] * 60}
    with pytest.raises(LimitError, match="more than"):
        load(root, tmp_path).encode("a" * 100)
    root["normalizer"] = {**double, "content": "x" * 1_000_000}
    with pytest.raises(LimitError, match="more than"):
        load(root, tmp_path).encode("a" * 1_000_000)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(\s*)*x", " " * 20_000),
        ("(a+)+$", "a" * 40 + "b"),
        ("(a|a)*b", "a" * 60),
        ("(?:a*)*c", "a" * 20_000),
        ("a*b|a", "a" * 60_000),
    ],
)
def test_pattern_that_backtracks_without_end(good: dict[str, Any], tmp_path: Path, pattern: str, text: str) -> None:
    root = copy.deepcopy(good)
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    root["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel", "use_regex": False}]}
    tokenizer = load(root, tmp_path)
    assert tokenizer.encode("abc")
    with pytest.raises(LimitError, match="regular expression"):
        tokenizer.encode(text)


def test_the_good_file_loads(good: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = load(good, tmp_path)
    assert tokenizer.encode("abcab") == [257, 256]
    assert tokenizer.encode("<s>>a", allow_special=True) == [259, 97]  # the longest wins


def test_a_gap_can_be_loaded_but_not_decoded(good: dict[str, Any], tmp_path: Path) -> None:
    root = copy.deepcopy(good)
    root["model"]["vocab"]["bc"] = 300
    tokenizer = load(root, tmp_path)
    assert tokenizer.vocab_size == 301
    assert tokenizer.id_to_token(280) is None
    with pytest.raises(ArgumentError, match="280"):
        tokenizer.decode([280])


def test_a_byte_without_token_is_an_error_when_it_comes(good: dict[str, Any], tmp_path: Path) -> None:
    root = copy.deepcopy(good)
    del root["model"]["vocab"]["z"]
    tokenizer = load(root, tmp_path)
    assert tokenizer.encode("abc") == [257]
    with pytest.raises(TokenizerError, match="122"):
        tokenizer.encode("z")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b'{"model": 1, "model": 2}', b"\xef\xbb\xbf{}", b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"[" * 100_000],
)
def test_files_that_are_no_json(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises((TokenizerError, LimitError)):
        Tokenizer.load(tmp_path)


def test_missing_paths_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises((TokenizerError, StorageError), match="nothing"):
        Tokenizer.load(tmp_path / "nothing")
    with pytest.raises(TokenizerError, match="no tokenizer here"):
        Tokenizer.load(tmp_path)


# --- rank files -------------------------------------------------------------------------------------------------

RANKS = b"".join(base64.b64encode(bytes([b])) + b" %d\n" % b for b in range(256))


@pytest.mark.parametrize(
    "extra",
    [
        b"!!!! 256\n",
        b"YWI= 255\n",
        b"YWI= 300\n",
        b"YWI= -1\n",
        b"YWI=256\n",
        b"YQ== 256\n",
        b" 256\n",
        b"YWI= 9999999999\n",
    ],
)
def test_broken_rank_files(tmp_path: Path, extra: bytes) -> None:
    (tmp_path / "x.tiktoken").write_bytes(RANKS + extra)
    with pytest.raises((TokenizerError, LimitError)):
        Tokenizer.load(tmp_path / "x.tiktoken", pattern="gpt2")


def test_unknown_rank_file_needs_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "x.tiktoken").write_bytes(RANKS + b"YWI= 256\n")
    with pytest.raises(TokenizerError, match="pattern"):
        Tokenizer.load(tmp_path / "x.tiktoken")
    assert Tokenizer.load(tmp_path / "x.tiktoken", pattern="gpt2").encode("abc") == [256, 99]
    with pytest.raises(ArgumentError, match="pattern"):
        Tokenizer.load(tmp_path / "x.tiktoken", pattern="nope")


# --- SentencePiece models -----------------------------------------------------------------------------------------


def field(number: int, value: bytes | int | float) -> bytes:
    """One protobuf field, for values below 128 and lengths below 16384."""
    if isinstance(value, float):
        return bytes([number << 3 | 5]) + struct.pack("<f", value)
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2, len(value) & 127 | 128, len(value) >> 7]) + value


def piece(text: str | bytes, score: float = 0.0, kind: int = 1) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return field(1, field(1, data) + field(2, score) + field(3, kind))


HEAD = piece("<unk>", kind=2) + piece("<s>", kind=3) + piece("</s>", kind=3)
TAIL = field(2, field(3, 2)) + field(3, field(4, 0))
LETTERS = piece("\u2581") + piece("a", -2.0) + piece("b", -3.0) + piece("ab", -1.0)


def sentencepiece(tmp_path: Path, data: bytes) -> Tokenizer:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(data)
    return Tokenizer.load(path)


def test_the_small_model_loads(tmp_path: Path) -> None:
    assert sentencepiece(tmp_path, HEAD + LETTERS + TAIL).encode("abz", add_special_tokens=False) == [3, 6, 0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEAD + LETTERS + piece("a") + TAIL,
        HEAD + LETTERS + piece("") + TAIL,
        HEAD + LETTERS + piece("c", float("nan")) + TAIL,
        HEAD + LETTERS + piece("c", float("inf")) + TAIL,
        HEAD + LETTERS + piece("c", kind=9) + TAIL,
        HEAD + LETTERS + piece("<unk2>", kind=2) + TAIL,
        LETTERS + TAIL,
        HEAD + LETTERS + piece("<0xGG>", kind=6) + TAIL,
        HEAD + LETTERS + piece(b"\xff") + TAIL,
        HEAD + LETTERS + field(2, field(3, 9)) + field(3, field(4, 0)),
        HEAD + LETTERS + field(2, field(3, 2)) + field(3, field(2, b"map") + field(4, 0)),
        HEAD + LETTERS + TAIL + b"\x03",
        HEAD + LETTERS + TAIL + b"\x00\x00",
        HEAD + LETTERS + TAIL + b"\x08" + b"\xff" * 11,
        HEAD + LETTERS + TAIL + b"\x0a" + b"\xff" * 9 + b"\x01",
    ],
)
def test_broken_sentencepiece_models(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(TokenizerError):
        sentencepiece(tmp_path, data)


BYTE_PIECES = b"".join(piece(f"<0x{byte:02X}>", kind=6) for byte in range(256))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HEAD + LETTERS + piece("bc") + TAIL, "'bc' of characters that are no pieces"),
        (HEAD + LETTERS + piece("c", kind=3) + piece("bc") + TAIL, "'bc' of characters that are no pieces"),
        (
            HEAD + BYTE_PIECES + piece("a") + field(2, field(3, 2) + b"\x98\x02\x01") + field(3, field(4, 0)),
            "without a piece for \u2581",
        ),
    ],
)
def test_sentencepiece_models_with_other_ids_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        sentencepiece(tmp_path, data)


def test_a_symbol_may_be_the_only_piece_of_a_character(tmp_path: Path) -> None:
    loaded = sentencepiece(tmp_path, HEAD + LETTERS + piece("c", kind=4) + piece("bc") + TAIL)
    assert loaded.encode("bc", add_special_tokens=False) == [3, 5, 7]


def test_a_model_cut_or_changed_anywhere_gives_a_typed_error_or_loads(tmp_path: Path) -> None:
    data = HEAD + LETTERS + TAIL
    rng = random.Random(4)
    changed = [data[:cut] for cut in range(len(data))]
    for _ in range(400):
        copy_of = bytearray(data)
        copy_of[rng.randrange(len(data))] = rng.randrange(256)
        changed.append(bytes(copy_of))
    loaded = 0
    for variant in changed:
        try:
            sentencepiece(tmp_path, variant).encode("ab ba")
            loaded += 1
        except LlmcoreError:
            continue
    assert 0 < loaded < len(changed)


# --- arguments and hard text --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"bytes", 7, None, ["a"]])
def test_text_of_a_wrong_type(good: dict[str, Any], tmp_path: Path, text: Any) -> None:
    tokenizer = load(good, tmp_path)
    with pytest.raises(ArgumentError, match="text"):
        tokenizer.encode(text)
    with pytest.raises(ArgumentError):
        tokenizer.encode_batch([text])


@pytest.mark.parametrize("name", ["encode", "encode_to_numpy", "encode_with_offsets", "encode_batch"])
def test_flags_of_a_wrong_type(good: dict[str, Any], tmp_path: Path, name: str) -> None:
    encode = getattr(load(good, tmp_path), name)
    for flag in ("add_special_tokens", "allow_special"):
        with pytest.raises(ArgumentError, match=flag):
            encode("a", **{flag: "x"})


def test_tokens_that_are_none(good: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = load(good, tmp_path)
    with pytest.raises(ArgumentError, match="token"):
        tokenizer.token_to_id(5)  # type: ignore[arg-type]
    assert tokenizer.token_to_id("?") is not None
    assert tokenizer.token_to_id("\ud800") is None


@pytest.mark.parametrize("path", ["a\0b", "a\ud800", b"a", 5, None])
def test_paths_that_are_none(path: Any) -> None:
    with pytest.raises(ArgumentError, match="path"):
        Tokenizer.load(path)


@pytest.mark.parametrize("model_type", ["byte_bpe", "bpe"])
@pytest.mark.parametrize("token", [5, "", "a\ud800"])
def test_special_tokens_that_are_no_texts(model_type: str, token: Any) -> None:
    with pytest.raises(ArgumentError, match="special_tokens"):
        Tokenizer.train("ab ab", vocab_size=300, model_type=model_type, special_tokens=["<unk>", token])


@pytest.mark.parametrize("ids", [[-1], [260], [1 << 31], [1 << 63], [1 << 70], [1.0], [[1]], ["a"], [True]])
def test_ids_of_a_wrong_kind(good: dict[str, Any], tmp_path: Path, ids: Any) -> None:
    with pytest.raises(ArgumentError):
        load(good, tmp_path).decode(ids)


def test_lone_surrogates_count_as_replacement_characters(good: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = load(good, tmp_path)
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode("\ud83d\ude00") == tokenizer.encode("\U0001f600")


@pytest.mark.parametrize("unit", ["a", " ", "\n", "7", "\U0001f600", "\u0301", "\ufdfa", "ab ", "'", "\u65e5A"])
@pytest.mark.parametrize("name", ["tiktoken/o200k_base.tiktoken", "mistral/tokenizer.model.v1"])
def test_no_text_takes_quadratic_time(data_dir: Path, unit: str, name: str) -> None:
    """Which for these would be hours: pytest's faulthandler_timeout would end it."""
    tokenizer = _loaded(data_dir / "tokenizers" / name)
    text = unit * (4_000_000 // len(unit)) + "x"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


_CACHE: dict[Path, Tokenizer] = {}


def _loaded(path: Path) -> Tokenizer:
    if path not in _CACHE:
        _CACHE[path] = Tokenizer.load(path)
    return _CACHE[path]
