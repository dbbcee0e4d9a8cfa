"""tokenizer.model of SentencePiece (a protobuf message) -> VocabSpec, for BPE and Unigram models.

Source: sentencepiece_model.proto. The reader is bounded: one level of nesting, no recursion, every length checked.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from llmcore.errors import LimitError, TokenizerError
from llmcore.vocab.bpe_model import BYTE_NAMES, space_stage
from llmcore.vocab.fields import refuse, shown
from llmcore.vocab.hf_general import UNIGRAM
from llmcore.vocab.hf_parts import NormalizerCode
from llmcore.vocab.spec import (
    NO_ID,
    AddedToken,
    BrokenBytes,
    FirstSpace,
    Kind,
    ModelSpec,
    SpacePrefix,
    VocabSpec,
)

_MAX_PIECES = 1 << 20
_MAX_BEGUN = 64  # symbols that one place can begin with: more aren't looked at
FIRST_BYTES = (b"\x0a", b"\x12", b"\x1a", b"\x22", b"\x2a")
"""What a model begins with: the key of one of its five fields, all of them messages."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_UNIGRAM, _BPE = 1, 2
_MODEL_TYPES = {3: "Word", 4: "Char"}


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise TokenizerError(f"SentencePiece model: a number at byte {at} is cut off or too long")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """(field number, wire type, value) of one message; bytes for lengths and fixed words, int for varints."""
    at = 0
    while at < len(data):
        start = at
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise TokenizerError(f"SentencePiece model: field number 0 at byte {start}")
        if wire == _VARINT:
            value: Any
            value, at = _varint(data, at)
        elif wire in (_BYTES, _FIXED64, _FIXED32):
            size, at = _varint(data, at) if wire == _BYTES else (8 if wire == _FIXED64 else 4, at)
            if size > len(data) - at:
                raise TokenizerError(f"SentencePiece model: {size} bytes at byte {at} reach beyond the end")
            value = data[at : at + size]
            at += size
        else:
            raise TokenizerError(f"SentencePiece model: wire type {wire} at byte {start}")
        yield number, wire, value


def _message(data: bytes, types: dict[int, int]) -> dict[int, Any]:
    """The known fields of a message, the last of each; `types` says their wire types."""
    found: dict[int, Any] = {}
    for number, wire, value in _fields(data):
        if number in types:
            if types[number] != wire:
                raise TokenizerError(f"SentencePiece model: field {number} has wire type {wire}, not {types[number]}")
            found[number] = value
    return found


def _piece(data: bytes, at: int) -> tuple[str, float, int]:
    fields = _message(data, {1: _BYTES, 2: _FIXED32, 3: _VARINT})
    try:
        text = fields.get(1, b"").decode("utf-8")
    except UnicodeDecodeError:
        raise TokenizerError(f"SentencePiece model: piece {at} is not UTF-8") from None
    score = struct.unpack("<f", fields[2])[0] if 2 in fields else 0.0
    kind = fields.get(3, _NORMAL)
    if not text:
        raise TokenizerError(f"SentencePiece model: piece {at} has no text")
    if not math.isfinite(score):
        raise TokenizerError(f"SentencePiece model: piece {at} has the score {score}")
    if not _NORMAL <= kind <= _BYTE:
        raise TokenizerError(f"SentencePiece model: piece {at} has the unknown type {kind}")
    return text, score, kind


def read_model(data: bytes, config: dict[str, Any]) -> VocabSpec:
    """The vocabulary in the bytes of a tokenizer.model.

    `config` (tokenizer_config.json) says whether BOS and EOS go around a text (`add_bos_token`: true unless said,
    `add_eos_token`: false). Raises TokenizerError for a broken file and for what can't be reproduced exactly.
    """
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for number, wire, value in _fields(data):
        if number in (1, 2, 3, 5) and wire != _BYTES:
            raise TokenizerError(f"SentencePiece model: field {number} has wire type {wire}")
        if number == 1:
            if len(pieces) == _MAX_PIECES:
                raise LimitError(f"SentencePiece model: more than {_MAX_PIECES} pieces")
            pieces.append(_piece(value, len(pieces)))
        elif number == 2:
            trainer = _message(value, {3: _VARINT, 24: _VARINT, 35: _VARINT})
        elif number == 3:
            normalizer = _message(value, {2: _BYTES, 3: _VARINT, 4: _VARINT, 5: _VARINT, 6: _BYTES})
    if not pieces:
        raise TokenizerError("not a tokenizer: neither JSON, nor ranks, nor a SentencePiece model with pieces")
    where = "SentencePiece model"
    _check_symbols([text for text, _, kind in pieces if kind == _USER_DEFINED])
    kind = trainer.get(3, _UNIGRAM)
    if kind not in (_UNIGRAM, _BPE):
        raise refuse(f"model type {_MODEL_TYPES.get(kind, kind)}", where)
    if trainer.get(24):
        raise refuse("treat_whitespace_as_suffix", where)
    if kind == _UNIGRAM:
        return unigram_of_pieces(pieces, normalizer, config, bool(trainer.get(35)))
    spec = spec_of_pieces(pieces, bool(trainer.get(35)), bool(normalizer.get(3, 1)), config)
    escape = bool(normalizer.get(5, 1))
    # Symbols of the user are found in text that has no spaces any more, as they are.
    spec = spec.changed(
        added=tuple(
            t if t.special else replace(t, exact=True)
            for t in spec.added
            if t.special or not escape or " " not in pieces[t.id][0]
        )
    )
    plain = not normalizer.get(2) and not normalizer.get(4, 1) and escape
    if plain and trainer.get(35) and all(text != "\u2581" for text, _, _ in pieces):
        raise refuse("byte fallback for spaces, without a piece for \u2581", where)
    return spec if plain else _with_normalizer(spec, pieces, normalizer)


