"""Training of vocabularies: gathers the texts; the core counts, and merges or estimates.

What is trained on characters comes as a tokenizer.json is read, so that its saved file says all of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from llmcore import _core
from llmcore.checkpoint.files import storage_error
from llmcore.errors import ArgumentError, TokenizerError, escape, shown
from llmcore.vocab import bytelevel
from llmcore.vocab.bpe_model import BYTE_NAMES
from llmcore.vocab.hf import from_json
from llmcore.vocab.patterns import STAGE_OF_NAME, Stage
from llmcore.vocab.spec import NO_ID, AddedToken, Kind, VocabSpec
from llmcore.vocab.surrogates import clean

Source = str | os.PathLike[str]
Progress = Callable[[int, int], None]
_MARK = "\u2581"
MODEL_TYPES = ("byte_bpe", "bpe", "unigram")
_BLOCK_BYTES = 1 << 22
_BATCH_CHARS = 1 << 24


class _Unit(IntEnum):
    """What is split on its own; the values are those of `TextUnit` in csrc/tokenizer/train.h."""

    WHOLE = 0
    LINES = 1
    SENTENCES = 2


def stages_of(pattern: str | None) -> tuple[Stage, ...]:
    """The stages of a pattern's name. Raises ArgumentError for an unknown one."""
    if pattern is None:
        return ()
    if pattern not in STAGE_OF_NAME:
        raise ArgumentError(f"pattern: {escape(pattern)} is none of {', '.join(STAGE_OF_NAME)}, None")
    return (STAGE_OF_NAME[pattern],)


def _blocks(path: os.PathLike[str]) -> Iterator[str]:
    """The file in blocks that end at line ends, so that no line is cut."""
    rest = b""
    offset = 0
    try:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                cut = block.rfind(b"\n") + 1
                if cut:
                    yield _decode(rest + block[:cut], path, offset - len(rest))
                    rest = block[cut:]
                else:
                    rest += block
                offset += len(block)
    except OSError as error:
        raise storage_error("read", path, error) from None
    if rest:
        yield _decode(rest, path, offset - len(rest))


