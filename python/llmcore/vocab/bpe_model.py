"""Token strings -> the arrays of a VocabSpec, for vocabularies that spell their tokens as text."""

from __future__ import annotations

from typing import Any

from llmcore import _core
from llmcore.errors import TokenizerError
from llmcore.vocab import bytelevel
from llmcore.vocab.fields import shown
from llmcore.vocab.patterns import Stage
from llmcore.vocab.spec import NO_ID, AddedToken, Kind, check_ids

BYTE_NAMES = tuple(f"<0x{byte:02X}>" for byte in range(256))


def _size(vocab: dict[str, int], added: tuple[AddedToken, ...]) -> int:
    for token in added:
        if vocab.get(token.content, token.id) != token.id:
            raise TokenizerError(f"added token {shown(token.content)}: id {token.id} here, another in the vocabulary")
    ids = list(vocab.values()) + [t.id for t in added if t.content not in vocab]
    return check_ids(ids, "vocabulary")


def _place_added(added: tuple[AddedToken, ...], fields: dict[str, Any]) -> None:
    """Added tokens that merging can't or mustn't make stand apart from the vocabulary."""
    for token in added:
        if token.control or fields["kinds"][token.id] == Kind.GAP:
            fields["tokens"][token.id] = token.content.encode("utf-8")
            fields["kinds"][token.id] = Kind.ADDED
            fields["names"][token.id] = token.content


def _empty(size: int) -> dict[str, Any]:
    return {"size": size, "tokens": [b""] * size, "kinds": bytearray(size), "names": {}}


def byte_level_fields(vocab: dict[str, int], added: tuple[AddedToken, ...], unk: str | None) -> dict[str, Any]:
    """A vocabulary in GPT-2's byte alphabet."""
    fields = _empty(_size(vocab, added))
    outside = {t.content for t in added} | ({unk} if unk else set())
    for token in _core.byte_level_tokens(vocab, bytelevel.byte_of(), fields["tokens"], fields["kinds"], Kind.NORMAL):
        if token not in outside:
            raise TokenizerError(f"vocabulary: {shown(token)} is not spelled in the byte alphabet")
        at = vocab[token]
        fields["tokens"][at], fields["kinds"][at], fields["names"][at] = token.encode(), Kind.UNUSED, token
    fields["byte_ids"] = [vocab.get(char, NO_ID) for char in bytelevel.alphabet()]
    _place_added(added, fields)
    return {**fields, "byte_level": True}


def character_fields(
    vocab: dict[str, int], added: tuple[AddedToken, ...], unk: object, byte_fallback: bool, metaspace: bool
) -> dict[str, Any]:
    """A vocabulary spelled in text (SentencePiece). With `metaspace`, U+2581 is held as the space it stands for."""
    fields = _empty(_size(vocab, added))
    tokens, kinds, names = fields["tokens"], fields["kinds"], fields["names"]
    byte_of = {name: byte for byte, name in enumerate(BYTE_NAMES)} if byte_fallback else {}
    for token, at in vocab.items():
        if not token:
            raise TokenizerError("vocabulary: a token is empty")
        if token in byte_of:
            tokens[at], kinds[at], names[at] = bytes([byte_of[token]]), Kind.BYTE, token
        elif metaspace and " " in token:  # no text can hold a space any more when tokens are looked up
            tokens[at], kinds[at], names[at] = token.encode(), Kind.UNUSED, token
        else:
            tokens[at] = (token.replace("\u2581", " ") if metaspace else token).encode()
            kinds[at] = Kind.NORMAL
    _place_added(added, fields)
    fields["unk_id"] = None
    if unk is not None:
        if unk not in vocab:
            raise TokenizerError(f"unk_token {shown(unk)} is not in the vocabulary")
        at = vocab[str(unk)]
        fields["unk_id"] = at
        tokens[at], kinds[at], names[at] = str(unk).encode(), Kind.ADDED, str(unk)
    fields["byte_ids"] = [vocab.get(name, NO_ID) if byte_fallback else NO_ID for name in BYTE_NAMES]
    return {**fields, "byte_level": False}


def space_stage(tokens: list[bytes], kinds: bytearray) -> tuple[Stage, ...]:
    """SPACE_RUNS when no token that merging makes has anything else before a space, else no stage.

    Splitting text there can't change an id then, and short pieces are encoded faster.
    """
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == Kind.NORMAL and b" " in token.lstrip(b" "):
            return ()
    return (Stage.SPACE_RUNS,)
