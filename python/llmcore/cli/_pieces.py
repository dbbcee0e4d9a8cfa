"""Tokens for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmcore.tokenizer import Tokenizer


def piece(tokenizer: Tokenizer, token: int) -> str:
    """What `token` adds to a text, its space included; bytes that are no whole character as escapes."""
    # Alone, a token may lose the space that a text must not begin with: the second of two keeps it.
    alone = tokenizer.decode_bytes([token])
    return tokenizer.decode_bytes([token, token])[len(alone) :].decode("utf-8", "backslashreplace")
