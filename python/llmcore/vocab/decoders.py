"""Decoders that do more than joining tokens: WordPiece, BPEDecoder, CTC, and chains of parts.

Source: the decoders of Hugging Face tokenizers 0.23, whose `decode_chain` turns a list of tokens into another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby
from typing import Any

from llmcore import _core
from llmcore.vocab import bytelevel
from llmcore.vocab.bpe_model import BYTE_NAMES
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
_BYTES = {name: byte for byte, name in enumerate(BYTE_NAMES)} | {n.lower(): b for b, n in enumerate(BYTE_NAMES)}
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
        content, start, stop = text(part.get("content"), where), int(part.get("start", 0)), int(part.get("stop", 0))
        left, right = re.compile(f"{re.escape(content)}{{0,{start}}}"), re.compile(f"{re.escape(content)}{{0,{stop}}}$")
        return [right.sub("", left.sub("", t, count=1), count=1) if t else t for t in tokens]
    if kind == "Metaspace":
        mark = text(part.get("replacement", "\u2581"), where)
        scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
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


def _join_bytes(tokens: list[str]) -> list[str]:
    """Runs of byte tokens become their text, or U+FFFD for each byte where they have none."""
    out: list[str] = []
    for is_byte, run in groupby(tokens, lambda t: t in _BYTES):
        if not is_byte:
            out += run
            continue
        data = bytes(_BYTES[t] for t in run)
        try:
            out.append(data.decode("utf-8"))
        except UnicodeDecodeError:
            out += ["\ufffd"] * len(data)
    return out
