"""A vocabulary as data: what every reader produces, the writer takes, and the core is built from."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from llmcore.errors import LimitError, TokenizerError
from llmcore.vocab.patterns import Stage

NO_ID = 0xFFFFFFFF
# (kind, flags, first, second), as in csrc/tokenizer/normalize.h
NormalizerPart = tuple[int, int, bytes, bytes]
# (kind, behavior, inverted, dialect, flags, number, text), as in csrc/tokenizer/pretokenize.h
PreTokenizerPart = tuple[int, int, bool, int, int, int, bytes]
# (id or one of the two below, type id)
PairTemplate = tuple[tuple[int, int], ...]
FIRST_TEXT, SECOND_TEXT = -1, -2
_MAX_IDS = 1 << 24
_CONTROL_NAME = re.compile(r"<\|.*\|>|<\uff5c.*\uff5c>|<(start|end)_of_turn>", re.DOTALL)


class Kind(IntEnum):
    """What an id is; the values are those of `TokenKind` in csrc/tokenizer/bpe.h."""

    GAP = 0
    NORMAL = 1
    BYTE = 2
    ADDED = 3
    UNUSED = 4


class FirstSpace(IntEnum):
    """Which space that decoded text would begin with is dropped; the values are those of csrc/tokenizer/tokenizer.h."""

    KEPT = 0
    OF_TEXT = 1  # the first, whatever it comes from: Hugging Face's Strip
    OF_TOKEN = 2  # the first token's, unless that is a byte: SentencePiece
    ALL_OF_TOKEN = 3  # all of the first token: Hugging Face's Metaspace
    OF_TOKENS = 4  # one of each token until there is text: a SentencePiece that removes extra spaces


class BrokenBytes(IntEnum):
    """What decodes to U+FFFD where bytes are no UTF-8."""

    TOGETHER = 0  # as much as a character could have begun with, as bytes.decode("utf-8", "replace") has it
    EACH = 1  # every byte: SentencePiece
    RUN = 2  # every byte of the run of byte tokens: Hugging Face's ByteFallback


class SpacePrefix(IntEnum):
    """Where a space is put before text; the values are those of csrc/tokenizer/tokenizer.h."""

    NEVER = 0
    EVERY_SEGMENT = 1
    TEXT_START = 2


# These come back as text of earlier answers, and a user can do nothing with them.
_ANSWER_MARKS = {"<think>", "</think>", "<tool_call>", "</tool_call>"}


@dataclass(frozen=True)
class AddedToken:
    """A string that is found in text as a whole. `special` is the file's flag, `control` what we make of it.

    `normalized`: it is looked for in normalised text, after being normalised itself unless `exact`.
    """

    content: str
    id: int
    special: bool = True
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    exact: bool = False

    @property
    def control(self) -> bool:
        """True when text may only become this token if the caller allows it.

        That is every special token, and what is named like one: Qwen2.5 marks `<|fim_prefix|>`, DeepSeek-R1
        `<\uff5cUser\uff5c>` and Gemma's tokenizer.model `<start_of_turn>` as ordinary added tokens, yet no user should
        be able to forge them. What a chat template writes counts in chats besides (`chat.template_marks`).
        """
        return self.special or _CONTROL_NAME.fullmatch(self.content) is not None

    @property
    def bracketed(self) -> bool:
        """Whether a template means this token by writing it: a name in brackets, no word, blank or sign of its code."""
        first, last = self.content[0], self.content[-1]
        outside = not (first.isalnum() or first.isspace() or last.isalnum() or last.isspace())
        return outside and any(map(str.isalpha, self.content)) and self.content not in _ANSWER_MARKS


@dataclass(frozen=True)
class ModelSpec:
    """A model other than byte-pair encoding proper; `kind` and the fields are those of csrc/tokenizer/models.h."""

    kind: int
    usable: bytes
    scores: npt.NDArray[np.float64] | None = None
    fuse_unk: bool = False
    byte_fallback: bool = False
    single_precision: bool = False
    min_score: float = 0.0
    max_characters: int = 100
    prefix: str = ""
    suffix: str = ""


@dataclass(frozen=True)
class VocabSpec:
    """One vocabulary. `tokens` holds by id the bytes that an id decodes to, `kinds` a `Kind` each.

    Merging is given either as `merges` (uint32 [n, 3]: left, right, result, in order of rank) or as `ranks` (uint32 by
    id; any two neighbours whose concatenation is a token merge, lowest rank first; NO_ID: never).

    `matched` holds by id the bytes that text is compared with, where those differ from `tokens`. `normalizers` and
    `pre_tokenizers` are the parts of a pipeline as vocab/hf_parts.py makes them; `decoders` are the parts of a decoder
    that does more than joining tokens, as the file has them; `source` is the file that all this was read from.
    `skips_unk`: the unknown token counts as a special one when text is decoded without those.

    `pair`: what two texts together become; None: each as it becomes alone, with the types 0 and 1. `trims`: how often
    white space is taken off the offsets of tokens, each time with whether the text's first space stays.
    """

    tokens: Sequence[bytes]
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
    first_space: FirstSpace = FirstSpace.KEPT
    prefix_ids: tuple[int, ...] = ()
    suffix_ids: tuple[int, ...] = ()
    pair: PairTemplate | None = None
    trims: tuple[bool, ...] = ()
    skips_unk: bool = False
    broken_bytes: BrokenBytes = BrokenBytes.TOGETHER
    matched: list[bytes] | None = None
    model: ModelSpec | None = None
    normalizers: tuple[NormalizerPart, ...] = ()
    pre_tokenizers: tuple[PreTokenizerPart, ...] = ()
    decoders: tuple[dict[str, Any], ...] | None = None
    source: dict[str, Any] | None = None

    def core_fields(self) -> dict[str, Any]:
        """The arguments of `_core.Tokenizer`."""
        text, text_ends = joined(self.tokens)
        decoded, decoded_ends = b"", np.empty(0, np.uint32)
        if self.matched is not None and self.model is None:
            decoded, decoded_ends = text, text_ends
            text, text_ends = joined(self.matched)
        empty = np.empty(0, np.uint32)
        kinds = bytes(self.kinds)
        if self.model is not None:  # byte-pair encoding has no part in it
            kinds = bytes(Kind.GAP if kind == Kind.GAP else Kind.UNUSED for kind in kinds)
        return {
            "text": text,
            "text_ends": text_ends,
            "kinds": np.frombuffer(kinds, np.uint8),
            "byte_ids": np.array(self.byte_ids, np.uint32),
            "characters": not self.byte_level,
            "whole_words": self.whole_words,
            "unk_id": NO_ID if self.unk_id is None else self.unk_id,
            "fuse_unk": self.fuse_unk,
            "merges": empty if self.merges is None or self.model is not None else self.merges.reshape(-1),
            "ranks": empty if self.ranks is None else self.ranks,
            "decoded": decoded,
            "decoded_ends": decoded_ends,
            "model": None if self.model is None else self._model_fields(self.model),
            **self.pipeline_fields(),
        }

    def pipeline_fields(self) -> dict[str, Any]:
        """Those of the arguments of `_core.Tokenizer` that aren't the vocabulary."""
        return {
            "normalizers": [*([(0, 0, b"", b"")] if self.nfc else []), *self.normalizers],
            "pre_tokenizers": list(self.pre_tokenizers),
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
                    t.exact,
                )
                for t in self.added
            ],
            "prefix_ids": np.array(self.prefix_ids, np.uint32),
            "suffix_ids": np.array(self.suffix_ids, np.uint32),
            "space_prefix": int(self.space_prefix),
            "first_space": int(self.first_space),
            "prefix_even_if_space": self.prefix_even_if_space,
            "prefix_before_added": self.prefix_before_added,
            "metaspace": self.metaspace,
        }

    @property
    def pair_template(self) -> PairTemplate:
        """What two texts together become."""
        if self.pair is not None:
            return self.pair
        texts = ((*self.prefix_ids, text, *self.suffix_ids) for text in (FIRST_TEXT, SECOND_TEXT))
        return tuple((id, type_id) for type_id, ids in enumerate(texts) for id in ids)

    @property
    def skipped(self) -> list[int]:
        """The ids without text when special tokens are skipped: by the file's flags, whatever a token looks like."""
        unk = {self.unk_id} if self.skips_unk and self.unk_id is not None else set()
        return sorted({t.id for t in self.added if t.special} | unk)

    def added_text(self, token: AddedToken) -> bytes:
        """The bytes that `token` is looked for by; the core puts those of normalised tokens through the normalisers."""
        content = token.content
        if token.normalized and not token.exact and self.prefix_before_added and self.prefix_even_if_space:
            content = content.replace("\u2581", " ")
            if self.space_prefix != SpacePrefix.NEVER:
                content = " " + content
        return content.encode("utf-8")

    def _model_fields(self, model: ModelSpec) -> dict[str, Any]:
        text, text_ends = joined(self.tokens if self.matched is None else self.matched)
        empty = np.empty(0, np.uint32)
        return {
            "kind": model.kind,
            "text": text,
            "text_ends": text_ends,
            "usable": np.frombuffer(model.usable, np.uint8),
            "scores": np.empty(0) if model.scores is None else model.scores,
            "byte_ids": np.array(self.byte_ids if model.byte_fallback else [], np.uint32),
            "merges": empty if self.merges is None else self.merges.reshape(-1),
            "unk_id": NO_ID if self.unk_id is None else self.unk_id,
            "fuse_unk": model.fuse_unk,
            "single_precision": model.single_precision,
            "min_score": model.min_score,
            "max_characters": model.max_characters,
            "prefix": model.prefix,
            "suffix": model.suffix,
        }

    def fingerprint(self) -> str:
        """SHA-256 over everything that decides ids and text, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        _digest(digest, self.core_fields())
        shown = (self.nfc, self.decoders, sorted(self.names.items()), self.skipped, int(self.broken_bytes), self.pair)
        digest.update(repr(shown).encode())
        return digest.hexdigest()

    def changed(self, **fields: Any) -> VocabSpec:
        """A copy with other fields."""
        return replace(self, **fields)


class LazyTokens(Sequence[bytes]):
    """Texts by id, each made when it is asked for."""

    @abstractmethod
    def _at(self, at: int) -> bytes: ...

    @overload
    def __getitem__(self, at: int) -> bytes: ...
    @overload
    def __getitem__(self, at: slice) -> list[bytes]: ...
    def __getitem__(self, at: int | slice) -> bytes | list[bytes]:
        if isinstance(at, slice):
            return [self._at(i) for i in range(*at.indices(len(self)))]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        return self._at(at % len(self))

    def __iter__(self) -> Iterator[bytes]:
        return map(self._at, range(len(self)))


class JoinedTokens(LazyTokens):
    """Texts that are kept as one, with where each of them ends."""

    def __init__(self, text: bytes, ends: npt.NDArray[np.uint32]) -> None:
        self.text, self.ends = text, ends

    def __len__(self) -> int:
        return len(self.ends)

    def _at(self, at: int) -> bytes:
        return self.text[self.ends[at - 1] if at else 0 : self.ends[at]]


def joined(texts: Sequence[bytes]) -> tuple[bytes, npt.NDArray[np.uint32]]:
    """All of `texts` together, and where each of them ends."""
    if isinstance(texts, JoinedTokens):
        return texts.text, texts.ends
    lengths = np.fromiter(map(len, texts), np.uint32, len(texts))
    return b"".join(texts), np.cumsum(lengths, dtype=np.uint64).astype(np.uint32)


def _digest(digest: Any, fields: dict[str, Any]) -> None:
    for key, value in fields.items():
        digest.update(f"{key}:".encode())
        if isinstance(value, dict):
            _digest(digest, value)
            continue
        if isinstance(value, np.ndarray):
            value = value.astype(value.dtype.newbyteorder("<")).tobytes()
        digest.update(value if isinstance(value, bytes) else repr(value).encode())


def check_ids(ids: npt.ArrayLike, what: str) -> int:
    """The number of ids that `ids` need, their largest plus one.

    Raises TokenizerError for an id below 0 or met twice, LimitError for one so large that a dense table of them would
    be many times the file.
    """
    given = np.asarray(ids, np.int64)
    if not given.size:
        return 0
    if given.min() < 0:
        raise TokenizerError(f"{what}: id {given.min()} is negative")
    if given.max() >= min(_MAX_IDS, 8 * given.size + (1 << 16)):
        raise LimitError(f"{what}: id {given.max()} is out of proportion to {given.size} tokens")
    times = np.bincount(given)
    if times.max() > 1:
        raise TokenizerError(f"{what}: id {times.argmax()} is given to two tokens")
    return len(times)
