"""The native reader of a tokenizer.json's two tables against the parser that reads everything."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmcore import ArgumentError, ConfigError, LimitError, TokenizerError, _core
from llmcore.checkpoint.strict_json import parse_json
from llmcore.vocab import bytelevel
from llmcore.vocab.hf import parse_vocabulary
from llmcore.vocab.spec import JoinedTokens, Kind, check_ids

CASES = int(os.environ.get("LLMCORE_PROPERTY_CASES", "400"))
# Every length of UTF-8, escapes, and text that looks like JSON.
LETTERS = [
    "a",
    "b",
    "\u00e9",
    "\u0416",
    "\u65e5",
    "\U0001f600",
    '"',
    "\\",
    "/",
    "\n",
    "\t",
    "\x00",
    "\x7f",
    "{",
    "]",
    ",",
]


def small(seed: int = 0, pairs: bool = False) -> dict[str, Any]:
    """A tokenizer.json of letters and what they merge to."""
    rng = random.Random(seed)
    tokens, merges = list(LETTERS), {}
    while len(merges) < 20:
        left, right = rng.choice(tokens), rng.choice(tokens)
        merges[left, right] = None
        if left + right not in tokens:
            tokens.append(left + right)
    ids = list(range(len(tokens)))
    rng.shuffle(ids)
    rules = [list(pair) if pairs else " ".join(pair) for pair in merges]
    model = {
        "type": "BPE",
        "dropout": None,
        "vocab": dict(zip(tokens, ids, strict=True)),
        "merges": rules,
        "last": [{}],
    }
    return {"version": "1.0", "added_tokens": [{"id": 0, "content": "}{"}], "model": model, "decoder": {"type": "x"}}


def written(root: object, way: int) -> bytes:
    """`root` in one of the ways that JSON can be written."""
    indent, separators = [(None, (",", ":")), (2, None), (None, (" ,\r\n", "\t: "))][way % 3]
    return json.dumps(root, ensure_ascii=way % 2 == 0, indent=indent, separators=separators).encode()


def resolved(root: dict[str, Any]) -> list[list[int]]:
    vocab = root["model"]["vocab"]
    sides = [rule.split(" ") if isinstance(rule, str) else rule for rule in root["model"]["merges"]]
    return [[vocab[left], vocab[right], vocab[left + right]] for left, right in sides]


def natively(data: bytes) -> dict[str, Any] | None:
    tables = _core.json_vocabulary(data, 1000, 1000)
    if tables is None:
        return None
    rest, vocab, merges = tables
    root: Any = parse_json(rest)
    assert root["model"]["vocab"] == {}
    assert root["model"]["merges"] == []
    root["model"] |= {"vocab": vocab.to_dict(), "merges": merges.reshape(-1, 3).tolist()}
    return root


@pytest.mark.parametrize("way", range(6))
@pytest.mark.parametrize("pairs", [False, True])
def test_reads_what_json_reads(way: int, pairs: bool) -> None:
    for seed in range(20):
        root = small(seed, pairs)
        expected = resolved(root)
        got = natively(written(root, way))
        assert got is not None
        assert got["model"]["merges"] == expected
        assert list(got["model"]["vocab"].items()) == list(root["model"]["vocab"].items())
        assert {**got, "model": None} == {**root, "model": None}
        assert got["model"]["last"] == [{}]


def change(**parts: Any) -> Callable[[dict[str, Any]], None]:
    return lambda root: root["model"].update(parts)


def merge(rule: object) -> Callable[[dict[str, Any]], None]:
    return lambda root: root["model"]["merges"].append(rule)


def token(name: str, id: object) -> Callable[[dict[str, Any]], None]:
    return lambda root: root["model"]["vocab"].update({name: id})


LEFT_TO_THE_PARSER: dict[str, Callable[[dict[str, Any]], None]] = {
    "no vocabulary": lambda root: root["model"].pop("vocab"),
    "no merges": lambda root: root["model"].pop("merges"),
    "no model": lambda root: root.pop("model"),
    "empty vocabulary": change(vocab={}),
    "empty merges": change(merges=[]),
    "vocabulary of pairs": change(vocab=[["a", 0.5]]),
    "merges in an object": change(merges={}),
    "prefix": change(continuing_subword_prefix="null"),
    "negative id": token("x", -1),
    "id with a fraction": token("x", 1.5),
    "id too large": token("x", 1 << 24),
    "id as text": token("x", "1"),
    "merge of one": merge("a"),
    "merge of three": merge("a b a"),
    "merge without a left side": merge(" a"),
    "merge without a right side": merge("a "),
    "pair of one": merge(["a"]),
    "pair of three": merge(["a", "b", "a"]),
    "pair with nothing": merge(["", "a"]),
    "pair of ids": merge([0, 1]),
    "merge of an unknown token": merge("a unknown"),
    "merge into an unknown token": merge(["\U0001f600" * 9, "a"]),
    "merge twice": lambda root: root["model"]["merges"].append(root["model"]["merges"][3]),
    "too many tokens": change(vocab={str(i): i for i in range(1001)}),
}


@pytest.mark.parametrize("way", [0, 1])
@pytest.mark.parametrize("name", LEFT_TO_THE_PARSER)
def test_leaves_what_is_unusual_to_the_parser(name: str, way: int) -> None:
    root = small()
    LEFT_TO_THE_PARSER[name](root)
    assert natively(written(root, way)) is None


TEXTS = {
    "a token twice": ('"vocab": {', '"vocab": {"a": 99, '),
    "vocab twice": ('"type": "BPE"', '"vocab": {"a": 1}'),
    "an escaped key": ('"merges"', '"m\\u0065rges"'),
    "a comma too many": (', "merges": [', ', "merges": [,'),
    "half a surrogate pair": ('"vocab": {', '"vocab": {"\\ud800": 99, '),
    "the second half alone": ('"vocab": {', '"vocab": {"\\udc00": 99, '),
    "an unknown escape": ('"vocab": {', '"vocab": {"\\x": 99, '),
    "a control character": ('"vocab": {', '"vocab": {"\n": 99, '),
    "a zero too many": ('"vocab": {', '"vocab": {"x": 099, '),
}


@pytest.mark.parametrize("name", TEXTS)
def test_leaves_broken_text_to_the_parser(name: str) -> None:
    text = json.dumps(small())
    assert text.count(TEXTS[name][0]) == 1
    assert natively(text.replace(*TEXTS[name]).encode()) is None


def test_leaves_what_is_not_utf8_to_the_parser() -> None:
    data = json.dumps(small()).encode().replace(b'"vocab": {', b'"vocab": {"\xff": 99, ')
    assert natively(data) is None
    with pytest.raises(TokenizerError, match="UTF-8"):
        parse_vocabulary(data)


def test_no_damage_makes_it_read_something_else() -> None:
    """Bytes changed, left out and put in: what it reads is then what the parser reads, or the rest is no JSON."""
    rng = random.Random(5)
    read = 0
    for _ in range(3 * CASES):
        data = bytearray(written(small(rng.randrange(50), rng.random() < 0.5), rng.randrange(6)))
        for _ in range(rng.randrange(1, 3)):
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(2)] = rng.choice(
                [b"", b'"', b"\\", b",", b"{", b"}", b"[", b"]", b"a", b" ", b"0"]
            )
        try:
            got = natively(bytes(data))
        except ConfigError:
            continue
        if got is not None:
            root: Any = parse_json(bytes(data))
            assert got["model"]["merges"] == resolved(root)
            root["model"]["merges"] = got["model"]["merges"]
            assert got == root
            read += 1
    assert read > CASES / 10


def test_real_files_are_read_natively(data_dir: Path) -> None:
    found = 0
    for path in sorted((data_dir / "tokenizers").rglob("tokenizer.json")):
        data = path.read_bytes()
        if b'"merges"' not in data:
            continue
        plain: Any = parse_json(data, max_keys=1 << 22, max_items=1 << 22)
        root: Any = parse_vocabulary(data)
        if isinstance(root["model"]["merges"], np.ndarray):
            found += 1
            assert root["model"]["merges"].tolist() == resolved(plain)
            assert list(root["model"]["vocab"].to_dict().items()) == list(plain["model"]["vocab"].items())
    assert found


def test_a_token_list_says_ids_and_spells_bytes() -> None:
    vocab = {"ab": 3, "\u00e9": 0, "\u0120": 5, "\u65e5a": 1, "\ud800": 6, "": 7}
    tokens = _core.TokenList(vocab)
    assert (len(tokens), tokens.to_dict(), tokens.ids().tolist()) == (6, vocab, list(vocab.values()))
    assert [tokens.get(token) for token in vocab] == list(vocab.values())
    assert (tokens.get("a"), tokens.get("a", 9), tokens.get("\udfff")) == (None, 9, None)
    text, ends, kinds, others = tokens.spell_bytes(bytelevel.byte_of(), {2: b"<x>", 3: b"y"}, 9)
    joined = JoinedTokens(text, ends)
    surrogate = "\ud800".encode("utf-8", "surrogatepass")
    expected = [b"\xe9", "\u65e5a".encode(), b"<x>", b"y", b"", b" ", surrogate, b"", b""]
    assert list(joined) == joined[:] == [joined[i] for i in range(9)] == expected
    assert (joined[-3], joined[5:7], len(joined)) == (surrogate, [b" ", surrogate], 9)
    for outside in (9, -10):
        with pytest.raises(IndexError):
            joined[outside]
    assert list(kinds) == [Kind.NORMAL, Kind.UNUSED, *[Kind.ADDED] * 2, Kind.GAP, Kind.NORMAL, *[Kind.UNUSED] * 2, 0]
    assert sorted(others) == ["", "\u65e5a", "\ud800"]
    for size, added in ((7, {}), (8, {8: b""})):
        with pytest.raises(ArgumentError, match="out of range"):
            tokens.spell_bytes(bytelevel.byte_of(), added, size)


def test_ids_are_checked() -> None:
    assert check_ids([], "x") == 0
    assert check_ids([4, 0], "x") == 5
    for ids, error in (([0, -1], "negative"), ([3, 1, 3], "id 3 is given to two"), ([1, 1 << 20], "out of proportion")):
        with pytest.raises((TokenizerError, LimitError), match=error):
            check_ids(ids, "x")
