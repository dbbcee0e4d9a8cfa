"""Typed access to untrusted JSON: a wrong type is a TokenizerError that names the field."""

from __future__ import annotations

from typing import Any

from llmcore.errors import LimitError, TokenizerError, escape

JSON_LIMIT_BYTES = 1 << 27
MAX_KEYS = 1 << 22
MAX_ITEMS = 1 << 23


def shown(value: object) -> str:
    """`value` as short text that is safe in a message."""
    return escape(value if isinstance(value, str) else repr(value))


def obj(value: object, where: str) -> dict[str, Any]:
    """`value` as an object."""
    if not isinstance(value, dict):
        raise TokenizerError(f"{where}: must be an object, found {shown(value)}")
    return value


def array(value: object, where: str) -> list[Any]:
    """`value` as an array."""
    if not isinstance(value, list):
        raise TokenizerError(f"{where}: must be an array, found {shown(value)}")
    return value


def text(value: object, where: str) -> str:
    """`value` as a string."""
    if not isinstance(value, str):
        raise TokenizerError(f"{where}: must be a string, found {shown(value)}")
    return value


def flag(value: object, where: str) -> bool:
    """`value` as true or false."""
    if not isinstance(value, bool):
        raise TokenizerError(f"{where}: must be true or false, found {shown(value)}")
    return value


def token_id(value: object, where: str) -> int:
    """`value` as an id; those beyond 2^24 can't be meant."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TokenizerError(f"{where}: an id must be an integer from 0, found {shown(value)}")
    if value >= 1 << 24:
        raise LimitError(f"{where}: id {shown(value)} is beyond 2^24")
    return value


class UnsupportedPartError(TokenizerError):
    """A part that can't be reproduced exactly by what was asked to."""


def refuse(what: str, where: str) -> UnsupportedPartError:
    """The error for a part that can't be reproduced exactly."""
    return UnsupportedPartError(f"{where}: {what} is not supported, so the ids could not be exact")
