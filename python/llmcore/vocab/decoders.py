"""Decoders that do more than joining tokens: WordPiece, BPEDecoder, CTC, and chains of parts.

Source: the decoders of Hugging Face tokenizers 0.23, whose `decode_chain` turns a list of tokens into another.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from itertools import groupby
from string import hexdigits
from typing import Any

from llmcore import _core
from llmcore.errors import TokenizerError
from llmcore.vocab import bytelevel
from llmcore.vocab.fields import flag, refuse, shown, text
from llmcore.vocab.hf_parts import ONIGURUMA, pattern_of

_KNOWN = (
    "ByteLevel",
    "Replace",
    "WordPiece",
    "ByteFallback",
    "Fuse",
    "Strip",
    "Metaspace",
    "BPEDecoder",
    "CTC",
    "Join",
)
EACH_BYTE = "llmcore.replace_each_byte"
"""The name of an error handler of `bytes.decode`: U+FFFD for every byte that is no UTF-8."""
BYTES = {f"<0x{high}{low}>": int(high + low, 16) for high in hexdigits for low in hexdigits}
_CLEANED = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(EACH_BYTE, _replace_each_byte)


def check_decoders(parts: Iterable[dict[str, Any]]) -> None:
    """Raises TokenizerError for a part that isn't known or lacks a field."""
    for part in parts:
        if part.get("type") not in _KNOWN:
            raise refuse(f"decoder {shown(part.get('type'))}", "decoder")
        _apply(part, [])


def decode_tokens(parts: Iterable[dict[str, Any]], tokens: list[str]) -> str:
    """The text of `tokens` after all parts."""
    for part in parts:
        tokens = _apply(part, tokens)
    return "".join(tokens)


def _clean(piece: str) -> str:
    for spaced, joined in _CLEANED:
        piece = piece.replace(spaced, joined)
    return piece


def _apply(part: dict[str, Any], tokens: list[str]) -> list[str]:
    kind = part["type"]
    where = f"decoder {kind}"
    if kind == "Join":
        return [" ".join(tokens)]
    if kind == "Fuse":
        return ["".join(tokens)]
    if kind == "ByteLevel":
        data = b"".join(found if (found := bytelevel.to_bytes(t)) is not None else t.encode() for t in tokens)
        return [data.decode("utf-8", "replace")]
    if kind == "ByteFallback":
        return _join_bytes(tokens)
    if kind == "Replace":
        content = text(part.get("content"), where)
        string, regex = pattern_of(part, where)
        if regex is None:
            return [t.replace(string, content) for t in tokens]
        compiled = _core.Regex(regex, ONIGURUMA)
        return [compiled.replace(t, content) for t in tokens]
    if kind == "Strip":
        content, start, stop = _character(part, "content"), _count(part, "start"), _count(part, "stop")
        return [_stripped(t, content, start, stop) for t in tokens]
    if kind == "Metaspace":
        mark = _character({"replacement": "\u2581", **part}, "replacement")
        scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
        if scheme not in ("always", "first", "never"):
            raise TokenizerError(f"{where}.prepend_scheme: {shown(scheme)} is none of always, first, never")
        return [t.replace(mark, "" if i == 0 and scheme != "never" else " ") for i, t in enumerate(tokens)]
    cleanup = flag(part.get("cleanup", True), where)
    if kind == "WordPiece":
        prefix = text(part.get("prefix", "##"), where)
        pieces = [t if i == 0 else t[len(prefix) :] if t.startswith(prefix) else " " + t for i, t in enumerate(tokens)]
        return [_clean(p) for p in pieces] if cleanup else pieces
    if kind == "BPEDecoder":
        suffix = text(part.get("suffix", "</w>"), where)
        return [t.replace(suffix, " " if i + 1 < len(tokens) else "") for i, t in enumerate(tokens)]
    pad = text(part.get("pad_token", "<pad>"), where)
    delimiter = text(part.get("word_delimiter_token", "|"), where)
    pieces = [t.replace(pad, "") for t, _ in groupby(tokens)]
    return [p for p in (_clean(p).replace(delimiter, " ") if cleanup else p for p in pieces) if p]


def _character(part: dict[str, Any], name: str) -> str:
    where = f"decoder {part['type']}.{name}"
    value = text(part.get(name), where)
    if len(value) != 1:
        raise TokenizerError(f"{where}: must be one character, found {shown(value)}")
    return value


def _count(part: dict[str, Any], name: str) -> int:
    value = part.get(name, 0)
    if type(value) is not int or value < 0:
        raise TokenizerError(f"decoder {part['type']}.{name}: must be an integer from 0, found {shown(value)}")
    return value


def _stripped(token: str, content: str, start: int, stop: int) -> str:
    token = token[min(start, len(token) - len(token.lstrip(content))) :]
    return token[: len(token) - min(stop, len(token) - len(token.rstrip(content)))]


def _join_bytes(tokens: list[str]) -> list[str]:
    """Runs of byte tokens become their text."""
    out: list[str] = []
    for is_byte, group in groupby(tokens, lambda t: t in BYTES):
        run = list(group)
        out += texts_of_bytes(bytes(BYTES[t] for t in run)) if is_byte else run
    return out


def texts_of_bytes(run: bytes) -> list[str]:
    """The text of a run of byte tokens, or U+FFFD for each of them where the run isn't UTF-8 as a whole."""
    try:
        return [run.decode("utf-8")]
    except UnicodeDecodeError:
        return ["\ufffd"] * len(run)
