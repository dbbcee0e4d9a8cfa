"""JSON from untrusted files: what RFC 8259 allows and nothing more, within fixed bounds.

Python's parser takes NaN, keeps the last of two equal keys, recurses as deep as the input says and lets lone surrogates
through. Here depth and counts are measured by a linear scan before anything is parsed, and the rest is refused.
"""

from __future__ import annotations

import errno
import json
import os
import re
from typing import Any

import numpy as np

from llmcore.checkpoint.files import PlainFile, shown
from llmcore.errors import CheckpointError, ConfigError, LimitError, LlmcoreError, StorageError

_SCAN_BYTES = 1 << 18
_MAX_DIGITS = 400  # more than any number a checkpoint can mean; int() is quadratic in the digits
_DIGITS_TO_0 = bytes.maketrans(b"123456789", b"000000000")
_STRUCTURE = b'"{}[]:,'
_NOT_STRUCTURE = bytes(set(range(256)) - set(_STRUCTURE))
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


class _RefusedError(ValueError):
    """Raised inside the parser's hooks; becomes the caller's error class."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


def load_json(
    path: str | os.PathLike[str] | PlainFile,
    *,
    limit_bytes: int,
    max_depth: int = 32,
    max_keys: int = 1 << 16,
    max_items: int = 1 << 18,
    error: type[LlmcoreError] = ConfigError,
) -> object:
    """The value in the JSON file at `path`, or in an open file, which stays open.

    `limit_bytes` bounds the file, the rest is as in `parse_json`. Raises `error` for a missing file and for what isn't
    strict JSON, LimitError for what is too large, StorageError when the file can't be read.
    """
    if isinstance(path, PlainFile):
        if path.size > limit_bytes:
            raise LimitError(f"{_shown(path.path)}{path.size} bytes of JSON, at most {limit_bytes} are read")
        data = bytes(path.read(path.size, 0))
        return parse_json(
            data, file=path.path, max_depth=max_depth, max_keys=max_keys, max_items=max_items, error=error
        )
    try:
        opened = PlainFile(path)
    except StorageError as problem:
        if problem.errno == errno.ENOENT:
            raise _make(error, "no such file", path) from None
        raise
    with opened:
        return load_json(
            opened,
            limit_bytes=limit_bytes,
            max_depth=max_depth,
            max_keys=max_keys,
            max_items=max_items,
            error=error,
        )


def parse_json(
    data: bytes,
    *,
    file: object = None,
    max_depth: int = 32,
    max_keys: int = 1 << 16,
    max_items: int = 1 << 18,
    error: type[LlmcoreError] = ConfigError,
) -> object:
    """The value that `data` holds: UTF-8 without BOM, no NaN, no equal keys in one object, no lone surrogates.

    `max_depth` bounds nesting, `max_keys` the keys and `max_items` the values of the whole text; beyond: LimitError.
    What isn't strict JSON raises `error`, with the byte offset where there is one. `file` names the source in messages.
    """
    if data[:3] == b"\xef\xbb\xbf":
        raise _make(error, "begins with a byte-order mark; JSON has none", file, offset=0)
    _check_structure(data, file, max_depth, max_keys, max_items)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise _make(
            error, "is not UTF-8", file, offset=problem.start, value=f"byte 0x{data[problem.start]:02x}"
        ) from None
    # The parser calls back for every integer, so it is asked to only where it matters.
    limited = _integer if b"0" * (_MAX_DIGITS + 1) in data.translate(_DIGITS_TO_0) else None
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant, parse_int=limited)
    except json.JSONDecodeError as problem:
        offset = len(text[: problem.pos].encode("utf-8"))
        raise _make(error, f"is not strict JSON: {problem.msg}", file, offset=offset) from None
    except _RefusedError as problem:
        raise _make(error, problem.message, file, field=problem.field) from None
    if b"\\u" in data and _SURROGATE_ESCAPE.search(data):
        _check_surrogates(value, file, error)
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen = set()
        for key, _ in pairs:
            if key in seen:
                raise _RefusedError("holds the same key twice in one object", key)
            seen.add(key)
    return made


def _constant(name: str) -> object:
    raise _RefusedError(f"holds {name}, which JSON doesn't have")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise _RefusedError(f"holds an integer of {len(text)} digits, at most {_MAX_DIGITS} are read")
    return int(text)


def _check_surrogates(value: object, file: object, error: type[LlmcoreError]) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _make(error, "holds half of a surrogate pair (\\ud800 to \\udfff), which is no character", file) from None


def _check_structure(data: bytes, file: object, max_depth: int, max_keys: int, max_items: int) -> None:
    """Bounds depth, keys and values in one linear pass in constant memory.

    Strings are skipped by the parity of the quotes before a byte. On broken JSON the figures are right up to the first
    fault, which is as far as the parser goes.
    """
    depth = keys = items = 0
    inside = 0
    at = 0
    while at < len(data):
        chunk = data[at : at + _SCAN_BYTES]
        at += len(chunk)
        if b"\\" in chunk:
            chunk = chunk.replace(b"\\\\", b"__")
            if chunk.endswith(b"\\") and at < len(data):  # escapes the first byte of the next chunk
                at += 1
                chunk = chunk[:-1]
            chunk = chunk.replace(b'\\"', b"__")
        marks = np.frombuffer(chunk.translate(None, _NOT_STRUCTURE), np.uint8)
        parity = (np.cumsum(marks == ord('"'), dtype=np.int64) + inside) & 1
        if len(parity):
            inside = int(parity[-1])
        marks = marks[(parity == 0) & (marks != ord('"'))]
        opens = (marks == ord("{")) | (marks == ord("["))
        closes = (marks == ord("}")) | (marks == ord("]"))
        levels = np.cumsum(opens.astype(np.int64) - closes) + depth
        deepest = int(levels.max(initial=depth))
        if len(levels):
            depth = int(levels[-1])
        keys += int(np.count_nonzero(marks == ord(":")))
        items += int(np.count_nonzero(opens) + np.count_nonzero(marks == ord(",")))
        if deepest > max_depth:
            raise LimitError(f"{_shown(file)}JSON nested deeper than {max_depth} levels before byte {at}")
        if keys > max_keys:
            raise LimitError(f"{_shown(file)}more than {max_keys} keys in the JSON before byte {at}")
        if items > max_items:
            raise LimitError(f"{_shown(file)}more than {max_items} values in the JSON before byte {at}")


def _shown(file: object) -> str:
    return "" if file is None else f"{shown(file)}: "


def _make(error: type[LlmcoreError], message: str, file: object, **where: Any) -> LlmcoreError:
    """`error` with what it can carry: a CheckpointError takes fields, others get them in the message."""
    if issubclass(error, CheckpointError):
        return error(message, file=file, **where)
    text = str(CheckpointError(message, file=file, **where))
    return error(text)
