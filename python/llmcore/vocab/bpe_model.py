"""Token strings -> the arrays of a VocabSpec, for vocabularies that spell their tokens as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from llmcore import _core
from llmcore.errors import TokenizerError
from llmcore.vocab import bytelevel
from llmcore.vocab.fields import refuse, shown
from llmcore.vocab.patterns import Stage
from llmcore.vocab.spec import NO_ID, AddedToken, JoinedTokens, Kind, check_ids

BYTE_NAMES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def _size(vocab: dict[str, int] | _core.TokenList, added: tuple[AddedToken, ...]) -> int:
    for token in added:
        if vocab.get(token.content, token.id) != token.id:
            raise TokenizerError(f"added token {shown(token.content)}: id {token.id} here, another in the vocabulary")
    ids = list(vocab.values()) if isinstance(vocab, dict) else vocab.ids()
    outside = [t.id for t in added if vocab.get(t.content) is None]
    return check_ids(np.concatenate([np.array(ids, np.int64), np.array(outside, np.int64)]), "vocabulary")


def _apart(vocab: dict[str, int] | _core.TokenList, added: tuple[AddedToken, ...]) -> dict[int, str]:
    """The added tokens that merging can't or mustn't make, by id."""
    return {t.id: t.content for t in added if t.control or vocab.get(t.content) is None}


def byte_level_fields(
    vocab: dict[str, int] | _core.TokenList, added: tuple[AddedToken, ...], unk: str | None
) -> dict[str, Any]:
    """A vocabulary in GPT-2's byte alphabet."""
    if isinstance(vocab, dict):
        vocab = _core.TokenList(vocab)
    size = _size(vocab, added)
    apart = _apart(vocab, added)
    contents = {id: content.encode("utf-8") for id, content in apart.items()}
    for byte, char in enumerate(bytelevel.alphabet()):
        if vocab.get(char) in apart:
            raise refuse(f"{shown(char)} as a control token, for it stands for the byte {byte}", "added_tokens")
    text, ends, kinds, others = vocab.spell_bytes(bytelevel.byte_of(), contents, size)
    outside = {t.content for t in added} | ({unk} if unk else set())
    names = {}
    for token in others:
        if token not in outside:
            raise TokenizerError(f"vocabulary: {shown(token)} is not spelled in the byte alphabet")
        names[vocab.get(token, NO_ID)] = token
    return {
        "size": size,
        "tokens": JoinedTokens(text, ends),
        "kinds": kinds,
        "names": names | apart,
        "byte_ids": [vocab.get(char, NO_ID) for char in bytelevel.alphabet()],
        "byte_level": True,
    }


def character_fields(
    vocab: dict[str, int] | _core.TokenList,
    added: tuple[AddedToken, ...],
    unk: object,
    byte_fallback: bool,
    metaspace: bool,
) -> dict[str, Any]:
    """A vocabulary spelled in text (SentencePiece). With `metaspace`, U+2581 is held as the space it stands for."""
    if not isinstance(vocab, dict):
        vocab = vocab.to_dict()
    size = _size(vocab, added)
    fields: dict[str, Any] = {"size": size, "tokens": [b""] * size, "kinds": bytearray(size), "names": {}}
    tokens, kinds, names = fields["tokens"], fields["kinds"], fields["names"]
    byte_of = {name: byte for byte, name in enumerate(BYTE_NAMES)} if byte_fallback else {}
    for text, at in vocab.items():
        if not text:
            raise TokenizerError("vocabulary: a token is empty")
        if text in byte_of:
            tokens[at], kinds[at], names[at] = bytes([byte_of[text]]), Kind.BYTE, text
        elif metaspace and " " in text:  # no text can hold a space any more when tokens are looked up
            tokens[at], kinds[at], names[at] = text.encode(), Kind.UNUSED, text
        else:
            tokens[at] = (text.replace("\u2581", " ") if metaspace else text).encode()
            kinds[at] = Kind.NORMAL
    for at, content in _apart(vocab, added).items():
        decoded = content.replace("\u2581", " ") if metaspace else content
        tokens[at], kinds[at], names[at] = decoded.encode(), Kind.ADDED, content
    fields["unk_id"] = None
    if unk is not None:
        if not isinstance(unk, str) or unk not in vocab:
            raise TokenizerError(f"unk_token {shown(unk)} is not in the vocabulary")
        at = vocab[unk]
        fields["unk_id"] = at
        tokens[at], kinds[at], names[at] = unk.encode(), Kind.ADDED, unk
    fields["byte_ids"] = [vocab.get(name, NO_ID) if byte_fallback else NO_ID for name in BYTE_NAMES]
    return {**fields, "byte_level": False}


def space_stage(tokens: Sequence[bytes], kinds: bytearray) -> tuple[Stage, ...]:
    """SPACE_RUNS when no token that merging makes has anything else before a space, and the space is one; or no stage.

    Splitting text there can't change an id then, and short pieces are encoded faster. A space without a token would
    be unknown together with what stands before it.
    """
    merged = [token for token, kind in zip(tokens, kinds, strict=True) if kind == Kind.NORMAL and b" " in token]
    return (Stage.SPACE_RUNS,) if b" " in merged and not any(b" " in token.lstrip(b" ") for token in merged) else ()