def _check_characters(pieces: list[tuple[str, float, int]]) -> None:
    """SentencePiece also merges characters that are no pieces themselves; here such a one is unknown at once."""
    found = {text for text, _, kind in pieces if kind in (_NORMAL, _USER_DEFINED)}
    if missing := set("".join(text for text, _, kind in pieces if kind == _NORMAL)) - found:
        at = next(i for i, (text, _, kind) in enumerate(pieces) if kind == _NORMAL and missing & set(text))
        raise refuse(f"piece {at} {shown(pieces[at][0])} of characters that are no pieces", "SentencePiece model")


def _check_symbols(symbols: list[str]) -> None:
    """Raises TokenizerError for symbols of the user that SentencePiece doesn't find as such."""
    begun: list[str] = []  # each begins with the one before
    for symbol in sorted(symbols):
        while begun and not symbol.startswith(begun[-1]):
            begun.pop()
        begun.append(symbol)
        if len(begun) > _MAX_BEGUN:
            raise refuse(f"the symbol {shown(symbol)}, which begins with {_MAX_BEGUN} others,", "SentencePiece model")
        if "\0" in symbol:
            raise refuse(f"the symbol {shown(symbol)} with a zero byte", "SentencePiece model")


def _with_normalizer(spec: VocabSpec, pieces: list[tuple[str, float, int]], normalizer: dict[int, Any]) -> VocabSpec:
    """`spec` with SentencePiece's own normaliser before it, which leaves symbols of the user as they are."""
    dummy, remove, escape = (bool(normalizer.get(field, 1)) for field in (3, 4, 5))
    spared = [text.encode() for text, _, kind in pieces if kind == _USER_DEFINED]
    flags = dummy | remove << 1 | escape << 2
    part = (int(NormalizerCode.SENTENCEPIECE), flags, normalizer.get(2, b""), b"".join(s + b"\0" for s in spared))
    return spec.changed(
        matched=[
            data if kind == Kind.BYTE else text.encode()
            for data, kind, (text, _, _) in zip(spec.tokens, spec.kinds, pieces, strict=True)
        ],
        normalizers=(part,),
        added=tuple(replace(t, content=pieces[t.id][0]) if t.exact else t for t in spec.added),
        stages=(),
        space_prefix=SpacePrefix.NEVER,
        prefix_even_if_space=False,
        prefix_before_added=False,
        metaspace=False,
        first_space=FirstSpace.OF_TOKENS if remove else spec.first_space,
    )


def unigram_of_pieces(
    pieces: list[tuple[str, float, int]],
    normalizer: dict[int, Any],
    config: dict[str, Any],
    byte_fallback: bool = False,
) -> VocabSpec:
    """A Unigram model; `normalizer` are the fields of the file's normalizer_spec."""
    spec = spec_of_pieces(pieces, byte_fallback, bool(normalizer.get(3, 1)), config, allow_unused=True)
    # The model finds symbols of the user itself, but for those that no user may forge (`<start_of_turn>`).
    added = tuple(t if t.special else replace(t, exact=True) for t in spec.added if t.control)
    control = {t.id for t in added}
    spec = _with_normalizer(spec.changed(added=added), pieces, normalizer)
    use = {_NORMAL: 1, _USER_DEFINED: 2}
    normal = [score for _, score, kind in pieces if kind == _NORMAL]
    ends = str(config.get("tokenizer_class", "")).startswith(("T5", "MT5", "UMT5"))
    by_text = {text: at for at, (text, _, _) in enumerate(pieces)}
    bos, eos = by_text.get("<s>"), by_text.get("</s>")
    return spec.changed(
        ranks=None,
        model=ModelSpec(
            UNIGRAM,
            bytes(0 if at in control else use.get(kind, 0) for at, (_, _, kind) in enumerate(pieces)),
            np.array([score for _, score, _ in pieces], np.float64),
            fuse_unk=True,
            byte_fallback=byte_fallback,
            single_precision=True,
            min_score=min(normal, default=0.0),
        ),
        prefix_ids=(bos,) if bos is not None and config.get("add_bos_token", False) else (),
        suffix_ids=(eos,) if eos is not None and config.get("add_eos_token", ends) else (),
    )


