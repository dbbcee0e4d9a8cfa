"""Decoders of a tokenizer.json: the text of any ids is what Hugging Face tokenizers gives, whole and as a stream."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from llmcore.errors import TokenizerError
from llmcore.tokenizer import Tokenizer
from llmcore.vocab.spec import BrokenBytes

tokenizers = pytest.importorskip("tokenizers", reason="needs Hugging Face tokenizers")

CASES = int(os.environ.get("LLMCORE_PROPERTY_CASES", "300"))
MARK = "\u2581"
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), MARK, "a", "b", MARK + "a", MARK * 2]
TOKENS += ["n't", MARK + "n't", ".", "\u00e9", "\u4e2d", "</w>", "a</w>", "##b", "|", "<pad>", "\ufffd", "\n", "x \n"]
BPE = {
    "type": "BPE",
    "unk_token": "<unk>",
    "byte_fallback": True,
    "vocab": {token: id for id, token in enumerate(TOKENS)},
    "merges": [],
}
WORDS = {"type": "WordLevel", "unk_token": "<unk>", "vocab": BPE["vocab"]}
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": MARK}
REPLACE = {"type": "Replace", "pattern": {"String": MARK}, "content": " "}
BYTES, FUSE = {"type": "ByteFallback"}, {"type": "Fuse"}


def sequence(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(parts)}


def strip(start: object, stop: object, content: str = " ") -> dict[str, Any]:
    return {"type": "Strip", "content": content, "start": start, "stop": stop}


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": True}


DECODERS: dict[str, dict[str, Any] | None] = {
    "llama": sequence(REPLACE, BYTES, FUSE, strip(1, 0)),
    "gemma": sequence(REPLACE, BYTES, FUSE),
    "metaspace": metaspace("always"),
    "metaspace, no prefix": metaspace("never"),
    "bytes": BYTES,
    "bytes, metaspace": sequence(BYTES, metaspace("always")),
    "word pieces": {"type": "WordPiece", "prefix": "##", "cleanup": True},
    "ends of words": {"type": "BPEDecoder", "suffix": "</w>"},
    "ctc": {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
    "strip": strip(0, 1),
    "strip the start": sequence(REPLACE, strip(1 << 40, 0)),
    "none": None,
}


def root_of(model: dict[str, Any], decoder: object, normalizer: object = None) -> dict[str, Any]:
    control = {"special": True, "normalized": False} | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    added = [{"id": id, "content": TOKENS[id], **control} for id in range(3)]
    parts = {"added_tokens": added, "normalizer": normalizer, "pre_tokenizer": None, "post_processor": None}
    return {"version": "1.0", **parts, "decoder": decoder, "model": model}


def load(root: dict[str, Any], folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(root), encoding="utf-8")
    return Tokenizer.load(path)


def agree(tokenizer: Tokenizer, ids: list[int], skip: bool = False) -> bool:
    """A stream gives what decode does, but doesn't wait for a run of bytes to end."""
    text = streamed(tokenizer, ids, skip)
    if tokenizer._spec.broken_bytes == BrokenBytes.RUN:
        return text == tokenizer.decode_bytes(ids, skip).decode("utf-8", "replace")
    return text == tokenizer.decode(ids, skip)


def streamed(tokenizer: Tokenizer, ids: list[int], skip: bool = False) -> str:
    stream = tokenizer.decode_stream(skip)
    return "".join(map(stream.step, ids)) + stream.finish()


@pytest.mark.parametrize("model", [BPE, WORDS], ids=["bpe", "words"])
@pytest.mark.parametrize("normalizer", [None, SPACES], ids=["plain", "spaces"])
@pytest.mark.parametrize("name", DECODERS)
def test_any_ids(name: str, normalizer: object, model: dict[str, Any], tmp_path: Path) -> None:
    root = root_of(model, DECODERS[name], normalizer)
    ours, theirs = load(root, tmp_path), tokenizers.Tokenizer.from_str(json.dumps(root))
    rng = random.Random(5)
    for _ in range(CASES):
        first = rng.choice([0, 259])  # with bytes or without
        ids = [rng.randrange(first, len(TOKENS)) for _ in range(rng.choice([2, 5, 40]))]
        if rng.random() < 0.3:
            ids[rng.randrange(len(ids))] = rng.randrange(3)
        for skip in (False, True):
            expected = theirs.decode(ids, skip_special_tokens=skip)
            assert ours.decode(ids, skip) == expected, ids
            assert agree(ours, ids, skip), ids


def test_a_run_of_bytes_is_text_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    ours = load(root_of(BPE, DECODERS["llama"], SPACES), tmp_path)
    ids = [3 + 0x41, 3 + 0xE4, TOKENS.index("a")]
    assert ours.decode(ids) == "\ufffd\ufffda"
    assert streamed(ours, ids) == "A\ufffda"
    assert ours.decode_bytes(ids) == b"A\xe4a"


def test_a_published_vocabulary_with_byte_fallback(data_dir: Path) -> None:
    path = data_dir / "tokenizers" / "phi-3" / "tokenizer.json"
    ours, theirs = Tokenizer.load(path), tokenizers.Tokenizer.from_file(str(path))
    rng = random.Random(6)
    for _ in range(CASES):
        ids = [rng.choice([rng.randrange(3, 259), rng.randrange(32000)]) for _ in range(12)]
        expected = theirs.decode(ids)
        assert ours.decode(ids, skip_special_tokens=True) == expected, ids
        assert agree(ours, ids, skip=True), ids


@pytest.mark.parametrize(
    "part",
    [
        strip("x", 0),
        strip(None, 0),
        strip(-1, 0),
        strip(0.5, 0),
        strip(1, 0, content=""),
        strip(1, 0, content="ab"),
        {"type": "Strip"},
        metaspace("bogus"),
        {**metaspace("always"), "replacement": ""},
    ],
)
def test_broken_parts(part: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"decoder|prepend_scheme|Metaspace"):
        load(root_of(WORDS, part), tmp_path)


@pytest.mark.parametrize(
    ("name", "token"), [("ctc", "a"), ("bytes", "<0xFF>"), ("word pieces", "a"), ("strip", "\ufffd")]
)
def test_a_stream_decodes_few_tokens_at_a_time(name: str, token: str, tmp_path: Path) -> None:
    ours = load(root_of(WORDS, DECODERS[name]), tmp_path)
    ids = [TOKENS.index(token)] * 200
    stream = ours.decode_stream()
    lengths = []
    decode = ours.decode
    ours.decode = lambda ids, skip=False: (lengths.append(len(ids)), decode(ids, skip))[1]  # type: ignore[assignment,func-returns-value,method-assign]
    text = "".join(map(stream.step, ids))
    assert max(lengths, default=0) <= 8
    assert text + stream.finish() == decode(ids)
