"""Training of a byte-level BPE vocabulary: gathers the texts, the core counts and merges."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from llmcore import _core
from llmcore.checkpoint.files import storage_error
from llmcore.errors import ArgumentError, TokenizerError, escape
from llmcore.vocab import bytelevel
from llmcore.vocab.patterns import STAGE_OF_NAME, Stage
from llmcore.vocab.spec import NO_ID, AddedToken, Kind, VocabSpec
from llmcore.vocab.surrogates import clean

Source = str | os.PathLike[str]
_BLOCK_BYTES = 1 << 22
_BATCH_CHARS = 1 << 24


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


def count_pieces(sources: Iterable[Source], stages: tuple[Stage, ...], threads: int) -> _core.PieceCounter:
    """The pieces of all sources with their counts. A str is a text; a path is a file, read line by line."""
    counter = _core.PieceCounter([int(s) for s in stages])
    texts: list[str] = []
    held = 0

    def flush() -> None:
        nonlocal held
        counter.add(texts, False, threads)
        texts.clear()
        held = 0

    for source in sources:
        if isinstance(source, str):
            texts.append(clean(source))
            held += len(source)
            if held > _BATCH_CHARS:
                flush()
        elif isinstance(source, os.PathLike):
            blocks: list[str] = []
            for block in _blocks(source):
                blocks.append(block)
                if len(blocks) == 4:
                    counter.add(blocks, True, threads)
                    blocks.clear()
            counter.add(blocks, True, threads)
        else:
            raise ArgumentError(f"texts_or_files: must hold str (texts) or paths, found {type(source).__name__}")
    flush()
    return counter


def train_spec(
    sources: Iterable[Source],
    *,
    vocab_size: int,
    pattern: str | None,
    special_tokens: Sequence[str],
    min_frequency: int,
    ties: str,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> VocabSpec:
    """The trained vocabulary: special tokens first, then the 256 bytes, then what the merges make."""
    if ties not in ("ids", "text"):
        raise ArgumentError(f"ties: {escape(ties)} is none of ids, text")
    if len(set(special_tokens)) != len(special_tokens) or not all(special_tokens):
        raise ArgumentError("special_tokens: must be different and not empty")
    if not 256 + len(special_tokens) <= vocab_size < 1 << 24:
        raise ArgumentError(f"vocab_size: {vocab_size} is not from {256 + len(special_tokens)} to {(1 << 24) - 1}")
    stages = stages_of(pattern)
    counter = count_pieces(sources, stages, threads)
    # A special token in the byte alphabet is spelled as bytes there, so that merges can be kept from spelling it.
    spelled = [bytelevel.to_bytes(token) or token.encode("utf-8") for token in special_tokens]
    result = counter.train(vocab_size, min_frequency, spelled, bytelevel.training_order(), ties == "text", progress)
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