def _decode(data: bytes, path: object, offset: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{escape(path)}: not UTF-8 at byte {offset + error.start}") from None


def count_pieces(
    sources: Iterable[Source], stages: tuple[Stage, ...], threads: int, sentences: bool = False
) -> _core.PieceCounter:
    """The pieces of all sources with their counts. A str is a text; a path is a file, read line by line.

    With `sentences`, every line of either is one text, without its ending and with a space before it.
    """
    counter = _core.PieceCounter([int(s) for s in stages])
    texts: list[str] = []
    held = 0

    def flush() -> None:
        nonlocal held
        counter.add(texts, _Unit.SENTENCES if sentences else _Unit.WHOLE, threads)
        texts.clear()
        held = 0

    for source in sources:
        if isinstance(source, str):
            texts.append(source)
            held += len(source)
            if held > _BATCH_CHARS:
                flush()
        elif isinstance(source, os.PathLike):
            unit = _Unit.SENTENCES if sentences else _Unit.LINES
            blocks: list[str] = []
            for block in _blocks(source):
                blocks.append(block)
                if len(blocks) == 4:
                    counter.add(blocks, unit, threads)
                    blocks.clear()
            counter.add(blocks, unit, threads)
        else:
            raise ArgumentError(f"texts_or_files: must hold str (texts) or paths, found {type(source).__name__}")
    flush()
    return counter


def _check_special(special_tokens: Sequence[str]) -> None:
    for token in special_tokens:
        if not isinstance(token, str) or not token or clean(token) != token:
            raise ArgumentError(f"special_tokens: must be texts, found {escape(token)}")
    if len(set(special_tokens)) != len(special_tokens):
        raise ArgumentError("special_tokens: must be different")


def train_characters(
    sources: Iterable[Source],
    *,
    model_type: str,
    vocab_size: int,
    special_tokens: Sequence[str],
    min_frequency: int,
    character_coverage: float,
    byte_fallback: bool,
    threads: int,
    progress: Progress | None,
) -> VocabSpec:
    """A vocabulary of characters as SentencePiece makes them, BPE or Unigram.

    Ids: `special_tokens`, with byte fallback the 256 bytes, then for BPE the alphabet in order of code points and what
    the merges make, for Unigram the tokens from the most probable on.
    """
    _check_special(special_tokens)
    unknown = "<unk>"
    if unknown not in special_tokens:
        raise ArgumentError(f"special_tokens: {model_type} needs {unknown} among them, found {escape(special_tokens)}")
    if not 0 < character_coverage <= 1:
        raise ArgumentError(f"character_coverage: {shown(character_coverage)} is not above 0 and at most 1")
    counter = count_pieces(sources, (Stage.SPACE_EACH,), threads, sentences=True)
    alphabet = counter.characters(character_coverage)
    first = [*special_tokens, *(BYTE_NAMES if byte_fallback else [])]
    clash = set(first) & {shown_text(c) for c in alphabet}
    if clash:
        raise ArgumentError(f"special_tokens: {escape(sorted(clash))} are single characters of the texts")
    fewest = len(first) + len(alphabet)
    if not fewest <= vocab_size < 1 << 20:
        parts = f"{len(first)} special tokens and bytes, {len(alphabet)} characters"
        raise ArgumentError(f"vocab_size: {shown(vocab_size)} is not from {fewest} ({parts}) to {(1 << 20) - 1}")
    model: dict[str, Any]
    if model_type == "bpe":
        spelled = [text.replace(_MARK, " ").encode("utf-8") for text in first]
        result = counter.train(vocab_size, min_frequency, spelled, alphabet, True, False, progress)
        names = first + [shown_text(token) for token in result["tokens"][len(first) :]]
        merges = np.asarray(result["merges"]).reshape(-1, 3).tolist()
        model = {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": byte_fallback,
            "ignore_merges": False,
            "vocab": {name: at for at, name in enumerate(names)},
            "merges": [[names[a], names[b]] for a, b, _ in merges],
        }
    else:
        pieces = counter.train_unigram(vocab_size - len(first), alphabet, threads, progress)
        taken = set(first)
        named = [(name, score) for text, score in pieces if (name := shown_text(text)) not in taken]
        # A byte is never cut out of text that spells its name: all of these characters together are more probable.
        lowest = min((score for _, score in named), default=0.0)
        scores = [*(0.0 for _ in special_tokens), *(10 * lowest for _ in first[len(special_tokens) :])]
        model = {
            "type": "Unigram",
            "unk_id": first.index(unknown),
            "vocab": [*map(list, zip(first, scores, strict=True)), *map(list, named)],
            "byte_fallback": byte_fallback,
        }
    return from_json(_pipeline(model, special_tokens))


def shown_text(token: bytes) -> str:
    """A token as files spell it: a space is U+2581."""
    return token.decode("utf-8").replace(" ", _MARK)


def _pipeline(model: dict[str, Any], special_tokens: Sequence[str]) -> dict[str, Any]:
    """The tokenizer.json around a model: spaces are U+2581, one before the text, and words begin with them."""
    metaspace = {"type": "Metaspace", "replacement": _MARK, "prepend_scheme": "always", "split": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    decoders = [
        {"type": "Replace", "pattern": {"String": _MARK}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": at, "content": token, **flags} for at, token in enumerate(special_tokens)],
        "normalizer": None,
        "pre_tokenizer": metaspace,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


def train_spec(
    sources: Iterable[Source],
    *,
    vocab_size: int,
    pattern: str | None,
    special_tokens: Sequence[str],
    min_frequency: int,
    ties: str,
    threads: int,
    progress: Progress | None,
) -> VocabSpec:
    """The trained vocabulary: special tokens first, then the 256 bytes, then what the merges make."""
    if ties not in ("ids", "text"):
        raise ArgumentError(f"ties: {escape(ties)} is none of ids, text")
    _check_special(special_tokens)
    if not 256 + len(special_tokens) <= vocab_size < 1 << 24:
        raise ArgumentError(
            f"vocab_size: {shown(vocab_size)} is not from {256 + len(special_tokens)} to {(1 << 24) - 1}"
        )
    stages = stages_of(pattern)
    counter = count_pieces(sources, stages, threads)
    # A special token in the byte alphabet is spelled as bytes there, so that merges can be kept from spelling it.
    spelled = [bytelevel.to_bytes(token) or token.encode("utf-8") for token in special_tokens]
    alphabet = [bytes([byte]) for byte in bytelevel.training_order()]
    result = counter.train(vocab_size, min_frequency, spelled, alphabet, False, ties == "text", progress)
    tokens: list[bytes] = result["tokens"]
    kinds = bytearray([Kind.NORMAL]) * len(tokens)
    byte_ids = [NO_ID] * 256
    for at, token in enumerate(special_tokens):
        tokens[at], kinds[at] = token.encode("utf-8"), Kind.ADDED
    for at, byte in enumerate(bytelevel.training_order(), start=len(special_tokens)):
        byte_ids[byte] = at
    return VocabSpec(
        tokens=tokens,
        kinds=kinds,
        byte_ids=byte_ids,
        merges=np.asarray(result["merges"]).reshape(-1, 3),
        stages=stages,
        added=tuple(AddedToken(token, at) for at, token in enumerate(special_tokens)),
        names=dict(enumerate(special_tokens)),
    )