def spec_of_pieces(
    pieces: list[tuple[str, float, int]],
    byte_fallback: bool,
    dummy_prefix: bool,
    config: dict[str, Any],
    allow_unused: bool = False,
) -> VocabSpec:
    size = len(pieces)
    tokens, kinds = [b""] * size, bytearray(size)
    names: dict[int, str] = {}
    added: list[AddedToken] = []
    byte_ids = [NO_ID] * 256
    unknown: list[int] = []
    by_text: dict[str, int] = {}
    for at, (text, _, kind) in enumerate(pieces):
        if text in by_text:
            raise TokenizerError(f"SentencePiece model: piece {at} {shown(text)} is piece {by_text[text]} again")
        by_text[text] = at
        if kind == _NORMAL:
            tokens[at], kinds[at] = text.replace("\u2581", " ").encode(), Kind.NORMAL
            continue
        names[at] = text
        tokens[at], kinds[at] = text.encode(), Kind.ADDED
        if kind == _BYTE:
            if text not in BYTE_NAMES:
                raise TokenizerError(f"SentencePiece model: byte piece {at} is {shown(text)}, not <0x00> to <0xFF>")
            byte = BYTE_NAMES.index(text)
            tokens[at], kinds[at], byte_ids[byte] = bytes([byte]), Kind.BYTE, at
        elif kind == _UNKNOWN:
            unknown.append(at)
        elif kind == _CONTROL:
            added.append(AddedToken(text, at))
        elif kind == _USER_DEFINED:
            tokens[at] = text.replace("\u2581", " ").encode()
            added.append(AddedToken(text.replace("\u2581", " "), at, special=False, normalized=True))
        elif not allow_unused:  # merging would make it and take it apart again
            raise refuse(f"the unused piece {at}", "SentencePiece model")
        else:  # never made, but can be decoded
            tokens[at], kinds[at] = text.replace("\u2581", " ").encode(), Kind.UNUSED
    if not allow_unused:
        _check_characters(pieces)
    if len(unknown) != 1:
        raise TokenizerError(f"SentencePiece model: {len(unknown)} unknown pieces, must be one")
    if byte_fallback and NO_ID in byte_ids:
        raise TokenizerError(f"SentencePiece model: byte fallback without piece {BYTE_NAMES[byte_ids.index(NO_ID)]}")
    every = config.get("legacy", True) is not False
    prefix = SpacePrefix.EVERY_SEGMENT if every else SpacePrefix.TEXT_START
    bos, eos = by_text.get("<s>"), by_text.get("</s>")
    return VocabSpec(
        tokens=tokens,
        kinds=kinds,
        byte_ids=byte_ids if byte_fallback else [NO_ID] * 256,
        ranks=_ranks(pieces),
        byte_level=False,
        unk_id=unknown[0],
        stages=space_stage(tokens, kinds),
        added=tuple(added),
        names=names,
        space_prefix=prefix if dummy_prefix else SpacePrefix.NEVER,
        prefix_even_if_space=True,
        prefix_before_added=True,
        metaspace=True,
        first_space=FirstSpace.OF_TOKEN if dummy_prefix else FirstSpace.KEPT,
        skips_unk=True,
        broken_bytes=BrokenBytes.EACH,
        prefix_ids=(bos,) if bos is not None and config.get("add_bos_token", True) else (),
        suffix_ids=(eos,) if eos is not None and config.get("add_eos_token", False) else (),
    )


def _ranks(pieces: list[tuple[str, float, int]]) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """By id, the place of its score among all scores, best first; equal scores have equal places."""
    scores = np.array([score for _, score, _ in pieces], np.float32)
    _, places = np.unique(-scores, return_inverse=True)
    normal = np.array([kind == _NORMAL for _, _, kind in pieces])
    return np.where(normal, places, NO_ID).astype(np.uint32)
