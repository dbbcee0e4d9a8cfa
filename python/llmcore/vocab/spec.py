"""A vocabulary as data: what every reader produces, the writer takes, and the core is built from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from llmcore.errors import LimitError, TokenizerError
from llmcore.vocab.nfc import nfc
from llmcore.vocab.patterns import Stage

NO_ID = 0xFFFFFFFF
_MAX_IDS = 1 << 24


class Kind(IntEnum):
    """What an id is; the values are those of `TokenKind` in csrc/tokenizer/bpe.h."""

    GAP = 0
    NORMAL = 1
    BYTE = 2
    ADDED = 3
    UNUSED = 4


class SpacePrefix(IntEnum):
    """Where a space is put before text; the values are those of csrc/tokenizer/tokenizer.h."""

    NEVER = 0
    EVERY_SEGMENT = 1
    TEXT_START = 2


@dataclass(frozen=True)
class AddedToken:
    """A string that is found in text as a whole. `special` is the file's flag, `control` what we make of it."""

    content: str
    id: int
    special: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False

    @property
    def control(self) -> bool:
        """True when text may only become this token if the caller allows it.

        That is every special token, and what is written like one (`<|...|>`): Qwen2.5 marks `<|fim_prefix|>` and its
        like as ordinary added tokens, yet no user should be able to forge them.
        """
        return self.special or (self.content.startswith("<|") and self.content.endswith("|>"))


@dataclass(frozen=True)
class VocabSpec:
    """One vocabulary. `tokens` holds by id the bytes that an id decodes to, `kinds` a `Kind` each.

    Merging is given either as `merges` (uint32 [n, 3]: left, right, result, in order of rank) or as `ranks` (uint32 by
    id; any two neighbours whose concatenation is a token merge, lowest rank first; NO_ID: never).
    """

    tokens: list[bytes]
    kinds: bytearray
    byte_ids: list[int]
    merges: npt.NDArray[np.uint32] | None = None
    ranks: npt.NDArray[np.uint32] | None = None
    byte_level: bool = True
    whole_words: bool = False
    unk_id: int | None = None
    fuse_unk: bool = True
    stages: tuple[Stage, ...] = ()
    added: tuple[AddedToken, ...] = ()
    names: dict[int, str] = field(default_factory=dict)
    nfc: bool = False
    space_prefix: SpacePrefix = SpacePrefix.NEVER
    prefix_even_if_space: bool = False
    prefix_before_added: bool = False
    metaspace: bool = False
    strip_prefix: bool = False
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()

    def core_fields(self) -> dict[str, Any]:
        """The arguments of `_core.Tokenizer`."""
        lengths = np.fromiter(map(len, self.tokens), np.uint32, len(self.tokens))
        empty = np.empty(0, np.uint32)
        return {
            "text": b"".join(self.tokens),
            "text_ends": np.cumsum(lengths, dtype=np.uint64).astype(np.uint32),
            "kinds": np.frombuffer(bytes(self.kinds), np.uint8),
            "byte_ids": np.array(self.byte_ids, np.uint32),
            "characters": not self.byte_level,
            "whole_words": self.whole_words,
            "unk_id": NO_ID if self.unk_id is None else self.unk_id,
            "fuse_unk": self.fuse_unk,
            "merges": empty if self.merges is None else self.merges.reshape(-1),
            "ranks": empty if self.ranks is None else self.ranks,
            "stages": [int(s) for s in self.stages],
            "added": [
                (
                    self.added_text(t),
                    t.id,
                    t.control,
                    t.single_word,
                    t.lstrip,
                    t.rstrip,
                    t.normalized,
                )
                for t in self.added
            ],
            "prefix_ids": np.array(self.prefix_ids, np.uint32),
            "suffix_ids": np.array(self.suffix_ids, np.uint32),
            "space_prefix": int(self.space_prefix),
            "prefix_even_if_space": self.prefix_even_if_space,
            "prefix_before_added": self.prefix_before_added,
            "metaspace": self.metaspace,
        }

    def added_text(self, token: AddedToken) -> bytes:
        """The bytes that `token` is looked for by: normalised tokens go through the normaliser themselves."""
        content = token.content
        if token.normalized and self.nfc:
            content = nfc(content)
        if token.normalized and self.prefix_before_added and self.prefix_even_if_space:
            content = " " + content.replace("\u2581", " ")
        return content.encode("utf-8")

    def fingerprint(self) -> str:
        """SHA-256 over everything that decides ids and text, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for key, value in self.core_fields().items():
            digest.update(f"{key}:".encode())
            if isinstance(value, np.ndarray):
                value = value.astype(value.dtype.newbyteorder("<")).tobytes()
            digest.update(value if isinstance(value, bytes) else repr(value).encode())
        digest.update(repr((self.nfc, self.strip_prefix, sorted(self.names.items()))).encode())
        return digest.hexdigest()

    def changed(self, **fields: Any) -> VocabSpec:
        """A copy with other fields."""
        return replace(self, **fields)


def check_ids(ids: list[int], what: str) -> int:
    """The number of ids that `ids` need, their largest plus one.

    Raises TokenizerError for an id below 0 or met twice, LimitError for one so large that a dense table of them would
    be many times the file.
    """
    if not ids:
        return 0
    if min(ids) < 0:
        raise TokenizerError(f"{what}: id {min(ids)} is negative")
    if len(set(ids)) != len(ids):
        seen: set[int] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise TokenizerError(f"{what}: id {twice} is given to two tokens")
    if max(ids) >= min(_MAX_IDS, 8 * len(ids) + (1 << 16)):
        raise LimitError(f"{what}: id {max(ids)} is out of proportion to {len(ids)} tokens")
    return max(ids) + 1
