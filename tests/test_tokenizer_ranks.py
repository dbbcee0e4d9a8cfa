"""Rank files with patterns of their own, and tekken.json: ids as tiktoken makes them from the same parts."""

from __future__ import annotations

import base64
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmcore.errors import LimitError, LlmcoreError, TokenizerError
from llmcore.tokenizer import Tokenizer
from llmcore.vocab.patterns import TEKKEN_REGEX
from llmcore.vocab.tiktoken import read_ranks

tiktoken = pytest.importorskip("tiktoken", reason="needs tiktoken")
CASES = int(os.environ.get("LLMCORE_PROPERTY_CASES", "400"))
O200K_OF_TIKTOKEN = "|".join(
    [
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
PATTERNS = {
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
    "o200k": O200K_OF_TIKTOKEN.replace("?[^", "?+[^"),
    "tekken": TEKKEN_REGEX.replace(r"\s*[\r\n]+", r"\s*[\r\n]++"),
    "words": r"\w+|[^\w\s]+|\s+",
    "lines": r"(?m:^[^\n]+$)|\s|(?s:.)",
}


def texts(count: int) -> list[str]:
    rng = random.Random(9)
    pieces = [
        "Hello",
        " world",
        "'s",
        "'LL",
        "\u017f",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "123",
        "\u0661",
        "ab",
        "AbC",
        "!?",
        "//",
        "\u65e5\u672c",
    ]
    pieces += ["\U0001f600", "e\u0301", "\u00bd", "\u01c5", "_", "\u200d"]

    def one() -> str:
        code = rng.randrange(0x110000) if rng.random() < 0.3 else 0xD800
        return rng.choice(pieces) if 0xD800 <= code < 0xE000 else chr(code)

    return ["".join(one() for _ in range(rng.randrange(30))) for _ in range(count)]


@pytest.fixture(scope="module")
def ranks(data_dir: Path) -> dict[bytes, int]:
    return read_ranks((data_dir / "tokenizers" / "tiktoken" / "cl100k_base.tiktoken").read_bytes())


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_as_an_expression(name: str, ranks: dict[bytes, int], data_dir: Path) -> None:
    theirs = tiktoken.Encoding("x", pat_str=PATTERNS[name], mergeable_ranks=ranks, special_tokens={})
    ours = Tokenizer.load(data_dir / "tokenizers" / "tiktoken" / "cl100k_base.tiktoken", pattern=PATTERNS[name])
    for text in texts(CASES):
        assert ours.encode(text) == theirs.encode_ordinary(text), repr(text)


def tekken(ranks: dict[bytes, int], size: int, reserved: int) -> dict[str, Any]:
    ordered = sorted(ranks, key=ranks.__getitem__)[:size]
    return {
        "config": {
            "pattern": TEKKEN_REGEX,
            "num_vocab_tokens": len(ordered),
            "default_vocab_size": size,
            "default_num_special_tokens": reserved,
            "version": "v3",
        },
        "vocab": [
            {"rank": at, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for at, token in enumerate(ordered)
        ],
    }


def write(root: dict[str, Any], folder: Path) -> Path:
    path = folder / "tekken.json"
    path.write_text(json.dumps(root), encoding="utf-8")
    return path


def test_tekken(ranks: dict[bytes, int], tmp_path: Path) -> None:
    size, reserved = 30_000, 1_000
    write(tekken(ranks, size, reserved), tmp_path)
    ours = Tokenizer.load(tmp_path)
    kept = {token: rank for token, rank in ranks.items() if rank < size - reserved}
    theirs = tiktoken.Encoding("x", pat_str=TEKKEN_REGEX, mergeable_ranks=kept, special_tokens={})
    assert (ours.vocab_size, ours.bos_id, ours.eos_ids) == (size, 1, [2])
    assert (ours.token_to_id("[INST]"), ours.id_to_token(999)) == (3, "<SPECIAL_999>")
    for text in texts(CASES):
        expected = [1, *(at + reserved for at in theirs.encode_ordinary(text))]
        assert ours.encode(text) == expected, repr(text)
        assert ours.decode(expected[1:]) == text
    assert ours.encode("[INST]x", allow_special=True)[:2] == [1, 3]
    assert 3 not in ours.encode("[INST]x")


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], type[LlmcoreError], str]] = {
    "no pattern": (lambda r: r["config"].pop("pattern"), TokenizerError, "pattern"),
    "pattern that is none": (lambda r: r["config"].update(pattern="("), TokenizerError, "regular expression"),
    "size": (lambda r: r["config"].update(default_vocab_size=-1), TokenizerError, "default_vocab_size"),
    "huge size": (lambda r: r["config"].update(default_vocab_size=1 << 60), LimitError, "default_vocab_size"),
    "more control tokens than ids": (
        lambda r: r["config"].update(default_num_special_tokens=700),
        TokenizerError,
        "control",
    ),
    "rank out of order": (lambda r: r["vocab"][3].update(rank=4), TokenizerError, r"vocab\[3\]"),
    "not base64": (lambda r: r["vocab"][3].update(token_bytes="!"), TokenizerError, r"vocab\[3\]"),
    "twice": (lambda r: r["vocab"][3].update(token_bytes=r["vocab"][2]["token_bytes"]), TokenizerError, r"vocab\[3\]"),
    "no byte": (lambda r: r["vocab"].pop(), TokenizerError, "byte"),
    "control token twice": (
        lambda r: r.update(special_tokens=[{"rank": 0, "token_str": "a"}, {"rank": 1, "token_str": "a"}]),
        TokenizerError,
        "one name",
    ),
    "control token outside": (
        lambda r: r.update(special_tokens=[{"rank": 99, "token_str": "a"}]),
        TokenizerError,
        "99",
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_broken_tekken(name: str, ranks: dict[bytes, int], tmp_path: Path) -> None:
    root = tekken({token: rank for token, rank in ranks.items() if rank < 256}, 276, 20)
    edit, error, match = EDITS[name]
    edit(root)
    with pytest.raises(error, match=match):
        Tokenizer.load(write(root, tmp_path))


@pytest.mark.parametrize(
    "pattern", [r"\w+|\W", r"[\w]+|[^\w]", r"\W+|\w", r"[\s\S]+?\b|[\s\S]+", r"(?:\B[\s\S])+|[\s\S]"]
)
def test_word_characters_are_those_of_rust(pattern: str, tmp_path: Path) -> None:
    """With the joiners, and without the superscripts and fractions that Oniguruma has."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [token + end for token in tokens for end in (b"a", b"-")]
    ranks = {token: id for id, token in enumerate(tokens)}
    theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    path = tmp_path / "x.tiktoken"
    path.write_text("".join(f"{base64.b64encode(token).decode()} {id}\n" for token, id in ranks.items()), "utf-8")
    ours = Tokenizer.load(path, pattern=pattern)
    for code in [*range(0x800), *range(0x2000, 0x2200), 0x4E2D, 0xFF3F, 0x1D7CE, 0xE0001]:
        for end in "a-":
            assert ours.encode(chr(code) + end) == theirs.encode(chr(code) + end), (hex(code), end)


CLASSES = [
    *(r"[[:alpha:]]+", r"[[:^alpha:]]+|.", r"[[:space:][:punct:]]+|.", r"[[:word:]-]+", r"[^[:alnum:]]+|.", r"[ab]+"),
    *(r"[[:cntrl:]]|[[:print:]]+", r"[[:upper:]]+|[[:lower:]]+|[[:digit:]]+|[[:blank:]]|[[:graph:]]"),
]


@pytest.mark.parametrize("pattern", CLASSES)
def test_posix_classes_are_of_ascii_and_what_no_match_has_is_dropped(pattern: str, tmp_path: Path) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"ab": 256, b"a ": 257, "\u0416a".encode(): 258}
    theirs = tiktoken.Encoding("x", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    path = tmp_path / "x.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    ours = Tokenizer.load(path, pattern=pattern)
    rng = random.Random(5)
    for _ in range(300):
        text = "".join(rng.choices("abZ1_- .\t\n\x07\u00b2\u00e9\u0416\u00a0", k=rng.randrange(12)))
        assert ours.encode(text) == theirs.encode_ordinary(text), text
